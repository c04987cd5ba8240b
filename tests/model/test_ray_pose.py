"""Cameras from ray maps: the released procedure against its fixture, ours against planted cameras."""

import pytest
import torch
from da3_parity import generator, unit

from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.conventions import rigid_inverse
from da3gs.geometry.rotations import rotation_angle
from da3gs.model.ray_pose import cameras_from_rays, released_cameras_from_rays

WIDTH, HEIGHT = 168, 112
CELLS = (32, 48)


def planted(offset=(0.0, 0.0), views=2, focal=0.9, seed=0):
    """Cameras with the principal point off the centre by a fraction of the half width and half height."""
    pose, _ = generator().cameras("units", f"rays{seed}", views, HEIGHT, WIDTH)
    K = torch.eye(3, dtype=torch.float64).repeat(views, 1, 1)
    K[:, 0, 0], K[:, 1, 1] = focal * WIDTH, 1.1 * focal * WIDTH
    K[:, 0, 2], K[:, 1, 2] = WIDTH / 2 * (1 + offset[0]), HEIGHT / 2 * (1 + offset[1])
    pose = torch.from_numpy(pose).double()
    u, _, v = torch.linalg.svd(pose[:, :3, :3])  # the generator rounds to float32
    pose[:, :3, :3] = u @ v
    return Cameras(pose, K, WIDTH, HEIGHT)


def ray_map(cameras, cells=CELLS, dtype=torch.float64):
    """The exact ray map of cameras: d = R K^-1 p, t = centre, [V, h, w, 6]."""
    directions, origins = cameras.scaled(width=cells[1], height=cells[0]).rays()
    return torch.cat([directions, origins[:, None, None].expand_as(directions)], -1).to(dtype)


def errors(found: Cameras, true: Cameras):
    """Largest rotation error (degrees), K error (pixels), centre error."""
    angle = torch.rad2deg(rotation_angle(found.cam_from_world[:, :3, :3].double(), true.cam_from_world[:, :3, :3]))
    return (
        angle.max().item(),
        (found.K.double() - true.K).abs().max().item(),
        (found.centers.double() - true.centers).norm(dim=-1).max().item(),
    )


@pytest.mark.parametrize("name", ["clean_centred", "noisy_centred", "noisy_offcentre"])
def test_released_procedure_matches_its_fixture(name):
    data = {key.split(".", 1)[1]: value for key, value in unit("unit_ray_solver").items() if key.startswith(name)}
    torch.manual_seed(0)
    world_from_cam, K = released_cameras_from_rays(data["rays"], data["conf"], width=2, height=2)
    torch.testing.assert_close(rigid_inverse(world_from_cam), data["out_w2c"], atol=2e-5, rtol=0)
    torch.testing.assert_close(K[..., [0, 1], [0, 1]], data["out_focal"], atol=0, rtol=5e-5)
    torch.testing.assert_close(K[..., :2, 2], data["out_pp"], atol=5e-5, rtol=0)


def test_released_procedure_subsamples_many_inliers():
    true = planted()
    torch.manual_seed(0)
    rays = ray_map(true, (100, 150), torch.float32)[None]
    world_from_cam, K = released_cameras_from_rays(rays, torch.ones(1, 2, 100, 150), width=WIDTH, height=HEIGHT)
    found = Cameras(rigid_inverse(world_from_cam)[0], K[0], WIDTH, HEIGHT)
    rotation, intrinsics, center = errors(found, true)
    assert rotation < 0.01 and intrinsics < 0.05 and center < 1e-4


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.05, 0.0), (0.1, 0.05), (0.3, 0.2), (-0.6, 0.7)])
def test_exact_for_any_principal_point(offset):
    true = planted(offset)
    rotation, intrinsics, center = errors(
        cameras_from_rays(ray_map(true), torch.ones(2, *CELLS), width=WIDTH, height=HEIGHT), true
    )
    assert rotation < 1e-4 and intrinsics < 1e-3 and center < 1e-5


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.3, 0.2)])
@pytest.mark.parametrize("share", [0.2, 0.45])
def test_exact_with_outliers(offset, share):
    true, torch_rng = planted(offset), torch.Generator().manual_seed(5)
    rays = ray_map(true)
    bad = torch.rand(rays.shape[:-1], generator=torch_rng) < share
    rays[bad] = torch.randn(int(bad.sum()), 6, generator=torch_rng, dtype=torch.float64) * 2
    confidence = 1 + torch.rand(2, *CELLS, generator=torch_rng)  # says nothing about which cells are wrong
    found = cameras_from_rays(rays, confidence, width=WIDTH, height=HEIGHT)
    rotation, intrinsics, center = errors(found, true)
    # Random directions fall within the inlier cone now and then: 3 degrees hold 7e-4 of the sphere.
    assert rotation < 0.02 and intrinsics < 0.1 and center < 1e-3


