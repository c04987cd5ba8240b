"""A scene as a COLMAP project, for trainers that start from one: pictures, cameras, and splats as sparse points.

FOLDER/images/NAME.png
FOLDER/sparse/0/cameras.bin images.bin points3D.bin
"""

import os
import shutil
from pathlib import Path

import torch

from da3gs.atomic import MARK, atomic_path, check_replaceable
from da3gs.data.colmap import write_colmap
from da3gs.export.scene_folder import CAMERAS, GAUSSIANS, IMAGES, REPORT, file_stems, load_scene
from da3gs.geometry.similarity import Similarity
from da3gs.geometry.spherical_harmonics import rgb_from_dc

SPARSE = "sparse"
MAX_POINTS = 100_000
# Fainter splats show no surface.
_SOLID = 0.1


def holds_scene(folder: str | os.PathLike) -> bool:
    """Whether a path is a folder that `Scene.save` wrote."""
    return all((Path(folder) / name).is_file() for name in (GAUSSIANS, CAMERAS, REPORT))


def save_colmap_project(
    scene_folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    similarity: Similarity | None = None,
    max_points: int = MAX_POINTS,
) -> tuple[int, int]:
    """Write a scene folder as a COLMAP project, complete or not at all.

    Args:
        scene_folder: As `Scene.save` writes it.
        output: Folder; new, empty, or an earlier project of this function, which is replaced.
        similarity: Moves cameras and points first.
        max_points: At most so many points, drawn from the centres of the solid splats (seeded).

    Returns:
        Number of cameras and of points.

    Raises:
        InputError: No scene there, or a folder that holds other things.
    """
    output = Path(output).expanduser()
    check_replaceable(output, "a COLMAP project", (IMAGES, SPARSE, MARK), (MARK,))
    scene = load_scene(scene_folder)
    if similarity is not None:
        scene = scene.transform(similarity)
    stems = file_stems([str(name) for name in scene.report["views"]])
    solid = (scene.gaussians.opacities >= _SOLID).nonzero().flatten()
    chosen = solid[torch.randperm(len(solid), generator=torch.Generator().manual_seed(0))[:max_points]]
    colors = (rgb_from_dc(scene.gaussians.sh[chosen, 0]) * 255).round().clamp(0, 255).byte()
    with atomic_path(output.resolve(), directory=True) as temporary:
        (temporary / IMAGES).mkdir()
        (temporary / SPARSE).mkdir()
        for stem in stems:
            shutil.copyfile(Path(scene_folder) / IMAGES / f"{stem}.png", temporary / IMAGES / f"{stem}.png")
        write_colmap(
            temporary / SPARSE / "0",
            scene.cameras,
            [f"{stem}.png" for stem in stems],
            scene.gaussians.means[chosen],
            colors,
        )
        (temporary / MARK).touch()
    return len(stems), len(chosen)
