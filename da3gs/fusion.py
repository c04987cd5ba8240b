"""Which splats of a prediction deserve to stay: filters over pixels, and a budget over Gaussians.

    invalid ─► confidence ─► sky ─► border ─► flying pixels ─► contradicted ─► budget
    (not a number, no depth)         (depth edges)   (other views see through)  (sum of T alpha)

Every filter says how many it dropped, whether or not it was on.

Letters: V views, H W pixels, N = V H W Gaussians in (view, row, column) order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from da3gs.errors import InputError
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.rendering import RenderConfig, contributions

SKY_SCORE = 0.3
# Relative depth range of a 3x3 window that may be a jump.
_JUMP = 0.05
# Relative second difference of inverse depth (zero on a plane, however steep) that makes it one.
_BEND = 0.03
# A survivor of the budget that stands for r times its own contribution grows by r to this power (0.5 keeps the area;
# measured on an RGB-D scene, a little more hides the gaps between fewer splats), up to a limit.
_GROWTH = 0.55
_MOST_GROWTH = 8.0
# A view is compared with this many of its neighbours.
_NEIGHBOURS = 12


@dataclass(frozen=True)
class FilterConfig:
    """What is dropped. Zero or False switches a filter off.

    Attributes:
        confidence: Pixels whose confidence above its minimum of 1 is below this fraction of the scene's median (the
            network's confidence is 1 + exp(x), so this is a distance in its own units).
        sky: Pixels the model takes for sky, where it says so.
        border: Width of the frame around each image, as a fraction of its shorter side.
        edges: Flying pixels: those at depth jumps, which hang between foreground and background.
        consistency: Relative depth tolerance of the multi-view test: a pixel goes when more views clearly see through
            it (surface farther by more than this) than agree with it, or if it was not confirmed itself, when any view
            sees through it to something confirmed. Not being seen is no contradiction.
    """

    confidence: float | int = 0.05
    sky: bool = True
    border: float | int = 0.01
    edges: bool = True
    consistency: float | int = 0.05

    def __post_init__(self):
        for name, high in (("confidence", 1.0), ("border", 0.4), ("consistency", 1.0)):
            value = getattr(self, name)
            if not 0 <= value <= high:
                raise InputError(f"the {name} filter must lie in [0, {high:g}]; got {value}")


@dataclass(frozen=True)
class FilterRecord:
    """Gaussians before and after one filter, and its setting."""

    name: str
    before: int
    after: int
    setting: Any

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "before": self.before, "after": self.after, "setting": self.setting}


@torch.no_grad()
def filter_pixels(
    gaussians: Gaussians,
    depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    *,
    confidence: Float[Tensor, "V H W"] | None = None,
    sky: Float[Tensor, "V H W"] | None = None,
    confirmed: Bool[Tensor, "V H W"] | None = None,
    config: FilterConfig | None = None,
) -> tuple[Bool[Tensor, " N"], list[FilterRecord]]:
    """Which Gaussians of one per pixel to keep, and the count after each filter.

    Args:
        gaussians: One per pixel in (view, row, column) order, in the frame of `cameras`.
        depth: z-depth in the unit of `cameras`; <= 0 is unknown.
        cameras: Posed, at the size of the maps.
        confidence, sky: As predicted; None skips the filter.
        confirmed: Pixels whose depth was measured between views, where that was tried.

    Raises:
        InputError: Not one Gaussian per pixel.
    """
    config = config or FilterConfig()
    if len(gaussians) != depth.numel():
        raise InputError(f"expected one Gaussian per pixel ({depth.numel()}); got {len(gaussians)}")
    drop_tests: list[tuple[str, Any, Callable[[], Tensor] | None]] = [
        ("invalid", True, lambda: ~usable(gaussians).reshape(depth.shape) | (depth <= 0)),
        (
            "confidence",
            config.confidence,
            None if confidence is None or not config.confidence else lambda: doubtful(confidence, config.confidence),
        ),
        ("sky", config.sky, None if sky is None or not config.sky else lambda: sky >= SKY_SCORE),
        ("border", config.border, None if not config.border else lambda: border(depth, config.border)),
        ("edges", config.edges, None if not config.edges else lambda: flying_pixels(depth)),
        (
            "consistency",
            config.consistency,
            None
            if not config.consistency or len(depth) < 2
            else lambda: contradicted(
                gaussians.means.reshape(*depth.shape, 3), depth, cameras, config.consistency, confirmed=confirmed
            ),
        ),
    ]
    keep = torch.ones_like(depth, dtype=torch.bool)
    records = []
    for name, setting, test in drop_tests:
        before = int(keep.sum())
        if test is not None:
            keep &= ~test()
        records.append(FilterRecord(name, before, int(keep.sum()), setting if test is not None else False))
    return keep.flatten(), records


def usable(gaussians: Gaussians) -> Bool[Tensor, " N"]:
    """Finite values, scales > 0, a rotation. The released head can predict negative sizes; they have no picture."""
    finite = torch.stack([torch.isfinite(value).flatten(1).all(1) for value in _columns(gaussians)]).all(0)
    positive = (gaussians.scales > 0).all(1) & (gaussians.quats.square().sum(1) > 0)
    return finite & positive & (gaussians.opacities >= 0) & (gaussians.opacities <= 1)


def doubtful(confidence: Float[Tensor, "V H W"], fraction: float | int) -> Bool[Tensor, "V H W"]:
    """Confidence - 1 below a fraction of its median over the scene; never more than half of all pixels."""
    excess = confidence - confidence.min().clamp(max=1.0)
    flat = excess.flatten()
    # Half a million samples are plenty for a median.
    middle = flat[:: max(1, len(flat) // 500_000)].median()
    return excess < fraction * middle


def border(depth: Float[Tensor, "V H W"], fraction: float | int) -> Bool[Tensor, "V H W"]:
    """A frame of that fraction of the shorter side, at least one pixel wide."""
    _, height, width = depth.shape
    margin = max(1, round(fraction * min(height, width)))
    inner = torch.zeros_like(depth, dtype=torch.bool)
    inner[:, margin : height - margin, margin : width - margin] = True
    return ~inner


def flying_pixels(depth: Float[Tensor, "V H W"]) -> Bool[Tensor, "V H W"]:
    """Pixels at a depth jump.

    The depth of the 3x3 window spans more than 5 %, and inverse depth bends: on a plane, a road seen at a grazing angle
    included, inverse depth is linear in the image and does not bend. Unknown neighbours count as the pixel itself.
    """
    valid = depth > 0
    inverse = torch.where(valid, 1 / depth.clamp(min=torch.finfo(depth.dtype).tiny), 0.0)
    highest = F.max_pool2d(inverse[:, None], 3, stride=1, padding=1)[:, 0]
    lowest = -F.max_pool2d(torch.where(valid, -inverse, -torch.inf)[:, None], 3, stride=1, padding=1)[:, 0]
    jump = highest - lowest > _JUMP * inverse
    padded = F.pad(inverse, (1, 1, 1, 1))
    bend = torch.zeros_like(inverse)
    height, width = depth.shape[1:]
    for row, column in ((0, 1), (1, 0), (1, 1), (1, -1)):
        ahead = padded[:, 1 + row : 1 + row + height, 1 + column : 1 + column + width]
        behind = padded[:, 1 - row : 1 - row + height, 1 - column : 1 - column + width]
        # Where a neighbour is unknown or outside, nothing can be said about the bend along this direction.
        known = (ahead > 0) & (behind > 0)
        bend = torch.maximum(bend, torch.where(known, (ahead + behind - 2 * inverse).abs(), 0.0))
    return valid & jump & (bend > _BEND * inverse)


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
    views, height, width = depth.shape
    unknown_far = torch.where(depth > 0, depth, torch.inf)[:, None]
    nearest = -F.max_pool2d(-unknown_far, 3, stride=1, padding=1)[:, 0]
    farthest = F.max_pool2d(depth[:, None], 3, stride=1, padding=1)[:, 0]
    nearest_sure = None
    if confirmed is not None:
        sure_far = torch.where(confirmed, unknown_far[:, 0], torch.inf)[:, None]
        nearest_sure = -F.max_pool2d(-sure_far, 3, stride=1, padding=1)[:, 0]
    neighbours = _neighbours(cameras)
    result = torch.zeros_like(depth, dtype=torch.bool)
    cameras = cameras.to(points.dtype).to(points.device)
    for view in range(views):
        moved = points[view].reshape(-1, 3)
        against = torch.zeros(len(moved), dtype=torch.int16, device=depth.device)
        agreeing = torch.zeros_like(against)
        refuted = torch.zeros_like(against, dtype=torch.bool)
        for other in neighbours[view]:
            uv, z = cameras[other].project(moved)
            uv, z = uv[0], z[0]
            inside = (z > 0) & (uv[:, 0] >= 0) & (uv[:, 0] < width) & (uv[:, 1] >= 0) & (uv[:, 1] < height)
            column = torch.where(inside, uv[:, 0], 0.0).long()
            row = torch.where(inside, uv[:, 1], 0.0).long()
            near, far = nearest[other][row, column], farthest[other][row, column]
            seen = inside & (far > 0)
            against += (seen & (near > z * (1 + tolerance))).to(torch.int16)
            agreeing += (seen & (near <= z * (1 + tolerance)) & (far >= z * (1 - tolerance))).to(torch.int16)
            if confirmed is not None and nearest_sure is not None:
                sure = nearest_sure[other][row, column]
                refuted |= inside & confirmed[other][row, column] & (sure > z * (1 + tolerance))
        result[view] = (against > agreeing).reshape(height, width)
        if confirmed is not None:
            result[view] |= refuted.reshape(height, width) & ~confirmed[view]
    return result


def keep_budget(
    gaussians: Gaussians, cameras: Cameras, count: int, config: RenderConfig | None = None
) -> tuple[Gaussians, FilterRecord]:
    """At most `count` Gaussians that together look like all of them from `cameras`, in their old order.

    What counts is the contribution to these pictures, c = sum of T alpha. The `count` largest alone would leave holes
    where contributions are even (they lose to a random subset there). So the Gaussians are walked along a space-filling
    curve and cut into `count` stretches of equal sum of sqrt(c); the largest of each stretch stays, and grows along the
    surface by what the others of its stretch contributed.

    Raises:
        InputError: count < 1.
    """
    if count < 1:
        raise InputError(f"the budget of Gaussians must be >= 1; got {count}")
    before = len(gaussians)
    if before > count:
        gaussians = _represented(gaussians, contributions(gaussians, cameras, config).clamp(min=0), count)
    return gaussians, FilterRecord("max_gaussians", before, len(gaussians), count)


def _represented(gaussians: Gaussians, share: Float[Tensor, " N"], count: int) -> Gaussians:
    order = _morton_codes(gaussians.means).argsort()
    weight = share[order].double().sqrt()
    total = weight.sum().clamp(min=1e-300)
    stretch = (weight.cumsum(0) / total * count - 1e-9).clamp(0, count - 1).long()
    largest = share.new_full((count,), -1.0).scatter_reduce(0, stretch, share[order], "amax")
    chosen = torch.zeros(len(gaussians), dtype=torch.bool, device=share.device)
    owner = order.new_full((count,), -1)
    is_largest = share[order] == largest[stretch]
    owner[stretch[is_largest]] = order[is_largest]
    chosen[owner[owner >= 0]] = True
    # A Gaussian that fills several stretches leaves some without an owner: the largest of the others fill up.
    missing = count - int(chosen.sum())
    rest = torch.where(chosen, -1.0, share)
    chosen[rest.topk(missing).indices] = True

    left_out = torch.where(chosen[order], 0.0, share[order])
    inherited = share.new_zeros(count).index_add(0, stretch, left_out)
    growth = torch.ones_like(share)
    owners = owner >= 0
    own = share[owner[owners]].clamp(min=1e-6)
    growth[owner[owners]] = (1 + inherited[owners] / own).pow(_GROWTH).clamp(max=_MOST_GROWTH)
    scales = gaussians.scales
    thin = torch.nn.functional.one_hot(scales.argmin(1), 3).bool()
    grown = torch.where(thin, scales, scales * growth[:, None])
    return Gaussians.unchecked(
        gaussians.means[chosen],
        gaussians.quats[chosen],
        grown[chosen],
        gaussians.opacities[chosen],
        gaussians.sh[chosen],
    )


def _morton_codes(points: Float[Tensor, "N 3"]) -> Int64[Tensor, " N"]:
    """Position of every point along a Z-order curve through the box that holds 98 % of them, 2^16 cells a side."""
    sample = points[:: max(1, len(points) // 100_000)]
    low, high = sample.quantile(0.01, 0), sample.quantile(0.99, 0)
    cells = ((points - low) / (high - low).max().clamp(min=1e-30)).clamp(0, 1).mul(2**16 - 1).long()
    code = torch.zeros_like(cells[:, 0])
    for axis in range(3):
        bits = cells[:, axis]
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            bits = (bits | (bits << shift)) & mask
        code |= bits << axis
    return code


def _columns(gaussians: Gaussians) -> list[Tensor]:
    return [value.reshape(len(gaussians), -1) for value in gaussians.tensors()]


def _neighbours(cameras: Cameras) -> list[list[int]]:
    """For each view the others that look from near by in a similar direction, nearest first."""
    cameras = cameras.detach().to("cpu", torch.float64)
    centers, axes = cameras.centers, cameras.look_directions
    spread = (centers - centers.mean(0)).norm(dim=1).max().clamp(min=1e-12)
    distance = torch.cdist(centers, centers) / spread + (1 - axes @ axes.T)
    distance.fill_diagonal_(torch.inf)
    order = distance.argsort(dim=1)[:, : min(_NEIGHBOURS, len(cameras) - 1)]
    return order.tolist()
