"""The optimizers of a run: AdamW, or Muon for the matrices inside transformer blocks and AdamW for the rest."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from da3gs.errors import InputError

if TYPE_CHECKING:
    from da3gs.train.loop import OptimConfig

# Quintic whose repeated application sends every singular value of (0, 1] near 1 (Jordan et al. 2024), and its rounds.
_QUINTIC, _ROUNDS = (3.4445, -4.7750, 2.0315), 5
# Root mean square of an AdamW step in units of its rate: with this much a step, both can share one rate.
_ADAMW_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices (Jordan et al. 2024; scaled to AdamW's rates, Liu et al. 2025, 2502.16982).

    torch has one since 2.9 that works in bfloat16 alone, which a CPU without AVX-512 emulates.

    Args:
        parameters: Matrices [m, n], or groups of them.
        lr: As for AdamW.
        momentum: Of Nesterov's kind.
        weight_decay: Decoupled.
        precision: Of the orthogonalisation; bfloat16 is good enough and several times as fast where it has kernels.
    """

    MOMENTS = ("momentum",)

    def __init__(
        self,
        parameters,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        precision: torch.dtype = torch.float32,
    ):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure=None):
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            lr, keep = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - keep)
                direction = orthogonalized(parameter.grad.lerp(momentum, keep), self.precision)
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(direction.to(parameter), alpha=-lr * _ADAMW_RMS * max(parameter.shape) ** 0.5)


def orthogonalized(matrix: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """About U V^T of  matrix = U S V^T, float32: singular values between 0.7 and 1.2, by Newton-Schulz iterations."""
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    X = (matrix.T if tall else matrix).float()
    X = (X / X.norm().clamp(min=1e-7)).to(precision)
    for _ in range(_ROUNDS):
        gram = X @ X.T
        X = torch.addmm(X, torch.addmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return (X.T if tall else X).float()


def open_optimizers(
    parameters: Mapping[str, nn.Parameter], config: "OptimConfig", precision: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Optimizers that together move every parameter; each group has a "factor" on the rate.

    Args:
        parameters: What is trained, by name.
        config: Kind and rates.
        precision: Of Muon's orthogonalisation.
    """
    inner = {name: parameter for name, parameter in parameters.items() if _is_inner_matrix(name, parameter)}
    if config.optimizer == "adamw":
        inner = {}
    elif not inner:
        raise InputError("optim.optimizer muon moves matrices of transformer blocks; this task trains none: use adamw")
    rest = {name: parameter for name, parameter in parameters.items() if name not in inner}
    optimizers: list[torch.optim.Optimizer] = []
    if rest:
        optimizers.append(torch.optim.AdamW(parameter_groups(rest, config), lr=config.lr, betas=config.betas))
    if inner:
        group = {"params": list(inner.values()), "factor": 1.0}
        optimizers.append(Muon([group], config.lr, weight_decay=config.weight_decay, precision=precision))
    return optimizers


def parameter_groups(parameters: Mapping[str, nn.Parameter], config: "OptimConfig") -> list[dict[str, Any]]:
    """Groups of AdamW: matrices decay, biases, norms, scales and tokens do not; the camera decoder has its own rate."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        decay = config.weight_decay if parameter.ndim >= 2 and min(parameter.shape) > 1 else 0.0
        factor = config.camera_decoder_lr if "camera_decoder" in name else 1.0
        group = groups.setdefault((decay, factor), {"params": [], "weight_decay": decay, "factor": factor})
        group["params"].append(parameter)
    return list(groups.values())


def moments(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Names of what an optimizer remembers of a parameter, each of its shape."""
    return optimizer.MOMENTS if isinstance(optimizer, Muon) else ("exp_avg", "exp_avg_sq")


def _is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    return "blocks" in name.split(".") and parameter.ndim == 2
