"""Posed photographs as training data: scenes with a nerfstudio ``transforms.json`` (DL3DV has one per scene)."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from da3gs.data.covering import Covering
from da3gs.data.posed_images import PosedImages
from da3gs.data.transforms_json import read_transforms_json
from da3gs.errors import FormatError, InputError
from da3gs.geometry.cameras import Cameras
from da3gs.images import tensor_from_uint8
from da3gs.train.samples import TrainingSample

_OPEN_SCENES = 64


@dataclass(frozen=True)
class TransformsData:
    """Posed photographs, depth unknown.

    Attributes:
        folder: Searched for transforms.json files at any depth.
        sizes: One (width, height) px the pictures are brought to, multiples of 14.
        holdout: Every n-th scene is left to evaluation; 0 gives every scene to both.
        evaluation: Take the scenes training leaves out.
    """

    kind: Literal["transforms"] = "transforms"
    folder: Path = Path("data")
    sizes: tuple[tuple[int, int], ...] = ((448, 252),)
    holdout: int = 20
    evaluation: bool = False

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

    def indices(self, size: tuple[int, int]) -> list[int]:
        return list(range(len(self.paths)))

    def frame_count(self, index: int) -> int:
        """Frames of a scene, without opening pictures."""
        try:
            return len(json.loads(self.paths[index].read_text())["frames"])
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{self.paths[index]} is no transforms.json ({error})") from error

    def load(self, index: int, frames: list[int]) -> TrainingSample:
        """The given frames of a scene at the configured size: scaled to cover it, then cropped about the centre."""
        posed = _open_scene(self.paths[index])[frames]
        width, height = self.config.sizes[0]
        parts = [_fit(posed, view, width, height) for view in range(len(posed))]
        images = torch.stack([image for image, _ in parts])
        cameras = Cameras.cat([camera for _, camera in parts]).to(torch.float32)
        return TrainingSample(images, images.new_zeros(len(images), height, width), cameras)


@lru_cache(maxsize=_OPEN_SCENES)
def _open_scene(path: Path) -> PosedImages:
    return read_transforms_json(path)


def _fit(posed: PosedImages, view: int, width: int, height: int) -> tuple[torch.Tensor, Cameras]:
    image, camera = posed.load_image(view), posed.cameras[view]
    covering = Covering.of((image.shape[1], image.shape[0]), (width, height))
    camera = covering.cameras(camera)
    return tensor_from_uint8(covering.picture(image)), Cameras(camera.cam_from_world, camera.K, width, height)
