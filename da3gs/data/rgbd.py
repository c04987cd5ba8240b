"""Colour images with measured depth: RGB-D sensors, scanners, renderers.

Letters: V views, H W pixels.
"""

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from da3gs.data.posed_images import PosedImages
from da3gs.data.transforms_json import read_transforms_json
from da3gs.errors import FormatError, InputError
from da3gs.geometry.cameras import Cameras
from da3gs.images import tensor_from_uint8, tracked

DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".npz")
# Depth cameras and nerfstudio store millimetres in integer images.
_INTEGER_UNIT = 1e-3
_ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True, eq=False)
class RGBDFrames:
    """V aligned colour and depth images of one size with their cameras.

    Attributes:
        images: [V, 3, H, W] RGB in [0, 1].
        depth: [V, H, W] z-depth in world units (metres for sensors), 0 where unknown; always finite.
        valid: [V, H, W], True where depth was measured.
        cameras: [V] posed cameras at this size.
        names: File names of the colour images.
    """

    images: Float[Tensor, "V 3 H W"]
    depth: Float[Tensor, "V H W"]
    valid: Bool[Tensor, "V H W"]
    cameras: Cameras
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


def read_depth(path: str | os.PathLike, unit_scale_factor: float | int | None = None) -> Float32[np.ndarray, "H W"]:
    """One depth map; 0 where there is no measurement (stored as 0, negative, NaN or infinity).

    Args:
        path: Single-channel PNG or TIFF (16-bit integers or floats), ``.npy``, ``.npz`` (its one array or ``depth``).
        unit_scale_factor: Factor from stored values to world units. None: 0.001 (millimetres) for integers, else 1.

    Raises:
        InputError: No such file.
        FormatError: Damaged, or not a single map of numbers; 8-bit images are refused, because they hold pictures.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"depth file {path} does not exist")
    if path.stat().st_size == 0:
        raise FormatError(f"{path}: the file is empty (0 bytes)")
    values = _read_array(path) if path.suffix.lower() in (".npy", ".npz") else _read_image(path)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values.reshape(values.shape[1:] if values.shape[0] == 1 else values.shape[:2])
    if values.ndim != 2 or values.size == 0 or not np.issubdtype(values.dtype, np.number):
        raise FormatError(f"{path}: expected one depth map [H, W]; got {values.dtype} {list(values.shape)}")
    integer = np.issubdtype(values.dtype, np.integer)
    factor = (_INTEGER_UNIT if integer else 1.0) if unit_scale_factor is None else float(unit_scale_factor)
    if not (np.isfinite(factor) and factor > 0):
        raise InputError(f"the depth unit factor must be > 0; got {unit_scale_factor}")
    depth = values.astype(np.float64) * factor
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0.0).astype(np.float32)


def read_rgbd(
    source: str | os.PathLike | PosedImages,
    *,
    split: str | None = None,
    width: int | None = None,
    height: int | None = None,
    max_depth: float | int | None = None,
    progress: bool = False,
) -> RGBDFrames:
    """Colour, depth and cameras of a ``transforms.json`` whose frames have a ``depth_file_path``.

    Colour is resized by area averaging. Depth is taken at the nearest pixel: averages across an edge lie on no surface.
    Lens distortion is undone for both.

    Args:
        source: The file, its folder, or what `read_transforms_json` returned.
        split: Only the views of this split.
        width, height: Size of the result in pixels; one alone keeps the aspect ratio, none keeps the size.
        max_depth: Measurements beyond are marked unknown (stereo sensors guess far away); world units.
        progress: Show a progress bar.

    Raises:
        InputError: Missing files or split, frames without depth, images of several sizes and no size to bring them to.
        FormatError: Damaged files, or depth that does not have the aspect ratio of its image.
    """
    data = source if isinstance(source, PosedImages) else read_transforms_json(source)
    if split is not None:
        data = data.split(split)
    without = [photo.name for photo in data.photos if photo.depth_path is None]
    if without:
        raise InputError(f"{len(without)} of {len(data)} frames have no depth_file_path, the first is {without[0]}")
    width, height = _target_size(data.cameras, width, height)

    images = torch.empty(len(data), 3, height, width)
    depths = torch.empty(len(data), height, width)
    for view in tracked(range(len(data)), "Reading RGB-D frames", shown=progress):
        images[view] = tensor_from_uint8(_resize_colour(data.load_image(view), width, height))
        depth = depth_of_view(data, view)
        depths[view] = torch.from_numpy(_resize_nearest(depth, width, height))
    if max_depth is not None:
        depths[depths > max_depth] = 0.0
    return RGBDFrames(images, depths, depths > 0, data.cameras.scaled(width=width, height=height), data.names)


def depth_of_view(data: PosedImages, view: int) -> Float32[np.ndarray, "H W"]:
    """Depth of one view on the pixels of its (undistorted) colour image: world units, 0 where unknown.

    Raises:
        InputError: The view has no depth file, or the file is gone.
        FormatError: Damaged, or of another aspect ratio than the image.
    """
    photo = data.photos[view]
    if photo.depth_path is None:
        raise InputError(f"{photo.name} has no depth file")
    depth = read_depth(photo.depth_path, data.depth_unit_scale_factor)
    width, height = int(data.cameras.width[view]), int(data.cameras.height[view])
    if abs(depth.shape[1] / width / (depth.shape[0] / height) - 1) > _ASPECT_TOLERANCE:
        raise FormatError(
            f"{photo.depth_path} is {depth.shape[1]}x{depth.shape[0]} px, another aspect ratio than its image "
            f"({width}x{height}); depth must be aligned with the colour image"
        )
    return data.undistort_map(view, _resize_nearest(depth, width, height))


def _read_array(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            name = "depth" if "depth" in loaded.files else loaded.files[0]
            if name != "depth" and len(loaded.files) > 1:
                raise FormatError(
                    f"{path}: expected one array or one named 'depth'; it holds {', '.join(loaded.files)}"
                )
            return loaded[name]
    except FormatError:
        raise
    except (ValueError, OSError, EOFError, IndexError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise FormatError(f"{path}: not a readable NumPy file ({error})") from error


def _read_image(path: Path) -> np.ndarray:
    import cv2

    if path.suffix.lower() not in DEPTH_SUFFIXES:
        raise FormatError(f"{path}: depth files must be one of {' '.join(DEPTH_SUFFIXES)}")
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise FormatError(f"{path}: the depth image is damaged or no image")
    if values.dtype == np.uint8:
        raise FormatError(f"{path}: 8-bit images cannot hold depth (256 steps); expected 16-bit integers or floats")
    return values


def _target_size(cameras: Cameras, width: int | None, height: int | None) -> tuple[int, int]:
    if width is None and height is None:
        return cameras.size
    full_width, full_height = int(cameras.width[0]), int(cameras.height[0])
    if width is None:
        width = round(full_width * height / full_height)
    if height is None:
        height = round(full_height * width / full_width)
    if width < 1 or height < 1:
        raise InputError(f"the target size must be positive; got {width}x{height} px")
    return width, height


def _resize_colour(image: np.ndarray, width: int, height: int) -> np.ndarray:
    import cv2

    if (image.shape[1], image.shape[0]) == (width, height):
        return image
    shrinks = width <= image.shape[1] and height <= image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _resize_nearest(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """The value under the centre of every new pixel (cv2's INTER_NEAREST takes the one under its corner)."""
    rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(int)
    return values[rows[:, None], columns]
