"""Read and write COLMAP models: ``cameras``, ``images`` and ``points3D``, binary or text.

COLMAP's camera axes (x right, y down, z forward), its world-to-camera poses and its pixel centres (at + 0.5) are ours.
Reading goes through pycolmap, which knows every version of the format; writing needs nothing.
"""

import logging
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8

from da3gs.atomic import atomic_path
from da3gs.data.lens import Lens
from da3gs.data.photo_files import QUARTER_TURNS, exif_orientation, reason_without_name
from da3gs.data.posed_images import Photo, PosedImages
from da3gs.errors import FormatError, InputError, MissingDependencyError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import quat_from_matrix
from da3gs.images import image_size, natural_key

log = logging.getLogger(__name__)

# Where a project keeps its model, most usual first.
_MODEL_FOLDERS = (".", "sparse/0", "sparse", "colmap/sparse/0", "dense/sparse", "0")
_ASPECT_TOLERANCE = 0.02
# Bytes of a camera with three parameters, of an image without name and points, of a point without track.
_SMALLEST_RECORD = {"cameras.bin": 48, "images.bin": 73, "points3D.bin": 51}
_PINHOLE_ID = 1  # COLMAP's number of the PINHOLE model: fx fy cx cy

# Model -> kind of lens, and where its coefficients stand among `params`: k1 k2 p1 p2 k3 k4 k5 k6, or fisheye k1..k4.
_LENSES: dict[str, tuple[Literal["perspective", "fisheye"], tuple[int, ...]]] = {
    "SIMPLE_PINHOLE": ("perspective", ()),
    "PINHOLE": ("perspective", ()),
    "SIMPLE_RADIAL": ("perspective", (3,)),
    "RADIAL": ("perspective", (3, 4)),
    "OPENCV": ("perspective", (4, 5, 6, 7)),
    "FULL_OPENCV": ("perspective", (4, 5, 6, 7, 8, 9, 10, 11)),
    "SIMPLE_FISHEYE": ("fisheye", ()),
    "FISHEYE": ("fisheye", ()),
    "SIMPLE_RADIAL_FISHEYE": ("fisheye", (3,)),
    "RADIAL_FISHEYE": ("fisheye", (3, 4)),
    "OPENCV_FISHEYE": ("fisheye", (4, 5, 6, 7)),
}


@dataclass(frozen=True, eq=False)
class ColmapModel:
    """A COLMAP reconstruction.

    Attributes:
        images: The registered photographs in natural order of their names, with pinhole cameras.
        points: [M, 3] sparse points in the world frame of the cameras.
        colors: [M, 3] their colours.
        skipped: (name, reason) of registered images that were left out.
    """

    images: PosedImages
    points: Float[torch.Tensor, "M 3"]
    colors: UInt8[torch.Tensor, "M 3"]
    skipped: tuple[tuple[str, str], ...] = ()


def import_pycolmap() -> ModuleType:
    """pycolmap, or MissingDependencyError with the install command."""
    try:
        import pycolmap
    except ImportError as error:
        raise MissingDependencyError(
            f'COLMAP models need pycolmap ({error}); install it with: pip install "da3gs[colmap]"'
        ) from error
    return pycolmap


def find_colmap_model(folder: str | os.PathLike) -> Path | None:
    """The folder in or below `folder` that holds ``cameras`` and ``images`` (``.bin`` or ``.txt``), or None."""
    for relative in _MODEL_FOLDERS:
        candidate = Path(folder) / relative
        for suffix in (".bin", ".txt"):
            if (candidate / f"cameras{suffix}").is_file() and (candidate / f"images{suffix}").is_file():
                return candidate
    return None


