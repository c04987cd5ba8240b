"""Which pictures to match a view with: those that see the same things from a little aside.

Letters: V views, S sources.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from da3gs.geometry.cameras import Cameras

# Angle (degrees) between the rays of two views that matches best: less tells little of depth, more looks different.
_BEST_ANGLE = 8.0
_NARROWER, _WIDER = 4.0, 14.0  # standard deviations below and above it
_LEAST_ANGLE = 1.0
_GRID = 5


def matching_views(
    cameras: Cameras,
    depth: Float[Tensor, " V"],
    sources: Cameras,
    count: int,
    own: list[int | None],
    *,
    least_score: float = 0.05,
) -> list[list[int]]:
    """For every view at most `count` sources, the best first; none where all see something else or stand with it.

    Args:
        cameras: V views, posed.
        depth: z-depth a view typically looks at.
        sources: S posed cameras of one image size.
        own: Which source each view itself is, if any.
        least_score: Shared part of the picture, times 1 at the best angle and less at others; 0 takes whoever sees
            anything of it.
    """
    width, height = cameras.size
    u, v = torch.meshgrid(torch.arange(_GRID) + 0.5, torch.arange(_GRID) + 0.5, indexing="xy")
    pixels = torch.stack([u.flatten() * width / _GRID, v.flatten() * height / _GRID, torch.ones(_GRID**2)], -1)
    extent = torch.tensor(sources.size, dtype=torch.float32)
    chosen = []
    for view in range(len(cameras)):
        rays = pixels @ torch.linalg.inv(cameras.K[view]).T * depth[view]
        points = rays @ cameras.cam_from_world[view, :3, :3] + cameras.centers[view]
        uv, z = sources.project(points)
        overlap = ((z > 0) & (uv >= 0).all(-1) & (uv < extent).all(-1)).float().mean(1)
        towards = F.normalize(cameras.centers[view] - points, dim=-1)
        cosine = (towards * F.normalize(sources.centers[:, None] - points, dim=-1)).sum(-1).clamp(-1, 1)
        angle = torch.rad2deg(cosine.acos()).mean(1)
        width_of_bell = torch.where(angle < _BEST_ANGLE, _NARROWER, _WIDER)
        score = overlap * torch.exp(-0.5 * ((angle - _BEST_ANGLE) / width_of_bell).square())
        score[angle < _LEAST_ANGLE] = 0
        if own[view] is not None:
            score[own[view]] = 0
        order = score.argsort(descending=True)[:count].tolist()
        chosen.append([source for source in order if score[source] > least_score])
    return chosen
