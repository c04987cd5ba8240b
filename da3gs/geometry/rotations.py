"""Rotations: unit quaternions (wxyz) and matrices. Any float dtype, any leading dimensions, differentiable."""

import torch
from jaxtyping import Float
from torch import Tensor


def matrix_from_quat(quat: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrix of a quaternion (w, x, y, z) of any norm > 0."""
    w, x, y, z = quat.unbind(-1)
    s = 2.0 / (quat * quat).sum(-1)
    rows = [
        1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w),
        s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w),
        s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(*quat.shape[:-1], 3, 3)


def quat_from_matrix(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternion (w, x, y, z), w >= 0, of a rotation matrix.

    Of the four algebraically equal expressions the one with the largest divisor is taken, so it is accurate for every
    angle; gradients are finite everywhere.
    """
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = matrix.reshape(*matrix.shape[:-2], 9).unbind(-1)
    squares = torch.stack(
        [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], -1
    )  # (2w)^2 (2x)^2 (2y)^2 (2z)^2
    # A double-where keeps sqrt's infinite derivative at 0 out of the graph.
    positive = squares > 0
    twice = torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
    candidates = torch.stack(
        [
            torch.stack([twice[..., 0] ** 2, m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, twice[..., 1] ** 2, m10 + m01, m02 + m20], -1),
            torch.stack([m02 - m20, m10 + m01, twice[..., 2] ** 2, m12 + m21], -1),
            torch.stack([m10 - m01, m20 + m02, m21 + m12, twice[..., 3] ** 2], -1),
        ],
        -2,
    )
    candidates = candidates / (2.0 * twice[..., None].clamp(min=0.1))  # the chosen one is always >= 1
    best = twice.argmax(-1)[..., None, None].expand(*twice.shape[:-1], 1, 4)
    quat = candidates.gather(-2, best).squeeze(-2)
    return torch.where(quat[..., :1] < 0, -quat, quat)


def quat_multiply(a: Float[Tensor, "*batch 4"], b: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Hamilton product a b (wxyz): the rotation b followed by a."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def wxyz_from_xyzw(quat: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Reorder the scalar-last quaternion of a foreign format to ours."""
    return quat.roll(1, -1)


def xyzw_from_wxyz(quat: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Reorder to a scalar-last quaternion, as the DA3 camera head uses."""
    return quat.roll(-1, -1)


def cross_matrix(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """[v]x, so that [v]x w = v x w; its matrix exponential turns about v by |v| radians."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def rigid_from_twist(twist: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 4 4"]:
    """The rigid motion exp of a twist: rotation vector (radians), then translation. Gradients flow, at zero too."""
    generator = twist.new_zeros(*twist.shape[:-1], 4, 4)
    generator[..., :3, :3] = cross_matrix(twist[..., :3])
    generator[..., :3, 3] = twist[..., 3:]
    return torch.linalg.matrix_exp(generator)


def rotation_angle(a: Float[Tensor, "*batch 3 3"], b: Float[Tensor, "*#batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Angle in radians, in [0, pi], of the rotation between a and b.

    atan2(|R - R^T|, trace - 1) keeps full precision near 0 and near pi, where arccos loses half the digits.
    """
    relative = a @ b.transpose(-1, -2)
    skew = relative - relative.transpose(-1, -2)
    sine = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1).norm(dim=-1)
    cosine = relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1
    return torch.atan2(sine, cosine)


def nearest_rotation(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation closest to a matrix in the Frobenius norm (SVD, determinant +1).

    The chordal mean of several rotations is `nearest_rotation(sum of the matrices)`.
    """
    u, _, vh = torch.linalg.svd(matrix)
    sign = torch.ones(matrix.shape[:-1], dtype=matrix.dtype, device=matrix.device)
    sign[..., 2] = torch.sign(torch.linalg.det(u @ vh))
    return (u * sign[..., None, :]) @ vh
