"""The student's batches and losses: frames, scale, known poses, mirrors, matches, shares of processes."""

from dataclasses import replace

import pytest
import torch
from train.rooms import room

from da3gs.errors import InputError
from da3gs.train.matching import MatchingConfig, attention_logits, patch_geometry_loss, patch_matches
from da3gs.train.student import StudentLosses, StudentTask, scene_targets, student_batch


@pytest.fixture(scope="module")
def sample():
    return room(0, 4, 84, 56)


def test_targets_stand_in_the_first_view_and_have_mean_distance_one(sample):
    target = scene_targets(sample)
    torch.testing.assert_close(target["world_from_cam"][0], torch.eye(4), atol=1e-5, rtol=0)
    # Points from rays and depth on the ray grid are the scene's points, and lie at distance 1 on average.
    cells = target["rays"][..., 3:] + target["cell_depth"][..., None] * target["rays"][..., :3]
    points = cells[target["cell_mask"]]
    assert points.norm(dim=-1).mean().item() == pytest.approx(1, abs=0.03)
    assert target["rays"].shape == (4, 32, 48, 6)
    # The same surface seen from two views is one set of points: all lie on the surfaces other views see.
    view0 = cells[0][target["cell_mask"][0]]
    rest = cells[1:][target["cell_mask"][1:]]
    assert torch.cdist(view0, rest).amin(1).median() < 0.05


def test_targets_do_not_depend_on_frame_or_unit(sample):
    from da3gs.geometry.rotations import matrix_from_quat
    from da3gs.geometry.similarity import Similarity
    from da3gs.train.samples import TrainingSample

    turn = matrix_from_quat(torch.tensor([0.3, 0.5, -0.4, 0.7]))
    moved = sample.cameras.transform(Similarity(3.0, turn / 1.0, torch.tensor([1.0, -2, 0.5])))
    other = TrainingSample(sample.images, sample.depth * 3, moved)
    for name, value in scene_targets(sample).items():
        torch.testing.assert_close(scene_targets(other)[name], value, atol=2e-4, rtol=1e-4, msg=name)


def test_mirrored_scene_is_a_consistent_scene(sample):
    mirrored = sample.mirrored()
    a, b = scene_targets(sample), scene_targets(mirrored)
    flip = torch.tensor([-1.0, 1, 1])
    points = a["rays"][..., 3:] + a["cell_depth"][..., None] * a["rays"][..., :3]
    other = b["rays"][..., 3:] + b["cell_depth"][..., None] * b["rays"][..., :3]
    torch.testing.assert_close(other.flip(2) * flip, points, atol=1e-4, rtol=1e-4)
    assert torch.linalg.det(mirrored.cameras.cam_from_world[:, :3, :3]).min() > 0.99


def test_known_poses_are_those_prediction_would_be_given(sample):
    from da3gs.model.camera_heads import decode_cameras
    from da3gs.model.da3_model import normalized_poses

    batch = student_batch([sample], posed=True)
    world_from_cam, K = decode_cameras(batch["camera_encoding"], 84, 56)
    expected = normalized_poses(sample.cameras)
    torch.testing.assert_close(world_from_cam[0], expected.world_from_cam, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(K[0], sample.cameras.K, atol=1e-2, rtol=1e-4)
    assert "camera_encoding" not in student_batch([sample], posed=False)


def test_matches_show_the_same_surface(sample):
    batch = student_batch([sample], posed=False)
    answer, mask = patch_matches(batch)
    points = batch["rays"][0, ..., 3:] + batch["cell_depth"][0, ..., None] * batch["rays"][0, ..., :3]
    centres = points[:, 4::8, 4::8].flatten(1, 2)
    for view, other in ((0, 1), (2, 0), (1, 3)):
        seen = mask[0, view, :, other]
        assert 0.1 < seen.float().mean() < 1
        distance = (centres[view] - centres[other][answer[0, view, :, other]]).norm(dim=-1)[seen]
        assert distance.median() < 0.15 < (centres[view] - centres[other]).norm(dim=-1).median()
    assert not mask[0].diagonal(dim1=0, dim2=2).any(), "no view is asked about itself"


def test_attention_that_is_asked_for_matches_is_the_attention_of_the_block(monkeypatch):
    from torch.nn import functional as F

    from da3gs.model.network import build_model
    from da3gs.model.presets import preset

    torch.manual_seed(0)
    backbone = build_model(preset("da3-tiny")).backbone.eval()
    seen = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: seen.append((q, k)) or kernel(q, k, v))
    with torch.no_grad():
        tokens = backbone(torch.randn(1, 2, 3, 28, 42), reference_view="first")
    for tap, layer in ((0, 5), (2, 9)):
        query, key = seen[layer]
        weights = (query[0, 0] @ key[0, 0].T / query.shape[-1] ** 0.5).view(2, 7, 2, 7)[:, 1:, :, 1:]
        logits = attention_logits(backbone.blocks[layer], tokens.taps[tap][0][:, :, 1:])
        torch.testing.assert_close(logits[0], weights, atol=1e-5, rtol=1e-4)


