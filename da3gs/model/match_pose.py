"""Cameras from matches between views, where predicted depth stands in for triangulated points.

    pairs of views: matches ─► similarity between their clouds (sampled) ─► adjusted ─► score
    best pairs first, a tree over all views ─► all poses ─► adjusted together

Nothing here needs parallax: two views, views from one place and flat scenes have a solution, because depth is known up
to its errors. With parallax the matches decide, see `match_adjustment`.

Letters: V views, P patches, M matches of a pair, S samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from da3gs.geometry.cameras import Cameras
from da3gs.geometry.conventions import rigid_inverse
from da3gs.geometry.two_views import triangulate
from da3gs.model.match_adjustment import Cameras64, Observations, adjust, agreement
from da3gs.model.matching import Matches, PairAttention, PlacedKeypoints
from da3gs.model.presets import PATCH

_PARTNERS = 8  # views that each view is compared with, at least
_SAMPLES = 400  # of 4 matches, per pair
_JUDGES = 200
_TRIED = 3  # samples that are adjusted
_LEAST_MATCHES = 8
_PAIR_KERNELS = (1.2,)
# A pair is sure when the matches that agree with its relative pose, times their share, are so many. Of pairs of
# unrelated pictures one in 24 reached it (most 2 to 7); those with an error of some degrees have 20 and more.
_SURE = 12.0
_ROUNDS = 2
_KEYPOINT_SIGMA_BELOW = 3.0  # px: patches are rougher
# Standard deviations of logarithms: a focal length predicted by the network; the scale between two clouds.
FOCAL_SIGMA = 0.2
_CLOUD_SCALE_SIGMA = 0.3
_CLOUD_DEPTH_SIGMA = 0.5


@dataclass(frozen=True, eq=False)
class MatchedCameras:
    """Result of `cameras_from_matches`.

    Attributes:
        cameras: V cameras in the frame of the network's first camera; one unit with depth x scale.
        scale: [V] what the depth of each view is to be multiplied by.
        sure: [V] views that enough matches tie to the largest group of views; of the others only a guess is known.
        matches: Number of matches in force.
        points: Per view [m, 3] points triangulated from its keypoint matches, in the frame of the cameras.
    """

    cameras: Cameras
    scale: Float[Tensor, " V"]
    sure: Bool[Tensor, " V"]
    matches: int
    points: tuple[Float[Tensor, "_m 3"], ...]


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two views: `observed` from both sides, and the pose (R, t) of i in j's frame with its strength."""

    i: int
    j: int
    observed: Observations
    R: Tensor
    t: Tensor
    strength: float

    @property
    def sure(self) -> bool:
        return self.strength >= _SURE


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
    pairs: list[_Pair] = []
    for i, j in candidates:
        attention = PairAttention(queries[[i, j]], keys[[i, j]], grid)
        matches = Matches.concatenate([attention.patches(), attention.keypoints(keypoints[i], keypoints[j])])
        pair = _relative_pose(i, j, matches, depth, K, focal_sigma, generator)
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
        used = [pair for pair in pairs if _strength(found, K[order], pair.observed.renumbered(index)) >= _SURE]
        if not used:
            return None
    found = found[index]
    sure = torch.zeros(views, dtype=torch.bool)
    sure[sorted(_largest_group(used, views))] = True
    K[:, [0, 1], [0, 1]] *= found.log_focal.exp()
    poses = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    poses[:, :3, :3], poses[:, :3, 3] = found.R, found.t
    first = predicted.cam_from_world[0].cpu().double()
    poses = poses @ rigid_inverse(poses[0]) @ first
    exact = Cameras(poses, K, predicted.width, predicted.height)
    cameras = exact.to(predicted.K)
    scale = found.log_scale.exp().float().to(predicted.K.device)
    points = _triangulated([pair.observed for pair in used], exact)
    return MatchedCameras(cameras, scale, sure, len(observed) // 2, points)


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


def _relative_pose(
    i: int, j: int, matches: Matches, depth: Tensor, K: Tensor, focal_sigma: float, generator: torch.Generator
) -> _Pair | None:
    """The best of several sampled similarities, adjusted; None with too few matches."""
    if len(matches) < _LEAST_MATCHES:
        return None
    x, y = matches.x_i.double(), matches.x_j.double()
    sigma, weight = matches.sigma.double(), matches.weight.double()
    depths = _depth_at(depth[i], x), _depth_at(depth[j], y)
    first, second = torch.zeros(len(x), dtype=torch.long), torch.ones(len(x), dtype=torch.long)
    observed = Observations.concatenate(
        [
            Observations(first, second, x, y, depths[0], sigma, weight),
            Observations(second, first, y, x, depths[1], sigma, weight),
        ]
    )
    best, lowest = None, torch.inf
    for start in _sampled(x, y, depths, sigma, weight, K[[i, j]], generator):
        found, cost = adjust(start, K[[i, j]], observed, focal_sigma=focal_sigma, kernels=_PAIR_KERNELS, iterations=10)
        if cost < lowest:
            best, lowest = found, cost
    assert best is not None
    R = best.R[1] @ best.R[0].T
    t = best.t[1] - R @ best.t[0]
    return _Pair(i, j, observed.renumbered(torch.tensor([i, j])), R, t, _strength(best, K[[i, j]], observed))


def _strength(cameras: Cameras64, K: Tensor, observed: Observations) -> float:
    """Number of matches that agree with the cameras, times their share."""
    agreeing, all_of_them = observed.weight @ agreement(cameras, K, observed), observed.weight.sum()
    return float(agreeing.square() / all_of_them) / 2  # every match is there twice


def _sampled(
    x: Tensor,
    y: Tensor,
    depths: tuple[Tensor, Tensor],
    sigma: Tensor,
    weight: Tensor,
    K: Tensor,
    generator: torch.Generator,
) -> list[Cameras64]:
    """The similarities through four matches that explain most of them."""
    clouds = [_lifted(k, points, z) for k, points, z in zip(K, (x, y), depths, strict=True)]
    picks = torch.multinomial((weight / sigma).expand(_SAMPLES, -1), 4, generator=generator)
    scale, R, t = _similarities(clouds[0][picks], clouds[1][picks])
    # A few hundred matches tell which samples are good.
    judges = torch.arange(0, len(x), max(1, len(x) // _JUDGES))
    y, sigma, weight = y[judges], sigma[judges], weight[judges]
    turned = scale[:, None, None] * (clouds[0][judges] @ R.transpose(1, 2))
    landed = turned + t[:, None]
    z = landed[..., 2:].clamp(min=1e-6)
    focal, centre = K[1, [0, 1], [0, 1]], K[1, :2, 2]
    difference = focal * landed[..., :2] / z + centre - y
    along = focal * (turned[..., :2] / z - landed[..., :2] * turned[..., 2:] / z.square())
    length = along.norm(dim=-1).clamp(min=1e-9)
    parallel = (difference * along).sum(-1) / length
    across = difference.square().sum(-1) - parallel.square()
    error = across / sigma**2 + parallel.square() / (sigma**2 + (_CLOUD_DEPTH_SIGMA * length).square())
    explained = weight / (1 + error) * (landed[..., 2] > 0)
    score = explained.sum(1) * torch.exp(-0.5 * (scale.log() / _CLOUD_SCALE_SIGMA).square())
    starts = []
    for best in score.topk(_TRIED).indices.tolist():
        # X_j = s (R X_i) + t: in units of i's depth the translation is t / s, and j's depth is s times too large.
        rotations = torch.stack([torch.eye(3, dtype=x.dtype), R[best]])
        translations = torch.stack([torch.zeros(3, dtype=x.dtype), t[best] / scale[best]])
        half = 0.5 * scale[best].log()
        scales = torch.stack([half, -half])
        starts.append(Cameras64(rotations, translations * half.exp(), scales, torch.zeros((), dtype=x.dtype)))
    return starts


def _similarities(source: Float[Tensor, "S 4 3"], target: Float[Tensor, "S 4 3"]) -> tuple[Tensor, Tensor, Tensor]:
    """Scales [S], rotations and translations of least squares (Umeyama, PAMI 1991)."""
    a, b = source - source.mean(1, keepdim=True), target - target.mean(1, keepdim=True)
    U, D, Vt = torch.linalg.svd(b.transpose(1, 2) @ a)
    sign = torch.ones_like(D)
    sign[:, 2] = torch.linalg.det(U @ Vt).sign()
    R = U @ (sign[..., None] * Vt)
    scale = ((D * sign).sum(1) / a.square().sum((1, 2)).clamp(min=1e-12)).clamp(1 / 3, 3)
    return scale, R, target.mean(1) - scale[:, None] * (R @ source.mean(1)[..., None])[..., 0]


def _lifted(K: Tensor, points: Float[Tensor, "M 2"], depth: Float[Tensor, " M"]) -> Float[Tensor, "M 3"]:
    return torch.cat([(points - K[:2, 2]) / K[[0, 1], [0, 1]], torch.ones_like(points[:, :1])], 1) * depth[:, None]


def _depth_at(depth: Float[Tensor, "H W"], points: Float[Tensor, "M 2"]) -> Float[Tensor, " M"]:
    """Between pixel centres, as inverse depth, which is linear on planes."""
    height, width = depth.shape
    place = points / torch.tensor([width, height]).to(points) * 2 - 1
    sampled = F.grid_sample(1 / depth[None, None], place[None, None], align_corners=False, padding_mode="border")
    return 1 / sampled[0, 0, 0]


# ---------------------------------------------------------------- all views


def _tree(pairs: list[_Pair], predicted: Cameras) -> tuple[Tensor, Tensor, list[int]]:
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


def _largest_group(pairs: list[_Pair], views: int) -> set[int]:
    """The largest set of views that pairs connect."""
    groups = [{view} for view in range(views)]
    for pair in pairs:
        a, b = (next(group for group in groups if view in group) for view in (pair.i, pair.j))
        if a is not b:
            groups.remove(b)
            a |= b
    return max(groups, key=lambda group: len(group))


def _triangulated(observed: list[Observations], cameras: Cameras) -> tuple[Tensor, ...]:
    """Per view the points that its keypoints and those of another view agree on; patches are too rough."""
    seen: list[list[Tensor]] = [[] for _ in range(len(cameras))]
    for both in observed:
        once = (both.i < both.j) & (both.sigma < _KEYPOINT_SIGMA_BELOW)
        i, j = int(both.i.min()), int(both.i.max())
        found = triangulate(cameras[[i]], cameras[[j]], both.x[once], both.y[once])
        for view in (i, j):
            seen[view].append(found.points[found.good])
    nothing = torch.zeros(0, 3, dtype=cameras.K.dtype)
    return tuple(torch.cat([nothing, *parts]).float() for parts in seen)
