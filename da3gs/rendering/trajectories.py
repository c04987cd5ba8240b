"""Camera paths for videos: pure functions from cameras (or splats) to cameras.

Every path is equivariant: the path of moved cameras is the moved path. Loops are closed and leave out their last frame,
so that a repeated clip has no doubled picture. Rotations are orthonormal by construction. Computed in float64.

Letters: V given cameras, F frames.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.errors import InputError
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras

# Mean squared sine of the angles between optical axes below which they count as parallel (1.8 degrees; with a depth
# hint 5.7, because a measured depth beats the crossing of almost parallel lines).
_PARALLEL, _PARALLEL_WITH_HINT = 1e-3, 1e-2
# Distance of the focus in units of the cameras' spread where nothing better is known.
_SPREADS_TO_FOCUS = 3.0
_MAX_ELEVATION_DEG = 80.0
# Cameras all round get a full circle; others a swing a little wider than what they saw, because the rest is empty.
_ALL_ROUND_DEG, _SWING_MARGIN, _SWING_RANGE_DEG = 240.0, 1.2, (30.0, 120.0)


def look_at(
    eyes: Float[Tensor, "F 3"], target: Float[Tensor, "3"] | Float[Tensor, "F 3"], up: Float[Tensor, "3"]
) -> Float[Tensor, "F 4 4"]:
    """Poses cam_from_world at `eyes` that look at `target` with the world direction `up` upright in the picture.

    Looking along `up` itself leaves the roll open; the axis of the world that is farthest from it is then taken
    upright.

    Raises:
        InputError: An eye lies on the target.
    """
    forward = target - eyes
    distance = forward.norm(dim=-1, keepdim=True)
    if not bool((distance > 0).all()):
        raise InputError("a camera cannot look at the point it stands on; choose another focus point")
    z = forward / distance
    x = torch.linalg.cross(-up.expand_as(z), z)
    parallel = x.norm(dim=-1) < 1e-6 * up.norm()
    if parallel.any():
        other = torch.eye(3, dtype=z.dtype, device=z.device)[z.abs().argmin(-1)]
        x = torch.where(parallel[:, None], torch.linalg.cross(-other, z), x)
    x = x / x.norm(dim=-1, keepdim=True)
    y = torch.linalg.cross(z, x)
    return poses_at(torch.stack([x, y, z], 1), eyes)


def up_direction(cameras: Cameras) -> Float[Tensor, "3"]:
    """Unit world direction that is up in the mean of the pictures (their -y axes), float64.

    Where those cancel (cameras above a scene, looking down from all round): the normal of the plane of the cameras, on
    the side they look from.
    """
    cameras = cameras.to("cpu", torch.float64)
    mean = -_rotations(cameras)[:, 1].mean(0)
    if mean.norm() > 0.1:
        return mean / mean.norm()
    offsets = cameras.centers - cameras.centers.mean(0)
    normal = torch.linalg.svd(offsets, full_matrices=True).Vh[2]
    looking_from = -cameras.look_directions.mean(0)
    return normal if normal @ looking_from >= 0 else -normal


def focus_point(cameras: Cameras, depth_hint: float | int | None = None) -> Float[Tensor, "3"]:
    """The world point that the cameras look at: nearest to all optical axes in the least-squares sense, float64.

    sum_i (I - d_i d_i^T) (p - c_i) = 0 for centres c and unit axes d. Directions in which (almost) parallel axes do not
    fix p, or a point behind most cameras, are replaced: p then lies in front of the mean camera at `depth_hint`, else
        at
    three times the spread of the cameras, else (one camera) at distance 1.

    Args:
        cameras: One or more posed cameras.
        depth_hint: Typical z-depth of the scene in world units.
    """
    cameras = cameras.to("cpu", torch.float64)
    centers, axes = cameras.centers, cameras.look_directions
    if depth_hint is not None and not (math.isfinite(depth_hint) and depth_hint > 0):
        raise InputError(f"depth_hint must be > 0; got {depth_hint}")
    mean_axis = axes.mean(0)
    mean_axis = mean_axis / mean_axis.norm() if mean_axis.norm() > 0.1 else axes[0]
    spread = float((centers - centers.mean(0)).norm(dim=1).max())
    distance = depth_hint if depth_hint is not None else _SPREADS_TO_FOCUS * spread if spread > 0 else 1.0
    prior = centers.mean(0) + distance * mean_axis

    projectors = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None]
    system = projectors.mean(0)
    residual = (projectors @ (centers - prior)[..., None]).mean(0)[:, 0]
    values, vectors = torch.linalg.eigh(system)
    fixed = values > (_PARALLEL if depth_hint is None else _PARALLEL_WITH_HINT)
    step = torch.where(fixed, (vectors.T @ residual) / values.clamp(min=_PARALLEL), torch.zeros(3, dtype=torch.float64))
    point = prior + vectors @ step
    in_front = ((point - centers) * axes).sum(1) > 0
    return point if in_front.double().mean() > 0.5 else prior


def orbit(
    cameras: Cameras,
    frames: int = 120,
    *,
    sweep_deg: float | int | None = None,
    focus: Float[Tensor, "3"] | None = None,
    depth_hint: float | int | None = None,
) -> Cameras:
    """Circle the point the cameras look at, at their median distance and elevation, starting at the first camera.

    Args:
        cameras: Give distance, elevation and up; the lens is that of the first.
        frames: Number of frames F.
        sweep_deg: 360 is a full circle; less swings to and fro about the middle of the arc the cameras cover. None:
            full if the cameras stand all round, else a swing a little wider than their arc (what lies beyond was not
            seen).
        focus: World point to circle; default `focus_point`.
        depth_hint: As in `focus_point`.

    Raises:
        InputError: Cameras without poses, frames < 1, sweep outside (0, 360], cameras on the focus point.
    """
    cameras = _checked(cameras, frames)
    point = focus_point(cameras, depth_hint) if focus is None else focus.detach().to("cpu", torch.float64)
    up = up_direction(cameras)
    offsets = cameras.centers - point
    distance = float(offsets.norm(dim=1).median())
    if distance == 0:
        raise InputError("the cameras stand on the focus point; give another focus")
    sines = (offsets @ up / offsets.norm(dim=1).clamp(min=1e-12)).clamp(-1, 1)
    limit = math.radians(_MAX_ELEVATION_DEG)
    elevation = min(max(float(torch.asin(sines).median()), -limit), limit)

    ahead, side = _horizontal_axes(up, offsets[0], *_rotations(cameras)[0, [1, 0]])
    azimuths = torch.atan2(offsets @ side, offsets @ ahead)
    covered, middle = _covered_arc(azimuths)
    if sweep_deg is None:
        around = math.degrees(covered) >= _ALL_ROUND_DEG
        low, high = _SWING_RANGE_DEG
        sweep_deg = 360.0 if around else min(max(math.degrees(covered) * _SWING_MARGIN, low), high)
    if not 0 < sweep_deg <= 360:
        raise InputError(f"sweep_deg must lie in (0, 360]; got {sweep_deg:g}")
    phase = torch.arange(frames, dtype=torch.float64) / frames * (2 * math.pi)
    angle = phase if sweep_deg == 360 else middle + math.radians(sweep_deg) / 2 * phase.sin()
    eyes = point + distance * _directions(angle, elevation, ahead, side, up)
    return _with_lens(look_at(eyes, point, up), cameras)


def spiral(
    cameras: Cameras,
    frames: int = 120,
    *,
    turns: int = 2,
    focus: Float[Tensor, "3"] | None = None,
    depth_hint: float | int | None = None,
) -> Cameras:
    """Spiral about the most central camera, looking at the focus: the path of LLFF and nerfstudio for frontal captures.

    The radii are the 90 % quantiles of the cameras' offsets along its right, down and forward axes, kept between 3 %
    and 20 % of the distance to the focus. Position in its frame: (r_x cos a, -r_y sin a, -r_z sin(a / turns)), a over
    `turns`.
    """
    cameras = _checked(cameras, frames)
    if turns < 1:
        raise InputError(f"turns must be >= 1; got {turns}")
    point = focus_point(cameras, depth_hint) if focus is None else focus.detach().to("cpu", torch.float64)
    central = int((cameras.centers - cameras.centers.mean(0)).norm(dim=1).argmin())
    center, axes = cameras.centers[central], _rotations(cameras)[central]
    distance = float((point - center).norm())
    offsets = ((cameras.centers - center) @ axes.T).abs()
    radii = torch.quantile(offsets, 0.9, dim=0).clamp(0.03 * distance, 0.2 * distance)
    phase = torch.arange(frames, dtype=torch.float64) / frames * (2 * math.pi)
    local = torch.stack([(turns * phase).cos(), -(turns * phase).sin(), -phase.sin()], 1) * radii
    return _with_lens(look_at(center + local @ axes, point, -axes[1]), cameras[central])


def wobble(
    cameras: Cameras,
    frames: int = 90,
    *,
    view: int = 0,
    radius: float | int = 0.05,
    turns: int = 1,
    focus: Float[Tensor, "3"] | None = None,
    depth_hint: float | int | None = None,
) -> Cameras:
    """Move one camera on a small circle in its image plane, looking at a fixed point on its axis: parallax shows depth.

    Args:
        cameras: All of them help to find the focus.
        frames: Number of frames F.
        view: The camera that moves.
        radius: Of the circle, as a fraction of the distance to the focus.
        turns: Rounds.
        focus, depth_hint: As in `orbit`; the focus is moved onto the camera's axis at its z-depth.
    """
    if not 0 < radius < 1:
        raise InputError(f"radius must lie in (0, 1) of the distance to the focus; got {radius:g}")
    cameras = _checked(cameras, frames)
    center, axes, point = _axis_focus(cameras, view, focus, depth_hint)
    phase = torch.arange(frames, dtype=torch.float64) / frames * (2 * math.pi * turns)
    circle = phase.cos()[:, None] * axes[0] + phase.sin()[:, None] * axes[1]
    eyes = center + radius * (point - center).norm() * circle
    return _with_lens(look_at(eyes, point, -axes[1]), cameras[view])


def dolly(
    cameras: Cameras,
    frames: int = 90,
    *,
    view: int = 0,
    amount: float | int = 0.3,
    zoom: bool = False,
    focus: Float[Tensor, "3"] | None = None,
    depth_hint: float | int | None = None,
) -> Cameras:
    """Move one camera along its axis towards the focus and back, smoothly; closed.

    Args:
        cameras: All of them help to find the focus.
        frames: Number of frames F.
        view: The camera that moves.
        amount: Largest approach as a fraction of the distance to the focus, in (-2, 1); negative moves away.
        zoom: Change the focal length so that the plane of the focus keeps its size ("dolly zoom").
        focus, depth_hint: As in `wobble`.
    """
    if not -2 < amount < 1:
        raise InputError(f"amount must lie in (-2, 1) of the distance to the focus; got {amount:g}")
    cameras = _checked(cameras, frames)
    center, axes, point = _axis_focus(cameras, view, focus, depth_hint)
    phase = torch.arange(frames, dtype=torch.float64) / frames * (2 * math.pi)
    approach = amount * (1 - phase.cos()) / 2
    eyes = center + approach[:, None] * (point - center)
    path = _with_lens(poses_at(axes.expand(frames, 3, 3), eyes), cameras[view])
    if not zoom:
        return path
    K = path.K.clone()
    K[:, :2, :2] *= (1 - approach)[:, None, None].to(K)
    return Cameras(path.cam_from_world, K, path.width, path.height)


def orbit_around_gaussians(
    gaussians: Gaussians,
    frames: int = 120,
    *,
    width: int = 960,
    height: int = 540,
    fov_deg: float | int = 50.0,
    elevation_deg: float | int = 10.0,
    sweep_deg: float | int = 360.0,
    up: Float[Tensor, "3"] | None = None,
) -> Cameras:
    """A circle from the splats alone, for files that come without cameras.

    Centre: median of the means of splats that are not almost transparent. Distance: three quarters of them fit the
    smaller field of view. It starts in front (on the -z side, looking along +z), as a camera of an OpenCV frame would;
    in a world with z up, on the -y side.

    Args:
        gaussians: At least one.
        frames: Number of frames F.
        width, height: Picture size in pixels.
        fov_deg: Field of view of the larger side.
        elevation_deg: Height of the camera above the centre as an angle.
        sweep_deg: 360, or less for a swing to and fro about the front.
        up: World direction that is up; default -y (y down).

    Raises:
        InputError: No Gaussians, or values out of range.
    """
    if len(gaussians) == 0:
        raise InputError("there are no Gaussians to look at")
    if not 0 < fov_deg < 180 or not -90 < elevation_deg < 90 or not 0 < sweep_deg <= 360 or frames < 1:
        raise InputError(
            f"expected fov_deg in (0, 180), elevation_deg in (-90, 90), sweep_deg in (0, 360], frames >= 1; "
            f"got {fov_deg:g}, {elevation_deg:g}, {sweep_deg:g}, {frames}"
        )
    center, extent = scene_center_and_extent(gaussians)
    focal = max(width, height) / 2 / math.tan(math.radians(fov_deg) / 2)
    half_fov = math.atan(min(width, height) / 2 / focal)
    distance = extent / math.sin(half_fov)
    up = torch.tensor([0.0, -1.0, 0.0]) if up is None else up
    up = up.detach().to("cpu", torch.float64) / up.detach().double().norm().cpu()
    ahead, side = _horizontal_axes(up, *-torch.eye(3, dtype=torch.float64)[[2, 1]])
    phase = torch.arange(frames, dtype=torch.float64) / frames * (2 * math.pi)
    angle = phase if sweep_deg == 360 else math.radians(sweep_deg) / 2 * phase.sin()
    eyes = center + distance * _directions(angle, math.radians(elevation_deg), ahead, side, up)
    poses = look_at(eyes, center, up)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    return Cameras(poses.float(), K.float().expand(frames, 3, 3).clone(), width, height)


def scene_center_and_extent(gaussians: Gaussians) -> tuple[Float[Tensor, "3"], float]:
    """Median of the means, and the radius about it that holds three quarters of them (> 0); float64, world units."""
    means = gaussians.means.detach()[gaussians.opacities.detach() > 0.1]
    if len(means) == 0:
        means = gaussians.means.detach()
    # Half a million are plenty for quantiles, and torch sorts no more than 16 million.
    means = means[:: max(1, len(means) // 500_000)].to("cpu", torch.float64)
    center = means.median(0).values
    extent = float(torch.quantile((means - center).norm(dim=1), 0.75))
    return center, extent if extent > 0 else float(gaussians.scales.detach().max()) * 3


def typical_depth(gaussians: Gaussians, cameras: Cameras) -> float | None:
    """Median z-depth of the splats that the cameras see, a `depth_hint` for the paths above; None if they see none."""
    means = gaussians.means.detach()[gaussians.opacities.detach() > 0.1]
    means = means[:: max(1, len(means) // 20_000)].to("cpu", torch.float64)
    cameras = cameras[:: max(1, len(cameras) // 16)].to("cpu", torch.float64)
    uv, z = cameras.project(means)
    size = torch.stack([cameras.width, cameras.height], -1)[:, None]
    seen = z[(z > 0) & (uv >= 0).all(-1) & (uv < size).all(-1)]
    return float(seen.median()) if len(seen) else None


# ---------------------------------------------------------------- parts


def _checked(cameras: Cameras, frames: int) -> Cameras:
    """Posed cameras in float64 on the CPU; the paths choose one lens, so distortion records are dropped."""
    if frames < 1:
        raise InputError(f"frames must be >= 1; got {frames}")
    if cameras.cam_from_world is None:
        raise InputError("a trajectory needs posed cameras; these have intrinsics only")
    return Cameras(cameras.cam_from_world.detach(), cameras.K.detach(), cameras.width, cameras.height).to(
        "cpu", torch.float64
    )


def _rotations(cameras: Cameras) -> Float[Tensor, "V 3 3"]:
    """Rows are the camera's right, down and forward axes in the world."""
    assert cameras.cam_from_world is not None
    return cameras.cam_from_world[:, :3, :3]


