"""Pictures, cameras and depth brought to one size: scaled until they cover it, then cropped about the centre.

With "lanczos" what pixelSplat and its successors do to their images (``rescale_and_crop``).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras


@dataclass(frozen=True)
class Covering:
    """One resize and one crop.

    Attributes:
        original: (width, height) in pixels before.
        size: (width, height) after.
        scaled: (width, height) in between, at least `size`.
        left_top: Pixels of the scaled picture that the crop leaves out.
    """

    original: tuple[int, int]
    size: tuple[int, int]
    scaled: tuple[int, int]
    left_top: tuple[int, int]

    @staticmethod
    def of(original: tuple[int, int], size: tuple[int, int]) -> "Covering":
        """From (width, height) to (width, height)."""
        if min(*original, *size) < 1:
            raise InputError(f"sizes must be at least one pixel; got {original} and {size}")
        factor = max(size[0] / original[0], size[1] / original[1])
        scaled = max(size[0], round(original[0] * factor)), max(size[1], round(original[1] * factor))
        return Covering(original, size, scaled, ((scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2))

    def picture(
        self, image: UInt8[np.ndarray, "H W 3"], resampling: Literal["area", "lanczos"] = "area"
    ) -> UInt8[np.ndarray, "h w 3"]:
        """A picture, area averaged where it shrinks and cubic where it grows, or by Pillow's Lanczos filter."""
        import cv2
        from PIL import Image

        self._check(image)
        if resampling == "lanczos":
            image = np.asarray(Image.fromarray(image).resize(self.scaled, Image.Resampling.LANCZOS))
        else:
            shrinks = self.scaled[0] < self.original[0]
            image = cv2.resize(image, self.scaled, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        (left, top), (width, height) = self.left_top, self.size
        return np.ascontiguousarray(image[top : top + height, left : left + width])

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """A map [H, W] of the picture: the value under the centre of every new pixel (depth, masks)."""
        self._check(values)
        rows, columns = (
            ((np.arange(self.size[axis]) + 0.5 + self.left_top[axis]) * self.original[axis] / self.scaled[axis])
            for axis in (1, 0)
        )
        return values[rows.astype(int)[:, None], columns.astype(int)]

    def cameras(self, cameras: Cameras) -> Cameras:
        """Cameras of the picture; poses are untouched."""
        (left, top), (width, height) = self.left_top, self.size
        scaled = cameras.scaled(width=self.scaled[0], height=self.scaled[1])
        return scaled.cropped(left=left, top=top, width=width, height=height)

    def _check(self, values: np.ndarray) -> None:
        if (values.shape[1], values.shape[0]) != self.original:
            raise InputError(
                f"expected a picture of {self.original[0]}x{self.original[1]} px; got {values.shape[1]}x"
                f"{values.shape[0]}"
            )