def test_noise_is_averaged_out_and_beats_the_released_factorisation():
    true = planted((0.1, 0.05))
    rays = ray_map(true, dtype=torch.float32)
    noisy = rays + 0.01 * torch.randn(rays.shape, generator=torch.Generator().manual_seed(0))
    confidence = torch.ones(2, *CELLS)
    rotation, intrinsics, center = errors(cameras_from_rays(noisy, confidence, width=WIDTH, height=HEIGHT), true)
    # The Cramer-Rao bound of this map is 0.22 degrees, 0.23 px (focal) and 0.68 px (principal point).
    assert rotation < 0.5 and intrinsics < 1.7 and center < 2e-3
    torch.manual_seed(0)
    world_from_cam, K = released_cameras_from_rays(noisy[None], confidence[None], width=WIDTH, height=HEIGHT)
    biased = errors(Cameras(rigid_inverse(world_from_cam)[0], K[0], WIDTH, HEIGHT), true)
    assert biased[0] > 2.0  # 3.5 degrees for this offset without noise


def test_rays_beyond_ninety_degrees_are_no_obstacle():
    true = planted((0.2, 0.0), focal=0.12)  # diagonal field of view of about 160 degrees
    yaw = torch.eye(4, dtype=torch.float64)
    yaw[0, 0], yaw[0, 2], yaw[2, 0], yaw[2, 2] = 0, 1, -1, 0
    true = true.with_poses(true.cam_from_world @ yaw)  # half of the world directions have z <= 0
    rays = ray_map(true)
    assert (rays[..., 2] <= 0).double().mean() > 0.2
    rotation, intrinsics, _ = errors(cameras_from_rays(rays, torch.ones(2, *CELLS), width=WIDTH, height=HEIGHT), true)
    assert rotation < 1e-4 and intrinsics < 1e-3


def test_same_seed_same_answer_and_global_generator_untouched():
    rays = ray_map(planted()) + 0.05 * torch.randn(2, *CELLS, 6, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    first, second = (cameras_from_rays(rays, torch.ones(2, *CELLS), width=9, height=9, seed=3) for _ in range(2))
    assert torch.equal(first.K, second.K) and torch.equal(first.cam_from_world, second.cam_from_world)
    assert torch.equal(torch.get_rng_state(), state)


def test_direction_lengths_do_not_matter():
    true = planted((0.1, 0.1))
    rays = ray_map(true)
    rays[..., :3] *= torch.rand(2, *CELLS, 1, generator=torch.Generator().manual_seed(0)) + 0.1
    rotation, intrinsics, _ = errors(cameras_from_rays(rays, torch.ones(2, *CELLS), width=WIDTH, height=HEIGHT), true)
    assert rotation < 1e-4 and intrinsics < 1e-3


def test_random_maps_give_valid_cameras():
    rays = torch.randn(3, 16, 24, 6, generator=torch.Generator().manual_seed(0))
    cameras = cameras_from_rays(rays, torch.ones(3, 16, 24), width=WIDTH, height=HEIGHT)
    assert len(cameras) == 3  # Cameras checks rotations and focal lengths


def test_hopeless_maps_are_refused():
    ones = torch.ones(1, 8, 8)
    with pytest.raises(InputError, match="NaN"):
        cameras_from_rays(torch.full((1, 8, 8, 6), float("nan")), ones, width=8, height=8)
    with pytest.raises(InputError, match="confidence"):
        cameras_from_rays(torch.randn(1, 8, 8, 6), 0 * ones, width=8, height=8)
    with pytest.raises(InputError, match="no pinhole camera"):
        cameras_from_rays(torch.tensor([0.0, 0, 1, 0, 0, 0]).expand(1, 8, 8, 6), ones, width=8, height=8)
