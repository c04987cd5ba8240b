"""`da3gs refine`: fit the splats of a scene to its own pictures."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from da3gs.cli.arguments import check_at_least, check_device
from da3gs.cli.console import print_json, print_result

if TYPE_CHECKING:
    from da3gs.refine import RefineConfig

logger = logging.getLogger(__name__)

_LOG_EVERY = 50


@dataclass
class RefineCommand:
    """Fit the splats of a reconstruction to its own pictures: about two minutes on a CPU, and two to six dB.

    SCENE is a folder that da3gs reconstruct wrote. Every step renders one view and compares it with its picture;
    positions, shapes, opacities and colours follow. Nothing is split or added: for that go on with ns-train. Pictures
    may be exposed differently (each has a colour gain of its own, which the scene does not keep).

    OUTPUT becomes a scene folder like the first, complete or not at all; its report.json has the PSNR before and after.

    Examples:
      da3gs refine out/ --output refined/
      da3gs refine out/ --output out/ --steps 1000 --poses
      da3gs refine out/ --output refined/ --hold-out 4       # measure it on views it does not see
    """

    scene: Annotated[Positional[Path], arg(metavar="SCENE")]
    """Folder of a scene."""

    output: Annotated[Path, arg(metavar="FOLDER")]
    """Folder to write; new, empty, or with an earlier scene, which is replaced."""

    steps: Annotated[int | None, arg(metavar="N")] = None
    """Views rendered and compared. Default: 50 per view, 300 to 3000."""

    sh_degree: Literal[0, 1, 2, 3] | None = None
    """Degree of the colours: above 0 they depend on the direction they are seen from. Default: the scene's, at least
    1."""

    poses: bool = False
    """Also move the cameras: where they were found and not measured."""

    no_exposure: bool = False
    """Take all pictures for exposed alike."""

    hold_out: Annotated[int, arg(metavar="N")] = 0
    """Leave every N-th view out of the fit, and measure it."""

    max_gaussians: Annotated[int | None, arg(metavar="N")] = None
    """Keep at most this many Gaussians first: those that make up most of the pictures."""

    device: Annotated[str, arg(metavar="DEVICE")] = "auto"
    """auto, cpu, cuda, cuda:1, .."""

    seed: int = 0
    """Of the order of views."""

    no_video: bool = False
    """Do not render flythrough.mp4."""

    video_frames: Annotated[int, arg(metavar="N")] = 120
    """Length of the fly-through, at 30 frames per second."""

    json: bool = False
    """Print what was measured as one JSON object."""

    def run(self) -> int:
        from dataclasses import replace

        import torch

        from da3gs.export.scene_folder import check_output_folder, load_scene, save_scene
        from da3gs.pipeline.stages import Stages
        from da3gs.refine import refine

        config = self._config()
        output = self.output
        check_output_folder(output)
        stages = Stages(lambda name: logger.info("%s", name))
        with stages("reading the scene"):
            scene = load_scene(self.scene)
            device = self.device
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            scene = replace(scene, gaussians=scene.gaussians.to(device))
        with stages("refining"), progress_bar(config.steps_for(len(scene.cameras))) as tell:
            refined = refine(scene, config, on_step=tell)
        save_scene(
            refined,
            output,
            video=not self.no_video,
            frames=self.video_frames,
            progress=sys.stderr.isatty(),
            stages=stages,
        )
        facts = refined.report["refinement"]
        if self.json:
            print_json({"output": str(output), **facts, "gaussians": len(refined.gaussians), "seconds": stages.seconds})
        else:
            print_result(_summary(output, facts, len(refined.gaussians), stages))
        return 0

    def _config(self) -> "RefineConfig":
        from da3gs.refine import RefineConfig

        check_at_least(
            ("--steps", self.steps, 1),
            ("--max-gaussians", self.max_gaussians, 1),
            ("--video-frames", self.video_frames, 1),
        )
        check_device(self.device)
        return RefineConfig(
            steps=self.steps,
            sh_degree=self.sh_degree,
            exposure=not self.no_exposure,
            poses=self.poses,
            hold_out=self.hold_out,
            max_gaussians=self.max_gaussians,
            seed=self.seed,
        )


@contextmanager
def progress_bar(steps: int) -> Iterator:
    """A bar with the time left on a terminal; a log line every 50 steps elsewhere."""
    recent: list[float] = []

    def mean(value: float) -> float:
        recent.append(value)
        del recent[:-20]
        return sum(recent) / len(recent)

    if not sys.stderr.isatty() or not logger.isEnabledFor(logging.INFO):

        def tell(step: int, value: float) -> None:
            smooth = mean(value)
            if step % _LOG_EVERY == 0 or step == steps:
                logger.info("step %d of %d: %.1f dB", step, steps, smooth)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Refining"), BarColumn(), TextColumn("{task.fields[psnr]:.1f} dB"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("refining", total=steps, psnr=0.0)
        yield lambda step, value: progress.update(task, completed=step, psnr=mean(value))


def _summary(output: Path, facts: dict[str, Any], count: int, stages: Any) -> str:
    before, after = facts["psnr_fit"]
    lines = [
        f"{output}: {count} Gaussians refined in {facts['steps']} steps, {stages.seconds:.1f} s with files",
        f"  fitted views    {before:.1f} -> {after:.1f} dB",
    ]
    if facts["psnr_held_out"] is not None:
        before, after = facts["psnr_held_out"]
        lines.append(f"  held-out views  {before:.1f} -> {after:.1f} dB")
    lines.append(f"  next            da3gs view {output}")
    return "\n".join(lines)
