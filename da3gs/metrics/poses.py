"""Camera pose metrics: relative-pose AUC, error medians, absolute trajectory error.

Letters: V views, P = V (V - 1) / 2 pairs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.errors import InputError
from da3gs.geometry.alignment import umeyama
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.conventions import rigid_inverse
from da3gs.geometry.rotations import rotation_angle

# Centres closer than this fraction of the scene's coordinates coincide up to float32 rounding.
_COINCIDENT = 1e-6


@dataclass(frozen=True)
class PoseMetrics:
    """Pose errors of predicted cameras; angles in degrees, lengths in units of the target cameras.

    Attributes:
        views, pairs: Cameras, and unordered pairs of them.
        pairs_without_baseline: Pairs whose true centres coincide, so that no translation direction exists; only their
            rotation counts.
        auc: {protocol: {"auc@3": value in [0, 1], ...}}; see `pose_metrics` for the protocols. Larger is better.
        rotation_median_deg: Median over pairs of the angle between predicted and true relative rotations.
        translation_median_deg: Median over pairs with a baseline of the angle between the directions; None if none has.
        ate_rmse, ate_mean, ate_median: Distances between camera centres after Umeyama alignment; 0 up to rounding for
            two views, which always align.
        alignment_scale: Scale of that alignment, target over predicted.
        alignment_unobservable: What the centres could not determine ("scale", "rotation", "rotation about the line").
    """

    views: int
    pairs: int
    pairs_without_baseline: int
    auc: dict[str, dict[str, float]]
    rotation_median_deg: float
    translation_median_deg: float | None
    ate_rmse: float
    ate_mean: float
    ate_median: float
    alignment_scale: float
    alignment_unobservable: tuple[str, ...]


def pose_metrics(predicted: Cameras, target: Cameras, thresholds_deg: tuple[int, ...] = (3, 5, 15, 30)) -> PoseMetrics:
    """Compare predicted with true poses; any similarity between the two worlds drops out.

    The error of a pair is the larger of its rotation angle and the angle between its translation directions, the latter
    up to sign (at most 90), as in all three protocols:

    - ``da3``: depth_anything_3/bench/utils.py, the published numbers of Depth Anything 3. Histogram AUC. Its relative
      pose of world-to-camera matrices P is inv(P_i) P_j in the frame of the first camera, which is *not* the motion
      from camera to camera and depends on which view is the first. Kept exactly, to compare with the paper.
    - ``vggt``: evaluation/test_co3d.py of VGGT. Histogram AUC over the relative pose P_i inv(P_j), i < j,
      the motion between the cameras with its direction in the frame of the first of the pair.
    - ``superglue``: the same pairs, exact area under the recall curve by trapezoids (SuperGlue, LoFTR, glue-factory).

    No gradient. Evaluated in float64.

    Args:
        predicted, target: Posed cameras of the same views in the same order, at least 2.
        thresholds_deg: Whole degrees.
    """
    if len(predicted) != len(target):
        raise InputError(f"pose metrics need the same views; got {len(predicted)} predicted and {len(target)} target")
    if len(predicted) < 2:
        raise InputError("pose metrics compare pairs of views and need at least 2; got 1")
    p, t = (_poses(cameras) for cameras in (predicted, target))
    rotation_deg, translation_deg, has_baseline = _pair_errors(_camera_motion(p), _camera_motion(t), t)
    errors = torch.maximum(rotation_deg, translation_deg)
    da3_rotation_deg, da3_translation_deg, _ = _pair_errors(_da3_motion(p), _da3_motion(t), t)
    da3_errors = torch.maximum(da3_rotation_deg, da3_translation_deg)
    alignment = umeyama(_centers(p), _centers(t))
    distances = alignment.residuals
    return PoseMetrics(
        views=len(target),
        pairs=len(errors),
        pairs_without_baseline=int((~has_baseline).sum()),
        auc={
            "da3": {f"auc@{limit}": auc_histogram(da3_errors, limit) for limit in thresholds_deg},
            "vggt": {f"auc@{limit}": auc_histogram(errors, limit) for limit in thresholds_deg},
            "superglue": {f"auc@{limit}": auc_trapezoid(errors, limit) for limit in thresholds_deg},
        },
        rotation_median_deg=_median(rotation_deg),
        translation_median_deg=_median(translation_deg[has_baseline]) if has_baseline.any() else None,
        ate_rmse=float(distances.square().mean().sqrt()),
        ate_mean=float(distances.mean()),
        ate_median=_median(distances),
        alignment_scale=float(alignment.target_from_source.scale),
        alignment_unobservable=alignment.unobservable,
    )


def relative_pose_errors(
    predicted: Cameras, target: Cameras
) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Rotation and translation-direction error in degrees of every pair i < j, and the true baseline, float64.

    The translation error is in [0, 90] (up to sign) and 0 for pairs whose true centres coincide.
    """
    p, t = _poses(predicted), _poses(target)
    motion = _camera_motion(t)
    rotation_deg, translation_deg, _ = _pair_errors(_camera_motion(p), motion, t)
    return rotation_deg, translation_deg, motion[:, :3, 3].norm(dim=1)


