"""Cameras from ray maps.

A ray map holds, per cell, a direction d ~ R K^-1 p and an origin t. The homography H ~ R K^-1 between cell positions
and directions gives R and K; the origins give the centre. Two solvers stand here:

* `cameras_from_rays`: seeded, works for rays of any direction, exact for any principal point. The one to use.
* `released_cameras_from_rays`: the released procedure with its numbers: torch's global generator, a factorisation that
  is exact for a centred principal point only.

Both solve the weighted direct linear transform through its 9x9 normal matrix in float64, so memory does not grow with
the square of the number of cells.

Letters: V views, h w cells, N = h w, K intrinsics.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.conventions import rigid_inverse
from da3gs.geometry.rotations import cross_matrix, nearest_rotation

# --------------------------------------------------------------------------------------------- our solver

HYPOTHESES = 256
SAMPLE = 4  # cells per hypothesis: a homography has 8 degrees of freedom, a direction fixes 2
SCORED_CELLS = 1024
INLIER_CHORD = 2 * math.sin(math.radians(3.0) / 2)  # distance of unit vectors three degrees apart
REFITS = 4
NEWTON_STEPS = 10
CONVERGED = 1e-12
AMBIGUOUS = 1e-13  # second eigenvalue of the normal matrix, relative to its trace
DEVIATIONS = 3 * 1.4826  # three standard deviations, in units of the median absolute deviation


def cameras_from_rays(
    rays: Float[Tensor, "V h w 6"],
    confidence: Float[Tensor, "V h w"],
    *,
    width: int,
    height: int,
    seed: int = 0,
) -> Cameras:
    """Fit one pinhole camera per view to its ray map, robustly and reproducibly. No gradients.

    Per view: homographies from 4-cell samples (drawn by confidence) are scored by truncated angular error, the best is
    refitted to its inliers, H = R K^-1 is split by a QR decomposition (the RQ decomposition of H^-1 = K R^T), and R and
    K without skew are refined by Gauss-Newton on the angles of the inliers. The centre is a confidence-weighted mean of
    the origins within three deviations of their median.

    Args:
        rays: Direction (any length > 0) and origin per cell, world frame; cells tile the image.
        confidence: Weights > 0.
        width, height: Image size in pixels that K refers to.
        seed: Of the sampling; the global generators are left alone.

    Returns:
        V cameras, float32, on the device of `rays`.

    Raises:
        InputError: Values that are not finite, or a map that no pinhole camera explains (directions on a line).
    """
    if not (torch.isfinite(rays).all() and torch.isfinite(confidence).all()):
        raise InputError("the ray map or its confidence holds NaN or infinity; no camera can be fitted")
    if (confidence < 0).any() or (confidence.flatten(1).amax(1) <= 0).any():
        raise InputError("ray confidence must be >= 0 with some cell > 0 in every view")
    rays, weight = rays.detach().double().flatten(1, 2), confidence.detach().double().flatten(1)
    generator = torch.Generator().manual_seed(seed)
    cells = _cell_positions(confidence.shape[1], confidence.shape[2], rays.device)
    fits = [_fit_view(cells, view, w, generator) for view, w in zip(rays, weight, strict=True)]
    rotations, focal_and_center = (torch.stack(parts) for parts in zip(*fits, strict=True))
    if not torch.isfinite(focal_and_center).all():
        view = int((~torch.isfinite(focal_and_center)).any(1).nonzero()[0])
        raise InputError(f"the ray map of view {view} is that of no pinhole camera: its directions do not spread")
    world_from_cam = torch.eye(4, dtype=torch.float64, device=rays.device).repeat(len(rays), 1, 1)
    world_from_cam[:, :3, :3] = rotations
    world_from_cam[:, :3, 3] = torch.stack([_robust_mean(v[:, 3:], w) for v, w in zip(rays, weight, strict=True)])
    K = torch.eye(3, dtype=torch.float64, device=rays.device).repeat(len(rays), 1, 1)
    K[:, [0, 1, 0, 1], [0, 1, 2, 2]] = focal_and_center
    K = _pixels_from_cells(width, height, rays.device) @ K
    return Cameras(rigid_inverse(world_from_cam).float(), K.float(), width, height)


def _fit_view(cells: Tensor, rays: Tensor, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """World-from-camera rotation and (fx, fy, cx, cy) in cell units; NaN if the directions do not determine them."""
    directions = F.normalize(rays[:, :3], dim=-1)
    # 1. Hypotheses from small samples, scored on a regular subset of the cells.
    draws = torch.multinomial(weight.float().cpu(), HYPOTHESES * SAMPLE, replacement=True, generator=generator)
    picks = draws.view(HYPOTHESES, SAMPLE).to(cells.device)
    hypotheses, _ = _homography(cells[picks], directions[picks], torch.ones_like(weight[picks]))
    subset = slice(None, None, max(1, len(cells) // SCORED_CELLS))
    cosine = _cosine(hypotheses.float(), cells[subset].float(), directions[subset].float())
    cost = (2 - 2 * cosine).clamp(max=INLIER_CHORD**2)
    homography = hypotheses[(weight[subset].float() * cost).sum(-1).argmin()]
    # 2. Refit to the inliers.
    for _ in range(REFITS):
        kept = _inliers(2 - 2 * _cosine(homography[None], cells, directions)[0], weight)
        homography, spread = _homography(cells, directions, kept)
    # 3. H = R K^-1 with K^-1 upper triangular, positive diagonal; det H > 0 fixes the sign. K without skew.
    if spread < AMBIGUOUS:
        return homography, homography.new_full((4,), torch.nan)
    homography = homography * torch.where(torch.linalg.det(homography) < 0, -1.0, 1.0)
    rotation, upper = torch.linalg.qr(homography)
    sign = torch.where(upper.diagonal() < 0, -1.0, 1.0)
    K = torch.linalg.inv(upper * sign[:, None])
    K = K / K[2, 2]
    return _refine(cells, directions, weight, rotation * sign, torch.stack([K[0, 0], K[1, 1], K[0, 2], K[1, 2]]))


def _refine(
    cells: Tensor, directions: Tensor, weight: Tensor, rotation: Tensor, camera: Tensor
) -> tuple[Tensor, Tensor]:
    """Gauss-Newton on sum w |unit(K^-1 p) - R^T d|^2 over the inliers, in (log fx, log fy, cx, cy) and a turn of R.

    A step that makes the sum larger is not taken, so the result is never worse than the start.
    """

    def state(rotation, camera):
        focal, center = camera[:2], camera[2:]
        bearing = torch.cat([(cells[:, :2] - center) / focal, cells[:, 2:]], -1)
        length = bearing.norm(dim=-1, keepdim=True)
        return bearing, length, bearing / length, directions @ rotation

    _, _, unit, seen = state(rotation, camera)
    kept = _inliers((unit - seen).square().sum(-1), weight)
    cost = (kept * (unit - seen).square().sum(-1)).sum()
    for _ in range(NEWTON_STEPS):
        bearing, length, unit, seen = state(rotation, camera)
        # d bearing / d(log fx, log fy, cx, cy), projected on the unit sphere.
        by_camera = torch.zeros(len(cells), 3, 4, dtype=cells.dtype, device=cells.device)
        by_camera[:, 0, 0], by_camera[:, 1, 1] = -bearing[:, 0], -bearing[:, 1]
        by_camera[:, 0, 2], by_camera[:, 1, 3] = -1 / camera[0], -1 / camera[1]
        by_camera = (by_camera - unit[:, :, None] * (unit[:, None] @ by_camera)) / length[..., None]
        # R exp([a]x) turns what the camera sees by -a x seen, so the residual changes by -[seen]x a.
        x, y, z = seen.unbind(-1)
        zero = torch.zeros_like(x)
        by_turn = -torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
        jacobian = torch.cat([by_camera, by_turn], -1)
        weighted = kept[:, None, None] * jacobian
        normal = torch.einsum("nij,nik->jk", weighted, jacobian)
        step = torch.linalg.lstsq(normal, -torch.einsum("nij,ni->j", weighted, unit - seen)[:, None]).solution[:, 0]
        turned = rotation @ torch.linalg.matrix_exp(cross_matrix(step[4:]))
        moved = torch.cat([camera[:2] * step[:2].clamp(-1, 1).exp(), camera[2:] + step[2:4]])
        _, _, unit, seen = state(turned, moved)
        square = (unit - seen).square().sum(-1)
        new_cost = (kept * square).sum()
        if not new_cost <= cost:
            break
        rotation, camera, kept = turned, moved, _inliers(square, weight)
        cost = (kept * square).sum()
        if step.abs().max() < CONVERGED:
            break
    return nearest_rotation(rotation), camera


def _inliers(square: Tensor, weight: Tensor) -> Tensor:
    """Weights of the cells whose squared error (of unit vectors) is within the cone and three deviations of its median.

    All weights if fewer than eight cells lie in the cone (untrained networks).
    """
    inside = (square < INLIER_CHORD**2) & (weight > 0)
    if int(inside.sum()) < 8:
        return weight
    limit = DEVIATIONS**2 * square[inside].median() + 1e-18
    return weight * (inside & (square <= limit))


def _homography(cells: Tensor, directions: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """H [..., 3, 3] minimising sum w |d x (H p)|^2 with |H| = 1, from cells and unit directions [..., n, 3].

    |d x y|^2 = y^T (1 - d d^T) y, so the normal matrix is the sum of w (1 - d d^T) kron (p p^T). Also returned is its
    second eigenvalue over its trace: near 0 another H fits as well.
    """
    across = torch.eye(3, dtype=cells.dtype, device=cells.device) - directions[..., :, None] * directions[..., None, :]
    outer = (cells[..., :, None] * cells[..., None, :]).flatten(-2)
    normal = (weight[..., None] * across.flatten(-2)).transpose(-1, -2) @ outer
    normal = normal.unflatten(-1, (3, 3)).unflatten(-3, (3, 3)).transpose(-3, -2)
    values, vectors = torch.linalg.eigh(normal.reshape(*normal.shape[:-4], 9, 9))
    return vectors[..., 0].unflatten(-1, (3, 3)), values[..., 1] / values.sum(-1)


def _cosine(homographies: Tensor, cells: Tensor, directions: Tensor) -> Tensor:
    """Cosine of the angle between H p and d, [hypotheses, cells], for the sign of H that most cells agree with."""
    mapped = cells @ homographies.transpose(-1, -2)
    cosine = (mapped * directions).sum(-1) / mapped.norm(dim=-1).clamp(min=1e-12)
    return cosine * torch.where(cosine.mean(-1, keepdim=True) < 0, -1.0, 1.0)


def _robust_mean(points: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of the points near their weighted per-axis median."""
    ordered, order = points.sort(0)
    share = weight[order].cumsum(0) / weight.sum()
    median = ordered.gather(0, (share < 0.5).sum(0, keepdim=True).clamp(max=len(points) - 1))[0]
    distance = (points - median).norm(dim=-1)
    spread = distance.median()
    near = weight * (distance <= DEVIATIONS * spread + 1e-9 * (1 + median.norm()))
    return (near[:, None] * points).sum(0) / near.sum() if near.sum() > 0 else median


