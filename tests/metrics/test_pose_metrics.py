"""Pose metrics against independent evaluations, closed forms and invariances."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.similarity import Similarity
from da3gs.metrics.poses import auc_histogram, auc_trapezoid, pose_metrics, relative_pose_errors


def _cameras(rotvecs_deg: np.ndarray, centers: np.ndarray) -> Cameras:
    """From world_from_cam rotation vectors and centres, float64."""
    world_from_cam = np.tile(np.eye(4), (len(centers), 1, 1))
    world_from_cam[:, :3, :3] = Rotation.from_rotvec(rotvecs_deg, degrees=True).as_matrix()
    world_from_cam[:, :3, 3] = centers
    K = torch.tensor([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]], dtype=torch.float64).expand(len(centers), 3, 3)
    return Cameras(torch.from_numpy(np.linalg.inv(world_from_cam)), K, 640, 480)


def _random(seed: int, views: int = 7, angle_deg: float = 4.0, shift: float = 0.15) -> tuple[Cameras, Cameras]:
    rng = np.random.default_rng(seed)
    rotvecs, centers = rng.normal(size=(views, 3)) * 40, rng.normal(size=(views, 3))
    target = _cameras(rotvecs, centers)
    noise = Rotation.from_rotvec(rng.normal(size=(views, 3)) * angle_deg, degrees=True)
    moved = (Rotation.from_rotvec(rotvecs, degrees=True) * noise).as_rotvec(degrees=True)
    return _cameras(moved, centers + shift * rng.normal(size=(views, 3))), target


def _reference_errors(predicted: Cameras, target: Cameras, protocol: str) -> np.ndarray:
    """max(rotation, direction) in degrees of every pair, one at a time, by numpy's general inverse and arccos."""
    p, t = predicted.cam_from_world.numpy(), target.cam_from_world.numpy()
    if protocol == "da3":  # the world becomes the first camera
        p, t = p @ np.linalg.inv(p[0]), t @ np.linalg.inv(t[0])
    errors = []
    for i in range(len(p)):
        for j in range(i + 1, len(p)):
            if protocol == "da3":
                a, b = np.linalg.inv(p[i]) @ p[j], np.linalg.inv(t[i]) @ t[j]
            else:
                a, b = p[i] @ np.linalg.inv(p[j]), t[i] @ np.linalg.inv(t[j])
            angle = np.degrees(Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).magnitude())
            cosine = abs(a[:3, 3] @ b[:3, 3]) / np.linalg.norm(a[:3, 3]) / np.linalg.norm(b[:3, 3])
            errors.append(max(angle, np.degrees(np.arccos(cosine))))
    return np.array(errors)


# ------------------------------------------------------------------------------------------------ AUC


def test_auc_of_hand_computed_errors():
    errors = torch.tensor([0.5, 1.5, 2.5, 50.0], dtype=torch.float64)
    # cumulative histogram 1/4, 2/4, 3/4
    assert auc_histogram(errors, 3) == pytest.approx(0.5)
    # straight lines (0,0) (.5,1/4) (1.5,2/4) (2.5,3/4), then flat to 3
    area = 0.5 * 0.25 / 2 + 1 * (0.25 + 0.5) / 2 + 1 * (0.5 + 0.75) / 2 + 0.5 * 0.75
    assert auc_trapezoid(errors, 3) == pytest.approx(area / 3)


@pytest.mark.parametrize("auc", [auc_histogram, auc_trapezoid])
def test_auc_extremes(auc):
    assert auc(torch.zeros(5), 5) == 1.0
    assert auc(torch.full((5,), 90.0), 30) == 0.0


def test_auc_of_uniform_errors_is_one_half():
    errors = (torch.arange(3000) + 0.5) / 100  # uniform on [0, 30)
    assert auc_trapezoid(errors, 30) == pytest.approx(0.5, abs=1e-3)
    assert auc_histogram(errors, 30) == pytest.approx(0.5 + 0.5 / 30, abs=1e-6)  # right ends of the bins


def test_auc_refuses_what_has_no_answer():
    for errors in (torch.zeros(0), torch.tensor([float("nan")])):
        with pytest.raises(InputError, match="at least one finite error"):
            auc_histogram(errors, 3)
    with pytest.raises(InputError, match=">= 1; got 0"):
        auc_trapezoid(torch.zeros(1), 0)


