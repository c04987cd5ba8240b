"""Walking scenes: means, failures, and going on where a stopped evaluation was."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from worlds import room

from da3gs.errors import InputError
from da3gs.evaluate.runner import Column, SceneOnDemand, SceneResult, identity, run_evaluation


@dataclass
class Counting:
    """A task that returns prepared numbers and counts its calls."""

    answers: dict
    setting: int = 1
    calls: list = field(default_factory=list)
    name: str = "counting"

    columns = (Column("score", "score", ".2f"), Column("part", "part", ".0%"))

    def protocol(self):
        return {"task": self.name}

    def method(self):
        return {"setting": self.setting}

    def names(self, scene):
        return scene in self.answers

    def evaluate(self, scene):
        self.calls.append(scene.name)
        answer = self.answers[scene.name]
        if isinstance(answer, BaseException):
            raise answer
        return SceneResult(dict(answer), {"frames": 3}, rows=[("black", [np.zeros((8, 8, 3), np.uint8)])])


def scenes(*names, source="files"):
    return [SceneOnDemand(name, source, lambda name=name: room(2, name=name)) for name in names]


def test_means_leave_out_what_does_not_exist_and_failures_are_named(caplog):
    task = Counting(
        {"a": {"score": 1.0, "part": None}, "b": {"score": 4.0, "part": 0.5}, "c": InputError("nothing matches")}
    )
    found = run_evaluation(task, scenes("a", "b", "c", "unnamed"))
    assert found.mean == {"score": 2.5, "part": 0.5}
    assert found.failed == {"c": "nothing matches"} and "c: nothing matches" in caplog.text
    assert list(found.scenes) == ["a", "b"]
    assert [line.split() for line in found.table().splitlines()] == [
        ["scene", "score", "part"],
        ["a", "1.00", "-"],
        ["b", "4.00", "50%"],
        ["mean", "of", "2", "of", "3", "2.50", "50%"],
    ]


def test_nothing_evaluated_is_an_error_and_leaves_nothing(tmp_path):
    task = Counting({"a": InputError("too dark"), "b": InputError("too bright")})
    with pytest.raises(InputError, match="none of the 2 scenes could be evaluated; a: too dark"):
        run_evaluation(task, scenes("a", "b"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="none of the 1 scenes is named by the index file, such as z"):
        run_evaluation(task, scenes("z"))


def test_a_stopped_evaluation_goes_on(tmp_path):
    answers = {"a": {"score": 1.0}, "b": KeyboardInterrupt(), "c": {"score": 3.0}}
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(Counting(answers), scenes("a", "b", "c"), tmp_path / "out")
    assert not (tmp_path / "out/evaluation.json").exists()
    task = Counting(answers | {"b": {"score": 5.0}})
    found = run_evaluation(task, scenes("a", "b", "c"), tmp_path / "out")
    assert task.calls == ["b", "c"] and found.mean == {"score": 3.0}
    stored = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert stored["mean"] == {"score": 3.0} and list(stored["scenes"]) == ["a", "b", "c"]
    assert stored["protocol"] == {"task": "counting", "scenes": ["a", "b", "c"]}
    assert stored["protocol_id"] == identity(stored["protocol"])
    assert sorted(path.name for path in (tmp_path / "out/pictures").iterdir()) == ["a.png", "b.png", "c.png"]


def test_an_evaluation_of_other_scenes_by_another_method_is_not_replaced(tmp_path):
    run_evaluation(Counting({"a": {"score": 1.0}}), scenes("a"), tmp_path / "out")
    before = (tmp_path / "out/evaluation.json").read_text()
    with pytest.raises(InputError, match=r"holds an evaluation of another protocol or method \(a.json\)"):
        run_evaluation(Counting({"b": {"score": 2.0}}, setting=2), scenes("b"), tmp_path / "out")
    assert (tmp_path / "out/evaluation.json").read_text() == before


def test_scenes_are_not_taken_for_each_other(tmp_path):
    answers = {"k.v1": {"score": 1.0}, "k.v2": {"score": 2.0}, "k v": {"score": 3.0}, "k_v": {"score": 4.0}}
    first = run_evaluation(Counting(answers), scenes("k.v1", "k v"), tmp_path / "out")
    task = Counting(answers)
    second = run_evaluation(task, scenes("k_v", "k.v2", "k v", "k.v1"), tmp_path / "out")
    assert task.calls == ["k_v", "k.v2"] and first.mean == {"score": 2.0}
    assert {name: entry["numbers"]["score"] for name, entry in second.scenes.items()} == {
        "k_v": 4.0,
        "k.v2": 2.0,
        "k v": 3.0,
        "k.v1": 1.0,
    }
    assert first.to_dict()["protocol_id"] != second.to_dict()["protocol_id"]  # means over other scenes


def test_a_scene_that_changed_is_evaluated_again(tmp_path, monkeypatch):
    answers = {"a": {"score": 1.0}}
    run_evaluation(Counting(answers), scenes("a"), tmp_path / "out")
    task = Counting({"a": {"score": 2.0}})
    assert run_evaluation(task, scenes("a"), tmp_path / "out").mean == {"score": 1.0} and task.calls == []
    assert run_evaluation(task, scenes("a", source="other files"), tmp_path / "out").mean == {"score": 2.0}
    monkeypatch.setattr("da3gs.evaluate.runner.__version__", "99")
    task = Counting({"a": {"score": 3.0}})
    assert run_evaluation(task, scenes("a", source="other files"), tmp_path / "out").mean == {"score": 3.0}


def test_results_of_another_method_are_not_mixed_or_lost(tmp_path):
    answers = {"a": {"score": 1.0}}
    run_evaluation(Counting(answers), scenes("a"), tmp_path / "out")
    with pytest.raises(InputError, match="holds an evaluation of another protocol or method"):
        run_evaluation(Counting(answers, setting=2), scenes("a"), tmp_path / "out")
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["method"] == {"setting": 1}
    (tmp_path / "out/scenes/a.json").write_text("{")
    with pytest.raises(InputError, match=r"a.json is damaged .*remove it"):
        run_evaluation(Counting(answers), scenes("a"), tmp_path / "out")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other files \(thesis.tex\)"):
        run_evaluation(Counting(answers), scenes("a"), tmp_path / "thesis")


def test_identities_differ_where_facts_do():
    assert identity({"a": 1, "b": [2]}) == identity({"b": [2], "a": 1}) != identity({"a": 1, "b": [3]})