def read_colmap(
    folder: str | os.PathLike,
    image_folder: str | os.PathLike | None = None,
    *,
    missing: Literal["error", "skip"] = "error",
) -> ColmapModel:
    """A COLMAP model and the photographs it was made from; distortion is undone when an image is loaded.

    Images smaller or larger than the model's cameras (``images_4`` in place of ``images``) scale K by their size.

    Args:
        folder: The model's folder, or a project that holds it as ``sparse/0`` (or ``sparse``).
        image_folder: Where the images lie. None: ``images`` beside the model or up to three folders above it.
        missing: What to do about images that do not exist or cannot be read: "error", or "skip" and name them.

    Raises:
        InputError: No model, no images, or missing images.
        FormatError: A damaged model, a camera model without a pinhole equivalent, images of another aspect ratio.
        MissingDependencyError: pycolmap is not installed.
    """
    model_folder = find_colmap_model(folder)
    if model_folder is None:
        raise InputError(
            f"no COLMAP model in {folder}: expected cameras.bin and images.bin (or .txt) there or in sparse/0"
        )
    reconstruction = _load(import_pycolmap(), model_folder)
    registered = sorted(
        (image for image in reconstruction.images.values() if image.has_pose), key=lambda image: natural_key(image.name)
    )
    if not registered:
        raise FormatError(f"{model_folder}: the model has no registered image")
    root = _image_root(model_folder, image_folder, [image.name for image in registered])

    photos, poses, K, sizes, skipped = [], [], [], [], []
    lenses: dict[tuple, Lens] = {}
    flat: dict[Lens, np.ndarray] = {}
    for image in registered:
        path = root / image.name
        where = f"{model_folder}, image {image.name}"
        try:
            stored = image_size(path)
        except (InputError, FormatError) as error:
            if missing == "error":
                raise type(error)(f"{where}: {error}; or leave such views out (missing='skip')") from error
            skipped.append((image.name, reason_without_name(error, path)))
            continue
        camera = reconstruction.cameras[image.camera_id]
        (width, height), upright = _oriented(path, stored, (camera.width, camera.height), where)
        lens = _lens(camera, width, height, lenses, where)
        distorted = bool(lens.coefficients.any()) or lens.model == "fisheye"
        seen = points_seen(reconstruction, image) if len(reconstruction.points3D) else None
        photos.append(Photo(path, image.name, lens if distorted else None, upright, points=seen))
        poses.append(world_to_camera(image))
        if lens not in flat:
            flat[lens] = lens.pinhole_K() if distorted else lens.K
        K.append(flat[lens])
        sizes.append((width, height))
    if not photos:
        name, reason = skipped[0]
        raise InputError(f"{model_folder}: none of its {len(skipped)} images can be used; {name}: {reason}")
    cameras = _cameras(np.stack(poses), np.stack(K), sizes, model_folder)
    points, colors = sparse_points(reconstruction)
    return ColmapModel(PosedImages(tuple(photos), cameras), points, colors, tuple(skipped))


