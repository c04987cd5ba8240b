"""Depth between known cameras: a plane sweep around what the network predicts.

A network sees what a scene is; two pictures with known cameras see where it is. The sweep asks at every pixel which
depth makes the other pictures look alike, and takes the network's word where they cannot tell.

    depth of the network ─► range, prior ─┐
    pictures of all views ─► ZNCC costs ──┴─► semi-global surface ─► checked against the other views
         (small pictures, all depths)                                      │ confirmed        │ else
                                                                           ▼                  ▼
    (larger pictures, depths near by) ◄──────────────────────── depth of the sweep, or the network's bent to meet it
                                        (at the end averaged with that of the other views)

Letters: V views, S sources, H W pixels, D hypotheses.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.stereo.agreement import agreement, bent_to_meet, carry, consensus
from da3gs.stereo.matching_views import matching_views


@dataclass(frozen=True)
class StereoConfig:
    """The sweep.

    Attributes:
        coarse_px, fine_px: Longest side of the pictures that are matched at all depths, and near the depth found.
        sources: Pictures each view is matched with.
        window: Side of the windows compared, pixels (odd).
        reach: All depths from the nearest predicted one divided by this to the farthest times this are tried.
        prior: Price of leaving the predicted depth by a factor of 1.5 or more; a mismatch costs 1.
        worst_match: Costs above count as no measurement: windows that have nothing in common, or nothing to show.
        small_step, large_step: Price of a step of the surface to the next hypothesis, and of a jump.
        tolerance: Relative difference of depth up to which two views confirm each other, or
        slack: the same in pixels of parallax on the coarse pictures, where that is more.
    """

    coarse_px: int = 200
    fine_px: int = 400
    sources: int = 4
    window: int = 7
    reach: float = 2.0
    prior: float = 0.08
    worst_match: float = 0.85
    small_step: float = 0.08
    large_step: float = 0.5
    tolerance: float = 0.01
    slack: float = 0.75

    @staticmethod
    def for_good_depth() -> "StereoConfig":
        """For predicted depth that is right to 10 % or so: what the pictures cannot tell is left as it is."""
        return StereoConfig(prior=0.5, worst_match=0.7)


# Hypotheses of inverse depth: about one pixel of parallax apart, within these numbers.
_FEWEST, _MOST = 32, 96
# Around the depth found: this many, over this many coarse steps to either side.
_FINE, _FINE_REACH = 9, 1.5
_PRIOR_LOG = 0.4
# Islands: at most this share of the picture; a jump in steps; subdivisions of a step.
_ISLAND = 0.002
_JUMP, _PER_STEP = 1, 16
# Price of leaving the depth found on the coarse pictures by as much as is tried.
_STAY = 0.02
# Views whose depth is held against each other.
_PARTNERS = 12
# Cost where no source shows the place; a match by chance costs about as much.
_UNSEEN = 0.8


@dataclass(frozen=True, eq=False)
class RefinedDepth:
    """Result of `refine_depth`.

    Attributes:
        depth: [V, H, W] z-depth > 0 everywhere.
        confirmed: [V, H, W] where another view agrees with what was measured. Where more views see through it than
            agree, or nothing was measured, depth is the predicted one, bent to meet what is around.
        matched: Per view the sources it was matched with.
    """

    depth: Float[Tensor, "V H W"]
    confirmed: Bool[Tensor, "V H W"]
    matched: list[list[int]]


@torch.no_grad()
def refine_depth(
    images: Float[Tensor, "V 3 H W"],
    depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    *,
    sources: Float[Tensor, "S 3 h w"] | None = None,
    source_cameras: Cameras | None = None,
    own: list[int | None] | None = None,
    config: StereoConfig | None = None,
) -> RefinedDepth:
    """Depth that carries the pictures onto each other, starting from predicted depth. Runs on the CPU.

    Args:
        images: In [0, 1].
        depth: Predicted z-depth in the unit of the cameras, > 0 (right to a factor of two or so).
        cameras: Posed, at the size of the maps.
        sources: Pictures to match with; by default the views themselves.
        source_cameras: Posed, of one size (that of `sources`), in the same frame.
        own: Which source each view itself is, if any.

    Raises:
        InputError: Depth <= 0 or not finite; sources without cameras.
    """
    config = config or StereoConfig()
    if not (torch.isfinite(depth).all() and (depth > 0).all()):
        raise InputError("the depth to refine must be > 0 everywhere; fill unknown pixels first")
    if (sources is None) != (source_cameras is None):
        raise InputError("pictures to match with need cameras, and cameras pictures")
    device, size = depth.device, (depth.shape[-2], depth.shape[-1])
    predicted, cameras, images = depth.float().cpu(), cameras.to("cpu", torch.float32), images.cpu()
    if sources is None or source_cameras is None:
        sources, source_cameras, own = images, cameras, list(range(len(images)))
    own = own or [None] * len(images)
    sources, source_cameras = sources.cpu(), source_cameras.to("cpu", torch.float32)
    typical = predicted.flatten(1).median(1).values
    matched = matching_views(cameras, typical, source_cameras, config.sources, own)
    if not any(matched):
        return RefinedDepth(depth, torch.zeros_like(depth, dtype=torch.bool), matched)
    # 1. All depths, on small pictures.
    level = _Level.of(images, cameras, sources, source_cameras, matched, config.coarse_px)
    start = resized_depth(predicted, level.size)
    offsets = _hypotheses(start, level, config)
    measured, cost = _sweep(level, torch.zeros_like(start), offsets, config, prior=start)
    # 2. What another view confirms; between it, the predicted depth bent to meet it.
    step = float(offsets[1] - offsets[0])
    partners = matching_views(cameras, typical, cameras, _PARTNERS, list(range(len(images))), least_score=0.0)
    confirmed = _checked(measured, cost, level, partners, config, 2 * config.tolerance, step)
    found = bent_to_meet(start, measured, confirmed)
    # 3. Depths near by, on larger pictures.
    level = _Level.of(images, cameras, sources, source_cameras, matched, config.fine_px)
    found = resized_depth(found, level.size)
    near_by = torch.linspace(-_FINE_REACH, _FINE_REACH, _FINE) * step
    measured, cost = _sweep(level, 1 / found, near_by, replace(config, small_step=config.small_step / 2), prior=None)
    confirmed = _checked(measured, cost, level, partners, config, config.tolerance, step)
    measured = consensus(measured, confirmed, level.cameras, partners)
    found = bent_to_meet(resized_depth(predicted, level.size), measured, confirmed)
    # 4. At the size of the maps.
    confirmed = F.interpolate(confirmed[:, None].float(), size, mode="nearest-exact")[:, 0] > 0
    return RefinedDepth(resized_depth(found, size).to(depth), confirmed.to(device), matched)


def surer_where_confirmed(
    confidence: Float[Tensor, "V H W"] | None, confirmed: Bool[Tensor, "V H W"]
) -> Float[Tensor, "V H W"]:
    """The network's confidence; what other views confirm is as sure as the surest of the view."""
    if confidence is None:
        return 1 + confirmed.float()
    return torch.where(confirmed, confidence.flatten(1).amax(1)[:, None, None], confidence)


