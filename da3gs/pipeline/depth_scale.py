"""The scale of predicted depth, from sparse points that stand in the frame of the cameras.

Camera positions alone fix the scale of a prediction only as well as the network places its own cameras. Each 3D point
that structure from motion has left, or that keypoints of two pictures make, tells the true depth of one pixel: the
median of true over predicted is the factor, and what is left of the ratios bends depth smoothly.

Letters: V views, H W pixels, M points.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.gaussians import Gaussians
from da3gs.geometry.alignment import SCALE
from da3gs.geometry.cameras import Cameras
from da3gs.model.gaussian_adapter import gaussians_from_raw
from da3gs.model.scene_prediction import ScenePrediction
from da3gs.pipeline.report import Report

logger = logging.getLogger(__name__)

# A median of fewer ratios says little.
FEWEST_POINTS = 30
# Points belong to the cameras when at least this share of them projects into the images that are said to see them.
_INSIDE = 0.5
# Ratios that spread by more than this (robust standard deviation, relative) cast doubt on depth or cameras.
_WIDE_SPREAD = 0.3
# Reach of a point, as a fraction of the longer side; points that say nothing new; grid the bend is computed on.
_BEND_SIGMA = 0.06
_PRIOR_POINTS = 0.5
_BEND_GRID = 64
# Points that say depth needs no factor of its own in a view, no slope across it, no slope along it; steepest slope of
# the logarithm over half a picture; least spread that is believed.
_SLOPE_PRIOR = (2.0, 8.0, 8.0)
_SLOPE_ROUNDS = 8
_STEEPEST = 0.7
_EXACT = 1e-3
# MAD of a normal distribution -> its standard deviation.
_SIGMA_FROM_MAD = 1.4826


@dataclass(frozen=True)
class PointOrigin:
    """Who found sparse points, and how far they are trusted.

    Attributes:
        name: For the report.
        fewest: Fewer say nothing.
        noise: Their own error, of the logarithm of depth: taken off what they want to bend.
        expected: They came with the cameras, so that too few or poor ones are news.
    """

    name: str
    fewest: int
    noise: float
    expected: bool


WITH_THE_CAMERAS = PointOrigin("sparse points", FEWEST_POINTS, noise=0.0, expected=True)
# Keypoints of two views are placed by a pixel or so, where structure from motion has whole tracks.
KEYPOINTS = PointOrigin("keypoints that the pictures share", 100, noise=0.03, expected=False)


@dataclass(frozen=True)
class PointScale:
    """True over predicted depth at sparse points.

    Attributes:
        factor: Median over all points; multiplies the depth.
        points: Ratios it was taken from; a point counts once per view that sees it.
        views: Views with at least one.
        spread: Robust standard deviation of the logarithm of the ratios: about the relative error of depth.
        per_view: Median of each view; None where a view has fewer than `FEWEST_POINTS`.
        inside: Share of the points that project into the image that is said to see them, in front of the camera.
    """

    factor: float
    points: int
    views: int
    spread: float
    per_view: tuple[float | None, ...]
    inside: float

    def usable(self, origin: PointOrigin) -> bool:
        return self.points >= origin.fewest and self.inside >= _INSIDE


def scale_from_points(
    depth: Float[Tensor, "V H W"], cameras: Cameras, points: Sequence[Float[Tensor, "_m 3"]]
) -> PointScale:
    """Compare predicted depth with the sparse points that each view sees. Carries no gradient.

    Args:
        depth: z-depth; <= 0 is unknown.
        cameras: Posed, at the size of the maps.
        points: Per view the world points it sees.
    """
    _, height, width = depth.shape
    depth = depth.detach().double().cpu()
    cameras = cameras.detach().to("cpu", torch.float64)
    ratios, total, inside_count = [], 0, 0
    for view, seen in enumerate(points):
        total += len(seen)
        uv, z = (values[0] for values in cameras[view].project(seen.double()))
        inside = (z > 0) & (uv >= 0).all(-1) & (uv[:, 0] < width) & (uv[:, 1] < height)
        inside_count += int(inside.sum())
        column, row = uv[inside].long().unbind(-1)
        predicted = depth[view][row, column]
        known = predicted > 0
        ratios.append((z[inside][known] / predicted[known]).log())
    pooled = torch.cat(ratios)
    middle = pooled.median() if len(pooled) else torch.zeros((), dtype=torch.float64)
    spread = _SIGMA_FROM_MAD * float((pooled - middle).abs().median()) if len(pooled) else 0.0
    return PointScale(
        factor=math.exp(float(middle)),
        points=len(pooled),
        views=sum(len(values) > 0 for values in ratios),
        spread=spread,
        per_view=tuple(math.exp(float(values.median())) if len(values) >= FEWEST_POINTS else None for values in ratios),
        inside=inside_count / max(1, total),
    )


def with_point_scale(
    prediction: ScenePrediction,
    points: Sequence[Float[Tensor, "_m 3"]],
    report: Report,
    origin: PointOrigin = WITH_THE_CAMERAS,
) -> ScenePrediction | None:
    """The prediction with depth and Gaussians at the scale of sparse points; None where there are too few of them.

    Every view is scaled about its camera centre: the cameras stay where they are.

    Args:
        prediction: With cameras.
        points: Per view the points [m, 3] it sees, in the frame of the cameras.
        origin: Who found them.
    """
    depth = prediction.depth
    assert isinstance(depth, Tensor) and prediction.cameras is not None
    found = scale_from_points(depth, prediction.cameras, points)
    usable = found.usable(origin)
    if not usable and not origin.expected:
        return None
    facts: dict[str, Any] = {
        "factor": found.factor if usable else 1.0,
        "points": found.points,
        "views": found.views,
        "spread": found.spread,
        "per_view": list(found.per_view),
    }
    report.content["depth_scale"] = facts
    if not usable:
        seen = found.inside >= _INSIDE or not sum(map(len, points))
        why = f"{found.points} points" if seen else "points that the cameras do not see"
        facts["source"] = f"left as it was ({why}: too few to tell)"
        return None
    facts["source"] = origin.name
    why = (
        f"median ratio of the depth of sparse points to the predicted one, {found.points} sightings in {found.views} "
        f"views, spread {found.spread:.0%}"
    )
    report.chose("scale of the depth", found.factor, why)
    logger.info("scale of the depth: times %.3g, the %s", found.factor, why)
    if origin.expected and found.spread > _WIDE_SPREAD:
        report.warn(
            f"predicted depth and the sparse points of the cameras agree only to {found.spread:.0%} after scaling: the "
            "model is weak on this scene, or cameras and images do not belong together"
        )
    field = bend_through_points(depth, prediction.cameras, points, found.factor, found.spread, noise=origin.noise)
    facts["bend"] = float((field / found.factor).log().abs().median().exp() - 1)
    report.chose(
        "bend of the depth",
        facts["bend"],
        "depth bends smoothly through the sparse points; median change beside the common scale",
    )
    observable = prediction.alignment is None or SCALE not in prediction.alignment.unobservable
    return replace(
        prediction,
        depth=depth * field,
        gaussians=_moved_gaussians(prediction, depth * field, field, report),
        raw_gaussians=None,
        rays=None,  # rays hold origins and directions of the prediction as it was
        unit="given",
        # The one note there is without an observable scale says that there is none.
        notes=prediction.notes if observable else (),
    )


def through_keypoints(
    depth: Float[Tensor, "V H W"], cameras: Cameras, points: Sequence[Float[Tensor, "_m 3"]]
) -> Float[Tensor, "V H W"]:
    """Depth scaled and bent to meet `keypoint_points`; as it was where they are too few."""
    found = scale_from_points(depth, cameras, points)
    if not found.usable(KEYPOINTS):
        return depth
    return depth * bend_through_points(depth, cameras, points, found.factor, found.spread, noise=KEYPOINTS.noise)


def _moved_gaussians(
    prediction: ScenePrediction, depth: Tensor, factors: Float[Tensor, "V H W"], report: Report
) -> Gaussians | None:
    if prediction.gaussians is None:
        return None
    if prediction.raw_gaussians is None:
        return _scaled_about_cameras(prediction.gaussians, prediction.cameras, factors)
    why = "its corrections are for the depth the network predicts, not for depth bent through sparse points"
    report.chose("Gaussian head", "not used", why)
    return gaussians_from_raw(
        None, depth, prediction.cameras, images=prediction.images, confidence=prediction.confidence
    )


@torch.no_grad()
def bend_through_points(
    depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    points: Sequence[Float[Tensor, "_m 3"]],
    factor: float,
    spread: float,
    *,
    noise: float = 0.0,
) -> Float[Tensor, "V H W"]:
    """Factors on depth, smooth over each picture, that bring it to its sparse points and elsewhere to `factor`.

    The logarithm of true over predicted depth is first taken as linear in the place (points far from it hardly count:
    Cauchy), which holds on where there are no points; what is left of it is averaged around every place with Gaussian
    weights (Nadaraya-Watson), together with `_PRIOR_POINTS` points that say nothing is left.

    Args:
        depth: z-depth; <= 0 is unknown.
        cameras: Posed, at the size of the maps.
        points: Per view the world points it sees.
        factor: Common scale of all views.
        spread: Robust standard deviation of the logarithms around it.
        noise: The part of it that comes from the points: depth that is as exact as they are does not bend.
    """
    _, height, width = depth.shape
    cameras = cameras.to(depth)
    sigma = _BEND_SIGMA * max(height, width)
    # Evaluated on a coarse grid, which a kernel this wide allows.
    rows, columns = min(height, _BEND_GRID), min(width, _BEND_GRID)
    v = (torch.arange(rows, device=depth.device) + 0.5) * height / rows
    u = (torch.arange(columns, device=depth.device) + 0.5) * width / columns
    everywhere = torch.stack(torch.meshgrid(u, v, indexing="xy"), -1)
    fields = depth.new_zeros(len(depth), rows, columns)
    extent = depth.new_tensor([width, height])
    for view, seen in enumerate(points):
        uv, z = (values[0] for values in cameras[view].project(seen.to(depth)))
        inside = (z > 0) & (uv >= 0).all(-1) & (uv < extent).all(-1)
        column, row = uv[inside].long().unbind(-1)
        predicted = depth[view][row, column]
        known = predicted > 0
        place = uv[inside][known]
        ratio = (z[inside][known] / predicted[known] / factor).log()
        slope = _robust_slope(_centred(place, extent), ratio, max(spread, _EXACT))
        rest = ratio - _centred(place, extent) @ slope
        left = _SIGMA_FROM_MAD * float(rest.abs().median()) if len(rest) else 0.0
        trust = 1 / (1 + (rest / (2 * max(left, _EXACT))).square())
        across = torch.exp(-0.5 * ((u[:, None] - place[:, 0]) / sigma).square())
        down = torch.exp(-0.5 * ((v[:, None] - place[:, 1]) / sigma).square())
        total = torch.einsum("rm,cm,m->rc", down, across, trust * rest)
        local = total / (torch.einsum("rm,cm,m->rc", down, across, trust) + _PRIOR_POINTS)
        fields[view] = _centred(everywhere, extent) @ slope + local
    smooth = torch.nn.functional.interpolate(fields[:, None], (height, width), mode="bicubic")[:, 0]
    belief = max(0.0, 1 - (noise / max(spread, _EXACT)) ** 2)
    return factor * (belief * smooth).exp()


def _centred(place: Float[Tensor, "*places 2"], extent: Float[Tensor, " 2"]) -> Float[Tensor, "*places 3"]:
    """(1, x, y) with x, y from -1 to 1 over the picture."""
    return torch.cat([torch.ones_like(place[..., :1]), 2 * place / extent - 1], -1)


def _robust_slope(place: Float[Tensor, "M 3"], ratio: Float[Tensor, " M"], spread: float) -> Float[Tensor, " 3"]:
    """Least squares of ratio ~ place @ slope, reweighted, with a prior that holds the slope at nothing."""
    prior = torch.diag(place.new_tensor(_SLOPE_PRIOR))
    weight, slope = torch.ones_like(ratio), place.new_zeros(3)
    for _ in range(_SLOPE_ROUNDS):
        weighted = place.T * weight
        slope = torch.linalg.solve(weighted @ place + prior, weighted @ ratio)
        weight = 1 / (1 + ((ratio - place @ slope) / (2 * spread)).square())
        if len(ratio):
            spread = max(_SIGMA_FROM_MAD * float((ratio - place @ slope).abs().median()), _EXACT)
    return slope.clamp(-_STEEPEST, _STEEPEST)


def _scaled_about_cameras(gaussians: Gaussians, cameras: Cameras, factors: Float[Tensor, "V H W"]) -> Gaussians:
    """One Gaussian per pixel in view order, each moved along its ray and grown with the distance."""
    centers = cameras.centers.to(gaussians.means)
    centers = centers.repeat_interleave(len(gaussians) // len(cameras), 0)
    factor = factors.reshape(-1, 1).to(gaussians.means)
    return Gaussians.unchecked(
        centers + factor * (gaussians.means - centers),
        gaussians.quats,
        gaussians.scales * factor,
        gaussians.opacities,
        gaussians.sh,
    )
