"""Small files of Gaussians: PlayCanvas' ``.compressed.ply`` and Niantic's ``.spz``. `gsply` packs and unpacks them.

    .compressed.ply   16 bytes a splat (25 to 61 with SH): positions within blocks of 256 splats, quaternions of 10 bits
    .spz              about 8 bytes a splat at degree 0: positions of 24 bits, everything else of 8, zipped (version 3)

Both quantise. Splats are written along a space-filling curve, so that blocks are small and neighbours zip well. A .spz
stands in a frame of its own (right, up, back), turned into and out of here; a .compressed.ply keeps the frame.
"""

import gzip
import io
import logging
import math
import os
import zlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from da3gs.atomic import atomic_path
from da3gs.errors import FormatError, InputError, MissingDependencyError
from da3gs.export.gaussian_files import DEFAULT_FRAME, file_bytes
from da3gs.export.ply import ANTIALIASED_COMMENT
from da3gs.fusion.budget import morton_codes
from da3gs.gaussians import Gaussians
from da3gs.geometry.conventions import OPENCV_FROM_OPENGL
from da3gs.geometry.similarity import Similarity

logger = logging.getLogger(__name__)

_MIN_OPACITY = 1e-6
# What eight bits of ln(scale) reach in a .spz: exp(-10) to exp(255 / 16 - 10), in the unit of the scene.
_SPZ_SCALES = (math.exp(-10), math.exp(255 / 16 - 10))
_SPZ_POSITION_BITS = 23
_SPZ_FRACTION = (1, 18)  # fewest and most bits behind the point
_SPZ_FLAGS, _SPZ_ANTIALIASED = 14, 0x1  # byte of the header, and its bit
_NOT_PACKED = 0.01
_GZIP = b"\x1f\x8b"


def write_compressed_ply(
    gaussians: Gaussians,
    path: str | os.PathLike,
    *,
    sh_degree: int | None = None,
    antialiased: bool = False,
    frame: str = DEFAULT_FRAME,
    comments: Sequence[str] = (),
) -> None:
    """Write a ``.compressed.ply``, whole or not at all. The format has no place for the other arguments.

    Raises:
        InputError: Values that are not finite, no splats, a degree above 3, or a path that cannot be written.
    """
    gsply = _gsply()
    data = _packed(gsply, _prepared(gaussians, sh_degree, ".compressed.ply"))
    with atomic_path(path) as temporary:
        temporary.write_bytes(gsply.compress_to_bytes(data))


def read_compressed_ply(path: str | os.PathLike) -> Gaussians:
    """Read a ``.compressed.ply``.

    Raises:
        InputError: The file cannot be opened.
        FormatError: Damaged, or another kind of .ply.
    """
    gsply, content = _gsply(), file_bytes(path)
    try:
        return _unpacked(gsply.decompress_from_bytes(content))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise FormatError(f"{path}: not a .compressed.ply, or damaged ({error})") from error


def write_spz(
    gaussians: Gaussians,
    path: str | os.PathLike,
    *,
    sh_degree: int | None = None,
    antialiased: bool = False,
    frame: str = DEFAULT_FRAME,
    comments: Sequence[str] = (),
) -> None:
    """Write a ``.spz`` of version 3, whole or not at all: Gaussians of OpenCV axes turned into its own.

    The bits behind the point follow the extent of the scene, up to 18 (steps of 4e-6 units within 32 units); others
    write 12 always.

    Raises:
        InputError: As `write_compressed_ply`; positions beyond 4 million units.
    """
    gsply = _gsply()
    gaussians = _prepared(gaussians, sh_degree, ".spz")
    outside = (gaussians.scales < _SPZ_SCALES[0]) | (gaussians.scales > _SPZ_SCALES[1])
    share = float(outside.any(1).float().mean())
    if share > _NOT_PACKED:
        logger.warning(
            "%s: %.0f %% of the splats are smaller than %.2g or larger than %.0f units, which .spz cannot hold; scale "
            "the scene (--transform)",
            path,
            100 * share,
            *_SPZ_SCALES,
        )
    turned = gaussians.transform(_spz_frame())
    fewest, most = _SPZ_FRACTION
    bits = math.floor(_SPZ_POSITION_BITS - math.log2(float(turned.means.abs().max()) + 1e-6))
    if bits < fewest:
        raise InputError(f"{path}: positions reach {float(turned.means.abs().max()):.3g} units; .spz holds 4e6")
    with atomic_path(path) as temporary:
        gsply.write_spz(temporary, _packed(gsply, turned), version=3, fractional_bits=min(bits, most))
        if antialiased:
            content = bytearray(gzip.decompress(temporary.read_bytes()))
            content[_SPZ_FLAGS] |= _SPZ_ANTIALIASED
            temporary.write_bytes(gzip.compress(content))


