"""Coloured points as .ply: x y z (float32), red green blue (uint8). `plyfile` reads and writes the container."""

import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from da3gs.atomic import atomic_path
from da3gs.errors import FormatError, InputError


def write_points(
    path: str | os.PathLike, points: Float[Tensor, "N 3"], colors: UInt8[np.ndarray, "N 3"], *, comments: tuple = ()
) -> None:
    """Write points, whole or not at all; `read_points` gives their places back exactly."""
    from plyfile import PlyData, PlyElement

    if len(points) != len(colors):
        raise InputError(f"expected one colour per point ({len(points)}); got {len(colors)}")
    columns = [(axis, "<f4") for axis in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")]
    rows = np.empty(len(points), columns)
    for place, axis in enumerate("xyz"):
        rows[axis] = points[:, place].detach().cpu().numpy()
    for place, name in enumerate(("red", "green", "blue")):
        rows[name] = colors[:, place]
    with atomic_path(path) as temporary:
        PlyData([PlyElement.describe(rows, "vertex")], byte_order="<", comments=list(comments)).write(str(temporary))


def read_points(path: str | os.PathLike) -> Float[Tensor, "N 3"]:
    """The finite vertices of a .ply file.

    Raises:
        InputError: No such file.
        FormatError: Damaged, or without points.
    """
    from plyfile import PlyData, PlyParseError

    path = Path(path)
    if not path.is_file():
        raise InputError(f"the file of points {path} does not exist")
    try:
        vertices = PlyData.read(str(path))["vertex"]
        points = np.stack([np.asarray(vertices[axis], np.float32) for axis in "xyz"], 1)
    except (PlyParseError, KeyError, ValueError) as error:
        raise FormatError(f"{path}: not a .ply file with vertices x, y, z ({error})") from error
    points = points[np.isfinite(points).all(1)]
    if len(points) == 0:
        raise FormatError(f"{path} holds no points")
    return torch.from_numpy(points)
