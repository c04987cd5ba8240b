"""Cameras from a file of their own, for images that lie elsewhere: matched by name, checked by size."""

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch

from da3gs.data.cameras_json import read_cameras_json
from da3gs.data.colmap import read_colmap
from da3gs.data.photo_files import exif_orientation, upright_size
from da3gs.data.posed_images import Photo, PosedImages
from da3gs.data.transforms_json import read_transforms_json
from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.images import image_size

_ASPECT_TOLERANCE = 0.02


def attach_cameras(
    source: str | os.PathLike, paths: Sequence[Path], names: Sequence[str]
) -> tuple[PosedImages, dict[int, str], list[str]]:
    """Cameras of a file or folder for given images.

    Args:
        source: A ``cameras.json``, a ``transforms.json``, or a COLMAP model or project folder.
        paths: The images.
        names: Their names; file names, or paths relative to a common folder.

    Returns:
        The images that have a camera, in the order given; index -> reason for the others; notes.

    Raises:
        InputError: No such file, no image has a camera, or sizes that do not fit.
        FormatError, MissingDependencyError: As the readers.
    """
    source = Path(source).expanduser()
    if not source.exists():
        raise InputError(f"camera file {source} does not exist")
    if source.is_dir() or source.name.startswith("transforms"):
        transforms = source.is_file() or (source / "transforms.json").is_file()
        folder = os.path.commonpath([path.absolute().parent for path in paths])
        data = read_transforms_json(source) if transforms else read_colmap(source, folder, missing="skip").images
        matched = _match(names, data.names)
        known: list[tuple[int, int]] = sorted(matched.items())
        photos = tuple(
            Photo(paths[i], names[i], data.photos[j].lens, data.photos[j].upright, data.photos[j].depth_path)
            for i, j in known
        )
        cameras, total = data.cameras, len(data)
        notes: list[str] = []
    else:
        cameras, listed = read_cameras_json(source)
        total = len(listed)
        matched = _match(names, listed)
        notes = []
        if not matched and len(names) == len(listed) and listed == tuple(f"view_{i:03d}" for i in range(len(listed))):
            matched = {index: index for index in range(len(names))}
            notes.append(f"{source.name} does not name its views; they are taken in the order of the images")
        known = sorted(matched.items())
        fitted = [_fit(cameras[j], paths[i], names[i], source) for i, j in known]
        turned = [upright for _, upright in fitted]
        photos = tuple(Photo(paths[i], names[i], None, turned[order]) for order, (i, _) in enumerate(known))
        if fitted:
            cameras = Cameras.cat([camera for camera, _ in fitted])
            known = [(i, position) for position, (i, _) in enumerate(known)]
    if not known:
        raise InputError(f"{source} has no camera for any of the {len(names)} images (the first is {names[0]})")
    without = {index: f"{source.name} has no camera for it" for index in range(len(names)) if index not in matched}
    if total > len(known):
        notes.append(f"{total - len(known)} cameras of {source.name} have no image here")
    return PosedImages(photos, cameras[torch.tensor([j for _, j in known])]), without, notes


def listed_images(source: str | os.PathLike) -> list[str]:
    """Names of all images in a ``transforms.json`` (or the folder with it, or with Blender's three), present or not."""
    path = Path(source)
    files = [path]
    if path.is_dir():
        whole = path / "transforms.json"
        files = [whole] if whole.is_file() else sorted(path.glob("transforms_*.json"))
    contents = [json.loads(file.read_text(encoding="utf-8-sig")) for file in files]
    return [frame["file_path"] for content in contents for frame in content["frames"]]


def _match(names: Sequence[str], listed: Sequence[str]) -> dict[int, int]:
    """Index of an image -> index of the camera of its name: the whole name, else the part after the last slash."""
    whole = {_plain(name): index for index, name in enumerate(listed)}
    bare: dict[str, list[int]] = {}
    for index, name in enumerate(listed):
        bare.setdefault(PurePosixPath(_plain(name)).name, []).append(index)
    matched = {}
    for index, name in enumerate(names):
        same = bare.get(PurePosixPath(name).name, [])
        if name in whole:
            matched[index] = whole[name]
        elif len(same) == 1:
            matched[index] = same[0]
    return matched


def _plain(name: str) -> str:
    return str(PurePosixPath(name.replace("\\", "/")))


def _fit(camera: Cameras, path: Path, name: str, source: Path) -> tuple[Cameras, bool]:
    """One camera at the size of its image, and whether it describes the image after its EXIF turn.

    Cameras written by this package describe upright images, so that is tried first.
    """
    width, height = camera.size
    sizes = [(upright_size(path), exif_orientation(path) != 1), (image_size(path), False)]
    for (w, h), upright in sizes:
        if abs(w / width / (h / height) - 1) <= _ASPECT_TOLERANCE:
            return camera.scaled(width=w, height=h), upright
    w, h = sizes[0][0]
    raise InputError(
        f"{source}: the camera of {name} is for {width}x{height} px but the image has {w}x{h}: another aspect ratio; "
        "give the cameras of these very images"
    )
