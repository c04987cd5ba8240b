"""Real spherical harmonics of degree 0-3 in the convention of 3D Gaussian Splatting.

Basis order per degree l is m = -l..l with the signs (-1)^m of the original renderer (degree 1: -y, z, -x). Coefficients
are [..., K, 3] with K = (degree + 1)^2 and colour last. Colour of a splat = max(0, evaluate(sh, direction) + 0.5), with
the direction from the camera centre to the splat (Kerbl et al. 2023).
"""

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.errors import InputError
from da3gs.geometry.conventions import MAX_SH_DEGREE

C0 = 0.28209479177387814  # 1 / (2 sqrt(pi))


def degree_of(coefficients: int) -> int:
    """Degree of a number of coefficients: 1, 4, 9, 16 -> 0, 1, 2, 3."""
    for degree in range(MAX_SH_DEGREE + 1):
        if (degree + 1) ** 2 == coefficients:
            return degree
    raise InputError(f"the number of SH coefficients must be 1, 4, 9 or 16 (degree 0-3); got {coefficients}")


def basis(degree: int, directions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch K"]:
    """The (degree + 1)^2 basis functions at unit vectors."""
    if not 0 <= degree <= MAX_SH_DEGREE:
        raise InputError(f"SH degree must be 0-{MAX_SH_DEGREE}; got {degree}")
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, C0)]
    if degree >= 1:
        c1 = 0.48860251190291987  # sqrt(3 / 4 pi)
        values += [-c1 * y, c1 * z, -c1 * x]
    if degree >= 2:
        values += [
            1.0925484305920792 * x * y,  # sqrt(15 / 4 pi)
            -1.0925484305920792 * y * z,
            0.9461746957575601 * z * z - 0.31539156525252005,  # sqrt(5 / 16 pi) (3 z^2 - 1)
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (x * x - y * y),
        ]
    if degree >= 3:
        values += [
            -0.5900435899266435 * y * (3 * x * x - y * y),  # sqrt(35 / 32 pi)
            2.890611442640554 * x * y * z,  # sqrt(105 / 4 pi)
            -0.4570457994644658 * y * (5 * z * z - 1),  # sqrt(21 / 32 pi)
            0.3731763325901154 * z * (5 * z * z - 3),  # sqrt(7 / 16 pi)
            -0.4570457994644658 * x * (5 * z * z - 1),
            1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ]
    return torch.stack(values, -1)


def evaluate(sh: Float[Tensor, "*#batch K 3"], directions: Float[Tensor, "*#batch 3"]) -> Float[Tensor, "*_ 3"]:
    """Sum of coefficients times basis at directions of any length > 0; without the renderer's + 0.5 and clamp."""
    unit = directions / directions.norm(dim=-1, keepdim=True)
    return (basis(degree_of(sh.shape[-2]), unit)[..., None] * sh).sum(-2)


def rotate(sh: Float[Tensor, "*batch K 3"], rotation: Float[Tensor, "*#batch 3 3"]) -> Float[Tensor, "*batch K 3"]:
    """Coefficients of the function turned by R: evaluate(rotate(c, R), d) == evaluate(c, R^T d). Differentiable.

    Each degree maps to itself, so for fixed directions d_i: Y_l(d_i) c' = Y_l(R^T d_i) c, solved exactly by the
    constant pseudo-inverse of Y_l(d_i). No angles are involved, so nothing degenerates near the identity.
    """
    degree = degree_of(sh.shape[-2])
    parts = [sh[..., :1, :]]
    for level in range(1, degree + 1):
        band = slice(level**2, (level + 1) ** 2)
        parts.append(rotation_matrix(level, rotation) @ sh[..., band, :])
    return torch.cat(parts, -2)


def rotation_matrix(level: int, rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch M M"]:
    """The (2l+1) x (2l+1) matrix D_l(R) that rotates the coefficients of degree `level` by R."""
    directions, inverse = _sampling(level)
    turned = directions.to(rotation) @ rotation  # rows R^T d_i
    return inverse.to(rotation) @ basis(level, turned)[..., level**2 :]


@cache
def _sampling(level: int) -> tuple[Tensor, Tensor]:
    """32 directions spread over the sphere (golden-angle spiral) and the pseudo-inverse of Y_l(d_i), float64."""
    index = torch.arange(32, dtype=torch.float64)
    z = 1 - (2 * index + 1) / len(index)
    angle = index * math.pi * (3 - math.sqrt(5))
    radius = (1 - z * z).sqrt()
    directions = torch.stack([radius * angle.cos(), radius * angle.sin(), z], -1)
    return directions, torch.linalg.pinv(basis(level, directions)[:, level**2 :])


def dc_from_rgb(rgb: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Degree-0 coefficients of a colour in [0, 1]."""
    return (rgb - 0.5) / C0


def rgb_from_dc(dc: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Colour of degree-0 coefficients; may leave [0, 1]."""
    return dc * C0 + 0.5
