"""A few views out of many: evenly along the sequence, or as different as possible when the cameras are known."""

from collections.abc import Sequence

import numpy as np
import torch

from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras


def evenly_spread(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` indices, first and last included; one alone is the middle one. All when there are no more."""
    if wanted < 1:
        raise InputError(f"at least one view must be kept; got {wanted}")
    if count <= wanted:
        return list(range(count))
    if wanted == 1:
        return [count // 2]
    return np.linspace(0, count - 1, wanted).round().astype(int).tolist()


def farthest_views(cameras: Cameras, wanted: int, among: Sequence[int] | None = None) -> list[int]:
    """Views that cover the set: greedy farthest-point choice over camera centres and viewing directions.

    Centres are measured in units of their root mean square distance from their mean, directions as unit vectors, so
    that a turn by 60 degrees counts as much as a step by that distance. The first one chosen is the one nearest to the
    mean of the others, which makes the choice independent of the order of the views.

    Args:
        cameras: Posed.
        wanted: How many, >= 1.
        among: Choose from these indices only; None: from all.

    Returns:
        Indices in ascending order; all of `among` when there are no more than `wanted`.
    """
    if wanted < 1:
        raise InputError(f"at least one view must be kept; got {wanted}")
    pool = list(range(len(cameras))) if among is None else list(among)
    if len(pool) <= wanted:
        return sorted(pool)
    chosen_cameras = cameras[pool].detach().to("cpu", torch.float64)
    centres = chosen_cameras.centers - chosen_cameras.centers.mean(0)
    spread = float(centres.square().sum(1).mean().sqrt())
    if spread > 0:
        centres = centres / spread
    features = torch.cat([centres, chosen_cameras.look_directions], 1)
    first = int((features - features.mean(0)).norm(dim=1).argmin())
    chosen = [first]
    distance = (features - features[first]).norm(dim=1)
    while len(chosen) < wanted:
        # The chosen ones are at distance 0; among equals (views at one place) take one that is not chosen yet.
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (features - features[chosen[-1]]).norm(dim=1))
    return sorted(pool[index] for index in chosen)
