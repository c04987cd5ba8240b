"""A Scene as a folder, and back.

::

    scene.ply           the Gaussians
    cameras.json        the context cameras, at the size of the maps, and how these came from the photographs
    transforms.json     the same for nerfstudio: ns-train takes it from here
    images/NAME.png     what the network saw
    depth/NAME.png      16 bits, 0 unknown; times depth_unit_scale_factor of transforms.json it is z-depth
    depth/NAME_color.png, depth/NAME.npz (depth, confidence: float32)
    report.json         what was chosen, dropped and measured
    preview.png         input, depth and render of a few views
    flythrough.mp4      a clip along the cameras

The folder appears complete or not at all.
"""

import itertools
import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from da3gs.atomic import atomic_path, check_replaceable
from da3gs.data.cameras_json import read_cameras_json, write_cameras_json
from da3gs.data.photographs import Photograph, photograph_from_dict
from da3gs.data.transforms_json import write_transforms_json
from da3gs.errors import FormatError, InputError
from da3gs.export.depth_files import depth_limits, depth_unit, write_depth_files
from da3gs.export.gaussian_files import DEFAULT_FRAME, load_gaussians, save_gaussians
from da3gs.export.video import colorize_depth, render_frames, save_image, write_contact_sheet, write_video
from da3gs.gaussians import Scene
from da3gs.geometry.cameras import Cameras
from da3gs.images import load_image, tensor_from_uint8, uint8_from_tensor
from da3gs.rendering import RenderConfig
from da3gs.rendering.interpolation import interpolate
from da3gs.rendering.trajectories import wobble

if TYPE_CHECKING:
    from da3gs.pipeline.stages import Stages

logger = logging.getLogger(__name__)

GAUSSIANS, CAMERAS, TRANSFORMS, REPORT = "scene.ply", "cameras.json", "transforms.json", "report.json"
PREVIEW, FLYTHROUGH, IMAGES, DEPTH = "preview.png", "flythrough.mp4", "images", "depth"
OWN_NAMES = frozenset((GAUSSIANS, CAMERAS, TRANSFORMS, REPORT, PREVIEW, FLYTHROUGH, IMAGES, DEPTH))

_PREVIEW_VIEWS = 4
# More keyframes make a clip hurry; fewer lose the capture's shape.
_KEYFRAMES = 16


