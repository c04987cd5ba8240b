"""Which frames of a scene are looked at; for view synthesis, which are given (context) and which predicted (targets).

index file     exactly the frames it names (pixelSplat, DepthSplat, ZipSplat, .. publish such files)
splits         train is context, test (or val) the targets
every n-th     frames 0, n, 2n, .. are targets (LLFF), the others context

then at most `context` and `targets` of them
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from da3gs.data.view_choice import evenly_spread, farthest_views
from da3gs.errors import FormatError, InputError
from da3gs.evaluate.scenes import EvaluationScene

logger = logging.getLogger(__name__)

LLFF_HOLD_OUT = 8


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a scene are looked at.

    Attributes:
        most: At most so many; None takes all.
        order: "even" spreads them over the sequence, "random" draws them (seeded by `seed`).
        seed: Of the draw.
    """

    most: int | None = 100
    order: Literal["even", "random"] = "even"
    seed: int = 0

    def choose(self, count: int) -> list[int]:
        if self.most is not None and self.most < 1:
            raise InputError(f"at least one view must be looked at; got {self.most}")
        if self.most is None or count <= self.most:
            return list(range(count))
        if self.order == "even":
            return evenly_spread(count, self.most)
        return sorted(np.random.default_rng(self.seed).choice(count, self.most, replace=False).tolist())

    def to_dict(self) -> dict[str, Any]:
        return {"most": self.most, "order": self.order, "seed": self.seed if self.order == "random" else None}


@dataclass(frozen=True)
class FrameIndex:
    """A published choice of frames.

    Attributes:
        file: Name of the file.
        sha256: Of its content.
        scenes: Scene -> (context, targets): positions among the frames, or names of frames. None: not to be evaluated.
    """

    file: str
    sha256: str
    scenes: Mapping[str, tuple[tuple[int | str, ...], tuple[int | str, ...]] | None]


def read_frame_index(path: Path) -> FrameIndex:
    """An index in the format of pixelSplat: ``{scene: {"context": [..], "target": [..]} or null, ..}``.

    Raises:
        InputError: No such file.
        FormatError: Not of that format.
    """
    if not path.is_file():
        raise InputError(f"index file {path} does not exist")
    content = path.read_bytes()
    try:
        loaded = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise FormatError(f"{path}: expected an object of scenes; got {type(loaded).__name__}")
    scenes = {}
    for name, entry in loaded.items():
        scenes[name] = (
            None if entry is None else (_frames(path, name, entry, "context"), _frames(path, name, entry, "target"))
        )
    return FrameIndex(path.name, hashlib.sha256(content).hexdigest(), scenes)


@dataclass(frozen=True)
class HeldOut:
    """How frames are chosen.

    Attributes:
        index: Published choice; scenes it does not name are not evaluated. None: by the splits of the data, else every
            `every`-th frame is a target.
        context: At most so many context frames, as far from each other as possible (centres and viewing directions).
        targets: At most so many targets, evenly spread.
        every: Of data without splits.
    """

    index: FrameIndex | None = None
    context: int | None = None
    targets: int | None = None
    every: int = LLFF_HOLD_OUT

    def __post_init__(self):
        for name, low in (("context", 1), ("targets", 1), ("every", 2)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name} must be >= {low}; got {value}")
        if self.index is not None and (self.context is not None or self.targets is not None):
            raise InputError("an index file says which frames are context and targets; leave their numbers out")

    def names(self, scene: str) -> bool:
        """Whether the scene is to be evaluated."""
        return self.index is None or self.index.scenes.get(scene) is not None

    def check(self, names: Sequence[str]) -> None:
        """Warn of scenes that the index names and that are not there."""
        if self.index is not None:
            here = set(names)
            missing = [name for name, entry in self.index.scenes.items() if entry is not None and name not in here]
            if missing:
                logger.warning("%d scenes of %s are not here, such as %s", len(missing), self.index.file, missing[0])

    def choose(self, scene: EvaluationScene) -> tuple[list[int], list[int]]:
        """Context and target frames of a scene.

        Raises:
            InputError: An index that names frames the scene does not have; a scene too short to hold any out.
        """
        if self.index is not None:
            entry = self.index.scenes[scene.name]
            assert entry is not None
            context, targets = (_positions(scene, frames, self.index.file) for frames in entry)
            return context, targets
        tested = scene.splits.get("test") or scene.splits.get("val")
        if tested and scene.splits.get("train"):
            context, targets = list(scene.splits["train"]), list(tested)
        else:
            targets = list(range(0, len(scene), self.every))
            context = [frame for frame in range(len(scene)) if frame not in targets]
        if not context or not targets:
            raise InputError(
                f"scene {scene.name} has {len(scene)} frames, too few to hold one in {self.every} out; "
                "give --index, or a smaller --hold-out"
            )
        if self.targets is not None:
            targets = [targets[i] for i in evenly_spread(len(targets), self.targets)]
        if self.context is not None:
            context = farthest_views(scene.cameras, self.context, context)
        return context, targets

    def to_dict(self) -> dict[str, Any]:
        if self.index is not None:
            return {"index": self.index.file, "index_sha256": self.index.sha256}
        return {
            "choice": f"splits train and test, else every {self.every}th frame held out",
            "context": "all" if self.context is None else f"{self.context} farthest apart",
            "targets": "all" if self.targets is None else f"{self.targets} evenly spread",
        }


def _frames(path: Path, scene: str, entry: Any, key: str) -> tuple[int | str, ...]:
    frames = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, int | str) for frame in frames):
        raise FormatError(f"{path}: scene {scene} needs a list '{key}' of frames (positions or names)")
    return tuple(frames)


def _positions(scene: EvaluationScene, frames: Sequence[int | str], file: str) -> list[int]:
    positions = []
    for frame in frames:
        if isinstance(frame, str) and frame in scene.frames:
            positions.append(scene.frames.index(frame))
        elif isinstance(frame, int) and 0 <= frame < len(scene):
            positions.append(frame)
        else:
            raise InputError(f"{file} names frame {frame!r} of scene {scene.name}, which has {len(scene)} frames")
    return positions
