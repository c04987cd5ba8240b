"""Filters over the pixels that splats were placed from, and the count after each.

Letters: V views, H W pixels, N = V H W Gaussians in (view, row, column) order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from da3gs.errors import InputError
from da3gs.fusion.across_views import contradicted, repeated
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras

SKY_SCORE = 0.3
# What confidence and border are set to where no other views have checked the depth.
_CONFIDENCE, _BORDER = 0.05, 0.01
# Relative depth range of a 3x3 window that may be a jump.
_JUMP = 0.05
# Relative second difference of inverse depth (zero on a plane, however steep) that makes it one.
_BEND = 0.03


@dataclass(frozen=True)
class FilterConfig:
    """What is dropped. Zero or False switches a filter off.

    Confidence and border have defaults, None, of their own where depth was measured between views: 0 there, since the
    other views know better what is wrong (see consistency), else 0.05 and 0.01.

    Attributes:
        confidence: Pixels whose confidence above its minimum of 1 is below this fraction of the scene's median (the
            network's confidence is 1 + exp(x), so this is a distance in its own units).
        sky: Pixels the model takes for sky, where it says so.
        border: Width of the frame around each image, as a fraction of its shorter side.
        edges: Flying pixels: those at depth jumps, which hang between foreground and background.
        consistency: Relative depth tolerance of the multi-view test: a pixel goes when more views clearly see through
            it (surface farther by more than this) than agree with it, or if it was not confirmed itself, when any view
            sees through it to something confirmed. Not being seen is no contradiction.
        overlap: Relative depth tolerance up to which two views show the same surface; the splats of the view that shows
            it better stay, those of the others go. Only where depth was measured between views.
    """

    confidence: float | int | None = None
    sky: bool = True
    border: float | int | None = None
    edges: bool = True
    consistency: float | int = 0.05
    overlap: float | int = 0.03

    def __post_init__(self):
        for name, high in (("confidence", 1.0), ("border", 0.4), ("consistency", 1.0), ("overlap", 1.0)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= high:
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
    keep = torch.ones_like(depth, dtype=torch.bool)
    several = len(depth) > 1
    doubt, margin = config.confidence, config.border
    if doubt is None:
        doubt = _CONFIDENCE if confirmed is None else 0
    if margin is None:
        margin = _BORDER if confirmed is None else 0
    drop_tests: list[tuple[str, Any, Callable[[], Tensor] | None]] = [
        ("invalid", True, lambda: ~usable(gaussians).reshape(depth.shape) | (depth <= 0)),
        (
            "confidence",
            doubt,
            None if confidence is None or not doubt else lambda: doubtful(confidence, doubt),
        ),
        ("sky", config.sky, None if sky is None or not config.sky else lambda: sky >= SKY_SCORE),
        ("border", margin, None if not margin else lambda: border(depth, margin)),
        ("edges", config.edges, None if not config.edges else lambda: flying_pixels(depth)),
        (
            "consistency",
            config.consistency,
            None
            if not (config.consistency and several)
            else lambda: contradicted(
                gaussians.means.reshape(*depth.shape, 3), depth, cameras, config.consistency, confirmed=confirmed
            ),
        ),
        (
            "overlap",
            config.overlap,
            None
            if not (config.overlap and several) or confirmed is None
            else lambda: repeated(gaussians, depth, cameras, keep, config.overlap),
        ),
    ]
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


def _columns(gaussians: Gaussians) -> list[Tensor]:
    return [value.reshape(len(gaussians), -1) for value in gaussians.tensors()]
