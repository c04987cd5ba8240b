"""Photographs with known cameras, as every reader of posed data returns them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from da3gs.data.lens import Lens
from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.images import load_image, tracked


@dataclass(frozen=True, eq=False)
class Photo:
    """One image file of a data set.

    Attributes:
        path: The file.
        name: Its name in the data set (the path as the data set writes it).
        lens: The distorting camera, or None for an image that is a pinhole image already.
        upright: Whether the calibration refers to the image after its EXIF orientation.
        depth_path: Depth file, if any.
        points: Sparse points of the reconstruction that this photograph sees, in the world frame; None without any.
    """

    path: Path
    name: str
    lens: Lens | None = None
    upright: bool = False
    depth_path: Path | None = None
    points: Float[Tensor, "_m 3"] | None = None


@dataclass(frozen=True, eq=False)
class PosedImages:
    """V photographs and the pinhole cameras of the images that `load_image` returns.

    Attributes:
        photos: One per view.
        cameras: [V] posed cameras, OpenCV convention, at the size of the image files, after undistortion.
        splits: Split name ("train", "val", "test") -> indices into the views; a view may be in several or in none.
        depth_unit_scale_factor: Factor from stored depth values to world units; None when the data set does not say.
        applied_transform: [4, 4] frame of these cameras from the frame before (as nerfstudio records it), or None.
        applied_scale: Scale that came with it. Both are records: poses are as the file has them.
    """

    photos: tuple[Photo, ...]
    cameras: Cameras
    splits: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    depth_unit_scale_factor: float | None = None
    applied_transform: Float[np.ndarray, "4 4"] | None = None
    applied_scale: float = 1.0

    def __post_init__(self):
        if len(self.photos) != len(self.cameras):
            raise InputError(f"expected one camera per image ({len(self.photos)}); got {len(self.cameras)}")

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def image_paths(self) -> tuple[Path, ...]:
        return tuple(photo.path for photo in self.photos)

    @property
    def depth_paths(self) -> tuple[Path | None, ...]:
        return tuple(photo.depth_path for photo in self.photos)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(photo.name for photo in self.photos)

    def __getitem__(self, indices: slice | Sequence[int]) -> "PosedImages":
        """A subset of the views, in the order given; splits follow."""
        pick = list(range(len(self)))[indices] if isinstance(indices, slice) else [int(i) for i in indices]
        if not pick:
            raise InputError("the selection holds no view")
        position = {old: new for new, old in enumerate(pick)}
        splits = {name: tuple(position[i] for i in old if i in position) for name, old in self.splits.items()}
        photos = tuple(self.photos[i] for i in pick)
        return replace(self, photos=photos, cameras=self.cameras[torch.tensor(pick)], splits=splits)

    def split(self, name: str) -> "PosedImages":
        """The views of one split; InputError lists the known ones."""
        if not self.splits.get(name):
            known = ", ".join(f"{key} ({len(value)})" for key, value in self.splits.items())
            raise InputError(f"no views in split {name!r}; the data set has: {known or 'no splits'}")
        return self[self.splits[name]]

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """The image of one view, undistorted: the picture that `cameras[index]` describes.

        Raises:
            InputError, FormatError: The file is gone, damaged, or has changed its size.
        """
        photo = self.photos[index]
        image = load_image(photo.path, exif_orientation=photo.upright)
        expected = int(self.cameras.width[index]), int(self.cameras.height[index])
        if (image.shape[1], image.shape[0]) != expected:
            raise InputError(
                f"{photo.path} is {image.shape[1]}x{image.shape[0]} px, its camera {expected[0]}x{expected[1]}"
            )
        return image if photo.lens is None else photo.lens.undistort(image, self._pinhole_K(index))

    def load_images(self, *, progress: bool = False) -> list[UInt8[np.ndarray, "H W 3"]]:
        """All images, undistorted; `progress` shows a bar."""
        return [self.load_image(index) for index in tracked(range(len(self)), "Reading images", shown=progress)]

    def undistort_map(self, index: int, values: np.ndarray) -> np.ndarray:
        """A map of the photograph as taken (depth, mask; [H, W]) on the pixels of `load_image`, nearest neighbour."""
        lens = self.photos[index].lens
        return values if lens is None else lens.undistort(values, self._pinhole_K(index), nearest=True)

    def _pinhole_K(self, index: int) -> np.ndarray:
        return self.cameras.K[index].double().cpu().numpy()
