"""Given cameras without sparse points: keypoints that the pictures share stand in for them."""

from dataclasses import replace

import pytest
import torch

from da3gs.data.synthetic import make_sample
from da3gs.geometry.cameras import Cameras
from da3gs.images import prepare_views
from da3gs.model.da3_model import load_model
from da3gs.pipeline import ReconstructConfig, reconstruct
from da3gs.pipeline.depth_scale import through_keypoints
from da3gs.pipeline.keypoint_points import keypoint_points
from da3gs.pipeline.sources import Source

CONFIG = ReconstructConfig(splat_size_px=182, check_poses=False, device="cpu")


@pytest.fixture(scope="module")
def sample():
    return make_sample(5, 5, 364, 252, style="kitchen", difficulty=0.2, motion="orbit", min_covisibility=0.6)


def _points(sample, cameras=None):
    views = prepare_views(sample.images, sample.cameras if cameras is None else cameras, size_px=196)
    width, height = views.size
    depth = torch.nn.functional.interpolate(sample.depth[:, None], (height, width), mode="nearest-exact")[:, 0]
    return keypoint_points(list(sample.images), views, views.cameras, depth.clamp(min=0.1))


def test_points_lie_on_the_surfaces(sample):
    points = _points(sample)
    assert len(points) == 5 and sum(map(len, points)) > 500
    errors = []
    for view, seen in enumerate(points):
        uv, z = (values[0] for values in sample.cameras[view].project(seen))
        column, row = uv.floor().long().unbind(-1)
        inside = (column >= 0) & (column < 364) & (row >= 0) & (row < 252)
        assert float(inside.float().mean()) > 0.99 and bool((z > 0).all())
        errors.append((z[inside] / sample.depth[view][row[inside], column[inside]]).log().abs())
    error = torch.cat(errors)
    assert float(error.median()) < 0.015 and float((error < 0.1).float().mean()) > 0.85


def test_there_are_none_without_a_baseline_and_none_without_texture(sample):
    still = sample.cameras.with_poses(sample.cameras.cam_from_world[:1].expand(5, 4, 4).clone())
    assert [len(seen) for seen in _points(sample, still)] == [0] * 5
    plain = replace(sample, images=torch.full_like(sample.images, 0.5))
    assert [len(seen) for seen in _points(plain)] == [0] * 5


def test_depth_bends_through_them(sample):
    found = load_model("da3-tiny", device="cpu").predict(
        list(sample.images), sample.cameras, gaussians=False, refine_scale=True
    )
    points = keypoint_points(list(sample.images), found.views, found.cameras, found.depth)
    bent = through_keypoints(found.depth, found.cameras, points)
    truth = torch.nn.functional.interpolate(sample.depth[:, None], bent.shape[-2:], mode="nearest-exact")[:, 0]
    before, after = (float((depth / truth).log().abs()[truth > 0].median()) for depth in (found.depth, bent))
    assert after < 0.6 * before
    assert through_keypoints(found.depth, found.cameras, [seen[:10] for seen in points]) is found.depth


def test_they_are_part_of_refining_and_can_be_left_out(sample):
    def facts(**changes):
        scene = reconstruct(list(sample.images), sample.cameras, "da3-tiny", replace(CONFIG, **changes))
        return scene.report.get("depth_scale")

    found = facts()
    assert found["source"] == "keypoints that the pictures share" and found["points"] > 500
    assert facts(keypoints=False) is None
    assert facts(refine_depth=False) is None


def test_they_stand_in_for_a_model_that_brings_no_tracks(sample):
    source = Source(list(sample.images), tuple("abcde"), sample.cameras, points=[torch.zeros(0, 3)] * 5)
    scene = reconstruct(source, None, "da3-tiny", CONFIG)
    assert scene.report["depth_scale"]["source"] == "keypoints that the pictures share"


def test_cameras_of_other_views_leave_few_points(sample):
    """Wrong keypoints hardly ever choose each other, lie near the line, and meet."""
    shuffled = Cameras(
        sample.cameras.cam_from_world[[3, 0, 4, 1, 2]], sample.cameras.K, sample.cameras.width, sample.cameras.height
    )
    assert sum(map(len, _points(sample, shuffled))) < 0.35 * sum(map(len, _points(sample)))
