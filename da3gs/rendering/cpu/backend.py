"""The CPU backend behind `da3gs.rendering.render`; same signature and result as `gsplat_backend.rasterize`."""

import importlib.util
from functools import cache
from importlib.metadata import version

import numpy as np
from torch import Tensor

from da3gs.rendering.cpu import autograd
from da3gs.rendering.cpu.stages import Style

# The largest alpha of a single splat, by version of gsplat; this backend follows the installed one.
MAX_ALPHA_GSPLAT_1_5 = 0.999  # 1.4 and 1.5
MAX_ALPHA_GSPLAT_1_6 = 0.99


def rasterize(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, cam_from_world: Tensor, K: Tensor,
    *, width: int, height: int, near: tuple[float, ...], far: tuple[float, ...], depth: bool, antialiased: bool,
    memory_bytes: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Blend on zero: image [V, H, W, C (+ accumulated z-depth)], alpha [V, H, W, 1].

    `colors` is SH [N, K, 3] (drawn as max(0, SH + 0.5)) or channels [N, C]. Gradients flow to everything but K.
    """
    style = Style(depth, antialiased, np.float32(max_alpha()))
    plan = autograd.Plan(width, height, near, far, style, colors.ndim == 3, memory_bytes)
    return autograd.rasterize(means, quats, scales, opacities, colors, cam_from_world, K, plan)


@cache
def max_alpha() -> float:
    """The cap of the installed gsplat, or of 1.5 where there is none."""
    if importlib.util.find_spec("gsplat") is None:
        return MAX_ALPHA_GSPLAT_1_5
    major, minor = version("gsplat").split(".")[:2]
    return MAX_ALPHA_GSPLAT_1_5 if (int(major), int(minor)) < (1, 6) else MAX_ALPHA_GSPLAT_1_6
