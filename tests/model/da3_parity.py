"""Parity fixtures: official outputs for synthetic weights that any test regenerates (see the README beside them)."""

import functools
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from assets import ROOT, asset
from torch import Tensor

from da3gs.geometry.cameras import Cameras
from da3gs.model.checkpoints import load_official_state_dict, official_shapes
from da3gs.model.network import build_model
from da3gs.model.presets import ModelConfig

NETWORK_CASES = sorted(
    path.stem for path in (ROOT / "parity").glob("*.json") if not path.stem.startswith(("unit_", "weights_"))
)


@functools.cache
def generator():
    spec = importlib.util.spec_from_file_location("paritygen", asset("parity/paritygen.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.lru_cache(maxsize=2)
def network(config_json: str, salt: str):
    """A network with the synthetic weights of a fixture set."""
    model = build_model(ModelConfig.from_official(json.loads(config_json)), device="meta")
    make = generator().weight
    state = {key: torch.from_numpy(make(salt, key, shape)) for key, shape in official_shapes(model).items()}
    load_official_state_dict(model, state)
    return model.eval()


@dataclass
class Fixture:
    name: str
    meta: dict
    arrays: dict[str, np.ndarray]
    images: Tensor = field(init=False)
    cameras: list[Cameras] | None = field(init=False)

    def __post_init__(self):
        meta, make = self.meta, generator()
        batch, size = meta["batch"], (meta["views"], meta["height"], meta["width"])
        names = [f"{self.name}/b{index}" if batch > 1 else self.name for index in range(batch)]
        self.images = torch.from_numpy(np.stack([make.images(meta["salt"], name, *size) for name in names]))
        self.cameras = None
        if meta["given_poses"]:
            pairs = [map(torch.from_numpy, make.cameras(meta["salt"], name, *size)) for name in names]
            self.cameras = [Cameras(pose, K, meta["width"], meta["height"]) for pose, K in pairs]

    @property
    def network(self):
        return network(json.dumps(self.meta["config"]), self.meta["salt"])

    def __contains__(self, key: str) -> bool:
        return f"{key}@shape" in self.arrays

    def error(self, key: str, ours: Tensor) -> "Comparison":
        """Compare one of our tensors with the stored (possibly strided) reference."""
        ours = ours.detach().double().cpu()
        assert tuple(ours.shape) == tuple(self.arrays[f"{key}@shape"]), f"{key}: shape {tuple(ours.shape)}"
        if key in self.arrays:
            reference = torch.from_numpy(np.asarray(self.arrays[key])).double()
        else:
            reference = torch.from_numpy(self.arrays[f"{key}@flat"]).double()
            ours = ours.reshape(-1)[:: self.arrays[f"{key}@flat_step"].item()]
        mean = float(self.arrays[f"{key}@stats"][4] / max(1, np.prod(self.arrays[f"{key}@shape"])))
        return Comparison(key, ours.reshape(-1), reference.reshape(-1), mean)


@dataclass
class Comparison:
    key: str
    ours: Tensor
    reference: Tensor
    mean_abs: float

    @property
    def worst_abs(self) -> float:
        return float((self.ours - self.reference).abs().max())

    @property
    def worst_rel(self) -> float:
        """Largest error over |reference| + mean |reference|."""
        return float(((self.ours - self.reference).abs() / (self.reference.abs() + self.mean_abs)).max())

    def check(self, atol: float = 1e-5, rtol: float = 1e-4) -> None:
        excess = (self.ours - self.reference).abs() - atol - rtol * self.reference.abs()
        assert bool((excess <= 0).all()), (
            f"{self.key}: {int((excess > 0).sum())} of {len(excess)} values off, worst abs {self.worst_abs:.3g}"
        )


def fixture(name: str) -> Fixture:
    path = asset(f"parity/{name}.npz")
    with np.load(path) as arrays:
        return Fixture(name, json.loads(Path(path).with_suffix(".json").read_text()), dict(arrays))


def unit(name: str) -> dict[str, Tensor]:
    """Arrays of a component fixture as tensors."""
    with np.load(asset(f"parity/{name}.npz")) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