def auc_histogram(errors_deg: Float[Tensor, " P"], threshold_deg: int) -> float:
    """Mean of the cumulative histogram of the errors in bins of one degree, in [0, 1] (DA3 and VGGT)."""
    _check_errors(errors_deg, threshold_deg)
    counts, _ = np.histogram(errors_deg.detach().cpu().numpy(), bins=np.arange(threshold_deg + 1))
    return float(np.cumsum(counts).mean() / len(errors_deg))


def auc_trapezoid(errors_deg: Float[Tensor, " P"], threshold_deg: int) -> float:
    """Area under the recall curve up to the threshold, over the threshold, in [0, 1] (pose_auc of SuperGlue).

    The curve joins (0, 0) and the points (sorted error k, k / P) by straight lines and is flat after the last one.
    """
    _check_errors(errors_deg, threshold_deg)
    errors = np.sort(errors_deg.detach().cpu().double().numpy())
    below = int(np.searchsorted(errors, threshold_deg))
    x = np.concatenate([[0.0], errors[:below], [threshold_deg]])
    y = np.concatenate([np.arange(below + 1), [below]]) / len(errors)
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / threshold_deg)


def standing_still(cameras: Cameras) -> Cameras:
    """Cameras that all stand where the first one does: what claiming no motion at all would score."""
    if cameras.cam_from_world is None:
        raise InputError("cameras that stand still need poses; these have intrinsics only")
    return cameras.with_poses(cameras.cam_from_world[:1].expand(len(cameras), 4, 4).clone())


# ------------------------------------------------------------------------------------------------ parts


def _poses(cameras: Cameras) -> Tensor:
    if cameras.cam_from_world is None:
        raise InputError("pose metrics need cameras with poses; these have intrinsics only")
    return cameras.cam_from_world.detach().double().cpu()


def _centers(cam_from_world: Tensor) -> Tensor:
    return rigid_inverse(cam_from_world)[:, :3, 3]


def _pairs(views: int) -> tuple[Tensor, Tensor]:
    first, second = torch.triu_indices(views, views, offset=1)
    return first, second


def _camera_motion(cam_from_world: Tensor) -> Tensor:
    """first_from_second of every pair of cameras."""
    first, second = _pairs(len(cam_from_world))
    return cam_from_world[first] @ rigid_inverse(cam_from_world[second])


def _da3_motion(cam_from_world: Tensor) -> Tensor:
    """inv(P_first) P_second with the first camera of the set as the world."""
    cam_from_cam0 = cam_from_world @ rigid_inverse(cam_from_world[:1])
    first, second = _pairs(len(cam_from_world))
    return rigid_inverse(cam_from_cam0[first]) @ cam_from_cam0[second]


def _pair_errors(predicted: Tensor, target: Tensor, target_poses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotation and direction error of every pair in degrees, and whether the pair has a translation at all.

    The references score a pair without a translation 90 degrees or rounding noise, even for perfect poses.
    """
    a, b = predicted[:, :3, 3], target[:, :3, 3]
    noise = _COINCIDENT * float(_centers(target_poses).norm(dim=1).max())
    exists = b.norm(dim=1) > noise
    sine, cosine = torch.linalg.cross(a, b).norm(dim=1), (a * b).sum(1).abs()
    # A predicted translation of 0 points nowhere: 90 degrees, as in the references.
    angle = torch.where(a.norm(dim=1) > 0, torch.atan2(sine, cosine), torch.pi / 2)
    translation_deg = torch.where(exists, angle.rad2deg(), 0.0)
    return rotation_angle(predicted[:, :3, :3], target[:, :3, :3]).rad2deg(), translation_deg, exists


def _check_errors(errors_deg: Tensor, threshold_deg: int) -> None:
    if errors_deg.ndim != 1 or len(errors_deg) == 0 or not torch.isfinite(errors_deg).all():
        raise InputError("AUC needs a list [P] of at least one finite error in degrees")
    if threshold_deg < 1:
        raise InputError(f"AUC thresholds are whole degrees >= 1; got {threshold_deg}")


def _median(values: Tensor) -> float:
    return float(np.median(values.numpy()))
