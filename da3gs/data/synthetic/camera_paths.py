"""Cameras for a scene: orbits, walks and jitter with large baselines, kept only where the views share enough surface.

Letters: V views, C candidates, H W pixels.
"""

import math
import random

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from da3gs.data.synthetic.builder import SyntheticScene
from da3gs.data.synthetic.rendering import probe_views
from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras

MOTIONS = ("orbit", "walk", "jitter", "overhead")
# The probe that decides on candidates: pixels on its longer side.
_PROBE_PX = 16
_ATTEMPTS = 24
# The probe is coarse; asking for a little more keeps the bound true at full size.
_MARGIN = 0.06
# Solids in view besides floor and walls.
_LEAST_THINGS = 4
_DEPTH_TOLERANCE = 0.05


def sample_cameras(
    scene: SyntheticScene,
    views: int,
    seed: int,
    width: int,
    height: int,
    *,
    motion: str = "any",
    min_covisibility: float | int | None = None,
    fov_deg: tuple[float | int, float | int] | None = None,
) -> Cameras:
    """Cameras that look at one part of the scene from places about as far apart as the surfaces are away.

    Every view but the first shares at least `min_covisibility` of its surface pixels with some earlier view, in both
    directions, so that all views hang together; within that bound, views far from each other are preferred.

    Args:
        motion: "orbit", "walk", "jitter", "overhead" (looking down, turned anyhow), or "any" (drawn: 4 : 3 : 2 : 3).
        min_covisibility: In [0, 0.9]; by default 0.4 for the easiest and 0.2 for the hardest scenes.
        fov_deg: Range for the field of view across the longer side; by default widening with difficulty up to 30-90.

    Returns:
        Cameras with poses in the scene's world frame (metres, z up).

    Raises:
        InputError: An argument is out of range, or the scene has no room for such cameras.
    """
    if motion not in (*MOTIONS, "any"):
        raise InputError(f"motion must be one of {', '.join(MOTIONS)}, any; got {motion!r}")
    if views < 1:
        raise InputError(f"at least one view is needed; got {views}")
    difficulty = scene.difficulty
    bound = 0.4 - 0.2 * difficulty if min_covisibility is None else min_covisibility
    if not 0 <= bound <= 0.9:
        raise InputError(f"min_covisibility must lie in [0, 0.9]; got {bound:g}")
    rng = random.Random(f"cameras {scene.seed} {seed}")
    if motion == "any":
        motion = rng.choices(MOTIONS, (4, 3, 2, 3))[0]
    low_fov, high_fov = fov_deg or (60 - 30 * difficulty, 72 + 18 * difficulty)
    fov = math.radians(rng.uniform(low_fov, high_fov))

    # Poses around one place; of these, those with air around them that see several things; of these, a connected set.
    probe = probe_size(width, height)
    for attempt in range(_ATTEMPTS):
        reach = 0.85 ** max(0, attempt - 2)
        poses = _candidates(scene, rng, motion, max(32, 6 * views), reach).to(scene.device)
        poses = poses[_clear_of_things(scene, poses)]
        if len(poses) < views:
            continue
        cameras = Cameras(poses, intrinsics(fov, *probe).expand(len(poses), -1, -1).to(poses), *probe)
        depth, things = probe_views(scene, cameras)
        good = _worth_seeing(scene, depth, things)
        if int(good.sum()) < views:
            continue
        cameras, depth = cameras[good.cpu()], depth[good]
        chosen = _connected_choice(rng, cameras, depth, views, bound + _MARGIN, difficulty)
        if chosen is not None:
            poses = cameras.cam_from_world[sorted(chosen) if motion == "walk" else chosen]
            return Cameras(poses, intrinsics(fov, width, height).expand(views, -1, -1).to(poses), width, height)
    raise InputError(
        f"found no {views} cameras in scene {scene.seed} ({scene.style}) that share {bound:.0%} of their surface; "
        "lower min_covisibility or take another seed"
    )


