"""Find and read photographs as RGB uint8. Knows nothing of networks or cameras."""

import logging
import os
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from da3gs.errors import FormatError, InputError

log = logging.getLogger(__name__)

T = TypeVar("T")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".gif")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
# Read by phones' own software; Pillow needs a plug-in for them.
_UNSUPPORTED_SUFFIXES = (".heic", ".heif", ".avif", ".dng", ".cr2", ".nef", ".arw", ".exr")

_EXIF_IFD = 0x8769
_FOCAL_LENGTH_35MM = 0xA405
# Diagonal of the 36 x 24 mm frame: CIPA DCG-001 defines the 35 mm equivalent by equal diagonal angle of view.
_FULL_FRAME_DIAGONAL_MM = (36.0**2 + 24.0**2) ** 0.5


def natural_key(path: str | os.PathLike) -> list:
    """Sort key that orders ``img2`` before ``img10``."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"([0-9]+)", str(path))]


def find_images(source: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """Image files of a folder, a glob pattern, one file, or a list of files.

    Args:
        source: A folder (not searched recursively; its ``images/`` subfolder is taken when it holds none itself), a
            pattern with ``*``, ``?`` or ``[]`` (``**`` searches recursively), one file, or a list whose order is kept.

    Returns:
        Paths in natural order (``2.jpg`` before ``10.jpg``); hidden files (``._1.jpg``) are left out.

    Raises:
        InputError: Nothing is there, or nothing there is an image.
    """
    if not isinstance(source, str | os.PathLike):
        paths = [Path(item) for item in source]
        if not paths:
            raise InputError("the list of images is empty; give at least one image file")
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise InputError(f"{_listed(missing)} not found (of {len(paths)} listed images)")
        return paths

    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = _images_in(path)
        if not found and (path / "images").is_dir():
            found = _images_in(path / "images")
            log.info("no images in %s itself; taking %s", path, path / "images")
        unreadable = [item for item in sorted(path.iterdir()) if item.suffix.lower() in _UNSUPPORTED_SUFFIXES]
        kinds = ", ".join(sorted({item.suffix.lower() for item in unreadable}))
        if not found:
            hint = f"; it holds {kinds} files, convert them to JPEG or PNG first" if unreadable else ""
            raise InputError(f"no images in folder {path} (looked for {' '.join(IMAGE_SUFFIXES)}){hint}")
        if unreadable:
            log.warning(
                "%d files in %s are left out, since %s cannot be read (%s%s); convert them to JPEG or PNG",
                len(unreadable),
                path,
                kinds,
                ", ".join(item.name for item in unreadable[:4]),
                " ..." if len(unreadable) > 4 else "",
            )
        return found
    if re.search(r"[*?\[]", str(source)):
        root = Path(path.anchor or ".")
        try:
            matches = list(root.glob(str(path.relative_to(path.anchor))))
        except (ValueError, NotImplementedError) as error:
            raise InputError(f"{source} is no pattern that can be searched: {error}") from error
        found = sorted((item for item in matches if _is_image_name(item)), key=natural_key)
        if not found:
            raise InputError(f"the pattern {source} matches no image ({len(matches)} other matches)")
        return found
    raise InputError(f"{path} does not exist; give a folder, a file, or a quoted pattern such as 'photos/*.jpg'")


def load_image(
    path: str | os.PathLike, *, exif_orientation: bool = True, alpha: Literal["white", "drop"] = "white"
) -> UInt8[np.ndarray, "H W 3"]:
    """One image file as RGB uint8, whatever it holds: grey, palette, CMYK, 16 bits, with alpha.

    Args:
        path: Image file.
        exif_orientation: Turn the picture upright as its EXIF tag says. Cameras calibrated by COLMAP or stored by
            nerfstudio refer to the pixels as stored: read such images with False.
        alpha: What shows through transparent pixels: "white" (the convention of NeRF data sets; colours below
            fully transparent pixels are undefined) or "drop" (Pillow's ``convert("RGB")``).

    Raises:
        InputError: No such file.
        FormatError: Empty, truncated, not an image, or of a kind that cannot be shown as RGB. Names the file.
    """
    path = Path(path)
    _check_has_bytes(path)
    try:
        with open_header(path) as image:
            image.load()
            return image_to_rgb(image, exif_orientation=exif_orientation, alpha=alpha, name=str(path))
    except UnidentifiedImageError as error:
        deep = _read_deep_tiff(path)
        if deep is None:
            raise FormatError(_not_an_image(path)) from error
        return deep
    except FormatError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise FormatError(f"{path}: the image is truncated or damaged ({error}); copy or export it again") from error


def image_to_rgb(
    image: Image.Image, *, exif_orientation: bool = True, alpha: Literal["white", "drop"] = "white", name: str = "image"
) -> UInt8[np.ndarray, "H W 3"]:
    """A Pillow image of any mode as RGB uint8; arguments and errors as in `load_image`."""
    if exif_orientation:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        grey = _grey_8bit(np.asarray(image), name)
        return np.repeat(grey[..., None], 3, axis=2)
    has_alpha = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    if has_alpha and alpha == "white":
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    return np.array(image.convert("RGB"))


@contextmanager
def open_header(path: Path) -> Iterator[Image.Image]:
    """An image file of which no pixel is read yet.

    Raises:
        FormatError: More pixels than Pillow reads (179 million).
        OSError and what else Pillow raises for files it cannot read.
    """
    try:
        with warnings.catch_warnings():
            # Large panoramas are legitimate; Pillow still refuses above twice this limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise FormatError(f"{path}: {error}; scale the image down first") from error
    with image:
        yield image


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) of the pixels as stored (EXIF orientation not applied), from the header alone.

    Raises:
        InputError, FormatError: As `load_image`.
    """
    path = Path(path)
    _check_has_bytes(path)
    try:
        with open_header(path) as image:
            return image.size
    except FormatError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        deep = _read_deep_tiff(path)
        if deep is None:
            raise FormatError(_not_an_image(path)) from error
        return deep.shape[1], deep.shape[0]


def exif_focal_px(path: str | os.PathLike) -> float | None:
    """Focal length in pixels that the EXIF 35 mm equivalent implies, or None when the file does not say.

    fx = f35 / 43.27 mm * diagonal in px. Good to some percent (crops and digital zoom are not always recorded): a hint,
    not a calibration. It holds for the stored and for the turned picture alike.
    """
    path = Path(path)
    _check_has_bytes(path)
    try:
        with open_header(path) as image:
            f35_mm = image.getexif().get_ifd(_EXIF_IFD).get(_FOCAL_LENGTH_35MM)
            diagonal_px = float(np.hypot(*image.size))
    except FormatError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise FormatError(_not_an_image(path)) from error
    return float(f35_mm) / _FULL_FRAME_DIAGONAL_MM * diagonal_px if f35_mm else None


def tracked(items: Iterable[T], description: str, *, shown: bool, total: int | None = None) -> Iterable[T]:
    """Pass items on with a progress bar on stderr, if `shown` and stderr is a terminal; stdout is for results."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    disable = not (shown and console.is_terminal)
    return track(items, description, total=total, disable=disable, transient=True, console=console)


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _images_in(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if _is_image_name(path)), key=lambda path: natural_key(path.name))


def _check_has_bytes(path: Path) -> None:
    if not path.is_file():
        kind = "is a folder, an image file was expected" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {kind}")
    if path.stat().st_size == 0:
        raise FormatError(f"{path}: the file is empty (0 bytes); copy or download it again")


def _not_an_image(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(16)
    if path.suffix.lower() in _UNSUPPORTED_SUFFIXES:
        return f"{path}: {path.suffix} files cannot be read; convert to JPEG or PNG first"
    return f"{path}: not an image that can be read (it starts with {head!r}); expected {' '.join(IMAGE_SUFFIXES)}"


def _read_deep_tiff(path: Path) -> np.ndarray | None:
    """RGB TIFF with 16 bits per channel, which Pillow cannot open; None for anything else."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
    if image is None or image.ndim != 3:
        return None
    return _grey_8bit(image, str(path))


def _grey_8bit(values: np.ndarray, name: str) -> np.ndarray:
    """16-bit integers (full scale 65535) or floats in [0, 1] as uint8, rounded. Pillow itself would clip at 255."""
    if values.dtype == np.uint8:
        return values
    if np.issubdtype(values.dtype, np.floating):
        full_scale = 1.0
    elif values.dtype in (np.uint16, np.int32, np.dtype(">u2"), np.dtype("<u2")):
        full_scale = 65535.0
    else:
        raise FormatError(f"{name}: pixels of type {values.dtype} cannot be shown as RGB; convert to 8-bit PNG or JPEG")
    scaled = values.astype(np.float64) / full_scale
    if not (np.isfinite(scaled).all() and scaled.min() >= 0 and scaled.max() <= 1):
        expected = "floats in [0, 1]" if full_scale == 1.0 else "values in 0..65535"
        raise FormatError(
            f"{name}: expected {expected}; got {values.min():g}..{values.max():g}; convert to 8 bits first"
        )
    return np.rint(scaled * 255).astype(np.uint8)


def _listed(paths: Sequence[Path], limit: int = 4) -> str:
    names = ", ".join(str(path) for path in paths[:limit])
    more = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return f"{'image' if len(paths) == 1 else 'images'} {names}{more}"
