"""`render`: Gaussians and cameras to pictures, on whichever backend the tensors live near.

    Gaussians, Cameras ─► near, far ─► backend: gsplat (CUDA) | cpu (numba) ─► background ─► RenderOutput
                                              rasterize() of either: same signature, same numbers

Letters: V views, H W pixels, N Gaussians, C channels.
"""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.errors import BackendError, InputError
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras

logger = logging.getLogger(__name__)

# The clipping planes follow the scene: a similarity of scene and cameras leaves the picture the same.
NEAR_PER_DEPTH = 0.01
FAR_PER_DEPTH = 1e6

# What lies behind the Gaussians: a colour [3], one per view [V, 3], pictures [V, H, W, 3], or a function that returns
# [H, W, 3] for one view (a sky, a far shell).
Background = Tensor | Callable[[Cameras], Tensor]


@dataclass(frozen=True)
class RenderConfig:
    """How to render.

    Attributes:
        backend: "gsplat" (CUDA), "cpu" (numba), or "auto": gsplat for tensors on a CUDA device, else cpu.
        background: Colour behind the Gaussians, RGB in [0, 1]; `render` takes pictures and functions too.
        antialiased: Dim each splat by what the pixel filter adds to its area (Mip-Splatting, Yu et al. 2024).
        depth: Render depth too; without it `RenderOutput.depth` is None.
        sh_degree: Use spherical harmonics up to this degree; None for all there are.
        near, far: Clipping planes as z-depth in scene units. None: 0.01 and 1e6 times the geometric mean of
            the z-depths in front of the camera, for each view.
        memory_mib: Bound on the scratch of the cpu backend; larger scenes are rendered in strips.
    """

    backend: Literal["auto", "gsplat", "cpu"] = "auto"
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    antialiased: bool = False
    depth: bool = True
    sh_degree: int | None = None
    near: float | None = None
    far: float | None = None
    memory_mib: int = 1024


@dataclass(frozen=True, eq=False)
class RenderOutput:
    """Pictures of V views of one size.

    Attributes:
        rgb: [V, H, W, 3] colour over the background; can exceed 1.
        alpha: [V, H, W, 1] in [0, 1]: 1 - transmittance.
        depth: [V, H, W, 1] expected z-depth, sum(T alpha z) / sum(T alpha), in scene units; 0 where alpha is 0. None if
            not asked for.
    """

    rgb: Float[Tensor, "V H W 3"]
    alpha: Float[Tensor, "V H W 1"]
    depth: Float[Tensor, "V H W 1"] | None


def render(
    gaussians: Gaussians, cameras: Cameras, config: RenderConfig | None = None, *, background: Background | None = None
) -> RenderOutput | list[RenderOutput]:
    """Render Gaussians from every camera.

    Blending, culling and the order of splats are gsplat's; the backends agree to float32 rounding, except that a splat
    at a threshold (alpha = 1/255, transmittance = 1e-4) may count in one and not in the other.

    Args:
        gaussians: On the device to render on.
        cameras: Any number, of any sizes; moved to the device of the Gaussians. Distortion is not drawn.
        config: Defaults to ``RenderConfig()``.
        background: Replaces ``config.background``.

    Returns:
        One RenderOutput if all cameras have one size, else a list with one per view. Gradients flow to means, quats,
        scales, opacities, SH, ``cameras.cam_from_world`` and the background; not to K.

    Raises:
        InputError: Values that are not finite, cameras without poses or with skew, a background of the wrong shape.
        BackendError: The asked-for backend cannot run here.
    """
    config = config or RenderConfig()
    if not cameras.same_size:
        if isinstance(background, Tensor) and background.ndim > 1:
            raise InputError("views differ in size, so a background per view must be given as a function of the view")
        return [_render_one_size(gaussians, cameras[view], config, background) for view in range(len(cameras))]
    return _render_one_size(gaussians, cameras, config, background)


def _render_one_size(
    gaussians: Gaussians, cameras: Cameras, config: RenderConfig, background: Background | None
) -> RenderOutput:
    if config.sh_degree is not None and config.sh_degree < gaussians.sh_degree:
        gaussians = gaussians.with_sh_degree(config.sh_degree)
    image, alpha = _rasterize(gaussians, gaussians.sh, cameras, config)
    rgb = image[..., :3]
    behind = _background(background if background is not None else config.background, cameras, image)
    if behind is not None:
        rgb = rgb + (1 - alpha) * behind
    depth = image[..., 3:] / alpha.clamp_min(1e-10) if config.depth else None
    return RenderOutput(rgb, alpha, depth)


def render_features(
    gaussians: Gaussians,
    features: Float[Tensor, "N C"],
    cameras: Cameras,
    config: RenderConfig | None = None,
) -> Float[Tensor, "V H W C"]:
    """Blend any per-Gaussian features as `render` blends colours, on zero. All cameras must have one size.

    Gradients flow to the features and to everything `render` differentiates but SH.
    """
    config = replace(config or RenderConfig(), depth=False)
    if features.ndim != 2 or len(features) != len(gaussians) or features.shape[1] == 0:
        raise InputError(f"features must be [{len(gaussians)}, C], one row per Gaussian; got {list(features.shape)}")
    return _rasterize(gaussians, features, cameras, config)[0]


def contributions(gaussians: Gaussians, cameras: Cameras, config: RenderConfig | None = None) -> Float[Tensor, " N"]:
    """How much of the pictures each Gaussian makes up: sum over views and pixels of T alpha, in pixels. No gradient.

    T alpha is the derivative of the blended image with respect to a colour, so this is one backward pass.
    """
    detached = gaussians.detach()
    total = gaussians.means.new_zeros(len(gaussians))
    for view in range(len(cameras)):
        with torch.enable_grad():
            ones = gaussians.means.new_ones(len(gaussians), 1).requires_grad_()
            image = render_features(detached, ones, cameras[view].detach(), config)
            total += torch.autograd.grad(image.sum(), ones)[0][:, 0]
    return total