def read_spz(path: str | os.PathLike) -> Gaussians:
    """Read a ``.spz`` of version 1 to 3 (4 with the package ``zstandard``), turned into OpenCV axes.

    Raises:
        InputError: The file cannot be opened.
        FormatError: Damaged, or of another kind.
    """
    gsply = _gsply()
    file_bytes(path)
    try:
        data = gsply.read_spz(path)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise FormatError(f"{path}: not a .spz, or damaged ({error})") from error
    return _unpacked(data).transform(_spz_frame())


def spz_comments(path: str | os.PathLike) -> tuple[str, ...]:
    """What the header says, in the words of a .ply: whether the splats are for antialiased rendering."""
    content = file_bytes(path)
    if content[:2] == _GZIP:
        try:
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(_SPZ_FLAGS + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise FormatError(f"{path}: not a .spz, or damaged ({error})") from error
    marked = len(content) > _SPZ_FLAGS and content[_SPZ_FLAGS] & _SPZ_ANTIALIASED
    return (ANTIALIASED_COMMENT,) if marked else ()


# ------------------------------------------------------------------------------------------------ parts


def _gsply() -> ModuleType:
    try:
        import gsply
    except ImportError as error:
        raise MissingDependencyError(
            "compressed files of Gaussians need the package gsply: pip install 'gsply>=0.4.6'"
        ) from error
    if not hasattr(gsply, "write_spz"):
        raise MissingDependencyError(f"gsply {gsply.__version__} is too old: pip install 'gsply>=0.4.6'")
    return gsply


def _spz_frame() -> Similarity:
    """Between OpenCV axes (right, down, forward) and those of .spz (right, up, back): its own inverse."""
    return Similarity(1.0, OPENCV_FROM_OPENGL[:3, :3].float(), torch.zeros(3))


def _prepared(gaussians: Gaussians, sh_degree: int | None, suffix: str) -> Gaussians:
    degree = gaussians.sh_degree if sh_degree is None else sh_degree
    if degree not in (0, 1, 2, 3):
        raise InputError(f"the SH degree of a {suffix} must be 0, 1, 2 or 3; got {degree}")
    if len(gaussians) == 0:
        raise InputError(f"a {suffix} needs at least one Gaussian; write an empty scene as .ply")
    gaussians = gaussians.detach().to("cpu").validate().with_sh_degree(degree)
    return gaussians[morton_codes(gaussians.means).argsort()]


def _packed(gsply: ModuleType, gaussians: Gaussians) -> Any:
    opacities = gaussians.opacities.double().clamp(_MIN_OPACITY, 1 - _MIN_OPACITY)
    quats = torch.nn.functional.normalize(gaussians.quats, dim=1)
    rest = gaussians.sh[:, 1:].contiguous().float().numpy() if gaussians.sh_degree else None
    return gsply.GSData.from_arrays(
        means=gaussians.means.contiguous().float().numpy(),
        scales=gaussians.scales.double().log().float().numpy(),
        quats=quats.contiguous().float().numpy(),
        opacities=(opacities / (1 - opacities)).log().float().numpy(),
        sh0=gaussians.sh[:, 0].contiguous().float().numpy(),
        shN=rest,
        format="ply",
    )


def _unpacked(data: Any) -> Gaussians:
    rest = data.shN
    if rest is None or np.asarray(rest).size == 0:
        rest = np.zeros((len(data.means), 0, 3), np.float32)
    sh = np.concatenate([np.asarray(data.sh0)[:, None], np.asarray(rest).reshape(len(data.means), -1, 3)], 1)

    def tensor(values) -> torch.Tensor:
        return torch.from_numpy(np.array(values, np.float32))

    return Gaussians(
        tensor(data.means),
        torch.nn.functional.normalize(tensor(data.quats), dim=1),
        tensor(data.scales).exp(),
        tensor(data.opacities).reshape(-1).sigmoid(),
        tensor(sh),
    ).validate()
