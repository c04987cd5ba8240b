"""A plain-torch tile rasterizer: no kernels, vectorised over (tiles, splats, pixels). The oracle for larger scenes and
the baseline of the benchmark.

Projection and SH go through autograd; compositing has a hand-written backward, or autograd would store every pair.
"""

import torch
from torch import Tensor

from reference import dense

TILE = 8
CHUNK = 32  # splats of a tile evaluated at once
PAIRS = 1 << 20  # (tile, splat, pixel) triples per block


def rasterize(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, cam_from_world: Tensor, K: Tensor,
    *, width: int, height: int, near, far, depth: bool, antialiased: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Image on zero [V, H, W, C (+ accumulated z)] and alpha [V, H, W, 1]; arguments as the backends."""
    assert not antialiased, "the dense reference covers antialiased rendering"
    images, alphas = [], []
    for view, (pose, k) in enumerate(zip(cam_from_world, K, strict=True)):
        centers, conics, covariances, z = _project(means, quats, scales, pose, k, width, height)
        channels = dense.colors_of(means, colors, pose) if colors.ndim == 3 else colors
        if depth:
            channels = torch.cat([channels, z[:, None]], -1)
        splats, offsets = _list_tiles(
            *(value.detach() for value in (centers, conics, covariances, opacities, z)),
            width, height, near[view], far[view],
        )  # fmt: skip
        image, transmittance = _Composite.apply(centers, conics, opacities, channels, splats, offsets, width)
        images.append(_untile(image, width, height))
        alphas.append(1 - _untile(transmittance[..., None], width, height))
    return torch.stack(images), torch.stack(alphas)


def _project(means, quats, scales, pose, K, width, height):
    """As dense.project, spelled out per component for speed: centres, conics and covariances (a, b, c) with blur, z."""
    q = torch.nn.functional.normalize(quats, dim=-1)
    w, x, y, z = q.unbind(-1)
    R = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        -1,
    ).view(-1, 3, 3)
    W = pose[:3, :3]
    root = (W @ R) * scales[:, None, :]
    x, y, z = (means @ W.T + pose[:3, 3]).unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    safe_z = torch.where(z > 1e-6, z, torch.ones_like(z))
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    slope_x = torch.minimum(torch.maximum(x / safe_z, -cx / fx - margin_x), (width - cx) / fx + margin_x)
    slope_y = torch.minimum(torch.maximum(y / safe_z, -cy / fy - margin_y), (height - cy) / fy + margin_y)
    row_x = (fx / safe_z)[:, None] * root[:, 0] - (fx * slope_x / safe_z)[:, None] * root[:, 2]
    row_y = (fy / safe_z)[:, None] * root[:, 1] - (fy * slope_y / safe_z)[:, None] * root[:, 2]
    a = (row_x * row_x).sum(-1) + dense.BLUR_PX2
    b = (row_x * row_y).sum(-1)
    c = (row_y * row_y).sum(-1) + dense.BLUR_PX2
    determinant = a * c - b * b
    conics = torch.stack([c / determinant, -b / determinant, a / determinant], -1)
    centers = torch.stack([fx * x / safe_z + cx, fy * y / safe_z + cy], -1)
    return centers, conics, torch.stack([a, b, c], -1), z


@torch.no_grad()
def _list_tiles(centers, conics, covariances, opacities, z, width, height, near, far):
    """Splats of every tile, front to back, in one list; the offsets of the tiles in it."""
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    visible = (z >= near) & (z <= far) & (opacities >= dense.MIN_ALPHA)
    order = visible.nonzero()[:, 0]
    order = order[torch.argsort(z[order], stable=True)]
    x, y = centers[order].unbind(-1)
    sigmas = torch.sqrt(2 * torch.log(opacities[order] / dense.MIN_ALPHA))
    extent_x = sigmas * covariances[order, 0].sqrt() * 1.001 + 1e-3
    extent_y = sigmas * covariances[order, 2].sqrt() * 1.001 + 1e-3

    def tile_range(center, extent, size):
        first = torch.ceil(center - 0.5 - extent).clamp(0, size - 1).long() // TILE
        last = torch.floor(center - 0.5 + extent).clamp(-1, size - 1).long().div(TILE, rounding_mode="floor")
        return first, last

    (first_x, last_x), (first_y, last_y) = tile_range(x, extent_x, width), tile_range(y, extent_y, height)
    across, down = (last_x - first_x + 1).clamp_min(0), (last_y - first_y + 1).clamp_min(0)
    counts = across * down
    rank = torch.repeat_interleave(torch.arange(len(order)), counts)
    within = torch.arange(len(rank)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    tile = (first_y[rank] + within // across[rank]) * tiles_x + first_x[rank] + within % across[rank]

    # keep the tiles that the ellipse meets: the least value of the quadratic form over the tile's pixel centres
    A, B, C = conics[order][rank].unbind(-1)
    x0 = tile % tiles_x * TILE - (x[rank] - 0.5)
    y0 = tile // tiles_x * TILE - (y[rank] - 0.5)
    x1, y1 = x0 + TILE - 1, y0 + TILE - 1
    inside = (x0 <= 0) & (x1 >= 0) & (y0 <= 0) & (y1 >= 0)
    least = torch.full_like(A, torch.inf)
    for d in (x0, x1):
        s = torch.minimum(torch.maximum(-B * d / C, y0), y1)
        least = torch.minimum(least, A * d * d + 2 * B * d * s + C * s * s)
    for d in (y0, y1):
        s = torch.minimum(torch.maximum(-B * d / A, x0), x1)
        least = torch.minimum(least, A * s * s + 2 * B * d * s + C * d * d)
    keep = inside | (least <= 2 * torch.log(opacities[order][rank] / dense.MIN_ALPHA) * 1.002 + 1e-3)
    tile, position = torch.sort(tile[keep], stable=True)
    counts = torch.bincount(tile, minlength=tiles_x * tiles_y)
    return order[rank[keep][position]], torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _untile(values: Tensor, width: int, height: int) -> Tensor:
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    rows = values.view(tiles_y, tiles_x, TILE, TILE, -1).permute(0, 2, 1, 3, 4)
    return rows.reshape(tiles_y * TILE, tiles_x * TILE, -1)[:height, :width]


class _Composite(torch.autograd.Function):
    """Image [tiles, pixels, C] and transmittance [tiles, pixels]."""

    @staticmethod
    def forward(ctx, centers, conics, opacities, channels, splats, offsets, width):
        ctx.tiles_x = -(-width // TILE)
        parameters = torch.cat([centers, conics, opacities[:, None], channels], -1)
        parameters = torch.cat([parameters, torch.zeros_like(parameters[:1])])  # row N: nothing, pads short lists
        tiles, pixels = len(offsets) - 1, TILE * TILE
        image, transmittance = torch.zeros(tiles, pixels, channels.shape[1]), torch.ones(tiles, pixels)
        for block, sizes in _blocks(offsets):
            blended = torch.zeros(len(block), pixels, channels.shape[1])
            before, done = torch.ones(len(block), pixels), torch.zeros(len(block), pixels, dtype=torch.bool)
            for start in range(0, int(sizes[0]), CHUNK):
                active = ((sizes > start) & ~done.all(1)).nonzero()[:, 0]
                if len(active) == 0:
                    break
                _, p, _, _, alpha = _chunk(
                    parameters, splats, offsets, block[active], sizes[active], start, ctx.tiles_x
                )
                T = before[active]
                reaching, ended = _advance(alpha.clamp_max_(dense.MAX_ALPHA), T, done[active])
                weight = alpha.mul_(reaching)
                blended[active] += torch.bmm(weight.transpose(1, 2), p[..., 6:])
                done[active] |= ended
                before[active] = T - weight.sum(1)
            image[block], transmittance[block] = blended, before
        ctx.save_for_backward(parameters, splats, offsets, image, transmittance)
        return image, transmittance

    @staticmethod
    def backward(ctx, v_image, v_transmittance):
        parameters, splats, offsets, image, transmittance = ctx.saved_tensors
        v_parameters = torch.zeros_like(parameters)
        v_behind = (v_image * image).sum(-1) + v_transmittance * transmittance
        for block, sizes in _blocks(offsets):
            before, behind = torch.ones(len(block), TILE * TILE), v_behind[block]
            done = torch.zeros(len(block), TILE * TILE, dtype=torch.bool)
            for start in range(0, int(sizes[0]), CHUNK):
                active = ((sizes > start) & ~done.all(1)).nonzero()[:, 0]
                if len(active) == 0:
                    break
                ids, p, dx, dy, uncapped = _chunk(
                    parameters, splats, offsets, block[active], sizes[active], start, ctx.tiles_x
                )
                alpha, T = uncapped.clamp_max(dense.MAX_ALPHA), before[active]
                reaching, ended = _advance(alpha, T, done[active])
                weight = alpha * reaching
                v = v_image[block[active]]
                along = torch.bmm(p[..., 6:], v.transpose(1, 2))  # <g, c> per splat and pixel
                rest = behind[active][:, None] - torch.cumsum(weight * along, 1)
                v_sigma = reaching.mul_(along).sub_(rest / (1 - alpha)).mul_(alpha).neg_()
                v_sigma.mul_(uncapped <= dense.MAX_ALPHA)
                v_channels = torch.bmm(weight, v)
                done[active] |= ended
                before[active] = T - weight.sum(1)
                behind[active] = rest[:, -1]
                # moments of v_sigma over the tile's rows and columns give the rest
                powers_x = torch.stack([torch.ones_like(dx), dx, dx * dx], -1)
                powers_y = torch.stack([torch.ones_like(dy), dy, dy * dy], -2)
                moments = powers_y @ (v_sigma.view(*v_sigma.shape[:2], TILE, TILE) @ powers_x)
                A, B, C = p[..., 2], p[..., 3], p[..., 4]
                m_x, m_y = moments[..., 0, 1], moments[..., 1, 0]
                v_splat = torch.stack(
                    [
                        *(A * m_x + B * m_y, B * m_x + C * m_y),
                        *(0.5 * moments[..., 0, 2], moments[..., 1, 1], 0.5 * moments[..., 2, 0]),
                        -moments[..., 0, 0] / p[..., 5].clamp_min(1e-12),
                    ],
                    -1,
                )
                v_parameters.index_add_(0, ids.flatten(), torch.cat([v_splat, v_channels], -1).flatten(0, 1))
        v_parameters = v_parameters[:-1]
        return v_parameters[:, :2], v_parameters[:, 2:5], v_parameters[:, 5], v_parameters[:, 6:], None, None, None


def _blocks(offsets: Tensor):
    """Tiles in blocks of similar list length, longest first."""
    sizes = offsets.diff()
    order = torch.argsort(sizes, descending=True)
    step = max(1, PAIRS // (CHUNK * TILE * TILE))
    for start in range(0, len(order), step):
        block = order[start : start + step]
        yield block, sizes[block]


def _chunk(parameters, splats, offsets, tiles, sizes, start, tiles_x):
    """CHUNK splats of each tile: ids, parameters [B, L, 6 + C], mean - pixel along x and y, opacity exp(-sigma) [B,
    L, P].
    """
    number = torch.arange(start, start + CHUNK)
    there = number < sizes[:, None]
    ids = torch.where(there, splats[torch.where(there, offsets[tiles][:, None] + number, 0)], len(parameters) - 1)
    p = parameters[ids]
    steps = torch.arange(TILE) + 0.5
    dx = p[..., 0:1] - ((tiles % tiles_x * TILE)[:, None, None] + steps)
    dy = p[..., 1:2] - ((tiles // tiles_x * TILE)[:, None, None] + steps)
    power = torch.addcmul(
        (-0.5 * p[..., 4:5] * dy * dy)[..., :, None], (-p[..., 3:4] * dy)[..., :, None], dx[..., None, :]
    )
    power += (-0.5 * p[..., 2:3] * dx * dx)[..., None, :]
    alpha = power.clamp_max_(0).exp_().mul_(p[..., 5, None, None])
    return ids, p, dx, dy, alpha.flatten(2)


def _advance(alpha, before, done):
    """T in front of each splat, and which pixels have ended; alphas that do not count become 0 in place."""
    alpha.mul_(alpha >= dense.MIN_ALPHA)
    after = torch.cumprod(1 - alpha, 1).mul_(before[:, None])
    live = (after > dense.MIN_TRANSMITTANCE) & ~done[:, None]
    alpha.mul_(live)
    return torch.cat([before[:, None], after[:, :-1]], 1), ~live[:, -1]
