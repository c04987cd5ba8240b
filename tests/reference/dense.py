"""Every Gaussian at every pixel: the rasterizer written as the formulas stand, for any dtype, differentiable by
autograd.

The oracle of the rendering tests, run in float64. Rules and constants: gsplat 1.5.
"""

import torch
from torch import Tensor

from da3gs.geometry import spherical_harmonics
from da3gs.geometry.rotations import matrix_from_quat

BLUR_PX2 = 0.3
MIN_ALPHA = 1 / 255
MAX_ALPHA = 0.999
MIN_TRANSMITTANCE = 1e-4


def project(means, quats, scales, cam_from_world, K, width, height):
    """Pixel means [N, 2], 2D covariances without blur [N, 2, 2] and z-depths [N] in one camera."""
    W, p = cam_from_world[:3, :3], cam_from_world[:3, 3]
    x, y, z = (means @ W.T + p).unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    safe_z = torch.where(z > 0, z, torch.ones_like(z))
    # the Jacobian is taken inside the frustum plus 15 % of the image on each side
    slope_x = (x / safe_z).clamp(-cx / fx - 0.15 * width / fx, (width - cx) / fx + 0.15 * width / fx)
    slope_y = (y / safe_z).clamp(-cy / fy - 0.15 * height / fy, (height - cy) / fy + 0.15 * height / fy)
    zero = torch.zeros_like(z)
    J = torch.stack([fx / safe_z, zero, -fx * slope_x / safe_z, zero, fy / safe_z, -fy * slope_y / safe_z], -1)
    root = J.view(-1, 2, 3) @ W @ matrix_from_quat(quats) @ torch.diag_embed(scales)
    return torch.stack([fx * x / safe_z + cx, fy * y / safe_z + cy], -1), root @ root.transpose(1, 2), z


def colors_of(means, sh, cam_from_world):
    """Colours [N, 3] of SH [N, K, 3] seen from the camera."""
    eye = torch.linalg.inv(cam_from_world)[:3, 3]
    return (spherical_harmonics.evaluate(sh, means - eye) + 0.5).clamp_min(0)


def rasterize(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, cam_from_world: Tensor, K: Tensor,
    *, width: int, height: int, near, far, depth: bool, antialiased: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Image on zero [V, H, W, C (+ accumulated z)] and alpha [V, H, W, 1]; arguments as the backends."""
    pictures = [
        _rasterize_view(
            means, quats, scales, opacities, colors, pose, k, width, height, near[view], far[view], depth, antialiased
        )
        for view, (pose, k) in enumerate(zip(cam_from_world, K, strict=True))
    ]
    return torch.stack([image for image, _ in pictures]), torch.stack([alpha for _, alpha in pictures])


def _rasterize_view(
    means, quats, scales, opacities, colors, pose, K, width, height, near, far, depth, antialiased
):  # fmt: skip
    centers, sharp, z = project(means, quats, scales, pose, K, width, height)
    covariances = sharp + BLUR_PX2 * torch.eye(2).to(sharp)
    if antialiased:
        opacities = opacities * (torch.linalg.det(sharp) / torch.linalg.det(covariances)).clamp_min(1e-30).sqrt()
    channels = colors_of(means, colors, pose) if colors.ndim == 3 else colors
    if depth:
        channels = torch.cat([channels, z[:, None]], -1)
    order = torch.argsort(z.detach(), stable=True)
    order = order[(z[order] >= near) & (z[order] <= far)]

    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([u, v], -1).view(-1, 1, 2).to(means)
    d = centers[order] - pixels  # [pixels, N, 2]
    sigma = 0.5 * torch.einsum("pni,nij,pnj->pn", d, torch.linalg.inv(covariances[order]), d)
    alpha = (opacities[order] * torch.exp(-sigma)).clamp_max(MAX_ALPHA)
    alpha = torch.where(alpha >= MIN_ALPHA, alpha, 0)
    # the splat that would bring the transmittance to 1e-4 is left out, with everything behind it
    ended = (torch.cumprod(1 - alpha, 1) <= MIN_TRANSMITTANCE) & (alpha > 0)
    alpha = torch.where(ended.cumsum(1) > 0, 0, alpha)
    after = torch.cumprod(1 - alpha, 1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    image = (alpha * before) @ channels[order]
    covered = 1 - after[:, -1:] if len(order) else torch.zeros_like(image[:, :1])
    return image.view(height, width, -1), covered.view(height, width, 1)
