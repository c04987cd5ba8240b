"""Cameras that explain matches, by Gauss-Newton: bundle adjustment whose points hang on predicted depth.

A match (x_i, x_j) lifts to X = s_i d_i(x_i) K^-1 x_i and lands in view j at u = pi(K (R_ji X + t_ji)). Depth is known
roughly, so along its epipolar line a match may be off by more than across it:

    u - x_j  ~  N(0, sigma^2 I + sigma_d^2 g g^T),      g = du / dlog d

(Y = exp(xi) T moves a pose, in the camera's own frame.) Unknown are all poses but the first, one scale s_i of depth per
view and one factor of all focal lengths, both with a prior around 1. A Cauchy kernel whose width falls in steps keeps
wrong matches out.

Letters: V views, N matches in one direction.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from da3gs.geometry.rotations import cross_matrix
from da3gs.model.match_loops import match_errors

_DEPTH_SIGMA = 1.0  # of the logarithm of a single depth: little is asked of it where there is parallax
_SCALE_SIGMA = 0.08  # of the logarithm of a view's depth scale
_KERNELS = (2.0, 0.7)  # widths, in standard deviations
_BEHIND = 0.02  # z below this share of the depth is held there
_CONVERGED = 1e-5


@dataclass(frozen=True, eq=False)
class Observations:
    """N matches, each seen from one side: x in view i, with its depth, was found at y in view j. float64."""

    i: Int64[Tensor, " N"]
    j: Int64[Tensor, " N"]
    x: Float[Tensor, "N 2"]
    y: Float[Tensor, "N 2"]
    depth: Float[Tensor, " N"]
    sigma: Float[Tensor, " N"]
    weight: Float[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.i)

    @staticmethod
    def concatenate(parts: list["Observations"]) -> "Observations":
        names = ("i", "j", "x", "y", "depth", "sigma", "weight")
        return Observations(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def halves(self) -> tuple["Observations", "Observations"]:
        """The first half and the second, as matches of a pair are kept: from one side, then from the other."""
        names, middle = ("i", "j", "x", "y", "depth", "sigma", "weight"), len(self) // 2
        values = [getattr(self, name) for name in names]
        return Observations(*(v[:middle] for v in values)), Observations(*(v[middle:] for v in values))

    def renumbered(self, views: Int64[Tensor, " V"]) -> "Observations":
        return replace(self, i=views[self.i], j=views[self.j])


@dataclass(frozen=True, eq=False)
class Cameras64:
    """What is solved for, float64.

    Attributes:
        R, t: [V, 3, 3], [V, 3] world to camera.
        log_scale: [V] logarithms of what depth is multiplied by.
        log_focal: Logarithm of what all focal lengths are multiplied by.
    """

    R: Float[Tensor, "V 3 3"]
    t: Float[Tensor, "V 3"]
    log_scale: Float[Tensor, " V"]
    log_focal: Float[Tensor, ""]

    def __getitem__(self, views: Tensor) -> "Cameras64":
        return Cameras64(self.R[views], self.t[views], self.log_scale[views], self.log_focal)

    def moved(self, step: Float[Tensor, " unknowns"]) -> "Cameras64":
        each = step[:-1].view(-1, 7)
        turn = torch.linalg.matrix_exp(cross_matrix(each[:, :3]))
        t = (turn @ self.t[..., None])[..., 0] + each[:, 3:6]
        return Cameras64(turn @ self.R, t, self.log_scale + each[:, 6], self.log_focal + step[-1])


def adjust(
    start: Cameras64,
    K: Float[Tensor, "V 3 3"],
    observed: Observations,
    *,
    focal_sigma: float,
    kernels: tuple[float, ...] = _KERNELS,
    iterations: int = 15,
) -> tuple[Cameras64, float]:
    """The cameras under which the matches are most likely, and the cost at the last kernel. The first pose stays.

    Args:
        K: Intrinsics at the size of the matches.
        focal_sigma: Of the logarithm of the focal factor; 0 keeps the focal lengths.
        iterations: At most so many for each kernel.
    """
    cost = torch.inf
    for kernel in kernels:
        start, cost = _at_kernel(start, K, observed, focal_sigma, kernel, iterations)
    return start, cost


def agreement(cameras: Cameras64, K: Float[Tensor, "V 3 3"], observed: Observations) -> Float[Tensor, " N"]:
    """How well each match is explained: 1 exactly, a half at the width of the last kernel."""
    return 1 / (1 + _errors(cameras, K, observed) / _KERNELS[-1] ** 2)


def _at_kernel(
    cameras: Cameras64, K: Tensor, observed: Observations, focal_sigma: float, kernel: float, iterations: int
) -> tuple[Cameras64, float]:
    """Levenberg-Marquardt on iteratively reweighted squares."""
    views = len(cameras.R)
    unknowns = 7 * views + 1
    free = torch.ones(unknowns, dtype=torch.bool)
    free[:6] = False
    free[-1] = focal_sigma > 0
    prior = torch.zeros(unknowns, dtype=K.dtype)
    prior[6:-1:7] = _SCALE_SIGMA**-2
    prior[-1] = focal_sigma**-2 if focal_sigma > 0 else 0.0

    def deviation(state: Cameras64) -> Tensor:
        values = torch.zeros(unknowns, dtype=K.dtype)
        values[6:-1:7], values[-1] = state.log_scale, state.log_focal
        return values

    def cost(state: Cameras64) -> float:
        robust = (observed.weight * kernel**2 * torch.log1p(_errors(state, K, observed) / kernel**2)).sum()
        return float(robust + (prior * deviation(state).square()).sum())

    last, damping = cost(cameras), 1e-3
    for _ in range(iterations):
        H, gradient = _normal_equations(cameras, K, observed, kernel)
        H, gradient = H + prior.diag(), gradient + prior * deviation(cameras)
        H, gradient = H[free][:, free], gradient[free]
        for _ in range(8):
            step = torch.zeros(unknowns, dtype=K.dtype)
            step[free] = torch.linalg.solve(H + damping * (H.diagonal() + 1e-6).diag(), -gradient)
            moved = cameras.moved(step)
            found = cost(moved)
            if found < last:
                break
            damping *= 6
        else:
            break
        gain, cameras, last, damping = last - found, moved, found, max(damping / 6, 1e-7)
        if gain < _CONVERGED * last:
            break
    return cameras, last


def _errors(cameras: Cameras64, K: Tensor, observed: Observations) -> Float[Tensor, " N"]:
    """Squared, in standard deviations."""
    return _run_loop(cameras, K, observed, 0.0)[0]


def _normal_equations(cameras: Cameras64, K: Tensor, observed: Observations, kernel: float) -> tuple[Tensor, Tensor]:
    return _run_loop(cameras, K, observed, kernel)[1:]


def _run_loop(cameras: Cameras64, K: Tensor, observed: Observations, kernel: float) -> tuple[Tensor, Tensor, Tensor]:
    unknowns = 7 * len(cameras.R) + 1
    o = observed
    focal = K[:, [0, 1], [0, 1]] * cameras.log_focal.exp()
    errors, H, gradient = torch.empty_like(o.depth), K.new_zeros(unknowns, unknowns), K.new_zeros(unknowns)
    inputs = (o.i, o.j, o.x, o.y, o.depth, o.sigma, o.weight, cameras.R, cameras.t, cameras.log_scale.exp(), focal)
    arrays = [value.contiguous().numpy() for value in (*inputs, K[:, :2, 2])]
    outputs = [value.numpy() for value in (errors, H, gradient)]
    match_errors(*arrays, _DEPTH_SIGMA, _BEHIND, kernel, *outputs)
    return errors, H, gradient
