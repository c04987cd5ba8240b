"""Metric scale of a nested model: one factor that brings the any-view depth onto the metric network's depth."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from da3gs.errors import InputError
from da3gs.model.depth_heads import FEWEST_PIXELS, QUANTILE_SAMPLES, SKY_QUANTILE, SKY_THRESHOLD

if TYPE_CHECKING:
    from da3gs.model.network import Prediction

METRIC_FOCAL_PX = 300.0  # metres = depth * focal / 300 for the released metric network
NEAREST_METRIC = 1e-2
NEAREST_DEPTH = 1e-3
FARTHEST_SKY = 200.0


def align_to_metric(any_view: "Prediction", metric: "Prediction") -> "Prediction":
    """Scale depth and camera translations of `any_view` to metres, and put the sky far away. Gaussians are not scaled.

    As released: the factor is the least-squares one over pixels that are not sky and at least as confident as the
    median, one for the whole batch; sky depth is the 0.99 quantile of the rest (at most 200 m) with confidence 1.

    Raises:
        InputError: Ten or fewer pixels are not sky.
    """
    # 1. Metres from the metric network, through the focal length the any-view network predicts.
    focal = torch.stack([(scene.K[:, 0, 0] + scene.K[:, 1, 1]) / 2 for scene in any_view.cameras])
    metres = metric.depth * (focal / METRIC_FOCAL_PX)[..., None, None]
    ground = metric.sky < SKY_THRESHOLD
    if int(ground.sum()) <= FEWEST_PIXELS:
        raise InputError("nearly every pixel is sky, so no metric scale can be found; use the any-view model instead")
    # 2. Least squares over the confident half of the ground.
    middle = torch.quantile(_sample(any_view.confidence[ground]), 0.5)
    used = (any_view.confidence >= middle) & ground & (metres > NEAREST_METRIC) & (any_view.depth > NEAREST_DEPTH)
    theirs, ours = metres[used], any_view.depth[used]
    scale = torch.dot(theirs, ours) / torch.dot(ours, ours).clamp(min=1e-12)
    # 3. Apply it.
    depth = any_view.depth * scale
    far = torch.quantile(_sample(depth[ground]), SKY_QUANTILE).clamp(max=FARTHEST_SKY)
    cameras = []
    for scene in any_view.cameras:
        poses = scene.cam_from_world.clone()
        poses[:, :3, 3] = poses[:, :3, 3] * scale
        cameras.append(scene.with_poses(poses))
    return replace(
        any_view,
        depth=torch.where(ground, depth, far),
        confidence=torch.where(ground, any_view.confidence, 1.0),
        cameras=cameras,
        sky=metric.sky,
        scale_factor=float(scale),
    )


def _sample(values: Tensor) -> Tensor:
    """At most 100000 of the values, without replacement, by torch's global generator."""
    if len(values) <= QUANTILE_SAMPLES:
        return values
    return values[torch.randperm(len(values), device=values.device)[:QUANTILE_SAMPLES]]
