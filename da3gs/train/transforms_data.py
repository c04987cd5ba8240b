"""Posed photographs as training data: scenes with a nerfstudio ``transforms.json`` (DL3DV has one per scene).

With depth, where the frames have files of it: from sensors and scanners, or as another model labelled it.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from da3gs.data.covering import Covering
from da3gs.data.posed_images import PosedImages
from da3gs.data.rgbd import depth_of_view
from da3gs.data.transforms_json import read_transforms_json
from da3gs.errors import FormatError, InputError
from da3gs.geometry.cameras import Cameras
from da3gs.images import tensor_from_uint8
from da3gs.train.samples import TrainingSample

_OPEN_SCENES = 64
_DEPTH_KEYS = {"depth_file_path", "depth_path"}  # as the reader knows them


@dataclass(frozen=True)
class TransformsData:
    """Posed photographs, and their depth where it is asked for.

    Attributes:
        folder: Searched for transforms.json files at any depth.
        sizes: One (width, height) px the pictures are brought to, multiples of 14.
        holdout: Every n-th scene is left to evaluation; 0 gives every scene to both.
        evaluation: Take the scenes training leaves out.
        depth: Read the depth files of the frames; a scene without is an error.
        max_depth: Depth beyond is unknown (stereo sensors guess far away), in the unit of the cameras.
    """

    kind: Literal["transforms"] = "transforms"
    folder: Path = Path("data")
    sizes: tuple[tuple[int, int], ...] = ((448, 252),)
    holdout: int = 20
    evaluation: bool = False
    depth: bool = False
    max_depth: float | int | None = None

    def __post_init__(self):
        if self.max_depth is not None and not self.max_depth > 0:
            raise InputError(f"max_depth must be > 0; got {self.max_depth}")

    def open(self) -> "TransformsSource":
        return TransformsSource(self)


class TransformsSource:
    """Samples of `TransformsData`; pictures are read when they are asked for."""

    ordered = True

    def __init__(self, config: TransformsData):
        self.config = config
        if len(config.sizes) != 1:
            raise InputError(f"transforms data takes one size; got {len(config.sizes)}")
        self.sizes = list(config.sizes)
        paths = sorted(config.folder.expanduser().rglob("transforms.json"))
        self.paths = [
            path
            for index, path in enumerate(paths)
            if not config.holdout or (index % config.holdout == config.holdout - 1) == config.evaluation
        ]
        if not self.paths:
            purpose = "evaluation" if config.evaluation else "training"
            raise InputError(
                f"no {purpose} scene with a transforms.json under {config.folder} ({len(paths)} found in all); set the "
                "folder of the data, or its holdout to 0"
            )
        if config.depth:
            self._check_depth()

    def _check_depth(self) -> None:
        without = [
            path
            for path in self.paths
            if not all(any(frame.get(key) for key in _DEPTH_KEYS) for frame in _frames(path))
        ]
        if without:
            raise InputError(
                f"{len(without)} of {len(self.paths)} scenes have frames without depth_file_path: {without[0]}; "
                "leave them out, or label them (da3gs depth --align)"
            )

    @property
    def scenes(self) -> int:
        return len(self.paths)

    def indices(self, size: tuple[int, int]) -> list[int]:
        return list(range(len(self.paths)))

    def frame_count(self, index: int) -> int:
        """Frames of a scene, without opening pictures."""
        return len(_frames(self.paths[index]))

    def load(self, index: int, frames: list[int] | None = None) -> TrainingSample:
        """The given frames of a scene (all by default) at the configured size: scaled to cover it, then cropped about
        the centre."""
        whole = _open_scene(self.paths[index])
        posed = whole if frames is None else whole[frames]
        width, height = self.config.sizes[0]
        images, depths, cameras = [], [], []
        for view in range(len(posed)):
            image = posed.load_image(view)
            covering = Covering.of((image.shape[1], image.shape[0]), (width, height))
            images.append(tensor_from_uint8(covering.picture(image)))
            camera = covering.cameras(posed.cameras[view])
            cameras.append(Cameras(camera.cam_from_world, camera.K, width, height))
            if self.config.depth:
                depths.append(torch.from_numpy(covering.nearest(depth_of_view(posed, view))))
        depth = torch.stack(depths) if depths else torch.zeros(len(images), height, width)
        if self.config.max_depth is not None:
            depth = torch.where(depth <= self.config.max_depth, depth, 0.0)
        return TrainingSample(torch.stack(images), depth, Cameras.cat(cameras).to(torch.float32))


def _frames(path: Path) -> list[dict]:
    try:
        frames = json.loads(path.read_text())["frames"]
        if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
            raise TypeError("frames must be a list of objects, at least one")
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is no transforms.json ({error})") from error
    return frames


@lru_cache(maxsize=_OPEN_SCENES)
def _open_scene(path: Path) -> PosedImages:
    return read_transforms_json(path)