def write_colmap(
    folder: str | os.PathLike,
    cameras: Cameras,
    names: tuple[str, ...] | list[str],
    points: Float[torch.Tensor, "M 3"] | None = None,
    colors: UInt8[torch.Tensor, "M 3"] | None = None,
) -> None:
    """Write a binary COLMAP model of pinhole cameras; the inverse of `read_colmap`. Written whole or not at all.

    Views of equal intrinsics share one COLMAP camera. The points carry no tracks: trainers start from them, but COLMAP
    cannot adjust them.

    Args:
        folder: The model's folder (``.../sparse/0``), replaced if it exists; the folder above it must exist.
        cameras: Posed, at the size of the image files.
        names: One file name per camera, relative to the image folder.
        points: Sparse points in the world frame.
        colors: One colour per point; default grey.

    Raises:
        InputError: Counts that differ, repeated names, cameras without poses or with skew, points that are not finite.
    """
    if len(names) != len(cameras) or len(set(names)) != len(names):
        raise InputError(f"expected one name of its own per camera ({len(cameras)}); got {len(names)}: {names[:4]}")
    if cameras.cam_from_world is None:
        raise InputError("a COLMAP model needs posed cameras; these have intrinsics only")
    cameras = cameras.detach().to("cpu", torch.float64)
    if cameras.K[:, 0, 1].any():
        raise InputError("COLMAP's PINHOLE model cannot hold skewed intrinsics (K[0, 1] != 0)")
    points = torch.empty(0, 3) if points is None else points.detach().cpu()
    colors = torch.full((len(points), 3), 128, dtype=torch.uint8) if colors is None else colors.cpu()
    if len(colors) != len(points) or not torch.isfinite(points).all():
        raise InputError(f"expected finite points and one colour each ({len(points)}); got {len(colors)} colours")

    intrinsics = [
        (int(w), int(h), K[0][0], K[1][1], K[0][2], K[1][2])
        for K, w, h in zip(cameras.K.tolist(), cameras.width, cameras.height, strict=True)
    ]
    numbers = {values: number for number, values in enumerate(dict.fromkeys(intrinsics), start=1)}
    quats = quat_from_matrix(cameras.cam_from_world[:, :3, :3]).tolist()
    translations = cameras.cam_from_world[:, :3, 3].tolist()
    # Layout: COLMAP's src/colmap/scene/reconstruction_io_binary.cc; little endian, no padding.
    with atomic_path(folder, directory=True) as temporary:
        with (temporary / "cameras.bin").open("wb") as file:
            file.write(struct.pack("<Q", len(numbers)))
            for (width, height, *params), number in numbers.items():
                file.write(struct.pack("<IiQQ4d", number, _PINHOLE_ID, width, height, *params))
        with (temporary / "images.bin").open("wb") as file:
            file.write(struct.pack("<Q", len(names)))
            for view, name in enumerate(names):
                pose = struct.pack("<I7dI", view + 1, *quats[view], *translations[view], numbers[intrinsics[view]])
                file.write(pose + name.encode() + b"\0" + struct.pack("<Q", 0))
        record = np.zeros(
            len(points),
            dtype=[("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")],
        )
        record["id"] = np.arange(1, len(points) + 1)
        record["xyz"], record["rgb"], record["error"] = points.numpy(), colors.numpy(), -1.0
        with (temporary / "points3D.bin").open("wb") as file:
            file.write(struct.pack("<Q", len(points)) + record.tobytes())


# ---------------------------------------------------------------- reading


def _load(pycolmap: ModuleType, folder: Path) -> Any:
    _check_counts(folder)
    try:
        reconstruction = pycolmap.Reconstruction(str(folder))
    # pycolmap turns the exceptions and failed checks of COLMAP into these.
    except (ValueError, RuntimeError, IndexError, KeyError, MemoryError, OverflowError) as error:
        raise FormatError(f"{folder}: the COLMAP model is damaged ({error}); export it again") from error
    # COLMAP reads past the end of a truncated binary file without a word: the records found must fit into the file.
    sizes = {
        "cameras.bin": sum(24 + 8 * len(camera.params) for camera in reconstruction.cameras.values()),
        "images.bin": sum(73 + len(i.name.encode()) + 24 * len(i.points2D) for i in reconstruction.images.values()),
        "points3D.bin": sum(51 + 8 * len(point.track.elements) for point in reconstruction.points3D.values()),
    }
    for name, size in sizes.items():
        if (folder / name).is_file() and (folder / name).stat().st_size < 8 + size:
            raise FormatError(f"{folder}: {name} is truncated; copy or export it again")
    return reconstruction


def _check_counts(folder: Path) -> None:
    """The number of records that a binary file starts with must fit into it: COLMAP would read on for minutes."""
    for path in sorted(folder.glob("*.bin")):
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
        smallest = _SMALLEST_RECORD.get(path.name, 1)
        if len(head) < 8 or 8 + struct.unpack("<Q", head)[0] * smallest > size:
            raise FormatError(f"{folder}: {path.name} is truncated or damaged ({size} bytes); copy or export it again")


def _image_root(model_folder: Path, image_folder: str | os.PathLike | None, names: list[str]) -> Path:
    if image_folder is not None:
        root = Path(image_folder)
        if not root.is_dir():
            raise InputError(f"image folder {root} does not exist")
        return root
    # The folder may be a link: what lies beside the link counts as well as what lies beside its target.
    beside = {folder: None for path in (model_folder.absolute(), model_folder.resolve()) for folder in path.parents[:3]}
    above = [model_folder, *beside]
    tried = [folder / part for folder in above for part in ("images", ".")]
    for root in tried:
        if any((root / name).is_file() for name in names):
            return root
    raise InputError(
        f"{model_folder}: its images ({names[0]} and {len(names) - 1} more) are in no folder 'images' beside or above "
        "it; give the folder of the images as input and this one as --cameras (in Python: image_folder)"
    )


