"""Which of a list of image files can be used: unreadable, tiny and identical ones are found and named."""

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import UnidentifiedImageError

from da3gs.errors import FormatError, InputError
from da3gs.image_files import open_header
from da3gs.images import image_size, load_image

# Icons and thumbnails that lie among photographs are smaller than this on one side.
MIN_SIDE_PX = 32

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = (None, 0, 1)
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def decode_fully(path: str | os.PathLike) -> None:
    """Read a whole image file and forget it.

    A header says nothing about a truncated file. JPEG is decoded at an eighth of its size: every byte is still read.

    Raises:
        InputError, FormatError: As `load_image`.
    """
    path = Path(path)
    if path.suffix.lower() in (".jpg", ".jpeg") and path.is_file() and path.stat().st_size:
        try:
            with open_header(path) as image:
                image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
                image.load()
            return
        except FormatError:
            raise
        except UnidentifiedImageError:
            pass  # load_image says what the file holds instead
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise FormatError(f"{path}: truncated or damaged ({error}); copy or export it again") from error
    load_image(path)


def exif_orientation(path: str | os.PathLike) -> int:
    """EXIF orientation 1-8 of a readable image file; 1 (stored upright) when the file does not say."""
    try:
        with open_header(Path(path)) as image:
            value = image.getexif().get(_EXIF_ORIENTATION)
    except UnidentifiedImageError:
        return 1  # 16-bit RGB TIFF, which Pillow cannot open
    return 1 if value in _UPRIGHT or value not in range(1, 9) else int(value)


def upright_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) in pixels after the EXIF orientation."""
    width, height = image_size(path)
    return (height, width) if exif_orientation(path) in QUARTER_TURNS else (width, height)


def unusable_reason(path: str | os.PathLike) -> str | None:
    """Why a file cannot be used, judged by its header alone: missing, empty, no image, tiny. None: it looks fine."""
    try:
        width, height = image_size(path)
    except (InputError, FormatError) as error:
        return reason_without_name(error, path)
    if min(width, height) < MIN_SIDE_PX:
        return f"{width}x{height} px is too small (both sides must be >= {MIN_SIDE_PX} px)"
    return None


def identical_files(paths: Sequence[str | os.PathLike]) -> dict[int, int]:
    """Index of every file whose bytes equal those of an earlier one -> index of that earlier one."""
    by_size: dict[int, list[int]] = {}
    for index, path in enumerate(paths):
        by_size.setdefault(Path(path).stat().st_size, []).append(index)
    copies: dict[int, int] = {}
    for members in by_size.values():
        if len(members) < 2:
            continue
        first: dict[bytes, int] = {}
        for index in members:
            with Path(paths[index]).open("rb") as file:
                digest = hashlib.blake2b(file.read()).digest()
            original = first.setdefault(digest, index)
            if original != index:
                copies[index] = original
    return dict(sorted(copies.items()))


def pick_readable(
    candidates: Sequence[int],
    choose: Callable[[Sequence[int]], Sequence[int]],
    paths: Sequence[str | os.PathLike],
    advance: Callable[[], None],
) -> tuple[list[int], dict[int, str]]:
    """Choose views until every chosen file decodes to its end, so that only the chosen ones need decoding.

    Args:
        candidates: Indices into `paths`.
        choose: The views to take out of those that are left.
        paths: The files.
        advance: Called after each file, for a progress bar.

    Returns:
        The chosen indices, and index -> reason for files that turned out to be damaged.
    """
    good: set[int] = set()
    bad: dict[int, str] = {}
    while True:
        left = [index for index in candidates if index not in bad]
        chosen = list(choose(left)) if left else []
        unseen = [index for index in chosen if index not in good]
        if not unseen:
            return chosen, bad
        for index in unseen:
            try:
                decode_fully(paths[index])
                good.add(index)
            except (InputError, FormatError) as error:
                bad[index] = reason_without_name(error, paths[index])
            advance()


def reason_without_name(error: Exception, path: str | os.PathLike) -> str:
    """The message of an error about one file, without the file's name in front."""
    return str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
