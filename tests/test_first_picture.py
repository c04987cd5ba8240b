"""Real photographs and depth → prior → held-out views: one fixed scene that guards the whole path."""

import importlib.util
from pathlib import Path

import pytest
import torch
from assets import asset

from da3gs import RenderConfig, Similarity, render
from da3gs.data.rgbd import read_rgbd
from da3gs.geometry.rotations import matrix_from_quat

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "examples" / "rgbd_prior.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("rgbd_prior", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tabletop(example):
    folder = asset("data/rgbd_tabletop_d435i")
    train = read_rgbd(folder, split="train", width=480, height=270)
    return example.splats_of(train, views=6), folder


def test_held_out_views_of_the_tabletop(example, tabletop):
    gaussians, folder = tabletop
    targets = read_rgbd(folder, split="test", width=480, height=270)
    assert len(gaussians) == 671_787
    found, _ = example.score(gaussians, targets, antialiased=True)
    assert abs(found.psnr_db - 29.48) < 0.05 and abs(found.coverage - 0.948) < 0.002
    larger, _ = example.score(gaussians, read_rgbd(folder, split="test", width=960, height=540), antialiased=False)
    assert larger.psnr_db > 28.4 and larger.coverage > 0.94


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_similarity_of_scene_and_cameras_leaves_the_picture_the_same(tabletop, scale):
    """99.9 % of the pixels within 1e-4, all within 5e-3 (splats at a threshold may flip)."""
    gaussians, folder = tabletop
    gaussians = gaussians[::4]
    cameras = read_rgbd(folder, split="test", width=480, height=270).cameras[:1]
    turn = matrix_from_quat(torch.tensor([0.3, -0.5, 0.7, 0.2], dtype=torch.float64))
    move = Similarity(scale, turn, scale * torch.tensor([0.3, -0.2, 0.5]))
    before = render(gaussians, cameras, RenderConfig())
    after = render(gaussians.transform(move), cameras.transform(move), RenderConfig())
    difference = (before.rgb - after.rgb).abs().amax(-1)
    assert difference.max() < 5e-3 and (difference < 1e-4).float().mean() > 0.999
    covered = before.alpha > 0.5
    ratio = after.depth[covered] / before.depth[covered] / scale
    assert (ratio - 1).abs().quantile(0.999) < 1e-3
