import torch
from hypothesis import given
from strategies_geometry import generator, rotations, seeds

from da3gs.geometry.rotations import (
    matrix_from_quat,
    nearest_rotation,
    quat_from_matrix,
    quat_multiply,
    rotation_angle,
    wxyz_from_xyzw,
    xyzw_from_wxyz,
)


@given(seeds)
def test_matrix_is_a_rotation_for_any_quaternion_norm(seed):
    quat = torch.randn(20, 4, generator=generator(seed), dtype=torch.float64)
    matrix = matrix_from_quat(quat * 37.0)
    eye = torch.eye(3, dtype=torch.float64)
    assert (matrix @ matrix.transpose(1, 2) - eye).abs().max() < 1e-12
    assert (torch.linalg.det(matrix) - 1).abs().max() < 1e-12
    assert (matrix - matrix_from_quat(-0.2 * quat)).abs().max() < 1e-12


@given(seeds)
def test_quaternion_round_trip_and_product(seed):
    a, b = rotations(seed, 20), rotations(seed + 1, 20)
    qa, qb = quat_from_matrix(a), quat_from_matrix(b)
    assert (matrix_from_quat(qa) - a).abs().max() < 1e-12
    assert (qa[:, 0] >= 0).all() and (qa.norm(dim=1) - 1).abs().max() < 1e-12
    assert (matrix_from_quat(quat_multiply(qa, qb)) - a @ b).abs().max() < 1e-12


def test_half_turns_and_identity_are_exact_with_finite_gradients():
    for axis in range(3):
        matrix = -torch.eye(3, dtype=torch.float64)
        matrix[axis, axis] = 1
        matrix.requires_grad_()
        quat = quat_from_matrix(matrix)
        expected = torch.zeros(4, dtype=torch.float64)
        expected[axis + 1] = 1
        assert torch.equal(quat.detach(), expected)
        quat.sum().backward()
        assert torch.isfinite(matrix.grad).all()
    eye = torch.eye(3, dtype=torch.float64, requires_grad=True)
    quat_from_matrix(eye).sum().backward()
    assert torch.isfinite(eye.grad).all()


def test_component_order_of_foreign_quaternions():
    wxyz = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert torch.equal(xyzw_from_wxyz(wxyz), torch.tensor([0.2, 0.3, 0.4, 0.1]))
    assert torch.equal(wxyz_from_xyzw(xyzw_from_wxyz(wxyz)), wxyz)


def test_rotation_angle_keeps_precision_near_zero_and_pi():
    for angle in (0.0, 1e-9, 1e-4, 1.0, 3.14, torch.pi - 1e-9):
        half = torch.tensor(angle / 2, dtype=torch.float64)
        turn = matrix_from_quat(torch.stack([half.cos(), half.sin(), half * 0, half * 0]))
        measured = rotation_angle(turn, torch.eye(3, dtype=torch.float64))
        assert abs(float(measured) - angle) < 1e-12


@given(seeds)
def test_nearest_rotation_undoes_stretch_and_never_mirrors(seed):
    rotation = rotations(seed)
    stretch = torch.diag(torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64))
    assert (nearest_rotation(rotation @ stretch) - rotation).abs().max() < 1e-12
    mirror = torch.randn(3, 3, generator=generator(seed), dtype=torch.float64)
    assert abs(float(torch.linalg.det(nearest_rotation(mirror))) - 1) < 1e-12
