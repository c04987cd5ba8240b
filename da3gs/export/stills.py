"""Frames as numbered PNG files in a folder of their own."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from da3gs.atomic import atomic_path, check_replaceable
from da3gs.errors import InputError
from da3gs.export.video import Picture, save_image
from da3gs.images import tracked

# A text chunk of PNG frames, by which they are told from frames of other programs.
_SIGNED, _SIGNATURE = "Software", "da3gs"


def write_stills(
    folder: str | os.PathLike,
    frames: Iterable[Picture],
    *,
    names: Sequence[str] | None = None,
    total: int | None = None,
    progress: bool = False,
) -> int:
    """Write frames as PNG files ``0000.png``, ``0001.png`` .. (or by `names`) in a new folder, whole or not at all.

    An existing folder is replaced only if it is empty or holds the frames of an earlier call and nothing else.

    Returns:
        Number of frames.

    Raises:
        InputError: No frames, a folder with other things in it, or one that cannot be written.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    folder = Path(folder)
    check_replaceable(folder, "the frames", _own_frames(folder))
    count = 0
    signature = PngInfo()
    signature.add_text(_SIGNED, _SIGNATURE)
    with atomic_path(folder, directory=True) as temporary:
        for index, frame in enumerate(tracked(frames, f"Writing {folder.name}", shown=progress, total=total)):
            name = f"{index:04d}" if names is None else Path(names[index]).with_suffix("").as_posix().replace("/", "_")
            save_image(Image.fromarray(frame), temporary / f"{name}.png", pnginfo=signature)
            count += 1
        if count == 0:
            raise InputError(f"no frames to write to {folder}")
    return count


def _own_frames(folder: Path) -> set[str]:
    """Names in a folder that `write_stills` wrote, by the signature in their headers."""
    from PIL import Image, UnidentifiedImageError

    own = set()
    for path in folder.glob("*.png") if folder.is_dir() else ():
        try:
            with Image.open(path) as image:
                if image.info.get(_SIGNED) == _SIGNATURE:
                    own.add(path.name)
        except (UnidentifiedImageError, OSError):
            continue
    return own
