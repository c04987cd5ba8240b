"""``cameras.json``: the package's own camera file, strict and self-describing.

::

    {
      "format": "da3gs-cameras", "version": 1,
      "convention": "opencv",
      "units": "intrinsics in pixels, pixel (0, 0) centred at (0.5, 0.5); cam_from_world in world units",
      "views": [
        {"name": "0001.jpg", "width": 640, "height": 480,
         "K": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]],
         "cam_from_world": [[...], [...], [...], [0, 0, 0, 1]]}
      ]
    }

Camera axes are OpenCV's: x right, y down, z forward. ``cam_from_world`` may be null when only intrinsics are known.
A view may also hold ``photograph``: the size, EXIF turn, lens, resizing and cropping (`da3gs.data.photographs`) that
lead from a photograph to the image of ``width`` x ``height`` the camera describes.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from da3gs.atomic import atomic_path
from da3gs.data.json_object import read_json_object
from da3gs.data.photographs import Photograph, photograph_from_dict, shared_lenses
from da3gs.errors import FormatError, InputError
from da3gs.geometry.cameras import Cameras

_FORMAT, _VERSION, _CONVENTION = "da3gs-cameras", 1, "opencv"
_UNITS = "intrinsics in pixels, pixel (0, 0) centred at (0.5, 0.5); cam_from_world in world units"


def write_cameras_json(
    path: str | os.PathLike,
    cameras: Cameras,
    names: Sequence[str] | None = None,
    photographs: Sequence[Photograph | None] | None = None,
) -> None:
    """Write cameras; `read_cameras_json` gives them back exactly (float32). Written whole or not at all.

    Args:
        path: File to write.
        cameras: With or without poses.
        names: One label per view; default ``view_000`` and so on.
        photographs: Where the image of each view comes from, if known.

    Raises:
        InputError: As many names and photographs as cameras were expected, or the file cannot be written.
    """
    if names is None:
        names = [f"view_{index:03d}" for index in range(len(cameras))]
    if len(names) != len(cameras):
        raise InputError(f"expected one name per camera ({len(cameras)}); got {len(names)}")
    if photographs is not None and len(photographs) != len(cameras):
        raise InputError(f"expected one photograph per camera ({len(cameras)}); got {len(photographs)}")
    poses = [None] * len(cameras) if cameras.cam_from_world is None else cameras.cam_from_world.detach().cpu().tolist()
    views: list[dict[str, Any]] = [
        {"name": str(name), "width": int(width), "height": int(height), "K": K, "cam_from_world": pose}
        for name, width, height, K, pose in zip(
            names, cameras.width, cameras.height, cameras.K.detach().cpu().tolist(), poses, strict=True
        )
    ]
    for view, photograph in zip(views, photographs or [None] * len(views), strict=True):
        if photograph is not None:
            view["photograph"] = photograph.to_dict()
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "convention": _CONVENTION,
        "units": _UNITS,
        "views": views,
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False))


def read_cameras_json(path: str | os.PathLike) -> tuple[Cameras, tuple[str, ...]]:
    """Cameras (float32) and their names.

    Raises:
        InputError: No such file.
        FormatError: Not this format, another convention, matrices of the wrong shape, NaN, singular intrinsics, a pose
            that is not rigid, or poses in some views only. Names the view.
    """
    cameras, names, _ = read_camera_records(path)
    return cameras, names


def read_camera_records(
    path: str | os.PathLike,
) -> tuple[Cameras, tuple[str, ...], tuple[Photograph | None, ...]]:
    """As `read_cameras_json`, and per view where its image comes from (None where the file does not say)."""
    path = Path(path)
    content = read_json_object(path)
    if content.get("format") != _FORMAT:
        raise FormatError(f'{path}: expected "format": "{_FORMAT}"; is this a cameras.json written by da3gs?')
    if content.get("version") != _VERSION:
        raise FormatError(f"{path}: version {content.get('version')!r} is not known; this release reads {_VERSION}")
    if content.get("convention") != _CONVENTION:
        raise FormatError(
            f'{path}: expected "convention": "{_CONVENTION}" (x right, y down, z forward); '
            f"got {content.get('convention')!r}; convert the poses first"
        )
    views = content.get("views")
    if not isinstance(views, list) or not views or not all(isinstance(view, dict) for view in views):
        raise FormatError(f"{path}: expected a non-empty list 'views' of objects")

    parsed = []
    for index, view in enumerate(views):
        name = view.get("name", f"view_{index:03d}")
        where = f"{path}, view {index} ({name})"
        size = [_size(view, key, where) for key in ("width", "height")]
        K = _matrix(view.get("K"), (3, 3), f"{where}: K")
        pose = view.get("cam_from_world")
        pose = None if pose is None else _matrix(pose, (4, 4), f"{where}: cam_from_world")
        try:
            camera = Cameras(None if pose is None else pose[None], K[None], *size)
        except InputError as error:
            raise FormatError(f"{where}: {str(error).replace(' of view 0', '')}") from error
        record = view.get("photograph")
        parsed.append((str(name), camera, None if record is None else photograph_from_dict(record, where)))
    posed = {camera.cam_from_world is not None for _, camera, _ in parsed}
    if len(posed) > 1:
        raise FormatError(f"{path}: some views have cam_from_world and some have none; give all or none")
    names, cameras, photographs = zip(*parsed, strict=True)
    return Cameras.cat(cameras), names, shared_lenses(photographs)


def _size(view: dict[str, Any], key: str, where: str) -> int:
    value = view.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FormatError(f"{where}: {key} must be a whole number of pixels >= 1; got {value!r}")
    return value


def _matrix(values: Any, shape: tuple[int, int], where: str) -> torch.Tensor:
    try:
        matrix = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{where} must be a {shape[0]}x{shape[1]} matrix of numbers; got {values!r:.60}") from error
    if matrix.shape != shape:
        raise FormatError(f"{where} must be {shape[0]}x{shape[1]} numbers; got shape {list(matrix.shape)}")
    if not np.isfinite(matrix).all():
        raise FormatError(f"{where} holds NaN or infinity")
    return torch.from_numpy(matrix).float()
