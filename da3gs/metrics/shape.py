"""Depth metrics after a named alignment, and distances between point sets.

Letters: V views, H W pixels, N M points.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from da3gs.errors import InputError
from da3gs.geometry.alignment import (
    DepthAlignment,
    align_median_scale,
    align_scale,
    align_scale_shift,
    ransac_scale_shift,
)

# Aligned depths are clamped from below here (a shift can carry them under 0, where log10 and ratios have no value);
# the bound of depth_anything_3/bench/depth_metrics.py.
_MIN_ALIGNED_DEPTH = 1e-6
# Distances per block of the nearest-neighbour search in torch: 64 MiB of float32.
_BLOCK = 1 << 24

# Name -> solver of target ~ scale * predicted + shift; None leaves depths as they are.
DEPTH_ALIGNMENTS: dict[str, Callable[[Tensor, Tensor], DepthAlignment] | None] = {
    "none": None,
    "median": align_median_scale,
    "scale": align_scale,
    "scale_shift": align_scale_shift,
    "scale_shift_ransac": ransac_scale_shift,
}


@dataclass(frozen=True)
class DepthMetrics:
    """Means over views of the per-view means over valid pixels (Eigen et al., 2014); depths in units of the target.

    Attributes:
        abs_rel: mean |d - t| / t.
        rmse: Square root of the mean squared difference.
        log10: mean |log10 d - log10 t|.
        delta1, delta2, delta3: Shares in [0, 1] of pixels with max(d/t, t/d) < 1.25, 1.25^2, 1.25^3.
        alignment: Name of the alignment.
        alignment_per_view: Whether each view was aligned by itself or all views together.
        scales, shifts: Of the alignment, one per view.
        views, valid_pixels: What was averaged over.
        clamped_pixels: Valid pixels whose aligned depth was not positive and was clamped to 1e-6.
    """

    abs_rel: float
    rmse: float
    log10: float
    delta1: float
    delta2: float
    delta3: float
    alignment: str
    alignment_per_view: bool
    scales: tuple[float, ...]
    shifts: tuple[float, ...]
    views: int
    valid_pixels: int
    clamped_pixels: int


@dataclass(frozen=True)
class PointMetrics:
    """Distances between a predicted and a target point set, in their units.

    Attributes:
        accuracy: Mean distance of predicted points to the nearest target point.
        completeness: Mean distance of target points to the nearest predicted point.
        chamfer: (accuracy + completeness) / 2, "Overall" of the DTU and DA3 benchmarks.
        precision, recall: Shares in [0, 1] of predicted and target points nearer than the threshold.
        f_score: Their harmonic mean; 0 when both are 0.
        threshold: The distance.
        predicted_points, target_points: Counts.
    """

    accuracy: float
    completeness: float
    chamfer: float
    precision: float
    recall: float
    f_score: float
    threshold: float
    predicted_points: int
    target_points: int


@torch.no_grad()
def depth_metrics(
    predicted: Float[Tensor, "V H W"],
    target: Float[Tensor, "V H W"],
    *,
    mask: Bool[Tensor, "V H W"] | None = None,
    alignment: str = "median",
    per_view: bool = True,
) -> DepthMetrics:
    """Compare z-depth maps of one size. No gradient.

    Args:
        predicted, target: Depths; 0 (or less) in the target means "not measured" and is left out.
        mask: Pixels to use; where it is True both maps must be finite. Every view needs a valid pixel.
        alignment: A name of `DEPTH_ALIGNMENTS`: "none" for metric depth, "median" (ratio of medians), "scale",
            "scale_shift" (least squares), "scale_shift_ransac" (robust).
        per_view: Align every view by itself (monocular protocols), or all together (multi-view depth).
    """
    if predicted.shape != target.shape or predicted.ndim != 3 or predicted.numel() == 0:
        raise InputError(
            f"depth metrics need two equal stacks [V, H, W]; got {list(predicted.shape)} and {list(target.shape)}"
        )
    if mask is not None and mask.shape != target.shape:
        raise InputError(f"the mask must be {list(target.shape)} like the depths; got {list(mask.shape)}")
    if alignment not in DEPTH_ALIGNMENTS:
        raise InputError(f"unknown depth alignment '{alignment}'; known: {', '.join(DEPTH_ALIGNMENTS)}")
    samples = [_valid_samples(predicted, target, mask, view) for view in range(len(target))]
    if per_view:
        fits = [_fit(alignment, source, truth) for source, truth in samples]
    else:
        sources, truths = zip(*samples, strict=True)
        fits = [_fit(alignment, torch.cat(sources), torch.cat(truths))] * len(samples)
    rows, clamped = [], 0
    for (source, truth), (scale, shift) in zip(samples, fits, strict=True):
        aligned = scale * source + shift
        clamped += int((aligned < _MIN_ALIGNED_DEPTH).sum())
        rows.append(_depth_errors(aligned.clamp(min=_MIN_ALIGNED_DEPTH), truth))
    abs_rel, rmse, log10, delta1, delta2, delta3 = torch.stack(rows).mean(0).tolist()
    return DepthMetrics(
        abs_rel=abs_rel,
        rmse=rmse,
        log10=log10,
        delta1=delta1,
        delta2=delta2,
        delta3=delta3,
        alignment=alignment,
        alignment_per_view=per_view,
        scales=tuple(scale for scale, _ in fits),
        shifts=tuple(shift for _, shift in fits),
        views=len(samples),
        valid_pixels=sum(len(truth) for _, truth in samples),
        clamped_pixels=clamped,
    )


@torch.no_grad()
def point_metrics(predicted: Float[Tensor, "N 3"], target: Float[Tensor, "M 3"], threshold: float) -> PointMetrics:
    """Accuracy, completeness, Chamfer distance and F-score (Knapitsch et al., Tanks and Temples, 2017). No gradient.

    Bring both into one frame first, and sample them evenly (by voxels): the means weigh every point alike.

    Args:
        predicted, target: Points, at least one each.
        threshold: Distance below which a point counts as right; DA3's benchmark takes 0.05 m indoors, 0.25 m for ETH3D.
    """
    for name, points in (("predicted", predicted), ("target", target)):
        if points.ndim != 2 or points.shape[-1] != 3 or len(points) == 0:
            raise InputError(f"point metrics need {name} points [N, 3], N >= 1; got {list(points.shape)}")
        if not torch.isfinite(points).all():
            raise InputError(f"the {name} points hold NaN or infinity; drop those points first")
    if not threshold > 0:
        raise InputError(f"the distance threshold must be > 0; got {threshold}")
    to_target, to_predicted = nearest_distances(predicted, target), nearest_distances(target, predicted)
    accuracy, completeness = float(to_target.mean()), float(to_predicted.mean())
    precision = float((to_target < threshold).double().mean())
    recall = float((to_predicted < threshold).double().mean())
    return PointMetrics(
        accuracy=accuracy,
        completeness=completeness,
        chamfer=(accuracy + completeness) / 2,
        precision=precision,
        recall=recall,
        f_score=2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0,
        threshold=float(threshold),
        predicted_points=len(predicted),
        target_points=len(target),
    )


def thinned_points(points: Float[Tensor, "N 3"], voxel: float | int) -> Float[Tensor, "M 3"]:
    """One point per occupied voxel, the mean of those in it, so that every piece of a surface weighs alike.

    Args:
        points: Finite.
        voxel: Edge of the voxels, > 0; the grid passes through the origin.
    """
    if not voxel > 0:
        raise InputError(f"the voxel size must be > 0; got {voxel}")
    if len(points) == 0:
        return points
    cells = torch.floor(points.double() / voxel).long()
    _, where = torch.unique(cells, dim=0, return_inverse=True)
    sums = points.new_zeros(int(where.max()) + 1, 3, dtype=torch.float64).index_add_(0, where, points.double())
    return (sums / torch.bincount(where)[:, None]).to(points.dtype)


def nearest_distances(points: Float[Tensor, "N 3"], others: Float[Tensor, "M 3"]) -> Float[Tensor, " N"]:
    """Distance of every point to the nearest of the others, float64 on the CPU.

    On the CPU by scipy's k-d tree where scipy is installed, else, and on a GPU, by blocks of all distances: the same
    numbers in N * M time.
    """
    if points.device.type == "cpu" and find_spec("scipy") is not None:
        return _nearest_by_tree(points, others)
    return _nearest_by_blocks(points, others)


def _nearest_by_tree(points: Tensor, others: Tensor) -> Tensor:
    from scipy.spatial import cKDTree

    distances, _ = cKDTree(others.double().numpy()).query(points.double().numpy())
    return torch.from_numpy(distances)


def _nearest_by_blocks(points: Tensor, others: Tensor) -> Tensor:
    # float32 distances of nearby points far from the origin would lose their digits; move the origin between them.
    center = others.double().mean(0)
    points, others = (points.double() - center).float(), (others.double() - center).float()
    blocks = points.split(max(1, _BLOCK // len(others)))
    exact = "donot_use_mm_for_euclid_dist"  # a^2 + b^2 - 2ab cancels
    return torch.cat([torch.cdist(block, others, compute_mode=exact).amin(1) for block in blocks]).double().cpu()


def _valid_samples(predicted: Tensor, target: Tensor, mask: Tensor | None, view: int) -> tuple[Tensor, Tensor]:
    source, truth = predicted[view].flatten(), target[view].flatten()
    if mask is not None:
        used = mask[view].flatten()
        source, truth = source[used], truth[used]
    if not torch.isfinite(truth).all():
        raise InputError(f"the target depth of view {view} holds NaN or infinity; pass mask=torch.isfinite(target)")
    measured = truth > 0
    source, truth = source[measured].double().cpu(), truth[measured].double().cpu()
    if len(truth) == 0:
        raise InputError(f"view {view} has no valid pixel (mask True and target depth > 0); leave the view out")
    if not torch.isfinite(source).all():
        raise InputError(f"the predicted depth of view {view} holds NaN or infinity inside the valid pixels")
    return source, truth


def _fit(alignment: str, source: Tensor, truth: Tensor) -> tuple[float, float]:
    solver = DEPTH_ALIGNMENTS[alignment]
    if solver is None:
        return 1.0, 0.0
    fit = solver(source, truth)
    return float(fit.scale), float(fit.shift)


def _depth_errors(depth: Tensor, truth: Tensor) -> Tensor:
    ratio = torch.maximum(depth / truth, truth / depth)
    difference = depth - truth
    return torch.stack(
        [
            (difference.abs() / truth).mean(),
            difference.square().mean().sqrt(),
            (depth.log10() - truth.log10()).abs().mean(),
            *((ratio < 1.25**power).double().mean() for power in (1, 2, 3)),
        ]
    )
