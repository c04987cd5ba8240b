"""Named differentiable loss terms. Every term is a mean per scene, then a mean over scenes.

Means per scene make the loss of a batch the mean of its scenes, so it does not matter how many processes share a batch.
A scene without any valid pixel contributes zero.

Letters: B scenes, V W views, H W pixels, h w cells of the ray map, P Q patches of a view, C channels.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from da3gs.geometry.rays import points_on_rays
from da3gs.geometry.rotations import quat_from_matrix, rotation_angle

_SMALLEST_BASELINE = 0.15  # of the mean point distance: errors of shorter motions count as if they were this long


def masked_scene_mean(values: Float[Tensor, "B *rest"], mask: Bool[Tensor, "B *rest"]) -> Float[Tensor, ""]:
    """Mean of the masked values of each scene, averaged over scenes; masked-out values may be anything, even NaN."""
    kept = torch.where(mask, values, 0.0).flatten(1).sum(1)
    return (kept / mask.flatten(1).sum(1).clamp(min=1)).mean()


def confident_depth_l1(
    depth: Float[Tensor, "B V H W"],
    confidence: Float[Tensor, "B V H W"],
    target: Float[Tensor, "B V H W"],
    mask: Bool[Tensor, "B V H W"],
    *,
    log_weight: float = 0.2,
) -> Float[Tensor, ""]:
    """L_D = c |D - D*| - lambda log c (DA3, equation of the depth loss; Kendall & Gal 2017).

    With the error e fixed the best confidence is max(1, lambda / e), so `log_weight` is the error that counts as sure.
    """
    error = (depth - torch.where(mask, target, 0.0)).abs()
    return masked_scene_mean(confidence * error - log_weight * confidence.log(), mask)


def depth_gradient_l1(
    depth: Float[Tensor, "B V H W"],
    target: Float[Tensor, "B V H W"],
    mask: Bool[Tensor, "B V H W"],
    *,
    scales: int = 1,
) -> Float[Tensor, ""]:
    """L_grad: L1 on the differences of neighbouring depths, on the maps and on `scales` - 1 halvings of them."""
    total = depth.new_zeros(())
    for scale in range(scales):
        step = 2**scale
        d, t, m = depth[..., ::step, ::step], target[..., ::step, ::step], mask[..., ::step, ::step]
        for axis in (-1, -2):
            both = m.narrow(axis, 1, m.shape[axis] - 1) & m.narrow(axis, 0, m.shape[axis] - 1)
            total = total + masked_scene_mean((d.diff(dim=axis) - t.diff(dim=axis)).abs(), both)
    return total / scales


def ray_l1(rays: Float[Tensor, "B V h w 6"], target: Float[Tensor, "B V h w 6"]) -> Float[Tensor, ""]:
    """L_M: L1 on ray directions and origins of every cell, sky included (a ray exists everywhere)."""
    return (rays - target).abs().mean()


def point_l1(
    rays: Float[Tensor, "B V h w 6"],
    depth: Float[Tensor, "B V h w"],
    target: Float[Tensor, "B V h w 3"],
    mask: Bool[Tensor, "B V h w"],
) -> Float[Tensor, ""]:
    """L_P: L1 on the points P = t + D d formed on the ray grid from predicted depth and predicted rays."""
    points = points_on_rays(rays, depth)
    return masked_scene_mean((points - torch.where(mask[..., None], target, 0.0)).abs().mean(-1), mask)


def camera_l1(
    world_from_cam: Float[Tensor, "B V 4 4"],
    fov: Float[Tensor, "B V 2"],
    target_world_from_cam: Float[Tensor, "B V 4 4"],
    target_fov: Float[Tensor, "B V 2"],
) -> Float[Tensor, ""]:
    """L_C: L1 on field of view (radians), unit quaternion with its sign resolved, and translation."""
    quat = quat_from_matrix(world_from_cam[..., :3, :3])
    target = quat_from_matrix(target_world_from_cam[..., :3, :3])
    target = torch.where((quat * target).sum(-1, keepdim=True) < 0, -target, target)
    translation = (world_from_cam[..., :3, 3] - target_world_from_cam[..., :3, 3]).abs().mean()
    return (fov - target_fov).abs().mean() + (quat - target).abs().mean() + translation


def relative_pose(world_from_cam: Float[Tensor, "B V 4 4"], target: Float[Tensor, "B V 4 4"]) -> Float[Tensor, ""]:
    """Rotation and translation between all ordered pairs of views, each against its own size.

    The angle (radians) between predicted and true relative rotations, plus the error of the relative translation
    divided by the true baseline: with small baselines the absolute pose loss says next to nothing about the direction
    of motion, this one does. Baselines below 15 % of the mean point distance count as 15 %.
    """
    views = world_from_cam.shape[1]
    if views < 2:
        return world_from_cam.new_zeros(())
    first, second = torch.triu_indices(views, views, 1, device=world_from_cam.device)
    first, second = torch.cat([first, second]), torch.cat([second, first])

    def relative(poses):
        R, t = poses[..., :3, :3], poses[..., :3, 3]
        to_first = R[:, first].transpose(-1, -2)
        return to_first @ R[:, second], (to_first @ (t[:, second] - t[:, first])[..., None])[..., 0]

    rotation, motion = relative(world_from_cam)
    true_rotation, true_motion = relative(target)
    angle = _safe_angle(rotation, true_rotation)
    baseline = true_motion.norm(dim=-1).clamp(min=_SMALLEST_BASELINE)
    ratio = (motion - true_motion).abs().sum(-1) / baseline
    return angle.mean() + ratio.clamp(max=10.0).mean()


def _safe_angle(a: Tensor, b: Tensor) -> Tensor:
    """Twice the chord 2 sin(angle / 2) of two rotations: the angle to second order, with a finite gradient at 0."""
    chord = ((a - b).square().sum((-1, -2)) + 1e-6).sqrt()
    return chord / 2**0.5


def rotation_errors_deg(a: Float[Tensor, "*n 3 3"], b: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n"]:
    """Angles in degrees; for reports, not for training (no finite gradient at 0)."""
    return torch.rad2deg(rotation_angle(a, b))


def correspondence_cross_entropy(
    logits: Float[Tensor, "B V P W Q"], answer: Int64[Tensor, "B V P W"], mask: Bool[Tensor, "B V P W"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Which patch of another view shows the same surface: cross-entropy over that view's patches, and the hit rate.

    Args:
        logits: Of every patch of every view (V, P) for every patch of every view (W, Q).
        answer: True index among the Q.
        mask: Patches whose surface view W sees.
    """
    loss = F.cross_entropy(logits.flatten(0, 3), answer.flatten().clamp(min=0), reduction="none").view(mask.shape)
    hits = (logits.argmax(-1) == answer).to(loss)
    return masked_scene_mean(loss, mask), masked_scene_mean(hits, mask).detach()