def poses_at(rotations: Float[Tensor, "F 3 3"], eyes: Float[Tensor, "F 3"]) -> Float[Tensor, "F 4 4"]:
    poses = torch.eye(4, dtype=eyes.dtype, device=eyes.device).repeat(len(eyes), 1, 1)
    poses[:, :3, :3] = rotations
    poses[:, :3, 3] = -(rotations @ eyes[..., None])[..., 0]
    return poses


def _with_lens(poses: Float[Tensor, "F 4 4"], cameras: Cameras) -> Cameras:
    """Frames with the lens and picture size of the first camera, float32."""
    K = cameras.K[:1].expand(len(poses), 3, 3).float().clone()
    return Cameras(poses.float(), K, int(cameras.width[0]), int(cameras.height[0]))


def _axis_focus(
    cameras: Cameras, view: int, focus: Tensor | None, depth_hint: float | int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Centre and axes (rows) of one camera, and the point on its axis at the z-depth of the focus."""
    if not -len(cameras) <= view < len(cameras):
        raise InputError(f"there is no view {view}; the cameras are numbered 0 to {len(cameras) - 1}")
    point = focus_point(cameras, depth_hint) if focus is None else focus.detach().to("cpu", torch.float64)
    center, axes = cameras.centers[view], _rotations(cameras)[view]
    depth = float((point - center) @ axes[2])
    if depth <= 0:
        if focus is not None:
            raise InputError(f"the focus point lies behind view {view}; choose one in front of it")
        depth = float((point - center).norm())
    return center, axes, center + depth * axes[2]


def _horizontal_axes(up: Tensor, *candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Unit axes of the horizontal plane: along the first candidate that is not parallel to `up`, and a quarter turn on.

    A camera straight above the focus has no azimuth; its picture's axes are the further candidates then.
    """
    for candidate in candidates:
        flat = candidate - (candidate @ up) * up
        if flat.norm() > 1e-6 * candidate.norm():
            ahead = flat / flat.norm()
            return ahead, torch.linalg.cross(up, ahead)
    raise AssertionError("candidates that span space cannot all be parallel to up")


def _directions(angle: Tensor, elevation: float, ahead: Tensor, side: Tensor, up: Tensor) -> Float[Tensor, "F 3"]:
    """Unit vectors at the azimuths and the elevation, in radians."""
    flat = angle.cos()[:, None] * ahead + angle.sin()[:, None] * side
    return math.cos(elevation) * flat + math.sin(elevation) * up


def _covered_arc(azimuths: Float[Tensor, " V"]) -> tuple[float, float]:
    """Length and middle of the shortest arc that holds all azimuths, in radians."""
    ordered = azimuths.sort().values
    gaps = torch.cat([ordered[1:] - ordered[:-1], ordered[:1] + 2 * math.pi - ordered[-1:]])
    widest = int(gaps.argmax())
    covered = 2 * math.pi - float(gaps[widest])
    start = float(ordered[(widest + 1) % len(ordered)])
    return covered, start + covered / 2