@pytest.mark.parametrize("seed", range(3))
def test_every_protocol_equals_its_reference(seed):
    predicted, target = _random(seed)
    metrics = pose_metrics(predicted, target)
    assert metrics.pairs == 21 and metrics.pairs_without_baseline == 0
    for protocol in ("da3", "vggt"):
        errors = _reference_errors(predicted, target, protocol)
        for limit in (3, 5, 15, 30):
            counts = np.histogram(errors, bins=np.arange(limit + 1))[0] / len(errors)
            assert metrics.auc[protocol][f"auc@{limit}"] == pytest.approx(np.cumsum(counts).mean(), abs=1e-12)
    errors = np.sort(_reference_errors(predicted, target, "superglue"))
    recall = np.arange(1, len(errors) + 1) / len(errors)
    grid = np.linspace(0, 30, 300_001)
    curve = np.interp(grid, np.r_[0, errors[errors < 30], 30], np.r_[0, recall[errors < 30], (errors < 30).mean()])
    assert metrics.auc["superglue"]["auc@30"] == pytest.approx(curve.mean(), abs=1e-4)


def test_the_da3_protocol_is_not_the_motion_between_cameras():
    """Its rotation errors mix in the first view, so one misjudged first camera changes pairs that do not hold it."""
    rotvecs, centers = np.random.default_rng(4).normal(size=(2, 4, 3))
    target = _cameras(rotvecs * 40, centers)
    pushed = target.cam_from_world.clone()
    pushed[0, :3, :3] = torch.from_numpy(Rotation.from_rotvec([0, 25, 0], degrees=True).as_matrix()) @ pushed[0, :3, :3]
    metrics = pose_metrics(target.with_poses(pushed), target)
    # 3 of the 6 pairs hold the first camera; the others are exact.
    assert metrics.auc["vggt"]["auc@3"] == pytest.approx(0.5)
    assert metrics.auc["superglue"]["auc@3"] == pytest.approx(0.5, abs=1e-6)
    assert metrics.auc["da3"]["auc@3"] == 0.0


def test_errors_of_one_known_turn_and_one_known_direction():
    target = _cameras(np.zeros((2, 3)), np.array([[0.0, 0, 0], [1, 0, 0]]))
    turned = _cameras(np.array([[0.0, 0, 0], [0, 0, 7]]), np.array([[0.0, 0, 0], [1, 0, 0]]))
    rotation_deg, translation_deg, baseline = relative_pose_errors(turned, target)
    assert rotation_deg.tolist() == pytest.approx([7.0]) and translation_deg.tolist() == pytest.approx([0.0], abs=1e-9)
    assert baseline.tolist() == [1.0]
    angle = np.radians(11)
    moved = _cameras(np.zeros((2, 3)), np.array([[0.0, 0, 0], [3 * np.cos(angle), 3 * np.sin(angle), 0]]))
    rotation_deg, translation_deg, _ = relative_pose_errors(moved, target)
    assert rotation_deg.tolist() == pytest.approx([0.0], abs=1e-9)
    assert translation_deg.tolist() == pytest.approx([11.0])
    backward = _cameras(np.zeros((2, 3)), np.array([[0.0, 0, 0], [-1, 0, 0]]))
    assert relative_pose_errors(backward, target)[1].tolist() == pytest.approx([0.0], abs=1e-9)  # up to sign


# ------------------------------------------------------------------------------------------------ invariance, ATE


def test_a_similarity_of_either_world_changes_nothing():
    predicted, target = _random(5)
    turn = torch.from_numpy(Rotation.from_rotvec([0.3, -1.2, 0.8]).as_matrix())
    moved = predicted.transform(Similarity(3.7, turn, torch.tensor([5.0, -2.0, 9.0])))
    before, after = (dataclasses.asdict(pose_metrics(cameras, target)) for cameras in (predicted, moved))
    assert after.pop("alignment_scale") == pytest.approx(before.pop("alignment_scale") / 3.7)
    for protocol, values in before.pop("auc").items():
        assert after["auc"][protocol] == pytest.approx(values, abs=1e-9)
    after.pop("auc")
    assert before.pop("alignment_unobservable") == after.pop("alignment_unobservable") == ()
    assert after == pytest.approx(before, rel=1e-6)


