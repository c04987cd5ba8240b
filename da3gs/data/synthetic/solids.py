"""Convex solids and their exact intersection with rays, for many rays and many solids at once.

A box is three slabs; a round (ellipsoid, dome, cylinder, tapered or pointed column) is one slab and one quadric. A ray
meets a convex solid in one interval of its parameter; intersecting intervals is all there is to it.

Rays travel in groups that share a narrow cone (a tile of pixels), so that each group is tested only against the solids
whose bounding sphere reaches into its cone. On the CPU compiled loops do the work (solids_cpu.py); the tensor code
below serves GPUs, and is what the loops are tested against.

Letters: P solids, G groups, R rays of a group, K candidate solids of a group, N points.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from da3gs.data.synthetic import solids_cpu

# Elements of one intermediate array: larger ones fall out of the cache and cost several times more on CPUs.
_CHUNK_ELEMENTS = 400_000
_CHUNK_ELEMENTS_GPU = 40_000_000
# Keeps 1 / (n . d) finite for rays along a face; shifts directions by less than float32 resolves.
_TINY = 1e-9


@dataclass(frozen=True, eq=False)
class Solids:
    """P solids, all boxes before all rounds.

    Attributes:
        boxes: Number of boxes.
        center: [P, 3] in metres, world frame.
        axes: [P, 3, 3] rows are the unit local axes in the world frame.
        half: [P, 3] half extents along the local axes in metres.
        quadric: [P, 3] (g, b, k) of rounds: inside where x^2 + y^2 + g z^2 + b z <= k and |z| <= 1, with x, y, z the
            local coordinates divided by `half`. Convex for g >= 0. Unused for boxes.
        material, object_id: [P].
        uv_offset: [P, 2] shift of the texture in tiles.
        radius: [P] bounding spheres.
    """

    boxes: int
    center: Float[Tensor, "P 3"]
    axes: Float[Tensor, "P 3 3"]
    half: Float[Tensor, "P 3"]
    quadric: Float[Tensor, "P 3"]
    material: Int64[Tensor, " P"]
    object_id: Int64[Tensor, " P"]
    uv_offset: Float[Tensor, "P 2"]
    radius: Float[Tensor, " P"]

    def __len__(self) -> int:
        return len(self.center)

    @functools.cached_property
    def _arrays(self) -> tuple:
        """What the compiled loops take."""
        return (self.boxes, *(x.numpy() for x in (self.center, self.axes, self.half, self.quadric, self.radius)))

    # ------------------------------------------------------------------------------------------ rays

    def nearest(
        self, origins: Float[Tensor, "G 3 _"], directions: Float[Tensor, "G 3 R"]
    ) -> tuple[Float[Tensor, "G R"], Int64[Tensor, "G R"]]:
        """First solid met by every ray o + t d with t > 0, from outside of all solids.

        Args:
            origins: One per group ([G, 3, 1]); directions need not be unit.

        Returns:
            t (infinite where nothing is met) and the index of the solid (-1).
        """
        t = directions.new_full((len(directions), directions.shape[-1]), torch.inf)
        index = torch.full_like(t, -1, dtype=torch.long)
        if use_loops(directions):
            rays = _array(origins[..., 0]), _array(directions)
            solids_cpu.nearest(*rays, *self._arrays, t.numpy(), index.numpy())
            return t, index
        reach = self._in_cone(origins[..., 0], directions, 0.0)
        for groups, candidates, intervals in self._work(reach, directions.shape[-1]):
            near, far = intervals(candidates, origins[groups], directions[groups])
            near.masked_fill_((near > far) | (near <= 0), torch.inf)
            best, which = near.min(1)
            closer = best < t[groups]
            t[groups] = torch.where(closer, best, t[groups])
            index[groups] = torch.where(closer, candidates.gather(1, which), index[groups])
        return t, index

    def blocked(
        self, points: Float[Tensor, "G 3 R"], targets: Float[Tensor, "G 3 R"], target_radius: float
    ) -> Bool[Tensor, "G R"]:
        """Whether a solid cuts the segment from each point to its target.

        Args:
            points: Outside of all solids.
            targets: Within `target_radius` of one place per group (a light and its extent).
        """
        blocked = torch.zeros(len(points), points.shape[-1], dtype=torch.bool, device=points.device)
        if use_loops(points):
            segments = _array(points), _array(targets), np.float32(target_radius)
            solids_cpu.blocked(*segments, *self._arrays, blocked.numpy())
            return blocked
        steps = targets - points
        reach = self._in_cone(targets.mean(-1), -steps, target_radius)
        for groups, candidates, intervals in self._work(reach, points.shape[-1]):
            near, far = intervals(candidates, points[groups], steps[groups])
            blocked[groups] |= ((near < far) & (far > 0) & (near < 1)).any(1)
        return blocked

    def _in_cone(self, apex: Tensor, directions: Tensor, slack: float) -> Bool[Tensor, "G P"]:
        """Whether the bounding sphere of each solid reaches into the cone of each group."""
        unit = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
        axis = torch.nn.functional.normalize(unit.mean(-1), dim=-1)
        cosine = (axis[:, None] @ unit).amin((-1, -2)).clamp(-1, 1)
        sine = (1 - cosine**2).sqrt() + 1e-3
        to_center = self.center - apex[:, None]
        along = (to_center @ axis[..., None]).squeeze(-1)
        across = (to_center.square().sum(-1) - along**2).clamp_min(0).sqrt()
        radius = self.radius + slack
        beside = across * cosine[:, None] - along * sine[:, None] <= radius
        wide = cosine[:, None] < 0.1
        return (beside & (along > -radius)) | wide

    def _work(self, reach: Tensor, rays: int) -> Iterator[tuple[Tensor, Tensor, Callable]]:
        """Batches of groups with about as many candidates each: (groups [g], solids [g, K], interval function)."""
        budget = _CHUNK_ELEMENTS if reach.device.type == "cpu" else _CHUNK_ELEMENTS_GPU
        parts = ((0, self.boxes, self._box_intervals), (self.boxes, len(self), self._round_intervals))
        for first, last, intervals in parts:
            part = reach[:, first:last]
            counts, order = part.sum(1).sort(descending=True)
            counts = counts.tolist()
            start = 0
            while start < len(counts) and counts[start] > 0:
                most = counts[start]
                stop = min(len(counts), start + max(1, budget // (3 * most * rays)))
                while counts[stop - 1] == 0:
                    stop -= 1
                groups = order[start:stop]
                # Groups with fewer candidates than the first are filled up with solids that they cannot meet.
                candidates = part[groups].byte().topk(most, dim=1).indices + first
                yield groups, candidates, intervals
                start = stop

    def _box_intervals(self, candidates: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Parameter intervals [G, K, R] inside boxes: the three slabs |n . (o + t d - c)| <= h."""
        groups, count = candidates.shape
        normals = self.axes[candidates].transpose(1, 2).reshape(groups, 3 * count, 3)
        centers = (self.axes @ self.center[..., None]).squeeze(-1)[candidates].transpose(1, 2).reshape(groups, -1, 1)
        half = self.half[candidates].transpose(1, 2).reshape(groups, -1, 1)
        inverse = (normals @ directions).add_(_TINY).reciprocal_()
        middle = (centers - normals @ origins) * inverse
        extent = inverse.abs_().mul_(half)
        near = (middle - extent).view(groups, 3, count, -1)
        far = middle.add_(extent).view(groups, 3, count, -1)
        return (
            torch.maximum(torch.maximum(near[:, 0], near[:, 1]), near[:, 2]),
            torch.minimum(torch.minimum(far[:, 0], far[:, 1]), far[:, 2]),
        )

    def _round_intervals(self, candidates: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Parameter intervals inside rounds: roots of A t^2 + 2 B t + C = 0 cut with the slab |z| <= 1."""
        groups, count = candidates.shape
        to_local = (self.axes / self.half[..., None])[candidates]
        shift = (to_local @ self.center[candidates][..., None]).transpose(1, 2).reshape(groups, 3 * count, 1)
        to_local = to_local.transpose(1, 2).reshape(groups, 3 * count, 3)
        dx, dy, dz = (to_local @ directions).view(groups, 3, count, -1).unbind(1)
        ox, oy, oz = (to_local @ origins - shift).view(groups, 3, count, -1).unbind(1)
        g, b, k = self.quadric[candidates][..., None].unbind(2)
        dz = dz + _TINY
        a2 = dx * dx + dy * dy + g * dz * dz + 1e-20
        a1 = ox * dx + oy * dy + (g * oz + 0.5 * b) * dz
        a0 = ox * ox + oy * oy + (g * oz + b) * oz - k
        discriminant = a1 * a1 - a2 * a0
        # The root without cancellation, q / A, and the other one from the product of both, C / q.
        q = -(a1 + torch.where(a1 < 0, -1.0, 1.0) * discriminant.clamp_min(1e-30).sqrt_())
        first, second = q / a2, a0 / q
        inverse = dz.reciprocal()
        middle, extent = -oz * inverse, inverse.abs()
        near = torch.maximum(torch.minimum(first, second), middle - extent)
        far = torch.minimum(torch.maximum(first, second), middle + extent)
        return near.masked_fill_(discriminant <= 0, torch.inf), far

    # ------------------------------------------------------------------------------------------ points

    def clearance(self, points: Float[Tensor, "G 3 R"], reach: float) -> Float[Tensor, "G R"]:
        """Distance to the nearest solid, at most `reach`; a lower bound near edges; negative inside.

        Args:
            reach: Solids farther away than this from all points of a group are not looked at.
        """
        result = points.new_full((len(points), points.shape[-1]), reach)
        if use_loops(points):
            solids_cpu.clearance(_array(points), np.float32(reach), *self._arrays, result.numpy())
            return result
        middle = points.mean(-1)
        spread = (points - middle[..., None]).norm(dim=1).amax(-1)
        near = torch.cdist(middle, self.center) <= self.radius + spread[:, None] + reach
        for groups, candidates, intervals in self._work(near, points.shape[-1]):
            local = self._local(candidates, points[groups])
            if intervals == self._box_intervals:
                distance = (local.abs() - self.half[candidates].transpose(1, 2)[..., None]).amax(1)
            else:
                half = self.half[candidates].transpose(1, 2)[..., None]
                x, y, z = (local / half).unbind(1)
                hx, hy, hz = half.unbind(1)
                g, b, k = self.quadric[candidates][..., None].unbind(2)
                # Level sets of r = sqrt(quadric + 1): distance (r - 1) / |grad r|, grad r = (x, y, gz + b/2) / (h r).
                r = (x * x + y * y + (g * z + b) * z + (1 - k)).clamp_min(0).sqrt()
                slope = ((x / hx).square() + (y / hy).square() + ((g * z + 0.5 * b) / hz).square()).sqrt()
                distance = torch.maximum((r - 1) * r / slope.clamp_min(1e-6), (z.abs() - 1) * hz)
            outside_ball = local.square().sum(1).sqrt() - self.radius[candidates][..., None]
            result[groups] = torch.minimum(result[groups], torch.maximum(distance, outside_ball).amin(1))
        return result

    def _local(self, candidates: Tensor, points: Tensor) -> Float[Tensor, "G 3 K R"]:
        groups, count = candidates.shape
        axes = self.axes[candidates].transpose(1, 2).reshape(groups, 3 * count, 3)
        shift = (self.axes @ self.center[..., None]).squeeze(-1)[candidates].transpose(1, 2).reshape(groups, -1, 1)
        return (axes @ points - shift).view(groups, 3, count, -1)

    def surface(
        self, index: Int64[Tensor, " N"], points: Float[Tensor, "N 3"]
    ) -> tuple[Float[Tensor, "N 3 3"], Float[Tensor, "N 2"]]:
        """Texture frames (unit rows: directions of growing u and v, outward normal) and uv in metres."""
        if use_loops(points):
            frames, uv = points.new_empty(len(points), 3, 3), points.new_empty(len(points), 2)
            solids_cpu.surface(_array(index), _array(points), *self._arrays[:-1], frames.numpy(), uv.numpy())
            return frames, uv
        axes, half = self.axes[index], self.half[index]
        local = (axes @ (points - self.center[index])[..., None]).squeeze(-1)
        scaled = local / half
        # Boxes: the face is the one whose slab the point touches. uv runs along the face, v down on upright faces.
        face = scaled.abs().argmax(-1)
        u_axis = (face == 0).long()
        v_axis = torch.where(face == 2, 1, 2)
        v_sign = torch.where(face == 2, 1.0, -1.0)[:, None].to(points)
        row = torch.arange(len(index), device=index.device)
        normal = axes[row, face] * torch.sign(scaled[row, face])[:, None]
        u_direction, v_direction = axes[row, u_axis], axes[row, v_axis] * v_sign
        uv = torch.stack([local[row, u_axis], local[row, v_axis] * v_sign[:, 0]], -1)

        rounds = (index >= self.boxes).nonzero().squeeze(-1)
        if len(rounds):
            at = index[rounds]
            normal[rounds], u_direction[rounds], uv[rounds] = self._round_surface(at, local[rounds], scaled[rounds])
            v_direction[rounds] = torch.cross(u_direction[rounds], normal[rounds], dim=-1)
        return torch.stack([u_direction, v_direction, normal], 1), uv

    def _round_surface(self, at: Tensor, local: Tensor, scaled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normals, directions of u, and uv of rounds: u around the axis, v down; near the poles seen from above."""
        x, y, z = scaled.unbind(-1)
        g, b, k = self.quadric[at].unbind(-1)
        half, to_world = self.half[at], self.axes[at].transpose(1, 2)
        flat = (z.abs() - 1).abs() < (x * x + y * y + (g * z + b) * z - k).abs()
        gradient = torch.stack([x, y, g * z + 0.5 * b], -1) / half
        gradient = torch.where(flat[:, None], torch.sign(z)[:, None] * gradient.new_tensor([0.0, 0.0, 1.0]), gradient)
        n = torch.nn.functional.normalize(gradient, dim=-1)
        nx, ny, nz = n.unbind(-1)
        above = (flat | ((g > 0) & (nz.abs() > POLAR)))[:, None]
        around = torch.stack([-ny, nx, torch.zeros_like(nx)], -1)
        along_x = torch.stack([1 - nx * nx, -nx * ny, -nx * nz], -1)
        u = torch.nn.functional.normalize(torch.where(above, along_x, around), dim=-1)
        unrolled = torch.stack([torch.atan2(y, x) * half[:, :2].mean(-1), -local[:, 2]], -1)
        flattened = torch.stack([local[:, 0], torch.where(nz > 0, -local[:, 1], local[:, 1])], -1)
        normal, u_direction = ((to_world @ vector[..., None]).squeeze(-1) for vector in (n, u))
        return normal, u_direction, torch.where(above, flattened, unrolled)


# Surfaces of ellipsoids and domes steeper than this (cosine to the axis) are textured as seen from above.
POLAR = 0.75

# Tests turn this off to run the tensor code on the CPU.
LOOPS_ON_CPU = True


def use_loops(x: Tensor) -> bool:
    return LOOPS_ON_CPU and x.device.type == "cpu"


def _array(x: Tensor) -> np.ndarray:
    return x.contiguous().numpy()
