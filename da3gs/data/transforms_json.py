"""Read and write ``transforms.json``: the format of nerfstudio, instant-ngp and Blender's NeRF data sets.

Poses in the file are camera-to-world with OpenGL axes (x right, y up, z backward); intrinsics are pixels of an image of
size ``w`` x ``h`` with pixel centres at + 0.5, as COLMAP and nerfstudio hold them. In memory everything is OpenCV.
"""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from da3gs.atomic import atomic_path
from da3gs.data.json_object import read_json_object
from da3gs.data.lens import Lens
from da3gs.data.photo_files import QUARTER_TURNS, exif_orientation
from da3gs.data.posed_images import Photo, PosedImages
from da3gs.errors import FormatError, InputError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import nearest_rotation
from da3gs.images import IMAGE_SUFFIXES, image_size

log = logging.getLogger(__name__)

Missing = Literal["error", "skip", "cameras"]

_PERSPECTIVE_MODELS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
_FISHEYE_MODELS = ("OPENCV_FISHEYE", "FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
_SPLITS = ("train", "val", "test")
# Rotations that differ from an orthonormal matrix by less are rounded, by more are wrong (a scale, a shear).
_ROTATION_TOLERANCE = 1e-2
# Integer sizes of downscaled images bend the aspect ratio a little; a turned or cropped image bends it more.
_ASPECT_TOLERANCE = 0.02


def read_transforms_json(path: str | os.PathLike, *, missing: Missing = "error") -> PosedImages:
    """Photographs and cameras of a ``transforms.json``.

    Per-frame intrinsics win over those of the file. Without ``fl_x`` the focal length comes from ``camera_angle_x``,
    without ``cx``, ``cy`` the principal point is the centre. Images smaller or larger than ``w`` x ``h`` (downscaled
    copies) scale K by their size. Distortion (``k1``.. ``k6``, ``p1``, ``p2``; fisheye ``k1``.. ``k4``) is undone when
    an image is loaded. Splits come from ``split.json`` beside the file, else from ``train_filenames``,
    ``val_filenames``, ``test_filenames``, else every view is "train". ``applied_transform`` and ``applied_scale`` are
    recorded, not undone.

    Args:
        path: The file, or the folder that holds ``transforms.json`` (or Blender's ``transforms_train.json`` etc., which
            are read together as splits).
        missing: What to do about images that do not exist: "error" names them, "skip" leaves their views out,
            "cameras" asks for cameras alone (their sizes are then ``w`` x ``h``). Depth is looked for when it is read.

    Raises:
        InputError: The file or its images do not exist.
        FormatError: Not the format described; names file and frame.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "transforms.json").is_file():
            path = path / "transforms.json"
        else:
            parts = {name: path / f"transforms_{name}.json" for name in _SPLITS}
            parts = {name: part for name, part in parts.items() if part.is_file()}
            if not parts:
                raise InputError(f"no transforms.json (or transforms_train.json) in folder {path}")
            return _join({name: _read_file(part, missing) for name, part in parts.items()})
    return _read_file(path, missing)


def write_transforms_json(
    path: str | os.PathLike,
    cameras: Cameras,
    image_paths: Sequence[str | os.PathLike],
    *,
    depth_paths: Sequence[str | os.PathLike] | None = None,
    depth_unit_scale_factor: float | int | None = None,
    splits: Mapping[str, Sequence[int]] | None = None,
    applied_transform: Float[np.ndarray, "4 4"] | None = None,
    applied_scale: float | int = 1.0,
) -> None:
    """Write pinhole cameras and image names; the inverse of `read_transforms_json`. Written whole or not at all.

    Args:
        path: The JSON file. Absolute image and depth paths are stored relative to its folder.
        cameras: Posed, at the size of the image files. `Cameras.distortion` is not written: the images are undistorted.
        image_paths: One per camera; need not exist yet. Relative ones are taken to start at the folder of the file.
        depth_paths: One per camera, likewise.
        depth_unit_scale_factor: Factor from stored depth values to world units.
        splits: Split name -> indices of views.
        applied_transform, applied_scale: Passed on as `PosedImages` holds them.

    Raises:
        InputError: Counts that differ, cameras without poses or with skew (the format has no place for it).
    """
    path = Path(path)
    if len(image_paths) != len(cameras) or (depth_paths is not None and len(depth_paths) != len(cameras)):
        raise InputError(f"expected one image (and depth) path per camera ({len(cameras)}); got {len(image_paths)}")
    cameras = cameras.to("cpu", torch.float64)
    if cameras.K[:, 0, 1].any():
        raise InputError("transforms.json cannot hold skewed intrinsics (K[0, 1] != 0)")
    names = [_relative(image, path.parent) for image in image_paths]
    intrinsics = [
        {"w": int(w), "h": int(h), "fl_x": K[0][0], "fl_y": K[1][1], "cx": K[0][2], "cy": K[1][2]}
        for K, w, h in zip(cameras.K.tolist(), cameras.width, cameras.height, strict=True)
    ]
    shared = all(values == intrinsics[0] for values in intrinsics)
    content: dict[str, Any] = {"camera_model": "OPENCV", **(intrinsics[0] if shared else {})}
    content |= {"k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0}
    if depth_unit_scale_factor is not None:
        content["depth_unit_scale_factor"] = float(depth_unit_scale_factor)
    if applied_transform is not None:
        content |= {"applied_transform": applied_transform[:3].tolist(), "applied_scale": float(applied_scale)}
    for split, indices in (splits or {}).items():
        content[f"{split}_filenames"] = [names[index] for index in indices]
    content["frames"] = []
    for view, matrix in enumerate(cameras.to_opengl().tolist()):
        frame = {"file_path": names[view], "transform_matrix": matrix, **({} if shared else intrinsics[view])}
        if depth_paths is not None:
            frame["depth_file_path"] = _relative(depth_paths[view], path.parent)
        content["frames"].append(frame)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Fields:
    """Numbers of one frame, which fall back to those of the file; `where` names the place in messages."""

    frame: Mapping[str, Any]
    top: Mapping[str, Any]
    where: str

    def number(self, name: str) -> float | None:
        value = self.frame.get(name, self.top.get(name))
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise FormatError(f"{self.where}: {name} must be a finite number; got {value!r}")
        return float(value)

    def text(self, name: str) -> str | None:
        value = self.frame.get(name, self.top.get(name))
        if value is not None and not isinstance(value, str):
            raise FormatError(f"{self.where}: {name} must be a string; got {value!r}")
        return value


def _read_file(path: Path, missing: Missing) -> PosedImages:
    content = read_json_object(path)
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise FormatError(f"{path}: expected a non-empty list 'frames' of objects; is this a transforms.json?")

    names, found, absent = [], [], []
    for index, frame in enumerate(frames):
        name = frame.get("file_path")
        if not isinstance(name, str) or not name:
            raise FormatError(f"{path}, frame {index}: 'file_path' must be the path of an image; got {name!r}")
        image = _find_file(path.parent, name)
        names.append(name)
        if image is None:
            absent.append(name)
            image = path.parent / name if missing == "cameras" else None
        found.append(image)
    if absent and missing != "cameras" and (missing == "error" or len(absent) == len(frames)):
        listed = ", ".join(absent[:4]) + (f" and {len(absent) - 4} more" if len(absent) > 4 else "")
        hint = "" if len(absent) == len(frames) else " (or leave these views out: missing='skip')"
        raise InputError(
            f"{path}: {len(absent)} of {len(frames)} images do not exist: {listed}; put them beside the file{hint}"
        )
    if absent and missing == "skip":
        log.warning("%s: leaving out %d of %d views whose image does not exist", path, len(absent), len(frames))

    photos, K, poses, sizes = [], [], [], []
    lenses: dict[tuple, Lens] = {}
    flat: dict[Lens, np.ndarray] = {}
    keep = [index for index, image in enumerate(found) if image is not None]
    for index in keep:
        fields = _Fields(frames[index], content, f"{path}, frame {index} ({names[index]})")
        poses.append(_pose(fields))
        (width, height), upright = _oriented_size(found[index], fields)
        lens = _lens(fields, width, height, lenses)
        distorted = bool(lens.coefficients.any()) or lens.model == "fisheye"
        if lens not in flat:
            flat[lens] = lens.pinhole_K() if distorted else lens.K
        K.append(flat[lens])
        sizes.append((width, height))
        depth_name = fields.frame.get("depth_file_path", fields.frame.get("depth_path"))
        depth = None if depth_name is None else path.parent / str(depth_name).replace("\\", "/")
        photos.append(Photo(found[index], names[index], lens if distorted else None, upright, depth))

    cameras = _cameras(np.stack(poses), np.stack(K), sizes, path)
    shift, scale = _applied(content, path)
    position = {old: new for new, old in enumerate(keep)}
    splits = {
        split: tuple(position[i] for i in indices if i in position)
        for split, indices in _splits(path, content, names).items()
    }
    unit = _Fields({}, content, str(path)).number("depth_unit_scale_factor")
    return PosedImages(tuple(photos), cameras, splits, unit, shift, scale)


def _find_file(folder: Path, name: str) -> Path | None:
    """The file as named, or with an image suffix (Blender's sets leave it out)."""
    name = name.replace("\\", "/")
    candidate = folder / name
    if candidate.is_file():
        return candidate
    return next((c for c in (folder / (name + suffix) for suffix in IMAGE_SUFFIXES) if c.is_file()), None)


def _pose(fields: _Fields) -> np.ndarray:
    """[4, 4] float64 world_from_cam with OpenGL axes and an orthonormal rotation."""
    values = fields.frame.get("transform_matrix")
    try:
        matrix = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape not in ((4, 4), (3, 4)):
        raise FormatError(f"{fields.where}: 'transform_matrix' must be 4x4 (or 3x4) numbers; got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise FormatError(f"{fields.where}: 'transform_matrix' holds NaN or infinity")
    rotation = matrix[:3, :3]
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if error > _ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        raise FormatError(
            f"{fields.where}: the 3x3 part of 'transform_matrix' is no rotation (R R^T is off the identity by "
            f"{error:.2g}, determinant {np.linalg.det(rotation):.3g}); remove scale or mirroring"
        )
    pose = np.eye(4)
    pose[:3, :3] = nearest_rotation(torch.from_numpy(rotation)).numpy()
    pose[:3, 3] = matrix[:3, 3]
    return pose


def _oriented_size(image: Path, fields: _Fields) -> tuple[tuple[int, int], bool]:
    """Size of the image the calibration refers to, and whether EXIF must turn it upright for that."""
    w, h = fields.number("w"), fields.number("h")
    if w is None or h is None:
        return image_size(image), False
    if w <= 0 or h <= 0:
        raise FormatError(f"{fields.where}: image size w x h must be positive; got {w:g} x {h:g}")
    if not image.is_file():  # cameras alone
        return (round(w), round(h)), False
    width, height = image_size(image)

    def fits(a: int, b: int) -> bool:
        return abs(a / w / (b / h) - 1) <= _ASPECT_TOLERANCE

    if fits(width, height):
        return (width, height), False
    if fits(height, width) and exif_orientation(image) in QUARTER_TURNS:
        return (height, width), True
    raise FormatError(
        f"{fields.where}: the image is {width}x{height} px but w x h is {w:g}x{h:g}: another aspect ratio; "
        "was it turned or cropped?"
    )


def _lens(fields: _Fields, width: int, height: int, known: dict[tuple, Lens]) -> Lens:
    """Intrinsics and distortion of the stored image, scaled to its size; equal lenses are one object."""
    model = fields.text("camera_model") or ("OPENCV_FISHEYE" if fields.top.get("is_fisheye") else "OPENCV")
    if model not in _PERSPECTIVE_MODELS + _FISHEYE_MODELS:
        raise FormatError(
            f"{fields.where}: camera_model {model} is not supported; expected one of "
            f"{', '.join(_PERSPECTIVE_MODELS + _FISHEYE_MODELS)}"
        )
    w, h = fields.number("w") or float(width), fields.number("h") or float(height)
    fx, fy = _focal(fields, "x", w), _focal(fields, "y", h)
    if fx is None and fy is None:
        raise FormatError(f"{fields.where}: no focal length; expected fl_x or camera_angle_x")
    fx, fy = fx or fy, fy or fx
    cx, cy = fields.number("cx"), fields.number("cy")
    K = np.array([[fx, 0, w / 2 if cx is None else cx], [0, fy, h / 2 if cy is None else cy], [0, 0, 1]])
    K[0] *= width / w
    K[1] *= height / h
    fisheye = model in _FISHEYE_MODELS
    order = ("k1", "k2", "k3", "k4") if fisheye else ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
    coefficients = [fields.number(name) or 0.0 for name in order]
    coefficients += [0.0] * (8 - len(coefficients))
    key = (fisheye, *coefficients, *K.ravel().tolist(), width, height)
    if key not in known:
        kind: Literal["perspective", "fisheye"] = "fisheye" if fisheye else "perspective"
        known[key] = Lens(kind, np.array(coefficients), K, width, height)
    return known[key]


def _focal(fields: _Fields, axis: str, size: float) -> float | None:
    focal = fields.number(f"fl_{axis}")
    angle = fields.number(f"camera_angle_{axis}")
    if focal is None and angle is not None:
        if not 0 < angle < math.pi:
            raise FormatError(f"{fields.where}: camera_angle_{axis} must lie in (0, pi) radians; got {angle:g}")
        focal = size / 2 / math.tan(angle / 2)
    if focal is not None and focal <= 0:
        raise FormatError(f"{fields.where}: the focal length fl_{axis} must be > 0 px; got {focal:g}")
    return focal


def _cameras(poses: np.ndarray, K: np.ndarray, sizes: list[tuple[int, int]], path: Path) -> Cameras:
    width, height = torch.tensor(sizes).T
    centers = poses[:, :3, 3]
    reach, spread = np.abs(centers).max(), np.ptp(centers, axis=0).max()
    if reach > 1e4 * max(spread, 1.0):
        log.warning(
            "%s: the cameras lie %.3g units from the origin and span only %.3g; single precision loses digits: "
            "subtract an offset from the positions first",
            path,
            reach,
            spread,
        )
    return Cameras.from_opengl(torch.from_numpy(poses), torch.from_numpy(K), width, height).to(torch.float32)


def _applied(content: Mapping[str, Any], path: Path) -> tuple[np.ndarray | None, float]:
    scale = _Fields({}, content, str(path)).number("applied_scale")
    values = content.get("applied_transform")
    if values is None:
        return None, 1.0 if scale is None else scale
    try:
        matrix = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape not in ((3, 4), (4, 4)) or not np.isfinite(matrix).all():
        raise FormatError(f"{path}: 'applied_transform' must be 3x4 or 4x4 finite numbers; got shape {matrix.shape}")
    full = np.eye(4)
    full[:3] = matrix[:3]
    return full, 1.0 if scale is None else scale


def _splits(path: Path, content: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Indices into `names` per split."""
    beside = path.parent / "split.json"
    if beside.is_file():
        listed, source = read_json_object(beside), str(beside)
    else:
        listed = {name: content[f"{name}_filenames"] for name in _SPLITS if f"{name}_filenames" in content}
        source = str(path)
    if not listed:
        return {"train": tuple(range(len(names)))}
    position = {_plain(name): index for index, name in enumerate(names)}
    splits = {}
    for split, members in listed.items():
        if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise FormatError(f"{source}: split {split!r} must be a list of file names")
        unknown = [member for member in members if _plain(member) not in position]
        if unknown:
            raise FormatError(f"{source}: split {split!r} names {unknown[0]}, which no frame of {path.name} has")
        splits[split] = tuple(position[_plain(member)] for member in members)
    return splits


def _plain(name: str) -> str:
    """Names are compared without ``./`` and with forward slashes."""
    return str(PurePosixPath(name.replace("\\", "/")))


def _join(parts: Mapping[str, PosedImages]) -> PosedImages:
    """Blender's one-file-per-split layout as one data set."""
    photos: tuple[Photo, ...] = ()
    splits: dict[str, tuple[int, ...]] = {}
    for name, part in parts.items():
        splits[name] = tuple(range(len(photos), len(photos) + len(part)))
        photos += part.photos
    first = next(iter(parts.values()))
    cameras = Cameras.cat([part.cameras for part in parts.values()])
    unit, shift, scale = first.depth_unit_scale_factor, first.applied_transform, first.applied_scale
    return PosedImages(photos, cameras, splits, unit, shift, scale)


def _relative(file: str | os.PathLike, folder: Path) -> str:
    """`file` as seen from `folder`, with forward slashes; a name that is already relative is kept."""
    file = Path(file)
    return Path(os.path.relpath(file, folder.resolve())).as_posix() if file.is_absolute() else file.as_posix()
