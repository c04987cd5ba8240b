"""The CUDA backend behind `da3gs.rendering.render`: gsplat 1.4 to 1.5, the only module that imports it.

Only keyword arguments that both versions share are used (1.5 inserted some in the middle). gsplat compiles its kernels
on first use, which takes minutes; a call on a machine that cannot compile is reported as a BackendError.
"""

from itertools import groupby

import torch
from torch import Tensor

from da3gs.errors import BackendError


def rasterize(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, cam_from_world: Tensor, K: Tensor,
    *, width: int, height: int, near: tuple[float, ...], far: tuple[float, ...], depth: bool, antialiased: bool,
    memory_bytes: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Blend on zero: image [V, H, W, C (+ accumulated z-depth)], alpha [V, H, W, 1].

    `colors` is SH [N, K, 3] (drawn as max(0, SH + 0.5)) or channels [N, C]. Gradients flow to everything but K.
    """
    del memory_bytes  # gsplat's memory follows the scene
    views = len(cam_from_world)
    if len(means) == 0:
        channels = (3 if colors.ndim == 3 else colors.shape[1]) + depth
        return means.new_zeros(views, height, width, channels), means.new_zeros(views, height, width, 1)
    rasterization = _load()
    parts = []
    # gsplat takes one pair of clipping planes per call, so views that share theirs go together.
    for (near_plane, far_plane), members in groupby(range(views), key=lambda view: (near[view], far[view])):
        pick = list(members)
        image, alpha, _ = rasterization(
            means=means.float(),
            quats=quats.float(),
            scales=scales.float(),
            opacities=opacities.float(),
            colors=colors.float(),
            viewmats=cam_from_world[pick].float(),
            Ks=K[pick].detach().float(),
            width=width,
            height=height,
            near_plane=near_plane,
            far_plane=far_plane,
            sh_degree=_degree(colors) if colors.ndim == 3 else None,
            packed=False,
            render_mode="RGB+D" if depth else "RGB",
            rasterize_mode="antialiased" if antialiased else "classic",
        )
        parts.append((image, alpha))
    return torch.cat([image for image, _ in parts]), torch.cat([alpha for _, alpha in parts])


def _degree(sh: Tensor) -> int:
    return round(sh.shape[1] ** 0.5) - 1


def _load():
    """gsplat.rasterization with its kernels loaded."""
    try:
        from gsplat import rasterization
        from gsplat.cuda._backend import _C
    except (AttributeError, ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"{_HELP} ({type(error).__name__}: {error})") from error
    if _C is None:
        raise BackendError(f"{_HELP} (no CUDA toolkit found)")
    return rasterization


_HELP = (
    "gsplat is installed but its CUDA kernels cannot be built or loaded; install the CUDA toolkit that matches torch, "
    "set CUDA_HOME, and pip install ninja, or render on the CPU: gaussians.to('cpu')"
)