# ------------------------------------------------------------------------------------------------ Gaussian head


def masked_mse(
    rgb: Float[Tensor, "V H W 3"], target: Float[Tensor, "V H W 3"], mask: Bool[Tensor, "V H W"]
) -> Float[Tensor, ""]:
    """Mean squared error over masked pixels and channels; 0 when there are none."""
    error = (rgb - target).square().mean(-1)
    return torch.where(mask, error, 0.0).sum() / mask.sum().clamp(min=1)


def scale_shift_invariant_l1(
    depth: Float[Tensor, "V H W"], target: Float[Tensor, "V H W"], mask: Bool[Tensor, "V H W"]
) -> Float[Tensor, ""]:
    """L1 between depths after each view is shifted by its median and divided by its mean absolute deviation (MiDaS).

    Symmetric and without any fit, so gradients flow through the normalisation of the prediction. Views with fewer than
    16 valid pixels do not count; the result is their mean, 0 if none is left.
    """
    losses = []
    for view in range(len(depth)):
        valid = mask[view]
        if int(valid.sum()) < 16:
            continue
        a, b = _standardised(depth[view][valid]), _standardised(target[view][valid])
        losses.append((a - b).abs().mean())
    return torch.stack(losses).mean() if losses else depth.sum() * 0.0


def _standardised(values: Tensor) -> Tensor:
    centred = values - values.median()
    return centred / centred.abs().mean().clamp(min=1e-6)


# ------------------------------------------------------------------------------------------------ single views

# A block needs so many valid pixels for two unknowns to say something.
_FEWEST_IN_BLOCK = 16
# Flat blocks: deviations are measured against at least this share of their depth.
_FLAT = 0.02


def aligned_depth(
    depth: Float[Tensor, "*n P"], target: Float[Tensor, "*n P"], mask: Bool[Tensor, "*n P"]
) -> tuple[Float[Tensor, "*n P"], Bool[Tensor, "*n"]]:
    """Depth after the scale and shift that bring it nearest to the target, in squares of relative errors.

    Gradients flow through scale and shift, so a loss of aligned depth does not pull at either. (As constants they would
    let it: where errors are not squared, the fit is not the minimum, and predictions drift.) Where the fit would turn
    depth over (scale <= 0) or cannot tell the two apart (a plane facing the camera), a scale alone.

    Returns:
        Aligned depth, and which of the n have enough valid pixels.
    """
    values, wanted = depth.double(), torch.where(mask, target, 1.0).double()
    weight = mask / wanted.square()
    total = weight.sum(-1, keepdim=True).clamp(min=1e-12)
    mean_d, mean_t = ((weight * part).sum(-1, keepdim=True) / total for part in (values, wanted))
    spread = (weight * (values - mean_d).square()).sum(-1, keepdim=True)
    together = (weight * (values - mean_d) * (wanted - mean_t)).sum(-1, keepdim=True)
    squares = (weight * values.square()).sum(-1, keepdim=True)
    affine = (spread > 1e-6 * squares) & (together > 0)
    scale_alone = (weight * values * wanted).sum(-1, keepdim=True) / squares.clamp(min=1e-12)
    scale = torch.where(affine, together / spread.clamp(min=1e-12), scale_alone)
    shift = torch.where(affine, mean_t - scale * mean_d, 0.0)
    enough = mask.sum(-1) >= _FEWEST_IN_BLOCK
    return scale.to(depth) * depth + shift.to(depth), enough