def clipping_planes(
    means: Float[Tensor, "N 3"], cameras: Cameras, near: float | None = None, far: float | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """z-depths (near, far) per view; where they are None they follow the geometric mean of the depths in front.

    A geometric mean, because a few Gaussians at the camera or in the sky move it little.
    """
    nears, fars = [], []
    with torch.no_grad():
        for pose in cameras.cam_from_world.to(means):
            if near is None or far is None:
                depth = means @ pose[2, :3] + pose[2, 3]
                in_front = depth > 0
                logs = torch.where(in_front, depth, 1).log()
                typical = float((logs.sum(dtype=torch.float64) / in_front.sum().clamp_min(1)).exp())
            nears.append(float(near) if near is not None else NEAR_PER_DEPTH * typical)
            fars.append(float(far) if far is not None else FAR_PER_DEPTH * typical)
    return tuple(nears), tuple(fars)


def _rasterize(gaussians: Gaussians, colors: Tensor, cameras: Cameras, config: RenderConfig) -> tuple[Tensor, Tensor]:
    """Image on zero [V, H, W, C (+ accumulated depth)] and alpha [V, H, W, 1]."""
    cameras = cameras.to(gaussians.device)
    _check(gaussians, colors, cameras, config)
    width, height = cameras.size
    near, far = clipping_planes(gaussians.means, cameras, config.near, config.far)
    return choose_backend(config.backend, gaussians.device)(
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        colors,
        cameras.cam_from_world,
        cameras.K,
        width=width,
        height=height,
        near=near,
        far=far,
        depth=config.depth,
        antialiased=config.antialiased,
        memory_bytes=config.memory_mib << 20,
    )


def _check(gaussians: Gaussians, colors: Tensor, cameras: Cameras, config: RenderConfig) -> None:
    if cameras.cam_from_world is None:
        raise InputError("rendering needs cameras with poses; these have cam_from_world=None")
    if cameras.K[:, 0, 1].any():
        raise InputError("rendering ignores skew; K[0, 1] must be 0 (resample the images to square pixels)")
    if config.near is not None and config.far is not None and not 0 < config.near < config.far:
        raise InputError(f"clipping planes must satisfy 0 < near < far; got near {config.near}, far {config.far}")
    fields = {name: getattr(gaussians, name) for name in ("means", "quats", "scales", "opacities")} | {"colors": colors}
    # One sum per field finds NaN and infinity at a fraction of the cost of looking at each value.
    if not torch.isfinite(torch.stack([value.detach().sum() for value in fields.values()])).all():
        for name, value in fields.items():
            bad = ~torch.isfinite(value.detach()).reshape(len(value), -1).all(1)
            if bad.any():
                raise InputError(
                    f"cannot render: {name} of {int(bad.sum())} of {len(value)} Gaussians hold NaN or infinity "
                    f"(first: {int(bad.nonzero()[0])}); drop them, e.g. gaussians[isfinite]"
                )


def _background(background, cameras: Cameras, image: Tensor) -> Tensor | None:
    """What lies behind, broadcastable to [V, H, W, 3]; None for black."""
    views, height, width = image.shape[:3]
    if callable(background):
        background = torch.stack([background(cameras[view]) for view in range(views)])
    elif not isinstance(background, Tensor):
        if not any(background):
            return None
        background = torch.tensor(background)
    background = background.to(image)
    if background.shape == (views, 3):
        background = background[:, None, None]
    elif background.shape not in ((3,), (views, height, width, 3)):
        raise InputError(
            f"the background must be a colour [3] or [{views}, 3], pictures [{views}, {height}, {width}, 3], or a "
            f"function of one view that returns [{height}, {width}, 3]; got {list(background.shape)}"
        )
    return background


# ---------------------------------------------------------------- backends

_announced: set[str] = set()


def choose_backend(name: str, device: torch.device) -> Callable:
    """The rasterize function for tensors on `device`; says once in the log which one and why."""
    if name not in ("auto", "gsplat", "cpu"):
        raise InputError(f"backend must be one of auto, gsplat, cpu; got {name!r}")
    if name == "gsplat" and device.type != "cuda":
        raise BackendError(
            f"backend gsplat renders CUDA tensors; these are on {device}. Move Gaussians to 'cuda' or use backend='cpu'"
        )
    if name == "cpu" and device.type != "cpu":
        raise BackendError(f"backend cpu renders CPU tensors; these are on {device}. Move them with .to('cpu')")
    if device.type == "cuda":
        _require("gsplat", "gsplat", "pip install gsplat")
        _announce("gsplat", f"tensors are on {device}" if name == "auto" else "asked for")
        from da3gs.rendering.gsplat_backend import rasterize

        return rasterize
    if device.type != "cpu":
        raise BackendError(f"no backend renders tensors on {device}; move them to 'cuda' or 'cpu'")
    _require("cpu", "numba", "pip install numba")
    _announce("cpu (numba)", "tensors are on the CPU" if name == "auto" else "asked for")
    from da3gs.rendering.cpu.backend import rasterize

    return rasterize


def _require(backend: str, module: str, command: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise BackendError(f"backend {backend} needs the package {module}: {command}")


def _announce(backend: str, reason: str) -> None:
    message = f"rendering with {backend}: {reason}"
    if message not in _announced:
        _announced.add(message)
        logger.info(message)
