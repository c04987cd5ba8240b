"""What surrounds the solids: the shell of a room with windows, flat ground, or rolling terrain (a height field).

The world is in metres, z up. Letters: N rays or points.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from da3gs.data.synthetic import backdrops_cpu
from da3gs.data.synthetic.solids import use_loops

# Object ids of the backdrop; objects follow.
GROUND_ID, WALL_ID, CEILING_ID, FIRST_OBJECT_ID = 0, 1, 2, 3

_MARCH_STEPS = 20
_BISECTIONS = 4
_NEWTON_STEPS = 3


@dataclass(frozen=True, eq=False)
class Room:
    """The inside of a box [-hx, hx] x [-hy, hy] x [0, height] with rectangular openings in its walls.

    Attributes:
        low, high: [3] corners in metres.
        openings: [O, 5] rectangles: wall (0: x = low, 1: x = high, 2: y = low, 3: y = high), then the range along the
            wall and the range of heights.
        materials: [3] of floor, walls, ceiling.
    """

    low: Float[Tensor, "3"]
    high: Float[Tensor, "3"]
    openings: Float[Tensor, "O 5"]
    materials: Int64[Tensor, "3"]

    def trace(
        self, origins: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"], limit: Float[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Ray parameter at the shell, from inside; infinite through an opening."""
        t, _, open_air = self._leave(origins, directions)
        return t.masked_fill(open_air, torch.inf)

    def lets_through(self, points: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> Bool[Tensor, " N"]:
        """Whether rays from inside leave the room through an opening."""
        return self._leave(points, directions)[2]

    def _leave(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ray parameter at the shell, face (2 axis + (1 at the high end)), and whether there is an opening."""
        if use_loops(directions):
            t, side = torch.empty(len(directions)), torch.empty(len(directions), dtype=torch.long)
            open_air = torch.empty(len(directions), dtype=torch.bool)
            rays = (x.contiguous().numpy() for x in (origins, directions))
            walls = (x.numpy() for x in (self.low, self.high, self.openings))
            backdrops_cpu.leave(*rays, *walls, t.numpy(), side.numpy(), open_air.numpy())
            return t, side, open_air
        safe = torch.where(directions.abs() < 1e-9, 1e-9, directions)
        wall = torch.where(safe > 0, self.high, self.low)
        t, axis = ((wall - origins) / safe).min(-1)
        point = origins + t[:, None] * directions
        side = 2 * axis + (safe.gather(1, axis[:, None]).squeeze(1) > 0)
        along = torch.where(axis == 0, point[:, 1], point[:, 0])
        open_air = torch.zeros_like(t, dtype=torch.bool)
        for wall_index, first, last, low, high in self.openings.unbind(0) if len(self.openings) else ():
            inside = (along > first) & (along < last) & (point[:, 2] > low) & (point[:, 2] < high)
            open_air |= inside & (side == wall_index)
        return t, side, open_air

    def surface(
        self, points: Float[Tensor, "N 3"]
    ) -> tuple[Float[Tensor, "N 3 3"], Float[Tensor, "N 2"], Int64[Tensor, " N"], Int64[Tensor, " N"]]:
        """Texture frames (rows: u, v, normal into the room), uv in metres, materials and object ids on the shell."""
        gaps = torch.cat([points - self.low, self.high - points], -1)
        face = gaps.argmin(-1)  # x low, y low, z low, x high, y high, z high
        axis, is_high = face % 3, face >= 3
        eye = torch.eye(3, device=points.device, dtype=points.dtype)
        normal = eye[axis] * torch.where(is_high, -1.0, 1.0)[:, None].to(points)
        upright = axis < 2
        u_direction = eye[torch.where(axis == 0, 1, 0)]
        v_direction = torch.where(upright[:, None], -eye[2], eye[1])
        u = torch.where(axis == 0, points[:, 1], points[:, 0])
        v = torch.where(upright, -points[:, 2], points[:, 1])
        part = torch.where(upright, WALL_ID, torch.where(is_high, CEILING_ID, GROUND_ID))
        frame = torch.stack([u_direction, v_direction, normal], 1)
        return frame, torch.stack([u, v], -1), self.materials[part], part

    def clearance(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        """Distance to the shell; negative outside."""
        return torch.minimum(points - self.low, self.high - points).amin(-1)


@dataclass(frozen=True, eq=False)
class Ground:
    """Ground z = sum_i a_i sin(k_i . (x, y) + p_i) within a radius; flat when there is no wave.

    Attributes:
        amplitude, phase: [W]; wave_vector: [W, 2] in radians per metre.
        radius: Metres; beyond it is sky, hidden by haze.
        material: [1].
    """

    amplitude: Float[Tensor, " W"]
    wave_vector: Float[Tensor, "W 2"]
    phase: Float[Tensor, " W"]
    radius: float
    material: Int64[Tensor, "1"]

    def height(self, xy: Float[Tensor, "*N 2"]) -> Float[Tensor, "*N"]:
        return (self.amplitude * torch.sin(xy @ self.wave_vector.T + self.phase)).sum(-1)

    def slope(self, xy: Float[Tensor, "N 2"]) -> Float[Tensor, "N 2"]:
        return (self.amplitude * torch.cos(xy @ self.wave_vector.T + self.phase)) @ self.wave_vector

    def trace(
        self, origins: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"], limit: Float[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Ray parameter at the ground from above it; infinite beyond `limit` or the radius."""
        top = float(self.amplitude.abs().sum())
        fall = -directions[:, 2]
        down = torch.where(fall.abs() < 1e-9, 1e-9, fall)
        if top == 0.0:
            t = torch.where(fall > 0, origins[:, 2] / down, torch.inf)
        else:
            t = self._march(origins, directions, down, top, limit)
        reached = origins[:, :2] + t[:, None] * directions[:, :2]
        outside = ~(reached.norm(dim=-1) < self.radius) | (t >= limit)
        return t.masked_fill(outside, torch.inf)

    def _march(self, origins: Tensor, directions: Tensor, down: Tensor, top: float, limit: Tensor) -> Tensor:
        """First sign change of (ray height - ground height) in the slab |z| <= top, then bisection and Newton."""
        # Steps grow with distance, as the ground seen by a pixel does.
        fractions = torch.linspace(0, 1, _MARCH_STEPS + 1) ** 1.5
        if use_loops(directions):
            t = torch.empty(len(directions))
            rays = (x.contiguous().numpy() for x in (origins, directions, limit))
            waves = (x.numpy() for x in (self.amplitude, self.wave_vector, self.phase))
            lengths = np.float32(self.radius), np.float32(top)
            search = fractions.numpy(), _BISECTIONS, _NEWTON_STEPS
            backdrops_cpu.march(*rays, *lengths, *search, *waves, t.numpy())
            return t
        at_top, at_bottom = (origins[:, 2] - top) / down, (origins[:, 2] + top) / down
        enter = torch.minimum(at_top, at_bottom).clamp_min(0)
        farthest = (self.radius + origins[:, :2].norm(dim=-1)) / directions[:, :2].norm(dim=-1).clamp_min(1e-6)
        leave = torch.minimum(torch.maximum(at_top, at_bottom), torch.minimum(limit, farthest))
        t = torch.full_like(down, torch.inf)
        active = (leave > enter).nonzero().squeeze(-1)
        if len(active) == 0:
            return t
        o, d = origins[active], directions[active]
        enter, leave = enter[active], leave[active]

        def above(t):
            return o[:, 2] + t * d[:, 2] - self.height(o[:, :2] + t[:, None] * d[:, :2])

        low, high = enter.clone(), leave.clone()
        found = torch.zeros_like(low, dtype=torch.bool)
        before = enter
        for fraction in fractions.tolist()[1:]:
            here = enter + (leave - enter) * fraction
            crossing = ~found & (above(here) <= 0)
            low, high = torch.where(crossing, before, low), torch.where(crossing, here, high)
            found |= crossing
            before = here
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            under = above(middle) <= 0
            low, high = torch.where(under, low, middle), torch.where(under, middle, high)
        root = 0.5 * (low + high)
        for _ in range(_NEWTON_STEPS):
            xy = o[:, :2] + root[:, None] * d[:, :2]
            rate = d[:, 2] - (self.slope(xy) * d[:, :2]).sum(-1)
            step = above(root) / torch.where(rate.abs() < 1e-3, -1e-3, rate)
            root = torch.minimum(torch.maximum(root - step, low), high)
        t[active] = root.masked_fill(~found, torch.inf)
        return t

    def surface(
        self, points: Float[Tensor, "N 3"]
    ) -> tuple[Float[Tensor, "N 3 3"], Float[Tensor, "N 2"], Int64[Tensor, " N"], Int64[Tensor, " N"]]:
        """Texture frames (rows: u, v, upward normal), uv in metres, materials and object ids on the ground."""
        slope = self.slope(points[:, :2])
        one, zero = torch.ones_like(slope[:, :1]), torch.zeros_like(slope[:, :1])
        normal = torch.nn.functional.normalize(torch.cat([-slope, one], -1), dim=-1)
        u_direction = torch.nn.functional.normalize(torch.cat([one, zero, slope[:, :1]], -1), dim=-1)
        frame = torch.stack([u_direction, torch.cross(normal, u_direction, dim=-1), normal], 1)
        part = torch.full_like(points[:, 0], GROUND_ID, dtype=torch.long)
        return frame, points[:, :2].clone(), self.material[part], part

    def clearance(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        """Height above the ground (a distance where the ground is level)."""
        return points[:, 2] - self.height(points[:, :2])
