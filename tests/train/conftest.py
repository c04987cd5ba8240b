"""A small any-view network on file, and run configurations that take seconds."""

from dataclasses import replace

import pytest
import torch
from train.rooms import fill_cache

from da3gs.config import load_config
from da3gs.model.checkpoints import save_checkpoint
from da3gs.model.network import build_model
from da3gs.model.presets import BackboneConfig, CameraConfig, HeadConfig, ModelConfig
from da3gs.train.loop import TrainConfig

SMALL = ModelConfig(
    name="da3-test",
    backbone=BackboneConfig(
        48, 6, 3, (2, 3, 4, 5), cross_view_start=2, qk_norm_start=2, rope_start=2, concat_local=True
    ),
    head=HeadConfig(8, (8, 8, 8, 8)),
    cameras=CameraConfig(heads=3, encoder_depth=1),
)


@pytest.fixture(scope="session")
def small_network(tmp_path_factory):
    """Path of a checkpoint of random weights."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("network") / "small.safetensors"
    network = build_model(SMALL)
    with torch.no_grad():  # depths and cameras that are neither constant nor wild
        network.head.depth_out.bias.copy_(torch.tensor([0.5, 0.0]))
    save_checkpoint(network, path, {})
    return path


@pytest.fixture(scope="session")
def scene_cache(tmp_path_factory):
    """Scenes of the smoke run as closed-form rooms, so that neither tests nor their child processes render."""
    folder = tmp_path_factory.mktemp("scenes")
    task = load_config(TrainConfig, "smoke_cpu").task
    for data in (task.data, task.evaluation_data):
        fill_cache(replace(data, cache=folder))
    return folder


@pytest.fixture
def smoke(small_network, scene_cache, tmp_path):
    """The shipped smoke run on the small network, into a folder of its own."""

    def build(**overrides) -> TrainConfig:
        settings = {
            "task.model": str(small_network),
            "task.pretrained": True,
            "task.data.cache": str(scene_cache),
            "task.evaluation_data.cache": str(scene_cache),
            "task.matching.layers": [3, 5],
            "output": str(tmp_path / "run"),
        }
        return load_config(TrainConfig, "smoke_cpu", settings | overrides)

    return build


@pytest.fixture
def gs_task(small_network, scene_cache):
    """A Gaussian head task on the small network."""
    from da3gs.train.gs_head import GSHeadLosses, GSHeadTask
    from da3gs.train.samples import SyntheticData

    data = SyntheticData(scenes=2, views=4, sizes=((56, 42),), edge_samples=0, difficulty=(0.1, 0.2), cache=scene_cache)

    evaluation = replace(data, first_seed=3_000_000)
    fill_cache(data)
    fill_cache(evaluation)

    def build(**changes) -> GSHeadTask:
        task = GSHeadTask(
            model=str(small_network), data=data, evaluation_data=evaluation,
            losses=GSHeadLosses(lpips=0.0), given_poses=1.0, evaluation_scenes=1,
        )  # fmt: skip
        return replace(task, **changes)

    return build
