"""Two posed views: epipolar lines and triangulation."""

import math

import pytest
import torch

from da3gs.geometry.cameras import Cameras
from da3gs.geometry.two_views import epipolar_distances, triangulate
from da3gs.rendering.trajectories import look_at

POINTS = torch.rand(60, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def _pair() -> tuple[Cameras, Cameras]:
    eyes = torch.tensor([[0.0, 0.3, -5.0], [2.0, -0.4, -4.8]], dtype=torch.float64)
    poses = look_at(eyes, torch.zeros_like(eyes), eyes.new_tensor([0.0, -1.0, 0.0]))
    K = torch.tensor([[[300.0, 0, 161], [0, 290, 118], [0, 0, 1]], [[420.0, 0, 150], [0, 400, 130], [0, 0, 1]]])
    cameras = Cameras(poses, K.double(), 320, 240)
    return cameras[[0]], cameras[[1]]


def _pixels(camera: Cameras) -> torch.Tensor:
    return camera.project(POINTS)[0][0]


def _close() -> torch.Tensor:
    eyes = torch.tensor([[0.0, 0.3, -5.0], [0.04, 0.3, -5.0]], dtype=torch.float64)
    return look_at(eyes, torch.zeros_like(eyes), eyes.new_tensor([0.0, -1.0, 0.0]))


def test_points_come_back_from_their_pixels():
    i, j = _pair()
    found = triangulate(i, j, _pixels(i), _pixels(j))
    assert found.good.all()
    assert torch.allclose(found.points, POINTS, atol=1e-10)


def test_a_pixel_of_noise_moves_points_along_the_rays_by_the_parallax():
    """depth^2 / (focal x baseline) per pixel of disparity."""
    i, j = _pair()
    noisy = _pixels(j) + torch.tensor([1.0, 0.0], dtype=torch.float64)
    error = (triangulate(i, j, _pixels(i), noisy).points - POINTS).norm(dim=1)
    distance = (POINTS - i.centers[0]).norm(dim=1)
    baseline = float((i.centers - j.centers).norm())
    assert float((error / (distance.square() / (420 * baseline))).median()) == pytest.approx(1, abs=0.25)


def test_rays_that_miss_or_hardly_meet_or_meet_behind_are_no_points():
    i, j = _pair()
    x_i, x_j = _pixels(i), _pixels(j)
    assert not triangulate(i, j, x_i, x_j + torch.tensor([0.0, 40.0], dtype=torch.float64)).good.any()
    # Half a degree apart.
    near_i, near_j = (camera.with_poses(pose[None]) for camera, pose in zip((i, j), _close(), strict=True))
    assert not triangulate(near_i, near_j, _pixels(near_i), _pixels(near_j)).good.any()
    # Seen from the back: rays meet, but behind the cameras.
    about = torch.diag(torch.tensor([-1.0, 1, -1, 1], dtype=torch.float64))
    backwards = [camera.with_poses(about @ camera.cam_from_world) for camera in (i, j)]
    behind = triangulate(*backwards, *(camera.project(POINTS)[0][0] for camera in backwards))
    assert not behind.good.any()
    # From one place.
    same = triangulate(i, i, x_i, x_i)
    assert not same.good.any() and torch.isfinite(same.points).all()
    assert torch.isfinite(epipolar_distances(i, i, x_i, x_i)).all()


def test_distance_from_the_epipolar_line_is_zero_for_matches_and_pixels_elsewhere():
    i, j = _pair()
    x_i, x_j = _pixels(i), _pixels(j)
    distances = epipolar_distances(i, j, x_i, x_j)
    assert distances.shape == (60, 60)
    assert float(distances.diagonal().max()) < 1e-9
    assert float(distances.median()) > 10
    # The other way round it is the same.
    assert torch.allclose(distances, epipolar_distances(j, i, x_j, x_i).T, rtol=1e-9, atol=1e-9)
    # Moved across the line by d pixels, at least d; along it, nothing.
    other = triangulate(i, j, x_i, x_j).points + 0.5 * (i.centers[0] - POINTS)
    along = j.project(other)[0][0] - x_j
    along = along / along.norm(dim=1, keepdim=True)
    across = torch.stack([-along[:, 1], along[:, 0]], 1)
    assert float(epipolar_distances(i, j, x_i, x_j + 3 * along).diagonal().max()) < 1e-8
    moved = epipolar_distances(i, j, x_i, x_j + 3 * across).diagonal()
    assert bool((moved > 3 - 1e-9).all()) and not math.isinf(float(moved.max()))
