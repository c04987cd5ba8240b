"""Camera poses from the photographs alone: COLMAP's incremental structure from motion through pycolmap, on the CPU.

    images ─► SIFT ─► matching ─► incremental mapping ─► poses, one focal length and radial term per camera
                                                      └► lens undone: pinhole images and `Cameras`

The frame and the scale of the result are arbitrary. Letters: V images, R of them registered, M points.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from da3gs.data.colmap import import_pycolmap, points_seen, sparse_points, world_to_camera
from da3gs.data.input_views import InputViews
from da3gs.data.lens import Lens
from da3gs.data.photographs import Photograph
from da3gs.errors import InputError, MissingDependencyError
from da3gs.geometry.cameras import Cameras
from da3gs.images import load_image
from da3gs.keypoints import find_keypoints

log = logging.getLogger(__name__)

# Exhaustive matching grows with the square of the number of images; longer sequences match their neighbours only.
_EXHAUSTIVE_UP_TO = 60
_SEQUENTIAL_OVERLAP = 10
# A radial term that moves the corner of the image by less than this is no lens worth undoing.
_NEGLIGIBLE_PX = 0.5
# What COLMAP asks of the pair it starts from suits a walk round an object. A second try accepts street walks and
# driving forward: small angles, few matches, motion along the view.
_USUAL_START: dict[str, float] = {}
_RELAXED_START = {"init_min_tri_angle": 2.0, "init_min_num_inliers": 30, "init_max_forward_motion": 1.0}
# Such views may not tell a radial term from the focal length (on a street walk with both free, the focal length came
# out a third too short). There the term must lower the reprojection error to this share to be believed.
_RADIAL_WORTH = 0.9
_CAMERA_MODEL = "SIMPLE_RADIAL"  # f cx cy k


@dataclass(frozen=True, eq=False)
class SfmStats:
    """How well it went.

    Attributes:
        images, registered: Counts.
        points: 3D points found.
        observations_per_image: Mean number of points an image sees.
        reprojection_error_px: Mean, at the size the features were found at.
        track_length: Mean number of images that see a point.
        relaxed: Whether only the second try with relaxed demands placed them.
    """

    images: int
    registered: int
    points: int
    observations_per_image: float
    reprojection_error_px: float
    track_length: float
    relaxed: bool = False


@dataclass(frozen=True, eq=False)
class SfmResult:
    """Cameras found for R of V images.

    Attributes:
        cameras: [R] pinhole cameras at the sizes of the images, for images undistorted by `lenses`.
        registered: [V], which images they belong to.
        lenses: [R] what the photographs were taken with; None where the image is a pinhole image already.
        points, colors: [M, 3] sparse points and their colours.
        seen: [R] the points that each registered image sees.
        stats: Counts and errors.
    """

    cameras: Cameras
    registered: Bool[torch.Tensor, " V"]
    lenses: tuple[Lens | None, ...]
    points: Float[torch.Tensor, "M 3"]
    colors: UInt8[torch.Tensor, "M 3"]
    seen: tuple[Float[torch.Tensor, "_m 3"], ...]
    stats: SfmStats


def run_sfm(
    images: Sequence[str | os.PathLike | np.ndarray],
    names: Sequence[str],
    *,
    focal_hint_px: Sequence[float | None] | None = None,
    sequential: bool | None = None,
    max_size_px: int = 1024,
    max_features: int = 4096,
    threads: int = 2,
    seed: int = 0,
    progress: bool = False,
) -> SfmResult:
    """Find the cameras of photographs of one static scene.

    Images of equal size and focal hint are taken to come from one camera and share its intrinsics.

    Args:
        images: V >= 2 files (turned upright by EXIF) or RGB uint8 arrays.
        names: One label each, for messages.
        focal_hint_px: Focal lengths to start from; without one 1.2 times the longer side.
        sequential: Match each image with its neighbours in the sequence only. None: when there are more than 60.
        max_size_px: Features are found on copies whose longer side is at most this.
        max_features: Features per image at most.
        threads: CPU threads for features and matching.
        seed: Of every random choice. Equal seeds give equal cameras.
        progress: Show a progress bar.

    Raises:
        InputError: Fewer than two images, or too little overlap or texture to register two of them.
        MissingDependencyError: pycolmap is not installed or too old.
    """
    if len(images) != len(names) or len(images) < 2:
        raise InputError(f"structure from motion needs at least two images and a name each; got {len(images)}")
    pycolmap = import_pycolmap()
    if not hasattr(pycolmap, "FeatureExtractorType"):
        raise MissingDependencyError("this pycolmap is too old for structure from motion: pip install -U pycolmap")
    hints = [None] * len(images) if focal_hint_px is None else list(focal_hint_px)
    use_neighbours = len(images) > _EXHAUSTIVE_UP_TO if sequential is None else sequential

    with tempfile.TemporaryDirectory(prefix="da3gs-sfm-") as folder, _quiet(pycolmap), _bars(progress) as bars:
        pycolmap.set_random_seed(seed)
        root = Path(folder)
        files, sizes = _write_copies(images, hints, root / "images", max_size_px, bars("Reading images", len(images)))
        _extract(pycolmap, root, files, hints, max_features, threads, bars("Finding features", len(images)))
        _match(pycolmap, root, use_neighbours, threads, seed, bars("Matching features", None))
        reconstruction, relaxed = _map(pycolmap, root, seed, bars("Placing cameras", len(images)))
        if reconstruction is None:
            raise InputError(
                f"structure from motion could not place any two of the {len(images)} images ({names[0]}, ...): too "
                "little overlap, texture or motion; take more overlapping photographs, or go without it"
            )
        return _result(reconstruction, files, sizes, relaxed)


def with_sfm_cameras(views: InputViews, **options) -> InputViews:
    """The views that structure from motion can place, undistorted and with cameras; notes tell about the others.

    Args:
        views: Two or more.
        options: Passed to `run_sfm`.
    """
    found = run_sfm(views.images, views.names, focal_hint_px=views.focal_hint_px, **options)
    kept = found.registered.nonzero().flatten().tolist()
    left_out = tuple(
        (name, "structure from motion could not place it")
        for name, registered in zip(views.names, found.registered.tolist(), strict=True)
        if not registered
    )
    stats = found.stats
    note = (
        f"structure from motion placed {stats.registered} of {stats.images} images "
        f"({stats.points} points, {stats.reprojection_error_px:.2f} px)"
    )
    if stats.relaxed:
        note += "; only a second try with relaxed demands did: little parallax or overlap, so depth is less certain"
    if left_out:
        note += f"; left out: {', '.join(name for name, _ in left_out[:8])}{' ...' if len(left_out) > 8 else ''}"
    picked = views[kept]
    images = list(picked.images)
    for index, lens in enumerate(found.lenses):
        if lens is not None:
            K = found.cameras.K[index].double().numpy()
            images[index] = lens.undistort(picked.load_image(index), K)
    photographs = tuple(Photograph(*size, lens=lens) for size, lens in zip(picked.sizes, found.lenses, strict=True))
    posed = replace(picked, images=tuple(images), photographs=photographs, points=found.seen).with_cameras(
        found.cameras
    )
    return replace(posed, skipped=views.skipped + left_out, notes=(*views.notes, note))


# ---------------------------------------------------------------- steps


def _write_copies(
    images, hints, root: Path, max_size_px: int, advance: Callable
) -> tuple[list[str], list[tuple[int, int]]]:
    """Copies for COLMAP, one folder per camera; their names, and the sizes (width, height) of the originals."""
    import cv2

    files, sizes = [], []
    for index, image in enumerate(images):
        pixels = image if isinstance(image, np.ndarray) else load_image(image)
        height, width = pixels.shape[:2]
        hint = hints[index]
        folder = f"{width}x{height}_{'unknown' if hint is None else round(hint)}"
        (root / folder).mkdir(parents=True, exist_ok=True)
        scale = min(1.0, max_size_px / max(width, height))
        if scale < 1:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        files.append(f"{folder}/{index:06d}.png")
        cv2.imwrite(str(root / files[-1]), pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        sizes.append((width, height))
        advance()
    return files, sizes


def _extract(
    pycolmap: ModuleType, root: Path, files, hints, max_features: int, threads: int, advance: Callable
) -> None:
    """Images, cameras and SIFT features into COLMAP's database.

    The features are OpenCV's: several times faster on a CPU than COLMAP's own, and written in a fixed order.
    """
    import cv2

    pycolmap.Database.open(root / "database.db").close()  # creates it
    groups: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        groups.setdefault(file.split("/")[0], []).append(index)
    for members in groups.values():
        options = pycolmap.ImageReaderOptions()
        options.camera_model = _CAMERA_MODEL
        hint = hints[members[0]]
        if hint is not None:
            height, width = cv2.imread(str(root / "images" / files[members[0]])).shape[:2]
            full_width = int(files[members[0]].split("x")[0])
            options.camera_params = f"{hint * width / full_width},{width / 2},{height / 2},0"
        pycolmap.import_images(
            root / "database.db",
            root / "images",
            camera_mode=pycolmap.CameraMode.PER_FOLDER,
            image_names=[files[index] for index in members],
            options=options,
        )
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    database = pycolmap.Database.open(root / "database.db")
    try:
        for image in sorted(database.read_all_images(), key=lambda image: image.name.split("/")[1]):
            grey = cv2.imread(str(root / "images" / image.name), cv2.IMREAD_GRAYSCALE)
            found = find_keypoints(grey, max_features)
            database.write_keypoints(image.image_id, np.column_stack([found.xy, found.scale, found.angle]))
            quantised = np.clip(np.rint(512 * found.descriptors), 0, 255).astype(np.uint8)  # 512: COLMAP's scale
            sift_type = pycolmap.FeatureExtractorType.SIFT
            database.write_descriptors(image.image_id, pycolmap.FeatureDescriptors(sift_type, quantised))
            advance()
    finally:
        database.close()
        cv2.setNumThreads(before)


def _match(pycolmap: ModuleType, root: Path, neighbours: bool, threads: int, seed: int, advance: Callable) -> None:
    options = pycolmap.FeatureMatchingOptions()
    options.num_threads, options.use_gpu = threads, False
    verification = pycolmap.TwoViewGeometryOptions()
    if hasattr(verification.ransac, "random_seed"):
        verification.ransac.random_seed = seed
    arguments: dict[str, Any] = {
        "matching_options": options,
        "verification_options": verification,
        "device": pycolmap.Device.cpu,
    }
    if neighbours:
        pairing = pycolmap.SequentialPairingOptions()
        pairing.overlap = _SEQUENTIAL_OVERLAP
        pycolmap.match_sequential(root / "database.db", pairing_options=pairing, **arguments)
    else:
        pycolmap.match_exhaustive(root / "database.db", **arguments)
    advance()


def _map(pycolmap: ModuleType, root: Path, seed: int, advance: Callable) -> tuple[Any | None, bool]:
    """The reconstruction with most images, or None, and whether it took relaxed demands; these get a second try when
    some images were left out."""
    database = pycolmap.Database.open(root / "database.db")
    total = database.num_images()
    database.close()

    def best(name: str, demands: dict[str, float], radial: bool) -> Any | None:
        options = pycolmap.IncrementalPipelineOptions()
        # Sums of several threads round differently from run to run, and bundle adjustment magnifies that.
        options.num_threads, options.random_seed = 1, seed
        options.min_model_size = 2
        options.max_num_models = 3
        options.ba_refine_extra_params = radial
        for option, value in demands.items():
            setattr(options.mapper, option, value)
        (root / name).mkdir()
        models = pycolmap.incremental_mapping(
            root / "database.db",
            root / "images",
            root / name,
            options,
            initial_image_pair_callback=lambda: advance(2),
            next_image_callback=advance,
        )
        found = [model for model in models.values() if model.num_reg_images() >= 2]
        return max(found, key=_images, default=None)  # the first of equals

    usual = best("usual", _USUAL_START, True)
    if _images(usual) == total:
        return usual, False
    relaxed = best("relaxed", _RELAXED_START, True)
    if _images(relaxed) > _images(usual):
        pinhole = best("pinhole", _RELAXED_START, False)
        if _images(pinhole) >= _images(relaxed):
            error, without = (model.compute_mean_reprojection_error() for model in (relaxed, pinhole))
            relaxed = relaxed if error < _RADIAL_WORTH * without else pinhole
        return relaxed, True
    return usual, False


def _images(model: Any | None) -> int:
    return 0 if model is None else model.num_reg_images()


def _result(reconstruction: Any, files: list[str], sizes: list[tuple[int, int]], relaxed: bool) -> SfmResult:
    by_name = {image.name: image for image in reconstruction.images.values() if image.has_pose}
    kept = [index for index, file in enumerate(files) if file in by_name]
    poses, K, lenses, seen = [], [], [], []
    shared: dict[tuple, tuple[Lens | None, np.ndarray]] = {}
    for index in kept:
        image = by_name[files[index]]
        poses.append(world_to_camera(image))
        seen.append(points_seen(reconstruction, image))
        key = (image.camera_id, *sizes[index])
        if key not in shared:
            shared[key] = _lens(reconstruction.cameras[image.camera_id], *sizes[index])
        lens, flat = shared[key]
        K.append(flat)
        lenses.append(lens)
    width, height = torch.tensor([sizes[index] for index in kept]).T
    registered = torch.zeros(len(files), dtype=torch.bool)
    registered[kept] = True
    points, colors = sparse_points(reconstruction)
    stats = SfmStats(
        images=len(files),
        registered=len(kept),
        points=int(reconstruction.num_points3D()),
        observations_per_image=float(reconstruction.compute_mean_observations_per_reg_image()),
        reprojection_error_px=float(reconstruction.compute_mean_reprojection_error()),
        track_length=float(reconstruction.compute_mean_track_length()),
        relaxed=relaxed,
    )
    cameras = Cameras(torch.from_numpy(np.stack(poses)), torch.from_numpy(np.stack(K)), width, height).to(torch.float32)
    return SfmResult(cameras, registered, tuple(lenses), points, colors, tuple(seen), stats)


def _lens(camera: Any, width: int, height: int) -> tuple[Lens | None, np.ndarray]:
    """The lens at the size of the original, and K of its pinhole image; no lens where the radial term is negligible."""
    focal, _, _, radial = (float(value) for value in camera.params)
    K = np.asarray(camera.calibration_matrix(), dtype=np.float64)
    K[0] *= width / camera.width
    K[1] *= height / camera.height
    corner = np.hypot(camera.width, camera.height) / 2 / focal
    if abs(radial) * corner**3 * K[0, 0] < _NEGLIGIBLE_PX:
        return None, K
    lens = Lens("perspective", np.array([radial, 0, 0, 0, 0, 0, 0, 0.0]), K, width, height)
    return lens, lens.pinhole_K()


# ---------------------------------------------------------------- surroundings


@contextmanager
def _quiet(pycolmap: ModuleType) -> Iterator[None]:
    """COLMAP's running commentary stays off stderr; that nothing could be placed is said by our own error."""
    level = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = 3  # glog: 0 info, 1 warning, 2 error, 3 fatal
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = level


@contextmanager
def _bars(shown: bool) -> Iterator[Callable[[str, int | None], Callable]]:
    """Yields bar(description, total) -> advance(count=1)."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not shown, transient=True) as progress:

        def bar(description: str, total: int | None) -> Callable:
            task = progress.add_task(description, total=total)
            return lambda count=1: progress.advance(task, count)

        yield bar
