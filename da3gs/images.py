"""Images as the network sees them, and the record that undoes it.

`prepare_views` repeats the released DA3 input pipeline bit for bit on uint8 images (cv2 resizing to a patch grid of 14,
common crop); `Views` keeps, per view, the one resize and the one crop this amounts to, and maps cameras and depth maps
both ways. Finding and reading files lives in `image_files` and is re-exported here.

Letters: V views, H W pixels of the processed images, C channels.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.image_files import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    exif_focal_px,
    find_images,
    image_size,
    image_to_rgb,
    load_image,
    natural_key,
    tracked,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "IMAGE_SUFFIXES",
    "PATCH_PX",
    "VIDEO_SUFFIXES",
    "ResizeMethod",
    "Views",
    "exif_focal_px",
    "find_images",
    "image_size",
    "image_to_rgb",
    "load_image",
    "natural_key",
    "normalise",
    "prepare_views",
    "tensor_from_uint8",
    "tracked",
    "uint8_from_tensor",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PATCH_PX = 14
DEFAULT_SIZE_PX = 504

ResizeMethod = Literal["upper_bound_resize", "upper_bound_crop", "lower_bound_resize", "lower_bound_crop"]
RESIZE_METHODS = ("upper_bound_resize", "upper_bound_crop", "lower_bound_resize", "lower_bound_crop")
ImageLike = str | os.PathLike | Image.Image | np.ndarray | Tensor


def normalise(images: Float[Tensor, "*batch 3 H W"]) -> Float[Tensor, "*batch 3 H W"]:
    """RGB in [0, 1] to the ImageNet-normalised input of the network. Gradients flow."""
    mean, std = (images.new_tensor(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def uint8_from_tensor(image: Float[Tensor, "3 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """RGB in [0, 1], channels first, to uint8, channels last, rounded to the nearest level."""
    return (image.detach().cpu() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def tensor_from_uint8(image: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, "3 H W"]:
    """uint8, channels last, to RGB float32 in [0, 1], channels first."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / 255)


