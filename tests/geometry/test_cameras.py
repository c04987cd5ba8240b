import pytest
import torch
from hypothesis import given
from strategies_geometry import cameras, generator, seeds, similarity

from da3gs import Cameras
from da3gs.errors import InputError
from da3gs.geometry.conventions import depth_from_ray_depth, ray_depth_from_depth


def _depth(seed, views=3, height=14, width=20):
    return 0.5 + 4 * torch.rand(views, height, width, generator=generator(seed), dtype=torch.float64)


def _pixel_centers(height=14, width=20):
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([u, v], -1).double().reshape(-1, 2)


@given(seeds)
def test_project_undoes_unproject_at_pixel_centers(seed):
    views, depth = cameras(seed), _depth(seed)
    points = views.unproject(depth)
    for i in range(3):
        uv, z = views.project(points[i].reshape(-1, 3))
        assert (uv[i] - _pixel_centers()).abs().max() < 1e-9
        assert (z[i] - depth[i].flatten()).abs().max() < 1e-10


@given(seeds)
def test_ray_depth_is_the_distance_to_the_camera(seed):
    views, depth = cameras(seed), _depth(seed)
    inverse_K = torch.linalg.inv(views.K)
    ray_depth = ray_depth_from_depth(depth, inverse_K)
    points = views.unproject(depth)
    assert torch.allclose((points - views.centers[:, None, None]).norm(dim=-1), ray_depth, rtol=1e-12)
    assert torch.allclose(views.unproject_ray_depth(ray_depth), points, atol=1e-10)
    assert torch.allclose(depth_from_ray_depth(ray_depth, inverse_K), depth, rtol=1e-12)


@given(seeds)
def test_scaling_and_cropping_follow_the_image_and_are_undone(seed):
    views = cameras(seed)
    points = views.unproject(_depth(seed))[0].reshape(-1, 3)
    uv, _ = views.project(points)
    scaled = views.scaled(width=50, height=7)
    moved, _ = scaled.project(points)
    assert torch.allclose(moved, uv * torch.tensor([50 / 20, 7 / 14], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert torch.allclose(scaled.scaled(width=20, height=14).K, views.K, atol=1e-12)
    cropped = views.cropped(left=3, top=-2, width=10, height=18)
    moved, _ = cropped.project(points)
    assert torch.allclose(moved, uv - torch.tensor([3.0, -2.0], dtype=torch.float64), atol=1e-9)
    undone = cropped.cropped(left=-3, top=2, width=20, height=14)
    assert torch.allclose(undone.K, views.K, atol=1e-12) and undone.size == views.size


@given(seeds)
def test_opengl_round_trip_and_meaning(seed):
    views = cameras(seed)
    opengl = views.to_opengl()
    back = Cameras.from_opengl(opengl, views.K, views.width, views.height)
    assert torch.allclose(back.cam_from_world, views.cam_from_world, atol=1e-12)
    # An OpenGL camera looks along its -z axis and has y up; ours looks along +z and has y down.
    assert torch.allclose(-opengl[:, :3, 2], views.look_directions, atol=1e-12)
    assert torch.allclose(-opengl[:, :3, 1], views.world_from_cam[:, :3, 1], atol=1e-12)
    assert torch.allclose(opengl[:, :3, 3], views.centers, atol=1e-12)


@given(seeds)
def test_a_similarity_moves_cameras_with_points(seed):
    views, depth, move = cameras(seed), _depth(seed), similarity(seed)
    points = views.unproject(depth)[1].reshape(-1, 3)
    uv, z = views.project(points)
    moved_uv, moved_z = views.transform(move).project(move.apply(points))
    front = z > 1e-2
    assert torch.allclose(moved_uv[front], uv[front], rtol=1e-7, atol=1e-7)
    assert torch.allclose(moved_z, z * move.scale, rtol=1e-9, atol=1e-9)
    assert torch.allclose(views.transform(move).centers, move.apply(views.centers), atol=1e-9)


@given(seeds)
def test_normalized_intrinsics_round_trip(seed):
    views = cameras(seed)
    back = Cameras.from_normalized_K(views.cam_from_world, views.normalized_K, 20, 14)
    assert torch.allclose(back.K, views.K, atol=1e-12)


def test_fov_of_a_known_lens():
    views = Cameras(None, torch.tensor([[[50.0, 0, 50], [0, 50, 25], [0, 0, 1]]]), 100, 50)
    assert torch.allclose(views.fov, torch.tensor([[torch.pi / 2, 2 * 0.4636476]]))


def test_collection():
    views = cameras(0, views=4)
    joined = Cameras.cat([views[:1], views[[3, 2]], views[torch.tensor([False, True, False, False])]])
    assert torch.equal(joined.K, views.K[[0, 3, 2, 1]]) and len(views[-1]) == 1
    with pytest.raises(InputError, match="with and without"):
        Cameras.cat([views, views.without_poses()])
    with pytest.raises(InputError, match="one image size"):
        _ = Cameras.cat([views, views.scaled(width=5, height=5)]).size
    with pytest.raises(IndexError):
        views[4]
    with pytest.raises(InputError, match="intrinsics only"):
        _ = views.without_poses().centers
    with pytest.raises(InputError, match="scale the cameras or the map"):
        views.unproject(torch.ones(4, 3, 3, dtype=torch.float64))


def test_gradients_reach_poses_and_intrinsics():
    views = cameras(3)
    pose = views.cam_from_world.clone().requires_grad_()
    K = views.K.clone().requires_grad_()
    Cameras(pose, K, 20, 14).unproject(_depth(3)).square().sum().backward()
    assert pose.grad[:, :3].abs().min() > 0 and K.grad[:, 0, 0].abs().min() > 0


_EYE, _K = torch.eye(4)[None], torch.tensor([[[20.0, 0, 10], [0, 20, 7], [0, 0, 1]]])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((_EYE, _K[0], 20, 14), r"K must be a float tensor \[V, 3, 3\]"),
        ((torch.eye(3)[None], _K, 20, 14), r"cam_from_world must be a float tensor \[1, 4, 4\]"),
        ((_EYE, _K * 0, 20, 14), "singular"),
        ((_EYE, -_K, 20, 14), "singular"),
        ((_EYE, _K * float("nan"), 20, 14), "NaN"),
        ((_EYE, _K.transpose(1, 2), 20, 14), "upper triangular"),
        ((_EYE * float("inf"), _K, 20, 14), "NaN or infinity"),
        ((2 * _EYE - torch.diag(torch.tensor([0.0, 0, 0, 1])), _K, 20, 14), "no rotation"),
        ((torch.diag(torch.tensor([1.0, 1, -1, 1]))[None], _K, 20, 14), "mirror"),
        (
            (_EYE.clone().index_put((torch.tensor(0), torch.tensor(3)), torch.tensor([1.0, 2, 3, 1])), _K, 20, 14),
            "transposed",
        ),
        ((_EYE, _K, 0, 14), "width must be > 0"),
        ((_EYE, _K, 20.5, 14), "whole number"),
        ((_EYE, _K, torch.tensor([1, 2]), 14), r"width must be one integer or \[1\]"),
    ],
)
def test_wrong_cameras_are_refused_by_name(arguments, words):
    with pytest.raises(InputError, match=words):
        Cameras(*arguments)
