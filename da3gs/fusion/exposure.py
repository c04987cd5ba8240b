"""One exposure for all pictures: cameras that meter by themselves show one wall in several shades.

    pictures ─► a factor per picture and channel (exposure, white balance) ─► a smooth field of factors (shine,
                                                                              vignetting, what phones do to contrast)

Letters: V views, H W pixels.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from da3gs.fusion.across_views import ViewLookup
from da3gs.fusion.windows import mean_around
from da3gs.geometry.cameras import Cameras

# Pixels compared per pair of views, at most; fewer than the second number tell nothing.
_SAMPLES, _FEWEST = 20_000, 100
# Relative difference of depth up to which two pixels show the same place.
_SAME_PLACE = 0.02
# Values of [0, 1] that are neither black nor clipped.
_DARKEST, _BRIGHTEST = 0.05, 0.9
# Errors of a pair (natural logarithm) beyond this count as shine or mistakes, in proportion less.
_TYPICAL = 0.02
_ROUNDS = 5
# Pull towards no change, in pairs of views: only for what nothing else says.
_PULL = 1e-4
# The field of factors: averaged over a square that reaches this far, as a fraction of the shorter side; pull towards no
# change, as a share of the pixels in it; at most this factor.
_REACH, _FIELD_PULL, _MOST = 0.03, 0.02, 2.0


@torch.no_grad()
def exposures(
    images: Float[Tensor, "V 3 H W"],
    depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    confirmed: Bool[Tensor, "V H W"],
) -> Float[Tensor, "V 3"]:
    """By which factor each picture is brighter than the median of all, per channel.

    Every pair of views has a ratio, the median over places that both show; the logarithms of the factors solve all
    pairs together, by least squares with weights against pairs that disagree. Exposure and white balance are factors of
    linear light, and so of gamma-coded values but for the darkest. Runs on the CPU.

    Args:
        images: In [0, 1].
        depth: z-depth > 0.
        cameras: Posed, at the size of the maps.
        confirmed: Whose depth counts.

    Returns:
        Factors; 1 for views that share nothing with others.
    """
    from da3gs.fusion.across_views_loops import find_places

    images, depth, confirmed = images.cpu().flatten(2), depth.cpu().float(), confirmed.cpu()
    depths, sure = depth.contiguous().numpy(), confirmed.contiguous().numpy()
    views = ViewLookup.of(cameras.detach().to("cpu", torch.float32).unproject(depth), cameras)
    ratios, weights = (torch.zeros(len(depth), len(depth), 3, dtype=torch.float64) for _ in range(2))

    def compare(view: int) -> None:
        some = confirmed[view].flatten().nonzero()[:, 0]
        some = some[:: 1 + len(some) // _SAMPLES]
        points, others, projections = views.lookup(view)
        points, places = points[some.numpy()], np.empty(len(some), np.int64)
        for other, projection in zip(others.tolist(), projections, strict=True):
            find_places(points, projection, depths[other], sure[other], np.float32(_SAME_PLACE), places)
            there = torch.from_numpy(places)
            shown = there >= 0
            own, theirs = images[view][:, some[shown]], images[other][:, there[shown]]
            for channel in range(3):
                ratios[view, other, channel], weights[view, other, channel] = _ratio(own[channel], theirs[channel])

    views.each(compare)
    first, second = weights.sum(-1).nonzero(as_tuple=True)
    pairs = torch.zeros(len(first), len(depth), dtype=torch.float64)
    rows = torch.arange(len(first))
    pairs[rows, first], pairs[rows, second] = -1, 1
    channels = [
        _solved(pairs, *(values[first, second, channel] for values in (ratios, weights))) for channel in range(3)
    ]
    return torch.stack(channels, 1).float()


def _ratio(own: Float[Tensor, " N"], theirs: Float[Tensor, " N"]) -> tuple[float, float]:
    """Logarithm of the median ratio of two pictures of the same places, and what it weighs; 0 if they are too few."""
    good = (own > _DARKEST) & (own < _BRIGHTEST) & (theirs > _DARKEST) & (theirs < _BRIGHTEST)
    count = int(good.sum())
    if count < _FEWEST:
        return 0.0, 0.0
    return float((theirs[good] / own[good]).log().median()), count / _SAMPLES


def _solved(
    pairs: Float[Tensor, "P V"], wanted: Float[Tensor, " P"], weight: Float[Tensor, " P"]
) -> Float[Tensor, " V"]:
    """Factors of one channel whose ratios are those of the pairs; their median over the views with pairs is 1."""
    trust = torch.ones_like(weight)
    result = wanted.new_zeros(pairs.shape[1])
    for _ in range(_ROUNDS):
        weighted = pairs * (weight * trust)[:, None]
        normal = pairs.T @ weighted + _PULL * torch.eye(len(result), dtype=torch.float64)
        result = torch.linalg.solve(normal, weighted.T @ wanted)
        errors = (pairs @ result - wanted).abs()
        trust = _TYPICAL / errors.clamp(min=_TYPICAL)
    linked = (pairs.abs().T @ weight) > 0
    if linked.any():
        result = torch.where(linked, result - result[linked].quantile(0.5), 0.0)
    return result.exp()


def evened_out(images: Float[Tensor, "V 3 H W"], exposure: Float[Tensor, "V 3"]) -> Float[Tensor, "V 3 H W"]:
    """The pictures as if all had been exposed the same, in [0, 1]."""
    return (images / exposure.to(images)[:, :, None, None]).clamp(0, 1)


@torch.no_grad()
def blended(
    images: Float[Tensor, "V 3 H W"], depth: Float[Tensor, "V H W"], cameras: Cameras
) -> Float[Tensor, "V 3 H W"]:
    """Pictures in the tone of all views together, each with its own detail, so that no seams show between them.

    Every pixel that other views show too has a mean over these views. Averages of means and of own values over a square
    around it have a ratio, by which the pixel is multiplied. Runs on the CPU.

    Args:
        images: In [0, 1], evened out.
        depth: z-depth in the unit of `cameras`; <= 0 is unknown.
        cameras: Posed, at the size of the maps.
    """
    from da3gs.fusion.across_views_loops import sum_over_views

    depth = depth.cpu().float()
    views = ViewLookup.of(cameras.detach().to("cpu", torch.float32).unproject(depth), cameras)
    colors = images.cpu().movedim(1, -1).float().contiguous().numpy()
    depths = depth.contiguous().numpy()
    reach = max(1, round(_REACH * min(depth.shape[1:])))
    result = torch.empty_like(images)

    def blend(view: int) -> None:
        own = colors[view]
        total, count = own.reshape(-1, 3).copy(), np.ones(own.shape[0] * own.shape[1], np.float32)
        sum_over_views(*views.lookup(view), colors, depths, np.float32(_SAME_PLACE), total, count)
        shared = torch.from_numpy((count > 1).reshape(own.shape[:2])) & (depth[view] > 0)
        mean = torch.from_numpy((total / count[:, None]).reshape(own.shape)).movedim(-1, 0)
        picture = images[view].cpu().float()
        around = torch.stack([mean * shared, picture * shared, picture])
        for _ in range(2):
            around = mean_around(around, reach)
        pull = _FIELD_PULL * around[2]
        meant, shown = around[0] + pull, around[1] + pull
        factor = (meant / shown.clamp(min=1e-6)).clamp(1 / _MOST, _MOST)
        result[view] = (picture * factor).clamp(0, 1).to(result)

    views.each(blend)
    return result
