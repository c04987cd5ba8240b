"""The scale of depth that makes known views agree."""

import pytest
import torch

from da3gs.data.synthetic import make_sample
from da3gs.geometry.similarity import Similarity
from da3gs.model.photometric_scale import photometric_scale


@pytest.fixture(scope="module")
def views():
    return make_sample(5, 3, 140, 98, difficulty=0.4, edge_samples=1)


@pytest.mark.parametrize("wrong", [0.4, 0.8, 1.0, 1.7, 3.0])
def test_the_true_scale_is_found_again(views, wrong):
    found = photometric_scale(views.images, views.depth * wrong, views.cameras)
    assert found.factor * wrong == pytest.approx(1, rel=0.03)
    assert found.cost_after <= found.cost_before


def test_unit_and_frame_of_the_world_and_brightness_hardly_matter(views):
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    turn = turn * torch.linalg.det(turn)
    moved = views.cameras.transform(Similarity(100.0, turn, torch.tensor([5.0, -3, 2])))
    here = photometric_scale(views.images, views.depth * 1.6, views.cameras)
    there = photometric_scale(views.images, views.depth * 160, moved)
    assert there.factor == pytest.approx(here.factor, rel=0.01)
    exposed = views.images * torch.tensor([0.8, 1.0, 0.9])[:, None, None, None]
    assert photometric_scale(exposed, views.depth * 1.6, views.cameras).factor == pytest.approx(1 / 1.6, rel=0.05)


def test_no_baseline_no_scale(views):
    """Views from one place agree at every scale; one view has nobody to agree with."""
    pose = views.cameras.cam_from_world[:1].expand(3, 4, 4)
    assert photometric_scale(views.images, views.depth * 2, views.cameras.with_poses(pose.clone())).factor == 1
    assert photometric_scale(views.images[:1], views.depth[:1], views.cameras[:1]).factor == 1


def test_unknown_depth_is_left_out(views):
    depth = views.depth * 1.5
    depth[:, :, ::2] = 0
    found = photometric_scale(views.images, depth, views.cameras)
    assert found.factor * 1.5 == pytest.approx(1, rel=0.05)
    nothing = photometric_scale(views.images, torch.zeros_like(depth), views.cameras)
    assert nothing.factor == 1