def _cell_positions(rows: int, columns: int, device: torch.device) -> Float[Tensor, "N 3"]:
    """Homogeneous cell centres for an image that spans [-1, 1] in both axes."""
    x = (2 * torch.arange(columns, dtype=torch.float64, device=device) + 1) / columns - 1
    y = (2 * torch.arange(rows, dtype=torch.float64, device=device) + 1) / rows - 1
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y, torch.ones_like(grid_x)], -1).flatten(0, 1)


def _pixels_from_cells(width: int, height: int, device: torch.device) -> Float[Tensor, "3 3"]:
    """Affine map from [-1, 1] coordinates to pixels."""
    rows = [[width / 2, 0.0, width / 2], [0.0, height / 2, height / 2], [0.0, 0.0, 1.0]]
    return torch.tensor(rows, dtype=torch.float64, device=device)


# ------------------------------------------------------------------------------------ the released procedure

RELEASED_DRAWS = 100
RELEASED_SAMPLE = 8
RELEASED_CANDIDATES = 0.3
RELEASED_DISTANCE = 0.2
RELEASED_REFIT_CELLS = 8000
RELEASED_SMALLEST_Z = 1e-4


def released_cameras_from_rays(
    rays: Float[Tensor, "B V h w 6"], confidence: Float[Tensor, "B V h w"], *, width: int, height: int
) -> tuple[Float[Tensor, "B V 4 4"], Float[Tensor, "B V 3 3"]]:
    """World-from-camera transforms and pixel intrinsics by the released procedure. No gradients.

    Draws its samples from torch's global generator, once for all views. Rotation and principal point are biased unless
    the principal point is the image centre.
    """
    batch, views, rows, columns = confidence.shape
    flat = rays.detach().reshape(batch * views, rows * columns, 6)
    # 1. Directions as points on the plane z = 1; where that is impossible the weight becomes 0.
    valid = flat[..., 2].abs() > RELEASED_SMALLEST_Z
    plane = torch.where(
        valid[..., None], flat[..., :3] / torch.where(valid, flat[..., 2], 1.0)[..., None], flat[..., :3]
    )
    weight = confidence.detach().reshape(batch * views, -1) * valid
    cells = _cell_positions(rows, columns, rays.device)
    # 2. One table of samples, indices into every view's most confident cells.
    count = max(RELEASED_SAMPLE, int(RELEASED_CANDIDATES * rows * columns))
    candidates = weight.argsort(dim=-1, descending=True)[:, :count]
    table = torch.stack([torch.randperm(count)[:RELEASED_SAMPLE] for _ in range(RELEASED_DRAWS)]).to(rays.device)
    solved = [
        _released_fit(cells, p.double(), w.double(), c[table])
        for p, w, c in zip(plane, weight, candidates, strict=True)
    ]
    # 3. Rotation and intrinsics per view, centre from the weighted mean of the origins.
    rotation, lower = (torch.stack(parts) for parts in zip(*map(_ql, solved), strict=True))
    lower = lower / lower[:, 2:, 2:]
    center = (weight.double()[..., None] * flat[..., 3:].double()).sum(1) / weight.double().sum(1)[:, None]
    world_from_cam = torch.eye(4, dtype=torch.float64, device=rays.device).repeat(len(flat), 1, 1)
    world_from_cam[:, :3, :3] = rotation
    world_from_cam[:, :3, 3] = center
    K = torch.eye(3, dtype=torch.float64, device=rays.device).repeat(len(flat), 1, 1)
    K[:, 0, 0], K[:, 1, 1] = 1 / lower[:, 0, 0], 1 / lower[:, 1, 1]
    K[:, 0, 2], K[:, 1, 2] = lower[:, 2, 0], lower[:, 2, 1]
    K = _pixels_from_cells(width, height, rays.device) @ K
    return world_from_cam.float().unflatten(0, (batch, views)), K.float().unflatten(0, (batch, views))


