"""RealEstate10K and ACID as pixelSplat and its successors store them: chunks of scenes with their frames inside.

::

    FOLDER/index.json       {scene key: chunk file}
    FOLDER/000000.torch     a list of {key, url, timestamps [N], cameras [N, 18], images: N x uint8 JPEG bytes}

A camera is fx / W, fy / H, cx / W, cy / H, two zeros, and the 3x4 world-to-camera matrix row by row (OpenCV axes).
Chunks are read with torch's safe loader; nothing in them is ever executed.
"""

import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from da3gs.errors import FormatError, InputError
from da3gs.geometry.cameras import Cameras

INDEX = "index.json"
_SUFFIX = ".torch"
# Chunks are about 100 MB; scenes of one come one after the other.
_OPEN_CHUNKS = 2


@dataclass(frozen=True, eq=False)
class ChunkedScene:
    """N frames of one clip.

    Attributes:
        key: Of the scene.
        timestamps: [N] microseconds into the clip.
        cameras: [N] posed, at the size of the frames.
    """

    key: str
    timestamps: tuple[int, ...]
    cameras: Cameras
    _encoded: Sequence[torch.Tensor]

    def __len__(self) -> int:
        return len(self.timestamps)

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """One frame.

        Raises:
            FormatError: Damaged.
        """
        return np.asarray(_decoded(self._encoded[index], f"{self.key}, frame {index}", "RGB"))


def is_chunk_folder(folder: Path) -> bool:
    """Whether a folder holds chunks of scenes."""
    return (folder / INDEX).is_file() and next(folder.glob(f"*{_SUFFIX}"), None) is not None


def chunk_index(folder: Path) -> dict[str, Path]:
    """Scene key -> chunk file, in the order of the index.

    Raises:
        FormatError: An index of another form.
        InputError: A chunk it names is missing.
    """
    path = folder / INDEX
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
        raise FormatError(f"{path}: expected an object of scene keys and chunk files")
    missing = sorted({name for name in content.values() if not (folder / name).is_file()})
    if missing:
        raise InputError(f"{path} names {len(missing)} chunks that do not exist, such as {missing[0]}")
    return {key: folder / name for key, name in content.items()}


def read_chunked_scene(path: Path, key: str) -> ChunkedScene:
    """One scene of a chunk.

    Raises:
        InputError: The chunk does not hold it.
        FormatError: A damaged chunk, or one of another form.
    """
    for entry in _chunk(path):
        if entry.get("key") == key:
            return _scene(entry, path)
    raise InputError(f"chunk {path} holds no scene {key}, although {INDEX} says so")


@lru_cache(maxsize=_OPEN_CHUNKS)
def _chunk(path: Path) -> list[dict[str, Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, LookupError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise FormatError(f"{path} is no chunk of scenes, or damaged ({reason or type(error).__name__})") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise FormatError(f"{path}: expected a list of scenes; got {type(content).__name__}")
    return content


def _scene(entry: dict[str, Any], path: Path) -> ChunkedScene:
    where = f"{path}, scene {entry['key']}"
    numbers, images, stamps = (entry.get(name) for name in ("cameras", "images", "timestamps"))
    if not isinstance(numbers, torch.Tensor) or numbers.ndim != 2 or numbers.shape[1] != 18 or len(numbers) == 0:
        raise FormatError(f"{where}: expected cameras [N, 18]")
    if not isinstance(images, list) or len(images) != len(numbers):
        raise FormatError(f"{where}: expected one image per camera ({len(numbers)})")
    if not isinstance(stamps, torch.Tensor) or len(stamps) != len(numbers):
        raise FormatError(f"{where}: expected one timestamp per camera ({len(numbers)})")
    width, height = _decoded(images[0], f"{where}, frame 0").size
    numbers = numbers.double()
    K = torch.zeros(len(numbers), 3, 3, dtype=torch.float64)
    K[:, 0, 0], K[:, 1, 1] = numbers[:, 0] * width, numbers[:, 1] * height
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = numbers[:, 2] * width, numbers[:, 3] * height, 1
    cam_from_world = torch.eye(4, dtype=torch.float64).repeat(len(numbers), 1, 1)
    cam_from_world[:, :3] = numbers[:, 6:].view(-1, 3, 4)
    try:
        cameras = Cameras(cam_from_world.float(), K.float(), width, height)
    except InputError as error:
        raise FormatError(f"{where}: {error}") from error
    return ChunkedScene(str(entry["key"]), tuple(int(stamp) for stamp in stamps), cameras, images)


def _decoded(encoded: torch.Tensor, where: str, mode: str | None = None) -> Image.Image:
    """An encoded image; its header alone without a mode to convert to."""
    try:
        image = Image.open(io.BytesIO(encoded.numpy().tobytes()))
        return image if mode is None else image.convert(mode)
    except (UnidentifiedImageError, OSError, AttributeError) as error:
        raise FormatError(f"{where}: not an encoded image ({error})") from error