def _oriented(
    path: Path, stored: tuple[int, int], expected: tuple[int, int], where: str
) -> tuple[tuple[int, int], bool]:
    """Size of the image the camera describes, and whether EXIF must turn it upright for that."""

    def fits(width: int, height: int) -> bool:
        return abs(width / expected[0] / (height / expected[1]) - 1) <= _ASPECT_TOLERANCE

    width, height = stored
    if fits(width, height):
        return stored, False
    if fits(height, width) and exif_orientation(path) in QUARTER_TURNS:
        return (height, width), True
    raise FormatError(
        f"{where}: the file is {width}x{height} px, its camera {expected[0]}x{expected[1]}: another aspect ratio; "
        "was it turned or cropped?"
    )


def _lens(camera: Any, width: int, height: int, known: dict[tuple, Lens], where: str) -> Lens:
    """Intrinsics and distortion, scaled to the size of the file; equal lenses are one object."""
    model = str(getattr(camera, "model_name", None) or camera.model.name)
    if model not in _LENSES:
        raise FormatError(
            f"{where}: camera model {model} cannot be undistorted here (known: {', '.join(_LENSES)}); "
            "run 'colmap image_undistorter' and give its output folder"
        )
    kind, positions = _LENSES[model]
    params = np.asarray(camera.params, dtype=np.float64)
    if not np.isfinite(params).all():
        raise FormatError(f"{where}: the parameters of its camera hold NaN or infinity")
    K = np.asarray(camera.calibration_matrix(), dtype=np.float64)
    K[0] *= width / camera.width
    K[1] *= height / camera.height
    coefficients = np.zeros(8)
    coefficients[: len(positions)] = params[list(positions)]
    key = (kind, *coefficients, *K.ravel().tolist(), width, height)
    return known.setdefault(key, Lens(kind, coefficients, K, width, height))


def world_to_camera(image: Any) -> np.ndarray:
    """[4, 4] float64 cam_from_world of a pycolmap image: an attribute up to 3.11, a method since rigs came."""
    pose = image.cam_from_world
    matrix = np.eye(4)
    matrix[:3] = (pose() if callable(pose) else pose).matrix()
    return matrix


def _cameras(poses: np.ndarray, K: np.ndarray, sizes: list[tuple[int, int]], folder: Path) -> Cameras:
    width, height = torch.tensor(sizes).T
    try:
        cameras = Cameras(torch.from_numpy(poses), torch.from_numpy(K), width, height)
    except InputError as error:
        raise FormatError(f"{folder}: {error}") from error
    centers = cameras.centers
    reach, spread = float(centers.abs().max()), float((centers.amax(0) - centers.amin(0)).max())
    if reach > 1e4 * max(spread, 1.0):
        log.warning(
            "%s: the cameras lie %.3g units from the origin and span only %.3g; single precision loses digits: move "
            "the model to the origin first (colmap model_transformer)",
            folder,
            reach,
            spread,
        )
    return cameras.to(torch.float32)


def points_seen(reconstruction: Any, image: Any) -> Float[torch.Tensor, "m 3"]:
    """World points on the tracks of a pycolmap image."""
    tracked = [point.point3D_id for point in image.points2D if point.has_point3D()]
    xyz = np.array([reconstruction.points3D[number].xyz for number in tracked], dtype=np.float32).reshape(-1, 3)
    return torch.from_numpy(xyz)


def sparse_points(reconstruction: Any) -> tuple[Float[torch.Tensor, "M 3"], UInt8[torch.Tensor, "M 3"]]:
    """Points and colours of a pycolmap reconstruction."""
    points = [(point.xyz, point.color) for _, point in sorted(reconstruction.points3D.items())]
    xyz = np.array([xyz for xyz, _ in points], dtype=np.float32).reshape(-1, 3)
    rgb = np.array([rgb for _, rgb in points], dtype=np.uint8).reshape(-1, 3)
    return torch.from_numpy(xyz), torch.from_numpy(rgb)
