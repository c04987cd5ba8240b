"""The one training loop, on `accelerate`: one CPU, one GPU, or many of them with the same command.

    batch(step) ─► loss ─► backward ─► [accumulate] ─► clip ─► optimizer ─► average ─► log, evaluate, checkpoint

Whatever a step needs is a function of its number and the seed. So a run that is killed and resumed equals one that was
not, and the same global batch gives the same step on any number of processes (up to rounding).
"""

import json
import logging
import math
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from da3gs.config import config_to_tree, save_config
from da3gs.errors import Da3gsError, InputError, MissingDependencyError
from da3gs.train.checkpointing import MovingAverage, checkpoints, load_state, save_state, trained_parameters
from da3gs.train.gs_head import GSHeadTask
from da3gs.train.optimizers import open_optimizers
from da3gs.train.reporting import Reporter, recorded_evaluation
from da3gs.train.student import StudentTask
from da3gs.train.task import Task
from da3gs.train.teacher import TeacherTask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimConfig:
    """Linear warm-up and cosine decay of the rate, and what follows it.

    Attributes:
        optimizer: "adamw", or "muon": steps of orthogonalised momentum for the matrices inside transformer blocks,
            AdamW for all else. Half of the pictures teach da3-tiny about as much that way.
        lr: Peak learning rate.
        final_lr: Fraction of `lr` at the last step.
        camera_decoder_lr: Factor on the rate of the camera decoder. Its tokens have a large common part and no norm in
            front: at the rate of the backbone its ReLUs die while the views do not yet say anything about cameras.
        steps: Optimizer steps of the run.
        accumulate: Micro-batches per step.
        clip: Largest gradient norm of a parameter group (so that wild gradients of the camera decoder spare the rest).
        ema: Decay of the averaged weights, which are evaluated and exported; 0 turns the average off.
        precision: "bf16" runs the backbone in bfloat16; on CPUs that only emulate it, in float32 with a line that says
            so.
        patience: Consecutive steps with a non-finite loss or gradient (each is skipped) before the run stops.
    """

    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-4
    final_lr: float = 0.01
    camera_decoder_lr: float = 0.1
    warm_up: int = 200
    steps: int = 10_000
    accumulate: int = 1
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    ema: float = 0.999
    precision: str = "no"
    patience: int = 10

    def __post_init__(self):
        if self.steps < 1 or self.accumulate < 1 or self.lr <= 0 or self.clip <= 0:
            raise InputError("steps, accumulate, lr and clip must be positive")
        if self.precision not in ("no", "bf16"):
            raise InputError(f"precision must be no or bf16; got {self.precision!r}")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema is a decay in [0, 1); got {self.ema}")


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        task: What is trained, on what, with which losses.
        output: Folder of the run.
        seed: Of initial weights and every draw.
        device: "auto" (a GPU if there is one) or "cpu".
        threads: CPU threads of torch per process; 0 leaves torch's choice.
        workers: Processes that prepare batches ahead; 0 prepares them in line.
        checkpoint_every, evaluate_every, log_every: In steps. A checkpoint is also written at the end.
        keep: Checkpoints kept.
        stop_after: End after this many steps of this call although the schedule goes on; 0 runs to the end.
    """

    task: StudentTask | GSHeadTask | TeacherTask = field(default_factory=StudentTask)
    optim: OptimConfig = field(default_factory=OptimConfig)
    output: Path = Path("runs/train")
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    workers: int = 0
    checkpoint_every: int = 500
    evaluate_every: int = 500
    log_every: int = 10
    keep: int = 2
    stop_after: int = 0

    def __post_init__(self):
        for name in ("checkpoint_every", "evaluate_every", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; got {getattr(self, name)}")
        if min(self.threads, self.workers, self.stop_after) < 0:
            raise InputError("threads, workers and stop_after cannot be negative")


def train(config: TrainConfig, *, resume: bool = False) -> dict[str, float]:
    """Run to the end and return the last evaluation.

    Writes into the output folder: ``config.yaml`` (resolved), ``metrics.jsonl``, TensorBoard events, ``panels/``,
    ``checkpoints/``, and ``model.safetensors`` (averaged weights) with every evaluation.

    Args:
        resume: Go on from the last complete checkpoint of the output folder, or from the start if there is none.

    Raises:
        InputError: The output folder holds a run already and `resume` is not set.
        Da3gsError: The loss was not finite for too many steps in a row.
    """
    accelerator = _accelerator(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    task = config.task.open(config.seed)
    run = _Run(config, task, accelerator)
    run.prepare(resume)
    return run.go()


def learning_rate(config: OptimConfig, step: int) -> float:
    """Rate of step `step` (from 0): linear up over the warm-up, cosine down to `final_lr` of the peak."""
    if step < config.warm_up:
        return config.lr * (step + 1) / config.warm_up
    progress = (step - config.warm_up) / max(1, config.steps - config.warm_up)
    floor = config.lr * config.final_lr
    return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class _Run:
    def __init__(self, config: TrainConfig, task: Task, accelerator):
        self.config, self.task, self.accelerator = config, task, accelerator
        self.parameters = trained_parameters(task.module)
        task.module.to(accelerator.device)
        precision = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        self.optimizers = open_optimizers(self.parameters, config.optim, precision)
        self.module = accelerator.prepare(task.module)
        self.average = MovingAverage(self.parameters, config.optim.ema) if config.optim.ema else None
        self.step, self.skipped, self.skipped_in_row = 0, 0, 0
        self.main = accelerator.is_main_process
        self.reporter: Reporter | None = None
        self.evaluated: dict[str, float] = {}

    def prepare(self, resume: bool) -> None:
        """Folder, checkpoint, logs."""
        output = self.config.output
        found = checkpoints(output)
        if found and not resume:
            raise InputError(f"{output} holds a run at {found[-1].name}; add --resume to go on, or name another output")
        if not found and not resume and (output / "model.safetensors").is_file():
            raise InputError(
                f"{output} holds the weights of a run, but none of its checkpoints; name another output, or add "
                "--resume to start over"
            )
        if self.main:
            output.mkdir(parents=True, exist_ok=True)
        step = int(found[-1].name.removeprefix("step_")) if found else -1
        steps = self.accelerator.gather(torch.tensor([step], device=self.accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise InputError(
                f"processes see different checkpoints in {output} (steps {sorted(set(steps))}, -1: none); resume with "
                "an output folder that all nodes share"
            )
        if found:
            facts = load_state(found[-1], self.parameters, self.average, self.optimizers)
            self.step, self.skipped = facts["step"], facts["skipped"]
            if facts["seed"] != self.config.seed:
                raise InputError(
                    f"the run in {output} has seed {facts['seed']}, this configuration {self.config.seed}; resume with "
                    "the seed of the run"
                )
            logger.info("resumed from %s", found[-1])
            if (output / "model.safetensors").is_file():
                self.evaluated = recorded_evaluation(output, self.step)
        self.accelerator.wait_for_everyone()
        if self.main:
            save_config(self.config, output / "config.yaml")
            self.reporter = Reporter(output, self.config.optim.steps, self.step, self.config.log_every)

    def go(self) -> dict[str, float]:
        config = self.config
        last = config.optim.steps if not config.stop_after else min(config.optim.steps, self.step + config.stop_after)
        batches = self._batches(last)
        metrics = self.evaluated
        if self.step >= last:
            logger.info("the run is complete at step %d; set optim.steps higher to go on", self.step)
        # A checkpoint is written before its evaluation: a run stopped between the two lacks the latter.
        if self.step and not metrics and (self.step >= last or self.step % config.evaluate_every == 0):
            metrics = self._evaluate()
        try:
            while self.step < last:
                begun = time.perf_counter()
                terms, norm, finite = self._step(batches)
                self._count(finite)
                self.step += 1
                if finite and self.average is not None:
                    self.average.update(self.parameters, self.step)
                if self.reporter is not None:
                    facts = {
                        **terms,
                        "lr": learning_rate(config.optim, self.step - 1),
                        "grad_norm": norm,
                        "skipped": self.skipped,
                    }
                    pictures = self.task.images_per_step * config.optim.accumulate
                    self.reporter.step(self.step, facts, pictures, time.perf_counter() - begun)
                ends = self.step == last
                if ends or self.step % config.checkpoint_every == 0:
                    self._checkpoint()  # first: an evaluation that fails loses nothing
                if ends or self.step % config.evaluate_every == 0:
                    metrics = self._evaluate()
        finally:
            if self.reporter is not None:
                self.reporter.close()
        self.accelerator.wait_for_everyone()
        return metrics

    # ---------------------------------------------------------------- one step

    def _step(self, batches) -> tuple[dict[str, float], float, bool]:
        """One optimizer step. Returns the terms, the gradient norm, and whether it was finite (else: not taken)."""
        config, accelerator = self.config.optim, self.accelerator
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["lr"] = group["factor"] * learning_rate(config, self.step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for micro in range(config.accumulate):
            batch = next(batches)
            if isinstance(batch, Da3gsError):
                raise batch
            batch = _on_device(batch, accelerator.device)
            synchronise = micro == config.accumulate - 1
            with accelerator.autocast(), _without_sync(accelerator, self.module, synchronise):
                terms = self.task.loss(self.module, batch)
                (terms["loss"] / config.accumulate).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / config.accumulate
        norms = [torch.nn.utils.clip_grad_norm_(group["params"], config.clip) for group in groups]
        norm = torch.stack([value.to(accelerator.device) for value in norms]).norm()
        values = torch.stack([*(value.float() for value in sums.values()), norm.detach().float()])
        values = accelerator.reduce(values, "mean")  # every process sees the same numbers, so all decide alike
        finite = bool(torch.isfinite(values).all())
        if finite:
            for optimizer in self.optimizers:
                optimizer.step()
        *numbers, norm_value = values.tolist()
        return dict(zip(sums, numbers, strict=True)), norm_value, finite

    def _count(self, finite: bool) -> None:
        self.skipped_in_row = 0 if finite else self.skipped_in_row + 1
        if finite:
            return
        self.skipped += 1
        logger.warning("step %d: loss or gradient is not finite; skipped (%d so far)", self.step, self.skipped)
        if self.skipped_in_row >= self.config.optim.patience:
            raise Da3gsError(
                f"training stopped at step {self.step}: loss or gradient was not finite {self.skipped_in_row} times in "
                f"a row; lower optim.lr (now {self.config.optim.lr:g}) and --resume from the last checkpoint in "
                f"{self.config.output}"
            )

    def _batches(self, last: int):
        """Micro-batches from the current step on."""
        accumulate = self.config.optim.accumulate
        dataset = _Batches(self.task, self.accelerator.process_index, self.accelerator.num_processes)
        indices = range(self.step * accumulate, last * accumulate)
        if self.config.workers == 0:
            return (dataset[index] for index in indices)
        loader = torch.utils.data.DataLoader(
            dataset,
            sampler=indices,
            batch_size=None,
            num_workers=self.config.workers,
            prefetch_factor=4,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=_one_thread,
        )
        return iter(loader)

    # ---------------------------------------------------------------- now and then

    def _evaluate(self) -> dict[str, float]:
        """Evaluate and export the averaged weights (on the main process)."""
        metrics: dict[str, float] = {}
        if self.main:
            if self.average is not None:
                self.average.swap(self.parameters)
            evaluation = self.task.evaluate(self.accelerator.unwrap_model(self.module))
            provenance = {"training": config_to_tree(self.config), "step": self.step, "metrics": evaluation.metrics}
            self.task.export(self.config.output / "model.safetensors", json.loads(json.dumps(provenance)))
            if self.average is not None:
                self.average.swap(self.parameters)
            metrics = evaluation.metrics
            self.reporter.evaluation(self.step, evaluation)
        self.accelerator.wait_for_everyone()
        return metrics

    def _checkpoint(self) -> None:
        if self.main:
            self.reporter.flush()
            facts: dict[str, Any] = {"skipped": self.skipped, "seed": self.config.seed}
            save_state(
                self.config.output,
                self.step,
                self.parameters,
                self.average,
                self.optimizers,
                facts,
                keep=self.config.keep,
            )
        self.accelerator.wait_for_everyone()


class _Batches(torch.utils.data.Dataset):
    """The batches of one process, by the index of the micro-batch."""

    def __init__(self, task: Task, rank: int, processes: int):
        self.task, self.rank, self.processes = task, rank, processes

    def __getitem__(self, index: int) -> dict[str, Any] | Da3gsError:
        """A batch, or what is wrong with it: raised in a worker process, it would come with that one's traceback."""
        try:
            return self.task.batch(index, self.rank, self.processes)
        except Da3gsError as error:
            return error


