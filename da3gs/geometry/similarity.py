"""Similarity transforms b_from_a: x_b = scale * R x_a + t."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.errors import InputError
from da3gs.geometry.rotations import rotation_angle


@dataclass(frozen=True, eq=False)
class Similarity:
    """A rotation, a translation and one positive scale, float64 on the CPU.

    Attributes:
        scale: Ratio of lengths after / before, > 0.
        rotation: [3, 3], determinant +1.
        translation: [3], in units after the transform.
    """

    scale: Float[Tensor, ""]
    rotation: Float[Tensor, "3 3"]
    translation: Float[Tensor, "3"]

    def __init__(self, scale, rotation, translation):
        def as64(value):
            return torch.as_tensor(value, dtype=torch.float64).detach().cpu()

        object.__setattr__(self, "scale", as64(scale))
        object.__setattr__(self, "rotation", as64(rotation))
        object.__setattr__(self, "translation", as64(translation))
        if self.scale.shape != () or self.rotation.shape != (3, 3) or self.translation.shape != (3,):
            raise InputError(
                "a similarity needs a scalar scale, a 3x3 rotation and a translation of 3; got shapes "
                f"{tuple(self.scale.shape)}, {tuple(self.rotation.shape)}, {tuple(self.translation.shape)}"
            )
        values = torch.cat([self.scale.reshape(1), self.rotation.reshape(9), self.translation])
        if not torch.isfinite(values).all():
            raise InputError("a similarity must be finite; it holds NaN or infinity")
        if self.scale <= 0:
            raise InputError(f"the scale of a similarity must be > 0; got {float(self.scale):g}")
        error = (self.rotation @ self.rotation.T - torch.eye(3, dtype=torch.float64)).abs().max()
        if error > 1e-4 or torch.linalg.det(self.rotation) < 0:
            raise InputError(
                "the 3x3 part of a similarity must be a scaled rotation (orthogonal, determinant > 0); "
                f"R R^T is off the identity by {float(error):.2g}, det {float(torch.linalg.det(self.rotation)):.3g}"
            )

    @staticmethod
    def identity() -> "Similarity":
        return Similarity(1.0, torch.eye(3), torch.zeros(3))

    @staticmethod
    def from_matrix(matrix: Float[Tensor, "4 4"]) -> "Similarity":
        """From a 4x4 matrix [[s R, t], [0, 1]]; InputError when it is not a similarity (shear, mirror, projective)."""
        matrix = torch.as_tensor(matrix, dtype=torch.float64)
        if matrix.shape != (4, 4):
            raise InputError(f"a similarity matrix must be 4x4; got {tuple(matrix.shape)}")
        if not torch.isfinite(matrix).all():
            raise InputError("a similarity matrix must be finite; it holds NaN or infinity")
        if not torch.allclose(matrix[3], torch.tensor([0.0, 0, 0, 1], dtype=torch.float64), atol=1e-9):
            raise InputError(f"the last row of a similarity matrix must be 0 0 0 1; got {matrix[3].tolist()}")
        determinant = torch.linalg.det(matrix[:3, :3])
        if determinant <= 0:
            raise InputError(
                f"a similarity must not mirror or flatten space; its determinant is {float(determinant):g}, not > 0"
            )
        scale = determinant ** (1 / 3)
        return Similarity(scale, matrix[:3, :3] / scale, matrix[:3, 3])

    @property
    def matrix(self) -> Float[Tensor, "4 4"]:
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3] = self.scale * self.rotation
        matrix[:3, 3] = self.translation
        return matrix

    def inverse(self) -> "Similarity":
        rotation = self.rotation.T
        return Similarity(1 / self.scale, rotation, -(rotation @ self.translation) / self.scale)

    def __matmul__(self, other: "Similarity") -> "Similarity":
        """`c_from_b @ b_from_a` is c_from_a."""
        return Similarity(
            self.scale * other.scale,
            self.rotation @ other.rotation,
            self.scale * (self.rotation @ other.translation) + self.translation,
        )

    def apply(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Transform points; computed and returned in the points' dtype and device, differentiable."""
        linear = (self.scale * self.rotation).to(points)
        return points @ linear.T + self.translation.to(points)

    def is_close(self, other: "Similarity", tolerance: float = 1e-9) -> bool:
        """Whether relative scale, angle (rad) and translation (relative to its size) differ by <= tolerance."""
        return bool(
            (self.scale / other.scale - 1).abs() <= tolerance
            and rotation_angle(self.rotation, other.rotation) <= tolerance
            and (self.translation - other.translation).norm() <= tolerance * (1 + other.translation.norm())
        )
