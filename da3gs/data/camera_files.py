"""Cameras from a file of their own, for images that lie elsewhere: matched by name, brought to their size."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch

from da3gs.data.cameras_json import read_camera_records
from da3gs.data.colmap import read_colmap
from da3gs.data.lens import Lens
from da3gs.data.photo_files import QUARTER_TURNS, exif_orientation, upright_size
from da3gs.data.photographs import Photograph, scaled_lens
from da3gs.data.posed_images import Photo, PosedImages
from da3gs.data.transforms_json import read_transforms_json
from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.images import PATCH_PX, image_size

# Integer sizes of downscaled images bend the aspect ratio a little; a turned or cropped image bends it more.
_ASPECT_TOLERANCE = 0.02
# Names of a scene folder: cameras of the images it holds, and the images.
_OWN_FILE, _OWN_IMAGES = "cameras.json", "images"


@dataclass(frozen=True, eq=False)
class _Listed:
    """The cameras of a file, as it has them; per view what else a data set knows, and where the image comes from."""

    names: tuple[str, ...]
    cameras: Cameras
    photos: tuple[Photo | None, ...]
    photographs: tuple[Photograph | None, ...]


def attach_cameras(
    source: str | os.PathLike, paths: Sequence[Path], names: Sequence[str]
) -> tuple[PosedImages, dict[int, str], list[str]]:
    """Cameras of a file or folder for given images.

    Cameras for images of another size are scaled when the aspect ratio is the same. Those that ``reconstruct`` wrote
    know the photographs they come from: their crop, lens and EXIF turn are accounted for, so the photographs can be
    given again. The images that lie beside them in the scene folder are taken as they are.

    Args:
        source: A ``cameras.json``, a ``transforms.json``, or a scene, COLMAP model or project folder.
        paths: The images.
        names: Their names; file names, or paths relative to a common folder.

    Returns:
        The images that have a camera, in the order given; index -> reason for the others; notes.

    Raises:
        InputError: No such file, no image has a camera, or another aspect ratio that nothing explains.
        FormatError, MissingDependencyError: As the readers.
    """
    source = Path(source).expanduser()
    if not source.exists():
        raise InputError(f"camera file {source} does not exist")
    listed = _read(source, paths)
    repeated = next((name for i, name in enumerate(listed.names) if name in listed.names[:i]), None)
    if repeated is not None:
        raise InputError(f"{source} names {repeated} more than once; give one camera per image")
    matched = _match(names, listed.names)
    notes: list[str] = []
    if not matched and len(names) == len(listed.names) and _unnamed(listed.names):
        matched = {index: index for index in range(len(names))}
        notes.append(f"{source.name} does not name its views; they are taken in the order of the images")
    if not matched:
        raise InputError(
            f"none of the {len(listed.names)} cameras of {source} is for any of the {len(names)} images: it names "
            f"{listed.names[0]}, the first image is {names[0]}"
        )
    known = sorted(matched.items())
    photos, cameras = [], []
    lenses: dict[tuple, Lens] = {}
    for i, j in known:
        camera, lens, upright = _fit(listed, j, paths[i], names[i], source)
        known_photo = listed.photos[j] or Photo(paths[i], names[i])
        if lens is not None:
            lens = scaled_lens(lens, *camera.size, lenses)
        photos.append(replace(known_photo, path=paths[i], name=names[i], lens=lens, upright=upright))
        cameras.append(camera.to(torch.float32))
    fitted = Cameras.cat(cameras)
    notes += _size_notes(source, listed, [j for _, j in known], fitted)
    without = {index: f"{source.name} has no camera for it" for index in range(len(names)) if index not in matched}
    if len(listed.names) > len(known):
        notes.append(f"{len(listed.names) - len(known)} cameras of {source.name} have no image here")
    return PosedImages(tuple(photos), fitted), without, notes


def listed_images(source: str | os.PathLike) -> list[str]:
    """Names of all images in a ``transforms.json`` (or the folder with it, or with Blender's three), present or not."""
    path = Path(source)
    files = [path]
    if path.is_dir():
        whole = path / "transforms.json"
        files = [whole] if whole.is_file() else sorted(path.glob("transforms_*.json"))
    contents = [json.loads(file.read_text(encoding="utf-8-sig")) for file in files]
    return [frame["file_path"] for content in contents for frame in content["frames"]]


def _read(source: Path, paths: Sequence[Path]) -> _Listed:
    own = source / _OWN_FILE if source.is_dir() else source
    if own.is_file() and not own.name.startswith("transforms"):
        cameras, names, photographs = read_camera_records(own)
        return _Listed(names, cameras, (None,) * len(names), photographs)
    photographs = ()
    if source.is_file() or (source / "transforms.json").is_file():
        data = read_transforms_json(source, missing="cameras")
        beside = (source if source.is_dir() else source.parent) / _OWN_FILE
        if beside.is_file():  # a scene folder: the same views, whose photographs only cameras.json knows
            cameras, _, photographs = read_camera_records(beside)
            same = len(cameras) == len(data) and torch.equal(
                torch.stack([cameras.width, cameras.height]), torch.stack([data.cameras.width, data.cameras.height])
            )
            photographs = photographs if same else ()
    else:
        folder = os.path.commonpath([path.absolute().parent for path in paths])
        data = read_colmap(source, folder, missing="skip").images
    return _Listed(data.names, data.cameras, data.photos, photographs or (None,) * len(data))


def _match(names: Sequence[str], listed: Sequence[str]) -> dict[int, int]:
    """Index of an image -> index of the camera of its name: the whole name, else the part after the last slash, else
    that without its suffix (a scene holds ``images/0001.png`` for the photograph ``0001.jpg``)."""
    whole = {_plain(name): index for index, name in enumerate(listed)}
    bare: dict[str, list[int]] = {}
    stems: dict[str, list[int]] = {}
    for index, name in enumerate(listed):
        bare.setdefault(PurePosixPath(_plain(name)).name, []).append(index)
        stems.setdefault(PurePosixPath(_plain(name)).stem, []).append(index)
    matched = {}
    for index, name in enumerate(names):
        same = bare.get(PurePosixPath(name).name, [])
        if name in whole:
            matched[index] = whole[name]
        elif len(same) == 1:
            matched[index] = same[0]
    taken = set(matched.values())
    own_stems = [PurePosixPath(name).stem for name in names]
    for index, stem in enumerate(own_stems):
        same = stems.get(stem, [])
        if index not in matched and len(same) == 1 and same[0] not in taken and own_stems.count(stem) == 1:
            matched[index] = same[0]
    return matched


def _plain(name: str) -> str:
    return str(PurePosixPath(name.replace("\\", "/")))


def _unnamed(names: Sequence[str]) -> bool:
    return tuple(names) == tuple(f"view_{index:03d}" for index in range(len(names)))


def _fit(listed: _Listed, j: int, path: Path, name: str, source: Path) -> tuple[Cameras, Lens | None, bool]:
    """One camera at the size of its image, its lens, and whether it describes the image after its EXIF turn."""
    camera, photograph = listed.cameras[j].to(torch.float64), listed.photographs[j]
    stored, upright = image_size(path), upright_size(path)
    beside = path.absolute().parent == (source if source.is_dir() else source.parent).absolute() / _OWN_IMAGES
    if photograph is not None and not (beside and stored == camera.size):
        size = upright if photograph.turned else stored
        if _same_aspect(size, (photograph.width, photograph.height)):
            return photograph.whole(camera).scaled(width=size[0], height=size[1]), photograph.lens, photograph.turned
        if not _same_aspect(stored, camera.size):
            raise InputError(
                f"{source}: the camera of {name} comes from a photograph of {photograph.width}x{photograph.height} px "
                f"but the image has {size[0]}x{size[1]}: another aspect ratio; give the photographs the scene was made "
                "from, or its own images"
            )
    # Cameras written by this package describe upright images, so that is tried first.
    photo = listed.photos[j]
    sizes = [(upright, exif_orientation(path) != 1), (stored, False)]
    if photo is not None and not photo.path.is_file():  # it could not be asked for its size
        sizes = [(stored, False), *sizes[: exif_orientation(path) in QUARTER_TURNS]]
    elif photo is not None:
        sizes = [(upright if photo.upright else stored, photo.upright)]
    for size, turned in sizes:
        if _same_aspect(size, camera.size) or _on_patch_grid(size, camera.size):
            return camera.scaled(width=size[0], height=size[1]), None if photo is None else photo.lens, turned
    width, height = camera.size
    w, h = sizes[0][0]
    raise InputError(
        f"{source}: the camera of {name} is for {width}x{height} px but the image has {w}x{h}: another aspect ratio; "
        "give the cameras of these very images"
    )


def _same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(size[0] / other[0] / (size[1] / other[1]) - 1) <= _ASPECT_TOLERANCE


def _on_patch_grid(photograph: tuple[int, int], processed: tuple[int, int]) -> bool:
    """Whether `processed` is what resizing a photograph to the network's patch grid gives: both sides rounded to 14 px,
    which bends the aspect ratio of small images by more than the tolerance."""
    if processed[0] % PATCH_PX or processed[1] % PATCH_PX:
        return False
    factors = [processed[axis] / photograph[axis] for axis in (0, 1)]
    return any(
        all(abs(photograph[axis] * factor - processed[axis]) <= (PATCH_PX + 1) / 2 for axis in (0, 1))
        for factor in factors
    )


def _size_notes(source: Path, listed: _Listed, pick: Sequence[int], fitted: Cameras) -> list[str]:
    moved, cropped, example = 0, 0, ""
    for position, j in enumerate(pick):
        before, after = listed.cameras[j].size, fitted[position].size
        photograph = listed.photographs[j]
        if before != after:
            moved += 1
            cropped += photograph is not None and photograph.cropped
            example = example or f"{before[0]}x{before[1]} to {after[0]}x{after[1]} px"
    if not moved:
        return []
    undone = f", {cropped} of them after undoing the recorded crop" if cropped else ""
    return [
        f"{moved} of {len(pick)} cameras of {source.name} were scaled to the size of their images{undone} ({example})"
    ]
