"""Predicted depth brought onto what was measured: scale and shift of each map, robustly.

How DA3's teacher labels real data: measured depth is sparse or noisy but to scale, predicted depth is dense and sharp
but known up to scale and shift.

Letters: H W pixels, m sparse points.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.geometry.alignment import ransac_scale_shift
from da3gs.model.depth_heads import SKY_THRESHOLD
from da3gs.model.scene_prediction import ScenePrediction
from da3gs.pipeline.sources import Source, depth_on

_FEWEST = 32
_MOST = 100_000
# Measurements within this share of their depth agree with a map.
_AGREE = 0.05
_ITERATIONS = 300
# Errors beyond this share count as much as any error can, when a map is compared with a constant ...
_WRONG = 0.25
# ... which it must beat by this factor, unless it is as good as this: what it says is worth nothing otherwise.
_BETTER, _GOOD = 0.5, 0.02


@dataclass(frozen=True)
class DepthFit:
    """measured ~ scale * predicted + shift.

    Attributes:
        scale, shift: In the unit of what was measured.
        samples: Measurements it was fitted to.
        inliers: Share of them within 5 % of their depth.
        error: Mean |error| / measured over all of them, each at most 25 %.
        constant: The same of one depth for the whole picture, for comparison.
    """

    scale: float
    shift: float
    samples: int
    inliers: float
    error: float
    constant: float

    def apply(self, depth: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Aligned depth; 0 where there was none or where it would not be positive."""
        return torch.where(depth > 0, (self.scale * depth + self.shift).clamp(min=0), 0.0)


def fit_to_measured(prediction: ScenePrediction, place: int, source: Source, view: int, seed: int) -> DepthFit | None:
    """Fit one map to the measured depth of its picture, or to the sparse points it sees; sky is left out.

    None where there is too little to fit to, where depth would be turned over, and where the aligned map is hardly
    better than a constant.

    Args:
        prediction: At its processed size.
        place: Of the map in it.
        source: Has depth, or sparse points and cameras.
        view: Of the map in it.
        seed: Of RANSAC.
    """
    views = prediction.views[place]
    depth = prediction.depth[place]
    assert isinstance(depth, Tensor)
    depth = depth.cpu()
    usable = torch.ones_like(depth, dtype=torch.bool)
    if prediction.sky is not None:
        usable = prediction.sky[place].cpu() < SKY_THRESHOLD
    if source.depth is not None:
        measured = depth_on(views, [source.depth[view]])[0]
        chosen = usable & (measured > 0)
        predicted, true = depth[chosen], measured[chosen]
    else:
        assert source.points is not None and source.cameras is not None
        camera = views.cameras_to_processed(source.cameras[[view]])
        pixels, along = (values[0] for values in camera.project(source.points[view].to(camera.K)))
        column, row = pixels.floor().nan_to_num(-1).clamp(-1, max(depth.shape)).long().unbind(-1)
        inside = (along > 0) & (column >= 0) & (column < depth.shape[1]) & (row >= 0) & (row < depth.shape[0])
        column, row, true = column[inside], row[inside], along[inside]
        chosen = usable[row, column]
        predicted, true = depth[row, column][chosen], true[chosen]
    if len(true) < _FEWEST:
        return None
    step = max(1, len(true) // _MOST)
    predicted, true = predicted[::step].double(), true[::step].double()
    found = ransac_scale_shift(predicted, true, threshold=_AGREE, relative=True, iterations=_ITERATIONS, seed=seed)
    if found.scale <= 0 or found.unobservable:
        return None
    fit = DepthFit(
        scale=found.scale,
        shift=found.shift,
        samples=len(true),
        inliers=float((found.residuals <= _AGREE * true).double().mean()),
        error=_mean_error(found.residuals, true),
        constant=_mean_error((true - true.median()).abs(), true),
    )
    return fit if fit.error <= max(_GOOD, _BETTER * fit.constant) else None


def _mean_error(residuals: Tensor, true: Tensor) -> float:
    return float((residuals / true).clamp(max=_WRONG).mean())
