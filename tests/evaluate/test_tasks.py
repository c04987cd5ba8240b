"""Evaluations of methods whose faults are known."""

import math
from dataclasses import replace

import pytest
import torch
from oracle import WIDTH, arc, see
from worlds import exact, room

from da3gs import Gaussians, render
from da3gs.errors import FormatError, InputError
from da3gs.evaluate.depth import DepthEstimation
from da3gs.evaluate.frames import FrameChoice, FrameIndex, HeldOut
from da3gs.evaluate.method import Method, reconstructed
from da3gs.evaluate.nvs import ViewSynthesis, picture_numbers
from da3gs.evaluate.pose import PoseEstimation
from da3gs.evaluate.recon import Reconstruction, seen_where
from da3gs.evaluate.target_poses import OptimiseConfig, optimised_poses
from da3gs.geometry.rotations import rotation_angle
from da3gs.rendering import RenderConfig, RenderOutput

ALL = FrameChoice(None)


def turned(views: int, degrees: float) -> torch.Tensor:
    """Motions of the cameras about their own axes: every second one is turned about x."""
    turn = torch.eye(4).repeat(views, 1, 1)
    angle = math.radians(degrees)
    turn[1::2, 1:3, 1:3] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn


# ------------------------------------------------------------------------------------------------ poses


def test_true_poses_in_another_frame_score_one():
    scene = room()
    numbers = PoseEstimation(exact(scene), ALL, WIDTH, "head").evaluate(scene).numbers
    assert numbers["auc3"] == numbers["auc30"] == numbers["auc3_da3"] == 1.0
    assert numbers["rotation_median_deg"] < 0.05 and numbers["views_placed"] == 1.0
    assert numbers["still_auc30"] < 0.5


def test_turned_cameras_score_by_their_angle():
    scene = room()
    method = exact(scene, twist=turned(9, 8.0))
    numbers = PoseEstimation(method, ALL, WIDTH, "head").evaluate(scene).numbers
    # Of 36 pairs the 20 of unequal parity are 8 degrees off; pairs of turned cameras move in a turned frame.
    assert numbers["auc3"] < 0.5 and numbers["auc3"] < numbers["auc30"] < 1.0
    assert numbers["rotation_median_deg"] == pytest.approx(8.0, abs=0.1)


def test_views_left_out_count_as_wrong_pairs(monkeypatch):
    scene = room()
    task = PoseEstimation(exact(scene), ALL, WIDTH, "head")
    found, _ = task._found(scene.views(range(9), WIDTH))
    monkeypatch.setattr(PoseEstimation, "_found", lambda self, views: (found[:6], list(range(6))))
    result = task.evaluate(scene)
    assert result.numbers["auc30"] == pytest.approx(15 / 36)
    assert result.facts["left_out"] == ["06.png", "07.png", "08.png"]
    monkeypatch.setattr(PoseEstimation, "_found", lambda self, views: (None, []))
    assert task.evaluate(scene).numbers["auc30"] == 0.0


def test_poses_need_two_views():
    scene = room()
    with pytest.raises(InputError, match="has 1 view; relative poses need two"):
        PoseEstimation(exact(scene), FrameChoice(1), WIDTH).evaluate(scene)


# ------------------------------------------------------------------------------------------------ depth


@pytest.mark.parametrize("mode", ["single", "multiview", "posed", "refined"])
def test_true_depth_scores_one_in_every_mode(mode):
    scene = room(5)
    numbers = DepthEstimation(exact(scene), ALL, WIDTH, mode).evaluate(scene).numbers
    assert numbers["delta1"] > 0.999 and numbers["abs_rel"] < 2e-3
    assert numbers["delta1_constant"] < 0.7


def test_alignments_forgive_what_they_say():
    scene = room(4)
    wrong = exact(scene, depth_factor=2.0)

    def measure(**options):
        return DepthEstimation(wrong, ALL, WIDTH, "posed", **options).evaluate(scene).numbers

    plain = measure()
    assert plain["delta1"] < 0.05 and plain["abs_rel"] == pytest.approx(1.0, abs=0.02)
    assert plain["delta1_median"] > 0.999
    assert measure(align="median")["delta1"] > 0.999 and measure(align="median")["delta1_none"] < 0.05


