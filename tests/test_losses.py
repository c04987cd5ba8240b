"""Losses against closed forms, and what must not matter to them."""

import math

import pytest
import torch

from da3gs import losses
from da3gs.geometry.rotations import matrix_from_quat


def poses(views, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    result = torch.eye(4).repeat(2, views, 1, 1)
    result[..., :3, :3] = matrix_from_quat(torch.randn(2, views, 4, generator=generator))
    result[..., :3, 3] = spread * torch.randn(2, views, 3, generator=generator)
    return result


def test_confident_depth_closed_form_and_best_confidence():
    depth, target = torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), 2.5)
    mask = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    confidence = torch.full((1, 1, 2, 2), 4.0, requires_grad=True)
    loss = losses.confident_depth_l1(depth, confidence, target, mask, log_weight=2.0)
    assert loss.item() == pytest.approx(4.0 * 0.5 - 2.0 * math.log(4.0))
    loss.backward()  # stationary at c = lambda / error = 4
    assert confidence.grad.abs().max() < 1e-7


def test_unknown_depth_has_no_say_even_if_not_a_number():
    depth = torch.rand(2, 3, 4, 4) + 1
    target = depth.clone() + 0.25
    mask = torch.rand(2, 3, 4, 4) > 0.4
    spoiled = torch.where(mask, target, torch.nan)
    predicted = depth.clone().requires_grad_()
    loss = losses.confident_depth_l1(predicted, torch.ones_like(depth), spoiled, mask)
    loss.backward()
    assert loss.item() == pytest.approx(0.25)
    assert torch.isfinite(predicted.grad).all() and (predicted.grad[~mask] == 0).all()
    nothing = losses.confident_depth_l1(depth, torch.ones_like(depth), spoiled, torch.zeros_like(mask))
    assert nothing.item() == 0


def test_scenes_weigh_the_same_however_few_pixels_they_have():
    depth, target = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    target[0], target[1] = 1.0, 3.0
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    mask[1, :, 1:] = False
    loss = losses.confident_depth_l1(depth, torch.ones_like(depth), target, mask)
    assert loss.item() == pytest.approx((1.0 + 3.0) / 2)


def test_depth_gradient_ignores_constants_and_sees_slopes():
    target = torch.rand(1, 2, 8, 8)
    mask = torch.ones(1, 2, 8, 8, dtype=torch.bool)
    assert losses.depth_gradient_l1(target + 5, target, mask, scales=3).item() == pytest.approx(0, abs=1e-6)
    slope = torch.arange(8.0).expand(1, 2, 8, 8)
    assert losses.depth_gradient_l1(target + 0.5 * slope, target, mask).item() == pytest.approx(0.5, rel=1e-4)


def test_point_loss_is_that_of_points():
    rays = torch.randn(1, 2, 3, 3, 6)
    depth = torch.rand(1, 2, 3, 3) + 1
    points = rays[..., 3:] + depth[..., None] * rays[..., :3]
    mask = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    assert losses.point_l1(rays, depth, points, mask).item() == 0
    assert losses.point_l1(rays, depth, points + torch.tensor([0.3, 0, 0]), mask).item() == pytest.approx(0.1, rel=1e-5)


def test_camera_loss_does_not_see_the_sign_of_a_quaternion():
    target = poses(3)
    fov = torch.rand(2, 3, 2) + 0.5
    turned = target.clone()
    turned[..., :3, :3] = matrix_from_quat(torch.tensor([-1e-4, 1.0, 0, 0])).to(target)  # near the sign flip
    other = target.clone()
    other[..., :3, :3] = matrix_from_quat(torch.tensor([1e-4, 1.0, 0, 0])).to(target)
    assert losses.camera_l1(turned, fov, other, fov).item() < 1e-3
    assert losses.camera_l1(target, fov + 0.2, target, fov).item() == pytest.approx(0.2, rel=1e-5)
    moved = target.clone()
    moved[..., 0, 3] += 0.3
    assert losses.camera_l1(moved, fov, target, fov).item() == pytest.approx(0.1, rel=1e-4)


def test_relative_pose_does_not_depend_on_frame_or_scale():
    target, predicted = poses(4, 1), poses(4, 2)
    moved = poses(1, 3)
    loss = losses.relative_pose(predicted, target)
    assert losses.relative_pose(moved @ predicted, target).item() == pytest.approx(loss.item(), rel=1e-4)
    bigger, bigger_target = predicted.clone(), target.clone()
    bigger[..., :3, 3] *= 7
    bigger_target[..., :3, 3] *= 7
    assert losses.relative_pose(bigger, bigger_target).item() == pytest.approx(loss.item(), rel=1e-4)
    assert losses.relative_pose(target, target).item() < 2e-3
    assert losses.relative_pose(target[:, :1], target[:, :1]).item() == 0


def test_relative_pose_gradient_is_finite_at_the_optimum_and_at_rest():
    target = poses(3).requires_grad_()
    losses.relative_pose(target, target.detach()).backward()
    assert torch.isfinite(target.grad).all()
    still = torch.eye(4).repeat(1, 2, 1, 1).requires_grad_()
    losses.relative_pose(still, still.detach()).backward()
    assert torch.isfinite(still.grad).all()


def test_correspondence_cross_entropy_prefers_the_answer():
    # One scene, 2 views of 3 patches; view 0 is asked about view 1, and nothing else.
    answer = torch.zeros(1, 2, 3, 2, dtype=torch.long)
    answer[0, 0, :, 1] = torch.tensor([2, 0, 1])
    mask = torch.zeros(1, 2, 3, 2, dtype=torch.bool)
    mask[0, 0, :2, 1] = True
    logits = 10 * torch.nn.functional.one_hot(answer, 3).float()
    loss, hits = losses.correspondence_cross_entropy(logits, answer, mask)
    assert hits.item() == 1 and loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-10)), rel=1e-3)
    wrong, misses = losses.correspondence_cross_entropy(logits.roll(1, -1), answer, mask)
    assert misses.item() == 0 and wrong.item() > 9.9


def test_scale_shift_invariance():
    torch.manual_seed(0)
    depth = torch.rand(2, 9, 9) + 1
    mask = torch.rand(2, 9, 9) > 0.3
    assert losses.scale_shift_invariant_l1(3 * depth + 2, depth, mask).item() < 1e-5
    other = torch.rand(2, 9, 9) + 1
    a = losses.scale_shift_invariant_l1(depth, other, mask)
    assert a > 0.3
    assert losses.scale_shift_invariant_l1(0.1 * depth + 4, 5 * other, mask).item() == pytest.approx(a.item(), rel=1e-3)
    predicted = depth.clone().requires_grad_()
    losses.scale_shift_invariant_l1(predicted, other, mask).backward()
    assert predicted.grad[mask].abs().sum() > 0 and (predicted.grad[~mask] == 0).all()
    empty = losses.scale_shift_invariant_l1(predicted, other, torch.zeros_like(mask))
    assert empty.item() == 0 and empty.requires_grad


def test_masked_mse():
    rgb, target = torch.zeros(1, 2, 2, 3), torch.ones(1, 2, 2, 3)
    mask = torch.tensor([[[True, False], [False, False]]])
    target[0, 1] = 100
    assert losses.masked_mse(rgb, target, mask).item() == 1
    assert losses.masked_mse(rgb, target, torch.zeros_like(mask)).item() == 0
