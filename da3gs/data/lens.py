"""Lens distortion: from photographs as taken to the pinhole images every other part of the package expects.

Coefficients follow OpenCV; pixel coordinates are ours: pixel (0, 0) is centred at (0.5, 0.5), while OpenCV puts it at
(0, 0).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from da3gs.errors import FormatError, InputError
from da3gs.geometry.conventions import PIXEL_CENTER_PX

# Range of the zoom that removes the empty margin; a wider field than this does not fit a useful flat picture.
_MIN_ZOOM, _MAX_ZOOM = 0.5, 8.0
_BISECTIONS = 40


@dataclass(frozen=True, eq=False)
class Lens:
    """The camera a photograph was really taken with.

    Attributes:
        model: "perspective" (OpenCV's rational model) or "fisheye" (OpenCV's, after Kannala and Brandt).
        coefficients: [8] k1 k2 p1 p2 k3 k4 k5 k6 for "perspective"; k1 k2 k3 k4 0 0 0 0 for "fisheye".
        K: [3, 3] intrinsics of the distorted photograph, in pixels.
        width, height: Its size in pixels.
    """

    model: Literal["perspective", "fisheye"]
    coefficients: Float[np.ndarray, "8"]
    K: Float[np.ndarray, "3 3"]
    width: int
    height: int

    def distort(self, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
        """Ideal directions (x / z, y / z) to where the lens puts them, both on the plane z = 1, float64."""
        c = self.coefficients
        if self.model == "fisheye":
            radius = np.linalg.norm(points, axis=1)
            angle = np.arctan(radius)
            t = angle**2
            bent = angle * (1 + t * (c[0] + t * (c[1] + t * (c[2] + t * c[3]))))
            ratio = np.divide(bent, radius, out=np.ones_like(radius), where=radius > 1e-12)
            return points * ratio[:, None]
        x, y = points.T
        r2 = x * x + y * y
        radial = (1 + r2 * (c[0] + r2 * (c[1] + r2 * c[4]))) / (1 + r2 * (c[5] + r2 * (c[6] + r2 * c[7])))
        return np.stack(
            [
                x * radial + 2 * c[2] * x * y + c[3] * (r2 + 2 * x * x),
                y * radial + c[2] * (r2 + 2 * y * y) + 2 * c[3] * x * y,
            ],
            axis=1,
        )

    def pixels_from_pinhole(self, pixels: Float[np.ndarray, "N 2"], K: np.ndarray) -> Float[np.ndarray, "N 2"]:
        """Pixels of the pinhole image with intrinsics `K` to pixels of the photograph, float64."""
        homogeneous = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1)
        ideal = homogeneous @ np.linalg.inv(K).T
        return self.distort(ideal[:, :2] / ideal[:, 2:]) @ self.K[:2, :2].T + self.K[:2, 2]

    def pinhole_K(self) -> Float[np.ndarray, "3 3"]:
        """Intrinsics of the largest pinhole image of the same size that shows no empty margin.

        Principal point and pixel aspect are kept; only the focal lengths are multiplied by one zoom, the smallest for
        which every border pixel of the result lies inside the photograph.

        Raises:
            FormatError: No zoom works: coefficients that fold the image, or a view too wide for a flat picture.
        """

        def zoomed(zoom: float) -> np.ndarray:
            K = self.K.copy()
            K[:2, :2] *= zoom
            return K

        if not self._covers(zoomed(_MAX_ZOOM)):
            raise FormatError(
                f"the lens ({self.model}, coefficients {self.coefficients.tolist()}) cannot be undistorted: "
                "its coefficients fold the image or its field of view is too wide; check k1.. and the camera model"
            )
        low, high = np.log(_MIN_ZOOM), np.log(_MAX_ZOOM)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if self._covers(zoomed(float(np.exp(middle)))):
                high = middle
            else:
                low = middle
        return zoomed(float(np.exp(high)))

    def undistort(
        self, image: Shaped[np.ndarray, "H W *C"], K: np.ndarray, *, nearest: bool = False
    ) -> Shaped[np.ndarray, "H W *C"]:
        """The photograph (or its depth map, with `nearest`) as seen by a pinhole camera with intrinsics `K`."""
        if image.shape[:2] != (self.height, self.width):
            raise InputError(
                f"the lens describes {self.width}x{self.height} px; got an image of {image.shape[1]}x{image.shape[0]}"
            )
        grid = _sampling_grid(self, np.ascontiguousarray(K, dtype=np.float64).tobytes())
        # float32 holds every 8- and 16-bit value. cv2.remap would round positions to 1/32 px.
        channels = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)).reshape(*image.shape[:2], -1)
        sampled = torch.nn.functional.grid_sample(
            channels.permute(2, 0, 1)[None],
            grid[None],
            mode="nearest" if nearest else "bilinear",
            padding_mode="border",
            align_corners=False,
        )
        result = sampled[0].permute(1, 2, 0).reshape(image.shape).numpy()
        return (np.rint(result) if np.issubdtype(image.dtype, np.integer) else result).astype(image.dtype)

    def _covers(self, K: np.ndarray) -> bool:
        """Whether the whole border of the pinhole image lies inside the photograph, on the rising part of the lens."""
        x, y = np.arange(self.width) + 0.5, np.arange(self.height) + 0.5
        border = np.concatenate(
            [
                np.stack([x, np.full_like(x, 0.5)], 1),
                np.stack([x, np.full_like(x, self.height - 0.5)], 1),
                np.stack([np.full_like(y, 0.5), y], 1),
                np.stack([np.full_like(y, self.width - 0.5), y], 1),
            ]
        )
        source = self.pixels_from_pinhole(border, K)
        if not np.isfinite(source).all() or (source < 0).any() or (source > [self.width, self.height]).any():
            return False
        # A polynomial that turns back maps several directions to one pixel: the radius must grow all the way out.
        corner = np.linalg.norm((border - K[:2, 2]) / [K[0, 0], K[1, 1]], axis=1).max()
        radii = np.linspace(0, corner, 64)
        bent = self.distort(np.stack([radii, np.zeros_like(radii)], 1))[:, 0]
        return bool((np.diff(bent) > 0).all())


@lru_cache(maxsize=2)  # the photographs of a data set usually share one lens
def _sampling_grid(lens: Lens, K_bytes: bytes) -> Tensor:
    """[H, W, 2] float32 positions for torch's grid_sample (-1 and 1 at the outer edges of the image).

    Filled row by row to bound the memory of large photographs.
    """
    K = np.frombuffer(K_bytes).reshape(3, 3)
    grid = np.empty((lens.height, lens.width, 2), np.float32)
    u = np.arange(lens.width) + PIXEL_CENTER_PX
    for row in range(lens.height):
        pixels = np.stack([u, np.full_like(u, row + PIXEL_CENTER_PX)], 1)
        grid[row] = lens.pixels_from_pinhole(pixels, K) / [lens.width, lens.height] * 2 - 1
    return torch.from_numpy(grid)
