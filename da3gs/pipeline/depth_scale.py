"""The scale of predicted depth, from sparse points that stand in the frame of the cameras.

Camera positions alone fix the scale of a prediction only as well as the network places its own cameras. Where structure
from motion has left 3D points, each tells the true depth of one pixel: the median of true over predicted is the factor.

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
from da3gs.pipeline.sources import Source

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
# MAD of a normal distribution -> its standard deviation.
_SIGMA_FROM_MAD = 1.4826


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

    @property
    def usable(self) -> bool:
        return self.points >= FEWEST_POINTS and self.inside >= _INSIDE


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


def with_point_scale(prediction: ScenePrediction, source: Source, report: Report) -> ScenePrediction:
    """The prediction with depth and Gaussians at the scale of the source's sparse points, where it has enough of them.

    Every view is scaled about its camera centre: the cameras stay where they are.
    """
    if source.points is None or not source.posed or prediction.cameras is None:
        return prediction
    depth = prediction.depth
    assert isinstance(depth, Tensor)
    found = scale_from_points(depth, prediction.cameras, source.points)
    facts: dict[str, Any] = {
        "factor": found.factor if found.usable else 1.0,
        "points": found.points,
        "views": found.views,
        "spread": found.spread,
        "per_view": list(found.per_view),
    }
    report.content["depth_scale"] = facts
    if not found.usable:
        why = f"{found.points} points" if found.inside >= _INSIDE else "points that the cameras do not see"
        facts["source"] = f"left as it was ({why}: too few to tell)"
        return prediction
    facts["source"] = "sparse points"
    why = (
        f"median ratio of the depth of sparse points to the predicted one, {found.points} sightings in {found.views} "
        f"views, spread {found.spread:.0%}"
    )
    report.chose("scale of the depth", found.factor, why)
    logger.info("scale of the depth: times %.3g, the %s", found.factor, why)
    if found.spread > _WIDE_SPREAD:
        report.warn(
            f"predicted depth and the sparse points of the cameras agree only to {found.spread:.0%} after scaling: the "
            "model is weak on this scene, or cameras and images do not belong together"
        )
    field = bend_through_points(depth, prediction.cameras, source.points, found.factor, found.spread)
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
) -> Float[Tensor, "V H W"]:
    """Factors on depth, smooth over each picture, that bring it to its sparse points and elsewhere to `factor`.

    The logarithm of true over predicted depth is averaged around every place with Gaussian weights (Nadaraya-Watson),
    together with `_PRIOR_POINTS` points that say `factor`. Points far outside of the spread hardly count (Cauchy).

    Args:
        depth: z-depth; <= 0 is unknown.
        cameras: Posed, at the size of the maps.
        points: Per view the world points it sees.
        factor: Common scale of all views.
        spread: Robust standard deviation of the logarithms around it.
    """
    _, height, width = depth.shape
    sigma = _BEND_SIGMA * max(height, width)
    # Evaluated on a coarse grid, which a kernel this wide allows.
    rows, columns = min(height, _BEND_GRID), min(width, _BEND_GRID)
    v = (torch.arange(rows, device=depth.device) + 0.5) * height / rows
    u = (torch.arange(columns, device=depth.device) + 0.5) * width / columns
    fields = depth.new_zeros(len(depth), rows, columns)
    for view, seen in enumerate(points):
        uv, z = (values[0] for values in cameras[view].project(seen.to(depth)))
        inside = (z > 0) & (uv >= 0).all(-1) & (uv[:, 0] < width) & (uv[:, 1] < height)
        column, row = uv[inside].long().unbind(-1)
        predicted = depth[view][row, column]
        known = predicted > 0
        place = uv[inside][known]
        ratio = (z[inside][known] / predicted[known] / factor).log()
        trust = 1 / (1 + (ratio / (2 * max(spread, 1e-3))).square())
        across = torch.exp(-0.5 * ((u[:, None] - place[:, 0]) / sigma).square())
        down = torch.exp(-0.5 * ((v[:, None] - place[:, 1]) / sigma).square())
        total = torch.einsum("rm,cm,m->rc", down, across, trust * ratio)
        fields[view] = total / (torch.einsum("rm,cm,m->rc", down, across, trust) + _PRIOR_POINTS)
    smooth = torch.nn.functional.interpolate(fields[:, None], (height, width), mode="bicubic")[:, 0]
    return factor * smooth.exp()


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
