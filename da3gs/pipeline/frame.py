"""The world frame of scenes whose cameras nobody gave: upright, centred, of unit size.

Letters: V views, P pixels, N points.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from da3gs.geometry.cameras import Cameras
from da3gs.geometry.similarity import Similarity
from da3gs.pipeline.report import Report
from da3gs.pipeline.surface import Surface
from da3gs.rendering.trajectories import up_direction

AXES = "x right, y down, z forward (OpenCV)"


def scene_from_surface(
    surface: Surface,
    points: Float[Tensor, "N 3"],
    keep: Bool[Tensor, " P"],
    report: Report,
    *,
    given: bool,
    keep_unit: bool,
) -> Similarity:
    """Into the frame of the scene, with its description in the report.

    Args:
        points: Where the kept pixels are.
        keep: Pixels in (view, row, column) order that are left.
        given: The cameras were, and so the frame.
        keep_unit: Leave the unit of an estimated frame alone.
    """
    if given:
        report.content["frame"] = {"source": "given cameras", "axes": AXES, "unit": surface.unit}
        return Similarity.identity()
    views = keep.nonzero()[:, 0] // surface.depth[0].numel()
    moved, facts = canonical_frame(surface.cameras, points, views, keep_scale=keep_unit)
    report.content["frame"] = {
        "source": "estimated",
        "axes": f"{AXES}; y along the mean gravity of the pictures",
        "unit": surface.unit if keep_unit else "median camera-to-point distance",
        **facts,
        "scene_from_network": moved.matrix.tolist(),
    }
    report.chose("up", facts["up_before"], "mean of the cameras' up directions")
    report.chose("centre", facts["center_before"], "median of the Gaussians")
    why = "the median distance from a camera to its points becomes 1"
    report.chose("scale", facts["scale"], f"lengths are {surface.unit}" if keep_unit else why)
    return moved


def canonical_frame(
    cameras: Cameras, points: Float[Tensor, "N 3"], views: Int64[Tensor, " N"], *, keep_scale: bool = False
) -> tuple[Similarity, dict]:
    """scene_from_network: y down along the cameras' mean gravity, the first camera looking along +z as far as gravity
    lets it, the median point at the origin, and the median distance from a camera to its points 1.

    Args:
        cameras: [V] posed.
        points: World points, at least one.
        views: The view each point was seen from.
        keep_scale: Leave the unit alone (metres).

    Returns:
        The similarity, and what was estimated (plain numbers, in the frame before) for the report.
    """
    up = up_direction(cameras)
    rotation = _upright(up, cameras.look_directions[0].detach().double().cpu())
    # Half a million points are plenty for medians.
    step = max(1, len(points) // 500_000)
    points, views = points[::step].detach().double().cpu(), views[::step].cpu()
    # The median per axis depends on the axes: those of the scene, so that the result does not depend on the network's.
    center = rotation.T @ (points @ rotation.T).median(0).values
    distance = float((points - cameras.centers.detach().double().cpu()[views]).norm(dim=1).median())
    scale = 1.0 if keep_scale or distance <= 0 else 1.0 / distance
    similarity = Similarity(scale, rotation, -scale * (rotation @ center))
    facts = {
        "up_before": up.tolist(),
        "center_before": center.tolist(),
        "median_camera_to_point_distance_before": distance,
        "scale": scale,
    }
    return similarity, facts


def _upright(up: Tensor, forward: Tensor) -> Tensor:
    """Rotation with rows (right, down, ahead): `up` becomes -y, and `forward` lies in the y-z plane with z >= 0."""
    down = -up / up.norm()
    ahead = forward - (forward @ down) * down
    if ahead.norm() < 1e-6:  # looking straight up or down: any heading will do
        axis = torch.eye(3, dtype=torch.float64)[int(down.abs().argmin())]
        ahead = axis - (axis @ down) * down
    ahead = ahead / ahead.norm()
    return torch.stack([torch.linalg.cross(down, ahead), down, ahead])
