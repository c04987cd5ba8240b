"""What a run tells: progress on the terminal, metrics.jsonl, TensorBoard, picture panels."""

import json
import logging
import time
from pathlib import Path

from da3gs.atomic import atomic_path
from da3gs.train.panels import save_picture
from da3gs.train.task import Evaluation

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


class Reporter:
    """Logs of the main process. After a resume, lines of steps that are run again are dropped first."""

    def __init__(self, run: Path, total_steps: int, first_step: int, every: int):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.run, self.every = run, every
        self._forget_after(first_step)
        self.lines = (run / METRICS).open("a")
        self.board = _tensorboard(run, first_step)
        self.pictures, self.seconds, self.last_line = 0, 0.0, time.monotonic()
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[loss]}"),
        )
        self.bar = self.progress.add_task("training", total=total_steps, completed=first_step, speed="", loss="")
        if self.progress.console.is_terminal:
            self.progress.start()

    def step(self, step: int, facts: dict[str, float | int], pictures: int, seconds: float) -> None:
        self.pictures, self.seconds = self.pictures + pictures, self.seconds + seconds
        speed = self.pictures / max(self.seconds, 1e-9)
        self.progress.update(self.bar, completed=step, speed=f"{speed:.1f} images/s", loss=f"loss {facts['loss']:.4f}")
        if step % self.every:
            return
        self._line({"step": step, **facts, "images_per_s": speed})
        if self.board is not None:
            for name, value in facts.items():
                self.board.add_scalar(f"train/{name}", value, step)
        if not self.progress.console.is_terminal and time.monotonic() - self.last_line > 30:
            self.last_line = time.monotonic()
            remaining = self.progress.tasks[0].total - step
            eta = remaining * self.seconds / max(1, self.pictures / pictures)
            logger.info("step %d: loss %.4f, %.1f images/s, %.0f min left", step, facts["loss"], speed, eta / 60)
        self.pictures, self.seconds = 0, 0.0

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        self._line({"step": step, **{f"eval/{name}": value for name, value in evaluation.metrics.items()}})
        folder = self.run / "panels"
        folder.mkdir(exist_ok=True)
        for name, picture in evaluation.panels.items():
            save_picture(picture, folder / f"{step:07d}_{name}.png")
            if self.board is not None:
                self.board.add_image(f"panels/{name}", picture, step)
        if self.board is not None:
            for name, value in evaluation.metrics.items():
                self.board.add_scalar(f"eval/{name}", value, step)
        logger.info("step %d: %s", step, ", ".join(f"{k} {v:.4g}" for k, v in evaluation.metrics.items()))

    def flush(self) -> None:
        self.lines.flush()
        if self.board is not None:
            self.board.flush()

    def close(self) -> None:
        self.progress.stop()
        self.lines.close()
        if self.board is not None:
            self.board.close()

    def _line(self, facts: dict[str, float | int]) -> None:
        self.lines.write(json.dumps(facts) + "\n")
        self.lines.flush()

    def _forget_after(self, step: int) -> None:
        path = self.run / METRICS
        if not path.is_file():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):  # a line cut short by the kill
                continue
        with atomic_path(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept))


def recorded_evaluation(run: Path, step: int) -> dict[str, float]:
    """Metrics of the evaluation at a step as the log of a run has them; empty where there was none.

    Args:
        run: Folder of the run.
        step: Steps done.
    """
    path, found = run / METRICS, {}
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.endswith("}") and '"eval/' in line:  # a line may be cut short by a kill
                facts = json.loads(line)
                if facts["step"] == step:
                    found = {k.removeprefix("eval/"): v for k, v in facts.items() if k.startswith("eval/")}
    return found


def _tensorboard(run: Path, first_step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        logger.warning("no TensorBoard events: tensorboard is not installed (pip install 'da3gs[train]')")
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1 if first_step else None)
