"""A budget over Gaussians: as many as fit, that look like all of them.

Letters: N Gaussians.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from da3gs.errors import InputError
from da3gs.fusion.filters import FilterRecord
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.rendering import RenderConfig, contributions

# A survivor of the budget that stands for r times its own contribution grows by r to this power (0.5 keeps the area;
# measured on an RGB-D scene, a little more hides the gaps between fewer splats), up to a limit.
_GROWTH = 0.55
_MOST_GROWTH = 8.0


def keep_budget(
    gaussians: Gaussians, cameras: Cameras, count: int, config: RenderConfig | None = None
) -> tuple[Gaussians, FilterRecord]:
    """At most `count` Gaussians that together look like all of them from `cameras`, in their old order.

    What counts is the contribution to these pictures, c = sum of T alpha. The `count` largest alone would leave holes
    where contributions are even (they lose to a random subset there). So the Gaussians are walked along a space-filling
    curve and cut into `count` stretches of equal sum of sqrt(c); the largest of each stretch stays, and grows along the
    surface by what the others of its stretch contributed.

    Raises:
        InputError: count < 1.
    """
    if count < 1:
        raise InputError(f"the budget of Gaussians must be >= 1; got {count}")
    before = len(gaussians)
    if before > count:
        gaussians = _represented(gaussians, contributions(gaussians, cameras, config).clamp(min=0), count)
    return gaussians, FilterRecord("max_gaussians", before, len(gaussians), count)


def _represented(gaussians: Gaussians, share: Float[Tensor, " N"], count: int) -> Gaussians:
    order = morton_codes(gaussians.means).argsort()
    weight = share[order].double().sqrt()
    total = weight.sum().clamp(min=1e-300)
    stretch = (weight.cumsum(0) / total * count - 1e-9).clamp(0, count - 1).long()
    largest = share.new_full((count,), -1.0).scatter_reduce(0, stretch, share[order], "amax")
    chosen = torch.zeros(len(gaussians), dtype=torch.bool, device=share.device)
    owner = order.new_full((count,), -1)
    is_largest = share[order] == largest[stretch]
    owner[stretch[is_largest]] = order[is_largest]
    chosen[owner[owner >= 0]] = True
    # A Gaussian that fills several stretches leaves some without an owner: the largest of the others fill up.
    missing = count - int(chosen.sum())
    rest = torch.where(chosen, -1.0, share)
    chosen[rest.topk(missing).indices] = True

    left_out = torch.where(chosen[order], 0.0, share[order])
    inherited = share.new_zeros(count).index_add(0, stretch, left_out)
    growth = torch.ones_like(share)
    owners = owner >= 0
    own = share[owner[owners]].clamp(min=1e-6)
    growth[owner[owners]] = (1 + inherited[owners] / own).pow(_GROWTH).clamp(max=_MOST_GROWTH)
    scales = gaussians.scales
    thin = torch.nn.functional.one_hot(scales.argmin(1), 3).bool()
    grown = torch.where(thin, scales, scales * growth[:, None])
    return Gaussians.unchecked(
        gaussians.means[chosen],
        gaussians.quats[chosen],
        grown[chosen],
        gaussians.opacities[chosen],
        gaussians.sh[chosen],
    )


def morton_codes(points: Float[Tensor, "N 3"]) -> Int64[Tensor, " N"]:
    """Position of every point along a Z-order curve through the box that holds 98 % of them, 2^16 cells a side."""
    sample = points[:: max(1, len(points) // 100_000)]
    low, high = sample.quantile(0.01, 0), sample.quantile(0.99, 0)
    cells = ((points - low) / (high - low).max().clamp(min=1e-30)).clamp(0, 1).mul(2**16 - 1).long()
    code = torch.zeros_like(cells[:, 0])
    for axis in range(3):
        bits = cells[:, axis]
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            bits = (bits | (bits << shift)) & mask
        code |= bits << axis
    return code
