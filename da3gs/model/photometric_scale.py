"""The scale of predicted depth between cameras that are known: where pictures agree best.

A network that is told the poses still has to find out how far away things are in units of the baseline. The pictures
know: depth at the right scale carries the colours of one view onto those of the others.

    x_j = K_j (s d_i R_ji K_i^-1 p + t_ji)       cost(s) = mean over pixels and pairs of min(|I_i(p) - I_j(x_j)|, tau)

Letters: V views, H W pixels, C channels, S scales.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from da3gs.geometry.cameras import Cameras

_WORK_SIZE = 140  # px, longest side: parallax of a few pixels there is what decides
_REACH = 4.0  # scales are searched from 1 / reach to reach
_STEPS = 33
_CLIP = 0.15  # tau: differences above tell of occlusion, not of scale
_WINDOW = 15  # px of the local normalisation that makes pictures comparable across exposures
_NEIGHBOURS = 4  # views each view is carried into
_WORTH = 0.02  # relative drop of the cost below which the scale stays as it is


@dataclass(frozen=True)
class PhotometricScale:
    """Result of `photometric_scale`.

    Attributes:
        factor: To multiply depth by; 1 if another scale does not explain the pictures better.
        cost_before, cost_after: Mean clipped difference at factor 1 and at the best factor.
    """

    factor: float
    cost_before: float
    cost_after: float


@torch.no_grad()
def photometric_scale(
    images: Float[Tensor, "V 3 H W"], depth: Float[Tensor, "V H W"], cameras: Cameras
) -> PhotometricScale:
    """One factor for all depth maps under which the views look most alike through each other's eyes.

    Args:
        images: In [0, 1].
        depth: z-depth in the unit of the cameras; 0 where unknown.
        cameras: With poses, at the size of the maps. Views that all stand in one place fix no scale: factor 1.
    """
    longest = max(images.shape[-2:])
    if longest > _WORK_SIZE:
        rows, columns = (max(2, round(side * _WORK_SIZE / longest)) for side in images.shape[-2:])
        images = F.interpolate(images, (rows, columns), mode="area")
        depth = F.interpolate(depth[:, None], (rows, columns), mode="nearest-exact")[:, 0]
        cameras = cameras.scaled(width=columns, height=rows)
    factors = _REACH ** torch.linspace(-1, 1, _STEPS, device=images.device)
    features = _features(images)
    costs = [_pair_costs(features, depth, cameras, i, j, factors) for i, j in _pairs(cameras)]
    if not costs:
        return PhotometricScale(1.0, 0.0, 0.0)
    cost = torch.stack(costs).mean(0)
    before, best = float(cost[_STEPS // 2]), int(cost.argmin())
    if float(cost[best]) >= (1 - _WORTH) * before:
        return PhotometricScale(1.0, before, before)
    return PhotometricScale(float(_refined(factors, cost, best)), before, float(cost[best]))


def _pairs(cameras: Cameras) -> list[tuple[int, int]]:
    """Each view with the nearest of those that stand elsewhere and look roughly the same way."""
    centers, forward = cameras.centers, cameras.cam_from_world[:, 2, :3]
    distance = torch.cdist(centers, centers)
    apart = distance > 1e-6 * (1e-30 + distance.max())
    alike = forward @ forward.T > 0.5
    distance = torch.where(apart & alike, distance, torch.inf)
    order = distance.argsort(1)[:, :_NEIGHBOURS].tolist()
    return [(i, j) for i, row in enumerate(order) for j in row if bool(distance[i, j] < torch.inf)]


def _features(images: Tensor) -> Tensor:
    """Colours, and colours after local mean and contrast are taken out, which exposure does not change."""

    def box(values: Tensor, size: int) -> Tensor:
        return F.avg_pool2d(values, size, 1, size // 2, count_include_pad=False)

    smooth, mean = box(images, 3), box(images, _WINDOW)
    spread = (box(images.square(), _WINDOW) - mean.square()).clamp(min=0).sqrt()
    return torch.cat([smooth, 0.12 * (smooth - mean) / (spread + 0.03)], 1)


def _pair_costs(features: Tensor, depth: Tensor, cameras: Cameras, i: int, j: int, factors: Tensor) -> Tensor:
    """Cost [S] of carrying view i into view j; pixels that leave the picture cost the most."""
    height, width = depth.shape[-2:]
    directions, origins = cameras[i : i + 1].rays()
    R, t = cameras.cam_from_world[j, :3, :3], cameras.cam_from_world[j, :3, 3]
    ray = (directions.reshape(-1, 3) * depth[i].reshape(-1, 1)) @ (cameras.K[j] @ R).T
    start = cameras.K[j] @ (R @ origins.reshape(-1, 3)[0] + t)
    projected = factors[:, None, None] * ray + start
    z = projected[..., 2]
    place = projected[..., :2] / z.clamp(min=1e-6)[..., None] / torch.tensor([width, height]).to(z) * 2 - 1
    known = depth[i].flatten() > 0
    inside = (place.abs() <= 1).all(-1) & (z > 0) & known
    grid = place.nan_to_num(0.0).clamp(-2, 2).view(len(factors), height, width, 2)
    seen = F.grid_sample(
        features[j : j + 1].expand(len(factors), -1, -1, -1), grid, align_corners=False, padding_mode="border"
    )
    difference = (seen - features[i]).abs().mean(1).clamp(max=_CLIP).flatten(1)
    return (
        torch.where(inside, difference, _CLIP)[:, known].mean(1) if known.any() else difference.new_zeros(len(factors))
    )


def _refined(factors: Tensor, cost: Tensor, best: int) -> Tensor:
    """Lowest point of the parabola through the best factor and its neighbours, in the logarithm."""
    if best in (0, len(factors) - 1):
        return factors[best]
    left, middle, right = cost[best - 1 : best + 2]
    shift = 0.5 * (left - right) / (left - 2 * middle + right).clamp(min=1e-12)
    step = (factors[1] / factors[0]).log()
    return factors[best] * (shift.clamp(-0.5, 0.5) * step).exp()
