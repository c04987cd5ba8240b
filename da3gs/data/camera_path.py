"""Camera paths drawn in the nerfstudio viewer (``camera_path.json``)."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from da3gs.data.json_object import read_json_object
from da3gs.errors import FormatError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import nearest_rotation
from da3gs.geometry.similarity import Similarity

_ROTATION_TOLERANCE = 1e-2


@dataclass(frozen=True, eq=False)
class CameraPath:
    """Cameras of a clip.

    Attributes:
        cameras: One per frame, OpenCV convention.
        fps: Frames per second.
        seconds: Length of the clip, as the file says (frames / fps when it does not).
        is_closed: Whether the path was drawn as a loop.
    """

    cameras: Cameras
    fps: float
    seconds: float
    is_closed: bool


def read_camera_path(path: str | os.PathLike, *, dataparser_transforms: str | os.PathLike | None = None) -> CameraPath:
    """Read a camera path: camera-to-world matrices with OpenGL axes, vertical field of view in degrees, render size.

    nerfstudio draws paths in its own normalised world, x_ns = s (R x + t). `dataparser_transforms` (the run's
    ``dataparser_transforms.json``) brings them back to the frame and unit of the data; leave it out when the splats are
    in nerfstudio's frame too.

    Raises:
        InputError: A file does not exist.
        FormatError: Not such a file; panoramas and orthographic cameras; poses that are not rigid.
    """
    path = Path(path)
    content = read_json_object(path)
    frames = content.get("camera_path")
    if not isinstance(frames, list) or not frames:
        raise FormatError(
            f"{path}: expected a non-empty list 'camera_path'; export the path from the nerfstudio viewer"
        )
    kind = content.get("camera_type", "perspective")
    if kind != "perspective":
        raise FormatError(f"{path}: camera_type {kind} is not supported; only perspective cameras can be rendered")
    width, height = (_positive(content, f"render_{side}", path) for side in ("width", "height"))
    if width != int(width) or height != int(height):
        raise FormatError(f"{path}: render size must be whole pixels; got {width:g}x{height:g}")

    poses, K = np.empty((len(frames), 4, 4)), np.zeros((len(frames), 3, 3))
    for index, frame in enumerate(frames):
        where = f"{path}, camera {index}"
        if not isinstance(frame, dict):
            raise FormatError(f"{where}: expected an object with camera_to_world and fov")
        poses[index] = _pose(frame.get("camera_to_world"), where)
        fov_deg = _positive(frame, "fov", where)
        if fov_deg >= 180:
            raise FormatError(f"{where}: fov must be < 180 degrees; got {fov_deg:g}")
        focal = height / 2 / math.tan(math.radians(fov_deg) / 2)
        K[index] = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    cameras = Cameras.from_opengl(torch.from_numpy(poses), torch.from_numpy(K), int(width), int(height))
    if dataparser_transforms is not None:
        cameras = cameras.transform(_normalisation(Path(dataparser_transforms)).inverse())
    fps = _positive(content, "fps", path) if "fps" in content else 24.0
    seconds = _positive(content, "seconds", path) if "seconds" in content else len(frames) / fps
    return CameraPath(cameras.to(torch.float32), fps, seconds, bool(content.get("is_cycle", False)))


def _positive(values: dict[str, Any], name: str, where: Path | str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise FormatError(f"{where}: {name} must be a number > 0; got {value!r}")
    return float(value)


def _numbers(values: Any, where: str) -> np.ndarray:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if not np.isfinite(array).all():
        raise FormatError(f"{where} holds NaN or infinity")
    return array


def _pose(values: Any, where: str) -> np.ndarray:
    """[4, 4] world_from_cam, OpenGL axes, from 16 numbers in row order or a 4x4 (3x4) list."""
    matrix = _numbers(values, f"{where}: camera_to_world")
    if matrix.shape not in ((16,), (4, 4), (3, 4)):
        raise FormatError(f"{where}: camera_to_world must be 16 numbers, row by row; got shape {list(matrix.shape)}")
    pose = np.eye(4)
    pose[:3] = matrix.reshape(-1, 4)[:3]
    rotation = pose[:3, :3]
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if error > _ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        raise FormatError(f"{where}: camera_to_world is no rigid transform (R R^T is off the identity by {error:.2g})")
    pose[:3, :3] = nearest_rotation(torch.from_numpy(rotation)).numpy()
    return pose


def _normalisation(path: Path) -> Similarity:
    """nerfstudio's normalised world from the world of the data: x_ns = scale * (R x + t)."""
    content = read_json_object(path)
    scale = _positive(content, "scale", path)
    matrix = _numbers(content.get("transform"), f"{path}: transform")
    if matrix.shape != (3, 4):
        raise FormatError(f"{path}: transform must be 3x4; got shape {list(matrix.shape)}")
    return Similarity(scale, torch.from_numpy(matrix[:, :3].copy()), torch.from_numpy(scale * matrix[:, 3]))
