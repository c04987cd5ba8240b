"""Camera paths: distances kept, points looked at, keyframes met, loops closed, nothing tied to the world's frame."""

import math

import pytest
import torch
from assets import asset
from hypothesis import given, settings
from hypothesis import strategies as st

from da3gs.errors import InputError
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import matrix_from_quat, rotation_angle
from da3gs.geometry.similarity import Similarity
from da3gs.rendering.interpolation import interpolate
from da3gs.rendering.trajectories import (
    dolly,
    focus_point,
    look_at,
    orbit,
    orbit_around_gaussians,
    spiral,
    up_direction,
    wobble,
)

K = torch.tensor([[300.0, 0, 160], [0, 300.0, 120], [0, 0, 1]])
UP = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)


def cameras_at(eyes, target=(0.0, 0.0, 0.0), up=UP):
    eyes = torch.as_tensor(eyes, dtype=torch.float64)
    poses = look_at(eyes, torch.tensor(target, dtype=torch.float64), up)
    return Cameras(poses, K.double().expand(len(eyes), 3, 3).clone(), 320, 240)


def ring(count=8, radius=3.0, height=1.0, span_deg=360.0):
    angles = torch.arange(count) / count * math.radians(span_deg)
    return cameras_at(torch.stack([radius * angles.sin(), torch.full((count,), -height), -radius * angles.cos()], 1))


