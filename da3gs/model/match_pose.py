"""Cameras from matches between views: predicted depth ties them together first, the points they share decide at last.

    pairs of views: matches ─► relative poses (`pair_pose`)
    best pairs first, a tree over all views ─► all poses ─► adjusted together ─► tracks ─► bundle adjustment

Nothing here needs parallax: two views, views from one place and flat scenes have a solution, because depth is known up
to its errors. With parallax the matches decide, see `match_adjustment`.

Letters: V views, P patches, M matches of a pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from da3gs.geometry.cameras import Cameras
from da3gs.geometry.conventions import rigid_inverse
from da3gs.model.bundle_adjustment import Sightings, bundle_adjust, sightings_from_matches
from da3gs.model.match_adjustment import Cameras64, Observations, adjust, agreement
from da3gs.model.matching import Matches, PairAttention, PlacedKeypoints
from da3gs.model.pair_pose import KEYPOINT_SIGMA_BELOW, SURE, Pair, relative_pose, strength
from da3gs.model.presets import PATCH

_PARTNERS = 8  # views that each view is compared with, at least
_ROUNDS = 2
_AGREEMENT = 0.5  # of matches that become tracks
_FEW_KEYPOINTS = 8  # pairs with fewer are tied by their patches too
FOCAL_SIGMA = 0.2  # of the logarithm of a focal length predicted by the network


@dataclass(frozen=True, eq=False)
class MatchedCameras:
    """Result of `cameras_from_matches`.

    Attributes:
        cameras: V cameras in the frame of the network's first camera; one unit with depth x scale.
        scale: [V] what the depth of each view is to be multiplied by.
        sure: [V] views that enough matches tie to the largest group of views; of the others only a guess is known.
        matches: Number of matches in force.
        points: Per view [m, 3] points that its keypoints and those of others agree on, in the frame of the cameras.
    """

    cameras: Cameras
    scale: Float[Tensor, " V"]
    sure: Bool[Tensor, " V"]
    matches: int
    points: tuple[Float[Tensor, "_m 3"], ...]


@torch.no_grad()
def cameras_from_matches(
    depth: Float[Tensor, "V H W"],
    predicted: Cameras,
    queries: Float[Tensor, "V P C"],
    keys: Float[Tensor, "V P C"],
    keypoints: Sequence[PlacedKeypoints],
    *,
    focal_sigma: float = FOCAL_SIGMA,
    seed: int = 0,
) -> MatchedCameras | None:
    """Poses, scales of depth, and one correction of the focal length, from what pairs of views have in common.

    Args:
        depth: Predicted z-depth > 0.
        predicted: First cameras at the size of the maps; of their intrinsics one common factor of all focal lengths is
            corrected.
        queries, keys: Of the patches; see `matching.queries_and_keys`.
        keypoints: One set per view, possibly empty.
        focal_sigma: Standard deviation of the logarithm of the focal length; 0 keeps it.
        seed: Of the sampling.

    Returns:
        None when no two views have enough in common.
    """
    views, height, width = depth.shape
    grid = height // PATCH, width // PATCH
    depth, queries, keys = depth.cpu().double(), queries.cpu().float(), keys.cpu().float()
    K = predicted.K.cpu().double().clone()
    generator = torch.Generator().manual_seed(seed)
    # 1. Pairs that look at the same things, by their patches alone.
    candidates = _candidates(queries, keys, grid)
    # 2. Relative poses.
    pairs: list[Pair] = []
    for i, j in candidates:
        attention = PairAttention(queries[[i, j]], keys[[i, j]], grid)
        matches = Matches.concatenate([attention.patches(), attention.keypoints(keypoints[i], keypoints[j])])
        pair = relative_pose(i, j, matches, depth, K, focal_sigma, generator)
        if pair is not None:
            pairs.append(pair)
    if not any(pair.sure for pair in pairs):
        return None
    # 3. All poses, one after the other along the best pairs.
    R, t, order = _tree(pairs, predicted)
    index = torch.empty(views, dtype=torch.long)
    index[order] = torch.arange(views)
    zero = torch.zeros((), dtype=torch.float64)
    found = Cameras64(R[order], t[order], torch.zeros(views, dtype=torch.float64), zero)
    # 4. All together, the first placed view at rest; then once more with the pairs that agree with the others.
    used = [pair for pair in pairs if pair.sure]
    for _ in range(_ROUNDS):
        observed = Observations.concatenate([pair.observed for pair in used]).renumbered(index)
        found, _ = adjust(found, K[order], observed, focal_sigma=focal_sigma)
        used = [pair for pair in pairs if strength(found, K[order], pair.observed.renumbered(index)) >= SURE]
        if not used:
            return None
    # 5. And with points in place of predicted depth.
    seen = _tracks(used, index, found, K[order])
    bundle = bundle_adjust(found, K[order], seen, focal_sigma=focal_sigma)
    good = bundle.well_placed & (seen.sigma < KEYPOINT_SIGMA_BELOW)
    log_scale = bundle.cameras.log_scale.clone()
    for view in range(views):
        gaps = bundle.gaps[good & (seen.view == view)]
        if len(gaps) >= _FEW_KEYPOINTS:
            log_scale[view] += gaps.median()
    found = bundle.cameras[index]
    sure = torch.zeros(views, dtype=torch.bool)
    sure[sorted(_largest_group(used, views))] = True
    K[:, [0, 1], [0, 1]] *= found.log_focal.exp()
    poses = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    poses[:, :3, :3], poses[:, :3, 3] = found.R, found.t
    to_first = rigid_inverse(predicted.cam_from_world[0].cpu().double()) @ poses[0]
    sites = bundle.points @ to_first[:3, :3].T + to_first[:3, 3]
    cameras = Cameras(poses @ rigid_inverse(to_first), K, predicted.width, predicted.height)
    scale = log_scale[index].exp().float().to(predicted.K.device)
    points = tuple(sites[seen.point[good & (seen.view == index[view])]].float() for view in range(views))
    return MatchedCameras(cameras.to(predicted.K), scale, sure, len(observed) // 2, points)


# ---------------------------------------------------------------- pairs


def _candidates(queries: Tensor, keys: Tensor, grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Every view with those it shares most patches with."""
    views = len(queries)
    pairs = [(i, j) for i in range(views) for j in range(i + 1, views)]
    if views <= _PARTNERS + 1:
        return pairs
    shared = torch.zeros(views, views)
    for i, j in pairs:
        common = PairAttention(queries[[i, j]], keys[[i, j]], grid).patches().weight.sum()
        shared[i, j] = shared[j, i] = common
    chosen = shared.argsort(1, descending=True)[:, :_PARTNERS].tolist()
    return sorted({(min(i, j), max(i, j)) for i, row in enumerate(chosen) for j in row})