@torch.no_grad()
def covisible_fraction(
    depth: Float[Tensor, "V H W"], cameras: Cameras, tolerance: float = _DEPTH_TOLERANCE
) -> Float[Tensor, "V V"]:
    """Entry (i, j): fraction of the surface pixels of view i whose points view j sees, unoccluded, inside its picture.

    Args:
        depth: z-depth, 0 at the sky.
        tolerance: Relative depth difference to the nearest pixel of view j up to which a point counts as the same.
    """
    width, height = cameras.size
    views = len(cameras)
    surface = depth.flatten(1) > 0
    points = cameras.unproject(depth).reshape(-1, 3)
    uv, z = cameras.project(points)
    column, row = uv.nan_to_num(-1.0).clamp(-1, 1e6).floor().long().unbind(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (z > 1e-6)
    place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).view(views, -1)
    seen = depth.flatten(1).gather(1, place)
    agree = inside & ((z - seen).abs() < tolerance * seen)
    agree = agree.view(views, views, -1) & surface
    return (agree.sum(-1) / surface.sum(-1).clamp_min(1)).T.to(depth)


# ---------------------------------------------------------------------------------------------------- proposals


def _candidates(
    scene: SyntheticScene, rng: random.Random, motion: str, count: int, reach: float
) -> Float[Tensor, "C 4 4"]:
    low, high = scene.stage_low, scene.stage_high
    focus = scene.focus[rng.randrange(len(scene.focus))].tolist()
    roll = math.radians(1.0 + 5.0 * scene.difficulty)

    def inside(point):
        return [min(max(p, a), b) for p, a, b in zip(point, low, high, strict=True)]

    eyes, targets = [], []
    azimuth, distance = rng.uniform(0, 2 * math.pi), scene.scale * rng.uniform(0.55, 1.15)
    lift = rng.triangular(low[2], high[2], low[2] + 0.35 * (high[2] - low[2]))
    if motion == "orbit":
        span = math.radians(rng.uniform(45, 90)) * reach
        for _ in range(count):
            turn, far = azimuth + rng.uniform(-span, span), distance * (1 + reach * rng.uniform(-0.25, 0.25))
            up = lift + 0.3 * reach * rng.uniform(-1, 1) * (high[2] - low[2])
            eyes.append(inside((focus[0] + far * math.cos(turn), focus[1] + far * math.sin(turn), up)))
            targets.append([f + 0.12 * distance * rng.gauss(0, 1) * s for f, s in zip(focus, (1, 1, 0.5), strict=True)])
    elif motion == "walk":
        length, bend = scene.scale * rng.uniform(0.9, 1.6) * reach, rng.uniform(-0.8, 0.8)
        start = inside((focus[0] + distance * math.cos(azimuth), focus[1] + distance * math.sin(azimuth), lift))
        heading = math.atan2(focus[1] - start[1], focus[0] - start[0]) + rng.uniform(-1.2, 1.2)
        for index in range(count):
            s = index / max(1, count - 1)
            turn = heading + bend * s
            step = s * length
            eyes.append(
                inside(
                    (start[0] + step * math.cos(turn), start[1] + step * math.sin(turn), start[2] + rng.gauss(0, 0.03))
                )
            )
            targets.append([f + 0.15 * distance * rng.gauss(0, 1) * w for f, w in zip(focus, (1, 1, 0.5), strict=True)])
    elif motion == "overhead":
        # A table seen by somebody who stands at it: which way is up in the picture says nothing.
        height, turned = scene.scale * rng.uniform(0.45, 0.9), rng.uniform(-math.pi, math.pi)
        aside = height * rng.uniform(0.0, 0.5)
        base = (focus[0] + aside * math.cos(azimuth), focus[1] + aside * math.sin(azimuth), focus[2] + height)
        radius = height * rng.uniform(0.25, 0.6) * reach
        for _ in range(count):
            eyes.append(inside([p + radius * rng.uniform(-1, 1) * s for p, s in zip(base, (1, 1, 0.5), strict=True)]))
            targets.append([f + 0.12 * height * rng.gauss(0, 1) for f in focus])
        rolls = torch.tensor([turned + rng.gauss(0, 2 * roll) for _ in range(count)])
        return look_at(torch.tensor(eyes), torch.tensor(targets), rolls)
    else:
        base = inside((focus[0] + distance * math.cos(azimuth), focus[1] + distance * math.sin(azimuth), lift))
        radius = distance * rng.uniform(0.3, 0.7) * reach
        for _ in range(count):
            eyes.append(inside([p + radius * rng.uniform(-1, 1) * s for p, s in zip(base, (1, 1, 0.5), strict=True)]))
            targets.append([f + 0.1 * distance * rng.gauss(0, 1) for f in focus])
    rolls = torch.tensor([rng.gauss(0, roll) for _ in range(count)])
    return look_at(torch.tensor(eyes), torch.tensor(targets), rolls)