def _released_fit(cells: Tensor, plane: Tensor, weight: Tensor, picks: Tensor) -> Tensor:
    """Homography of the best of the sampled hypotheses, refitted to its inliers."""
    hypotheses = _plane_homography(cells[picks], plane[picks], weight[picks])
    mapped = cells @ hypotheses.transpose(-1, -2)
    distance = (mapped[..., :2] / mapped[..., 2:] - plane[:, :2]).norm(dim=-1)
    inlier = distance < RELEASED_DISTANCE
    best = inlier[(weight * inlier).sum(-1).argmax()].nonzero().squeeze(1)
    if len(best) > RELEASED_REFIT_CELLS:
        strongest = best[weight[best].argsort(descending=True)]
        strongest = strongest[: max(int(0.95 * len(best)), RELEASED_REFIT_CELLS)]
        best = strongest[torch.randperm(len(strongest))[:RELEASED_REFIT_CELLS].to(strongest.device)]
    return _plane_homography(cells[best], plane[best], weight[best])


def _plane_homography(cells: Tensor, plane: Tensor, weight: Tensor) -> Tensor:
    """Direct linear transform (x, y, 1) -> (u, v): rows [-p, 0, u p], [0, -p, v p] times sqrt(weight); H[2,2] = 1."""
    outer = (cells[..., :, None] * cells[..., None, :]).flatten(-2)
    u, v = plane[..., 0], plane[..., 1]
    factors = torch.stack([weight, weight * u, weight * v, weight * (u * u + v * v)], -2)
    one, by_u, by_v, by_square = (factors @ outer).unflatten(-1, (3, 3)).unbind(-3)
    zero = torch.zeros_like(one)
    normal = torch.cat(
        [
            torch.cat([one, zero, -by_u], -1),
            torch.cat([zero, one, -by_v], -1),
            torch.cat([-by_u, -by_v, by_square], -1),
        ],
        -2,
    )
    _, vectors = torch.linalg.eigh(normal)
    homography = vectors[..., 0].unflatten(-1, (3, 3))
    return homography / homography[..., 2:, 2:]


def _ql(homography: Tensor) -> tuple[Tensor, Tensor]:
    """A = Q L with L lower triangular and a positive diagonal, A = +-H of positive determinant."""
    signed = torch.where(torch.linalg.det(homography) < 0, -homography, homography)
    orthogonal, upper = torch.linalg.qr(signed.flip(1))
    orthogonal, lower = orthogonal.flip(1), upper.flip(0, 1)
    sign = torch.sign(lower.diagonal())
    return orthogonal * sign, lower * sign[:, None]
