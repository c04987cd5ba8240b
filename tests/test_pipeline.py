"""`reconstruct` on a world of known shape: frames, scales, given cameras, their diagnosis, memory, the report."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from assets import asset
from oracle import HEIGHT, WIDTH, OracleModel, arc, psnr_db, see
from strategies_geometry import rotations, similarity

from da3gs import Cameras, RenderConfig, Similarity, render
from da3gs.errors import InputError
from da3gs.fusion import FilterConfig
from da3gs.geometry.conventions import OPENCV_FROM_OPENGL, rigid_inverse
from da3gs.images import uint8_from_tensor
from da3gs.pipeline import ReconstructConfig, check_poses, reconstruct, reinterpret_poses
from da3gs.pipeline.frame import canonical_frame
from da3gs.pipeline.memory_plan import free_memory, plan_memory
from da3gs.pipeline.sources import Source
from da3gs.pipeline.stages import Stages
from da3gs.pipeline.upsampling import joint_upsample
from da3gs.rendering.trajectories import up_direction

# The oracle's depth is exact; what the pictures make of depth that is not has tests of its own.
SMALL = ReconstructConfig(size_px=WIDTH, keypoints=False, refine_depth=False)
OWN_FRAME = Similarity(0.37, rotations(3, 1)[0], [0.3, -2.0, 1.0])


def _scene(views=5, kind="free", cameras=None, config=SMALL, frame=OWN_FRAME, given=True, **options):
    truth = arc(views, kind)
    model = OracleModel(truth, frame, **options)
    images, _ = see(truth)
    cameras = (truth if cameras is None else cameras) if given else None
    return reconstruct(images, cameras, model, config), truth, model


# ------------------------------------------------------------------------------------------------ given cameras


@pytest.mark.parametrize("kind", ["free", "line", "rotating"])
@pytest.mark.parametrize("views", [1, 2, 3, 6])
def test_given_cameras_are_obeyed_in_their_frame_and_scale(views, kind):
    scene, truth, _ = _scene(views, kind)
    assert torch.allclose(scene.cameras.cam_from_world, truth.cam_from_world, atol=1e-6)
    assert torch.allclose(scene.cameras.K, truth.K, atol=1e-4)
    observable = views > 1 and kind != "rotating"
    scale = 1.0 if observable else float(OWN_FRAME.scale)
    assert torch.allclose(scene.depth, see(truth)[1] * scale, rtol=1e-3)
    assert any("do not determine the scale" in warning for warning in scene.report["warnings"]) != observable
    frame = scene.report["frame"]
    assert frame["source"] == "given cameras" and frame["unit"] == ("given" if observable else "arbitrary")


def test_the_scene_shows_the_room_from_a_camera_it_was_not_made_from():
    scene, _, _ = _scene(6)
    target = arc(13)[6]
    image, _ = see(target)
    out = render(scene.gaussians, target, RenderConfig(antialiased=True))
    covered = out.alpha[0, ..., 0] > 0.5
    assert covered.float().mean() > 0.95
    colour = out.rgb[0] / out.alpha[0].clamp(min=1e-3)
    assert psnr_db(colour, image[0], covered) > 30


def test_the_frame_and_unit_of_given_cameras_do_not_matter():
    move = similarity(4, 50.0)
    plain, truth, _ = _scene(4)
    moved, _, _ = _scene(4, cameras=truth.transform(move))
    assert len(plain.gaussians) == len(moved.gaussians)
    expected = plain.gaussians.transform(move)
    assert torch.allclose(moved.gaussians.means, expected.means, rtol=1e-3, atol=0.05)
    assert torch.allclose(moved.gaussians.scales, expected.scales, rtol=1e-2)


def test_intrinsics_alone_are_obeyed():
    truth = arc(4)
    wrong = Cameras(truth.cam_from_world, truth.K * torch.tensor([[1.2], [1.2], [1]]), truth.width, truth.height)
    model = OracleModel(wrong, OWN_FRAME)
    scene = reconstruct(see(truth)[0], truth.without_poses(), model, SMALL)
    assert torch.allclose(scene.cameras.K, truth.K, atol=1e-4)
    assert scene.report["poses"] == {"source": "predicted (head)", "intrinsics": "given"}
    assert scene.report["frame"]["source"] == "estimated"


def test_residuals_are_reported():
    report = _scene(5)[0].report
    found = report["poses"]["alignment"]
    assert found["given_from_network_scale"] == pytest.approx(1 / 0.37, rel=1e-5)
    assert found["centre_residual_max"] < 1e-4 and found["rotation_residual_max_deg"] < 0.05
    check = report["poses"]["check_without_poses"]
    assert check["median_rotation_error_deg"]["as-read"] < 0.05
    assert check["centre_residual_relative_max"] < 1e-4
    assert check["focal_given_over_predicted"] == pytest.approx(1, abs=1e-3)
    assert report["warnings"] == []


# ------------------------------------------------------------------------------------------------ scale of depth


class _ShortSighted(OracleModel):
    """True cameras, true shape of depth, but 1.7 times as deep, as weak weights may have it."""

    def _run(self, views, given, *rest):
        out = super()._run(views, given, *rest)
        return dataclasses.replace(out, depth=out.depth * 1.7)


def _sparse(truth: Cameras, count: int, outliers: float = 0.2) -> list[torch.Tensor]:
    """Points that each view sees, some percent off, and some anywhere."""
    generator = torch.Generator().manual_seed(1)
    points = []
    for view, depth in enumerate(see(truth)[1]):
        pick = torch.randint(depth.numel(), (count,), generator=generator)
        on_surface = truth[view].unproject(depth[None])[0].reshape(-1, 3)[pick]
        away = on_surface - truth.centers[view]
        factor = 1 + 0.02 * torch.randn(count, 1, generator=generator)
        wrong = torch.rand(count, 1, generator=generator) < outliers
        factor = torch.where(wrong, factor * (0.3 + 2 * torch.rand(count, 1, generator=generator)), factor)
        points.append(truth.centers[view] + factor * away)
    return points


def _scene_with_points(points, views=5, kind="free", cameras=None):
    truth = arc(views, kind)
    images, _ = see(truth)
    source = Source(list(images), tuple("abcdefgh"[:views]), truth if cameras is None else cameras, points=points)
    config = dataclasses.replace(SMALL, refine_scale=False)  # the points alone are to find it
    return reconstruct(source, model=_ShortSighted(truth, OWN_FRAME), config=config), truth


@pytest.mark.parametrize("kind", ["free", "rotating"])
def test_sparse_points_bring_the_depth_to_scale(kind):
    truth = arc(5, kind)
    scene, _ = _scene_with_points(_sparse(truth, 200), kind=kind)
    assert torch.equal(scene.cameras.cam_from_world, truth.cam_from_world)
    error = (scene.depth / see(truth)[1] - 1).abs()
    assert float(error.median()) < 0.02 and float(error.quantile(0.99)) < 0.03
    facts = scene.report["depth_scale"]
    expected = 1 / 1.7 if kind == "free" else 1 / 1.7 / float(OWN_FRAME.scale)
    assert facts["factor"] == pytest.approx(expected, rel=0.02) and facts["source"] == "sparse points"
    assert 900 < facts["points"] <= 1000 and facts["views"] == 5 and 0.01 < facts["spread"] < 0.05
    assert all(value == pytest.approx(expected, rel=0.03) for value in facts["per_view"])
    assert any(choice["what"] == "scale of the depth" for choice in scene.report["choices"])
    # Centres in one place do not tell the scale; the points do.
    assert scene.report["frame"]["unit"] == "given" and scene.report["warnings"] == []
    image, _ = see(arc(13, kind)[6])
    out = render(scene.gaussians, arc(13, kind)[6], RenderConfig(antialiased=True))
    covered = out.alpha[0, ..., 0] > 0.5
    assert covered.float().mean() > 0.9
    assert psnr_db(out.rgb[0] / out.alpha[0].clamp(min=1e-3), image[0], covered) > 30


def test_few_points_or_points_of_another_frame_change_nothing():
    few, truth = _scene_with_points(_sparse(arc(5), 5))
    assert few.report["depth_scale"]["factor"] == 1.0 and "too few" in few.report["depth_scale"]["source"]
    assert torch.allclose(few.depth, 1.7 * see(truth)[1], rtol=1e-3)
    behind, _ = _scene_with_points(_sparse(truth, 200), cameras=_misread(truth, "opengl"))
    assert "do not see" in behind.report["depth_scale"]["source"]
    nothing, _ = _scene_with_points([torch.empty(0, 3)] * 5)
    assert nothing.report["depth_scale"]["points"] == 0
    assert nothing.report["depth_scale"]["source"] == "left as it was (0 points: too few to tell)"
    assert "depth_scale" not in _scene(3)[0].report


def test_points_that_contradict_the_depth_are_doubted():
    scene, _ = _scene_with_points(_sparse(arc(5), 200, outliers=1.0))
    assert any("agree only to" in warning for warning in scene.report["warnings"])


def test_cameras_with_skew_are_refused_before_anything_is_computed():
    truth = arc(2)
    K = truth.K.clone()
    K[:, 0, 1] = 0.5
    skewed = Cameras(truth.cam_from_world, K, truth.width, truth.height)
    with pytest.raises(InputError, match="cameras with skew cannot be rendered"):
        reconstruct(list(torch.rand(2, 3, HEIGHT, WIDTH)), skewed, "no-such-model")


# ------------------------------------------------------------------------------------------------ diagnosis


def _misread(truth: Cameras, mistake: str) -> Cameras:
    """What a reader gets that takes a file of another convention for world-to-camera OpenCV."""
    world_from_cam, flip = rigid_inverse(truth.cam_from_world), OPENCV_FROM_OPENGL.float()
    poses = {
        "opengl": rigid_inverse(world_from_cam @ flip),
        "c2w": world_from_cam,
        "opengl-c2w": world_from_cam @ flip,
    }[mistake]
    return truth.with_poses(poses)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mistake", ["opengl", "c2w", "opengl-c2w"])
def test_each_mistake_of_convention_is_named_and_undone(mistake, seed):
    truth = Cameras(arc(6).cam_from_world, arc(6).K, WIDTH, HEIGHT).transform(similarity(seed))
    poses = truth.cam_from_world.clone()
    poses[:, :3, :3] = rotations(seed + 7, 6).float()  # general rotations tell all candidates apart
    truth = truth.with_poses(poses)
    given = _misread(truth, mistake)
    found = check_poses(truth.transform(OWN_FRAME), given)
    assert found.likely == (mistake,)
    assert found.rotation_error_deg[mistake] < 0.1 < 15 < found.rotation_error_deg["as-read"]
    assert any(f"--poses-are {mistake}" in warning for warning in found.warnings)
    undone = reinterpret_poses(given, mistake)
    assert torch.allclose(undone.cam_from_world, truth.cam_from_world, atol=1e-5)


@pytest.mark.parametrize("mistake", ["opengl", "c2w", "opengl-c2w"])
def test_turns_about_one_axis_are_told_apart_by_the_centres_where_they_can_be(mistake):
    """About y, flipped axes and an inverse look alike in rotations; the centres settle it."""
    truth = arc(6)
    angle = torch.linspace(-1, 1, 6)
    poses = truth.cam_from_world.clone()
    poses[:, :3, :3] = torch.eye(3)
    poses[:, 0, 0] = poses[:, 2, 2] = angle.cos()
    poses[:, 0, 2], poses[:, 2, 0] = angle.sin(), -angle.sin()
    truth = truth.with_poses(poses)
    found = check_poses(truth.transform(OWN_FRAME), _misread(truth, mistake))
    assert mistake in found.likely and "as-read" not in found.likely
    assert len(found.likely) <= 2


def test_right_poses_raise_no_doubt_even_with_some_noise():
    truth = arc(6).to(torch.float64)
    noise = similarity(1).rotation
    small = torch.linalg.matrix_exp(0.1 * (noise - noise.T))
    poses = truth.cam_from_world.clone()
    poses[::2, :3, :3] = small @ poses[::2, :3, :3]
    found = check_poses(truth.with_poses(poses), truth)
    assert found.warnings == () and found.likely == ()


def test_without_turns_nothing_is_blamed():
    still = arc(4).with_poses(torch.eye(4).repeat(4, 1, 1))
    turning = arc(4).cam_from_world.clone()
    turning[:, :3, :3] = rotations(2, 4).float()
    blind = check_poses(still, arc(4).with_poses(turning))
    assert blind.likely == () and "could not be checked" in blind.warnings[0] and len(blind.warnings) == 1
    assert check_poses(arc(1), arc(1)).rotation_error_deg == {}


def test_shuffled_poses_are_doubted_without_a_name():
    poses = arc(6).cam_from_world.clone()
    poses[:, :3, :3] = rotations(1, 6).float()
    truth = arc(6).with_poses(poses)
    given = truth[[3, 0, 4, 1, 5, 2]]
    found = check_poses(truth, given)
    assert found.likely == () and "orders" in found.warnings[0]


def test_intrinsics_of_another_size_are_named_with_that_size():
    truth = arc(3)
    other = truth.scaled(width=2 * WIDTH, height=2 * HEIGHT)
    given = Cameras(truth.cam_from_world, other.K, WIDTH, HEIGHT)
    warning = check_poses(truth, given).warnings[0]
    assert f"about {2 * 61 * 2}x{2 * 50 * 2} px" in warning and f"not {WIDTH}x{HEIGHT}" in warning
    centred = torch.tensor([[100.0, 0, WIDTH / 2], [0, 100.0, HEIGHT / 2], [0, 0, 1]]).expand(3, 3, 3)
    smaller = Cameras(None, centred, WIDTH, HEIGHT).scaled(width=WIDTH // 2, height=HEIGHT // 2)
    given = Cameras(truth.cam_from_world, smaller.K, WIDTH, HEIGHT)
    assert f"about {WIDTH // 2}x{HEIGHT // 2} px" in check_poses(truth, given).warnings[0]
    longer = Cameras(truth.cam_from_world, truth.K * torch.tensor([[2.0, 2, 1]]).T, WIDTH, HEIGHT)
    K = longer.K.clone()
    K[:, :2, 2] = truth.K[:, :2, 2]
    assert "2 times" in check_poses(truth, Cameras(truth.cam_from_world, K, WIDTH, HEIGHT)).warnings[0]


def test_wrong_poses_are_obeyed_but_the_report_says_so(caplog):
    scene, truth, model = _scene(6, cameras=_misread(arc(6), "opengl"))
    assert torch.allclose(scene.cameras.cam_from_world, _misread(truth, "opengl").cam_from_world, atol=1e-6)
    assert "opengl" in scene.report["poses"]["check_without_poses"]["likely_mistake"]
    assert any("OpenGL" in warning for warning in scene.report["warnings"])
    assert any("OpenGL" in record.message for record in caplog.records)
    assert [call is None for call in model.calls] == [False, True]  # the witness does not see the given cameras


def test_the_check_can_be_left_out():
    scene, _, model = _scene(3, config=ReconstructConfig(size_px=WIDTH, check_poses=False))
    assert len(model.calls) == 1 and "check_without_poses" not in scene.report["poses"]


# ------------------------------------------------------------------------------------------------ estimated frame


@pytest.mark.parametrize("views", [1, 2, 5])
def test_without_cameras_the_scene_is_upright_centred_and_of_unit_size(views):
    scene, truth, _ = _scene(views, given=False)
    means, frame = scene.gaussians.means, scene.report["frame"]
    assert means.median(0).values.abs().max() < 1e-5
    distance = torch.cat([
        (scene.cameras.unproject(scene.depth)[view].reshape(-1, 3) - scene.cameras.centers[view]).norm(dim=1)
        for view in range(views)
    ])  # fmt: skip
    assert distance.median() == pytest.approx(1, abs=0.03)  # the border was filtered before measuring
    up = up_direction(scene.cameras)
    assert torch.allclose(up, torch.tensor([0.0, -1, 0], dtype=torch.float64), atol=1e-5)
    assert abs(float(scene.cameras.look_directions[0, 0])) < 1e-5 and float(scene.cameras.look_directions[0, 2]) > 0
    # One similarity moved everything: the report's matrix carries the network's cameras onto the scene's.
    moved = truth.transform(OWN_FRAME).transform(Similarity.from_matrix(torch.tensor(frame["scene_from_network"])))
    assert torch.allclose(moved.cam_from_world, scene.cameras.cam_from_world, atol=1e-4)
    assert frame["source"] == "estimated" and {"up", "centre", "scale"} <= {
        choice["what"] for choice in scene.report["choices"]
    }


def test_the_estimated_frame_does_not_depend_on_the_networks():
    first = _scene(4, given=False)[0]
    second = _scene(4, given=False, frame=Similarity(5.0, rotations(9, 1)[0], [1.0, 2.0, 3.0]))[0]
    assert torch.allclose(first.gaussians.means, second.gaussians.means, atol=1e-3)
    assert torch.allclose(first.cameras.cam_from_world, second.cameras.cam_from_world, atol=1e-3)


def test_looking_straight_down_still_has_a_frame():
    down = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 2], [0, 0, 0, 1]])  # forward is -y ... of the world
    cameras = Cameras(down[None], arc(1).K, WIDTH, HEIGHT)
    points = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    moved, _ = canonical_frame(cameras, points, torch.zeros(100, dtype=torch.int64))
    assert torch.isfinite(moved.matrix).all()
    assert torch.linalg.det(moved.rotation) == pytest.approx(1)


def test_metres_are_kept():
    truth = arc(3)
    points = truth.unproject(see(truth)[1]).reshape(-1, 3)
    views = torch.arange(3).repeat_interleave(HEIGHT * WIDTH)
    moved, facts = canonical_frame(truth, points, views, keep_scale=True)
    assert float(moved.scale) == 1 == facts["scale"] and facts["median_camera_to_point_distance_before"] > 1


# ------------------------------------------------------------------------------------------------ measured depth


def test_measured_depth_with_cameras_needs_no_network():
    truth = arc(4)
    images, depth = see(truth)
    depth[:, :10] = 0
    config = ReconstructConfig(size_px=WIDTH, depth="given", filters=FilterConfig(0, False, 0, False, 0))
    scene = reconstruct(images, truth, "no such model", config, depth=depth)
    assert torch.equal(scene.depth, depth) and torch.equal(scene.cameras.centers, truth.centers)
    assert len(scene.gaussians) == int((depth > 0).sum())
    assert scene.report["model"]["name"] is None


def test_measured_depth_plans_its_memory(monkeypatch):
    truth = arc(6)
    images, depth = see(truth)
    monkeypatch.setattr("da3gs.pipeline.fitting.free_memory", lambda device: 4 * WIDTH * HEIGHT * 700)
    config = ReconstructConfig(size_px=WIDTH, depth="given")
    with pytest.raises(InputError, match=r"6 views at 126 px need about"):
        reconstruct(images, truth, config=dataclasses.replace(config, when_memory_tight="refuse"), depth=depth)
    scene = reconstruct(images, truth, config=config, depth=depth)
    assert len(scene.cameras) == 3 and any("going on with 3 views" in line for line in scene.report["warnings"])


def test_measured_depth_without_cameras_sets_the_scale():
    truth = arc(4)
    images, depth = see(truth)
    model = OracleModel(truth, OWN_FRAME)
    config = ReconstructConfig(size_px=WIDTH, depth="given")
    scene = reconstruct(images, None, model, config, depth=depth)
    assert torch.allclose(scene.depth, depth)
    expected, found = (torch.cdist(c.centers, c.centers) for c in (truth, scene.cameras))
    assert torch.allclose(found, expected, atol=1e-3)
    assert scene.report["frame"]["unit"] == "given"


def test_cameras_of_structure_from_motion_take_the_unit_of_measured_depth():
    truth = arc(4)
    images, depth = see(truth)
    moved = truth.transform(OWN_FRAME)
    rows = torch.arange(0, WIDTH * HEIGHT, 37)
    points = [moved[[view]].unproject(depth[[view]] * OWN_FRAME.scale)[0].reshape(-1, 3)[rows] for view in range(4)]
    names = tuple(f"{view}" for view in range(4))
    source = Source(list(images), names, moved, depth=list(depth), points=points, poses_from="structure from motion")
    config = ReconstructConfig(size_px=WIDTH, depth="given")
    scene = reconstruct(source, config=config)
    expected, found = (torch.cdist(c.centers, c.centers) for c in (truth, scene.cameras))
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4) and torch.allclose(scene.depth, depth)
    choice = next(c for c in scene.report["choices"] if c["what"] == "scale of the cameras")
    assert choice["value"] == pytest.approx(1 / float(OWN_FRAME.scale), rel=1e-3)
    with pytest.raises(InputError, match="cameras from structure from motion have no unit"):
        reconstruct(dataclasses.replace(source, points=None), config=config)


def test_measured_depth_is_taken_at_pixel_centres_at_any_size():
    truth = arc(2)
    images, depth = see(truth)
    big = torch.nn.functional.interpolate(depth[None], scale_factor=2, mode="nearest")[0]
    config = ReconstructConfig(size_px=WIDTH, depth="given")
    assert torch.equal(reconstruct(images, truth, config=config, depth=big).depth, depth)
    half = ReconstructConfig(size_px=WIDTH // 2, depth="given")
    assert torch.equal(reconstruct(images, truth, config=half, depth=depth).depth, depth[:, 1::2, 1::2])


def test_measured_views_come_as_files_arrays_pictures_or_tensors(tmp_path):
    from PIL import Image

    truth = arc(1)
    image, depth = see(truth)
    array = uint8_from_tensor(image[0])
    picture = Image.fromarray(array)
    picture.save(tmp_path / "a.png")
    config = ReconstructConfig(depth="given")
    expected = reconstruct(image, truth, config=config, depth=depth)
    for item in (array, picture, tmp_path / "a.png", np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])):
        assert torch.equal(reconstruct([item], truth, config=config, depth=depth).images, expected.images)
    grey = reconstruct([array[..., 0]], truth, config=config, depth=depth).images
    assert torch.equal(grey[:, 0], grey[:, 2]) and torch.equal(grey[0, 0], expected.images[0, 0])


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (None, "has none: use depth='network'"),
        (torch.zeros(2, HEIGHT, WIDTH), "no measurement"),
        (torch.ones(2, HEIGHT, HEIGHT), "another aspect ratio"),
        (torch.full((2, HEIGHT, WIDTH), float("nan")), "must be finite"),
        (torch.ones(3, HEIGHT, WIDTH), "got 3 depth maps"),
    ],
)
def test_unusable_depth_is_refused(depth, message):
    truth = arc(2)
    with pytest.raises(InputError, match=message):
        reconstruct(see(truth)[0], truth, config=ReconstructConfig(size_px=WIDTH, depth="given"), depth=depth)


def test_a_depth_camera_renders_as_well_as_the_prior_alone():
    """Real RGB-D, 6 views at 480x270, filters on: held-out PSNR over covered pixels; 29.48 dB was measured without."""
    from da3gs.data.rgbd import read_depth, read_rgbd
    from da3gs.data.transforms_json import read_transforms_json

    folder = asset("data/rgbd_tabletop_d435i")
    data = read_transforms_json(folder).split("train")
    data = data[torch.linspace(0, len(data) - 1, 6).round().long().tolist()]
    depth = [torch.from_numpy(read_depth(path, data.depth_unit_scale_factor)) for path in data.depth_paths]
    source = Source(data.load_images(), data.names, data.cameras, depth)
    scene = reconstruct(source, config=ReconstructConfig(size_px=480, depth="given"))
    assert scene.cameras.size == (480, 270)
    assert torch.allclose(scene.cameras.centers, data.cameras.centers, atol=1e-5)
    targets = read_rgbd(folder, split="test", width=480, height=270)
    out = render(scene.gaussians, targets.cameras, RenderConfig(antialiased=True))
    covered = out.alpha[..., 0] > 0.5
    colour = out.rgb / out.alpha.clamp(min=1e-3)
    scores = [psnr_db(colour[v].clamp(0, 1), targets.images[v], covered[v]) for v in range(len(targets))]
    assert sum(scores) / len(scores) > 29.48 - 0.05
    assert covered.float().mean() > 0.93


# ------------------------------------------------------------------------------------------------ larger splats


def test_depth_of_a_small_network_is_brought_to_the_images():
    """Cameras exact, depth along the edges of the images: better than the small map, at 4 times its pixels."""
    truth = arc(3)
    images, depth = see(truth)
    config = dataclasses.replace(SMALL, size_px=WIDTH // 2 // 14 * 14, splat_size_px=WIDTH)
    scene = reconstruct(images, truth, OracleModel(truth, OWN_FRAME), config)
    assert scene.cameras.size == (WIDTH, HEIGHT) and torch.allclose(scene.cameras.K, truth.K, rtol=1e-5)
    error = (scene.depth / depth - 1).abs()
    assert error.median() < 2e-3 and (error > 0.05).float().mean() < 0.03
    assert any(choice["what"] == "size of the maps and splats" for choice in scene.report["choices"])
    never_more = ReconstructConfig(size_px=56, splat_size_px=5000)
    assert max(reconstruct(images, truth, OracleModel(truth, OWN_FRAME), never_more).cameras.size) == WIDTH
    as_asked = ReconstructConfig(size_px=56)
    assert max(reconstruct(images, truth, OracleModel(truth, OWN_FRAME), as_asked).cameras.size) == 56


def test_upsampling_follows_the_picture_and_keeps_the_range():
    small = torch.zeros(1, 3, 10, 10)
    small[..., 5:] = 1
    large = torch.zeros(1, 3, 40, 40)
    large[..., 18:] = 1  # the edge lies half a small pixel beside the small image's
    values = torch.where(small[:, 0] > 0.5, 3.0, 1.0)
    found = joint_upsample(values, small, large)
    assert found.min() >= 1 - 1e-6 and found.max() <= 3 + 1e-6
    assert (found[0, :, :18] < 1.1).all() and (found[0, :, 18:] > 2.9).all()
    ramp = torch.linspace(1, 2, 10).expand(1, 10, 10)
    grey = torch.full((1, 3, 1, 1), 0.5)
    smooth = joint_upsample(ramp, grey.expand(1, 3, 10, 10), grey.expand(1, 3, 40, 40))
    assert (smooth.diff(dim=2)[..., 4:-4] > 0).all()


# ------------------------------------------------------------------------------------------------ memory


def _cost(views, height, width):
    return 1_000_000 + views * height * width * 100


def test_what_fits_runs_as_asked():
    plan = plan_memory(_cost, views=8, size_px=504, aspect=0.75, free_bytes=2**30)
    assert (plan.size_px, plan.views, plan.changed) == (504, 8, None)
    assert plan_memory(_cost, views=8, size_px=504, aspect=0.75, free_bytes=None).views == 8


def test_resolution_goes_first_then_views():
    lower = plan_memory(_cost, views=8, size_px=504, aspect=0.75, free_bytes=int(_cost(8, 294, 392) / 0.85) + 1)
    assert lower.views == 8 and 280 <= lower.size_px < 504
    assert "8 views at 504 px need about" in lower.changed and f"8 views at {lower.size_px} px" in lower.changed
    fewer = plan_memory(_cost, views=8, size_px=504, aspect=0.75, free_bytes=int(_cost(3, 210, 280) / 0.85) + 1)
    assert (fewer.views, fewer.size_px) == (3, 280)
    for plan in (lower, fewer):
        assert plan.estimate_bytes <= 0.85 * plan.free_bytes


def test_what_cannot_fit_is_refused_with_advice():
    with pytest.raises(InputError, match="too little for even one view at 280 px"):
        plan_memory(_cost, views=8, size_px=504, aspect=0.75, free_bytes=2_000_000)
    with pytest.raises(InputError, match=r"8 views with --size \d+ would fit"):
        plan_memory(
            _cost, views=8, size_px=504, aspect=0.75, free_bytes=int(_cost(8, 294, 392) / 0.85), when_tight="refuse"
        )
    plan = plan_memory(_cost, views=8, size_px=504, aspect=0.75, free_bytes=10, when_tight="ignore")
    assert (plan.size_px, plan.views) == (504, 8)


def test_little_memory_lowers_the_run_and_says_so(monkeypatch, caplog):
    from da3gs.pipeline import fitting

    monkeypatch.setattr(fitting, "free_memory", lambda device: 20_000_000)
    truth = arc(5)
    images, _ = see(truth)
    model = OracleModel(truth[[0, 4]], OWN_FRAME)
    config = ReconstructConfig(size_px=WIDTH)
    monkeypatch.setattr(fitting, "_BYTES_PER_PIXEL", 500)
    scene = reconstruct(images, None, model, config)
    assert len(scene.cameras) == 2 == len(scene.report["views"])
    assert scene.report["views"] == ["view_000", "view_004"]
    assert any("going on with 2 views" in record.message for record in caplog.records)
    assert any(choice["what"] == "size_px and views" for choice in scene.report["choices"])


def test_free_memory_of_this_machine_is_plausible():
    free = free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**45


# ------------------------------------------------------------------------------------------------ report, errors


def test_the_report_is_plain_json_and_complete():
    stages = Stages()
    truth = arc(3)
    config = ReconstructConfig(size_px=WIDTH, max_gaussians=5000)
    scene = reconstruct(
        see(truth)[0], truth, OracleModel(truth, OWN_FRAME), config, names=["a", "b", "c"], stages=stages
    )
    report = json.loads(json.dumps(scene.report, allow_nan=False))
    assert report == scene.report
    assert report["views"] == ["a", "b", "c"] and report["size"] == [WIDTH, HEIGHT]
    assert report["gaussians"] == {"count": 5000, "sh_degree": 0} and len(scene.gaussians) == 5000
    assert report["model"]["licence"] == "made for tests" and report["versions"]["torch"] == torch.__version__
    names = [stage["name"] for stage in report["stages"]]
    assert names == [
        "reading the input",
        "loading the model",
        "running the network",
        "matching keypoints",
        "checking the poses",
        "refining depth by the pictures",
        "placing Gaussians",
        "filtering",
        "filling holes",
        "keeping the budget",
    ]
    assert all(stage["seconds"] >= 0 for stage in report["stages"])
    assert report["filters"][0]["before"] == 3 * HEIGHT * WIDTH and report["filters"][-1]["after"] == 5000
    for step in report["filters"]:
        grown = step["after"] - step["before"]
        assert grown >= 0 if step["name"] == "holes filled" else grown <= 0
    for before, after in zip(report["filters"][:-1], report["filters"][1:], strict=True):
        assert before["after"] == after["before"]


def test_memory_of_a_stage_is_seen():
    stages = Stages()
    with stages("small"):
        pass
    with stages("large"):
        block = torch.ones(2**26)  # 256 MiB
        block.add_(1)
        del block
    small, large = stages.records
    if small.peak_memory_bytes is None:
        pytest.skip("this system does not tell the resident set")
    assert large.peak_memory_bytes - small.peak_memory_bytes > 150 * 2**20


def test_the_same_call_gives_the_same_bits():
    first, second = _scene(3)[0], _scene(3)[0]
    for a, b in zip(first.gaussians.tensors(), second.gaussians.tensors(), strict=True):
        assert torch.equal(a, b)


def test_sky_and_doubt_are_dropped_and_the_rest_kept():
    sky = torch.zeros(3, HEIGHT, WIDTH)
    sky[:, :20] = 1
    confidence = torch.full((3, HEIGHT, WIDTH), 5.0)
    confidence[:, 40:50] = 1.05
    scene, _, _ = _scene(3, sky=sky, confidence=confidence)
    dropped = {f["name"]: f["before"] - f["after"] for f in scene.report["filters"]}
    assert dropped["sky"] == 3 * 20 * WIDTH and dropped["confidence"] == 3 * 10 * WIDTH


def test_nothing_left_names_the_filter():
    with pytest.raises(InputError, match="the sky filter alone dropped"):
        _scene(2, sky=torch.ones(2, HEIGHT, WIDTH))


def test_max_views_are_evenly_spread():
    truth = arc(9)
    config = ReconstructConfig(size_px=WIDTH, max_views=3, depth="given")
    scene = reconstruct(see(truth)[0], truth, config=config, depth=see(truth)[1])
    assert scene.report["views"] == ["view_000", "view_004", "view_008"]
    assert torch.equal(scene.cameras.centers, truth.centers[[0, 4, 8]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "no images given"),
        (("does/not/exist",), "does not exist"),
        ((torch.rand(2, 3, HEIGHT, WIDTH), arc(3)), r"expected one of each per image \(2\); got 3 cameras"),
    ],
)
def test_unusable_input_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        reconstruct(*arguments)


def test_angles_of_the_report_are_degrees():
    truth = arc(2)
    turned = truth.cam_from_world.clone().double()
    angle = math.radians(30)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1.0]])
    turned[1, :3, :3] = turn.double() @ turned[1, :3, :3]
    found = check_poses(truth, truth.with_poses(turned))
    assert found.rotation_error_deg["as-read"] == pytest.approx(30, abs=1e-3)


def test_depth_bends_through_points_and_follows_their_slope_elsewhere():
    from da3gs.pipeline.depth_scale import bend_through_points

    truth = arc(1, "free")
    true = see(truth)[1]
    _, height, width = true.shape
    ramp = torch.linspace(0.8, 1.25, width).expand(height, width)
    bent = true / ramp  # too near on the right
    pick = torch.randint(true.numel(), (600,), generator=torch.Generator().manual_seed(3))
    points = truth[0].unproject(true)[0].reshape(-1, 3)[pick]
    right = pick % width > width // 2
    field = bend_through_points(bent, truth, [points[right]], 1.0, 0.15)
    error = (bent * field / true - 1).abs()[0]
    assert float(error[:, int(0.6 * width) :].median()) < 0.02 < 0.1 < float((1 / ramp - 1).abs()[:, -1].min())
    # Where there are none, at least the way they lead.
    far = slice(0, width // 5)
    assert float(error[:, far].median()) < 0.75 * float((1 / ramp - 1).abs()[:, far].median())
    # What is no more than the points' own error is left alone.
    wavy = (1 + 0.02 * torch.sin(torch.linspace(0, 20, width))).expand(height, width)
    known_noise = bend_through_points(true * wavy, truth, [points], 1.0, 0.015, noise=0.02)
    assert torch.equal(known_noise, torch.ones_like(known_noise))
    # Outliers bend nothing.
    wild = torch.cat([points, truth.centers[0] + 3 * (points[:60] - truth.centers[0])])
    again = bend_through_points(true, truth, [wild], 1.0, 0.02)
    assert float((again - 1).abs().median()) < 0.01