def frontal(count=5, spacing=0.3, focus=4.0):
    return cameras_at([[(i - count // 2) * spacing, 0.1 * (i % 2), 0.0] for i in range(count)], (0.0, 0.0, focus))


def random_similarity(seed):
    generator = torch.Generator().manual_seed(seed)
    rotation = matrix_from_quat(torch.randn(4, generator=generator, dtype=torch.float64))
    scale = float(10 ** (torch.rand((), generator=generator) * 4 - 2))
    return Similarity(scale, rotation, torch.randn(3, generator=generator) * 5)


def assert_same_path(a, b, unit):
    assert rotation_angle(a.cam_from_world[:, :3, :3].double(), b.cam_from_world[:, :3, :3].double()).max() < 2e-4
    assert (a.centers - b.centers).norm(dim=1).max() < 2e-4 * unit
    torch.testing.assert_close(a.K, b.K)


def assert_orthonormal(path):
    rotations = path.cam_from_world[:, :3, :3].double()
    assert (rotations @ rotations.transpose(1, 2) - torch.eye(3)).abs().max() < 1e-6
    assert (torch.linalg.det(rotations) - 1).abs().max() < 1e-6


PATHS = {
    "orbit": lambda cameras: orbit(cameras, 24),
    "orbit_full": lambda cameras: orbit(cameras, 24, sweep_deg=360),
    "orbit_swing": lambda cameras: orbit(cameras, 24, sweep_deg=50),
    "spiral": lambda cameras: spiral(cameras, 24),
    "wobble": lambda cameras: wobble(cameras, 24, view=1),
    "dolly": lambda cameras: dolly(cameras, 24, view=1),
    "dolly_zoom": lambda cameras: dolly(cameras, 24, zoom=True),
    "interpolate": lambda cameras: interpolate(cameras, 24),
    "interpolate_closed": lambda cameras: interpolate(cameras, 24, closed=True),
}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("rig", [ring, frontal], ids=["ring", "frontal"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_path_of_moved_cameras_is_the_moved_path(name, rig, seed):
    move = random_similarity(seed)
    path = PATHS[name](rig())
    assert len(path) == 24 and path.size == (320, 240)
    assert_orthonormal(path)
    assert_same_path(PATHS[name](rig().transform(move)), path.transform(move), unit=3 * float(move.scale) + 5)


@pytest.mark.parametrize("name", [name for name in PATHS if name != "interpolate"])
@pytest.mark.parametrize("rig", [ring, frontal], ids=["ring", "frontal"])
def test_loops_close_with_an_even_last_step(name, rig):
    """The step from the last frame to the first is no longer than the neighbouring steps."""
    if name in ("dolly", "dolly_zoom"):
        path = PATHS[name](rig())
        offsets = (path.centers - path.centers[0]).norm(dim=1)
        torch.testing.assert_close(offsets[1:], offsets[1:].flip(0), rtol=1e-4, atol=1e-6)  # out and back alike
        return
    centers = PATHS[name](rig()).centers
    steps = (centers.roll(-1, 0) - centers).norm(dim=1)
    assert 0 < steps[-1] <= 1.05 * steps.max() and steps[-1] <= 1.6 * torch.maximum(steps[0], steps[-2])


# ---------------------------------------------------------------- focus


def test_focus_is_where_the_axes_meet():
    torch.testing.assert_close(focus_point(ring()), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(
        focus_point(frontal()), torch.tensor([0.0, 0, 4], dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_parallel_axes_and_single_cameras_use_the_hint():
    poses = torch.eye(4).repeat(4, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, -1, -2, -3])
    parallel = Cameras(poses, K.expand(4, 3, 3).clone(), 320, 240)
    assert focus_point(parallel, depth_hint=7).tolist() == pytest.approx([1.5, 0, 7])
    assert focus_point(parallel).tolist() == pytest.approx([1.5, 0, 4.5])  # three times the spread of 1.5
    assert focus_point(parallel[0]).tolist() == pytest.approx([0, 0, 1])
    assert focus_point(parallel[0], depth_hint=2.5).tolist() == pytest.approx([0, 0, 2.5])
    # Nearly parallel with noise: the crossing of the axes is meaningless, the hint is kept in that direction.
    shaken = cameras_at(parallel.centers.double(), (1.5, 0.0, 500.0))
    assert float(focus_point(shaken, depth_hint=7)[2]) == pytest.approx(7, abs=0.1)


def test_cameras_looking_outwards_do_not_focus_behind_themselves():
    inward = ring()
    flip = torch.diag(torch.tensor([-1.0, 1, -1, 1], dtype=torch.float64))
    outward = Cameras(flip @ inward.cam_from_world, inward.K, 320, 240)
    point = focus_point(outward)
    assert torch.isfinite(point).all()
    path = wobble(outward, 8, view=2)
    assert float((path.look_directions.mean(0) * outward.look_directions[2].float()).sum()) > 0.99


def test_up_is_the_mean_up_also_from_straight_above():
    torch.testing.assert_close(up_direction(ring()), UP, atol=1e-7, rtol=0)
    angles = torch.arange(6) / 6 * 2 * math.pi
    tops = torch.stack([angles.cos(), torch.full((6,), -4.0), angles.sin()], 1).double()
    down = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    rolled = []
    for i in range(6):  # straight down, picture turned about the axis
        x = torch.tensor([math.cos(angles[i]), 0, math.sin(angles[i])], dtype=torch.float64)
        rotation = torch.stack([x, torch.linalg.cross(down, x), down])
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3], pose[:3, 3] = rotation, -rotation @ tops[i]
        rolled.append(pose)
    above = Cameras(torch.stack(rolled), K.double().expand(6, 3, 3).clone(), 320, 240)
    torch.testing.assert_close(up_direction(above), UP, atol=1e-7, rtol=0)
    assert_orthonormal(orbit(above, 12))


# ---------------------------------------------------------------- orbit, spiral, wobble, dolly


@settings(max_examples=25, deadline=None)
@given(
    radius=st.floats(0.01, 1000),
    elevation=st.floats(-70, 70),
    frames=st.integers(1, 60),
    sweep=st.one_of(st.none(), st.floats(1, 360)),
)
def test_orbit_keeps_its_distance_and_looks_at_the_point(radius, elevation, frames, sweep):
    height = radius * math.sin(math.radians(elevation))
    flat = radius * math.cos(math.radians(elevation))
    cameras = ring(6, flat, height)
    path = orbit(cameras, frames, sweep_deg=sweep)
    centers = path.centers.double()
    assert (centers.norm(dim=1) / radius - 1).abs().max() < 1e-4
    uv, z = path.project(torch.zeros(1, 3))
    assert (uv - torch.tensor([160.0, 120.0])).abs().max() < 0.05 and (z > 0).all()
    assert (centers[:, 1] + height).abs().max() < 1e-4 * radius
    assert (path.cam_from_world[:, 0, 1].abs() < 1e-4).all()  # no roll: the picture's right is horizontal


def test_orbit_starts_at_the_first_camera_and_goes_round():
    cameras = ring()
    path = orbit(cameras, 36)
    torch.testing.assert_close(path.cam_from_world[0], cameras.cam_from_world[0].float(), atol=1e-5, rtol=0)
    opposite = path.centers[18]
    torch.testing.assert_close(opposite, cameras.centers[0].float() * torch.tensor([-1.0, 1, -1]), atol=1e-4, rtol=0)


def test_orbit_of_one_camera_starts_there():
    one = ring()[2]
    path = orbit(one, 10, depth_hint=2.0, sweep_deg=360)
    torch.testing.assert_close(path.cam_from_world[0], one.cam_from_world[0].float(), atol=1e-5, rtol=0)


def test_automatic_orbit_swings_where_only_one_side_was_seen():
    azimuth = orbit(ring(5, span_deg=60), 100).centers
    angles = torch.rad2deg(torch.atan2(azimuth[:, 0], -azimuth[:, 2]))
    # 5 cameras at 0, 12, ... 48 degrees: middle 24, swing 1.2 times 48.
    assert float(angles.max()) == pytest.approx(24 + 0.6 * 48, abs=0.5)
    assert float(angles.min()) == pytest.approx(24 - 0.6 * 48, abs=0.5)


def test_spiral_stays_near_the_cameras_and_looks_at_the_focus():
    path = spiral(frontal(), 60)
    uv, _ = path.project(torch.tensor([[0.0, 0.0, 4.0]]))
    assert (uv - torch.tensor([160.0, 120.0])).abs().max() < 0.1
    assert path.centers[:, 0].abs().max() < 0.81 and path.centers[:, 2].abs().max() < 0.81


def test_wobble_circles_one_camera():
    cameras = ring()
    path = wobble(cameras, 16, view=3, radius=0.1)
    center = cameras.centers[3].float()
    distance = cameras.centers[3].norm()
    assert ((path.centers - center).norm(dim=1) / distance - 0.1).abs().max() < 1e-5
    torch.testing.assert_close(path.centers.mean(0), center, atol=1e-4, rtol=0)
    still = wobble(cameras, 16, view=3, radius=1e-6)
    torch.testing.assert_close(still.cam_from_world[5], cameras.cam_from_world[3].float(), atol=1e-4, rtol=0)


def test_dolly_zoom_keeps_the_focus_plane_in_size():
    cameras = ring()
    target = torch.zeros(3, dtype=torch.float64)
    across = torch.stack([target, cameras[0].cam_from_world[0, 0, :3]]).float()
    for zoom, constant in ((True, True), (False, False)):
        path = dolly(cameras, 30, amount=0.5, zoom=zoom)
        uv, _ = path.project(across)
        size = (uv[:, 1] - uv[:, 0]).norm(dim=1)
        assert bool((size / size[0] - 1).abs().max() < 1e-4) is constant
        approach = (path.centers[15] - path.centers[0]).norm() / cameras.centers[0].norm()
        assert float(approach) == pytest.approx(0.5, rel=1e-4)
    assert float(size[15] / size[0]) == pytest.approx(2, rel=1e-4)


# ---------------------------------------------------------------- interpolation


def random_cameras(seed, count, turn=0.4):
    generator = torch.Generator().manual_seed(seed)
    quaternions = torch.randn(count, 4, generator=generator, dtype=torch.float64) * turn + torch.tensor([1.0, 0, 0, 0])
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, :3] = matrix_from_quat(quaternions)
    poses[:, :3, 3] = torch.randn(count, 3, generator=generator)
    lenses = K.double().repeat(count, 1, 1)
    lenses[:, 0, 0] += torch.rand(count, generator=generator, dtype=torch.float64) * 50
    return Cameras(poses, lenses, 320, 240)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 9), st.integers(0, 50), st.booleans())
def test_interpolation_meets_every_keyframe_in_order(seed, count, extra, closed):
    keys = random_cameras(seed, count)
    path = interpolate(keys, count + extra, closed=closed)
    assert_orthonormal(path)
    met = -1
    for key in range(count):
        distance = (path.cam_from_world - keys.cam_from_world[key].float()).flatten(1).abs().amax(1)
        frame = int(distance.argmin())
        assert distance[frame] < 1e-5 and frame > met
        torch.testing.assert_close(path.K[frame], keys.K[key].float())
        met = frame
    assert met == count + extra - 1 or closed


def test_two_cameras_give_a_straight_line_and_the_shortest_rotation_at_constant_speed():
    keys = random_cameras(3, 2)
    path = interpolate(keys, 11)
    centers = path.centers.double()
    expected = torch.lerp(keys.centers[:1], keys.centers[1:], torch.linspace(0, 1, 11, dtype=torch.float64)[:, None])
    assert (centers - expected).norm(dim=1).max() < 0.01 * (expected[-1] - expected[0]).norm()
    direction = centers - centers[0]
    assert torch.linalg.svdvals(direction)[1] < 1e-5  # all on one line
    angles = rotation_angle(path.cam_from_world[1:, :3, :3].double(), path.cam_from_world[:-1, :3, :3].double())
    assert float(angles.sum()) == pytest.approx(
        float(rotation_angle(keys.cam_from_world[0, :3, :3], keys.cam_from_world[1, :3, :3])), abs=1e-5
    )
    assert float(angles.max() / angles.min()) < 1.1  # over a turn of 86 degrees


def test_speed_is_even_over_uneven_keyframes():
    angles = torch.deg2rad(torch.tensor([0.0, 5, 10, 60, 120, 125, 200], dtype=torch.float64))
    keys = cameras_at(torch.stack([3 * angles.sin(), -torch.ones(7, dtype=torch.float64), -3 * angles.cos()], 1))
    for path in (interpolate(keys, 240), interpolate(keys, 5)):
        steps = (path.centers[1:] - path.centers[:-1]).norm(dim=1)
        assert float(steps.max() / steps.min()) < 1.25
    path = interpolate(keys, 240)
    turn = path.centers[2:] - 2 * path.centers[1:-1] + path.centers[:-2]
    assert turn.norm(dim=1).max() < 0.2 * steps.max()  # no corners at the keyframes


def test_keys_on_a_circle_give_nearly_a_circle():
    path = interpolate(ring(12), 120, closed=True)
    radius = torch.hypot(path.centers[:, 0], path.centers[:, 2])
    assert float(radius.min()) > 0.99 * 3 and float(radius.max()) < 1.01 * 3


def test_repeated_keyframes_and_mixed_sizes():
    keys = random_cameras(1, 4)
    doubled = Cameras.cat([keys[[0, 0, 1]], keys[[2, 3]].scaled(width=640, height=480)])
    path = interpolate(doubled, 30)
    assert_orthonormal(path)
    assert torch.isfinite(path.cam_from_world).all() and path.size == (320, 240)
    torch.testing.assert_close(path.K[-1], keys.K[3].float())
    still = interpolate(keys[[1, 1, 1]], 7)
    torch.testing.assert_close(still.cam_from_world, keys.cam_from_world[[1] * 7].float())


def test_real_cameras_give_a_smooth_ride():
    from da3gs.data.transforms_json import read_transforms_json

    cameras = read_transforms_json(asset("data/posed_fountain_p11")).cameras
    path = interpolate(cameras, 200)
    steps = (path.centers[1:] - path.centers[:-1]).norm(dim=1)
    assert float(steps.max()) < 0.25 and float(steps.sum()) < 1.3 * float(
        (cameras.centers[1:] - cameras.centers[:-1]).norm(dim=1).sum()
    )
    focus = focus_point(cameras)
    _, z = orbit(cameras, 40).project(focus[None].float())
    assert float(z.min()) > 4 and float(z.max()) < 20  # metres; the wall is about 8 m away


# ---------------------------------------------------------------- from splats alone


def blob(count=500, scale=1.0, center=(0.0, 0.0, 0.0), seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(count, 3, generator=generator) * scale + torch.tensor(center)
    return Gaussians(means, torch.randn(count, 4, generator=generator), torch.full((count, 3), 0.01 * scale),
                     torch.full((count,), 0.8), torch.zeros(count, 1, 3))  # fmt: skip


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_orbit_from_splats_frames_them(scale):
    gaussians = blob(scale=scale, center=(5.0, -2.0, 7.0))
    path = orbit_around_gaussians(gaussians, 20, width=400, height=200)
    assert path.size == (400, 200)
    assert_orthonormal(path)
    uv, z = path.project(gaussians.means)
    seen = (z > 0) & (uv >= 0).all(-1) & (uv[..., 0] < 400) & (uv[..., 1] < 200)
    assert (seen.float().mean(1) > 0.6).all()
    span = uv[..., 1].quantile(0.9, dim=1) - uv[..., 1].quantile(0.1, dim=1)
    assert (span > 70).all()  # and they fill the picture
    # The first camera stands in front (-z), above the centre (y down), upright.
    offset = path.centers[0] - gaussians.means.median(0).values
    assert offset[2] < 0 and offset[1] < 0 and path.cam_from_world[0, 1, 1] > 0.9


@pytest.mark.parametrize("up", [(0.0, 0.0, 1.0), (0.0, 3.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, -1.0)])
def test_orbit_from_splats_keeps_the_given_axis_up(up):
    path = orbit_around_gaussians(blob(), 12, up=torch.tensor(up))
    assert_orthonormal(path)
    axis = torch.tensor(up) / torch.tensor(up).norm()
    assert (-path.cam_from_world[:, 1, :3] @ axis > 0.97).all() and (path.centers @ axis > 0).all()
    assert (path.cam_from_world[:, 0, :3] @ axis).abs().max() < 1e-5


def test_transparent_and_far_splats_do_not_move_the_camera():
    core = blob()
    haze = blob(200, 50.0, (300.0, 0, 0))
    haze = Gaussians(haze.means, haze.quats, haze.scales, torch.full((200,), 0.01), haze.sh)
    a, b = orbit_around_gaussians(core, 4), orbit_around_gaussians(Gaussians.cat([core, haze]), 4)
    torch.testing.assert_close(a.cam_from_world, b.cam_from_world)


def test_one_splat_is_enough():
    path = orbit_around_gaussians(blob(1), 4)
    assert torch.isfinite(path.cam_from_world).all() and (path.centers.norm(dim=1) > 0).all()


# ---------------------------------------------------------------- errors


def test_bad_arguments_are_refused():
    unposed = Cameras(None, K[None], 320, 240)
    cases = [
        (lambda: orbit(unposed, 10), "posed cameras"),
        (lambda: interpolate(unposed, 10), "posed cameras"),
        (lambda: orbit(ring(), 0), "frames"),
        (lambda: orbit(ring(), 10, sweep_deg=400), "sweep_deg"),
        (lambda: orbit(ring(), 10, depth_hint=-1.0), "depth_hint"),
        (lambda: interpolate(ring()[0], 10), "two cameras"),
        (lambda: interpolate(ring(), 0), "frames"),
        (lambda: wobble(ring(), 10, view=8), "no view 8"),
        (lambda: wobble(ring(), 10, radius=2.0), "radius"),
        (lambda: dolly(ring(), 10, amount=1.0), "amount"),
        (lambda: dolly(ring(), 10, focus=torch.tensor([0.0, 0.0, -50.0])), "behind"),
        (lambda: spiral(ring(), 10, turns=0), "turns"),
        (lambda: orbit_around_gaussians(Gaussians.empty(), 10), "no Gaussians"),
        (lambda: orbit_around_gaussians(blob(), 10, fov_deg=200), "fov_deg"),
        (lambda: look_at(torch.zeros(1, 3), torch.zeros(3), torch.ones(3)), "stands on"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()
