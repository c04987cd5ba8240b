"""Made-up scenes for the rendering tests and the benchmark."""

import math

import numpy as np
import torch

from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import quat_from_matrix
from da3gs.geometry.spherical_harmonics import dc_from_rgb


def look_at(eye, target) -> np.ndarray:
    """cam_from_world [4, 4] of an upright camera (world y down) at `eye` that looks at `target`."""
    eye, target = np.asarray(eye, np.float64), np.asarray(target, np.float64)
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, -rotation @ eye
    return pose


def random_scene(count=200, views=2, sh_degree=0, width=48, height=32, seed=0) -> tuple[Gaussians, Cameras]:
    """Overlapping splats in front of a few cameras; some behind them, some far outside the view, some opaque or
    invisible.
    """
    rng = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=rng)

    means = torch.cat([(uniform(count, 2) - 0.5) * torch.tensor([5.0, 3.4]), uniform(count, 1) * 3 + 1.5], -1)
    means[: count // 20, 2] = -1.0
    means[count // 20 : count // 10, :2] *= 4
    opacities = 0.02 + 0.98 * uniform(count)
    opacities[count // 10 : count * 3 // 20] = 0.002
    opacities[count * 3 // 20 : count // 5] = 1.0
    sh = 0.4 * torch.randn(count, (sh_degree + 1) ** 2, 3, generator=rng)
    quats = torch.randn(count, 4, generator=rng)
    gaussians = Gaussians(means, quats, 0.02 + 0.15 * uniform(count, 3), opacities, sh)
    poses = [look_at((0.3 * v - 0.1, 0.1, -0.3 - 0.2 * v), (0, 0, 3)) for v in range(views)]
    intrinsics = [
        [[40.0 + 3 * v, 0, width / 2 + 1.5], [0, 42.0 + v, height / 2 - 0.7], [0, 0, 1]] for v in range(views)
    ]
    return gaussians, Cameras(torch.tensor(np.stack(poses)).float(), torch.tensor(intrinsics), width, height)


ROOM_LOW, ROOM_HIGH = np.array([-3.0, -2.0, -3.0]), np.array([3.0, 2.0, 4.0])
SPHERES = (((-0.9, 0.6, 1.6), 0.8), ((1.0, 0.2, 2.2), 1.0), ((0.1, 1.1, 0.6), 0.5))


def _trace(origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First hit of rays with a room and three spheres: distance in units of the direction, and the normal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        walls = np.where(directions > 0, (ROOM_HIGH - origin) / directions, (ROOM_LOW - origin) / directions)
    axis = walls.argmin(-1)[:, None]
    nearest = walls.min(-1)
    normals = np.zeros_like(directions)
    np.put_along_axis(normals, axis, -np.sign(np.take_along_axis(directions, axis, 1)), 1)
    for center, radius in SPHERES:
        to_origin = origin - np.array(center)
        a, b = (directions**2).sum(-1), (to_origin * directions).sum(-1)
        discriminant = b * b - a * ((to_origin**2).sum(-1) - radius**2)
        distance = np.where(discriminant > 0, (-b - np.sqrt(np.maximum(discriminant, 0))) / a, np.inf)
        hit = (distance > 1e-3) & (distance < nearest)
        nearest = np.where(hit, distance, nearest)
        points = origin + nearest[:, None] * directions
        normals = np.where(hit[:, None], (points - np.array(center)) / radius, normals)
    return nearest, normals


def room_scene(
    context_views: int, context_height: int, context_width: int, width: int, height: int, seed: int = 0
) -> tuple[Gaussians, Cameras]:
    """What a feed-forward model makes of a room: one pixel-sized splat per pixel of each context view; one new view.

    Standard deviations are about 0.7 context pixels (lognormal, 0.3 of that along the normal), opacities 0.3-0.9,
    depths off by 1 %, as in real predictions.
    """
    rng = np.random.default_rng(seed)
    half_fov = math.radians(65.0) / 2
    focal = 0.5 * context_width / math.tan(half_fov)
    u, v = np.meshgrid(np.arange(context_width) + 0.5, np.arange(context_height) + 0.5)
    rays = np.stack([(u - context_width / 2) / focal, (v - context_height / 2) / focal, np.ones_like(u)], -1)
    parts = []
    for view in range(context_views):
        angle = (view / max(context_views - 1, 1) - 0.5) * 1.2
        eye = np.array([1.6 * math.sin(angle), 0.25 * math.sin(3 * angle) - 0.2, -1.2 * math.cos(angle) - 0.6])
        directions = rays.reshape(-1, 3) @ look_at(eye, (0, 0.2, 1.6))[:3, :3]
        depth, normals = _trace(eye, directions)
        depth = depth * (1 + 0.01 * rng.standard_normal(depth.shape))
        means = eye + depth[:, None] * directions
        helper = np.where(np.abs(normals[:, :1]) < 0.9, np.array([[1.0, 0, 0]]), np.array([[0, 1.0, 0]]))
        tangent = np.cross(normals, helper)
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
        rotation = np.stack([tangent, np.cross(normals, tangent), normals], -1)
        spread = np.exp(0.4 * rng.standard_normal((len(depth), 3))) * np.array([1.0, 1.0, 0.3])
        x, y, z = means.T
        rgb = 0.5 + 0.45 * np.stack([np.sin(3 * x + 5 * y), np.sin(7 * y - 2 * z), np.cos(4 * z)], -1)
        parts.append((means, rotation, (0.7 * depth / focal)[:, None] * spread, rgb))
    means, rotations, scales, rgb = (
        torch.tensor(np.concatenate(column)).float() for column in zip(*parts, strict=True)
    )
    norms = torch.tensor(rng.uniform(0.5, 2, (len(means), 1))).float()
    opacities = torch.tensor(rng.uniform(0.3, 0.9, len(means))).float()
    gaussians = Gaussians(means, quat_from_matrix(rotations) * norms, scales, opacities, dc_from_rgb(rgb)[:, None])
    focal = 0.5 * width / math.tan(half_fov)
    K = torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]])
    pose = torch.tensor(look_at((0.15, -0.1, -1.75), (0.05, 0.2, 1.6))).float()
    return gaussians, Cameras(pose[None], K, width, height)
