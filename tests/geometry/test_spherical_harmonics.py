import numpy as np
import pytest
import torch
from hypothesis import given
from scipy.special import sph_harm_y
from strategies_geometry import generator, rotations, seeds

from da3gs.errors import InputError
from da3gs.geometry import spherical_harmonics as sh


def _directions(seed, count=50):
    directions = torch.randn(count, 3, generator=generator(seed), dtype=torch.float64)
    return directions / directions.norm(dim=1, keepdim=True)


def test_basis_equals_scipy_with_the_signs_of_the_renderer():
    """Real harmonics from scipy's complex ones (which carry the phase (-1)^m)."""
    directions = _directions(0)
    x, y, z = directions.unbind(1)
    theta, phi = torch.acos(z).numpy(), torch.atan2(y, x).numpy()
    expected = []
    for degree in range(4):
        for order in range(-degree, degree + 1):
            value = sph_harm_y(degree, abs(order), theta, phi)
            if order == 0:
                expected.append(value.real)
            else:
                expected.append(2**0.5 * (value.imag if order < 0 else value.real))
    difference = sh.basis(3, directions) - torch.tensor(np.stack(expected, -1))
    assert difference.abs().max() < 1e-12


@given(seeds)
def test_rotation_against_evaluation(seed):
    """evaluate(rotate(c, R), d) == evaluate(c, R^T d), degree 3, float64."""
    rotation, directions = rotations(seed, 4), _directions(seed, 4)
    coefficients = torch.randn(4, 16, 3, generator=generator(seed), dtype=torch.float64)
    turned_back = (rotation.transpose(1, 2) @ directions[..., None]).squeeze(-1)
    difference = sh.evaluate(sh.rotate(coefficients, rotation), directions) - sh.evaluate(coefficients, turned_back)
    assert difference.abs().max() < 1e-12


@given(seeds)
def test_rotation_is_a_representation(seed):
    a, b = rotations(seed), rotations(seed + 1)
    for level in (1, 2, 3):
        da, db = sh.rotation_matrix(level, a), sh.rotation_matrix(level, b)
        assert (sh.rotation_matrix(level, a @ b) - da @ db).abs().max() < 1e-12
        assert (da @ da.T - torch.eye(2 * level + 1, dtype=torch.float64)).abs().max() < 1e-12


def test_tiny_rotations_stay_accurate_in_float32():
    angle = torch.tensor(1e-4)
    rotation = torch.tensor([[1, -1e-4, 0], [1e-4, 1, 0], [0, 0, 1]])
    moved = sh.rotation_matrix(1, rotation) - torch.eye(3)
    exact = torch.tensor([[0, 0, angle], [0, 0, 0], [-angle, 0, 0]])  # basis order y, z, x
    assert (moved.abs() - exact.abs()).abs().max() < 3e-7


def test_colour_and_degree_zero():
    rgb = torch.rand(5, 3, dtype=torch.float64)
    dc = sh.dc_from_rgb(rgb)
    assert torch.allclose(sh.evaluate(dc[:, None], _directions(1, 5)) + 0.5, rgb, atol=1e-15)
    assert torch.allclose(sh.rgb_from_dc(dc), rgb, atol=1e-15)


def test_unknown_sizes_are_refused():
    with pytest.raises(InputError, match="1, 4, 9 or 16"):
        sh.degree_of(5)
    with pytest.raises(InputError, match="degree must be 0-3"):
        sh.basis(4, _directions(0))