def global_affine_l1(
    depth: Float[Tensor, "V H W"], target: Float[Tensor, "V H W"], mask: Bool[Tensor, "V H W"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "V H W"]]:
    """The global part of L_gl (MoGe, Wang et al. 2024, for depth): mean |s D + b - D*| / D*, one s and b per view.

    Returns:
        The loss, a mean over the views that have depth, and the aligned depth.
    """
    aligned, enough = aligned_depth(depth.flatten(1), target.flatten(1), mask.flatten(1))
    aligned = aligned.view_as(depth)
    error = (aligned - target).abs() / torch.where(mask, target, 1.0)
    return masked_scene_mean(error, mask & enough[:, None, None]), aligned


def local_affine_l1(
    depth: Float[Tensor, "V H W"], target: Float[Tensor, "V H W"], mask: Bool[Tensor, "V H W"], *, blocks: int
) -> Float[Tensor, ""]:
    """The local part of L_gl: every block of a `blocks` x `blocks` grid is aligned by itself.

    Errors are measured against the mean deviation of the true depth in the block, so that small things count as much as
    large ones; a block counts as deviating by at least 2 % of its depth.
    """
    (d, t, m) = (_in_blocks(values, blocks) for values in (depth, target, mask))
    aligned, enough = aligned_depth(d, t, m)
    known = m.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(m, t, 0.0).sum(-1, keepdim=True) / known
    deviation = torch.where(m, (t - mean).abs(), 0.0).sum(-1, keepdim=True) / known
    error = (aligned - t).abs() / torch.maximum(deviation, _FLAT * mean).clamp(min=1e-9)
    # A block that is far off says so once, not a hundred times.
    return masked_scene_mean(error.clamp(max=5.0), m & enough[..., None])


def normal_angle(
    depth: Float[Tensor, "V H W"],
    target: Float[Tensor, "V H W"],
    mask: Bool[Tensor, "V H W"],
    rays: Float[Tensor, "V H W 3"],
) -> Float[Tensor, ""]:
    """L_N (DA3): angles in radians between surface normals of predicted and true depth.

    Each pixel has four normals, across the triangles it forms with its neighbours, and their mean, weighted by how much
    smaller a triangle is than the others: across an edge of depth triangles are large, and say little of either side.
    The loss is the mean of the angles of all five.

    Args:
        depth: In the unit of the target (align it first).
        rays: K^-1 p of every pixel, z = 1.
    """
    five = mask.clone()
    for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        five &= _neighbour(mask, *shift)
    predicted, true = (_five_normals(rays * torch.where(mask, values, 1.0)[..., None]) for values in (depth, target))
    five = five[:, 1:-1, 1:-1]
    chord = (predicted - true).square().sum(-1)
    # 2 asin(chord / 2), whose gradient is finite at 0 and near pi.
    angle = 2 * torch.asin((0.5 * (chord + 1e-8).sqrt()).clamp(max=1 - 1e-4))
    return masked_scene_mean(angle.mean(-1), five)


def _five_normals(points: Float[Tensor, "V H W 3"]) -> Float[Tensor, "V h w 5 3"]:
    """Unit normals of the four triangles around every inner pixel, and their weighted mean."""
    around = [(_neighbour(points, *shift) - points)[:, 1:-1, 1:-1] for shift in ((0, 1), (1, 0), (0, -1), (-1, 0))]
    crossed = torch.stack([torch.linalg.cross(around[i], around[(i + 1) % 4]) for i in range(4)], -2)
    size = (crossed.square().sum(-1, keepdim=True) + 1e-16).sqrt()
    units = crossed / size
    weights = (size.sum(-2, keepdim=True) - size).detach()
    mean = (weights * units).sum(-2, keepdim=True)
    mean = mean / (mean.square().sum(-1, keepdim=True) + 1e-16).sqrt()
    return torch.cat([units, mean], -2)


def _neighbour(values: Tensor, down: int, right: int) -> Tensor:
    """The value of the pixel that lies so many rows down and columns to the right; wraps around at the frame."""
    return values.roll((-down, -right), (1, 2))


def _in_blocks(values: Tensor, blocks: int) -> Tensor:
    """[V, H, W] -> [V, blocks^2, pixels]; what does not fill a whole block at the right and bottom is left out."""
    height, width = values.shape[1] // blocks, values.shape[2] // blocks
    cut = values[:, : height * blocks, : width * blocks]
    return cut.unflatten(2, (blocks, width)).unflatten(1, (blocks, height)).transpose(2, 3).flatten(3).flatten(1, 2)
