"""Structure from motion against surveyed cameras, and what happens when it cannot work."""

import sys

import numpy as np
import pytest
import torch
from assets import asset

from da3gs.data.inputs import load_input
from da3gs.data.sfm import run_sfm, with_sfm_cameras
from da3gs.errors import InputError, MissingDependencyError
from da3gs.geometry.alignment import align_cameras

pytest.importorskip("pycolmap", reason="pycolmap is not installed")


def errors(found, truth):
    """Largest angle between camera axes in degrees, and largest distance of centres over the extent of the truth."""
    alignment = align_cameras(found, truth)
    extent = float((truth.centers - truth.centers.mean(0)).norm(dim=1).max())
    return float(alignment.rotation_residuals.rad2deg().max()), float(alignment.residuals.max()) / extent


def noise(count, size=(160, 120)):
    return [np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for i in range(count)]


@pytest.fixture(scope="module")
def fountain():
    return load_input(asset("data/posed_fountain_p11"))[[3, 4, 5, 6]]


@pytest.fixture(scope="module")
def found(fountain):
    return run_sfm(fountain.images, fountain.names, max_size_px=640, max_features=2000)


def test_four_photographs_of_the_fountain(fountain, found):
    """Surveyed cameras; the principal point is 7 px off the centre that is assumed, which turns them by 0.5 deg."""
    assert found.registered.all() and len(found.cameras) == 4 and found.cameras.size == (960, 640)
    angle_deg, distance = errors(found.cameras, fountain.cameras)
    assert angle_deg < 1.5 and distance < 0.02
    assert float(found.cameras.K[0, 0, 0]) == pytest.approx(float(fountain.cameras.K[0, 0, 0]), rel=0.03)
    stats = found.stats
    assert (
        stats.images == stats.registered == 4
        and not stats.relaxed
        and stats.points == len(found.points) == len(found.colors) > 300
    )
    assert stats.reprojection_error_px < 0.5 and stats.track_length > 2


def test_points_lie_where_the_cameras_see_them(found):
    uv, z = found.cameras.project(found.points)
    inside = (z > 0) & (uv > -20).all(-1) & (uv < torch.tensor([980.0, 660.0])).all(-1)
    assert float((inside.sum(0) >= 2).float().mean()) > 0.99
    assert sum(len(seen) for seen in found.seen) == pytest.approx(found.stats.track_length * len(found.points))
    for view, seen in enumerate(found.seen):
        uv, z = found.cameras[view].project(seen)
        assert len(seen) > 100 and (z > 0).all() and (uv > -5).all() and (uv < torch.tensor([965.0, 645.0])).all()


def test_equal_seeds_give_equal_cameras(fountain, found):
    again = run_sfm(fountain.images, fountain.names, max_size_px=640, max_features=2000)
    assert torch.equal(again.cameras.cam_from_world, found.cameras.cam_from_world)
    assert torch.equal(again.cameras.K, found.cameras.K) and torch.equal(again.points, found.points)


def test_unplaced_images_are_left_out_and_named(fountain):
    """Three photographs and one of something else, given as arrays of two sizes."""
    images = [fountain.load_image(0), noise(1)[0], fountain.load_image(1), fountain.load_image(2)]
    result = run_sfm(images, ["a", "noise", "b", "c"], max_size_px=640, max_features=2000)
    assert result.registered.tolist() == [True, False, True, True] and result.stats.registered == 3


def test_views_with_found_cameras(fountain):
    posed = with_sfm_cameras(fountain, max_size_px=640, max_features=2000)
    assert posed.names == fountain.names and posed.cameras.cam_from_world is not None
    assert "placed 4 of 4 images" in posed.notes[-1]
    assert len(posed.points) == 4 and all(len(seen) > 100 for seen in posed[1:3].points)
    assert all(posed.load_image(i).shape == (640, 960, 3) for i in range(4))
    assert errors(posed.cameras, fountain.cameras)[0] < 1.5


def test_focal_hint_is_where_it_starts(fountain):
    focal = float(fountain.cameras.K[0, 0, 0])
    result = run_sfm(fountain.images, fountain.names, focal_hint_px=[focal] * 4, max_size_px=640, max_features=2000)
    assert result.registered.all() and float(result.cameras.K[0, 0, 0]) == pytest.approx(focal, rel=0.02)


def test_nothing_in_common(capfd):
    with pytest.raises(InputError, match="could not place any two of the 3 images"):
        run_sfm(noise(3), ["a", "b", "c"])
    flat = [np.full((120, 160, 3), value, np.uint8) for value in (10, 200)]
    with pytest.raises(InputError, match="could not place any two of the 2 images"):
        run_sfm(flat, ["a", "b"])
    assert capfd.readouterr().err == ""


def test_needs_two_images_and_pycolmap(monkeypatch):
    with pytest.raises(InputError, match="at least two images"):
        run_sfm(noise(1), ["a"])
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "da3gs\[colmap\]"'):
        run_sfm(noise(2), ["a", "b"])


@pytest.mark.slow
def test_whole_fountain():
    views = load_input(asset("data/posed_fountain_p11"))
    result = run_sfm(views.images, views.names)
    assert result.registered.all()
    angle_deg, distance = errors(result.cameras, views.cameras)
    assert angle_deg < 0.8 and distance < 0.003


@pytest.mark.slow
def test_fox():
    views = load_input(asset("data/posed_fox"), max_views=16)
    result = run_sfm(views.images, views.names)
    assert result.registered.all()
    angle_deg, distance = errors(result.cameras, views.cameras)
    assert angle_deg < 1.2 and distance < 0.01


@pytest.mark.slow
def test_street_walk_and_forward_motion_need_the_second_try():
    """Little overlap on one side, driving along the view on the other: COLMAP's usual demands place none or a pair."""
    walk = load_input(asset("data/unposed_lund/images"))
    result = run_sfm(walk.images, walk.names)
    assert result.registered.all() and result.stats.relaxed
    # A phone without a radial term worth having; with one, the focal length fell to 0.58 of the width.
    assert 0.7 < float(result.cameras.K[0, 0, 0]) / 960 < 1.1 and result.lenses == (None,) * 6
    drive = load_input(asset("data/video_golfcart/golfcart.mp4"), frames=8)
    result = run_sfm(drive.images, drive.names)
    assert result.registered.all() and 0.7 < float(result.cameras.K[0, 0, 0]) / 1280 < 1.1  # a phone's video
    # The path leads forward: steps point along the optical axes.
    steps = result.cameras.centers.diff(dim=0)
    along = (steps / steps.norm(dim=1, keepdim=True) * result.cameras.look_directions[:-1]).sum(1)
    assert float(along.median()) > 0.9
