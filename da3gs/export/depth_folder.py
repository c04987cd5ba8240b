"""A folder of depth maps.

    depth/NAME.npz, NAME.png, NAME_color.png   see `da3gs.export.depth_files`; the unit of NAME.png is in report.json
    cameras.json        where they are known, at the sizes of the maps
    points.ply          the maps as coloured points, if asked for
    transforms.json, images/   for aligned depth: a data set to train on
    depth.mp4           pictures beside depth, for videos
    preview.png         a few pictures with their depth
    report.json         model, unit, what was chosen

The folder appears complete or not at all.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from da3gs.atomic import atomic_path, check_replaceable
from da3gs.data.cameras_json import write_cameras_json
from da3gs.data.transforms_json import write_transforms_json
from da3gs.data.view_choice import evenly_spread
from da3gs.errors import InputError
from da3gs.export.depth_files import depth_limits, depth_unit, write_depth_files
from da3gs.export.points import write_points
from da3gs.export.scene_folder import DEPTH, IMAGES, PREVIEW, REPORT, TRANSFORMS, file_stems
from da3gs.export.video import colorize_depth, write_contact_sheet, write_picture, write_video
from da3gs.geometry.cameras import Cameras
from da3gs.images import tracked

if TYPE_CHECKING:
    from da3gs.pipeline.depth_maps import DepthMap, DepthMaps

CAMERAS, POINTS, CLIP = "cameras.json", "points.ply", "depth.mp4"
OWN_NAMES = frozenset((DEPTH, CAMERAS, POINTS, CLIP, PREVIEW, REPORT, TRANSFORMS, IMAGES))
_PREVIEW_VIEWS = 4
# Points of pixels surer than this share of the typical confidence.
_SURE = 0.5


def check_depth_folder(folder: str | os.PathLike) -> None:
    """InputError unless depth may be written there: a new folder in an existing one, an empty or an earlier one."""
    check_replaceable(folder, "depth", OWN_NAMES, (REPORT, DEPTH))


def save_depth(
    maps: "DepthMaps",
    folder: str | os.PathLike,
    *,
    max_points: int | None = None,
    clip_fps: float | int | None = None,
    progress: bool = False,
) -> None:
    """Write depth maps to a folder, complete or not at all.

    Args:
        maps: Of `predict_depth`.
        folder: New, empty, or one of an earlier run, which is replaced.
        max_points: Also write at most so many coloured points; needs maps with cameras in one frame.
        clip_fps: Also write a clip at so many frames per second.
        progress: Show progress bars.

    Raises:
        InputError: A folder that cannot be written, or points without cameras.
    """
    folder = Path(folder).expanduser()
    check_depth_folder(folder)
    stems = file_stems([str(name) for name in maps.report["views"]])
    # One scale: one unit and one range of colours. Else each map has its own.
    shared = torch.cat([maps.small(index).flatten() for index in range(len(maps))]) if maps.comparable else None
    common = None if shared is None else (depth_unit(float(shared.max())), depth_limits(shared))
    shown = evenly_spread(len(maps), _PREVIEW_VIEWS)
    rows: tuple[list, list] = ([], [])
    files: list[dict[str, Any]] = []
    cameras: list[Cameras] = []
    clouds = _Cloud(max_points, len(maps))
    with atomic_path(folder.resolve(), directory=True) as temporary:
        (temporary / DEPTH).mkdir()
        if maps.fits is not None:
            (temporary / IMAGES).mkdir()
        for index, one in enumerate(tracked(maps, "Writing depth", shown=progress, total=len(maps))):
            unit, limits = common or (depth_unit(float(one.depth.max())), depth_limits(one.depth))
            write_depth_files(
                temporary / DEPTH, stems[index], one.depth, one.confidence, one.sky, unit=unit, limits=limits
            )
            files.append({"name": one.name, "file": f"{DEPTH}/{stems[index]}", "png_unit": unit})
            if maps.fits is not None:
                files[-1]["fit"] = asdict(maps.fits[index])
                write_picture(temporary / IMAGES / f"{stems[index]}.png", one.picture)
            if one.camera is not None:
                cameras.append(one.camera)
            if index in shown:
                rows[0].append(one.picture)
                rows[1].append(colorize_depth(one.depth, limits))
            clouds.add(one)
        if len(cameras) == len(maps):
            write_cameras_json(temporary / CAMERAS, Cameras.cat(cameras), maps.report["views"])
        if maps.fits is not None and maps.posed:
            write_transforms_json(
                temporary / TRANSFORMS,
                Cameras.cat(cameras),
                [f"{IMAGES}/{stem}.png" for stem in stems],
                depth_paths=[f"{DEPTH}/{stem}.png" for stem in stems],
                depth_unit_scale_factor=files[0]["png_unit"],
            )
        if max_points is not None:
            clouds.write(temporary / POINTS, maps.unit)
        write_contact_sheet(temporary / PREVIEW, [("picture", rows[0]), ("depth", rows[1])], tile_height_px=260)
        if clip_fps is not None:
            frames = _clip(maps, None if common is None else common[1])
            write_video(temporary / CLIP, frames, fps=clip_fps, total=len(maps), progress=progress)
        report = dict(maps.report) | {"maps": files}
        (temporary / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _clip(maps: "DepthMaps", limits: tuple[float, float] | None):
    """Pictures beside their depth, at one size."""
    import cv2

    size: tuple[int, int] | None = None
    for one in maps:
        frame = np.concatenate([one.picture, colorize_depth(one.depth, limits or depth_limits(one.depth))], 1)
        size = size or (frame.shape[1], frame.shape[0])
        yield frame if size == (frame.shape[1], frame.shape[0]) else cv2.resize(frame, size)


class _Cloud:
    """Points of all maps, an even share of each."""

    def __init__(self, limit: int | None, maps: int):
        self._per_map = None if limit is None else max(1, limit // maps)
        self._points: list[torch.Tensor] = []
        self._colors: list[np.ndarray] = []

    def add(self, one: "DepthMap") -> None:
        if self._per_map is None:
            return
        if one.camera is None or one.camera.cam_from_world is None:
            raise InputError("points need cameras in one frame, which pictures that are seen alone do not have")
        keep = one.depth > 0
        if one.confidence is not None:
            keep &= one.confidence >= _SURE * one.confidence[keep].median()
        if one.sky is not None:
            keep &= ~one.sky
        chosen = keep.flatten().nonzero().flatten()
        chosen = chosen[:: max(1, -(-len(chosen) // self._per_map))]
        points = one.camera.unproject(one.depth[None].to(one.camera.K)).reshape(-1, 3)
        self._points.append(points[chosen])
        self._colors.append(one.picture.reshape(-1, 3)[chosen.numpy()])

    def write(self, path: Path, unit: str) -> None:
        comments = ("Generated by da3gs", "Vertical axis: -y (OpenCV: x right, y down, z forward)", f"Unit: {unit}")
        write_points(path, torch.cat(self._points), np.concatenate(self._colors), comments=comments)