def test_perfect_poses_in_another_frame_and_in_float32():
    _, target = _random(6)
    moved = target.transform(Similarity(0.01, torch.eye(3), torch.tensor([1.0, 2.0, 3.0]))).to(torch.float32)
    metrics = pose_metrics(moved, target)
    assert all(value == pytest.approx(1.0, abs=1e-3) for values in metrics.auc.values() for value in values.values())
    assert metrics.ate_rmse < 1e-3 and metrics.alignment_scale == pytest.approx(100, rel=1e-3)
    assert metrics.rotation_median_deg < 1e-3 and metrics.translation_median_deg < 0.05


def test_ate_of_a_square_with_one_corner_lifted():
    """Corners +-1 of a square, one lifted: by symmetry scale and rotation are found by hand through numpy's SVD."""
    square = np.array([[1.0, 1, 0], [1, -1, 0], [-1, -1, 0], [-1, 1, 0]])
    lifted = square + np.array([[0, 0, 0.4], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    a, b = lifted - lifted.mean(0), square - square.mean(0)
    u, singular, vh = np.linalg.svd(b.T @ a)
    signs = np.diag([1, 1, np.sign(np.linalg.det(u @ vh))])
    scale = (singular * np.diag(signs)).sum() / (a**2).sum()
    distances = np.linalg.norm(scale * a @ (u @ signs @ vh).T - b, axis=1)
    metrics = pose_metrics(_cameras(np.zeros((4, 3)), lifted), _cameras(np.zeros((4, 3)), square))
    assert metrics.ate_rmse == pytest.approx(np.sqrt((distances**2).mean()), rel=1e-6) and metrics.ate_rmse > 0.05
    assert metrics.ate_mean == pytest.approx(distances.mean(), rel=1e-6)
    assert metrics.ate_median == pytest.approx(np.median(distances), rel=1e-6)
    assert metrics.alignment_scale == pytest.approx(scale, rel=1e-6)


def test_medians_are_those_of_the_pairs():
    predicted, target = _random(8)
    rotation_deg, translation_deg, _ = relative_pose_errors(predicted, target)
    metrics = pose_metrics(predicted, target)
    assert metrics.rotation_median_deg == pytest.approx(np.median(rotation_deg.numpy()))
    assert metrics.translation_median_deg == pytest.approx(np.median(translation_deg.numpy()))


# ------------------------------------------------------------------------------------------------ extremes


def test_two_views_align_always_and_are_json():
    predicted, target = _random(1, views=2)
    metrics = pose_metrics(predicted, target)
    assert metrics.pairs == 1 and metrics.ate_rmse == pytest.approx(0.0, abs=1e-9)
    assert metrics.alignment_unobservable == ("rotation about the line",)
    json.dumps(dataclasses.asdict(metrics), allow_nan=False)


def test_pure_rotation_counts_rotation_only():
    turns = np.array([[0.0, 0, 0], [0, 20, 0], [0, 40, 0]])
    target = _cameras(turns, np.tile([1.0, 2, 3], (3, 1))).to(torch.float32)
    predicted = _cameras(turns + np.array([[0.0, 0, 0], [0, 2, 0], [0, 0, 0]]), np.tile([4.0, -2, 8], (3, 1))).to(
        torch.float32
    )
    metrics = pose_metrics(predicted, target)
    assert metrics.pairs_without_baseline == 3 and metrics.translation_median_deg is None
    assert metrics.rotation_median_deg == pytest.approx(2.0, abs=1e-3)
    assert metrics.auc["superglue"]["auc@30"] > 0.9 and metrics.auc["vggt"]["auc@30"] > 0.9
    assert "scale" in metrics.alignment_unobservable
    json.dumps(dataclasses.asdict(metrics), allow_nan=False)


def test_predicted_cameras_that_do_not_move_have_no_direction():
    _, target = _random(2, views=3)
    poses = target.cam_from_world.clone()
    poses[:, :3, 3] = 0.0
    still = target.with_poses(poses)
    assert relative_pose_errors(still, target)[1].tolist() == [90.0, 90.0, 90.0]


def test_bad_input_is_refused():
    predicted, target = _random(3)
    with pytest.raises(InputError, match="need at least 2; got 1"):
        pose_metrics(predicted[:1], target[:1])
    with pytest.raises(InputError, match="got 6 predicted and 7 target"):
        pose_metrics(predicted[:6], target)
    with pytest.raises(InputError, match="intrinsics only"):
        pose_metrics(predicted.without_poses(), target)
