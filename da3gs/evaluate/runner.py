"""One evaluation over many scenes: walk them, keep what is done, average, and say exactly what was measured.

    FOLDER/evaluation.json     protocol, method, software, means, one entry per scene
    FOLDER/scenes/NAME.json    written as each scene ends; started again, an evaluation goes on from them
    FOLDER/pictures/NAME.png   what was predicted beside the truth

Numbers of two methods are comparable if their protocols are equal, scenes included; `protocol_id` is a hash of it.
"""

import hashlib
import json
import logging
import platform
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from da3gs import __version__
from da3gs.atomic import atomic_path
from da3gs.errors import Da3gsError, InputError
from da3gs.evaluate.scenes import EvaluationScene, SceneOnDemand
from da3gs.export.video import write_contact_sheet, write_picture
from da3gs.images import tracked

logger = logging.getLogger(__name__)

RESULT, SCENES, PICTURES = "evaluation.json", "scenes", "pictures"
FORMAT, VERSION = "da3gs-evaluation", 1

Picture = np.ndarray
Numbers = dict[str, float | None]


@dataclass(frozen=True)
class Column:
    """A number worth a place in the table: its key, its heading, and how it is printed."""

    key: str
    heading: str
    format: str = ".2f"


@dataclass(frozen=True, eq=False)
class SceneResult:
    """What one scene gave.

    Attributes:
        numbers: What is averaged over scenes; None where it does not exist (no covered pixel, one view).
        facts: Everything else worth keeping, plain JSON values.
        rows: A contact sheet, (label, pictures) from top to bottom.
        picture: Or one picture.
    """

    numbers: Numbers
    facts: dict[str, Any]
    rows: Sequence[tuple[str, Sequence[Picture]]] = ()
    picture: Picture | None = None


