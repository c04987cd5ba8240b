"""Synthetic scenes from a seed: make_scene, sample_cameras, render_views, and make_sample, which does all three.

seed ─► layout (rooms, streets, gardens ...) ─► cameras that share what they see ─► exact geometry and a photograph
"""

import os
import random
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from da3gs.data.synthetic.builder import SceneBuilder, SyntheticScene
from da3gs.data.synthetic.camera_paths import covisible_fraction, sample_cameras
from da3gs.data.synthetic.layouts import HELD_OUT_LAYOUTS, TRAIN_LAYOUTS
from da3gs.data.synthetic.photo import PhotoSettings, photograph
from da3gs.data.synthetic.rendering import on_device, render_radiance
from da3gs.data.synthetic.textures import texture_bank
from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras

TRAIN_STYLES = tuple(TRAIN_LAYOUTS)
HELD_OUT_STYLES = tuple(HELD_OUT_LAYOUTS)
STYLES = TRAIN_STYLES + HELD_OUT_STYLES

# Textures are drawn once per bank and shared by the scenes of a process; held-out styles have their own.
_TRAIN_BANKS = 4
_HELD_OUT_BANK = 1000


@dataclass(frozen=True, eq=False)
class SyntheticViews:
    """Pictures of one scene with exact geometry, all on one device.

    Attributes:
        images: [V, 3, H, W] in [0, 1].
        depth: [V, H, W] z-depth in metres at pixel centres; 0 at the sky.
        normals: [V, H, W, 3] unit, world frame, towards the camera; 0 at the sky.
        sky: [V, H, W].
        object_ids: [V, H, W] -1 sky, 0 ground or floor, 1 walls, 2 ceiling, then one number per object of the scene.
        cameras: V cameras; the world frame is in metres with z up.
        seed, style: Of the scene.
    """

    images: Float[Tensor, "V 3 H W"]
    depth: Float[Tensor, "V H W"]
    normals: Float[Tensor, "V H W 3"]
    sky: Bool[Tensor, "V H W"]
    object_ids: Int64[Tensor, "V H W"]
    cameras: Cameras
    seed: int
    style: str

    def __len__(self) -> int:
        return len(self.images)


def make_scene(
    seed: int,
    *,
    style: str | None = None,
    difficulty: float | int = 0.5,
    photos: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
) -> SyntheticScene:
    """The scene of a seed: the same seed, style and difficulty give the same scene.

    Args:
        style: One of `STYLES`; drawn from `TRAIN_STYLES` when not given.
        difficulty: In [0, 1]: few large things, even light, and steady photographs up to many, thin and plain things,
            strong light and poor photographs.
        photos: Folder of photographs to use as textures besides the drawn ones.

    Raises:
        InputError: Unknown style, difficulty outside [0, 1], or no photographs in the folder.
    """
    if not 0.0 <= difficulty <= 1.0:
        raise InputError(f"difficulty must lie in [0, 1]; got {difficulty:g}")
    rng = random.Random(f"scene {seed}")
    style = style or rng.choice(TRAIN_STYLES)
    layout = TRAIN_LAYOUTS.get(style) or HELD_OUT_LAYOUTS.get(style)
    if layout is None:
        raise InputError(f"unknown style {style!r}; choose from {', '.join(STYLES)}")
    bank = texture_bank(_HELD_OUT_BANK if style in HELD_OUT_STYLES else seed % _TRAIN_BANKS, photos)
    builder = SceneBuilder(rng, float(difficulty), bank.photo_layers)
    layout(builder)
    scene = builder.build(seed, style, bank)
    return scene if torch.device(device).type == "cpu" else scene.to(device)


def render_views(
    scene: SyntheticScene, cameras: Cameras, *, photo: PhotoSettings | None = None, edge_samples: int = 2
) -> SyntheticViews:
    """Photographs of the scene with exact depth, normals, sky and object masks.

    Args:
        cameras: With poses, of one image size; as from `sample_cameras`, or any outside of the scene's solids.
        photo: How the pictures are taken; drawn from the scene's seed and difficulty when not given.
        edge_samples: Further rays for pixels at outlines (anti-aliasing).

    Raises:
        InputError: Cameras without poses or of different sizes.
    """
    radiance, geometry = render_radiance(scene, cameras, edge_samples=edge_samples)
    settings = photo or PhotoSettings.draw(scene.seed, len(cameras), scene.difficulty)
    images = photograph(radiance, settings, scene.seed)
    return SyntheticViews(
        images, geometry.depth, geometry.normals, geometry.sky, geometry.object_ids, on_device(cameras, scene.device),
        scene.seed, scene.style,
    )  # fmt: skip


def make_sample(
    seed: int,
    views: int,
    width: int,
    height: int,
    *,
    style: str | None = None,
    difficulty: float | int = 0.5,
    motion: str = "any",
    min_covisibility: float | int | None = None,
    photos: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    edge_samples: int = 2,
) -> SyntheticViews:
    """One training sample: a scene, cameras and pictures, all from the seed. Arguments as in the functions it calls."""
    scene = make_scene(seed, style=style, difficulty=difficulty, photos=photos, device=device)
    cameras = sample_cameras(scene, views, seed, width, height, motion=motion, min_covisibility=min_covisibility)
    return render_views(scene, cameras, edge_samples=edge_samples)


def covisibility(sample: SyntheticViews) -> Float[Tensor, "V V"]:
    """Entry (i, j): fraction of the surface pixels of view i that view j sees, from the exact depth."""
    return covisible_fraction(sample.depth, sample.cameras)