@dataclass(frozen=True, eq=False)
class _Level:
    """Grey pictures and cameras of all views and sources at one size."""

    views: Float[Tensor, "V H W"]
    cameras: Cameras
    sources: Float[Tensor, "S h w"]
    source_cameras: Cameras
    matched: list[list[int]]

    @property
    def size(self) -> tuple[int, int]:
        return self.views.shape[-2], self.views.shape[-1]

    @staticmethod
    def of(images, cameras, sources, source_cameras, matched, longest_px: int) -> "_Level":
        views, cameras = _grey(images, cameras, longest_px)
        sources, source_cameras = _grey(sources, source_cameras, longest_px)
        return _Level(views, cameras, sources, source_cameras, matched)


def _grey(images: Tensor, cameras: Cameras, longest_px: int) -> tuple[Tensor, Cameras]:
    height, width = images.shape[-2:]
    shrink = min(1.0, longest_px / max(height, width))
    height, width = max(2, round(height * shrink)), max(2, round(width * shrink))
    grey = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    return F.interpolate(grey[:, None], (height, width), mode="area")[:, 0], cameras.scaled(width=width, height=height)


def resized_depth(depth: Float[Tensor, "V h w"], size: tuple[int, int]) -> Float[Tensor, "V H W"]:
    """Depth at another size, linear in its inverse (as planes are)."""
    if depth.shape[-2:] == size:
        return depth
    return 1 / F.interpolate((1 / depth)[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _hypotheses(depth: Tensor, level: _Level, config: StereoConfig) -> Float[Tensor, " D"]:
    """Inverse depths, evenly spaced, about a pixel of parallax apart for the typical pair of views."""
    some = depth.flatten()[:: max(1, depth.numel() // 100_000)]
    near = float(some.quantile(0.02)) / config.reach
    far = float(some.quantile(0.98)) * config.reach
    baselines = [
        float((level.cameras.centers[view] - level.source_cameras.centers[source]).norm())
        for view, sources in enumerate(level.matched)
        for source in sources
    ]
    parallax = float(np.median(baselines)) * float(level.cameras.K[:, 0, 0].median()) * (1 / near - 1 / far)
    count = int(min(max(parallax, _FEWEST), _MOST))
    return torch.linspace(1 / far, 1 / near, count)


def _sweep(
    level: _Level, base: Tensor, offsets: Tensor, config: StereoConfig, *, prior: Tensor | None
) -> tuple[Float[Tensor, "V H W"], Float[Tensor, "V H W"]]:
    """Depth of the cheapest smooth surface per view, among inverse depths base + offsets, and how badly it matches.

    Args:
        prior: Predicted depth to stay near; None prefers small offsets a little.
    """
    from da3gs.stereo.matching_cpu import match_source, semi_global

    step = float(offsets[1] - offsets[0])
    # Fine hypotheses of far pixels may lie behind infinity.
    lowest_inverse = 1e-4 * float((base + offsets.max()).max())

    def view_depth(view: int) -> tuple[Tensor, Tensor]:
        picture = level.views[view].contiguous().numpy()
        start, apart = base[view].contiguous().numpy(), offsets.numpy()
        lowest = np.full((len(apart), *picture.shape), np.inf, np.float32)
        second = np.full_like(lowest, np.inf)
        for source in level.matched[view]:
            matrix, shift = carry(level.cameras, view, level.source_cameras, source)
            other = level.sources[source].contiguous().numpy()
            match_source(picture, other, matrix, shift, start, apart, config.window // 2, lowest, second)
        both = np.where(np.isfinite(second), 0.5 * (lowest + second), lowest)
        cost = torch.from_numpy(np.where(np.isfinite(both), both, np.float32(_UNSEEN))).movedim(0, -1).contiguous()
        if prior is not None:
            away = ((base[view][..., None] + offsets) * prior[view][..., None]).log().abs()
            leaving = config.prior * (away / _PRIOR_LOG).clamp(max=1)
        else:
            leaving = _STAY * (offsets / offsets.abs().max()).abs()
        total = torch.empty_like(cost)
        prices = np.float32(config.small_step), np.float32(config.large_step)
        semi_global((cost + leaving).numpy(), picture, *prices, total.numpy())
        index = _lowest(total)
        depth = 1 / (base[view] + offsets[0] + index * step).clamp(min=lowest_inverse)
        return depth, cost.gather(-1, index.round().long()[..., None])[..., 0]

    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
        depth, cost = zip(*pool.map(view_depth, range(len(level.views))), strict=True)
    return torch.stack(depth), torch.stack(cost)


def _lowest(total: Float[Tensor, "H W D"]) -> Float[Tensor, "H W"]:
    """Index of the lowest value, refined by the parabola through its neighbours."""
    index = total.argmin(-1)
    inner = index.clamp(1, total.shape[-1] - 2)
    left, middle, right = (total.gather(-1, inner[..., None] + k)[..., 0] for k in (-1, 0, 1))
    shift = (0.5 * (left - right) / (left - 2 * middle + right).clamp(min=1e-6)).clamp(-0.5, 0.5)
    return torch.where(index == inner, index + shift, index.to(shift))


def _checked(
    measured: Tensor,
    cost: Tensor,
    level: _Level,
    partners: list[list[int]],
    config: StereoConfig,
    tolerance: float,
    step: float,
) -> Bool[Tensor, "V H W"]:
    """Pixels that were measured, that at least as many views agree with as see through, and that are not alone."""
    agreeing, against = agreement(measured, level.cameras, partners, tolerance, config.slack * step)
    matched = torch.tensor([bool(sources) for sources in level.matched])[:, None, None]
    confirmed = (agreeing >= 1) & (against <= agreeing) & (cost < config.worst_match) & matched
    return confirmed & ~_islands(1 / measured / step, confirmed)


def _islands(disparity: Float[Tensor, "V H W"], known: Bool[Tensor, "V H W"]) -> Bool[Tensor, "V H W"]:
    """Small patches that jump against all that is around them, as matches by chance do.

    Args:
        disparity: Inverse depth in steps of the sweep.
    """
    import cv2

    _, height, width = disparity.shape
    largest = int(_ISLAND * height * width)
    alone = []
    for values, sure in zip(disparity, known, strict=True):
        quantised = torch.where(sure, (values * _PER_STEP).round().clamp(0, 2**15 - 2), -1.0).to(torch.int16).numpy()
        kept = cv2.filterSpeckles(quantised.copy(), -1, largest, _PER_STEP * _JUMP)[0]
        alone.append(torch.from_numpy(kept < 0))
    return torch.stack(alone)