def test_depth_beyond_the_limit_is_not_counted():
    scene = room(3)
    depth = [torch.from_numpy(scene.depth(frame)) for frame in range(3)]
    near = sum(int((values <= 1.5).sum()) for values in depth)
    result = DepthEstimation(exact(scene), ALL, WIDTH, max_depth=1.5).evaluate(scene)
    assert result.facts["valid_pixels"] == near > 0
    with pytest.raises(InputError, match="no measured depth"):
        DepthEstimation(exact(scene), ALL, WIDTH, max_depth=1e-3).evaluate(scene)


# ------------------------------------------------------------------------------------------------ geometry


def test_true_surfaces_score_one_and_moved_ones_nothing():
    scene = room(5)
    right = Reconstruction(exact(scene), ALL, WIDTH, threshold=0.05, voxel=0.02).evaluate(scene).numbers
    assert right["f_score"] > 0.98 and right["accuracy"] < 0.02 and right["completeness"] < 0.02
    # No one scale of depth can make up for this.
    bent = exact(scene, depth_factor=torch.linspace(0.5, 3.0, WIDTH))
    wrong = Reconstruction(bent, ALL, WIDTH, threshold=0.05, voxel=0.02).evaluate(scene).numbers
    assert wrong["f_score"] < 0.3 and wrong["accuracy"] > 0.1


def test_geometry_without_poses_is_moved_onto_the_true_cameras():
    scene = room(5)
    numbers = Reconstruction(exact(scene), ALL, WIDTH, poses="predicted", threshold=0.05).evaluate(scene).numbers
    assert numbers["f_score"] > 0.95 and numbers["views_placed"] == 1.0 and numbers["auc30"] == 1.0


def test_a_scan_is_the_truth(tmp_path):
    from plyfile import PlyData, PlyElement

    scene = room(5, folder=tmp_path)
    views = scene.views(range(5), WIDTH, depth=True)
    points = views.cameras.unproject(views.depth)[views.depth > 0].numpy()
    vertices = points.view([("x", "f4"), ("y", "f4"), ("z", "f4")]).squeeze(1)
    PlyData([PlyElement.describe(vertices, "vertex")]).write(str(tmp_path / "scan.ply"))
    task = Reconstruction(exact(scene), ALL, WIDTH, threshold=0.05, scan="scan.ply")
    assert task.evaluate(scene).numbers["f_score"] > 0.98
    (tmp_path / "broken.ply").write_text("ply\nformat ascii")
    with pytest.raises(InputError, match=r"absent.ply does not exist"):
        Reconstruction(exact(scene), ALL, WIDTH, scan="absent.ply").evaluate(scene)
    with pytest.raises(FormatError, match=r"broken.ply: not a .ply file"):
        Reconstruction(exact(scene), ALL, WIDTH, scan="broken.ply").evaluate(scene)


def test_points_outside_every_known_pixel_are_not_counted():
    scene = room(3)
    views = scene.views(range(3), WIDTH, depth=True)
    known = torch.zeros_like(views.depth, dtype=torch.bool)
    known[1, 10:20, 30:40] = True
    points = views.cameras.unproject(views.depth)[1]
    behind = views.cameras[1].centers - 2 * views.cameras[1].look_directions
    seen = seen_where(known, views, torch.cat([points.reshape(-1, 3), behind]))
    assert torch.equal(seen[:-1].reshape(known.shape[1:]), known[1]) and not seen[-1]


# ------------------------------------------------------------------------------------------------ view synthesis


def test_splats_of_a_known_room_show_its_other_views():
    scene = room()
    given = ViewSynthesis(exact(scene), HeldOut(every=4), WIDTH).evaluate(scene)
    assert given.facts["targets"] == ["00.png", "04.png", "08.png"] and len(given.facts["context"]) == 6
    assert given.numbers["psnr_covered"] > 27 and given.numbers["coverage"] > 0.8
    found = ViewSynthesis(exact(scene), HeldOut(every=4), WIDTH, poses="predicted").evaluate(scene)
    assert found.numbers["psnr_covered"] == pytest.approx(given.numbers["psnr_covered"], abs=0.3)
    assert found.numbers["auc30"] == 1.0 and found.numbers["views_placed"] == 1.0


def test_one_view_without_its_pose_leaves_the_scale_open():
    scene = room()
    with pytest.raises(InputError, match="leave the scale open"):
        ViewSynthesis(exact(scene), HeldOut(context=1), WIDTH, poses="predicted").evaluate(scene)