def _on_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Tensors of a batch on the device; a task moves the rest itself."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def _without_sync(accelerator, module, synchronise: bool):
    from contextlib import nullcontext

    return nullcontext() if synchronise else accelerator.no_sync(module)


def _accelerator(config: TrainConfig):
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "training needs accelerate; install it with `pip install 'da3gs[train]'`"
        ) from error
    if config.device not in ("auto", "cpu"):
        raise InputError(f"device must be auto or cpu (pick GPUs with CUDA_VISIBLE_DEVICES); got {config.device!r}")
    # accelerate keeps the settings of the first run of a process; a second run may have others.
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)
    # The camera encoder has no part in batches without known poses, the learned camera token none in those with.
    uneven = DistributedDataParallelKwargs(find_unused_parameters=True)
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    precision = config.optim.precision
    if precision == "bf16" and on_cpu and not bf16_is_fast_on_cpu():
        logger.warning("this CPU has no AVX-512: bfloat16 would be several times as slow; training in float32")
        precision = "no"
    return Accelerator(cpu=config.device == "cpu", mixed_precision=precision, kwargs_handlers=[uneven])


def bf16_is_fast_on_cpu() -> bool:
    """Whether matrix products in bfloat16 have kernels of their own here; x86 without AVX-512 falls back to loops."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    return not x86 or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
