"""What `reconstruct` starts from, whatever it was given: pictures, and perhaps cameras and depth.

Letters: V views, H W pixels of the processed images.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from da3gs.data.input_views import InputViews
from da3gs.data.photo_files import upright_size
from da3gs.data.photographs import Photograph
from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.images import (
    ImageLike,
    Views,
    image_size,
    image_to_rgb,
    load_image,
    magnified,
    prepare_views,
    tensor_from_uint8,
    uint8_from_tensor,
)

# Views of a depth camera are of one shape; rounding of sizes bends the aspect ratio by less than this.
_ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True, eq=False)
class Source:
    """V pictures to reconstruct from.

    Attributes:
        images: Paths, arrays or tensors of any sizes; [V, 3, H, W] tensors are taken apart.
        names: A label per view.
        cameras: At the sizes of the images, poses optional; None when unknown.
        depth: A z-depth map per view, aligned with its image, of any size; 0 where unknown. None when there is none.
        facts: Where it came from, for the report.
        upright: Turn files upright by their EXIF tag.
        poses_from: Who found the poses, if there are any. Only a "given" frame and scale are the user's own; others are
            made upright, centred and of unit size like predicted ones.
        photographs: What each picture was made from, where it is not a photograph itself.
        points: Per view the sparse points [m, 3] it sees, in the world frame of the cameras: they give depth its scale.
    """

    images: Sequence[ImageLike]
    names: tuple[str, ...]
    cameras: Cameras | None = None
    depth: Sequence[Tensor] | None = None
    facts: dict[str, Any] | None = None
    upright: bool = True
    poses_from: Literal["given", "structure from motion", "matches between views"] = "given"
    photographs: Sequence[Photograph] | None = None
    points: Sequence[Tensor] | None = None

    def __post_init__(self):
        for what, values in (
            ("names", self.names),
            ("cameras", self.cameras),
            ("depth maps", self.depth),
            ("photographs", self.photographs),
            ("lists of points", self.points),
        ):
            if values is not None and len(values) != len(self.images):
                raise InputError(f"expected one of each per image ({len(self.images)}); got {len(values)} {what}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, pick: Sequence[int]) -> "Source":
        return replace(
            self,
            images=[self.images[i] for i in pick],
            names=tuple(self.names[i] for i in pick),
            cameras=None if self.cameras is None else self.cameras[list(pick)],
            depth=None if self.depth is None else [self.depth[i] for i in pick],
            photographs=None if self.photographs is None else [self.photographs[i] for i in pick],
            points=None if self.points is None else [self.points[i] for i in pick],
        )

    @property
    def posed(self) -> bool:
        return self.cameras is not None and self.cameras.cam_from_world is not None

    def size(self, view: int) -> tuple[int, int]:
        """(width, height) in pixels of a picture, without decoding it if it is a file."""
        image = self.images[view]
        if isinstance(image, str | os.PathLike):
            return upright_size(Path(image)) if self.upright else image_size(image)
        if isinstance(image, Tensor):
            return image.shape[-1], image.shape[-2]
        if isinstance(image, np.ndarray):
            return image.shape[1], image.shape[0]
        return image.size

    def picture(self, view: int) -> np.ndarray:
        """A picture as RGB uint8 [H, W, 3]."""
        return _as_array(self.images[view], self.upright)


def gather(
    images: ImageLike | Sequence[ImageLike] | Tensor,
    cameras: Cameras | None,
    depth: Sequence[Tensor] | Tensor | None,
    names: Sequence[str] | None,
    *,
    max_views: int | None,
    load_depth: bool = False,
) -> Source:
    """A `Source` from what a caller of `reconstruct` may pass.

    A single path (folder, pattern, video, data set) goes through `da3gs.data.inputs.load_input`; its own cameras and
    depth are used unless others are passed.

    Raises:
        InputError: Nothing usable.
    """
    if isinstance(images, str | os.PathLike):
        return _from_path(Path(images), cameras, depth, max_views, load_depth and depth is None)
    pictures: list = list(images)  # type: ignore[arg-type]  # a lone picture is no sequence of them
    if not pictures:
        raise InputError("no images given; at least one is needed")
    if names is None:
        names = [
            Path(item).name if isinstance(item, str | os.PathLike) else f"view_{index:03d}"
            for index, item in enumerate(pictures)
        ]
    facts = {"kind": "images", "views": len(pictures)}
    maps = None if depth is None else list(depth)
    source = Source(pictures, tuple(names), cameras, maps, facts, upright=cameras is None)
    return source if max_views is None else thinned(source, max_views)


def thinned(source: Source, count: int) -> Source:
    """At most `count` views, evenly spread in order."""
    if count < 1:
        raise InputError(f"at least one view is needed; got a limit of {count}")
    if count >= len(source):
        return source
    from da3gs.data.view_choice import evenly_spread

    return source[evenly_spread(len(source), count)]


def _from_path(path: Path, cameras: Cameras | None, depth, max_views: int | None, load_depth: bool) -> Source:
    from da3gs.data.inputs import load_input

    loaded = load_input(path, max_views=max_views, depth=load_depth)
    return source_from_input(loaded, cameras=cameras, depth=depth)


def source_from_input(
    loaded: InputViews, *, cameras: Cameras | None = None, depth: Sequence[Tensor] | None = None
) -> Source:
    """A `Source` from `da3gs.data.inputs.InputViews`; `cameras` and `depth` replace its own."""
    facts = {
        "kind": loaded.kind,
        "views": len(loaded.names),
        "skipped": [{"name": str(name), "reason": reason} for name, reason in loaded.skipped],
        "notes": list(loaded.notes),
    }
    points = loaded.points if cameras is None else None  # they stand in the frame of its own cameras
    cameras = loaded.cameras if cameras is None else cameras
    depth = loaded.depth if depth is None else depth
    return Source(
        list(loaded.images),
        tuple(loaded.names),
        cameras,
        depth,
        facts,
        upright=cameras is None,
        photographs=loaded.photographs,
        points=points,
    )


def check_usable(source: Source, *, measured: bool) -> None:
    """InputError if there is no depth to take, or cameras that nothing can render."""
    if measured and source.depth is None:
        raise InputError(
            "depth='given' needs an input with depth maps (a transforms.json with depth_file_path, or the depth "
            "argument); this one has none: use depth='network'"
        )
    if source.cameras is not None and (source.cameras.K[:, 0, 1] != 0).any():
        raise InputError(
            "cameras with skew cannot be rendered; K[0, 1] must be 0 (resample the images to square pixels)"
        )


def larger_views(source: Source, small: Views, size_px: int) -> Views:
    """What the network saw of the images, with at most `size_px` on the longer side of a whole one."""
    if bool((small.original_size == small.original_size[0]).all()):
        return prepare_views(source.images, size_px=size_px, names=source.names, exif_orientation=source.upright)
    return magnified(small, source.images, size_px, exif_orientation=source.upright)  # of the common middle


def views_without_network(source: Source, size_px: int) -> Views:
    """Images at their own shape with at most `size_px` on the longer side, area averaged: no patch grid is needed.

    Raises:
        InputError: Images of several aspect ratios.
    """
    import cv2

    width, height = source.size(0)
    factor = min(1.0, size_px / max(width, height))
    target = max(1, round(width * factor)), max(1, round(height * factor))
    stacked = torch.empty(len(source), 3, target[1], target[0])
    sizes = []
    for view, item in enumerate(source.images):
        picture = _as_array(item, source.upright)
        own = picture.shape[1], picture.shape[0]
        if abs(own[0] / own[1] / (width / height) - 1) > _ASPECT_TOLERANCE:
            raise InputError(
                f"{source.names[view]} is {own[0]}x{own[1]} px, another aspect ratio than the first view "
                f"({width}x{height}); views with measured depth must be of one shape"
            )
        if own != target:
            picture = cv2.resize(picture, target, interpolation=cv2.INTER_AREA)
        stacked[view] = tensor_from_uint8(picture)
        sizes.append(own)
    resized = torch.tensor([target] * len(source))
    views = Views(stacked, torch.tensor(sizes), resized, torch.zeros_like(resized), source.names)
    if source.cameras is None:
        return views
    return replace(views, cameras=views.cameras_to_processed(source.cameras))


def depth_on(views: Views, depth: Sequence[Tensor]) -> Float[Tensor, "V H W"]:
    """Measured depth at the pixels of processed images: the value under each pixel's centre, 0 where unknown.

    Nearest, because an average across an edge lies on no surface.

    Raises:
        InputError: A map of another aspect ratio than its image, or with NaN or negative values.
    """
    width, height = views.size
    maps = torch.zeros(len(views), height, width)
    for view, values in enumerate(depth):
        values = torch.as_tensor(values).float().cpu()
        if values.ndim != 2:
            raise InputError(f"depth of {views.names[view]} must be a map [H, W]; got {list(values.shape)}")
        if not torch.isfinite(values).all() or (values < 0).any():
            raise InputError(f"depth of {views.names[view]} must be finite and >= 0 (0 where unknown)")
        original = views.original_size[view].tolist()
        if abs(values.shape[1] / values.shape[0] / (original[0] / original[1]) - 1) > _ASPECT_TOLERANCE:
            raise InputError(
                f"depth of {views.names[view]} is {values.shape[1]}x{values.shape[0]} px, another aspect ratio than "
                f"its image ({original[0]}x{original[1]}); depth must be aligned with the colour image"
            )
        indices = []
        for axis, extent in ((0, width), (1, height)):
            stored = values.shape[1 - axis]
            centres = torch.arange(extent, dtype=torch.float64) + 0.5 + int(views.crop_left_top[view, axis])
            indices.append((centres * stored / int(views.resized_size[view, axis])).long().clamp(0, stored - 1))
        maps[view] = values[indices[1][:, None], indices[0]]
    return maps


def _as_array(item: ImageLike, upright: bool) -> np.ndarray:
    """RGB uint8 [H, W, 3]."""
    if isinstance(item, str | os.PathLike):
        return load_image(item, exif_orientation=upright)
    if isinstance(item, Tensor):
        return uint8_from_tensor(item)
    picture = Image.fromarray(item) if isinstance(item, np.ndarray) else item
    return image_to_rgb(picture, exif_orientation=upright)