def test_short_memory_is_said_and_nothing_is_lowered(monkeypatch):
    scene = room()
    method = exact(scene)
    method = Method(method.model, replace(method.config, when_memory_tight="refuse"))
    monkeypatch.setattr("da3gs.pipeline.fitting.free_memory", lambda device: 3_000_000)
    with pytest.raises(InputError, match=r"7 views at 126 px need about .* but .* are free"):
        ViewSynthesis(method, HeldOut(), WIDTH).evaluate(scene)


@pytest.mark.parametrize(("task", "way"), [(PoseEstimation, "head"), (DepthEstimation, "posed")])
def test_tasks_that_run_the_network_alone_plan_memory_too(task, way, monkeypatch):
    scene = room()
    monkeypatch.setattr("da3gs.pipeline.fitting.free_memory", lambda device: 3_000_000)
    with pytest.raises(InputError, match=r"\d+ views at 126 px need about .* but .* are free"):
        task(exact(scene), ALL, WIDTH, way).evaluate(scene)


def test_pictures_are_not_enlarged_for_the_network():
    method = exact(room())
    assert method.config_for((100, 60)).size_px == 98 and method.config_for((500, 300)).size_px == 126
    assert method.to_dict()["device"] == "cpu" and method.to_dict()["refine_depth"] is False


def test_an_index_says_which_frames():
    scene = room()
    index = FrameIndex("index.json", "0" * 64, {"room": ((1, 3, 5), ("04.png",)), "other": None})
    task = ViewSynthesis(exact(scene), HeldOut(index), (98, 70))
    assert task.names("room") and not task.names("other") and not task.names("elsewhere")
    result = task.evaluate(scene)
    assert result.facts["context"] == ["01.png", "03.png", "05.png"] and result.facts["targets"] == ["04.png"]
    assert result.facts["size"] == [98, 70]
    assert result.numbers["psnr_covered"] > 25  # cameras follow the crop


def test_numbers_of_pictures_with_holes():
    pictures = torch.full((2, 3, 16, 16), 0.5)
    alpha = torch.ones(2, 16, 16, 1)
    alpha[0, :, :8] = 0
    alpha[1] = 0
    out = RenderOutput(rgb=0.5 * alpha.expand(2, 16, 16, 3), alpha=alpha, depth=None)
    numbers = picture_numbers(out, pictures)
    assert numbers["coverage"] == 0.25 and numbers["psnr_covered"] == 100.0  # identical where covered
    half, none = -10 * math.log10(0.125), -10 * math.log10(0.25)
    assert numbers["psnr"] == pytest.approx((half + none) / 2, abs=1e-4)
    empty = RenderOutput(torch.zeros(1, 16, 16, 3), torch.zeros(1, 16, 16, 1), None)
    assert picture_numbers(empty, pictures[:1])["psnr_covered"] is None


def test_optimised_targets_find_their_way_back():
    scene = room(3)
    splats = reconstructed(exact(scene), scene.views(range(3), WIDTH), "given").gaussians
    truth = arc(9)[[5]].scaled(width=63, height=49)
    pictures = render(splats, truth, RenderConfig(antialiased=True, depth=False)).rgb.movedim(-1, 1)
    off = torch.eye(4).repeat(1, 1, 1)
    angle = math.radians(1.5)
    off[:, 0, 0] = off[:, 2, 2] = math.cos(angle)
    off[:, 0, 2], off[:, 2, 0] = math.sin(angle), -math.sin(angle)
    off[:, :3, 3] = torch.tensor([0.02, -0.015, 0.01])
    displaced = truth.with_poses(off @ truth.cam_from_world)
    back = optimised_poses(splats, displaced, pictures, OptimiseConfig(steps=80, patience=20))

    def errors(cameras):
        angles = rotation_angle(cameras.cam_from_world[:, :3, :3], truth.cam_from_world[:, :3, :3]).rad2deg()
        return angles, (cameras.centers - truth.centers).norm(dim=1)

    before, after = errors(displaced), errors(back)
    assert after[0] < 0.3 * before[0] and after[1] < 0.4 * before[1]


def test_optimised_targets_are_never_worse():
    splats = Gaussians(
        torch.tensor([[0.0, 0, 2]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.3), torch.tensor([0.9]),
        torch.ones(1, 1, 3),
    )  # fmt: skip
    camera = arc(1)
    picture = see(camera)[0]  # nothing to find: the splat is not in it
    config = OptimiseConfig(steps=10)

    def loss(cameras):
        return float((render(splats, cameras).rgb.movedim(-1, 1) - picture).square().mean())

    assert loss(optimised_poses(splats, camera, picture, config)) <= loss(camera) + 1e-6
