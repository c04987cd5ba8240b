"""Fit a run into the memory that is free, before anything is computed."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from da3gs.errors import InputError
from da3gs.images import PATCH_PX

logger = logging.getLogger(__name__)

# Share of the free memory a run may plan with: other processes, fragmentation and the estimate's error need the rest.
_USABLE = 0.85
# Sides below this cost more quality than leaving out views does.
SMALLEST_SIDE_PX = 280
_SIDE_STEP_PX = 56

WhenTight = Literal["adapt", "refuse", "ignore"]


@dataclass(frozen=True)
class MemoryPlan:
    """What will run.

    Attributes:
        size_px: Longest side of the processed images.
        views: Number of views.
        estimate_bytes: Of the network at that size.
        free_bytes: Free memory of the device before the run; None when unknown.
        changed: One line about what was lowered and why; None when nothing was.
    """

    size_px: int
    views: int
    estimate_bytes: int
    free_bytes: int | None
    changed: str | None = None


def plan_memory(
    estimate: Callable[[int, int, int], int],
    *,
    views: int,
    size_px: int,
    aspect: float | int,
    free_bytes: int | None,
    when_tight: WhenTight = "adapt",
) -> MemoryPlan:
    """The largest run that fits: the asked-for one, else a lower resolution, else fewer views.

    Args:
        estimate: Peak bytes of (views, height, width).
        views, size_px: Asked for.
        aspect: Shorter over longer side of the images, in (0, 1].
        free_bytes: Free memory; None (unknown) lets everything pass.
        when_tight: "adapt", or "refuse" with advice, or "ignore" the estimate.

    Raises:
        InputError: It does not fit and `when_tight` is "refuse", or not even one small view fits.
    """
    if views < 1 or not 0 < aspect <= 1:
        raise InputError(f"planning memory needs views >= 1 and an aspect in (0, 1]; got {views} and {aspect:g}")
    needed = estimate(views, *_sides(size_px, aspect))
    if free_bytes is None or when_tight == "ignore" or needed <= _USABLE * free_bytes:
        return MemoryPlan(size_px, views, needed, free_bytes)
    shortage = f"{views} views at {size_px} px need about {_gib(needed)} but {_gib(free_bytes)} are free"
    smaller, fewer = _fitting(estimate, views, size_px, aspect, _USABLE * free_bytes)
    if smaller is None:
        raise InputError(
            f"{shortage}, which is too little for even one view at {_smallest(size_px)} px; "
            "close other programs, use a smaller model, or another device"
        )
    if when_tight == "refuse":
        raise InputError(
            f"{shortage}; {fewer} views with --size {smaller} would fit, or take a smaller model or device"
        )
    lowered = f"{shortage}: going on with {fewer} views at {smaller} px"
    logger.warning(lowered)
    return MemoryPlan(smaller, fewer, estimate(fewer, *_sides(smaller, aspect)), free_bytes, lowered)


def free_memory(device: torch.device) -> int | None:
    """Free bytes on a device: of the GPU, or of this machine (and its cgroup) for the CPU; None when not known."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    found = [value for value in (_available(), _cgroup_room()) if value is not None]
    return min(found) if found and device.type == "cpu" else None


def _fitting(
    estimate: Callable[[int, int, int], int], views: int, size_px: int, aspect: float | int, limit: float | int
) -> tuple[int | None, int]:
    for side in [*range(size_px - _SIDE_STEP_PX, _smallest(size_px), -_SIDE_STEP_PX), _smallest(size_px)]:
        if estimate(views, *_sides(side, aspect)) <= limit:
            return side, views
    side = _smallest(size_px)
    if estimate(1, *_sides(side, aspect)) > limit:
        return None, 0
    low, high = 1, views
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if estimate(middle, *_sides(side, aspect)) <= limit else (low, middle)
    return side, low


def _smallest(size_px: int) -> int:
    return min(size_px, SMALLEST_SIDE_PX)


def _sides(size_px: int, aspect: float | int) -> tuple[int, int]:
    """(height, width) on the patch grid; which is which does not matter for memory."""
    height, width = (max(PATCH_PX, round(side / PATCH_PX) * PATCH_PX) for side in (size_px * aspect, size_px))
    return height, width


def _available() -> int | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_room() -> int | None:
    """What the container may still take (cgroup v2); file cache counts as free because it is given back."""
    folder = Path("/sys/fs/cgroup")
    limit, current = folder / "memory.max", folder / "memory.current"
    if not (limit.exists() and current.exists()) or limit.read_text().strip() == "max":
        return None
    cached = 0
    for line in (folder / "memory.stat").read_text().splitlines():
        name, value = line.split()
        if name in ("inactive_file", "active_file"):
            cached += int(value)
    return max(0, int(limit.read_text()) - int(current.read_text()) + cached)


def _gib(count: float | int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**28 else f"{count / 2**20:.0f} MiB"
