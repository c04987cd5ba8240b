"""Whatever a user points at, as images with what is known about their cameras.

    folder │ pattern │ list │ one image │ video │ COLMAP │ transforms.json │ RGB-D
        │  find       names, files, cameras, depth files
        │  check      unreadable, tiny and identical files are named and left out
        │  choose     at most `max_views`: spread along the sequence, or far apart when cameras are known
        ▼  undistort  lens models are undone, EXIF turns applied where cameras expect it
    InputViews

Letters: V views, H W pixels (may differ from view to view).
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from da3gs.data.camera_files import attach_cameras, listed_images
from da3gs.data.colmap import find_colmap_model, read_colmap
from da3gs.data.input_views import InputKind, InputViews
from da3gs.data.photo_files import (
    exif_orientation,
    identical_files,
    pick_readable,
    unusable_reason,
    upright_size,
)
from da3gs.data.photographs import Photograph
from da3gs.data.posed_images import PosedImages
from da3gs.data.rgbd import depth_of_view
from da3gs.data.transforms_json import read_transforms_json
from da3gs.data.video import read_frames
from da3gs.data.view_choice import evenly_spread, farthest_views
from da3gs.errors import FormatError, InputError
from da3gs.images import VIDEO_SUFFIXES, exif_focal_px, find_images

# Frames of a video when nothing is said: enough to go round an object, few enough for one pass of the network.
DEFAULT_VIDEO_FRAMES = 32


def load_input(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    cameras: str | os.PathLike | None = None,
    max_views: int | None = None,
    fps: float | int | None = None,
    frames: int | None = None,
    depth: bool = False,
    split: str | None = None,
    progress: bool = False,
) -> InputViews:
    """Images and cameras of anything that can be reconstructed. Deterministic.

    Args:
        source: A folder of images; a pattern (``photos/*.jpg``); a list of files; one image; one video; a COLMAP model
            or the project around it; a ``transforms.json`` or its folder.
        cameras: Cameras for images given without any: a ``cameras.json``, a ``transforms.json``, or a COLMAP folder,
            matched by file name. Images it does not name are skipped.
        max_views: Keep at most this many: spread evenly along the sequence, or, when poses are known, chosen one by one
            as far as possible from those before (camera centres and viewing directions).
        fps, frames: For videos: this many frames per second, or this many frames, sharp and spread over the camera's
            motion. By default 32 frames, or `max_views`.
        depth: Also read the depth maps of an RGB-D ``transforms.json``.
        split: Only this split of a ``transforms.json``.
        progress: Show progress bars.

    Raises:
        InputError: Nothing there, nothing usable left (the first reason is named), or options that do not fit the kind.
        FormatError: A damaged video, camera file or data set; a damaged image when it is the only one.
    """
    if max_views is not None and max_views < 1:
        raise InputError(f"max_views must be >= 1; got {max_views}")
    if isinstance(source, str | os.PathLike):
        source = Path(source).expanduser()
    kind = _kind(source, cameras)
    if kind != "video" and (fps is not None or frames is not None):
        raise InputError(f"fps and frames are for videos; {source} is not one (use max_views to keep fewer images)")
    if kind != "transforms" and (depth or split is not None):
        option = "depth" if depth else "split"
        raise InputError(f"'{option}' needs a transforms.json that holds it; {source} is of kind {kind!r}")
    if kind == "video":
        if cameras is not None:
            raise InputError("cameras cannot be given for a video; extract its frames to a folder first")
        return _video(source, max_views, fps, frames, progress)
    if kind in ("colmap", "transforms"):
        data, absent = _posed_data(source, kind, split)
        return _posed(data, kind, absent, max_views, depth, progress)
    return _photos(source, kind, cameras, max_views, progress)


# ---------------------------------------------------------------- kinds


def _kind(source, cameras) -> InputKind:
    if not isinstance(source, str | os.PathLike):
        return "glob"
    path = Path(source)
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix == ".json":
            return "transforms"
        if suffix in (".ply", ".splat", ".spz"):
            raise InputError(f"{path} holds Gaussians already; see 'da3gs view' and 'da3gs convert'")
        return "video" if suffix in VIDEO_SUFFIXES else "image"
    if not path.is_dir():
        if re.search(r"[*?\[]", str(source)):
            return "glob"
        raise InputError(f"{path} does not exist; give a folder, a file, or a quoted pattern such as 'photos/*.jpg'")
    if cameras is None:
        if (path / "transforms.json").is_file() or (path / "transforms_train.json").is_file():
            return "transforms"
        if find_colmap_model(path) is not None:
            return "colmap"
    return "folder"


def _video(source, max_views: int | None, fps, frames: int | None, progress: bool) -> InputViews:
    if fps is None:
        wanted = frames or max_views or DEFAULT_VIDEO_FRAMES
        found = read_frames(source, frames=min(wanted, max_views or wanted), progress=progress)
        how = "sharp ones from pieces of equal camera motion"
    elif frames is None:
        found = read_frames(source, fps=fps, max_frames=max_views, progress=progress)
        how = f"{fps:g} per second" + (f", thinned to {max_views}" if len(found) == max_views else "")
    else:
        raise InputError("give either fps or frames for a video, not both")
    height, width = found.images[0].shape[:2]
    taken = "all of its frames" if len(found) == found.total else f"{len(found)} of {found.total} frames: {how}"
    return InputViews(
        names=found.names,
        images=found.images,
        sizes=((width, height),) * len(found),
        cameras=None,
        depth=None,
        kind="video",
        focal_hint_px=(None,) * len(found),
        notes=(f"{Path(source).name}: took {taken}",),
    )


def _photos(source, kind: InputKind, cameras_file, max_views: int | None, progress: bool) -> InputViews:
    try:
        paths = find_images(source)
    except InputError:
        inside = source.iterdir() if kind == "folder" else ()
        videos = sorted(path.name for path in inside if path.suffix.lower() in VIDEO_SUFFIXES)
        if videos:
            raise InputError(f"no images in folder {source}, but the video {videos[0]}; give that file") from None
        raise
    names = _unique_names(paths)
    if kind == "image" and (reason := unusable_reason(paths[0])) is not None:
        raise FormatError(f"{paths[0]}: {reason}")
    skipped = _unusable(paths, names)
    notes: list[str] = []
    good = [index for index in range(len(paths)) if index not in skipped]
    if cameras_file is None:
        data = None
    else:
        data, without, more = attach_cameras(cameras_file, [paths[i] for i in good], [names[i] for i in good])
        skipped |= {good[i]: reason for i, reason in without.items()}
        notes += more
    good = [index for index in good if index not in skipped]
    _check_enough(len(good), names, skipped, source)
    if data is not None:
        absent = tuple((names[i], reason) for i, reason in sorted(skipped.items()))
        return _posed(data, kind, absent, max_views, False, progress, tuple(notes))

    def choose(left: Sequence[int]) -> list[int]:
        return [left[i] for i in evenly_spread(len(left), len(left) if max_views is None else max_views)]

    chosen, damaged = _picked(good, choose, paths, progress)
    skipped |= damaged
    _check_enough(len(chosen), names, skipped, source)
    if len(chosen) < len(good) - len(damaged):
        notes.append(f"took {len(chosen)} of {len(good) - len(damaged)} images, spread evenly along the sequence")
    sizes = tuple(upright_size(paths[i]) for i in chosen)
    turned = sum(exif_orientation(paths[i]) != 1 for i in chosen)
    if turned:
        notes.append(f"{turned} of {len(chosen)} photographs turned upright as their EXIF tag says")
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{w}x{h}" for w, h in sorted(set(sizes))[:4])
        notes.append(f"the images have {len(set(sizes))} sizes ({listed}); the network sees their common middle")
    return InputViews(
        names=tuple(names[i] for i in chosen),
        images=tuple(paths[i] for i in chosen),
        sizes=sizes,
        cameras=None,
        depth=None,
        kind=kind,
        focal_hint_px=_focal_hints([paths[i] for i in chosen]),
        skipped=tuple((names[i], reason) for i, reason in sorted(skipped.items())),
        notes=tuple(notes),
    )


def _posed_data(source, kind: InputKind, split: str | None) -> tuple[PosedImages, tuple[tuple[str, str], ...]]:
    if kind == "colmap":
        model = read_colmap(source, missing="skip")
        return model.images, model.skipped
    data = read_transforms_json(source, missing="skip")
    present = set(data.names)
    absent = tuple((name, "the image does not exist") for name in listed_images(source) if name not in present)
    return (data if split is None else data.split(split)), absent


def _posed(
    data: PosedImages,
    kind: InputKind,
    absent: Sequence[tuple[str, str]],
    max_views: int | None,
    depth: bool,
    progress: bool,
    notes: tuple[str, ...] = (),
) -> InputViews:
    """Views of a data set with cameras: checked, chosen, undistorted."""
    paths, names = data.image_paths, data.names
    skipped = _unusable(paths, names)
    good = [index for index in range(len(data)) if index not in skipped]
    _check_enough(len(good), names, skipped, "the data set")
    posed = data.cameras.cam_from_world is not None

    def choose(left: Sequence[int]) -> list[int]:
        if max_views is None:
            return list(left)
        if posed:
            return farthest_views(data.cameras, max_views, left)
        return [left[i] for i in evenly_spread(len(left), max_views)]

    chosen, damaged = _picked(good, choose, paths, progress)
    skipped |= damaged
    _check_enough(len(chosen), names, skipped, "the data set")
    if len(chosen) < len(good) - len(damaged):
        how = "farthest apart in position and viewing direction" if posed else "spread evenly along the sequence"
        notes += (f"took {len(chosen)} of {len(good) - len(damaged)} views, {how}",)

    picked = data[chosen]
    bent = sum(photo.lens is not None for photo in picked.photos)
    if bent:
        notes += (f"lens distortion undone in {bent} of {len(picked)} images",)
    images: list[Path | np.ndarray] = []
    for index in _tracked(range(len(picked)), "Reading images", progress and bent > 0):
        photo = picked.photos[index]
        plain = photo.lens is None and exif_orientation(photo.path) == 1
        images.append(photo.path if plain else picked.load_image(index))
    depths = None
    if depth:
        depths = tuple(
            torch.from_numpy(depth_of_view(picked, i)) for i in _tracked(range(len(picked)), "Reading depth", progress)
        )
    elif all(photo.depth_path is not None for photo in picked.photos):
        notes += ("the data set has measured depth, which is not used; ask for it with 'depth'",)
    sizes = tuple((int(w), int(h)) for w, h in zip(picked.cameras.width, picked.cameras.height, strict=True))
    return InputViews(
        names=picked.names,
        images=tuple(images),
        sizes=sizes,
        cameras=picked.cameras,
        depth=depths,
        kind="rgbd" if depth else kind,
        focal_hint_px=(None,) * len(picked),
        skipped=tuple(absent) + tuple((names[i], reason) for i, reason in sorted(skipped.items())),
        notes=notes,
        photographs=tuple(
            Photograph(*size, photo.upright, photo.lens) for size, photo in zip(sizes, picked.photos, strict=True)
        ),
        points=_sparse_points(picked),
    )


# ---------------------------------------------------------------- parts


def _sparse_points(data: PosedImages) -> tuple[torch.Tensor, ...] | None:
    points = tuple(photo.points for photo in data.photos if photo.points is not None)
    return points if len(points) == len(data) else None


def _unusable(paths: Sequence[Path], names: Sequence[str]) -> dict[int, str]:
    """Index -> reason of files that the header or a comparison rules out."""
    reasons = {index: reason for index, path in enumerate(paths) if (reason := unusable_reason(path)) is not None}
    good = [index for index in range(len(paths)) if index not in reasons]
    for copy, original in identical_files([paths[index] for index in good]).items():
        reasons[good[copy]] = f"the same file as {names[good[original]]}"
    return reasons


def _picked(good, choose, paths, progress: bool) -> tuple[list[int], dict[int, str]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        task = bar.add_task("Checking images", total=len(choose(good)))
        return pick_readable(good, choose, paths, lambda: bar.advance(task))


def _check_enough(count: int, names: Sequence[str], skipped: dict[int, str], source) -> None:
    if count:
        return
    first = min(skipped)
    others = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
    raise InputError(f"no usable image in {source}: {names[first]}: {skipped[first]}{others}")


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """File names; paths from their common folder where file names repeat."""
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath([str(path.absolute().parent) for path in paths])
    names = [Path(os.path.relpath(path.absolute(), common)).as_posix() for path in paths]
    if len(set(names)) < len(names):
        repeated = next(name for index, name in enumerate(names) if name in names[:index])
        raise InputError(f"the list of images names {repeated} more than once")
    return names


def _focal_hints(paths: Sequence[Path]) -> tuple[float | None, ...]:
    hints: list[float | None] = []
    for path in paths:
        try:
            hints.append(exif_focal_px(path))
        except FormatError:  # 16-bit RGB TIFF: readable, but not by the library that reads EXIF
            hints.append(None)
    return tuple(hints)


def _tracked(items: Sequence[int], description: str, progress: bool):
    from rich.console import Console
    from rich.progress import track

    return track(items, description=description, console=Console(stderr=True), disable=not progress, transient=True)