# ---------------------------------------------------------------- all views


def _tree(pairs: list[Pair], predicted: Cameras) -> tuple[Tensor, Tensor, list[int]]:
    """Poses along the best pairs: rotations, translations, and the views in the order of placing.

    The largest group of views that sure pairs connect comes first; views that no pair reaches stay at the predicted
    pose.
    """
    views = len(predicted)
    group = _largest_group([pair for pair in pairs if pair.sure], views)
    support = torch.zeros(views)
    for pair in pairs:
        if pair.sure:
            support[[pair.i, pair.j]] += pair.strength
    start = max(group, key=lambda view: float(support[view]))
    R = predicted.cam_from_world[:, :3, :3].cpu().double().clone()
    t = predicted.cam_from_world[:, :3, 3].cpu().double().clone()
    order = [start]
    for allowed in ([pair for pair in pairs if pair.sure], pairs):
        while True:
            open_pairs = [pair for pair in allowed if (pair.i in order) != (pair.j in order)]
            if not open_pairs:
                break
            best = max(open_pairs, key=lambda pair: pair.strength)
            if best.i in order:
                R[best.j], t[best.j] = best.R @ R[best.i], best.R @ t[best.i] + best.t
                order.append(best.j)
            else:
                R[best.i], t[best.i] = best.R.T @ R[best.j], best.R.T @ (t[best.j] - best.t)
                order.append(best.i)
    return R, t, order + [view for view in range(views) if view not in order]


def _largest_group(pairs: list[Pair], views: int) -> set[int]:
    """The largest set of views that pairs connect."""
    groups = [{view} for view in range(views)]
    for pair in pairs:
        a, b = (next(group for group in groups if view in group) for view in (pair.i, pair.j))
        if a is not b:
            groups.remove(b)
            a |= b
    return max(groups, key=lambda group: len(group))


def _tracks(pairs: list[Pair], index: Tensor, found: Cameras64, K: Tensor) -> Sightings:
    """What the matches that agree with the cameras make of each other; patches only where there are few keypoints."""
    views, places, depths, sigmas, weights = [], [], [], [], []
    for pair in pairs:
        there, back = pair.observed.renumbered(index).halves()
        agreed = torch.minimum(agreement(found, K, there), agreement(found, K, back)) > _AGREEMENT
        sharp = agreed & (there.sigma < KEYPOINT_SIGMA_BELOW)
        keep = sharp if int(sharp.sum()) >= _FEW_KEYPOINTS else agreed
        views.append(torch.stack([there.i, there.j], 1)[keep])
        places.append(torch.stack([there.x, there.y], 1)[keep])
        depths.append(torch.stack([there.depth, back.depth], 1)[keep])
        sigmas.append(there.sigma[keep])
        weights.append(there.weight[keep])
    return sightings_from_matches(*(torch.cat(parts) for parts in (views, places, depths, sigmas, weights)))
