"""Every alignment solver of the package: similarities of points and cameras, scale and shift of depths.

All solve in float64 on the CPU, are seeded, carry no gradient, and answer for every input size. What the data cannot
determine is named in `unobservable` and left at the neutral value (scale 1, no rotation), never guessed.

Letters: N points or samples, V views.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import nearest_rotation, rotation_angle
from da3gs.geometry.similarity import Similarity

# Points whose spread is below this fraction of their distance from the origin are one point up to float32 rounding.
_COINCIDENT = 1e-6
# Points whose second-largest extent is below this fraction of the largest lie on a line.
_COLLINEAR = 1e-4
# Camera centres this close to a line leave the roll about it to the cameras' own axes, which know it better.
_NEARLY_COLLINEAR = 0.05
# MAD of a normal distribution -> its standard deviation.
_SIGMA_FROM_MAD = 1.4826

SCALE = "scale"
ROTATION = "rotation"
ROTATION_ABOUT_LINE = "rotation about the line"


@dataclass(frozen=True, eq=False)
class Alignment:
    """A similarity found between two sets.

    Attributes:
        target_from_source: The similarity.
        residuals: [N] distances between moved source and target, in target units.
        inliers: [N] members the solution was fitted to.
        unobservable: What the data could not determine: any of `SCALE`, `ROTATION`, `ROTATION_ABOUT_LINE`.
        rotation_residuals: [V] angles in radians between moved and target camera axes; None for plain points.
    """

    target_from_source: Similarity
    residuals: Float[Tensor, " N"]
    inliers: Bool[Tensor, " N"]
    unobservable: tuple[str, ...] = ()
    rotation_residuals: Float[Tensor, " N"] | None = None


def umeyama(
    source: Float[Tensor, "N 3"], target: Float[Tensor, "N 3"], weights: Float[Tensor, " N"] | None = None
) -> Alignment:
    """Least-squares similarity target ~ s R source + t (Umeyama, PAMI 1991), weighted, for N >= 1 points.

    Collinear points (always so for N = 2) leave the rotation about their line open: the smallest rotation that turns
    one line onto the other is taken. Coincident points (always so for N = 1) determine the translation only.
    """
    source, target = _points(source, target)
    weights = _weights(weights, len(source))
    share = weights / weights.sum()
    source_mean, target_mean = share @ source, share @ target
    source_centred, target_centred = source - source_mean, target - target_mean
    rank = min(_extent_rank(source, share), _extent_rank(target, share))
    unobservable: tuple[str, ...] = ()
    if rank == 0:
        rotation, scale, unobservable = torch.eye(3, dtype=torch.float64), 1.0, (SCALE, ROTATION)
    else:
        covariance = (share[:, None] * target_centred).T @ source_centred
        variance = float(share @ source_centred.square().sum(1))
        if rank == 1:
            rotation, unobservable = _turn_line(covariance), (ROTATION_ABOUT_LINE,)
        else:
            rotation = nearest_rotation(covariance)
        scale = float((rotation * covariance).sum()) / variance
        if scale <= 0:  # the best similarity would flatten or mirror the source
            scale, unobservable = 1.0, (*unobservable, SCALE)
    solution = Similarity(scale, rotation, target_mean - scale * (rotation @ source_mean))
    residuals = (solution.apply(source) - target).norm(dim=1)
    return Alignment(solution, residuals, weights > 0, unobservable)


def ransac_umeyama(
    source: Float[Tensor, "N 3"],
    target: Float[Tensor, "N 3"],
    *,
    threshold: float | None = None,
    iterations: int = 200,
    sample_size: int = 3,
    seed: int = 0,
) -> Alignment:
    """Umeyama on the largest consistent subset; for N <= sample_size the plain solution.

    Args:
        source, target: Matched points.
        threshold: Inlier distance in target units; None takes 3 robust standard deviations (MAD) of the best median
            sample's residuals, at least 1e-6 of the target's extent.
        iterations: Samples drawn.
        sample_size: Points per sample.
        seed: Of the sampling. Equal seeds give equal results.
    """
    source, target = _points(source, target)
    count = len(source)
    if count <= sample_size:
        return umeyama(source, target)
    generator = np.random.default_rng(seed)
    samples = [torch.from_numpy(generator.choice(count, size=sample_size, replace=False)) for _ in range(iterations)]
    solutions = [umeyama(source[sample], target[sample]).target_from_source for sample in samples]
    errors = torch.stack([(solution.apply(source) - target).norm(dim=1) for solution in solutions])
    if threshold is None:
        median = float(errors.median(1).values.min())  # least median of squares
        extent = float((target - target.mean(0)).norm(dim=1).max())
        threshold = max(3 * _SIGMA_FROM_MAD * median, 1e-6 * extent)
    inside = errors < threshold
    counts = inside.sum(1)
    mean_errors = torch.where(inside, errors, 0.0).sum(1) / counts.clamp(min=1)
    best = max(range(iterations), key=lambda i: (int(counts[i]), -float(mean_errors[i])))
    inliers = inside[best]
    if int(inliers.sum()) < 3:
        inliers = torch.ones(count, dtype=torch.bool)
    refit = umeyama(source[inliers], target[inliers])
    residuals = (refit.target_from_source.apply(source) - target).norm(dim=1)
    return Alignment(refit.target_from_source, residuals, inliers, refit.unobservable)


def align_cameras(source: Cameras, target: Cameras, *, robust: bool = True, seed: int = 0) -> Alignment:
    """Similarity that carries the source cameras onto the target cameras, for any V >= 1.

    Centres that span at least a plane give everything (RANSAC from 5 views on when `robust`). Otherwise the rotation is
    the chordal mean of the cameras' own rotations, and the centres give what they can: scale and translation when they
    differ (two views, or views along a line), translation alone when they coincide (one view, pure rotation; `SCALE`
    is then named unobservable).
    """
    if len(source) != len(target):
        raise InputError(f"camera alignment needs matching views; got {len(source)} and {len(target)}")
    source_centers, target_centers = _points(source.centers.detach(), target.centers.detach())
    share = torch.full((len(source),), 1 / len(source), dtype=torch.float64)
    rank = min(_extent_rank(centers, share, _NEARLY_COLLINEAR) for centers in (source_centers, target_centers))
    if rank >= 2:
        fit = ransac_umeyama(source_centers, target_centers, seed=seed) if robust and len(source) >= 5 else None
        fit = fit if fit is not None else umeyama(source_centers, target_centers)
        solution, inliers, unobservable = fit.target_from_source, fit.inliers, fit.unobservable
    else:
        relative = _axes(target) @ _axes(source).transpose(1, 2)
        rotation = nearest_rotation(relative.sum(0))
        scale, unobservable = 1.0, (SCALE,)
        if rank == 1:
            # The ratio of extents does not suffer from the rotations' errors, as a projection on each other would.
            scale, unobservable = _spread(target_centers) / _spread(source_centers), ()
        translation = target_centers.mean(0) - scale * (rotation @ source_centers.mean(0))
        solution, inliers = Similarity(scale, rotation, translation), torch.ones(len(source), dtype=torch.bool)
    residuals = (solution.apply(source_centers) - target_centers).norm(dim=1)
    angles = rotation_angle(solution.rotation @ _axes(source), _axes(target))
    return Alignment(solution, residuals, inliers, unobservable, angles)


# ------------------------------------------------------------------------------------------------ depth


@dataclass(frozen=True, eq=False)
class DepthAlignment:
    """target ~ scale * source + shift.

    Attributes:
        scale, shift: Of the solution.
        residuals: [N] absolute differences after alignment.
        inliers: [N] samples the solution was fitted to.
        unobservable: ("scale",) when the source is constant, so that only the shift is known.
    """

    scale: float
    shift: float
    residuals: Float[Tensor, " N"]
    inliers: Bool[Tensor, " N"]
    unobservable: tuple[str, ...] = ()


def align_scale(
    source: Float[Tensor, " N"], target: Float[Tensor, " N"], weights: Float[Tensor, " N"] | None = None
) -> DepthAlignment:
    """Scale alone by weighted least squares: s = sum(w source target) / sum(w source^2)."""
    source, target = _samples(source, target)
    weights = _weights(weights, len(source))
    power = float((weights * source.square()).sum())
    if power == 0:
        raise InputError("cannot find a scale: every weighted source value is 0")
    scale = float((weights * source * target).sum()) / power
    return _depth_alignment(source, target, scale, 0.0, weights > 0)


def align_median_scale(source: Float[Tensor, " N"], target: Float[Tensor, " N"]) -> DepthAlignment:
    """Scale alone as the ratio of medians, median(target) / median(source), as monocular depth protocols use it."""
    source, target = _samples(source, target)
    middle = _median(source)
    if middle == 0:
        raise InputError("cannot find a scale: the median of the source is 0")
    everything = torch.ones(len(source), dtype=torch.bool)
    return _depth_alignment(source, target, _median(target) / middle, 0.0, everything)


def align_scale_shift(
    source: Float[Tensor, " N"], target: Float[Tensor, " N"], weights: Float[Tensor, " N"] | None = None
) -> DepthAlignment:
    """Scale and shift by weighted least squares; a constant source leaves the scale at 1 and names it unobservable."""
    source, target = _samples(source, target)
    weights = _weights(weights, len(source))
    share = weights / weights.sum()
    source_mean, target_mean = float(share @ source), float(share @ target)
    variance = float(share @ (source - source_mean).square())
    if variance <= (_COINCIDENT * abs(source_mean)) ** 2:
        fit = _depth_alignment(source, target, 1.0, target_mean - source_mean, weights > 0)
        return DepthAlignment(fit.scale, fit.shift, fit.residuals, fit.inliers, (SCALE,))
    scale = float(share @ ((source - source_mean) * (target - target_mean))) / variance
    return _depth_alignment(source, target, scale, target_mean - scale * source_mean, weights > 0)


def ransac_scale_shift(
    source: Float[Tensor, " N"],
    target: Float[Tensor, " N"],
    *,
    threshold: float | None = None,
    relative: bool = False,
    iterations: int = 100,
    seed: int = 0,
) -> DepthAlignment:
    """Scale and shift on the largest consistent subset.

    Two-sample RANSAC scored on at most 10,000 samples, then a least-squares refit on the inliers of all samples.

    Args:
        source, target: Matched samples.
        threshold: Inlier distance in target units; None takes the median absolute deviation of the target from its
            median (the choice of RANSACRegressor).
        relative: The distance is a share of the (positive) target instead, and the refit weighs errors so; the
            threshold must be given. Where one surface fills most of a picture the deviation is mere noise, and a
            constant would win otherwise.
        iterations: Pairs drawn.
        seed: Of the sampling.
    """
    source, target = _samples(source, target)
    if len(source) < 3:
        return align_scale_shift(source, target)
    if relative and (threshold is None or not (target > 0).all()):
        raise InputError("relative distances need a threshold and targets > 0")
    if threshold is None:
        threshold = _median((target - _median(target)).abs())
    unit = target if relative else torch.ones_like(target)
    generator = np.random.default_rng(seed)
    subset = torch.from_numpy(generator.permutation(len(source))[:10_000])
    xs, ys = source[subset], target[subset]
    pairs = torch.from_numpy(generator.integers(len(subset), size=(iterations, 2)))
    run, rise = xs[pairs[:, 1]] - xs[pairs[:, 0]], ys[pairs[:, 1]] - ys[pairs[:, 0]]
    usable = run.abs() > _COINCIDENT * xs.abs().mean()
    if not usable.any():
        return align_scale_shift(source, target)
    scales = rise[usable] / run[usable]
    shifts = ys[pairs[usable, 0]] - scales * xs[pairs[usable, 0]]
    errors = (scales[:, None] * xs + shifts[:, None] - ys).abs() / unit[subset]
    counts = (errors <= threshold).sum(1)
    totals = errors.clamp(max=threshold).sum(1)
    best = max(range(len(scales)), key=lambda i: (int(counts[i]), -float(totals[i])))
    inliers = (scales[best] * source + shifts[best] - target).abs() <= threshold * unit
    if int(inliers.sum()) < 2:
        return align_scale_shift(source, target)
    refit = align_scale_shift(source[inliers], target[inliers], 1 / unit[inliers].square())
    fit = _depth_alignment(source, target, refit.scale, refit.shift, inliers)
    return DepthAlignment(fit.scale, fit.shift, fit.residuals, inliers, refit.unobservable)


# ------------------------------------------------------------------------------------------------ parts


def _axes(cameras: Cameras) -> Tensor:
    return cameras.world_from_cam[:, :3, :3].detach().double().cpu()


def _spread(points: Tensor) -> float:
    return float((points - points.mean(0)).square().sum().sqrt())


def _extent_rank(points: Tensor, share: Tensor, collinear: float = _COLLINEAR) -> int:
    """0: one point, 1: on a line, 2: more, up to float32 rounding."""
    centred = (points - share @ points) * share.sqrt()[:, None]
    extents = torch.linalg.svdvals(centred)
    if float(extents[0]) <= _COINCIDENT * float(points.norm(dim=1).max()):
        return 0
    return 1 if len(extents) < 2 or float(extents[1]) <= collinear * float(extents[0]) else 2


def _turn_line(covariance: Tensor) -> Tensor:
    """Smallest rotation from the source line to the target line of a rank-1 covariance sum(target source^T)."""
    u, _, vh = torch.linalg.svd(covariance)
    a, b = vh[0], u[:, 0]
    cosine, cross = float(a @ b), torch.linalg.cross(a, b)
    if cosine < -1 + 1e-12:  # opposite: half a turn about any axis across the line
        other = torch.linalg.cross(a, torch.eye(3, dtype=a.dtype)[int(a.abs().argmin())])
        axis = other / other.norm()
        return 2 * torch.outer(axis, axis) - torch.eye(3, dtype=a.dtype)
    x, y, z = cross.tolist()
    skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=a.dtype)
    return torch.eye(3, dtype=a.dtype) + skew + skew @ skew / (1 + cosine)


def _median(values: Tensor) -> float:
    return float(np.median(values.numpy()))  # torch.quantile refuses more than 2^24 values


def _depth_alignment(source: Tensor, target: Tensor, scale: float, shift: float, inliers: Tensor) -> DepthAlignment:
    return DepthAlignment(scale, shift, (scale * source + shift - target).abs(), inliers)


def _points(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3 or len(source) == 0:
        raise InputError(
            f"alignment needs two matching point sets [N, 3], N >= 1; got {list(source.shape)} and {list(target.shape)}"
        )
    return _finite(source), _finite(target)


def _samples(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if source.shape != target.shape or source.ndim != 1 or len(source) == 0:
        raise InputError(
            f"depth alignment needs two matching lists [N], N >= 1 (mask invalid pixels first); got "
            f"{list(source.shape)} and {list(target.shape)}"
        )
    return _finite(source), _finite(target)


def _finite(values: Tensor) -> Tensor:
    values = values.detach().double().cpu()
    if not torch.isfinite(values).all():
        raise InputError("alignment needs finite values; got NaN or infinity (mask them first)")
    return values


def _weights(weights: Tensor | None, count: int) -> Tensor:
    if weights is None:
        return torch.ones(count, dtype=torch.float64)
    weights = _finite(weights)
    if weights.shape != (count,) or (weights < 0).any() or float(weights.sum()) <= 0:
        raise InputError(f"weights must be [{count}], >= 0 and not all 0")
    return weights
