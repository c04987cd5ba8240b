"""Gaussians as a .splat (antimatter15): 32 bytes a splat and no header, for viewers in the browser.

::

    float32 x y z,  float32 standard deviations,  uint8 r g b opacity,  uint8 quaternion w x y z (q * 128 + 128)

Colour is that of SH degree 0; the rest is left out. The largest and most opaque splats come first, so that a viewer
shows something while it loads.
"""

import logging
import os
from collections.abc import Sequence

import numpy as np
import torch

from da3gs.atomic import atomic_path
from da3gs.errors import FormatError, InputError
from da3gs.export.gaussian_files import DEFAULT_FRAME, file_bytes
from da3gs.gaussians import Gaussians
from da3gs.geometry.spherical_harmonics import dc_from_rgb, rgb_from_dc

logger = logging.getLogger(__name__)

_ROW = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])


def write_splat(
    gaussians: Gaussians,
    path: str | os.PathLike,
    *,
    sh_degree: int | None = None,
    antialiased: bool = False,
    frame: str = DEFAULT_FRAME,
    comments: Sequence[str] = (),
) -> None:
    """Write a ``.splat``, whole or not at all. The format has no place for the other arguments.

    Raises:
        InputError: Values that are not finite, a degree other than 0, or a path that cannot be written.
    """
    if sh_degree not in (None, 0):
        raise InputError(f"a .splat holds colours of SH degree 0 alone; got degree {sh_degree}")
    if gaussians.sh_degree > 0:
        logger.warning("%s: colour that depends on the direction of view is left out", path)
    gaussians = gaussians.detach().to("cpu").validate()
    weight = gaussians.scales.double().prod(1).pow(1 / 3) * gaussians.opacities
    gaussians = gaussians[weight.argsort(descending=True)]
    rows = np.empty(len(gaussians), _ROW)
    rows["means"], rows["scales"] = gaussians.means.float().numpy(), gaussians.scales.float().numpy()
    rows["rgba"][:, :3] = _levels(rgb_from_dc(gaussians.sh[:, 0]))
    rows["rgba"][:, 3] = _levels(gaussians.opacities)
    quats = torch.nn.functional.normalize(gaussians.quats, dim=1)
    rows["quats"] = (quats * 128 + 128).round().clamp(0, 255).byte().numpy()
    with atomic_path(path) as temporary:
        temporary.write_bytes(rows.tobytes())


def read_splat(path: str | os.PathLike) -> Gaussians:
    """Read a ``.splat``.

    Raises:
        InputError: The file cannot be opened.
        FormatError: Not a whole number of splats, or values no splat has.
    """
    content = file_bytes(path)
    if len(content) % _ROW.itemsize:
        raise FormatError(
            f"{path}: {len(content)} bytes are no whole number of splats of {_ROW.itemsize}; truncated, or no .splat"
        )
    rows = np.frombuffer(content, _ROW)
    levels = torch.from_numpy(rows["rgba"].astype(np.float32) / 255)
    quats = torch.from_numpy(rows["quats"].astype(np.float32) - 128)
    quats = torch.where(quats.norm(dim=1, keepdim=True) > 0, quats, quats.new_tensor([1.0, 0, 0, 0]))
    try:
        return Gaussians(
            torch.from_numpy(rows["means"].copy()),
            torch.nn.functional.normalize(quats, dim=1),
            torch.from_numpy(rows["scales"].copy()),
            levels[:, 3],
            dc_from_rgb(levels[:, :3])[:, None],
        ).validate()
    except InputError as error:
        raise FormatError(f"{path}: not a .splat, or damaged ({error})") from error


def _levels(values: torch.Tensor) -> np.ndarray:
    return (values.float() * 255).round().clamp(0, 255).byte().numpy()