def test_linear_reading_of_patches_is_zero_at_the_truth_and_ignores_sky(sample):
    batch = student_batch([sample], posed=False)
    batch["cell_mask"][..., :16, :] = False
    rays, depth = batch["rays"][:, :, 4::8, 4::8], batch["cell_depth"][:, :, 4::8, 4::8, None]
    truth = torch.cat([rays, rays[..., 3:] + depth * rays[..., :3]], -1)[None]
    assert patch_geometry_loss(truth, batch).item() < 1e-10
    wrong = truth.clone()
    wrong[..., :2, :, 6:] += 5  # two rows of patches without depth
    assert patch_geometry_loss(wrong, batch).item() < 1e-10
    wrong[..., :3] += 0.1
    assert patch_geometry_loss(wrong, batch).item() == pytest.approx(0.1**2 / 2, rel=1e-4)


def test_attention_can_be_asked_only_where_it_crosses_views(smoke):
    task = replace(smoke().task, matching=MatchingConfig(weight=0.1, attention_layers=(6,)))
    with pytest.raises(InputError, match=r"attention_layers must be among the tap layers"):
        task.open(0)


def test_batches_are_functions_of_their_index_and_split_among_processes(smoke):
    task = smoke().task
    task = replace(task, images_per_batch=8, mirror=True, color_jitter=0.3)
    student = task.open(1)
    whole = student.batch(5, 0, 1)
    parts = [student.batch(5, rank, 2) for rank in range(2)]
    assert float(whole["share"]) == 1 and [float(part["share"]) for part in parts] == [1, 1]
    thirds = [replace(task, images_per_batch=6).open(1).batch(5, rank, 2) for rank in range(2)]
    assert [(len(part["images"]), float(part["share"])) for part in thirds] == [
        (2, pytest.approx(4 / 3)),
        (1, pytest.approx(2 / 3)),
    ]
    assert len(whole["images"]) == 4 and [len(part["images"]) for part in parts] == [2, 2]
    joined = torch.stack([parts[0]["images"], parts[1]["images"]], 1).flatten(0, 1)
    assert torch.equal(joined, whole["images"])
    assert torch.equal(student.batch(5, 0, 1)["images"], whole["images"])
    assert not torch.equal(student.batch(6, 0, 1)["images"], whole["images"])
    assert not torch.equal(task.open(2).batch(5, 0, 1)["images"], whole["images"])


def test_every_part_of_the_network_gets_a_gradient(smoke):
    student = smoke().task.open(0)
    missing = set()
    for posed in (True, False):
        batch = student_batch([student.source.load(0), student.source.load(1)], posed=posed)
        student.module.zero_grad()
        student.loss(student.module, batch)["loss"].backward()
        silent = {n for n, p in student.module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
        missing = silent if posed else missing & silent
    # The confidence of rays has no loss of its own: its last convolution is shared with the rays and does get one.
    assert not {name for name in missing if "class_token" not in name and "position" not in name}, missing


def test_bad_tasks_are_refused():
    with pytest.raises(InputError, match="views must be"):
        StudentTask(views=(3, 2))
    with pytest.raises(InputError, match="cannot hold a sample of 20 views"):
        StudentTask(views=(20, 30), images_per_batch=16)
    with pytest.raises(InputError, match="gradient_scales must be at least 1"):
        StudentTask(losses=StudentLosses(gradient_scales=0))
    with pytest.raises(InputError, match=r"needs matching\.layers or matching\.attention_layers"):
        MatchingConfig(weight=1.0, layers=())


def test_fewer_scenes_than_sizes_are_enough(smoke):
    task = smoke().task
    data = replace(task.data, scenes=1, sizes=(*task.data.sizes, (98, 98)))
    student = replace(task, data=data).open(0)
    assert all(tuple(student.batch(i, 0, 1)["images"].shape[-2:]) == data.sizes[0][::-1] for i in range(4))


def test_a_network_with_a_gaussian_head_goes_on_without_it(caplog):
    task = StudentTask(model="da3-tiny", pretrained=True)
    with caplog.at_level("INFO"):
        student = task.open(0)
    assert "the Gaussian head of da3-tiny is left out" in caplog.text
    assert student.module.network.gs_head is None and student.module.network.config.gs_head is None
    assert not any("gs_head" in name for name, _ in student.module.named_parameters())
    with pytest.raises(InputError, match="known_poses is a probability"):
        StudentTask(known_poses=1.5)
