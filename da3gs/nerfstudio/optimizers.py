"""Optimizer and scheduler settings for nerfstudio's trainer.

nerfstudio's own exponential decay leaves numpy numbers in the checkpoint, which `torch.load` of torch >= 2.6 refuses to
read back (ns-eval, ns-render, ns-export, ns-viewer, resuming). This one leaves Python floats.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from nerfstudio.engine.optimizers import OptimizerConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim.lr_scheduler import LambdaLR
from tyro.conf import Suppress


@dataclass
class AdamConfig(OptimizerConfig):
    """Adam, with the learning rate as its only flag."""

    _target: Any = torch.optim.Adam
    lr: float = 1e-3
    """Learning rate at the start."""
    eps: Suppress[float] = 1e-15
    max_norm: Suppress[float | None] = None


class ExponentialDecay(Scheduler):
    """Learning rate from its start to `lr_final` along a geometric sequence of `max_steps` steps, then constant."""

    def get_scheduler(self, optimizer: torch.optim.Optimizer, lr_init: float) -> LambdaLR:
        """The scheduler of one parameter group that starts at `lr_init`."""
        ratio, steps = self.config.lr_final / lr_init, self.config.max_steps
        return LambdaLR(optimizer, lambda step: math.pow(ratio, min(step / steps, 1.0)))


@dataclass
class ExponentialDecayConfig(SchedulerConfig):
    """Exponential decay of the learning rate."""

    _target: Callable = ExponentialDecay
    lr_final: float = 1e-4
    """Learning rate at the end."""
    max_steps: int = 1000
    """Steps until the end is reached."""
