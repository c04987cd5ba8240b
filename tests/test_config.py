"""Configurations: strict keys, checked types, flags on top, shipped files load, the resolved tree reads back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from da3gs.config import config_from_tree, config_to_tree, load_config, save_config, shipped_configs
from da3gs.errors import InputError


@dataclass(frozen=True)
class Cat:
    kind: Literal["cat"] = "cat"
    lives: int = 9


@dataclass(frozen=True)
class Dog:
    kind: Literal["dog"] = "dog"
    bark_db: float = 80.0


@dataclass(frozen=True)
class Optim:
    lr: float = 1e-3
    steps: int = 10
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"steps must be >= 1; got {self.steps}")


@dataclass(frozen=True)
class Tree:
    name: str
    optim: Optim = field(default_factory=Optim)
    pet: Cat | Dog = field(default_factory=Cat)
    folder: Path = Path("runs")
    mode: Literal["fast", "good"] = "fast"
    sizes: tuple[tuple[int, int], ...] = ((1, 2),)
    flag: bool = False
    limit: float | None = None
    weights: dict[str, float] = field(default_factory=dict)


def test_defaults_file_and_flags_in_this_order(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: a\noptim: {lr: 1e-4, steps: 5}\nsizes: [[3, 4], [5, 6]]\nweights: {depth: 2}\n")
    tree = load_config(Tree, path, ["--optim.steps", "7", "--flag=true", "--limit", "2", "--pet.lives=3"])
    assert tree.optim == Optim(lr=1e-4, steps=7) and isinstance(tree.optim.lr, float)
    assert tree.sizes == ((3, 4), (5, 6)) and tree.weights == {"depth": 2.0}
    assert tree.flag is True and tree.limit == 2.0 and tree.pet == Cat(lives=3) and tree.folder == Path("runs")
    assert load_config(Tree, path, {"optim.lr": 0.5}).optim.lr == 0.5


def test_kind_chooses_among_dataclasses():
    assert config_from_tree(Tree, {"name": "a", "pet": {"kind": "dog", "bark_db": 3}}).pet == Dog(bark_db=3.0)
    with pytest.raises(InputError, match=r"pet\.kind must be one of cat, dog; got 'cow'"):
        config_from_tree(Tree, {"name": "a", "pet": {"kind": "cow"}})
    with pytest.raises(InputError, match=r"unknown key 'pet\.lives'"):
        config_from_tree(Tree, {"name": "a", "pet": {"kind": "dog", "lives": 3}})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "name is required"),
        ({"name": "a", "optim": {"learning_rate": 1}}, r"unknown key 'optim\.learning_rate'; known: lr, steps, betas"),
        ({"name": "a", "optim": {"step": 1}}, r"unknown key 'optim\.step'; did you mean 'steps'\?"),
        ({"name": "a", "optim": {"steps": 1.5}}, r"optim\.steps must be a whole number; got 1\.5"),
        ({"name": "a", "optim": {"steps": True}}, r"optim\.steps must be a whole number; got True"),
        ({"name": "a", "optim": {"lr": "fast"}}, r"optim\.lr must be a finite number; got 'fast'"),
        ({"name": "a", "optim": {"lr": float("nan")}}, r"optim\.lr must be a finite number"),
        ({"name": "a", "optim": {"steps": 0}}, r"optim: steps must be >= 1; got 0"),
        ({"name": "a", "optim": 3}, "optim must be a mapping of keys; got int 3"),
        ({"name": "a", "mode": "best"}, "mode must be one of fast, good; got 'best'"),
        ({"name": "a", "flag": 1}, "flag must be true or false; got 1"),
        ({"name": "a", "optim": {"betas": [1]}}, r"optim\.betas must have 2 entries; got 1"),
        ({"name": "a", "sizes": [[1, "x"]]}, r"sizes\[0\]\[1\] must be a whole number"),
        ({"name": "a", "limit": "none"}, "limit must be a finite number or null; got 'none'"),
        ({"name": 3}, "name must be text; got 3"),
    ],
)
def test_wrong_trees_name_the_key(tree, message):
    with pytest.raises(InputError, match=message):
        config_from_tree(Tree, tree)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["optim.lr", "1"], "expected --key value; got 'optim.lr'"),
        (["--optim.lr"], "--optim.lr needs a value"),
        (["--optim.lr", "--name", "a"], "--optim.lr needs a value"),
        (["--name.first", "x", "--optim.lr=[1"], "cannot read '\\[1' as a YAML value"),
        (["--name", "a", "--optim.foo", "1"], r"unknown key 'optim\.foo'"),
    ],
)
def test_wrong_flags(flags, message):
    with pytest.raises(InputError, match=message):
        load_config(Tree, None, flags)


def test_resolved_tree_reads_back(tmp_path):
    tree = config_from_tree(Tree, {"name": "a", "pet": {"kind": "dog"}, "folder": "x/y", "limit": 1})
    save_config(tree, tmp_path / "config.yaml")
    assert load_config(Tree, tmp_path / "config.yaml") == tree
    assert config_to_tree(tree)["optim"] == {"lr": 1e-3, "steps": 10, "betas": [0.9, 0.99]}


def test_bad_files(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(InputError, match="as YAML"):
        load_config(Tree, path)
    path.write_text("- 1\n")
    with pytest.raises(InputError, match="must hold `key: value` lines"):
        load_config(Tree, path)
    with pytest.raises(InputError, match="did you mean smoke_cpu"):
        load_config(Tree, "smoke_cp")


def test_every_shipped_configuration_loads():
    from da3gs.train.loop import TrainConfig

    names = shipped_configs()
    assert {"smoke_cpu", "student_synthetic_tiny", "gs_head_synthetic_tiny", "gs_head_dl3dv_base"} <= names.keys()
    for name in names:
        assert isinstance(load_config(TrainConfig, name), TrainConfig)
