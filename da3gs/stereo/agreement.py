"""Depth maps of several views held against each other, averaged, and gaps between measurements filled.

Letters: V views, H W pixels.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from da3gs.geometry.cameras import Cameras

# A view that sees through a point does so by this many tolerances.
_CLEARLY = 3.0
# Views that are averaged: relative difference of depth; range of it between four neighbouring pixels; rounds.
_MEET_WITHIN, _SMOOTH, _ROUNDS = 0.02, 0.01, 2
# Weight of a pyramid level against the one above it, per measured pixel under a cell.
_FULL_AT = 0.25


@torch.no_grad()
def agreement(
    depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    partners: list[list[int]],
    tolerance: float,
    slack: float = 0.0,
) -> tuple[Int64[Tensor, "V H W"], Int64[Tensor, "V H W"]]:
    """How many other views agree with the depth of a pixel, and how many see through where it puts the surface.

    Args:
        depth: z-depth > 0.
        cameras: Posed, at the size of the maps.
        partners: Per view the views it is held against.
        tolerance: Relative difference of inverse depth up to which views agree, or
        slack: the difference itself, where that is more (what counts when parallax is small).
    """
    _, height, width = depth.shape
    extent = depth.new_tensor([width, height])
    agreeing = torch.zeros(depth.shape, dtype=torch.int64)
    against = torch.zeros_like(agreeing)
    for view, others in enumerate(partners):
        points = cameras[view].unproject(depth[view : view + 1]).reshape(-1, 3)
        for other in others:
            uv, z = (values[0] for values in cameras[other].project(points))
            inside = ((z > 0) & (uv >= 0).all(-1) & (uv < extent).all(-1)).nonzero()[:, 0]
            column, row = uv[inside].long().unbind(-1)
            z = z[inside]
            nearer = z / depth[other][row, column] - 1
            bound = (slack * z).clamp(min=tolerance)
            agreeing[view].view(-1)[inside] += (nearer.abs() < bound).long()
            against[view].view(-1)[inside] += (nearer < -_CLEARLY * bound).long()
    return agreeing, against


@torch.no_grad()
def consensus(
    depth: Float[Tensor, "V H W"], confirmed: Bool[Tensor, "V H W"], cameras: Cameras, partners: list[list[int]]
) -> Float[Tensor, "V H W"]:
    """Depth averaged with what other views confirm near by, so that all of them put one surface in one place.

    Every view errs by a fraction of a pixel of its own; beside each other their surfaces make a blur. Runs on the CPU.

    Args:
        depth: z-depth > 0.
        confirmed: Whose depth counts; the others' follows where a confirmed surface is near.
        cameras: Posed, at the size of the maps.
        partners: Per view the views it is averaged with.
    """
    from da3gs.stereo.agreement_loops import mean_of_views

    carries = [[carry(cameras, view, cameras, other) for other in others] for view, others in enumerate(partners)]
    sure = confirmed.contiguous().numpy()

    def averaged(view: int, maps: np.ndarray) -> np.ndarray:
        result = np.empty_like(maps[view])
        matrices = np.array([matrix for matrix, _ in carries[view]], np.float32).reshape(-1, 3, 3)
        shifts = np.array([shift for _, shift in carries[view]], np.float32).reshape(-1, 3)
        others = np.array(partners[view], np.int64)
        limits = np.float32(_MEET_WITHIN), np.float32(_SMOOTH)
        mean_of_views(view, others, matrices, shifts, maps, sure, *limits, result)
        return result

    maps = depth.contiguous().numpy()
    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
        for _ in range(_ROUNDS):
            maps = np.stack(list(pool.map(averaged, range(len(maps)), [maps] * len(maps))))
    return torch.from_numpy(maps)


def carry(cameras: Cameras, view: int, sources: Cameras, source: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and shift of  matrix p + shift / depth, the homogeneous place in the source of pixel p of the view."""
    relative = sources.cam_from_world[source].double() @ cameras.world_from_cam[view].double()
    K = sources.K[source].double()
    matrix = K @ relative[:3, :3] @ torch.linalg.inv(cameras.K[view].double())
    return matrix.float().numpy(), (K @ relative[:3, 3]).float().numpy()


@torch.no_grad()
def bent_to_meet(
    predicted: Float[Tensor, "V H W"], measured: Float[Tensor, "V H W"], known: Bool[Tensor, "V H W"]
) -> Float[Tensor, "V H W"]:
    """`measured` where known; elsewhere `predicted` times a smooth factor that meets it at the borders of the gaps.

    The logarithm of the factor is filled by a pyramid of averages (pull-push, Gortler et al. 1996).
    """
    ratio = (measured / predicted).log()
    filled = _pull_push(torch.where(known, ratio, 0.0), known.to(ratio))
    return torch.where(known, measured, predicted * filled.exp())


def _pull_push(total: Tensor, weight: Tensor) -> Tensor:
    levels = [(total[:, None], weight[:, None])]
    # To a single cell: one with nothing known in it would say that nothing changes.
    while (size := levels[-1][0].shape[-2:]) != (1, 1):
        kernel = (min(2, size[0]), min(2, size[1]))
        levels.append(
            tuple(F.avg_pool2d(values, kernel, ceil_mode=True, count_include_pad=False) for values in levels[-1])  # type: ignore[arg-type]
        )
    values, weight = levels.pop()
    filled = values / weight.clamp(min=1e-12)
    for values, weight in reversed(levels):
        above = F.interpolate(filled, values.shape[-2:], mode="bilinear", align_corners=False)
        share = (weight / _FULL_AT).clamp(max=1)
        filled = share * values / weight.clamp(min=1e-12) + (1 - share) * above
    return filled[:, 0]