def save_scene(
    scene: Scene,
    folder: str | os.PathLike,
    *,
    video: bool = False,
    preview: bool = True,
    frames: int = 120,
    fps: float | int = 30,
    progress: bool = False,
    stages: "Stages | None" = None,
) -> None:
    """Write a scene to a folder, complete or not at all; `load_scene` reads it back.

    Args:
        scene: On any device.
        folder: New, empty, or a scene folder of an earlier run, which is replaced. Its parent must exist.
        video: Also render the fly-through (seconds to minutes on a CPU).
        preview: Also render the preview.
        frames, fps: Of the fly-through.
        progress: Show progress bars.
        stages: Measures the parts; its records go into the report.

    Raises:
        InputError: The folder holds anything but an earlier scene, or cannot be written.
    """
    folder = Path(folder).expanduser()
    check_output_folder(folder)
    names = _names(scene)
    cpu = _on_cpu(scene)
    config = RenderConfig(antialiased=bool(scene.report.get("antialiased", True)))

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        with stages(name) if stages is not None else nullcontext():
            yield

    with atomic_path(_resolved(folder), directory=True) as temporary:
        with stage("writing files"):
            _write_data(cpu, temporary, names)
        if preview:
            with stage("rendering the preview"):
                _write_preview(scene, temporary / PREVIEW, names, config)
        if video:
            with stage("rendering the fly-through"):
                path = flythrough_path(cpu.cameras, frames, depth_hint=_typical_depth(cpu.depth))
                pictures = render_frames(
                    scene.gaussians, path.to(scene.gaussians.device), config=replace(config, depth=False)
                )
                write_video(temporary / FLYTHROUGH, pictures, fps=fps, total=frames, progress=progress)
        report = dict(scene.report)
        if stages is not None:
            report["stages"] = stages.to_list()
        report |= {"near": scene.near, "far": scene.far, "views": list(names)}
        (temporary / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load_scene(folder: str | os.PathLike) -> Scene:
    """Read a folder that `save_scene` wrote: cameras, depth, confidence, images and report exactly, Gaussians to the
    rounding of a .ply.

    Raises:
        InputError: No such folder, or files missing.
        FormatError: Damaged files, or maps that do not fit the cameras.
    """
    folder = Path(folder).expanduser()
    missing = [name for name in (GAUSSIANS, CAMERAS, IMAGES, DEPTH, REPORT) if not (folder / name).exists()]
    if missing:
        what = f"has no {', '.join(missing)}" if folder.is_dir() else "does not exist"
        raise InputError(f"{folder} {what}; expected a folder written by da3gs reconstruct or Scene.save")
    cameras, names = read_cameras_json(folder / CAMERAS)
    width, height = cameras.size
    maps: dict[str, list[Tensor]] = {"depth": [], "confidence": []}
    images = []
    for stem in file_stems(names):
        images.append(tensor_from_uint8(load_image(folder / IMAGES / f"{stem}.png")))
        path = folder / DEPTH / f"{stem}.npz"
        for name, values in _read_maps(path, (height, width)).items():
            maps[name].append(values)
        if images[-1].shape[1:] != (height, width):
            raise FormatError(f"{folder / IMAGES / stem}.png is not {width}x{height} px as its camera says")
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{folder / REPORT} is not valid JSON: {error}") from error
    if not isinstance(report, dict):
        raise FormatError(f"{folder / REPORT} must hold a JSON object")
    near, far = report.pop("near", None), report.pop("far", None)
    gaussians = load_gaussians(folder / GAUSSIANS)
    stacked = {name: torch.stack(values) for name, values in maps.items()}
    return Scene(
        gaussians, cameras, stacked["depth"], stacked["confidence"], torch.stack(images), report, near=near, far=far
    )


def check_output_folder(folder: str | os.PathLike) -> None:
    """InputError unless a scene may be written there: a new folder in an existing one, an empty one, or one that holds
    an earlier scene and nothing else."""
    check_replaceable(folder, "a scene", OWN_NAMES, (REPORT, GAUSSIANS))


def flythrough_path(cameras: Cameras, frames: int, *, depth_hint: float | None = None) -> Cameras:
    """Cameras of the clip: along the given ones in a short order, or a small circle about a single one."""
    if frames < 1:
        raise InputError(f"the fly-through needs at least one frame; got {frames}")
    if len(cameras) == 1:
        return wobble(cameras, frames, depth_hint=depth_hint)
    order = _short_tour(cameras)
    picks = np.linspace(0, len(order) - 1, min(len(order), _KEYFRAMES)).round().astype(int)
    return interpolate(cameras[[order[i] for i in picks]], frames)


def file_stems(names: Sequence[str]) -> tuple[str, ...]:
    """A distinct, portable file stem per view: its name without folder and suffix, numbered where names repeat."""
    plain = [re.sub(r"[^\w.-]+", "_", Path(name.replace("\\", "/")).stem).strip("._") or "view" for name in names]
    lowered = [stem.lower() for stem in plain]  # some file systems do not tell A from a
    if len(set(lowered)) == len(lowered):
        return tuple(plain)
    return tuple(f"{index:04d}_{stem}" for index, stem in enumerate(plain))


# ---------------------------------------------------------------- writing


def _write_data(scene: Scene, folder: Path, names: Sequence[str]) -> None:
    from PIL import Image

    stems = file_stems(names)
    given = scene.report.get("frame", {}).get("source") == "given cameras"
    save_gaussians(
        scene.gaussians,
        folder / GAUSSIANS,
        antialiased=bool(scene.report.get("antialiased", True)),
        frame="that of the given cameras" if given else DEFAULT_FRAME,
        comments=_comments(scene.report),
    )
    write_cameras_json(folder / CAMERAS, scene.cameras, names, _photographs(scene))
    unit = depth_unit(float(scene.depth.max()))
    write_transforms_json(
        folder / TRANSFORMS,
        scene.cameras,
        [f"{IMAGES}/{stem}.png" for stem in stems],
        depth_paths=[f"{DEPTH}/{stem}.png" for stem in stems],
        depth_unit_scale_factor=unit,
    )
    (folder / IMAGES).mkdir()
    (folder / DEPTH).mkdir()
    limits = depth_limits(scene.depth)
    for view, stem in enumerate(stems):
        depth = scene.depth[view]
        picture = Image.fromarray(uint8_from_tensor(scene.images[view]))
        save_image(picture, folder / IMAGES / f"{stem}.png", compress_level=3)
        write_depth_files(folder / DEPTH, stem, depth, scene.confidence[view], unit=unit, limits=limits)


def _write_preview(scene: Scene, path: Path, names: Sequence[str], config: RenderConfig) -> None:
    picks = np.unique(np.linspace(0, len(names) - 1, min(len(names), _PREVIEW_VIEWS)).round().astype(int)).tolist()
    limits = depth_limits(scene.depth.cpu())
    inputs: list[np.ndarray] = []
    depths: list[np.ndarray] = []
    renders: list[np.ndarray] = []
    for view in picks:
        inputs.append(uint8_from_tensor(scene.images[view]))
        depths.append(colorize_depth(scene.depth[view], limits))
        renders += render_frames(scene.gaussians, scene.cameras[view], config=config)
    rows = [("input", inputs), ("depth", depths), ("render", renders)]
    tall = scene.cameras.size[1] > scene.cameras.size[0]
    write_contact_sheet(
        path, rows, columns=[Path(names[view]).name for view in picks], tile_height_px=400 if tall else 260
    )


def _comments(report: dict[str, Any]) -> list[str]:
    model = report.get("model") or {}
    if model.get("name"):
        return [f"Model: {model['name']}, weights {model.get('licence')}"]
    return []


def _typical_depth(depth: Tensor) -> float | None:
    known = depth[depth > 0]
    return float(known.median()) if len(known) else None


# ---------------------------------------------------------------- parts


def _names(scene: Scene) -> tuple[str, ...]:
    names = scene.report.get("views")
    if isinstance(names, list) and len(names) == len(scene.cameras):
        return tuple(str(name) for name in names)
    return tuple(f"view_{index:03d}" for index in range(len(scene.cameras)))


def _photographs(scene: Scene) -> tuple[Photograph, ...] | None:
    """The record of the pictures, if the report has one for the cameras of this scene."""
    records = scene.report.get("photographs")
    if not isinstance(records, list) or len(records) != len(scene.cameras):
        return None
    return tuple(photograph_from_dict(record, f"report, photograph {i}") for i, record in enumerate(records))


def _on_cpu(scene: Scene) -> Scene:
    return replace(
        scene,
        gaussians=scene.gaussians.detach().to("cpu"),
        cameras=scene.cameras.detach().to("cpu", torch.float32),
        depth=scene.depth.detach().cpu(),
        confidence=scene.confidence.detach().cpu(),
        images=scene.images.detach().cpu(),
    )


def _resolved(folder: Path) -> Path:
    return folder.resolve()  # "." and "out/" get a name


def _read_maps(path: Path, shape: tuple[int, int]) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path} does not exist; the scene folder is incomplete")
    try:
        with np.load(path, allow_pickle=False) as loaded:
            maps = {name: torch.from_numpy(loaded[name]) for name in ("depth", "confidence")}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise FormatError(f"{path}: not a depth file of a scene ({error})") from error
    for name, values in maps.items():
        if values.shape != shape or values.dtype != torch.float32:
            raise FormatError(f"{path}: {name} must be float32 {list(shape)}; got {values.dtype} {list(values.shape)}")
    return maps


def _short_tour(cameras: Cameras) -> list[int]:
    """The order as given, or from neighbour to nearest neighbour where that is clearly shorter (unordered photos)."""
    centers = cameras.centers.detach().double().cpu()
    distances = torch.cdist(centers, centers)
    as_given = list(range(len(cameras)))
    # An end of the trajectory: the camera farthest from the middle one.
    middle = int((centers - centers.mean(0)).norm(dim=1).argmin())
    tour = [int(distances[middle].argmax())]
    left = set(as_given) - set(tour)
    while left:
        tour.append(min(left, key=lambda other: (float(distances[tour[-1], other]), other)))
        left.remove(tour[-1])

    def length(order: list[int]) -> float:
        return float(sum(distances[a, b] for a, b in itertools.pairwise(order)))

    return tour if length(tour) < 0.7 * length(as_given) else as_given