def look_at(
    eyes: Float[Tensor, "C 3"], targets: Float[Tensor, "C 3"], roll: Float[Tensor, " C"]
) -> Float[Tensor, "C 4 4"]:
    """cam_from_world of cameras at `eyes` that look at `targets`, upright in a z-up world up to `roll` (radians)."""
    eyes, targets = eyes.double(), targets.double()
    forward = torch.nn.functional.normalize(targets - eyes, dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand_as(forward)
    right = torch.linalg.cross(forward, up)
    straight_up = right.norm(dim=-1, keepdim=True) < 1e-6
    right = torch.where(straight_up, right.new_tensor([1.0, 0.0, 0.0]), right)
    right = torch.nn.functional.normalize(right, dim=-1)
    down = torch.linalg.cross(forward, right)
    c, s = roll.double().cos()[:, None], roll.double().sin()[:, None]
    rotation = torch.stack([c * right + s * down, c * down - s * right, forward], 1)
    pose = torch.eye(4, dtype=torch.float64).repeat(len(eyes), 1, 1)
    pose[:, :3, :3] = rotation
    pose[:, :3, 3] = -(rotation @ eyes[..., None]).squeeze(-1)
    return pose.float()


def intrinsics(fov: float, width: int, height: int) -> Float[Tensor, "1 3 3"]:
    """K of a field of view (radians) across the longer side, principal point in the middle."""
    focal = max(width, height) / 2 / math.tan(fov / 2)
    return torch.tensor([[[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]])


def probe_size(width: int, height: int) -> tuple[int, int]:
    longer = max(width, height)
    return max(4, round(width * _PROBE_PX / longer)), max(4, round(height * _PROBE_PX / longer))


# ---------------------------------------------------------------------------------------------------- choice


def _clear_of_things(scene: SyntheticScene, poses: Float[Tensor, "C 4 4"]) -> Bool[Tensor, " C"]:
    """Cameras with some air around them."""
    air = 0.08 * scene.scale
    centers = -(poses[:, :3, :3].transpose(1, 2) @ poses[:, :3, 3:]).squeeze(-1)
    return (scene.solids.clearance(centers.T[None], air)[0] >= air) & (scene.backdrop.clearance(centers) >= air)


def _worth_seeing(
    scene: SyntheticScene, depth: Float[Tensor, "C H W"], things: Int64[Tensor, " C"]
) -> Bool[Tensor, " C"]:
    """Views with nothing right before the lens, with enough surface, and of several things at some distance."""
    flat = depth.flatten(1)
    surface = flat > 0
    flat = flat.masked_fill(~surface, torch.inf).sort(-1).values
    pixels = flat.shape[1]
    nearest, near_tenth, middle = flat[:, pixels // 50], flat[:, pixels // 10], flat[:, pixels // 3]
    enough = surface.float().mean(-1) > 0.5
    enough &= things >= _LEAST_THINGS
    return enough & (nearest > 0.12 * scene.scale) & (near_tenth > 0.2 * scene.scale) & (middle > 0.3 * scene.scale)


def _connected_choice(
    rng, cameras: Cameras, depth: Tensor, views: int, bound: float, difficulty: float
) -> list[int] | None:
    """Indices of views, each sharing at least `bound` with one before it; far apart rather than close."""
    fraction = covisible_fraction(depth, cameras, tolerance=0.12)
    shared = torch.minimum(fraction, fraction.T).cpu()
    apart = torch.cdist(cameras.centers, cameras.centers).cpu()
    count = len(cameras)
    chosen = [rng.randrange(count)]
    while len(chosen) < views:
        best_shared = shared[:, chosen].amax(1)
        nearest = apart[:, chosen].amin(1)
        feasible = best_shared >= bound
        feasible[chosen] = False
        options = feasible.nonzero().squeeze(-1).tolist()
        if not options:
            return None
        options.sort(key=lambda i: -float(nearest[i]))
        # Easy scenes take the farthest views; hard ones any of them, small steps included.
        pool = max(1, round(len(options) * (0.15 + 0.85 * difficulty)))
        chosen.append(options[rng.randrange(pool)])
    return chosen
