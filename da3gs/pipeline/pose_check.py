"""Are given cameras what they claim to be? A prediction without them is the witness.

Relative rotations between views are compared pair by pair, as read and under the usual mistakes. Rotations, because the
centres do not change between axis conventions; pairs, because they need no common world frame.

Letters: V views, P pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.data.view_choice import evenly_spread
from da3gs.errors import InputError
from da3gs.geometry.alignment import align_cameras
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.conventions import OPENCV_FROM_OPENGL, rigid_inverse
from da3gs.geometry.rotations import rotation_angle
from da3gs.images import ImageLike, prepare_views
from da3gs.model.da3_model import DA3Model
from da3gs.model.scene_prediction import ScenePrediction
from da3gs.pipeline.report import Report

# Median angle between predicted and given relative rotations from which on the given ones deserve a word.
SUSPICIOUS_DEG = 15.0
# A mistake is named when assuming it brings the angle below this share of what it is without.
_CLEARLY_BETTER = 0.5
# Candidates this close to the best one cannot be told apart by rotations; the camera centres may then decide.
_TIE_DEG = 2.0
# With cameras from matches so many views are asked (the work grows with the square), at this size.
_WITNESSES, _WITNESS_PX = 6, 798
# Relative rotations smaller than this tell nothing about conventions.
_TURNS_DEG = 4.0
# Principal points this far from the middle (relative to the image) belong to another image size.
_OFF_CENTRE = 0.2
_FOCAL_RATIO = 1.6

AS_READ, OPENGL, INVERTED, OPENGL_INVERTED = "as-read", "opengl", "c2w", "opengl-c2w"
# What given matrices may really be -> the words for it.
POSE_CANDIDATES: dict[str, str] = {
    AS_READ: "world-to-camera with OpenCV axes (x right, y down, z forward), as read",
    OPENGL: "in OpenGL or Blender axes (x right, y up, z backward), but were read as OpenCV",
    INVERTED: "camera-to-world, but were read as world-to-camera",
    OPENGL_INVERTED: "camera-to-world in OpenGL or Blender axes, but were read as world-to-camera in OpenCV axes",
}


@dataclass(frozen=True)
class PoseCheck:
    """How given cameras compare with a prediction that did not know them.

    Attributes:
        rotation_error_deg: Per candidate of `POSE_CANDIDATES`, the median over pairs of the angle between predicted and
            given relative rotation; empty with one view.
        turn_deg: Median relative rotation of the prediction: how much there was to compare.
        centre_residuals: Distances between predicted centres, moved onto the given ones by a robust similarity, and
            those, relative to the extent of the given trajectory; None when all centres coincide.
        focal_ratio: Median of given / predicted focal length.
        likely: The candidates that fit clearly better than the poses as read (several when rotations and centres cannot
            tell them apart); empty when the poses are fine or nothing fits better.
        warnings: A sentence each; empty when all is well.
    """

    rotation_error_deg: dict[str, float]
    turn_deg: float
    centre_residuals: tuple[float, ...] | None
    focal_ratio: float
    likely: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        residuals = self.centre_residuals
        return {
            "median_rotation_error_deg": {name: round(value, 3) for name, value in self.rotation_error_deg.items()},
            "median_turn_between_views_deg": round(self.turn_deg, 3),
            "centre_residual_relative_median": None if residuals is None else sorted(residuals)[len(residuals) // 2],
            "centre_residual_relative_max": None if residuals is None else max(residuals),
            "focal_given_over_predicted": round(self.focal_ratio, 4),
            "likely_mistake": list(self.likely),
            "warnings": list(self.warnings),
        }


def reinterpret_poses(cameras: Cameras, convention: str) -> Cameras:
    """Cameras whose matrices are taken for what `convention` (a key of `POSE_CANDIDATES`) says they really are.

    Raises:
        InputError: Unknown convention, or cameras without poses.
    """
    if convention not in POSE_CANDIDATES:
        raise InputError(f"unknown pose convention {convention!r}; expected one of {', '.join(POSE_CANDIDATES)}")
    if cameras.cam_from_world is None:
        raise InputError("these cameras have no poses to reinterpret")
    poses = cameras.cam_from_world
    if convention in (INVERTED, OPENGL_INVERTED):
        poses = rigid_inverse(poses)
    if convention in (OPENGL, OPENGL_INVERTED):
        poses = OPENCV_FROM_OPENGL.to(poses) @ poses
    return cameras.with_poses(poses)


def check_poses(predicted: Cameras, given: Cameras) -> PoseCheck:
    """Compare given cameras with predicted ones of the same views and image size, in any two world frames.

    Raises:
        InputError: Different numbers of views or image sizes, or missing poses.
    """
    if len(predicted) != len(given):
        raise InputError(f"checking poses needs matching views; got {len(predicted)} and {len(given)}")
    if not (torch.equal(predicted.width, given.width) and torch.equal(predicted.height, given.height)):
        raise InputError("checking poses needs cameras of one image size; bring both to the size of the images")
    predicted = predicted.detach().to("cpu", torch.float64)
    given = given.detach().to("cpu", torch.float64)
    warnings = []
    focal_ratio = float((_focal(given) / _focal(predicted)).median())
    sizes = _intrinsics_warning(given, focal_ratio)
    if sizes is not None:
        warnings.append(sizes)
    if len(given) == 1:
        return PoseCheck({}, 0.0, None, focal_ratio, warnings=tuple(warnings))

    turns = _relative_rotations(predicted)
    identity = torch.eye(3, dtype=torch.float64).expand_as(turns)
    turn_deg = _median_deg(turns, identity)
    errors = {name: _median_deg(turns, _relative_rotations(reinterpret_poses(given, name))) for name in POSE_CANDIDATES}
    likely = _likely(predicted, given, errors) if turn_deg >= _TURNS_DEG else ()
    residuals = _centre_residuals(predicted, given)
    if likely:
        words = ", or they are ".join(POSE_CANDIDATES[name] for name in likely)
        flags = " or ".join(f"--poses-are {name}" for name in likely)
        warnings.append(
            f"the given poses look wrong: relative rotations differ from what the images show by "
            f"{errors[AS_READ]:.0f} degrees (median). Most likely they are {words} (then {errors[likely[0]]:.0f} "
            f"degrees; {flags})"
        )
    elif turn_deg < _TURNS_DEG and errors[AS_READ] > SUSPICIOUS_DEG:
        warnings.append(
            f"the given poses could not be checked: they turn by {errors[AS_READ]:.0f} degrees between views (median), "
            "of which the model without them sees next to nothing. They are kept as given"
        )
    elif errors[AS_READ] > SUSPICIOUS_DEG:
        warnings.append(
            f"the given poses differ from what the model makes of the images by {errors[AS_READ]:.0f} degrees of "
            "relative rotation (median), and no usual mistake of convention explains it: poses and images may be in "
            "different orders, or the model too weak for this scene. The poses are kept as given"
        )
    return PoseCheck(errors, turn_deg, residuals, focal_ratio, likely, tuple(warnings))


def _likely(predicted: Cameras, given: Cameras, errors: dict[str, float]) -> tuple[str, ...]:
    best = min(errors, key=lambda name: errors[name])
    suspicious = errors[AS_READ] > SUSPICIOUS_DEG and errors[best] < _CLEARLY_BETTER * errors[AS_READ]
    if best == AS_READ or not suspicious:
        return ()
    tied = [name for name in errors if errors[name] <= errors[best] + _TIE_DEG and name != AS_READ]
    if len(tied) == 1:
        return (best,)
    # Turns about one axis look alike under several mistakes. An inverted matrix also moves the centres.
    misfits = {}
    for name in tied:
        residuals = _centre_residuals(predicted, reinterpret_poses(given, name))
        misfits[name] = math.inf if residuals is None else sorted(residuals)[len(residuals) // 2]
    lowest = min(misfits.values())
    if not math.isfinite(lowest):
        return tuple(tied)
    return tuple(name for name in tied if misfits[name] <= 2 * lowest + 0.02)


def _relative_rotations(cameras: Cameras) -> Float[Tensor, "P 3 3"]:
    """R_i R_j^T of every pair i < j; the world frame drops out."""
    assert cameras.cam_from_world is not None
    rotations = cameras.cam_from_world[:, :3, :3]
    first, second = torch.triu_indices(len(cameras), len(cameras), offset=1)
    return rotations[first] @ rotations[second].transpose(1, 2)


def _median_deg(a: Tensor, b: Tensor) -> float:
    return math.degrees(float(rotation_angle(a, b).median()))


def _centre_residuals(predicted: Cameras, given: Cameras) -> tuple[float, ...] | None:
    extent = float((given.centers - given.centers.mean(0)).norm(dim=1).max())
    if extent <= 1e-6 * max(1e-12, float(given.centers.abs().max())):
        return None
    return tuple((align_cameras(predicted, given).residuals / extent).tolist())


def _focal(cameras: Cameras) -> Tensor:
    return (cameras.K[:, 0, 0] * cameras.K[:, 1, 1]).sqrt()


def _intrinsics_warning(given: Cameras, focal_ratio: float) -> str | None:
    """K for another image size moves focal length and principal point by the same factor."""
    size = torch.stack([given.width, given.height], -1).double()
    centre = (torch.stack([given.K[:, 0, 2], given.K[:, 1, 2]], -1) / size).median(0).values
    factors = 2 * centre  # a principal point is normally in the middle
    if bool(((centre - 0.5).abs() > _OFF_CENTRE).all()):
        width, height = (size[0] * factors).round().long().tolist()
        return (
            f"the given intrinsics seem to belong to images of about {width}x{height} px, not "
            f"{int(size[0, 0])}x{int(size[0, 1])}: the principal point lies at {centre[0]:.0%} of the width and "
            f"{centre[1]:.0%} of the height. Scale K to the size of the images (Cameras.scaled)"
        )
    if not 1 / _FOCAL_RATIO < focal_ratio < _FOCAL_RATIO:
        return (
            f"the given focal length is {focal_ratio:.2g} times what the images suggest; check that K is in pixels of "
            "images of this size"
        )
    return None


def check_against_prediction(
    model: DA3Model,
    prediction: ScenePrediction,
    images: Sequence[ImageLike],
    report: Report,
    *,
    camera_source: str,
    reference_view: str,
    seed: int,
) -> None:
    """`check_poses` of given cameras against a second prediction of the same pictures, into the report.

    With ``camera_source == "matches"`` a few views are asked, from larger pictures, and those that nothing ties to the
    others have no say.

    Args:
        prediction: With the given cameras in force.
        images: What its views were made from, not turned by EXIF.
    """
    asked = list(range(len(images)))
    pictures = prediction.views.images
    if camera_source == "matches":
        asked = evenly_spread(len(images), _WITNESSES)
        larger = min(_WITNESS_PX, int(prediction.views.original_size.max()))
        pictures = prepare_views([images[view] for view in asked], size_px=larger, exif_orientation=False).images
    witness = model.predict(
        pictures,
        None,
        size_px=max(prediction.views.size),
        camera_source=camera_source,
        reference_view=reference_view,
        gaussians=False,
        seed=seed,
    )
    predicted = witness.cameras
    if camera_source == "matches":
        tied = [] if witness.matched is None else witness.matched.sure.nonzero()[:, 0].tolist()
        if not tied:
            report.content["poses"]["not_checked"] = "the pictures have too little in common to tell cameras by"
            return
        # Rounded to patches from another size, a side may come out by one patch longer or shorter.
        width, height = prediction.views.size
        predicted, asked = predicted[tied].scaled(width=width, height=height), [asked[view] for view in tied]
    found = check_poses(predicted, prediction.cameras[asked])
    report.content["poses"]["check_without_poses"] = found.to_dict()
    for warning in found.warnings:
        report.warn(warning)
