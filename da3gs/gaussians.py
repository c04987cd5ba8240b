"""The records every stage shares: `Gaussians` and the `Scene` around them. No files, no rendering."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.errors import InputError
from da3gs.geometry import spherical_harmonics
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import quat_from_matrix, quat_multiply
from da3gs.geometry.similarity import Similarity


@dataclass(frozen=True, eq=False)
class Gaussians:
    """N 3D Gaussians in the world frame, with activated values. Gradients flow through every method.

    Attributes:
        means: [N, 3] centres.
        quats: [N, 4] rotations world_from_local, wxyz, any norm > 0.
        scales: [N, 3] standard deviations along the local axes, in world units, > 0.
        opacities: [N] in [0, 1].
        sh: [N, K, 3] spherical harmonics of degree 0-3 (K = 1, 4, 9, 16); colour = max(0, SH + 0.5).

    Raises:
        InputError: On wrong shapes or dtypes, or values that are not finite or out of range (the first one is named).
    """

    means: Float[Tensor, "N 3"]
    quats: Float[Tensor, "N 4"]
    scales: Float[Tensor, "N 3"]
    opacities: Float[Tensor, " N"]
    sh: Float[Tensor, "N K 3"]

    def __post_init__(self):
        self._check_shapes()
        self.validate()

    @classmethod
    def unchecked(cls, means, quats, scales, opacities, sh) -> "Gaussians":
        """Build without looking at values: inner loops, and network outputs that may leave their range."""
        gaussians = object.__new__(cls)
        for name, value in zip(cls.__dataclass_fields__, (means, quats, scales, opacities, sh), strict=True):
            object.__setattr__(gaussians, name, value)
        gaussians._check_shapes()
        return gaussians

    @staticmethod
    def empty(sh_degree: int = 0, device="cpu") -> "Gaussians":
        """No Gaussians at all."""
        zeros = torch.zeros
        return Gaussians(
            zeros(0, 3, device=device),
            zeros(0, 4, device=device),
            zeros(0, 3, device=device),
            zeros(0, device=device),
            zeros(0, (sh_degree + 1) ** 2, 3, device=device),
        )

    def validate(self) -> "Gaussians":
        """Return self if every value is finite and in range; InputError that names the first offender otherwise."""
        quat_norms = self.quats.detach().square().sum(-1)
        checks = (
            ("means", self.means, torch.isfinite(self.means), "finite"),
            ("quats", self.quats, torch.isfinite(self.quats), "finite"),
            ("quats", self.quats, (quat_norms > 0)[:, None], "of norm > 0"),
            ("scales", self.scales, torch.isfinite(self.scales) & (self.scales > 0), "finite and > 0"),
            ("opacities", self.opacities, (self.opacities >= 0) & (self.opacities <= 1), "in [0, 1]"),
            ("sh", self.sh, torch.isfinite(self.sh), "finite"),
        )
        for name, values, good, expected in checks:
            if not bool(good.all()):
                row = int((~good).flatten(1).any(1).nonzero()[0] if good.ndim > 1 else (~good).nonzero()[0])
                raise InputError(
                    f"Gaussians.{name} must be {expected}; {name}[{row}] is {_short(values[row])} "
                    f"({int((~good).sum())} bad of {good.numel()})"
                )
        return self

    def _check_shapes(self) -> None:
        count = len(self.means)
        expected = {"means": (count, 3), "quats": (count, 4), "scales": (count, 3), "opacities": (count,)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape:
                raise InputError(f"Gaussians.{name} must have shape {list(shape)}; got {list(value.shape)}")
        if self.sh.ndim != 3 or self.sh.shape[0] != count or self.sh.shape[2] != 3:
            raise InputError(f"Gaussians.sh must have shape [{count}, K, 3]; got {list(self.sh.shape)}")
        spherical_harmonics.degree_of(self.sh.shape[1])
        kinds = {(value.dtype, value.device) for value in self.tensors()}
        if len(kinds) > 1 or not self.means.is_floating_point():
            raise InputError(f"Gaussians must share one float dtype and device; got {sorted(map(str, kinds))}")

    def tensors(self) -> tuple[Tensor, ...]:
        """(means, quats, scales, opacities, sh)."""
        return self.means, self.quats, self.scales, self.opacities, self.sh

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        return spherical_harmonics.degree_of(self.sh.shape[1])

    @property
    def device(self) -> torch.device:
        return self.means.device

    def __getitem__(self, index) -> "Gaussians":
        """Subset by boolean mask, index tensor or slice (an int gives one Gaussian as a collection)."""
        if isinstance(index, int):
            index = [index]
        return Gaussians.unchecked(*(value[index] for value in self.tensors()))

    @staticmethod
    def cat(parts: Sequence["Gaussians"]) -> "Gaussians":
        """All Gaussians in order; lower SH degrees are padded with zeros to the highest."""
        if not parts:
            raise InputError("nothing to join: Gaussians.cat needs at least one part")
        degree = max(part.sh_degree for part in parts)
        columns = zip(*(part.with_sh_degree(degree).tensors() for part in parts), strict=True)
        return Gaussians.unchecked(*(torch.cat(column) for column in columns))

    def with_sh_degree(self, degree: int) -> "Gaussians":
        """Drop higher degrees, or pad with zeros up to `degree`."""
        coefficients = (degree + 1) ** 2
        spherical_harmonics.degree_of(coefficients)
        missing = coefficients - self.sh.shape[1]
        sh = self.sh[:, :coefficients]
        if missing > 0:
            sh = torch.cat([sh, sh.new_zeros(len(self), missing, 3)], 1)
        return Gaussians.unchecked(self.means, self.quats, self.scales, self.opacities, sh)

    def to(self, *args, **kwargs) -> "Gaussians":
        """Move to a device or float dtype, as `torch.Tensor.to`."""
        return Gaussians.unchecked(*(value.to(*args, **kwargs) for value in self.tensors()))

    def detach(self) -> "Gaussians":
        return Gaussians.unchecked(*(value.detach() for value in self.tensors()))

    def transform(self, b_from_a: Similarity) -> "Gaussians":
        """Move means, scales, rotations and SH by a similarity: the picture from moved cameras stays the same."""
        rotation = b_from_a.rotation
        quat = quat_from_matrix(rotation).to(self.quats)
        return Gaussians.unchecked(
            b_from_a.apply(self.means),
            quat_multiply(quat.expand_as(self.quats), self.quats),
            self.scales * b_from_a.scale.to(self.scales),
            self.opacities,
            spherical_harmonics.rotate(self.sh, rotation.to(self.sh)),
        )


@dataclass(frozen=True, eq=False)
class Scene:
    """What a reconstruction yields; everything in one frame and one scale.

    Attributes:
        gaussians: World frame of `cameras`.
        cameras: The V context cameras at the size of the maps.
        depth: [V, H, W] z-depth in world units; 0 where unknown.
        confidence: [V, H, W], larger is surer; no unit.
        images: [V, 3, H, W] in [0, 1].
        report: What was chosen and measured on the way; plain JSON values.
        near, far: Clipping distances in world units, or None to let the renderer choose.
    """

    gaussians: Gaussians
    cameras: Cameras
    depth: Float[Tensor, "V H W"]
    confidence: Float[Tensor, "V H W"]
    images: Float[Tensor, "V 3 H W"]
    report: dict[str, Any] = field(default_factory=dict)
    near: float | None = None
    far: float | None = None

    def __post_init__(self):
        width, height = self.cameras.size
        maps = (len(self.cameras), height, width)
        for name in ("depth", "confidence"):
            value = getattr(self, name)
            if tuple(value.shape) != maps:
                raise InputError(f"Scene.{name} must be {list(maps)} to match its cameras; got {list(value.shape)}")
            if not torch.isfinite(value).all():
                raise InputError(f"Scene.{name} must be finite; it holds NaN or infinity")
        if (self.depth < 0).any():
            raise InputError(f"Scene.depth must be >= 0; got {float(self.depth.min()):g}")
        if tuple(self.images.shape) != (maps[0], 3, *maps[1:]):
            raise InputError(f"Scene.images must be [{maps[0]}, 3, {height}, {width}]; got {list(self.images.shape)}")
        if not bool(((self.images >= 0) & (self.images <= 1)).all()):
            raise InputError(
                f"Scene.images must lie in [0, 1]; got {float(self.images.min()):g}..{float(self.images.max()):g}"
            )
        if self.cameras.cam_from_world is None:
            raise InputError("a Scene needs posed cameras")
        if self.near is not None and self.far is not None and not 0 < self.near < self.far:
            raise InputError(f"Scene needs 0 < near < far; got near {self.near:g}, far {self.far:g}")

    def transform(self, b_from_a: Similarity) -> "Scene":
        """The same scene in another frame and unit: the only place where frames and units change."""
        scale = float(b_from_a.scale)
        return replace(
            self,
            gaussians=self.gaussians.transform(b_from_a),
            cameras=self.cameras.transform(b_from_a),
            depth=self.depth * scale,
            near=None if self.near is None else self.near * scale,
            far=None if self.far is None else self.far * scale,
        )

    def __getitem__(self, mask) -> "Scene":
        """The scene with a subset of its Gaussians."""
        return replace(self, gaussians=self.gaussians[mask])

    def save(self, folder: str | os.PathLike, **options) -> None:
        """Write the scene to a folder; see `da3gs.export.scene_folder.save_scene` for files, options and errors."""
        # Files belong to a higher layer, which this one must not import: it is found by name, on use.
        import_module("da3gs.export.scene_folder").save_scene(self, folder, **options)

    @staticmethod
    def load(folder: str | os.PathLike) -> "Scene":
        """Read a folder that `save` or ``da3gs reconstruct`` wrote."""
        return import_module("da3gs.export.scene_folder").load_scene(folder)


def _short(values: Tensor) -> str:
    numbers = values.detach().flatten().tolist()
    text = ", ".join(f"{number:g}" for number in numbers[:4])
    return f"[{text}{', ...' if len(numbers) > 4 else ''}]" if len(numbers) > 1 else text
