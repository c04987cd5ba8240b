"""What the training loop asks of a task."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from da3gs.errors import InputError


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Numbers by name, and picture panels [3, H, W] in [0, 1] by name."""

    metrics: dict[str, float]
    panels: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """A task at work.

    Attributes:
        module: What is trained: its parameters that require gradients, and only these are saved in checkpoints.
        images_per_step: Pictures per micro-batch over all processes, for the reported speed.
    """

    module: nn.Module
    images_per_step: int

    def batch(self, index: int, rank: int, processes: int) -> dict[str, Any]:
        """Share of one process in micro-batch `index`; a pure function (resume and data parallelism rest on it)."""

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Terms by name; "loss" is what is minimised. `module` is `self.module` or its wrapper."""

    def evaluate(self, module: nn.Module) -> Evaluation:
        """Evaluate on held-out data; called with averaged weights in place."""

    def export(self, path: str | Path, provenance: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
        """Write the result for use."""


def pick_scenes(rng: random.Random, scenes: list[int], count: int, processes: int) -> list[int]:
    """`count` scenes for all processes, at least one for each; no scene twice unless there are too few."""
    if not scenes:
        raise InputError("the data has no scene of the wanted size")
    count = max(processes, count)
    if count <= len(scenes):
        return rng.sample(scenes, count)
    return rng.choices(scenes, k=count)


def share_of(own: int, total: int, processes: int) -> float:
    """Weight of a process's mean over `own` scenes: averaged over processes, that is the mean over all `total`."""
    return own * processes / total
