"""The conventions of the package, each as a name.

===================  ================================================================================================
camera axes          OpenCV: x right, y down, z forward
transforms           ``a_from_b`` maps coordinates in b to coordinates in a; ``a_from_c = a_from_b @ b_from_c``
pixels               pixel (column 0, row 0) is centred at (0.5, 0.5); intrinsics in pixels travel with the image size
depth                z-depth unless the name says ``ray_depth`` (distance along the unit ray)
ray map              channels 0-2 direction d = R K^-1 p (not normalised), 3-5 origin t; P = t + D d with D the z-depth
quaternions          wxyz
Gaussians            activated values: standard deviations, opacities in [0, 1], SH [N, K, 3]
===================  ================================================================================================

Foreign conventions are converted where a foreign format is read or written, through the names below.
"""

import torch
from jaxtyping import Float
from torch import Tensor

# Camera axes of OpenGL and Blender (x right, y up, z backward) to ours; its own inverse.
OPENCV_FROM_OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))

# Our pixel centres lie at index + 0.5, those of cv2 functions at the index: c_cv2 = c - 0.5.
PIXEL_CENTER_PX = 0.5

DC_ONLY_DEGREE = 0
MAX_SH_DEGREE = 3


def rigid_inverse(transform: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Inverse of [R t; 0 1] through the transpose: exact for rigid transforms, differentiable."""
    rotation = transform[..., :3, :3].transpose(-1, -2)
    translation = -(rotation @ transform[..., :3, 3:])
    top = torch.cat([rotation, translation], -1)
    return torch.cat([top, transform[..., 3:, :]], -2)


def ray_depth_from_depth(
    depth: Float[Tensor, "*views H W"], inverse_K: Float[Tensor, "*views 3 3"]
) -> Float[Tensor, "*views H W"]:
    """Distance along the unit ray of every pixel centre from its z-depth."""
    return depth * camera_rays(inverse_K, depth.shape[-2], depth.shape[-1]).norm(dim=-1)


def depth_from_ray_depth(
    ray_depth: Float[Tensor, "*views H W"], inverse_K: Float[Tensor, "*views 3 3"]
) -> Float[Tensor, "*views H W"]:
    """z-depth of every pixel centre from its distance along the unit ray."""
    return ray_depth / camera_rays(inverse_K, ray_depth.shape[-2], ray_depth.shape[-1]).norm(dim=-1)


def camera_rays(inverse_K: Float[Tensor, "*views 3 3"], height: int, width: int) -> Float[Tensor, "*views H W 3"]:
    """K^-1 [u, v, 1] at every pixel centre, in the camera frame."""
    v, u = torch.meshgrid(
        torch.arange(height, dtype=inverse_K.dtype, device=inverse_K.device) + PIXEL_CENTER_PX,
        torch.arange(width, dtype=inverse_K.dtype, device=inverse_K.device) + PIXEL_CENTER_PX,
        indexing="ij",
    )
    pixels = torch.stack([u, v, torch.ones_like(u)], -1)
    return pixels @ inverse_K.transpose(-1, -2)[..., None, :, :]
