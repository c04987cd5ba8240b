"""Depth maps of several views held against each other, averaged, and gaps between measurements filled.

Letters: V views, H W pixels.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16
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
) -> tuple[Int16[Tensor, "V H W"], Int16[Tensor, "V H W"]]:
    """How many other views agree with the depth of a pixel, and how many see through where it puts the surface.

    Runs on the CPU.

    Args:
        depth: z-depth > 0.
        cameras: Posed, at the size of the maps.
        partners: Per view the views it is held against.
        tolerance: Relative difference of inverse depth up to which views agree, or
        slack: the difference itself, where that is more (what counts when parallax is small).
    """
    from da3gs.stereo.agreement_loops import count_agreeing

    maps, carries = depth.contiguous().numpy(), _carries(cameras, partners)
    agreeing, against = (np.zeros(maps.shape, np.int16) for _ in range(2))
    limits = np.float32(tolerance), np.float32(slack), np.float32(_CLEARLY)

    def count(view: int) -> None:
        count_agreeing(view, *carries[view], maps, *limits, agreeing[view], against[view])

    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
        list(pool.map(count, range(len(maps))))
    return torch.from_numpy(agreeing), torch.from_numpy(against)


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

    carries, sure = _carries(cameras, partners), confirmed.contiguous().numpy()

    def averaged(view: int, maps: np.ndarray) -> np.ndarray:
        result = np.empty_like(maps[view])
        mean_of_views(view, *carries[view], maps, sure, np.float32(_MEET_WITHIN), np.float32(_SMOOTH), result)
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


def _carries(cameras: Cameras, partners: list[list[int]]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per view its partners, and matrices and shifts that carry its pixels to them: [O], [O, 3, 3], [O, 3]."""
    arrays = []
    for view, others in enumerate(partners):
        carries = [carry(cameras, view, cameras, other) for other in others]
        matrices = np.array([matrix for matrix, _ in carries], np.float32).reshape(-1, 3, 3)
        shifts = np.array([shift for _, shift in carries], np.float32).reshape(-1, 3)
        arrays.append((np.array(others, np.int64), matrices, shifts))
    return arrays


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
