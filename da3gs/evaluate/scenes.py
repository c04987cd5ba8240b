"""Scenes with a known truth: data sets on disk, or procedural ones.

Letters: F frames of a scene, V chosen views, H W pixels.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from da3gs.data.colmap import find_colmap_model, read_colmap
from da3gs.data.covering import Covering
from da3gs.data.posed_images import PosedImages
from da3gs.data.re10k import chunk_index, is_chunk_folder, read_chunked_scene
from da3gs.data.rgbd import depth_of_view
from da3gs.data.synthetic import HELD_OUT_STYLES, SyntheticViews, make_scene, render_views, sample_cameras
from da3gs.data.transforms_json import read_transforms_json
from da3gs.errors import InputError
from da3gs.export.video import uint8_picture
from da3gs.geometry.cameras import Cameras
from da3gs.images import PATCH_PX

PROCEDURAL = "procedural"
# Seeds far from those that the shipped configurations train on.
_PROCEDURAL_SEED = 9_000_000
_PROCEDURAL_SIZE = (448, 336)
_PROCEDURAL_FRAMES = 12
_PROCEDURAL_COVISIBILITY = 0.6
_PROCEDURAL_DIFFICULTY = 0.3
_HOLD_OUT = 4
_TRANSFORMS = ("transforms.json", "transforms_train.json")
_PROCEDURAL_SOURCE = (
    f"seed {_PROCEDURAL_SEED}, {_PROCEDURAL_FRAMES} frames of {_PROCEDURAL_SIZE[0]}x{_PROCEDURAL_SIZE[1]} px, "
    f"covisibility {_PROCEDURAL_COVISIBILITY}, difficulty {_PROCEDURAL_DIFFICULTY}"
)


@dataclass(frozen=True, eq=False)
class EvaluationViews:
    """V frames at one size.

    Attributes:
        names: Of the frames.
        images: RGB uint8 [H, W, 3] each.
        cameras: The true ones, at this size.
        depth: [V, H, W] true z-depth in the unit of the cameras, 0 where unknown; None where the scene has none.
    """

    names: tuple[str, ...]
    images: tuple[UInt8[np.ndarray, "H W 3"], ...]
    cameras: Cameras
    depth: Float[Tensor, "V H W"] | None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.cameras.size

    @property
    def pictures(self) -> Float[Tensor, "V 3 H W"]:
        """The images in [0, 1]."""
        stacked = torch.from_numpy(np.stack(self.images))
        return stacked.movedim(-1, 1).float() / 255


@dataclass(frozen=True, eq=False)
class EvaluationScene:
    """F frames with true cameras, read when they are asked for.

    Attributes:
        name: Unique among the scenes of an evaluation.
        frames: Names.
        cameras: [F] posed, at the sizes of the files.
        picture: Frame -> RGB uint8 [H, W, 3], the picture its camera describes.
        depth: Frame -> [H, W] z-depth of that picture, 0 where unknown; None where the scene has no depth.
        splits: Split name -> frames.
        folder: Of its files; None for scenes without any.
    """

    name: str
    frames: tuple[str, ...]
    cameras: Cameras
    picture: Callable[[int], UInt8[np.ndarray, "H W 3"]] = field(repr=False)
    depth: Callable[[int], np.ndarray] | None = field(default=None, repr=False)
    splits: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def views(self, frames: Sequence[int], size: tuple[int, int] | int, *, depth: bool = False) -> EvaluationViews:
        """Some frames at one size: scaled to cover it and cropped about the centre.

        Args:
            frames: Which.
            size: (width, height) in pixels, or the longest side: the first frame of the scene then gives the shape.
            depth: Read the true depth too.

        Raises:
            InputError: Depth was asked for and the scene has none.
        """
        if depth and self.depth is None:
            raise InputError(
                f"scene {self.name} has no true depth (a transforms.json whose frames have a depth_file_path)"
            )
        size = self.size(size) if isinstance(size, int) else size
        images, cameras, maps = [], [], []
        for frame in frames:
            image = self.picture(frame)
            covering = Covering.of((image.shape[1], image.shape[0]), size)
            images.append(covering.picture(image, "lanczos"))
            cameras.append(covering.cameras(self.cameras[frame]))
            if depth and self.depth is not None:
                maps.append(torch.from_numpy(covering.nearest(self.depth(frame))))
        names = tuple(self.frames[frame] for frame in frames)
        return EvaluationViews(names, tuple(images), Cameras.cat(cameras), torch.stack(maps) if depth else None)

    def size(self, longest_px: int) -> tuple[int, int]:
        """(width, height) of the first frame with that longest side, or smaller if the file is."""
        width, height = int(self.cameras.width[0]), int(self.cameras.height[0])
        factor = min(1.0, longest_px / max(width, height))
        return max(PATCH_PX, round(width * factor)), max(PATCH_PX, round(height * factor))


@dataclass(frozen=True, eq=False)
class SceneOnDemand:
    """A scene by name, opened when its turn comes.

    Attributes:
        name: Unique among the scenes of an evaluation.
        source: What it is made of: results of another source are not taken for its own.
    """

    name: str
    source: str
    open: Callable[[], EvaluationScene] = field(repr=False)


def find_scenes(sources: Sequence[str | Path]) -> list[SceneOnDemand]:
    """Scenes of what a user names, in order.

    Args:
        sources: Each a data set with cameras (a COLMAP project, a ``transforms.json`` or its folder), a folder of such
            data sets (also ``SCENE/nerfstudio/transforms.json``, as DL3DV has them), a folder of RealEstate10K chunks
            (``index.json`` and ``*.torch``, as pixelSplat stores them), or ``procedural:8``, that many procedural
            scenes of styles that no shipped model was trained on.

    Raises:
        InputError: Nothing there, or two scenes of one name.
    """
    if not sources:
        raise InputError("name at least one scene: a data set with cameras, a folder of data sets, or procedural:4")
    scenes = [scene for source in sources for scene in _scenes_of(str(source))]
    names = [scene.name for scene in scenes]
    repeated = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if repeated is not None:
        raise InputError(f"two scenes are called {repeated}; give their folders different names")
    return scenes


# ------------------------------------------------------------------------------------------------ sources


def _scenes_of(source: str) -> list[SceneOnDemand]:
    procedural = re.fullmatch(rf"{PROCEDURAL}(?::(\d+))?", source)
    if procedural is not None:
        count = int(procedural[1] or 4)
        if count < 1:
            raise InputError(f"'{source}': at least one procedural scene is needed, as in {PROCEDURAL}:4")
        return [
            SceneOnDemand(f"{PROCEDURAL}_{index:02d}", _PROCEDURAL_SOURCE, _procedural(index)) for index in range(count)
        ]
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(
            f"{path} does not exist; give a data set with cameras, a folder of data sets, or {PROCEDURAL}:4"
        )
    name = path.resolve().parent.name if path.is_file() else path.resolve().name
    found = _data_set(path, name)
    if found is not None:
        return [found]
    if path.is_dir() and is_chunk_folder(path):
        return [SceneOnDemand(key, _state(chunk), _chunked(chunk, key)) for key, chunk in chunk_index(path).items()]
    children = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    inside = [scene for child in children if (scene := _data_set(child, child.name)) is not None]
    if not inside:
        raise InputError(
            f"{path} holds no scene with cameras (transforms.json or a COLMAP model), nor do the folders in it"
        )
    return inside


def _data_set(path: Path, name: str) -> SceneOnDemand | None:
    if path.is_file():
        if path.suffix.lower() != ".json":
            return None
        return SceneOnDemand(name, _state(path), lambda: _photographed(name, read_transforms_json(path), path.parent))
    places = ((folder, file) for folder in (path, path / "nerfstudio") for file in _TRANSFORMS)
    found = next((place for place in places if place[0].joinpath(place[1]).is_file()), None)
    if found is not None:
        folder, file = found  # the folder is read: Blender's splits are files of their own
        return SceneOnDemand(
            name, _state(folder / file), lambda: _photographed(name, read_transforms_json(folder), folder)
        )
    model = find_colmap_model(path) if path.is_dir() else None
    if model is not None:
        return SceneOnDemand(name, _state(model), lambda: _photographed(name, read_colmap(path).images, path))
    return None


def _state(path: Path) -> str:
    """A file or folder, and when it last changed."""
    return f"{path.resolve()} {path.stat().st_mtime_ns}"


def _photographed(name: str, data: PosedImages, folder: Path) -> EvaluationScene:
    if data.cameras.cam_from_world is None:
        raise InputError(f"scene {name} has cameras without poses; an evaluation needs the true ones")
    measured = any(path is not None for path in data.depth_paths)  # a frame without is named when its turn comes
    return EvaluationScene(
        name=name,
        frames=data.names,
        cameras=data.cameras,
        picture=data.load_image,
        depth=(lambda frame: depth_of_view(data, frame)) if measured else None,
        splits=data.splits,
        folder=folder,
    )


def _chunked(chunk: Path, key: str) -> Callable[[], EvaluationScene]:
    def open_scene() -> EvaluationScene:
        scene = read_chunked_scene(chunk, key)
        names = tuple(str(stamp) for stamp in scene.timestamps)
        return EvaluationScene(name=key, frames=names, cameras=scene.cameras, picture=scene.load_image)

    return open_scene


def _procedural(index: int) -> Callable[[], EvaluationScene]:
    def build() -> EvaluationScene:
        seed = _PROCEDURAL_SEED + index
        style = HELD_OUT_STYLES[index % len(HELD_OUT_STYLES)]
        scene = make_scene(seed, style=style, difficulty=_PROCEDURAL_DIFFICULTY)
        width, height = _PROCEDURAL_SIZE
        cameras = sample_cameras(
            scene, _PROCEDURAL_FRAMES, seed, width, height, motion="orbit", min_covisibility=_PROCEDURAL_COVISIBILITY
        )
        return procedural_scene(f"{PROCEDURAL}_{index:02d}", render_views(scene, cameras))

    return build


def procedural_scene(name: str, views: SyntheticViews) -> EvaluationScene:
    """Rendered views as a scene whose every fourth frame is its split "test"."""
    count = len(views.images)
    test = tuple(range(_HOLD_OUT // 2, count, _HOLD_OUT))
    return EvaluationScene(
        name=name,
        frames=tuple(f"{frame:03d}" for frame in range(count)),
        cameras=views.cameras,
        picture=lambda frame: uint8_picture(views.images[frame].movedim(0, -1)),
        depth=lambda frame: views.depth[frame].numpy(),
        splits={"train": tuple(frame for frame in range(count) if frame not in test), "test": test},
    )
