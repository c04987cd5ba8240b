"""What lies between a photograph and the image a camera describes: the record that leads back to the photograph.

    photograph ─► turned by EXIF ─► lens undone ─► resized ─► cropped ─► image of the camera

Written per view into ``cameras.json`` as ``photograph``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from da3gs.data.lens import Lens
from da3gs.errors import FormatError
from da3gs.geometry.cameras import Cameras

_LENS_MODELS = ("perspective", "fisheye")


@dataclass(frozen=True, eq=False)
class Photograph:
    """Where the image of one camera comes from.

    Attributes:
        width, height: Of the photograph in pixels, after the EXIF turn if there was one.
        turned: Whether an EXIF turn was to be applied.
        lens: What was undone, at that size; None for a pinhole image.
        resized: (width, height) it was resized to; None when it was not.
        left_top: Where the crop starts in the resized image, in pixels.
    """

    width: int
    height: int
    turned: bool = True
    lens: Lens | None = None
    resized: tuple[int, int] | None = None
    left_top: tuple[int, int] = (0, 0)

    @property
    def cropped(self) -> bool:
        return self.left_top != (0, 0)

    def whole(self, camera: Cameras) -> Cameras:
        """The camera of the cropped and resized image ([1]), at the size of the photograph; float64."""
        camera = camera.to(torch.float64)
        width, height = self.resized or (self.width, self.height)
        left, top = self.left_top
        return camera.cropped(left=-left, top=-top, width=width, height=height).scaled(
            width=self.width, height=self.height
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `photograph_from_dict` reads them."""
        content: dict[str, Any] = {
            "width": self.width,
            "height": self.height,
            "turned_by_exif": self.turned,
            "resized": list(self.resized or (self.width, self.height)),
            "crop_left_top": list(self.left_top),
        }
        if self.lens is not None:
            content["lens"] = {
                "model": self.lens.model,
                "coefficients": self.lens.coefficients.tolist(),
                "K": self.lens.K.tolist(),
            }
        return content


def photograph_from_dict(content: Any, where: str) -> Photograph:
    """The inverse of `Photograph.to_dict`.

    Raises:
        FormatError: Missing or impossible values; names `where`.
    """
    try:
        width, height = int(content["width"]), int(content["height"])
        resized = (int(content["resized"][0]), int(content["resized"][1]))
        left_top = (int(content["crop_left_top"][0]), int(content["crop_left_top"][1]))
        turned = bool(content["turned_by_exif"])
        lens = None
        if content.get("lens") is not None:
            coefficients = np.array(content["lens"]["coefficients"], dtype=np.float64)
            K = np.array(content["lens"]["K"], dtype=np.float64)
            model = content["lens"]["model"]
            if coefficients.shape != (8,) or K.shape != (3, 3) or model not in _LENS_MODELS:
                raise ValueError(f"lens {model!r} with {list(coefficients.shape)} coefficients")
            if not (np.isfinite(coefficients).all() and np.isfinite(K).all()):
                raise ValueError("a lens with NaN or infinity")
            lens = Lens(model, coefficients, K, width, height)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"{where}: 'photograph' must hold width, height, turned_by_exif, resized, crop_left_top and perhaps lens "
            f"({error!r}); remove it, and the camera is scaled by the sizes alone"
        ) from error
    if min(width, height, *resized) < 1 or min(left_top) < 0:
        raise FormatError(f"{where}: 'photograph' holds impossible sizes: {content!r:.120}")
    return Photograph(width, height, turned, lens, resized, left_top)


def shared_lenses(photographs: Sequence[Photograph | None]) -> tuple[Photograph | None, ...]:
    """The same records with equal lenses as one object: what undoes a lens is kept per object."""
    known: dict[tuple, Lens] = {}

    def shared(photograph: Photograph | None) -> Photograph | None:
        if photograph is None or photograph.lens is None:
            return photograph
        return replace(photograph, lens=known.setdefault(_key(photograph.lens), photograph.lens))

    return tuple(shared(photograph) for photograph in photographs)


def scaled_lens(lens: Lens, width: int, height: int, known: dict[tuple, Lens]) -> Lens:
    """The lens of the photograph resized to `width` x `height`; equal ones are one object of `known`."""
    K = lens.K.copy()
    K[0] *= width / lens.width
    K[1] *= height / lens.height
    resized = Lens(lens.model, lens.coefficients, K, width, height)
    return known.setdefault(_key(resized), resized)


def _key(lens: Lens) -> tuple:
    return (lens.model, lens.width, lens.height, *lens.coefficients.tolist(), *lens.K.ravel().tolist())
