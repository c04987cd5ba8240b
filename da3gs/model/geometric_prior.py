"""What depth, colour and cameras alone say about one splat per pixel.

    depth ── blur ── points ── normal ──► axes (t1, t2, n) of a flat splat on the surface
      │                          └──────► its size, stretched by 1/cos where the surface is tilted
      └── jumps ────────────────────────► pixels whose surface is unknown ("edge")
    confidence ─────────────────────────► opacity          image ─────► colour

The adapter adds the prior as biases in the raw space of the Gaussian head (`gaussian_adapter`), so that a head of zeros
and no head at all are the same thing. No gradient flows through it.

Letters: V views, H W pixels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from da3gs.geometry.cameras import Cameras

# Footprint: standard deviation in pixels of the view that made the splat, and relative thickness along the normal.
SIGMA_PX = 0.5
THICKNESS = 0.1
# Smallest cosine between surface normal and viewing direction that stretches a splat.
MIN_COSINE = 0.2
# Relative depth range in a 3x3 window from which on the pixel stands on an edge.
JUMP = 0.05
# Opacity from the 5 % to the 50 % quantile of the log confidence; certain pixels reach the upper value.
OPACITY_RANGE = (0.5, 0.9)
_BLUR_SIGMA_PX = 1.2


@dataclass(frozen=True, eq=False)
class GeometricPrior:
    """Per-pixel splat shapes in camera frames.

    Attributes:
        sigma_px: [V, H, W, 3] standard deviations along the columns of `axes`, in units of depth / focal length.
        axes: [V, H, W, 3, 3] rotations cam_from_local with columns (t1, t2, n); n faces the camera.
        opacity: [V, H, W] in (0, 1).
        edge: [V, H, W] pixels on a depth jump, at the border, or next to an invalid depth: their normal is the viewing
            direction, and filters may drop them.
    """

    sigma_px: Float[Tensor, "V H W 3"]
    axes: Float[Tensor, "V H W 3 3"]
    opacity: Float[Tensor, "V H W"]
    edge: Bool[Tensor, "V H W"]


@torch.no_grad()
def geometric_prior(
    depth: Float[Tensor, "V H W"], cameras: Cameras, confidence: Float[Tensor, "V H W"] | None = None
) -> GeometricPrior:
    """The prior of z-depth maps seen by cameras of the same size; depth <= 0 marks invalid pixels."""
    # 1. Where the surface is known: valid depth all around, no jump.
    edge = depth_edges(depth)
    # 2. Normals of the smoothed surface; on edges the splat faces the camera.
    rays = cameras.camera_rays().to(depth)
    view = F.normalize(rays, dim=-1)
    normal = _normals(_blurred(depth)[..., None] * rays)
    facing = (normal * view).sum(-1, keepdim=True)
    normal = torch.where(facing > 0, -normal, normal)
    normal = torch.where(edge[..., None], -view, normal)
    cosine = -(normal * view).sum(-1)
    # 3. Axes on the surface: t1 across the tilt, t2 along it.
    across = torch.linalg.cross(normal, view)
    up = torch.zeros_like(normal)
    up[..., 1] = 1
    across = torch.where(across.norm(dim=-1, keepdim=True) < 1e-3, torch.linalg.cross(normal, up), across)
    t1 = F.normalize(across, dim=-1)
    t2 = torch.linalg.cross(normal, t1)
    # 4. A pixel's footprint, stretched along the tilt and thin along the normal.
    stretch = 1 / cosine.clamp(MIN_COSINE, 1.0)
    sigma_px = SIGMA_PX * torch.stack([torch.ones_like(stretch), stretch, torch.full_like(stretch, THICKNESS)], -1)
    return GeometricPrior(sigma_px, torch.stack([t1, t2, normal], -1), opacity_from_confidence(depth, confidence), edge)


@torch.no_grad()
def depth_edges(depth: Float[Tensor, "V H W"]) -> Bool[Tensor, "V H W"]:
    """Pixels whose 3x3 window spans more than `JUMP` of their depth, leaves the image, or holds an invalid depth."""
    stacked = depth[:, None]
    highest = F.max_pool2d(stacked, 3, stride=1, padding=1)[:, 0]
    lowest = -F.max_pool2d(-stacked, 3, stride=1, padding=1)[:, 0]
    edge = (highest - lowest > JUMP * depth) | (lowest <= 0)
    edge[:, [0, -1]] = True
    edge[:, :, [0, -1]] = True
    return edge


@torch.no_grad()
def opacity_from_confidence(
    depth: Float[Tensor, "V H W"], confidence: Float[Tensor, "V H W"] | None
) -> Float[Tensor, "V H W"]:
    """Opacity by the rank of the confidence within its view; the upper value where it is absent or constant.

    Opacity must not simply follow confidence: one view at 0.6 loses 4 dB against 0.9. Dropping doubtful pixels is left
    to filters.
    """
    low, high = OPACITY_RANGE
    if confidence is None:
        return torch.full_like(depth, high)
    log_confidence = confidence.clamp(min=torch.finfo(confidence.dtype).tiny).log().flatten(1)
    quantiles = torch.tensor([0.05, 0.5], dtype=log_confidence.dtype, device=log_confidence.device)
    # View by view: torch.quantile refuses more than 2^24 values at once.
    bounds = torch.stack([values.quantile(quantiles) for values in log_confidence])
    lower, span = bounds[:, :1], bounds[:, 1:] - bounds[:, :1]
    rank = ((log_confidence - lower) / torch.where(span > 0, span, 1.0)).clamp(0, 1)
    rank = torch.where(span > 0, rank, 1.0)
    return (low + (high - low) * rank).reshape(depth.shape).to(depth)


def _blurred(depth: Tensor) -> Tensor:
    """5x5 Gaussian blur that ignores invalid pixels and the outside of the image."""
    taps = torch.exp(-0.5 * (torch.arange(-2, 3, dtype=depth.dtype, device=depth.device) / _BLUR_SIGMA_PX) ** 2)
    valid = (depth > 0).to(depth)
    maps = torch.stack([depth * valid, valid], 1).flatten(0, 1)[:, None]
    maps = F.conv2d(maps, taps.reshape(1, 1, 1, 5), padding=(0, 2))
    maps = F.conv2d(maps, taps.reshape(1, 1, 5, 1), padding=(2, 0))
    total, weight = maps[:, 0].unflatten(0, (-1, 2)).unbind(1)
    return torch.where(weight > 0, total / weight.clamp(min=1e-12), depth)


def _normals(points: Tensor) -> Tensor:
    """Unit normals of a map of points [V, H, W, 3] from the smaller one-sided difference along each axis."""
    along_u = _smaller_difference(points, dim=2)
    along_v = _smaller_difference(points, dim=1)
    return F.normalize(torch.linalg.cross(along_u, along_v), dim=-1)


def _smaller_difference(points: Tensor, dim: int) -> Tensor:
    difference = points.diff(dim=dim)
    first, last = difference.narrow(dim, 0, 1), difference.narrow(dim, difference.shape[dim] - 1, 1)
    forward = torch.cat([difference, last], dim)
    backward = torch.cat([first, difference], dim)
    smaller = forward.square().sum(-1, keepdim=True) <= backward.square().sum(-1, keepdim=True)
    return torch.where(smaller, forward, backward)
