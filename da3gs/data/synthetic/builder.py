"""SceneBuilder: the words layouts are written in (boxes, columns, balls, materials, lights), and the scene they make.

World: metres, z up. A `Place` is a local frame on the floor, turned about z, in which furniture is described.
"""

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from da3gs.data.synthetic.backdrops import FIRST_OBJECT_ID, Ground, Room
from da3gs.data.synthetic.solids import Solids
from da3gs.data.synthetic.textures import KINDS, RELIEF_RANGE, TextureBank, texture_layer

Real = float | int
Vec3 = tuple[Real, Real, Real]

# Slow changes of tone: waves over the surface, in radians per metre.
BLOTCH_WAVES = ((1.7, 0.6), (-0.9, 2.3), (3.1, -2.2), (5.3, 4.1))

# Metres per tile, and how shiny: (strength, exponent).
_TILE_M = {
    "plaster": 2.5, "concrete": 2.5, "marble": 1.6, "cobble": 2.2, "brick": 1.5, "tiles": 1.6, "wood": 1.1,
    "fabric": 0.7, "carpet": 2.0, "metal": 1.2, "leaves": 1.4, "foliage": 0.9, "grass": 1.3, "gravel": 1.5,
    "bark": 0.9, "text": 0.6, "spines": 0.7, "photo": 1.5, "facade": 9.0,
}  # fmt: skip
_SHINE = {"marble": (0.35, 60), "tiles": (0.3, 80), "wood": (0.12, 25), "metal": (0.5, 40), "photo": (0.1, 60)}
_RELIEF_M = {
    "plaster": 0.004, "concrete": 0.006, "cobble": 0.018, "brick": 0.012, "tiles": 0.005, "wood": 0.004,
    "fabric": 0.004,
    "carpet": 0.004, "metal": 0.002, "leaves": 0.01, "foliage": 0.03, "grass": 0.02, "gravel": 0.015, "bark": 0.025,
    "spines": 0.008, "facade": 0.03,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Materials:
    """M materials.

    Attributes:
        layer: [M] texture of the bank. tile: [M, 2] metres per repetition along u and v. turned: [M] u and v swapped.
        tint: [M, 3] linear factor. saturation: [M] 0 grey, 1 as drawn. shine, gloss: [M] strength and exponent of the
        highlight. relief: [M] metres per relief unit. emission: [M] radiance of the surface itself, relative to white
        paper under unit light. blotch: [M] strength of slow changes of tone that hide the repetition.
    """

    layer: Int64[Tensor, " M"]
    tile: Float[Tensor, "M 2"]
    turned: Float[Tensor, " M"]
    tint: Float[Tensor, "M 3"]
    saturation: Float[Tensor, " M"]
    shine: Float[Tensor, " M"]
    gloss: Float[Tensor, " M"]
    relief: Float[Tensor, " M"]
    emission: Float[Tensor, " M"]
    blotch: Float[Tensor, " M"]


@dataclass(frozen=True)
class Light:
    """A small ball that shines: at a place, or so far away that it acts as the sun (no fall-off)."""

    position: Vec3
    color: Vec3
    radius: Real
    sun: bool = False


@dataclass(frozen=True)
class WindowGlow:
    """Soft light of a bright opening: a rectangle seen from inside, with no shadows cast."""

    center: Vec3
    normal: Vec3
    area: Real
    color: Vec3


@dataclass(frozen=True)
class Sky:
    zenith: Vec3 = (0.25, 0.45, 0.9)
    horizon: Vec3 = (0.75, 0.85, 1.0)
    sun_direction: Vec3 = (0.4, 0.3, 0.8)
    sun_color: Vec3 = (1.0, 0.95, 0.85)
    clouds: Real = 0.5
    cloud_shift: tuple[Real, Real] = (0.0, 0.0)
    haze: Real = 0.0


@dataclass(frozen=True, eq=False)
class SyntheticScene:
    """A scene without cameras: everything needed to render it from anywhere at any size.

    Attributes:
        seed, style, difficulty: What it was made from.
        solids, backdrop, materials, bank: Geometry and surfaces.
        lights, glows, ambient_up, ambient_down, sky: Light; `ambient_up` reaches surfaces that face up.
        stage_low, stage_high: Corners of the region where cameras may be, in metres.
        focus: [F, 3] points worth looking at.
        scale: Typical viewing distance in metres.
    """

    seed: int
    style: str
    difficulty: Real
    solids: Solids
    backdrop: Room | Ground
    materials: Materials
    bank: TextureBank
    lights: tuple[Light, ...]
    glows: tuple[WindowGlow, ...]
    ambient_up: Vec3
    ambient_down: Vec3
    sky: Sky
    stage_low: Vec3
    stage_high: Vec3
    focus: Float[Tensor, "F 3"]
    scale: Real

    @property
    def device(self) -> torch.device:
        return self.focus.device

    @property
    def indoors(self) -> bool:
        return isinstance(self.backdrop, Room)

    @functools.cached_property
    def shading_arrays(self) -> tuple:
        """What `shading_cpu.radiance` takes of the scene."""
        look, bank, air = self.materials, self.bank, (0.0, 0.0, 0.0, 0.0, 0.0)
        if not self.indoors:
            air = (self.sky.haze, self.backdrop.radius, *self.sky.horizon)
        lights = [(*light.position, *light.color, float(light.sun)) for light in self.lights]
        glows = [(*glow.center, *glow.normal, glow.area, *glow.color) for glow in self.glows]
        return (
            bank.texels.view(torch.uint8).view(-1, 4).numpy(), bank.level_start.numpy(), np.float32(RELIEF_RANGE),
            *(getattr(look, f.name).contiguous().numpy() for f in fields(look)),
            np.array(BLOTCH_WAVES, np.float32),
            np.array(lights, np.float32).reshape(-1, 7), np.array(glows, np.float32).reshape(-1, 10),
            *(np.array(values, np.float32) for values in (self.ambient_up, self.ambient_down, air)),
        )  # fmt: skip

    def to(self, device) -> "SyntheticScene":
        return replace(
            self,
            solids=_moved(self.solids, device),
            backdrop=_moved(self.backdrop, device),
            materials=_moved(self.materials, device),
            bank=self.bank.to(device),
            focus=self.focus.to(device),
        )


def _moved(record, device):
    tensors = {f.name: getattr(record, f.name) for f in fields(record) if isinstance(getattr(record, f.name), Tensor)}
    return replace(record, **{name: value.to(device) for name, value in tensors.items()})


@dataclass
class Place:
    """A local frame at (x, y, z) turned by `yaw` about z. All solids put into it share one object id."""

    builder: "SceneBuilder"
    x: Real
    y: Real
    z: Real
    yaw: Real
    object_id: int

    def world(self, point: Sequence[Real]) -> Vec3:
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return (self.x + c * point[0] - s * point[1], self.y + s * point[0] + c * point[1], self.z + point[2])

    def box(self, center: Vec3, half: Vec3, material: int, *, yaw: Real = 0.0, pitch: Real = 0.0) -> None:
        """A box; `pitch` tips it about its own x axis."""
        self.builder.boxes.append(self._row(center, half, material, yaw, pitch, (1.0, 0.0, 1.0)))

    def ball(self, center: Vec3, radii: Vec3, material: int, *, yaw: Real = 0.0) -> None:
        """An ellipsoid."""
        self.builder.rounds.append(self._row(center, radii, material, yaw, 0.0, (1.0, 0.0, 1.0)))

    def column(
        self, base: Vec3, radius: Real, height: Real, material: int, *, top: Real = 1.0, pitch: Real = 0.0
    ) -> None:
        """An upright column whose radius at the top is `top` times that at the base (0: a pointed dome)."""
        quadric = (0.0, (1 - top**2) / 2, (1 + top**2) / 2)
        center = (base[0], base[1], base[2] + height / 2)
        row = self._row(center, (radius, radius, height / 2), material, 0.0, pitch, quadric)
        self.builder.rounds.append(row)

    def dome(self, base: Vec3, radii: Vec3, material: int) -> None:
        """The upper half of an ellipsoid; `radii[2]` is its height."""
        center = (base[0], base[1], base[2] + radii[2] / 2)
        row = self._row(center, (radii[0], radii[1], radii[2] / 2), material, 0.0, 0.0, (0.25, 0.5, 0.75))
        self.builder.rounds.append(row)

    def focus(self, point: Vec3) -> None:
        self.builder.focus.append(self.world(point))

    def _row(self, center, half, material, yaw, pitch, quadric):
        c, s = math.cos(self.yaw + yaw), math.sin(self.yaw + yaw)
        cp, sp = math.cos(pitch), math.sin(pitch)
        axes = (c, s, 0.0, -s * cp, c * cp, sp, s * sp, -c * sp, cp)
        anywhere = (self.builder.rng.random(), self.builder.rng.random())
        offset = self.builder.uv_offsets.get(material, anywhere)
        return (*self.world(center), *axes, *half, *quadric, material, self.object_id, *offset)


@dataclass
class SceneBuilder:
    """Collects what a layout puts down."""

    rng: random.Random
    difficulty: Real
    photo_layers: tuple[int, ...] = ()
    boxes: list[tuple] = field(default_factory=list)
    rounds: list[tuple] = field(default_factory=list)
    rows: list[tuple] = field(default_factory=list)
    uv_offsets: dict[int, tuple[Real, Real]] = field(default_factory=dict)
    taken: list[tuple[Real, Real, Real]] = field(default_factory=list)
    focus: list[Vec3] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)
    glows: list[WindowGlow] = field(default_factory=list)
    backdrop: Room | Ground | None = None
    waves: list[tuple[float, tuple[Real, Real], float]] = field(default_factory=list)
    ambient_up: Vec3 = (0.3, 0.3, 0.3)
    ambient_down: Vec3 = (0.2, 0.2, 0.2)
    sky: Sky = Sky()
    stage: tuple[Vec3, Vec3] = ((-1, -1, 1), (1, 1, 2))
    scale: Real = 3.0
    objects: int = FIRST_OBJECT_ID

    # ------------------------------------------------------------------------------------ chance

    def between(self, low: Real, high: Real) -> float:
        return self.rng.uniform(low, high)

    def eased(self, easy: Real, hard: Real) -> float:
        """A value that moves from `easy` to `hard` with the difficulty."""
        return easy + (hard - easy) * self.difficulty

    def chance(self, probability: Real) -> bool:
        return self.rng.random() < probability

    def pick(self, options):
        return self.rng.choice(options)

    # ------------------------------------------------------------------------------------ surfaces

    def material(
        self,
        kind: str | Sequence[str],
        *,
        size: Real | None = None,
        fit: tuple[Real, Real] | None = None,
        tint: Vec3 | None = None,
        shine: Real | None = None,
        emission: Real = 0.0,
        turned: bool | None = None,
    ) -> int:
        """A new material of a kind (or one of several).

        Args:
            size: Factor on the usual size of the pattern.
            fit: Width and height in metres of the face that one tile shall fill (pictures, facades).
            tint: Linear colour factor; drawn near white if not given.
            emission: Radiance; 0 for everything but lamps.
        """
        rng = self.rng
        kind = kind if isinstance(kind, str) else rng.choice(list(kind))
        layer = texture_layer(kind, rng.randrange(1 << 16))
        if self.photo_layers and (kind == "photo" or rng.random() < 0.25):
            layer = rng.choice(self.photo_layers)
        tile = _TILE_M[kind] * (size if size is not None else math.exp(rng.uniform(-0.35, 0.35)))
        if tint is None:
            gain = rng.uniform(0.65, 1.15)
            tint = tuple(gain * rng.uniform(0.88, 1.12) for _ in range(3))
        strength, gloss = _SHINE.get(kind, (0.03, 15))
        self.rows.append((
            layer, *(fit or (tile, tile)),
            float(turned if turned is not None else kind in ("wood", "metal") and fit is None and rng.random() < 0.5),
            *tint, rng.uniform(0.5, 1.1),
            strength * rng.uniform(0.5, 1.5) if shine is None else shine, gloss * rng.uniform(0.6, 1.5),
            _RELIEF_M.get(kind, 0.0), emission, 0.0 if fit else rng.uniform(0.05, 0.2),
        ))  # fmt: skip
        index = len(self.rows) - 1
        if fit is not None:
            self.uv_offsets[index] = (0.5, 0.5)  # the middle of the picture in the middle of the face
        return index

    def tone(self, low: Real = 0.35, high: Real = 1.1) -> Vec3:
        """A muted tint."""
        base = self.between(low, high)
        return tuple(base * self.between(0.75, 1.2) for _ in range(3))

    # ------------------------------------------------------------------------------------ places

    def place(self, x: Real, y: Real, z: Real | None = None, yaw: Real = 0.0) -> Place:
        """A new object's frame; on the ground when z is not given."""
        if z is None:
            z = self.ground_height(x, y)
        self.objects += 1
        return Place(self, x, y, z, yaw, self.objects - 1)

    def ground_height(self, x: Real, y: Real) -> Real:
        return sum(a * math.sin(u * x + v * y + phase) for a, (u, v), phase in self.waves)

    def free_spot(self, radius: Real, region: tuple[Real, Real, Real, Real], tries: int = 30):
        """(x, y) where a disc of this radius touches nothing placed before, or None; remembers it."""
        low_x, high_x, low_y, high_y = region
        for _ in range(tries):
            x, y = self.between(low_x, high_x), self.between(low_y, high_y)
            if all(math.hypot(x - a, y - b) > radius + r for a, b, r in self.taken):
                self.taken.append((x, y, radius))
                return x, y
        return None

    def occupy(self, x: Real, y: Real, radius: Real) -> None:
        self.taken.append((x, y, radius))

    # ------------------------------------------------------------------------------------ result

    def build(self, seed: int, style: str, bank: TextureBank) -> SyntheticScene:
        table = torch.tensor(self.boxes + self.rounds, dtype=torch.float32)
        half, quadric = table[:, 12:15], table[:, 15:18]
        # A round reaches at most sqrt(k + |b|) half extents across its axis; an ellipsoid no farther than its longest.
        is_box = torch.arange(len(table)) < len(self.boxes)
        widest = half[:, :2].amax(-1) * (quadric[:, 2] + quadric[:, 1].abs()).sqrt()
        radius = torch.where(quadric[:, 0] == 1, half.amax(-1), torch.hypot(widest, half[:, 2]))
        radius = torch.where(is_box, half.norm(dim=-1), radius) * 1.001
        rows = torch.tensor(self.rows, dtype=torch.float32)
        return SyntheticScene(
            seed=seed,
            style=style,
            difficulty=self.difficulty,
            solids=Solids(
                boxes=len(self.boxes),
                center=table[:, :3].contiguous(),
                axes=table[:, 3:12].reshape(-1, 3, 3),
                half=half.contiguous(),
                quadric=quadric.contiguous(),
                material=table[:, 18].long(),
                object_id=table[:, 19].long(),
                uv_offset=table[:, 20:22].contiguous(),
                radius=radius,
            ),
            backdrop=self.backdrop,
            materials=Materials(
                rows[:, 0].long(), rows[:, 1:3], rows[:, 3], rows[:, 4:7], *rows[:, 7:].contiguous().unbind(-1)
            ),
            bank=bank,
            lights=tuple(self.lights),
            glows=tuple(self.glows),
            ambient_up=self.ambient_up,
            ambient_down=self.ambient_down,
            sky=self.sky,
            stage_low=self.stage[0],
            stage_high=self.stage[1],
            focus=torch.tensor(self.focus, dtype=torch.float32),
            scale=self.scale,
        )


assert set(_TILE_M) == set(KINDS)
