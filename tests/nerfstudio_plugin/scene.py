"""A small ray-traced data set in nerfstudio's format: spheres on a checkered floor, seen from an arc of cameras."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SPHERES = (
    ((0.0, 0.0, 0.5), 0.5, (220, 60, 50)),
    ((0.9, -0.3, 0.3), 0.3, (60, 180, 75)),
    ((-0.8, 0.4, 0.35), 0.35, (60, 90, 220)),
)
SUN = np.array([0.4, -0.4, 0.82])


def look_at(eye, target=(0.0, 0.0, 0.35), up=(0.0, 0.0, 1.0)) -> np.ndarray:
    """[4, 4] camera-to-world with OpenGL axes."""
    eye, target, up = (np.asarray(value, float) for value in (eye, target, up))
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(back, right), back], 1)
    pose[:3, 3] = eye
    return pose


def trace(pose: np.ndarray, focal: float, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 3] picture of the scene."""
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([(u - width / 2) / focal, -(v - height / 2) / focal, -np.ones_like(u)], -1) @ pose[:3, :3].T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    origin = pose[:3, 3]
    nearest = np.full((height, width), np.inf)
    image = np.full((height, width, 3), (170.0, 200.0, 230.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(rays[..., 2] < -1e-6, -origin[2] / rays[..., 2], np.inf)
        points = origin + distance[..., None] * rays
        floor = np.isfinite(distance) & (np.abs(points).max(-1) < 3)
        checker = (np.floor(points[..., 0] * 2) + np.floor(points[..., 1] * 2)) % 2 == 0
    image[floor] = np.where(checker[floor][:, None], (200.0, 200.0, 190.0), (90.0, 90.0, 100.0))
    nearest[floor] = distance[floor]
    for center, radius, colour in SPHERES:
        offset = origin - np.asarray(center)
        b = (rays * offset).sum(-1)
        discriminant = b * b - (offset @ offset - radius**2)
        distance = -b - np.sqrt(np.maximum(discriminant, 0))
        hit = (discriminant > 0) & (distance > 0) & (distance < nearest)
        normal = (origin + distance[..., None] * rays - np.asarray(center)) / radius
        shade = 0.35 + 0.65 * np.clip(normal @ SUN, 0, 1)
        image[hit] = (np.asarray(colour) * shade[..., None])[hit]
        nearest[hit] = distance[hit]
    return image.clip(0, 255).astype(np.uint8)


def poses(views: int) -> list[np.ndarray]:
    """Cameras on an arc of 120 degrees."""
    angles = np.deg2rad(-60 + 120 * np.arange(views) / max(1, views - 1))
    return [look_at((3 * np.sin(a), -3 * np.cos(a), 1.4 + 0.2 * (i % 2))) for i, a in enumerate(angles)]


def write_scene(folder: Path, views: int = 10, width: int = 64, height: int = 48) -> Path:
    """``transforms.json`` and images below `folder`; returns it."""
    (folder / "images").mkdir(parents=True)
    focal, frames = 0.9 * width, []
    for index, pose in enumerate(poses(views)):
        name = f"images/{index:04d}.png"
        Image.fromarray(trace(pose, focal, width, height)).save(folder / name)
        frames.append({"file_path": name, "transform_matrix": pose.tolist()})
    content = {
        "camera_model": "OPENCV",
        "fl_x": focal,
        "fl_y": focal,
        "cx": width / 2,
        "cy": height / 2,
        "w": width,
        "h": height,
        "frames": frames,
    }
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def write_camera_path(path: Path, width: int = 64, height: int = 48, frames: int = 3) -> Path:
    """A camera path as the viewer saves it, in nerfstudio's normalised frame."""
    cameras = [
        {"camera_to_world": look_at((a, -0.9, 0.3), (0, 0, -0.2)).reshape(-1).tolist(), "fov": 50, "aspect": 4 / 3}
        for a in np.linspace(-0.3, 0.3, frames)
    ]
    content = {
        "camera_type": "perspective",
        "render_height": height,
        "render_width": width,
        "fps": frames,
        "seconds": 1,
        "smoothness_value": 0.5,
        "is_cycle": False,
        "crop": None,
        "camera_path": cameras,
        "keyframes": [],
    }
    path.write_text(json.dumps(content))
    return path
