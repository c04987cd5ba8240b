"""Cameras and points that explain what several views saw of the same points (bundle adjustment).

    matches of pairs ─► tracks (a point and its sightings) ─► cameras, points and one focal factor, all at once

A sighting x of point X in view v, with z the depth of X there:

    pi(K (R_v X + t_v)) - x  ~  Cauchy(sigma)          log z - log(s_v d_v(x))  ~  Cauchy(sigma_d)

The second says where points lie that are seen from too nearly one place; predicted depth is asked for nothing else.
Levenberg-Marquardt on reweighted squares, points eliminated (Triggs et al., Bundle Adjustment - A Modern Synthesis,
1999); unknown are all poses but the first, a scale s_v of depth for each view and a factor of all focal lengths, both
with a prior around 1.

Letters: V views, L points, N sightings.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from da3gs.geometry.two_views import LEAST_PARALLAX
from da3gs.model.bundle_loops import point_steps, reduced_equations, sighting_errors
from da3gs.model.match_adjustment import Cameras64

_KERNEL = 0.7  # width of the Cauchy kernel of pixels, in standard deviations
_DEPTH_SIGMA = 3.0  # of the logarithm of a single depth: it decides where there is next to no parallax
_SCALE_SIGMA = 0.08  # of the logarithm of a view's depth scale
_BEHIND = 0.02  # z below this share of the predicted depth is held there
_CONVERGED = 1e-6
_DEPTH_PULL = 1e-3  # of depth on the points to start from, where a ray pulls by 1
_AGREED = 2.0  # standard deviations


@dataclass(frozen=True, eq=False)
class Sightings:
    """N sightings of L points, sorted by point; float64.

    Attributes:
        point, view: Who is seen by whom; a view sees a point once.
        x: Pixels.
        depth: As predicted there.
        sigma: Standard deviation of x, pixels.
        weight: In (0, 1].
    """

    point: Int64[Tensor, " N"]
    view: Int64[Tensor, " N"]
    x: Float[Tensor, "N 2"]
    depth: Float[Tensor, " N"]
    sigma: Float[Tensor, " N"]
    weight: Float[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.point)

    @property
    def points(self) -> int:
        return int(self.point[-1]) + 1 if len(self) else 0

    def __getitem__(self, keep: Bool[Tensor, " N"]) -> "Sightings":
        """Without some; points seen by fewer than two views go too, the others are numbered anew."""
        count = torch.bincount(self.point[keep], minlength=self.points)
        keep = keep & (count[self.point] >= 2)
        point = torch.unique(self.point[keep], return_inverse=True)[1]
        rest = (getattr(self, name)[keep] for name in ("view", "x", "depth", "sigma", "weight"))
        return Sightings(point, *rest)


def sightings_from_matches(
    view: Int64[Tensor, "M 2"],
    x: Float[Tensor, "M 2 2"],
    depth: Float[Tensor, "M 2"],
    sigma: Float[Tensor, " M"],
    weight: Float[Tensor, " M"],
) -> Sightings:
    """Matches that share a place in a view belong to one point; a view that saw it at two places is not believed."""
    ends = torch.cat([view.reshape(-1, 1).to(x), x.reshape(-1, 2)], 1)
    places, place = torch.unique(ends, dim=0, return_inverse=True)
    point = _connected(place.view(-1, 2), len(places))
    of_place = torch.empty(len(places), dtype=torch.long)
    of_place[place] = torch.arange(len(place))
    seen_by = places[:, 0].long()
    # Places by point and view, to find those of one view.
    pair = torch.unique(point * (int(seen_by.max()) + 1) + seen_by, return_inverse=True, return_counts=True)
    alone = pair[2][pair[1]] == 1
    order = point.argsort(stable=True)
    last = of_place[order]
    found = Sightings(
        torch.unique(point, return_inverse=True)[1][order],
        seen_by[order],
        places[order, 1:],
        depth.reshape(-1)[last],
        sigma[last // 2],
        weight[last // 2],
    )
    return found[alone[order]]


def _connected(edges: Int64[Tensor, "E 2"], count: int) -> Int64[Tensor, " count"]:
    """The lowest number in the connected component of every node."""
    label = torch.arange(count)
    while True:
        lower = label[edges].amin(1)
        new = label.scatter_reduce(0, edges.flatten(), lower.repeat_interleave(2), "amin")
        new = new[new]
        if bool((new == label).all()):
            return label
        label = new


@dataclass(frozen=True, eq=False)
class Bundle:
    """Result of `bundle_adjust`.

    Attributes:
        cameras: Found.
        points: [L, 3], in the world frame.
        gaps: [N] logarithm of the depth of the point over the predicted one, scaled.
        well_placed: [N] sightings of points that all their views agree on, from directions 2 degrees apart or more.
    """

    cameras: Cameras64
    points: Float[Tensor, "L 3"]
    gaps: Float[Tensor, " N"]
    well_placed: Bool[Tensor, " N"]


def bundle_adjust(
    cameras: Cameras64,
    K: Float[Tensor, "V 3 3"],
    seen: Sightings,
    *,
    focal_sigma: float,
    iterations: int = 30,
) -> Bundle:
    """Cameras and points under which the sightings are most likely. The first pose stays.

    Args:
        cameras: To start from.
        focal_sigma: Of the logarithm of the focal factor; 0 keeps the focal lengths.
        iterations: At most so many.
    """
    problem = _Problem(K, seen, focal_sigma)
    points = _starting_points(cameras, K, seen)
    last, damping = problem.cost(cameras, points), 1e-4
    for _ in range(iterations):
        for _ in range(8):
            moved = problem.step(cameras, points, damping)
            found = problem.cost(*moved)
            if found < last:
                break
            damping *= 8
        else:
            break
        gain, last, damping = last - found, found, max(damping / 8, 1e-9)
        cameras, points = moved
        if gain < _CONVERGED * last:
            break
    errors, gaps = problem.errors(cameras, points)
    agreed = (errors < _AGREED**2) & (gaps > np.log(2 * _BEHIND))
    good = _of_points("amin", agreed, seen) & (_parallax(cameras, points, seen) < LEAST_PARALLAX)
    return Bundle(cameras, points, gaps, good[seen.point])


def _starting_points(cameras: Cameras64, K: Tensor, seen: Sightings) -> Float[Tensor, "L 3"]:
    """Points nearest to all rays that see them; where these are parallel, as far as depth says."""
    v = seen.view
    focal = K[:, [0, 1], [0, 1]] * cameras.log_focal.exp()
    rays = torch.cat([(seen.x - K[v, :2, 2]) / focal[v], torch.ones_like(seen.x[:, :1])], 1)
    lifted = rays * (seen.depth * cameras.log_scale[v].exp())[:, None]
    said = ((lifted - cameras.t[v])[:, None] @ cameras.R[v])[:, 0]
    directions = F.normalize((rays[:, None] @ cameras.R[v])[:, 0], dim=1)
    nothing = torch.zeros(seen.points, 3, dtype=K.dtype)
    mean = nothing.index_add(0, seen.point, said) / torch.bincount(seen.point, minlength=seen.points)[:, None]
    identity = torch.eye(3, dtype=K.dtype)
    across = identity - directions[:, :, None] * directions[:, None]
    A = nothing[..., None].repeat(1, 1, 3).index_add(0, seen.point, across)
    b = nothing.index_add(0, seen.point, (across @ _centres(cameras)[v][..., None])[..., 0])
    return torch.linalg.solve(A + _DEPTH_PULL * identity, b + _DEPTH_PULL * mean)


def _parallax(cameras: Cameras64, points: Tensor, seen: Sightings) -> Float[Tensor, " L"]:
    """Least cosine between the direction a point is first seen from and the others."""
    towards = F.normalize(points[seen.point] - _centres(cameras)[seen.view], dim=1)
    first = _of_points("amin", torch.arange(len(seen)), seen)
    return _of_points("amin", (towards * towards[first[seen.point]]).sum(1), seen)


def _centres(cameras: Cameras64) -> Float[Tensor, "V 3"]:
    return -(cameras.R.transpose(1, 2) @ cameras.t[..., None])[..., 0]


def _of_points(how: str, values: Tensor, seen: Sightings) -> Tensor:
    """One value per point from those of its sightings."""
    start = values.new_zeros(seen.points)
    return start.scatter_reduce(0, seen.point, values, how, include_self=False)


class _Problem:
    def __init__(self, K: Tensor, seen: Sightings, focal_sigma: float):
        self.K, self.seen = K, seen
        self.unknowns = 7 * len(K) + 1
        self.free = torch.ones(self.unknowns, dtype=torch.bool)
        self.free[:6] = False
        self.free[-1] = focal_sigma > 0
        self.prior = torch.zeros(self.unknowns, dtype=K.dtype)
        self.prior[6:-1:7] = _SCALE_SIGMA**-2
        self.prior[-1] = focal_sigma**-2 if focal_sigma > 0 else 0.0
        ends = torch.bincount(seen.point, minlength=seen.points).cumsum(0)
        self.first = np.concatenate([[0], ends.numpy()])

    def cost(self, cameras: Cameras64, points: Tensor) -> float:
        errors, gaps = self.errors(cameras, points)
        robust = _KERNEL**2 * torch.log1p(errors / _KERNEL**2) + torch.log1p((gaps / _DEPTH_SIGMA).square())
        return float(self.seen.weight @ robust + (self.prior * self._deviation(cameras).square()).sum())

    def errors(self, cameras: Cameras64, points: Tensor) -> tuple[Tensor, Tensor]:
        errors, gaps = torch.empty_like(self.seen.depth), torch.empty_like(self.seen.depth)
        sighting_errors(*self._arrays(cameras, points), errors.numpy(), gaps.numpy())
        return errors, gaps

    def step(self, cameras: Cameras64, points: Tensor, damping: float) -> tuple[Cameras64, Tensor]:
        """Cameras and points after one damped step."""
        errors, gaps = self.errors(cameras, points)
        weight = self.seen.weight
        pixel_weight = weight / (1 + errors / _KERNEL**2)
        depth_weight = weight / (1 + (gaps / _DEPTH_SIGMA).square()) / _DEPTH_SIGMA**2
        H, gradient = torch.zeros(self.unknowns, self.unknowns, dtype=self.K.dtype), torch.zeros_like(self.prior)
        diagonal = torch.zeros_like(self.prior)
        cross = np.empty((len(self.seen), 8, 3))
        inverse, pull = np.empty((len(points), 3, 3)), np.empty((len(points), 3))
        sites, _, view, x, log_depth, sigma, *rest = self._arrays(cameras, points)
        reduced_equations(
            self.first, sites, view, x, log_depth, sigma, pixel_weight.numpy(), depth_weight.numpy(), *rest, damping,
            H.numpy(), gradient.numpy(), diagonal.numpy(), cross, inverse, pull,
        )  # fmt: skip
        H += (self.prior + damping * (diagonal + self.prior) + 1e-9).diag()
        gradient += self.prior * self._deviation(cameras)
        step = torch.zeros_like(self.prior)
        step[self.free] = torch.linalg.solve(H[self.free][:, self.free], -gradient[self.free])
        moves = np.empty((len(points), 3))
        point_steps(self.first, view, cross, inverse, pull, step.numpy(), moves)
        return cameras.moved(step), points + torch.from_numpy(moves)

    def _deviation(self, cameras: Cameras64) -> Tensor:
        values = torch.zeros_like(self.prior)
        values[6:-1:7], values[-1] = cameras.log_scale, cameras.log_focal
        return values

    def _arrays(self, cameras: Cameras64, points: Tensor) -> list:
        focal = self.K[:, [0, 1], [0, 1]] * cameras.log_focal.exp()
        seen = self.seen
        values = (
            points, seen.point, seen.view, seen.x, seen.depth.log(), seen.sigma,
            cameras.R, cameras.t, cameras.log_scale, focal, self.K[:, :2, 2],
        )  # fmt: skip
        return [value.contiguous().numpy() for value in values] + [_BEHIND]
