"""The weights that come with the package: complete, small, without traces of a machine, and worth having."""

import json

import pytest
import torch

from da3gs.data.synthetic import make_sample
from da3gs.geometry.rotations import rotation_angle
from da3gs.metrics.shape import depth_metrics
from da3gs.model.checkpoints import ASSETS, read_header
from da3gs.model.da3_model import load_model

WEIGHTS = ASSETS / "da3-tiny.safetensors"


@pytest.fixture(scope="module")
def model():
    return load_model("da3-tiny")


def test_file_is_small_and_says_where_it_comes_from():
    header = read_header(WEIGHTS)
    assert WEIGHTS.stat().st_size < 25e6 and (ASSETS / "da3-tiny.md").is_file()
    assert header["preset"] == "da3-tiny" and header["config"].gs_head.residual
    network, head = (header["provenance"][part]["training"]["task"] for part in ("network", "head"))
    assert network["kind"] == "student" and head["kind"] == "gs_head"
    assert network["data"]["kind"] == head["data"]["kind"] == "synthetic" and not network["data"]["held_out"]
    assert '"/' not in json.dumps(header["provenance"]), "no path of the machine it was trained on"


def test_depth_of_unseen_styles_beats_a_constant(model):
    mine, constant = [], []
    for seed, style in enumerate(("gallery", "plaza", "gallery", "plaza", "gallery", "plaza")):
        sample = make_sample(9_000_000 + seed, 2, 196, 140, style=style, difficulty=0.4, edge_samples=0)
        known = sample.depth > 0
        depth = model.predict(sample.images, gaussians=False).depth
        mine.append(depth_metrics(depth, sample.depth, mask=known).abs_rel)
        constant.append(depth_metrics(torch.ones_like(depth), sample.depth, mask=known).abs_rel)
    assert sum(mine) < 0.65 * sum(constant)


def test_cameras_turn_the_way_they_did(model):
    """Rough as they are, rotations between two views of an orbit are far nearer to the truth than none at all."""
    errors, still = [], []
    for seed in range(8):
        sample = make_sample(9_100_000 + seed, 2, 196, 140, difficulty=0.2, motion="orbit", edge_samples=0)
        predicted = model.predict(sample.images, gaussians=False).cameras.cam_from_world[:, :3, :3]
        true = sample.cameras.cam_from_world[:, :3, :3]
        relative = [R[1] @ R[0].T for R in (predicted, true)]
        errors.append(float(rotation_angle(relative[0], relative[1])))
        still.append(float(rotation_angle(torch.eye(3), relative[1])))
    assert sum(errors) < 0.3 * sum(still)


def test_its_head_shapes_the_splats(model):
    sample = make_sample(9_200_000, 2, 196, 140, difficulty=0.3, edge_samples=0)
    prediction = model.predict(sample.images, sample.cameras)
    assert prediction.raw_gaussians.shape == (2, 140, 196, 38)
    assert 0.05 < float(prediction.raw_gaussians.abs().mean()) < 5
