"""What two posed views say about a point that both show: epipolar lines and triangulation.

Letters: M matches, N L pixels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import cross_matrix

# Rays that meet at less than this (cosine of 2 degrees) say little about depth; those that miss each other by more than
# this share of the distance belong to different things.
LEAST_PARALLAX = 0.9994
_LARGEST_GAP = 0.01


@dataclass(frozen=True, eq=False)
class Triangulated:
    """Result of `triangulate`.

    Attributes:
        points: [M, 3] in the world frame of the cameras.
        good: [M] in front of both, seen from directions 2 degrees apart or more, by rays that nearly meet.
    """

    points: Float[Tensor, "M 3"]
    good: Bool[Tensor, " M"]


def triangulate(i: Cameras, j: Cameras, x_i: Float[Tensor, "M 2"], x_j: Float[Tensor, "M 2"]) -> Triangulated:
    """Middles of the shortest lines between the rays of matched pixels (Hartley and Sturm, CVIU 1997, midpoint method).

    Args:
        i, j: One posed camera each.
        x_i, x_j: Pixels, centres at .5.
    """
    rays, centres = [], []
    for camera, pixels in ((i, x_i), (j, x_j)):
        assert camera.cam_from_world is not None
        rays.append(F.normalize(_homogeneous(pixels) @ torch.linalg.inv(camera.K[0]).T, dim=1))
        rays[-1] = rays[-1] @ camera.cam_from_world[0, :3, :3]
        centres.append(camera.centers[0])
    # c_i + a r_i and c_j + b r_j where they are nearest.
    cosine, apart = (rays[0] * rays[1]).sum(1), centres[1] - centres[0]
    determinant = (1 - cosine.square()).clamp(min=1e-12)
    along = rays[0] @ apart, rays[1] @ apart
    a, b = (along[0] - cosine * along[1]) / determinant, (cosine * along[0] - along[1]) / determinant
    ends = centres[0] + a[:, None] * rays[0], centres[1] + b[:, None] * rays[1]
    gap = (ends[0] - ends[1]).norm(dim=1) / torch.minimum(a, b).clamp(min=1e-9)
    good = (a > 0) & (b > 0) & (cosine < LEAST_PARALLAX) & (gap < _LARGEST_GAP)
    return Triangulated((ends[0] + ends[1]) / 2, good)


def epipolar_distances(
    i: Cameras, j: Cameras, x_i: Float[Tensor, "N 2"], x_j: Float[Tensor, "L 2"]
) -> Float[Tensor, "N L"]:
    """Distance in pixels of every pixel of j from the epipolar line of every pixel of i, or the other way round: the
    larger of both. Finite but without meaning where the centres coincide.

    Args:
        i, j: One posed camera each.
        x_i, x_j: Pixels, centres at .5.
    """
    assert i.cam_from_world is not None and j.cam_from_world is not None
    j_from_i = j.cam_from_world[0] @ torch.linalg.inv(i.cam_from_world[0])
    essential = cross_matrix(j_from_i[:3, 3]) @ j_from_i[:3, :3]
    fundamental = torch.linalg.inv(j.K[0]).T @ essential @ torch.linalg.inv(i.K[0])
    first, second = _homogeneous(x_i), _homogeneous(x_j)
    lines_j, lines_i = first @ fundamental.T, second @ fundamental
    product = (lines_j @ second.T).abs()
    tiny = torch.finfo(product.dtype).tiny
    lengths_j, lengths_i = (lines[:, :2].norm(dim=1).clamp(min=tiny) for lines in (lines_j, lines_i))
    return product / torch.minimum(lengths_j[:, None], lengths_i[None])


def _homogeneous(pixels: Float[Tensor, "N 2"]) -> Float[Tensor, "N 3"]:
    return torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
