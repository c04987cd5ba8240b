"""Depth maps as files: exact (.npz), for other programs (16-bit .png), and for the eye (colours).

NAME.npz           depth, confidence (float32), sky (bool), where there are
NAME.png           16-bit levels; depth = level * unit, 0 is unknown
NAME_color.png     near is red, far is blue, unknown is black
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from da3gs.export.video import colorize_depth, save_image

LEVELS_16_BIT = 65535
MILLIMETRE = 1e-3
# quantile() takes no more than 16 million values, and needs no more than this.
_SAMPLES = 500_000


def depth_unit(farthest: float | int) -> float:
    """Millimetres where 16 bits hold the range well, else what spreads the range over all levels."""
    if 1000 * MILLIMETRE <= farthest <= LEVELS_16_BIT * MILLIMETRE:
        return MILLIMETRE
    return farthest / LEVELS_16_BIT if farthest > 0 else MILLIMETRE


def depth_limits(depth: Tensor) -> tuple[float, float]:
    """(near, far) for colours: 2 % and 98 % quantiles of what is known, one range for all maps."""
    known = depth[depth > 0]
    if len(known) == 0:
        return 1.0, 2.0
    known = known[:: max(1, len(known) // _SAMPLES)].double()
    near, far = torch.quantile(known, known.new_tensor([0.02, 0.98])).tolist()
    return (near, far) if far > 1.05 * near else (near / 1.05, far * 1.05)


def write_depth_files(
    folder: Path,
    stem: str,
    depth: Float[Tensor, "H W"],
    confidence: Float[Tensor, "H W"] | None = None,
    sky: Bool[Tensor, "H W"] | None = None,
    *,
    unit: float,
    limits: tuple[float, float],
) -> None:
    """The three files of a map.

    Args:
        folder: Exists.
        stem: Of the names.
        depth: z-depth, 0 where unknown.
        confidence, sky: Kept in the .npz.
        unit: Depth of one level of the .png.
        limits: (near, far) of the colours.
    """
    from PIL import Image

    levels = (depth.double() / unit).round().clamp(0, LEVELS_16_BIT).numpy().astype(np.uint16)
    save_image(Image.fromarray(levels), folder / f"{stem}.png")
    save_image(Image.fromarray(colorize_depth(depth, limits)), folder / f"{stem}_color.png")
    maps = {"depth": depth, "confidence": confidence, "sky": sky}
    arrays: dict[str, Any] = {name: values.numpy() for name, values in maps.items() if values is not None}
    np.savez_compressed(folder / f"{stem}.npz", **arrays)