@dataclass(frozen=True, eq=False)
class Views:
    """Processed images of V views and the way back to the originals.

    Every view went through one resize (original size -> resized size) and one crop (window of W x H px starting at
    `crop_left_top` in the resized image).

    Attributes:
        images: [V, 3, H, W] RGB in [0, 1], H and W multiples of 14; `normalised` is the network's input.
        original_size, resized_size: [V, 2] (width, height) in pixels, int64.
        crop_left_top: [V, 2] pixels of the resized image, int64, >= 0.
        names: One label per view: the file's name, or ``view_000``.
        cameras: Cameras at the processed size, when given.
    """

    images: Float[Tensor, "V 3 H W"]
    original_size: Int64[Tensor, "V 2"]
    resized_size: Int64[Tensor, "V 2"]
    crop_left_top: Int64[Tensor, "V 2"]
    names: tuple[str, ...]
    cameras: Cameras | None = None

    def __post_init__(self):
        views = len(self.images)
        for name in ("original_size", "resized_size", "crop_left_top", "names"):
            if len(getattr(self, name)) != views:
                raise InputError(f"Views.{name} must have one entry per view ({views}); got {len(getattr(self, name))}")
        if self.cameras is not None and (len(self.cameras) != views or self.cameras.size != self.size):
            raise InputError(f"Views.cameras must be {views} cameras of {self.size} px; got {len(self.cameras)}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index) -> "Views":
        """Views of an int, slice, list of ints, index or boolean tensor."""
        pick = torch.arange(len(self))[[index] if isinstance(index, int) else index]
        return Views(
            self.images[pick.to(self.images.device)],
            self.original_size[pick],
            self.resized_size[pick],
            self.crop_left_top[pick],
            tuple(self.names[i] for i in pick.tolist()),
            None if self.cameras is None else self.cameras[pick],
        )

    def to(self, device: torch.device | str) -> "Views":
        """Images (and cameras) on another device; the record stays on the CPU."""
        return replace(
            self,
            images=self.images.to(device),
            cameras=None if self.cameras is None else self.cameras.to(device),
        )

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the processed images in pixels."""
        return self.images.shape[3], self.images.shape[2]

    @property
    def normalised(self) -> Float[Tensor, "V 3 H W"]:
        return normalise(self.images)

    def cameras_to_processed(self, cameras: Cameras) -> Cameras:
        """Cameras of the original images to cameras of the processed ones; poses are untouched. Gradients flow.

        Resizing multiplies rows 0 and 1 of K by new / old width and height, cropping subtracts pixels from cx, cy.
        """
        self._check_sizes(cameras, self.original_size, "original")
        left, top = self.crop_left_top.T
        width, height = self.size
        resized = cameras.scaled(width=self.resized_size[:, 0], height=self.resized_size[:, 1])
        return resized.cropped(left=left, top=top, width=width, height=height)

    def undo_cameras(self, cameras: Cameras) -> Cameras:
        """Cameras of the processed images to cameras of the originals: the inverse of `cameras_to_processed`."""
        self._check_sizes(cameras, torch.tensor(self.size).expand(len(self), 2), "processed")
        left, top = self.crop_left_top.T
        width, height = self.resized_size.T
        resized = cameras.cropped(left=-left, top=-top, width=width, height=height)
        return resized.scaled(width=self.original_size[:, 0], height=self.original_size[:, 1])

    def undo_map(
        self,
        values: Float[Tensor, "V *C H W"] | Bool[Tensor, "V H W"],
        *,
        interpolation: Literal["bilinear", "nearest"] = "bilinear",
        fill: float | int = 0.0,
    ) -> Tensor | list[Tensor]:
        """Maps of the processed images (depth, confidence, masks, renders) at the size of the originals.

        Args:
            values: [V, H, W] or [V, C, H, W]; a boolean map is sampled "nearest".
            interpolation: "bilinear" is smooth but mixes depths across edges; "nearest" keeps every value measured.
            fill: Value where the original shows more than the crop.

        Returns:
            [V, ..., height, width] when all originals share one size, else a list of V tensors. Gradients flow.
        """
        if interpolation not in ("bilinear", "nearest"):
            raise InputError(f"interpolation must be bilinear or nearest; got {interpolation}")
        width, height = self.size
        if len(values) != len(self) or values.shape[-2:] != (height, width):
            raise InputError(f"maps must be [{len(self)}, ..., {height}, {width}]; got {tuple(values.shape)}")
        binary = values.dtype == torch.bool
        mode = "nearest" if binary else interpolation
        undone = [self._undo_one(values[view].float(), view, mode, fill) for view in range(len(self))]
        if binary:
            undone = [value > 0.5 for value in undone]
        same_size = bool((self.original_size == self.original_size[0]).all())
        return torch.stack(undone) if same_size else undone

    def _undo_one(self, values: Tensor, view: int, mode: str, fill: float) -> Tensor:
        """Sample the processed map at the centres of the original pixels: u = (x + 0.5) * resized / original - left."""
        sampled = values.reshape(1, -1, *values.shape[-2:])
        grids, inside = [], []
        for axis, extent in ((0, values.shape[-1]), (1, values.shape[-2])):
            original, resized = int(self.original_size[view, axis]), int(self.resized_size[view, axis])
            centres = torch.arange(original, dtype=torch.float64, device=values.device) + 0.5
            position = centres * resized / original - int(self.crop_left_top[view, axis])
            inside.append((position >= 0) & (position <= extent))
            grids.append((position / extent * 2 - 1).to(values.dtype))
        grid = torch.stack(torch.meshgrid(grids[0], grids[1], indexing="xy"), -1)[None]
        out = torch.nn.functional.grid_sample(sampled, grid, mode=mode, padding_mode="border", align_corners=False)
        out = torch.where(inside[1][:, None] & inside[0], out, out.new_tensor(fill))
        return out.reshape(*values.shape[:-2], *out.shape[-2:])

    def _check_sizes(self, cameras: Cameras, expected: Tensor, kind: str) -> None:
        if len(cameras) != len(self):
            raise InputError(f"expected one camera per view ({len(self)}); got {len(cameras)}")
        actual = torch.stack([cameras.width, cameras.height], -1)
        wrong = (actual != expected).any(-1)
        if wrong.any():
            view = int(wrong.nonzero()[0])
            raise InputError(
                f"camera {view} is of {tuple(actual[view].tolist())} px but the {kind} image of view "
                f"{self.names[view]} is of {tuple(expected[view].tolist())} px (width, height); "
                "bring the cameras to the size of the images (Cameras.scaled)"
            )


def prepare_views(
    images: Float[Tensor, "V 3 H W"] | Sequence[ImageLike],
    cameras: Cameras | None = None,
    *,
    size_px: int = DEFAULT_SIZE_PX,
    method: ResizeMethod = "upper_bound_resize",
    names: Sequence[str] | None = None,
    exif_orientation: bool | None = None,
    progress: bool = False,
) -> Views:
    """Bring images to one size that is a multiple of 14, as the released DA3 pipeline does.

    1. Resize so that the longest ("upper_bound") or shortest ("lower_bound") side is `size_px`.
    2. Make both sides multiples of 14: "resize" to the nearest one each (a tie goes up), "crop" the centre down to it.
    3. Crop all views about their centres to the smallest height and width among them.

    cv2 resizes uint8 with INTER_CUBIC when growing and INTER_AREA when shrinking, so the result equals the released one
    bit for bit. Float tensors are rounded to uint8 first: nothing is lost when they came from an 8-bit file, half a
    level at most otherwise. No gradient flows to `images`.

    Args:
        images: [V, 3, H, W] RGB in [0, 1], or a sequence of: paths, Pillow images, uint8 arrays [H, W, 3] or [H, W],
            float tensors [3, H, W] in [0, 1]. Sizes may differ. Files are read one at a time.
        cameras: Cameras at the size of the originals, brought to the processed size.
        size_px: The bound for the chosen side.
        names: Labels of the views; default is the file name, or ``view_000``.
        exif_orientation: Turn photographs upright by their EXIF tag. None: yes without cameras, no with cameras,
            because calibrations (COLMAP, nerfstudio) refer to the pixels as stored.
        progress: Show a progress bar.

    Raises:
        InputError: No images, unsupported types or value ranges, sizes too small, cameras that do not fit.
        FormatError: An image file that cannot be decoded.
    """
    if method not in RESIZE_METHODS:
        raise InputError(f"unknown resize method {method}; expected one of {', '.join(RESIZE_METHODS)}")
    if size_px < PATCH_PX:
        raise InputError(f"size_px must be >= {PATCH_PX}; got {size_px}")
    if isinstance(images, str | os.PathLike):
        raise InputError(f"expected a list of images, got one path; use find_images({str(images)!r})")
    if len(images) == 0:
        raise InputError("no images given; at least one is needed")

    upright = cameras is None if exif_orientation is None else exif_orientation
    processed, records, labels = [], [], []
    for index, image in enumerate(tracked(images, "Reading images", shown=progress)):
        label = _label(image, index)
        original = _as_uint8(image, label, upright)
        resized, size, left_top = _fit_to_patches(original, size_px, method, label)
        processed.append(resized)
        records.append(((original.shape[1], original.shape[0]), size, left_top))
        labels.append(label)

    height = min(image.shape[0] for image in processed)
    width = min(image.shape[1] for image in processed)
    stacked = torch.empty(len(processed), 3, height, width)
    crops = torch.empty(len(processed), 2, dtype=torch.int64)
    for view, image in enumerate(processed):
        left, top = (image.shape[1] - width) // 2, (image.shape[0] - height) // 2
        stacked[view] = tensor_from_uint8(image[top : top + height, left : left + width])
        crops[view] = torch.tensor(records[view][2]) + torch.tensor([left, top])
    views = Views(
        stacked,
        torch.tensor([record[0] for record in records]),
        torch.tensor([record[1] for record in records]),
        crops,
        tuple(labels) if names is None else tuple(names),
    )
    return views if cameras is None else replace(views, cameras=views.cameras_to_processed(cameras))


def magnified(views: Views, images: Sequence[ImageLike], size_px: int, *, exif_orientation: bool) -> Views:
    """The same parts of the same pictures, larger: a whole number of sevenths as large, so that every side stays whole.

    Args:
        views: Of a "..._resize" method: what was resized has sides that are multiples of 14, crops start at those of 7.
        images: What `views` was made of.
        size_px: Bound on the longest side of a whole picture.
        exif_orientation: As for `prepare_views`.

    Returns:
        The views themselves where the bound leaves no room for a seventh more.
    """
    sevenths = 7 * size_px // int(views.resized_size.max())
    if sevenths <= 7:
        return views
    resized_size, crops = (values * sevenths // 7 for values in (views.resized_size, views.crop_left_top))
    width, height = (side * sevenths // 7 for side in views.size)
    stacked = torch.empty(len(views), 3, height, width)
    for view, image in enumerate(images):
        original = _as_uint8(image, views.names[view], exif_orientation)
        whole = resized_size[view].tolist()
        resized = _resize(original, *whole, grows=whole[0] > original.shape[1] or whole[1] > original.shape[0])
        left, top = crops[view].tolist()
        stacked[view] = tensor_from_uint8(resized[top : top + height, left : left + width])
    larger = replace(views, images=stacked, resized_size=resized_size, crop_left_top=crops, cameras=None)
    cameras = None if views.cameras is None else views.cameras.scaled(width=width, height=height)
    return replace(larger, cameras=cameras)


def _fit_to_patches(
    image: np.ndarray, size_px: int, method: str, label: str
) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """The image with both sides multiples of 14; the (width, height) it was resized to; (left, top) of the crop."""
    height, width = image.shape[:2]
    side = max(height, width) if method.startswith("upper") else min(height, width)
    if side != size_px:
        scale = size_px / side
        image = _resize(image, max(1, round(width * scale)), max(1, round(height * scale)), grows=scale > 1)
    height, width = image.shape[:2]
    if method.endswith("resize"):
        new_width, new_height = _nearest_multiple(width), _nearest_multiple(height)
        if (new_width, new_height) != (width, height):
            image = _resize(image, new_width, new_height, grows=new_width > width or new_height > height)
        return image, (new_width, new_height), (0, 0)
    new_width, new_height = width // PATCH_PX * PATCH_PX, height // PATCH_PX * PATCH_PX
    if min(new_width, new_height) == 0:
        raise InputError(
            f"{label} is {width}x{height} px after resizing, less than one {PATCH_PX} px patch; use a *_resize method"
        )
    left, top = (width - new_width) // 2, (height - new_height) // 2
    return image[top : top + new_height, left : left + new_width], (width, height), (left, top)


def _resize(image: np.ndarray, width: int, height: int, *, grows: bool) -> np.ndarray:
    import cv2

    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC if grows else cv2.INTER_AREA)


def _nearest_multiple(length: int) -> int:
    """Nearest multiple of 14, a tie (7 off) goes up; at least 14."""
    return max(PATCH_PX, (length + PATCH_PX // 2) // PATCH_PX * PATCH_PX)


def _as_uint8(image: ImageLike, label: str, exif_orientation: bool) -> np.ndarray:
    if isinstance(image, str | os.PathLike):
        return load_image(image, exif_orientation=exif_orientation)
    if isinstance(image, Image.Image):
        return image_to_rgb(image, exif_orientation=exif_orientation, name=label)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))):
            raise InputError(
                f"{label}: numpy images must be uint8 [H, W, 3]; got {image.dtype} {list(image.shape)}; "
                "pass floats in [0, 1] as a torch tensor [3, H, W]"
            )
        if image.ndim == 3 and image.shape[2] == 4:
            return image_to_rgb(Image.fromarray(image, "RGBA"))
        return np.ascontiguousarray(np.broadcast_to(image.reshape(*image.shape[:2], -1), (*image.shape[:2], 3)))
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point() or image.numel() == 0:
            raise InputError(
                f"{label}: image tensors must be float [3, H, W] in [0, 1]; got {image.dtype} {list(image.shape)}"
            )
        low, high = float(image.min()), float(image.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches NaN
            raise InputError(
                f"{label}: image values must lie in [0, 1]; got {low:g}..{high:g}; "
                "divide 8-bit values by 255, and do not ImageNet-normalise"
            )
        return uint8_from_tensor(image)
    raise InputError(f"{label}: expected a path, Pillow image, uint8 array or float tensor; got {type(image).__name__}")


def _label(image: ImageLike, index: int) -> str:
    return Path(image).name if isinstance(image, str | os.PathLike) else f"view_{index:03d}"
