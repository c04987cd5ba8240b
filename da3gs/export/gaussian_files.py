"""One door to every file format of Gaussians: the suffix of the name chooses reader and writer."""

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from da3gs.errors import InputError
from da3gs.gaussians import Gaussians

DEFAULT_FRAME = "x right, y down, z forward (OpenCV, COLMAP)"


@dataclass(frozen=True)
class GaussianFormat:
    """Where a format lives; the module is imported on first use.

    Attributes:
        module: Module of reader and writer.
        reader: Name of `reader(path) -> Gaussians`.
        writer: Name of `writer(gaussians, path, *, sh_degree, antialiased, frame, comments)`.
        comments: Name of `comments(path) -> tuple of lines`, for formats whose header has room for them.
    """

    module: str
    reader: str
    writer: str
    comments: str | None = None

    def function(self, name: str) -> Callable:
        return getattr(importlib.import_module(self.module), name)


FORMATS: dict[str, GaussianFormat] = {
    ".ply": GaussianFormat("da3gs.export.ply", "read_ply", "write_ply", comments="read_comments"),
    ".compressed.ply": GaussianFormat("da3gs.export.compact", "read_compressed_ply", "write_compressed_ply"),
    ".spz": GaussianFormat("da3gs.export.compact", "read_spz", "write_spz", comments="spz_comments"),
    ".splat": GaussianFormat("da3gs.export.splat", "read_splat", "write_splat"),
}

# Double suffixes name formats of their own: x.compressed.ply is no 3DGS .ply.
_DOUBLE_SUFFIXES = (".compressed.ply",)


def save_gaussians(
    gaussians: Gaussians,
    path: str | os.PathLike,
    *,
    sh_degree: int | None = None,
    antialiased: bool = False,
    frame: str = DEFAULT_FRAME,
    comments: Sequence[str] = (),
) -> None:
    """Write Gaussians to `path`, in the format its suffix names. The file appears complete or not at all.

    Args:
        gaussians: World frame, activated values; the frame is kept, formats with a frame of their own convert.
        path: Output file; an existing one is replaced.
        sh_degree: SH degree of the file (lower drops colour detail, higher pads with zeros). None keeps the degree.
        antialiased: Mark the file as made for antialiased rendering, where the format can say so.
        frame: Axes of the Gaussians' world frame, recorded where the format has room for text; it converts nothing.
        comments: Lines for the header, where the format has room for them.

    Raises:
        InputError: Unknown suffix, values the format cannot hold, or a path that cannot be written.
    """
    chosen = gaussian_format(path)
    write = chosen.function(chosen.writer)
    write(gaussians, path, sh_degree=sh_degree, antialiased=antialiased, frame=frame, comments=tuple(comments))


def load_gaussians(path: str | os.PathLike) -> Gaussians:
    """Read Gaussians from `path`, in the format its suffix names: float32, on the CPU, in the file's frame and units.

    Raises:
        InputError: Unknown suffix, or a file that cannot be opened.
        FormatError: Damaged content.
    """
    chosen = gaussian_format(path)
    return chosen.function(chosen.reader)(path)


def file_comments(path: str | os.PathLike) -> tuple[str, ...]:
    """The comment lines in the header of a file; none for formats that hold none. Errors as `load_gaussians`."""
    chosen = gaussian_format(path)
    return () if chosen.comments is None else chosen.function(chosen.comments)(path)


def gaussian_format(path: str | os.PathLike) -> GaussianFormat:
    """The format of a file name; InputError that lists the known suffixes if there is none."""
    suffix = suffix_of(path)
    if suffix not in FORMATS:
        shown = f"'{suffix}'" if suffix else "a name without suffix"
        raise InputError(f"{path}: {shown} is no known format of Gaussians; known suffixes: {', '.join(FORMATS)}")
    return FORMATS[suffix]


def file_bytes(path: str | os.PathLike) -> bytes:
    """The whole of a file; InputError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the file: {error.strerror or error}") from error


def suffix_of(path: str | os.PathLike) -> str:
    """The lower-case suffix that names the format, ".compressed.ply" included."""
    name = Path(path).name.lower()
    for suffix in _DOUBLE_SUFFIXES:
        if name.endswith(suffix):
            return suffix
    return Path(name).suffix
