"""A smooth camera path through given cameras. Companion of `trajectories`, with the same guarantees.

Letters: N keyframes, S segments between them, F frames.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import matrix_from_quat, quat_from_matrix
from da3gs.rendering.trajectories import focus_point, poses_at

# Sub-steps per segment in which its length is measured.
_SUBSTEPS = 64


def interpolate(cameras: Cameras, frames: int = 120, *, closed: bool = False) -> Cameras:
    """A smooth path through all given cameras, in order, at (nearly) constant speed. Equivariant under similarities.

    Positions and unit quaternions run on centripetal Catmull-Rom splines (Yuksel et al. 2011), which form no loops
    between close keys; quaternions are renormalised. Two cameras give a straight line and the shortest rotation. Speed
    counts translation in units of the distance to the focus, plus rotation in radians. Intrinsics are interpolated
    linearly.

    Args:
        cameras: At least two; the picture size is that of the first.
        frames: Number of frames F. With F >= N every keyframe is one of the frames, and frames
            are shared out to the segments by length; with fewer, frames are spaced evenly along the path.
        closed: Return to the first camera; the frame that would repeat it is left out.

    Raises:
        InputError: Fewer than two cameras, no poses, frames < 1.
    """
    if cameras.cam_from_world is None:
        raise InputError("a trajectory needs posed cameras; these have intrinsics only")
    if len(cameras) < 2:
        raise InputError("interpolation needs two cameras or more; use orbit or wobble for one")
    if frames < 1:
        raise InputError(f"frames must be >= 1; got {frames}")
    width, height = int(cameras.width[0]), int(cameras.height[0])
    cameras = Cameras(cameras.cam_from_world.detach(), cameras.K.detach(), cameras.width, cameras.height)
    cameras = cameras.to("cpu", torch.float64).scaled(width=width, height=height)

    spline = _Spline.through(cameras, closed)
    segments, fractions = spline.sample(frames)
    positions, quaternions = spline.at(segments, spline.parameter(segments, fractions))
    poses = poses_at(matrix_from_quat(quaternions).transpose(1, 2), positions)
    weight = fractions[:, None, None]
    K = (1 - weight) * cameras.K[segments] + weight * cameras.K[(segments + 1) % len(cameras)]
    return Cameras(poses.float(), K.float(), width, height)


@dataclass(frozen=True, eq=False)
class _Spline:
    """Cubic segments through positions and quaternions.

    Attributes:
        keys: [S + 3, 7]; segment i runs from keys[i + 1] to keys[i + 2], its neighbours give the tangents.
        knots: [S + 2] parameter lengths; segment i has knots[i + 1].
        unit: Length of translation that counts as much as one radian.
        closed: The last key equals the first.
    """

    keys: Float[Tensor, "K 7"]
    knots: Float[Tensor, " L"]
    unit: float
    closed: bool

    @staticmethod
    def through(cameras: Cameras, closed: bool) -> "_Spline":
        centers = cameras.centers
        unit = float((centers - focus_point(cameras)).norm(dim=1).median()) or 1.0
        order = list(range(len(cameras)))
        if closed:
            order = [order[-1], *order, order[0], order[1]]
        quaternions = quat_from_matrix(cameras.world_from_cam[:, :3, :3])[order]
        for index in range(1, len(order)):  # q and -q are one rotation: take the nearer one
            if quaternions[index] @ quaternions[index - 1] < 0:
                quaternions[index] = -quaternions[index]
        keys = torch.cat([centers[order], quaternions], 1)
        lengths = _distance(keys[:-1], keys[1:], unit)
        if not closed:  # mirrored neighbours make the tangents at the ends those of the end chords
            keys = torch.cat([2 * keys[:1] - keys[1:2], keys, 2 * keys[-1:] - keys[-2:-1]])
            lengths = torch.cat([lengths[:1], lengths, lengths[-1:]])
        knots = lengths.sqrt()
        return _Spline(keys, knots.clamp(min=max(1e-6 * float(knots.max()), 1e-12)), unit, closed)

    @property
    def segments(self) -> int:
        return len(self.keys) - 3

    def at(
        self, segments: Int64[Tensor, " F"], u: Float[Tensor, " F"]
    ) -> tuple[Float[Tensor, "F 3"], Float[Tensor, "F 4"]]:
        """Positions and unit quaternions at parameter u in [0, 1] of the segments (cubic Hermite form)."""
        before, start, end, after = (self.keys[segments + i] for i in range(4))
        t0, t1, t2 = (self.knots[segments + i][:, None] for i in range(3))
        # Tangents of the non-uniform Catmull-Rom spline, times the knot length of the segment.
        slope0, slope1, slope2 = (start - before) / t0, (end - start) / t1, (after - end) / t2
        tangent0 = t1 * (slope0 * t1 + slope1 * t0) / (t0 + t1)
        tangent1 = t1 * (slope1 * t2 + slope2 * t1) / (t1 + t2)
        u = u[:, None]
        value = (1 + 2 * u) * (1 - u) ** 2 * start + u**2 * (3 - 2 * u) * end
        value = value + u * (1 - u) ** 2 * tangent0 + u**2 * (u - 1) * tangent1
        quaternions = value[:, 3:]
        return value[:, :3], quaternions / quaternions.norm(dim=1, keepdim=True)

    def walked(self) -> Float[Tensor, "S substeps"]:
        """Length walked at the end of each sub-step of every segment."""
        u = torch.linspace(0, 1, _SUBSTEPS + 1, dtype=torch.float64)
        rows = []
        for segment in range(self.segments):
            points = torch.cat(self.at(torch.full((len(u),), segment), u), 1)
            rows.append(_distance(points[:-1], points[1:], self.unit).cumsum(0))
        return torch.stack(rows)

    def parameter(self, segments: Int64[Tensor, " F"], fractions: Float[Tensor, " F"]) -> Float[Tensor, " F"]:
        """Parameter u at which a fraction of the segment's length has been walked; 0 and 1 are exact."""
        u = np.linspace(0, 1, _SUBSTEPS + 1)
        result, walked = fractions.clone(), self.walked()
        for segment in segments.unique().tolist():
            length = np.concatenate([[0.0], walked[segment].numpy()])
            mine = segments == segment
            if length[-1] > 0:
                result[mine] = torch.from_numpy(np.interp(fractions[mine].numpy() * length[-1], length, u))
        return result

    def sample(self, frames: int) -> tuple[Int64[Tensor, " F"], Float[Tensor, " F"]]:
        """Segment, and fraction of its length, for every frame."""
        totals = self.walked()[:, -1]
        steps = frames if self.closed else frames - 1
        if steps < self.segments:
            position = torch.arange(frames, dtype=torch.float64) / max(steps, 1) * totals.sum()
            ends = totals.cumsum(0)
            segments = torch.searchsorted(ends, position).clamp(max=self.segments - 1)
            into = position - (ends - totals)[segments]
            return segments, (into / totals[segments].clamp(min=1e-300)).clamp(0, 1)
        counts = _share_out(steps, totals)
        segments = torch.repeat_interleave(torch.arange(self.segments), counts)
        fractions = torch.cat([torch.arange(n, dtype=torch.float64) / n for n in counts.tolist()])
        if self.closed:
            return segments, fractions
        return torch.cat([segments, segments[-1:]]), torch.cat([fractions, fractions.new_ones(1)])


def _distance(a: Float[Tensor, "M 7"], b: Float[Tensor, "M 7"], unit: float) -> Float[Tensor, " M"]:
    """Translation in units plus rotation in radians, root of the sum of squares."""
    translation = (a[:, :3] - b[:, :3]).norm(dim=1) / unit
    chord = torch.minimum((a[:, 3:] - b[:, 3:]).norm(dim=1), (a[:, 3:] + b[:, 3:]).norm(dim=1))
    return torch.hypot(translation, 4 * torch.asin((chord / 2).clamp(max=1)))


def _share_out(steps: int, lengths: Float[Tensor, " S"]) -> Int64[Tensor, " S"]:
    """Whole steps for every segment, at least one each, in proportion to its length (largest remainders)."""
    total = float(lengths.sum())
    spare = steps - len(lengths)
    shares = lengths / total * spare if total > 0 else torch.full_like(lengths, spare / len(lengths))
    # Segments of equal length must not be told apart by rounding errors.
    shares = (shares * 1e4).round() / 1e4
    counts = shares.floor().long()
    order = (shares - counts).argsort(descending=True, stable=True)
    counts[order[: spare - int(counts.sum())]] += 1
    return counts + 1
