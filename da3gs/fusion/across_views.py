"""What several views say about one point: does it contradict them, and which of them shows it best?

Points of each view are looked up in the maps of its neighbours. Runs on the CPU.

Letters: V views, H W pixels, N = V H W Gaussians in (view, row, column) order.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from da3gs.fusion.windows import mean_around
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import matrix_from_quat

# A view is compared with this many of its neighbours.
_NEIGHBOURS = 32
# The better view is chosen patch by patch: the score is averaged over a square that reaches this far from its centre,
# as a fraction of the shorter side.
_PATCH = 0.03
# Rounds of choosing: what remains after two is a few pixels in a million.
_ROUNDS = 2
# A single layer has no second one behind its gaps and none in front of what sticks out: splats are at least so opaque,
# at most so long for their width, and grow.
_LAYER_OPACITY, _LAYER_LENGTH, _LAYER_GROWTH = 0.95, 2.0, 1.2


@torch.no_grad()
def contradicted(
    points: Float[Tensor, "V H W 3"],
    depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    tolerance: float | int,
    *,
    confirmed: Bool[Tensor, "V H W"] | None = None,
) -> Bool[Tensor, "V H W"]:
    """Points that more neighbouring views see through than agree with.

    View j sees through a point at z when everything in the 3x3 window it falls into lies beyond z (1 + tolerance);
    it agrees when something there lies within the tolerance of z. A point hidden behind what j sees, outside its
    picture, or where its depth is unknown, is neither.

    Args:
        confirmed: Where depth was measured. A guess is contradicted by any view that sees through it (in the same
            sense, among confirmed depths alone) to something that was.
    """
    from da3gs.fusion.across_views_loops import count_views

    depth = depth.cpu()
    unknown_far = torch.where(depth > 0, depth, torch.inf)
    farthest = F.max_pool2d(depth[:, None], 3, stride=1, padding=1)[:, 0]
    surest = torch.zeros_like(depth)
    if confirmed is not None:
        sure = confirmed.cpu() & (depth > 0)
        surest = torch.where(sure, _nearest_around(torch.where(sure, unknown_far, torch.inf)), 0.0)
    maps = [values.contiguous().numpy() for values in (_nearest_around(unknown_far), farthest, surest)]
    views = ViewLookup.of(points, cameras)
    against, agreeing = (np.zeros((len(depth), depth[0].numel()), np.int16) for _ in range(2))
    refuted = np.zeros_like(against, dtype=bool)

    def count(view: int) -> None:
        count_views(*views.lookup(view), *maps, np.float32(tolerance), against[view], agreeing[view], refuted[view])

    views.each(count)
    result = torch.from_numpy(against > agreeing).reshape(depth.shape)
    if confirmed is not None:
        result |= torch.from_numpy(refuted).reshape(depth.shape) & ~confirmed.cpu()
    return result.to(points.device)


@torch.no_grad()
def repeated(
    gaussians: Gaussians,
    depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    keep: Bool[Tensor, "V H W"],
    tolerance: float | int,
) -> Bool[Tensor, "V H W"]:
    """Splats of a surface that another view shows better, so that one layer of splats remains where views overlap.

    Many layers of one surface, each a little off, make a blur that the frontmost errors win. A view shows a surface
    well that it looks at squarely and from near by: the score is cos^2 / depth (times the focal length), the cosine
    between ray and normal.

    Args:
        gaussians: One per pixel in (view, row, column) order.
        depth: z-depth in the unit of `cameras`.
        cameras: Posed, at the size of the maps.
        keep: Which are left; the others neither stay nor make others go.
        tolerance: Relative difference of depth up to which two views show the same surface.
    """
    from da3gs.fusion.across_views_loops import mark_beaten, mark_covered

    means = gaussians.means.reshape(*depth.shape, 3).cpu()
    views = ViewLookup.of(means, cameras)
    quality = _squareness(gaussians, means, cameras) * _pixels_per_unit(depth, cameras)
    for _ in range(2):
        quality = mean_around(quality, max(1, round(_PATCH * min(depth.shape[1:]))))
    scores = quality.contiguous().numpy()
    depths, kept = depth.cpu().contiguous().numpy(), keep.cpu().contiguous().numpy()
    accepted, covered = np.zeros_like(kept), np.zeros_like(kept)

    def beaten(candidates: np.ndarray) -> np.ndarray:
        result = np.zeros_like(candidates)

        def mark(view: int) -> None:
            points, *others = views.lookup(view)
            own = scores[view].reshape(-1), result[view].reshape(-1)
            mark_beaten(points, view, own[0], *others, depths, candidates, scores, np.float32(tolerance), own[1])

        views.each(mark)
        return result

    def mark_those_covered(waiting: np.ndarray) -> None:
        def mark(view: int) -> None:
            points, *others = views.lookup(view)
            own = waiting[view].reshape(-1), covered[view].reshape(-1)
            mark_covered(points, own[0], *others, depths, accepted, np.float32(tolerance), own[1])

        views.each(mark)

    for _ in range(_ROUNDS):
        candidates = kept & ~accepted & ~covered
        accepted |= candidates & ~beaten(candidates)
        mark_those_covered(kept & ~accepted & ~covered)
    return torch.from_numpy(kept & covered & ~accepted).to(keep.device)


def single_layer(gaussians: Gaussians) -> Gaussians:
    """Splats of one layer: opaque and large enough to close it, short enough not to stick out."""
    means, quats, scales, opacities, sh = gaussians.tensors()
    width = scales.median(1, keepdim=True).values  # between the thickness and the length
    scales = _LAYER_GROWTH * torch.minimum(scales, _LAYER_LENGTH * width)
    return Gaussians.unchecked(means, quats, scales, opacities.clamp(min=_LAYER_OPACITY), sh)


@dataclass(frozen=True, eq=False)
class ViewLookup:
    """Points of every view, its neighbours, and how they project: float32 arrays for the loops."""

    points: np.ndarray  # [V, H W, 3]
    projections: np.ndarray  # [V, 3, 4]
    neighbours: list[np.ndarray]

    @staticmethod
    def of(points: Float[Tensor, "V H W 3"], cameras: Cameras) -> "ViewLookup":
        exact = cameras.detach().to("cpu", torch.float64)
        projections = (exact.K @ exact.cam_from_world[:, :3]).float().contiguous().numpy()
        flat = points.detach().cpu().float().reshape(len(points), -1, 3).contiguous().numpy()
        return ViewLookup(flat, projections, [np.array(others, np.int64) for others in neighbours(exact)])

    def lookup(self, view: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        others = self.neighbours[view]
        return self.points[view], others, self.projections[others]

    def each(self, task: Callable[[int], None]) -> None:
        with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
            list(pool.map(task, range(len(self.points))))


def _nearest_around(depth: Tensor) -> Tensor:
    return -F.max_pool2d(-depth[:, None], 3, stride=1, padding=1)[:, 0]


def _squareness(gaussians: Gaussians, means: Float[Tensor, "V H W 3"], cameras: Cameras) -> Float[Tensor, "V H W"]:
    """cos^2 between the viewing ray and the thinnest axis of each splat."""
    squareness = []
    pixels = means.shape[1] * means.shape[2]
    centers = cameras.centers.detach().to(means)
    for view, points in enumerate(means):
        own = gaussians[view * pixels : (view + 1) * pixels]
        axes = matrix_from_quat(own.quats.detach().cpu())
        thinnest = own.scales.detach().cpu().argmin(1)
        normal = axes.gather(2, thinnest[:, None, None].expand(-1, 3, 1))[..., 0].reshape(points.shape)
        squareness.append((F.normalize(points - centers[view], dim=-1) * normal).sum(-1).square())
    return torch.stack(squareness)


def _pixels_per_unit(depth: Float[Tensor, "V H W"], cameras: Cameras) -> Float[Tensor, "V H W"]:
    """Pixels that a unit of length covers where a view looks."""
    focal = cameras.K[:, 0, 0].detach().to(depth)[:, None, None]
    return torch.where(depth > 0, focal / depth, 0.0).cpu()


def neighbours(cameras: Cameras) -> list[list[int]]:
    """For each view the others that look from near by in a similar direction, nearest first."""
    centers, axes = cameras.centers, cameras.look_directions
    spread = (centers - centers.mean(0)).norm(dim=1).max().clamp(min=1e-12)
    distance = torch.cdist(centers, centers) / spread + (1 - axes @ axes.T)
    distance.fill_diagonal_(torch.inf)
    order = distance.argsort(dim=1)[:, : min(_NEIGHBOURS, len(cameras) - 1)]
    return order.tolist()
