"""Shared by the plug-in's tests: a small scene, random weights, and pipelines built as nerfstudio builds them."""

import pytest

from .scene import write_scene


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A da3-tiny with random weights: what is tested here does not depend on how good a network is."""
    import torch

    from da3gs.model.checkpoints import save_checkpoint
    from da3gs.model.network import build_model
    from da3gs.model.presets import PRESETS

    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_checkpoint(build_model(PRESETS["da3-tiny"]), path, {"data": "none"})
    return path
