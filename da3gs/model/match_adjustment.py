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
    error = _residuals(cameras, K, observed)[0].square().sum(1)
    return 1 / (1 + error / _KERNELS[-1] ** 2)


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
        error = _residuals(state, K, observed)[0].square().sum(1)
        robust = (observed.weight * kernel**2 * torch.log1p(error / kernel**2)).sum()
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


def _normal_equations(cameras: Cameras64, K: Tensor, observed: Observations, kernel: float) -> tuple[Tensor, Tensor]:
    residual, jacobian = _residuals(cameras, K, observed, derivatives=True)
    assert jacobian is not None
    weight = (observed.weight / (1 + residual.square().sum(1) / kernel**2)).sqrt()
    J, r = jacobian * weight[:, None, None], residual * weight[:, None]
    views, unknowns = len(cameras.R), 7 * len(cameras.R) + 1
    # Matches of one ordered pair of views touch the same unknowns, and stand together.
    pair, counts = torch.unique_consecutive(observed.i * views + observed.j, return_counts=True)
    of_pairs = [part.flatten(0, 1) for part in J.split(counts.tolist())]
    blocks = torch.stack([part.T @ part for part in of_pairs])
    sides = torch.stack([part.T @ q.flatten() for part, q in zip(of_pairs, r.split(counts.tolist()), strict=True)])
    i, j = pair // views, pair % views
    place = torch.cat([7 * i[:, None] + torch.arange(7), 7 * j[:, None] + torch.arange(6)], 1)
    place = torch.cat([place, torch.full((len(place), 1), unknowns - 1)], 1)
    flat = (place[:, :, None] * unknowns + place[:, None]).flatten()
    H = J.new_zeros(unknowns**2).index_add_(0, flat, blocks.flatten()).view(unknowns, unknowns)
    return H, J.new_zeros(unknowns).index_add_(0, place.flatten(), sides.flatten())


def _residuals(
    cameras: Cameras64, K: Tensor, observed: Observations, *, derivatives: bool = False
) -> tuple[Float[Tensor, "N 2"], Float[Tensor, "N 2 14"] | None]:
    """Differences in standard deviations, and their derivatives by (pose i, scale i, pose j, focal), if wanted."""
    i, j, y = observed.i, observed.j, observed.y
    centre = K[:, :2, 2]
    focal = K[:, [0, 1], [0, 1]] * cameras.log_focal.exp()
    ahead = torch.ones_like(observed.depth)[:, None]
    X = torch.cat([(observed.x - centre[i]) / focal[i], ahead], 1)
    X = X * (observed.depth * cameras.log_scale.exp()[i])[:, None]
    R = cameras.R[j] @ cameras.R[i].transpose(1, 2)
    turned = (R @ X[..., None])[..., 0]
    Z = turned - (R @ cameras.t[i][..., None])[..., 0] + cameras.t[j]
    z = torch.maximum(Z[:, 2], _BEHIND * X[:, 2])[:, None]
    f = focal[j]
    u = f * Z[:, :2] / z + centre[j]
    along = f * (turned[:, :2] / z - Z[:, :2] * turned[:, 2:] / z**2)  # du / dlog depth
    length = along.norm(dim=1, keepdim=True)
    e = along / length.clamp(min=1e-9)
    across = 1 / observed.sigma[:, None]
    loose = (observed.sigma[:, None].square() + (_DEPTH_SIGMA * length).square()).rsqrt()
    difference = u - y
    residual = across * difference + (loose - across) * e * (e * difference).sum(1, keepdim=True)
    if not derivatives:
        return residual, None
    W = across[..., None] * torch.eye(2, dtype=K.dtype) + ((loose - across) * e)[..., None] * e[:, None]
    WP = W @ torch.cat([torch.diag_embed(f / z), -(f * Z[:, :2] / z**2)[..., None]], 2)  # W du / dZ
    back = WP @ R
    lifted = torch.cat([X[:, :2], torch.zeros_like(ahead)], 1)[..., None]
    by_focal = W @ (u - centre[j])[..., None] - back @ lifted
    parts = [back @ cross_matrix(X), -back, W @ along[..., None], -WP @ cross_matrix(Z), WP, by_focal]
    return residual, torch.cat(parts, 2)