@runtime_checkable
class Task(Protocol):
    """What is measured."""

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> tuple[Column, ...]: ...

    def protocol(self) -> dict[str, Any]:
        """All that two methods must share for their numbers to be compared."""
        ...

    def method(self) -> dict[str, Any]:
        """What is evaluated: the model and its settings."""
        ...

    def names(self, scene: str) -> bool:
        """Whether a scene of this name is to be evaluated."""
        ...

    def evaluate(self, scene: EvaluationScene) -> SceneResult: ...


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of `run_evaluation`.

    Attributes:
        task, protocol, method, software: What was measured (and on which scenes), of what, and with what.
        scenes: Scene -> {"numbers": .., "facts": .., "seconds": ..}, in order.
        failed: Scene -> the reason why it could not be evaluated; such scenes are in no mean.
        mean: Key -> mean over the scenes that have the number.
        columns: Of the table.
    """

    task: str
    protocol: Mapping[str, Any]
    method: Mapping[str, Any]
    software: Mapping[str, Any]
    scenes: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, str]
    mean: Numbers
    columns: tuple[Column, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "task": self.task,
            "protocol_id": identity(self.protocol),
            "protocol": dict(self.protocol),
            "method": dict(self.method),
            "software": dict(self.software),
            "mean": self.mean,
            "scenes_evaluated": len(self.scenes),
            "failed": dict(self.failed),
            "scenes": dict(self.scenes),
        }

    def table(self) -> str:
        """A line per scene, and their mean, aligned for a terminal."""
        rows = [[name, *self._cells(entry["numbers"])] for name, entry in self.scenes.items()]
        if len(rows) > 1:
            of_all = f" of {len(rows) + len(self.failed)}" if self.failed else ""
            rows.append([f"mean of {len(rows)}{of_all}", *self._cells(self.mean)])
        head = ["scene", *(column.heading for column in self.columns)]
        widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
        lines = []
        for row in [head, *rows]:
            first, *others = row
            cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
        return "\n".join(lines)

    def _cells(self, numbers: Numbers) -> list[str]:
        values = (numbers.get(column.key) for column in self.columns)
        return [
            "-" if value is None else format(value, column.format)
            for column, value in zip(self.columns, values, strict=True)
        ]


def run_evaluation(
    task: Task, scenes: Sequence[SceneOnDemand], output: Path | None = None, *, progress: bool = False
) -> Evaluation:
    """Evaluate scenes one after another.

    A scene that cannot be evaluated (too few frames, nothing that matches, too little memory) is named with its reason
    and left out of the means. Its neighbours go on.

    Args:
        task: What is measured.
        scenes: Of `find_scenes`.
        output: Folder for results and pictures; scenes that an earlier, stopped run finished there are not done again.
            None: nothing is written.
        progress: Show a bar with the time left.

    Raises:
        InputError: No scene could be evaluated (with the first reason), or a folder that holds something else.
    """
    chosen = [scene for scene in scenes if task.names(scene.name)]
    if not scenes:
        raise InputError("no scene to evaluate")
    if not chosen:
        raise InputError(f"none of the {len(scenes)} scenes is named by the index file, such as {scenes[0].name}")
    if len(chosen) < len(scenes):
        logger.info("%d of %d scenes are named by the index file", len(chosen), len(scenes))
    record = _Record(task, output)
    kept = sum(record.finished(scene) is not None for scene in chosen)
    if kept:
        logger.info("%d of %d scenes are done already", kept, len(chosen))
    done, failed = {}, {}
    for scene in tracked(chosen, "Evaluating", shown=progress):
        entry = record.finished(scene)
        if entry is None:
            begun = time.perf_counter()
            try:
                result = task.evaluate(scene.open())
            except (Da3gsError, torch.OutOfMemoryError) as error:
                failed[scene.name] = str(error).splitlines()[0]
                logger.warning("%s: %s", scene.name, failed[scene.name])
                continue
            entry = {
                "numbers": result.numbers,
                "facts": result.facts,
                "seconds": round(time.perf_counter() - begun, 2),
            }
            record.keep(scene, entry, result)
        done[scene.name] = entry
    if not done:
        name, reason = next(iter(failed.items()))
        raise InputError(f"none of the {len(failed)} scenes could be evaluated; {name}: {reason}")
    evaluation = Evaluation(
        task=task.name,
        protocol=task.protocol() | {"scenes": sorted(scene.name for scene in chosen)},
        method=task.method(),
        software=_software(),
        scenes=done,
        failed=failed,
        mean=mean_numbers(entry["numbers"] for entry in done.values()),
        columns=task.columns,
    )
    record.close(evaluation)
    return evaluation


def mean_numbers(rows: Iterable[Numbers]) -> Numbers:
    """Mean of every key over the rows that have a number for it; None where none has."""
    rows = list(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    values = {key: [row[key] for row in rows if row.get(key) is not None] for key in keys}
    return {key: float(np.mean(found)) if found else None for key, found in values.items()}


def identity(facts: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that differ where the facts do."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, allow_nan=False).encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------------------ files


class _Record:
    """The folder of an evaluation, or none."""

    def __init__(self, task: Task, folder: Path | None):
        self._folder = None if folder is None else folder.expanduser()
        self._identity = {"protocol": identity(task.protocol()), "method": identity(task.method())}
        if self._folder is not None:
            _check_folder(self._folder)
            for path in sorted((self._folder / SCENES).glob("*.json")):
                self._stored(path)

    def finished(self, scene: SceneOnDemand) -> dict[str, Any] | None:
        """The entry of a scene that is done: the same scene, by this version."""
        if self._folder is None or not (path := self._file(SCENES, scene, ".json")).is_file():
            return None
        stored = self._stored(path)
        if stored.pop("made_from", None) != _origin(scene):
            logger.info("%s has changed, or da3gs has; it is evaluated again", scene.name)
            return None
        return stored

    def _stored(self, path: Path) -> dict[str, Any]:
        """An entry by the same protocol and method; InputError for any other."""
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is damaged ({error}); remove it, and its scene is evaluated again") from error
        if not isinstance(stored, dict) or stored.pop("made_by", None) != self._identity:
            raise InputError(
                f"{self._folder} holds an evaluation of another protocol or method ({path.name}); choose another folder"
            )
        return stored

    def keep(self, scene: SceneOnDemand, entry: Mapping[str, Any], result: SceneResult) -> None:
        if self._folder is None:
            return
        for part in (self._folder, self._folder / SCENES, self._folder / PICTURES):
            part.mkdir(exist_ok=True)
        picture = self._file(PICTURES, scene, ".png")
        if result.picture is not None:
            write_picture(picture, result.picture)
        elif result.rows:
            write_contact_sheet(picture, result.rows)
        _write_json(
            self._file(SCENES, scene, ".json"), {"made_by": self._identity, "made_from": _origin(scene), **entry}
        )

    def close(self, evaluation: Evaluation) -> None:
        if self._folder is not None:
            _write_json(self._folder / RESULT, evaluation.to_dict())

    def _file(self, part: str, scene: SceneOnDemand, suffix: str) -> Path:
        assert self._folder is not None
        stem = re.sub(r"[^\w.-]+", "_", scene.name).strip(".")
        if stem != scene.name:  # two names may look alike now
            stem += f"_{identity({'name': scene.name})[:6]}"
        return self._folder / part / f"{stem}{suffix}"


def _origin(scene: SceneOnDemand) -> dict[str, str]:
    return {"name": scene.name, "source": scene.source, "da3gs": __version__}


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise InputError(f"cannot write an evaluation to {folder}: it is a file, a folder was expected")
    if not folder.is_dir():
        if not folder.resolve().parent.is_dir():
            raise InputError(f"cannot write {folder}: folder {folder.resolve().parent} does not exist; create it first")
        folder.mkdir()  # whether that is possible is asked now, and not after the first scene
        folder.rmdir()
        return
    foreign = sorted({item.name for item in folder.iterdir()} - {RESULT, SCENES, PICTURES})
    if foreign:
        raise InputError(f"folder {folder} holds other files ({foreign[0]}); choose a new or empty folder")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _software() -> dict[str, str]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "da3gs": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "gpu": gpu,
        "date": time.strftime("%Y-%m-%d"),
    }
