"""Training samples and where they come from: posed pictures of a scene, with depth where it is known.

Every source is a pure function of an index, so a run can stop anywhere and go on, and any number of processes can share
the work.

Letters: V views, H W pixels.
"""

import hashlib
import json
import logging
import os
import random
import tempfile
from collections import OrderedDict
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.errors import FormatError, InputError
from da3gs.geometry.cameras import Cameras

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """V posed views of one scene, on the CPU.

    Attributes:
        images: [V, 3, H, W] in [0, 1].
        depth: [V, H, W] z-depth in the units of the cameras; 0 where unknown (sky, or no depth at all).
        cameras: V cameras with poses at the size of the maps.
    """

    images: Float[Tensor, "V 3 H W"]
    depth: Float[Tensor, "V H W"]
    cameras: Cameras

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, views: list[int]) -> "TrainingSample":
        return TrainingSample(self.images[views], self.depth[views], self.cameras[views])

    def mirrored(self) -> "TrainingSample":
        """The scene seen in a mirror: pictures flipped left to right, the world's x axis reversed with them."""
        width = self.cameras.width[0]
        flip = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=self.cameras.K.dtype))
        K = self.cameras.K.clone()
        K[:, 0, 2] = width - K[:, 0, 2]
        cameras = Cameras(flip @ self.cameras.cam_from_world @ flip, K, self.cameras.width, self.cameras.height)
        return TrainingSample(self.images.flip(-1), self.depth.flip(-1), cameras)


@dataclass(frozen=True)
class SyntheticData:
    """Procedural scenes rendered on the fly, or once into a cache folder.

    Attributes:
        scenes: Number of scenes; their seeds are first_seed, first_seed + 1, ...
        first_seed: Keep the ranges of training and evaluation apart.
        views: Pictures rendered of each scene; a sample takes some of them.
        sizes: (width, height) px, multiples of 14; scene i has size i modulo their number.
        difficulty: Range a scene's difficulty is drawn from.
        held_out: Use the styles that training scenes never have.
        motion: Camera motion; see `da3gs.data.synthetic.sample_cameras`.
        edge_samples: Anti-aliasing of outlines.
        cache: Folder for rendered scenes; None renders anew each time.
    """

    kind: Literal["synthetic"] = "synthetic"
    scenes: int = 4000
    first_seed: int = 0
    views: int = 6
    sizes: tuple[tuple[int, int], ...] = ((112, 112),)
    difficulty: tuple[float, float] = (0.1, 0.8)
    held_out: bool = False
    motion: str = "any"
    edge_samples: int = 1
    cache: Path | None = None

    def open(self) -> "SyntheticSource":
        if self.scenes < 1 or self.views < 1 or not self.sizes:
            raise InputError("synthetic data needs at least one scene, one view and one size")
        return SyntheticSource(self)


class SyntheticSource:
    """Samples of `SyntheticData`. Views have no order."""

    ordered = False

    def __init__(self, config: SyntheticData):
        self.config = config
        self.sizes = list(config.sizes[: config.scenes])  # fewer scenes than sizes leave some out
        self._recent: OrderedDict[int, TrainingSample] = OrderedDict()

    @property
    def scenes(self) -> int:
        return self.config.scenes

    def indices(self, size: tuple[int, int]) -> list[int]:
        """Scenes of one image size."""
        sizes = self.config.sizes
        return [index for index in range(self.config.scenes) if sizes[index % len(sizes)] == size]

    def frame_count(self, index: int) -> int:
        """Views of a scene."""
        return self.config.views

    def load(self, index: int, frames: list[int] | None = None) -> TrainingSample:
        """The given views of a scene; all of them by default."""
        sample = self._whole(index)
        return sample if frames is None else sample[frames]

    def _whole(self, index: int) -> TrainingSample:
        if self._folder is None:
            return self._recently(index)
        path = self._folder / f"{index:07d}.safetensors"
        if not path.is_file():
            _write_sample(path, self._render(index))
        return _read_sample(path)

    def _recently(self, index: int) -> TrainingSample:
        if index not in self._recent:
            self._recent[index] = self._render(index)
            if len(self._recent) > 8:
                self._recent.popitem(last=False)
        return self._recent[index]

    @cached_property
    def _folder(self) -> Path | None:
        if self.config.cache is None:
            return None
        settings = {key: value for key, value in asdict(self.config).items() if key not in ("cache", "scenes")}
        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        folder = self.config.cache.expanduser() / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.json").write_text(json.dumps(settings, indent=1))
        return folder

    def _render(self, index: int) -> TrainingSample:
        from da3gs.data.synthetic import HELD_OUT_STYLES, make_sample

        config, rng = self.config, random.Random(f"sample {self.config.first_seed + index}")
        width, height = config.sizes[index % len(config.sizes)]
        # A few seeds have no room for so many views that see the same things; they stand for a later seed.
        for seed in range(config.first_seed + index, config.first_seed + index + 20_000_000, 4_000_000):
            try:
                views = make_sample(
                    seed,
                    config.views,
                    width,
                    height,
                    style=rng.choice(HELD_OUT_STYLES) if config.held_out else None,
                    difficulty=rng.uniform(*config.difficulty),
                    motion=config.motion,
                    edge_samples=config.edge_samples,
                )
            except InputError as error:
                logger.debug("%s", error)
                continue
            return TrainingSample(views.images, views.depth, views.cameras)
        raise InputError(f"scene {index} of the synthetic data has no room for {config.views} views; ask for fewer")


def _write_sample(path: Path, sample: TrainingSample) -> None:
    """Pictures as bytes, depth as float16; several processes may write the same file."""
    from safetensors.torch import save_file

    tensors = {
        "images": (sample.images * 255).round().to(torch.uint8).contiguous(),
        "depth": sample.depth.half().contiguous(),
        "cam_from_world": sample.cameras.cam_from_world.contiguous(),
        "K": sample.cameras.K.clone(),
    }
    handle, temporary = tempfile.mkstemp(suffix=".tmp", dir=path.parent)
    os.close(handle)
    save_file(tensors, temporary)
    os.replace(temporary, path)


def _read_sample(path: Path) -> TrainingSample:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        images, depth = tensors["images"].float() / 255, tensors["depth"].float()
        cameras = Cameras(tensors["cam_from_world"], tensors["K"], images.shape[-1], images.shape[-2])
    except (SafetensorError, KeyError) as error:
        raise FormatError(f"cached sample {path} is damaged ({error}); delete it to render it again") from error
    return TrainingSample(images, depth, cameras)
