"""What every kind of input becomes: images with what is known about their cameras.

Letters: V views, H W pixels (may differ from view to view).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from da3gs.data.photo_files import exif_orientation
from da3gs.data.photographs import Photograph
from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.images import image_to_rgb, load_image

AnyImage = TypeVar("AnyImage")
InputKind = Literal["folder", "glob", "image", "video", "colmap", "transforms", "rgbd"]


@dataclass(frozen=True, eq=False)
class InputViews:
    """V images, and their cameras when the source has them.

    Attributes:
        names: One label per view, unique.
        images: Per view a file, or RGB uint8 [H, W, 3] where the file as such is not the image (video frames,
            undistorted photographs, photographs turned by EXIF that have cameras). `prepare_views(images, cameras)`
            reads both right.
        sizes: (width, height) of each image in pixels, EXIF turns applied.
        cameras: At the sizes of the images, or None; without poses when only intrinsics were given.
        depth: [H, W] z-depth per view at the size of its image, world units, 0 where unknown; None unless asked for.
        kind: What the source is.
        focal_hint_px: Focal length that EXIF implies, per view; some percent off, None where it does not say.
        skipped: (name, reason) of what was left out because it could not be used.
        notes: What was decided on the way, one sentence each.
        photographs: Per view the photograph its image was made from; None where it is that photograph, turned upright.
        points: Per view the sparse points it sees, in the world frame of the cameras; None where these came without.
    """

    names: tuple[str, ...]
    images: tuple[Path | UInt8[np.ndarray, "_h _w 3"], ...]
    sizes: tuple[tuple[int, int], ...]
    cameras: Cameras | None
    depth: tuple[Float[Tensor, "_h _w"], ...] | None
    kind: InputKind
    focal_hint_px: tuple[float | None, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    photographs: tuple[Photograph, ...] | None = None
    points: tuple[Float[Tensor, "_m 3"], ...] | None = None

    def __post_init__(self):
        for field in ("images", "sizes", "cameras", "depth", "focal_hint_px", "photographs", "points"):
            value = getattr(self, field)
            if value is not None and len(value) != len(self.names):
                raise InputError(f"InputViews.{field} must have one entry per view ({len(self)}); got {len(value)}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, indices: slice | Sequence[int]) -> "InputViews":
        """A subset of the views, in the order given."""
        pick = list(range(len(self)))[indices] if isinstance(indices, slice) else [int(i) for i in indices]
        if not pick:
            raise InputError("the selection holds no view")
        return replace(
            self,
            names=tuple(self.names[i] for i in pick),
            images=tuple(self.images[i] for i in pick),
            sizes=tuple(self.sizes[i] for i in pick),
            cameras=None if self.cameras is None else self.cameras[pick],
            depth=None if self.depth is None else tuple(self.depth[i] for i in pick),
            focal_hint_px=tuple(self.focal_hint_px[i] for i in pick),
            photographs=None if self.photographs is None else tuple(self.photographs[i] for i in pick),
            points=None if self.points is None else tuple(self.points[i] for i in pick),
        )

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """The image of one view, upright: the picture its camera describes."""
        image = self.images[index]
        return image if isinstance(image, np.ndarray) else load_image(image)

    def with_cameras(self, cameras: Cameras) -> "InputViews":
        """The same views with cameras found for them, at the sizes of the images; EXIF-turned files are read for it."""
        sizes = tuple((int(w), int(h)) for w, h in zip(cameras.width, cameras.height, strict=True))
        if sizes != self.sizes:
            raise InputError(f"the cameras are not at the sizes of the images: {sizes[:3]} against {self.sizes[:3]}")
        return replace(self, images=turned_upright(self.images), cameras=cameras)

    def hinted_cameras(self) -> Cameras | None:
        """Cameras without poses whose focal length is EXIF's hint; None unless every view has one."""
        hints = [focal for focal in self.focal_hint_px if focal is not None]
        if len(hints) < len(self):
            return None
        K = [
            [[focal, 0, w / 2], [0, focal, h / 2], [0, 0, 1.0]] for focal, (w, h) in zip(hints, self.sizes, strict=True)
        ]
        width, height = torch.tensor(self.sizes).T
        return Cameras(None, torch.tensor(K), width, height)


def turned_upright(images: Sequence[AnyImage]) -> tuple[AnyImage | np.ndarray, ...]:
    """The same images, with those that EXIF turns read: cameras speak of upright pictures, and images that come with
    cameras are taken as they are stored."""

    def upright(image):
        if isinstance(image, str | os.PathLike):
            return image if exif_orientation(Path(image)) == 1 else load_image(image)
        if isinstance(image, Image.Image):
            return image_to_rgb(image, exif_orientation=True)
        return image

    return tuple(upright(image) for image in images)
