"""The relative pose of two views: several guesses from their matches, the one that explains most of them.

    matches ─┬─► keypoints that obey one essential matrix ──┐
             └─► similarities between clouds of depth ──────┴─► adjusted ─► the likeliest, and its strength

Clouds need no parallax and take patches where there are no keypoints, but are as good as the predicted depth; for the
essential matrix it is the other way round.

Letters: M matches of a pair, S samples.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from da3gs.geometry.cameras import Cameras
from da3gs.geometry.two_views import triangulate
from da3gs.model.match_adjustment import Cameras64, Observations, adjust, agreement
from da3gs.model.matching import Matches

KEYPOINT_SIGMA_BELOW = 3.0  # px: patches are rougher

_SAMPLES = 400  # of 4 matches
_JUDGES = 200
_TRIED = 3  # samples that are adjusted
_LEAST_MATCHES = 8
_KERNELS = (1.2,)
_ITERATIONS = 10
# A pair is sure when the matches that agree with its relative pose, times their share, are so many. Of pairs of
# unrelated pictures one in 24 reached it (most 2 to 7); those with an error of some degrees have 20 and more.
SURE = 12.0
_PLENTY = 60.0  # strength that ends the search
# Standard deviations of logarithms: the scale between two clouds; a single depth in them.
_CLOUD_SCALE_SIGMA = 0.3
_CLOUD_DEPTH_SIGMA = 0.5
# Distance from the epipolar line in standard deviations, confidence and most samples of the essential matrix.
_ESSENTIAL_SIGMAS = 1.6
_ESSENTIAL_CONFIDENCE = 0.9999
_ESSENTIAL_SAMPLES = 5000
_LEAST_TRIANGULATED = 5


@dataclass(frozen=True, eq=False)
class Pair:
    """Two views: `observed` from both sides, and the pose (R, t) of i in j's frame with its strength."""

    i: int
    j: int
    observed: Observations
    R: Tensor
    t: Tensor
    strength: float

    @property
    def sure(self) -> bool:
        return self.strength >= SURE


def relative_pose(
    i: int, j: int, matches: Matches, depth: Tensor, K: Tensor, focal_sigma: float, generator: torch.Generator
) -> Pair | None:
    """The likeliest pose that some guess leads to; None with too few matches."""
    if len(matches) < _LEAST_MATCHES:
        return None
    x, y = matches.x_i.double(), matches.x_j.double()
    sigma, weight = matches.sigma.double(), matches.weight.double()
    depths = depth_at(depth[i], x), depth_at(depth[j], y)
    first, second = torch.zeros(len(x), dtype=torch.long), torch.ones(len(x), dtype=torch.long)
    observed = Observations.concatenate(
        [
            Observations(first, second, x, y, depths[0], sigma, weight),
            Observations(second, first, y, x, depths[1], sigma, weight),
        ]
    )
    best, lowest = None, torch.inf
    guesses = (
        lambda: _from_essential_matrix(x, y, depths, sigma, K[[i, j]]),
        lambda: _from_clouds(x, y, depths, sigma, weight, K[[i, j]], generator),
    )
    for starts in guesses:
        for start in starts():
            found, cost = adjust(
                start, K[[i, j]], observed, focal_sigma=focal_sigma, kernels=_KERNELS, iterations=_ITERATIONS
            )
            if cost < lowest:
                best, lowest = found, cost
        if best is not None and strength(best, K[[i, j]], observed) > _PLENTY:
            break
    assert best is not None
    R = best.R[1] @ best.R[0].T
    t = best.t[1] - R @ best.t[0]
    return Pair(i, j, observed.renumbered(torch.tensor([i, j])), R, t, strength(best, K[[i, j]], observed))


def strength(cameras: Cameras64, K: Tensor, observed: Observations) -> float:
    """Number of matches that agree with the cameras, times their share."""
    agreeing, all_of_them = observed.weight @ agreement(cameras, K, observed), observed.weight.sum()
    return float(agreeing.square() / all_of_them) / 2  # every match is there twice


def _from_clouds(
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


def _from_essential_matrix(
    x: Tensor,
    y: Tensor,
    depths: tuple[Tensor, Tensor],
    sigma: Tensor,
    K: Tensor,
) -> list[Cameras64]:
    """The pose that most keypoints allow, whatever their depth (Nister, PAMI 2004), in the unit of depth; or none."""
    import cv2

    sharp = sigma < KEYPOINT_SIGMA_BELOW
    if int(sharp.sum()) < _LEAST_MATCHES:
        return []
    pixels = x[sharp], y[sharp]
    rays = [_lifted(k, points, torch.ones_like(points[:, 0]))[:, :2] for k, points in zip(K, pixels, strict=True)]
    first, second = (both.contiguous().numpy() for both in rays)
    threshold = _ESSENTIAL_SIGMAS * float(sigma[sharp].median() / K[:, [0, 1], [0, 1]].mean())
    essential, inliers = cv2.findEssentialMat(
        first,
        second,
        np.eye(3),
        method=cv2.USAC_MAGSAC,
        prob=_ESSENTIAL_CONFIDENCE,
        threshold=threshold,
        maxIters=_ESSENTIAL_SAMPLES,
    )
    if essential is None or essential.shape != (3, 3):
        return []
    _, rotation, direction, inliers = cv2.recoverPose(essential, first, second, np.eye(3), mask=inliers)
    poses = torch.eye(4, dtype=x.dtype).repeat(2, 1, 1)
    poses[1, :3, :3], poses[1, :3, 3] = torch.from_numpy(rotation), torch.from_numpy(direction[:, 0])
    size = torch.ones(2, dtype=torch.long)
    cameras = Cameras(poses, torch.eye(3, dtype=x.dtype).repeat(2, 1, 1), size, size)
    met = triangulate(cameras[[0]], cameras[[1]], *rays)
    good = met.good & torch.from_numpy(inliers[:, 0] > 0)
    if int(good.sum()) < _LEAST_TRIANGULATED:
        return []
    points = met.points[good]
    z = points[:, 2], (points @ poses[1, :3, :3].T + poses[1, :3, 3])[:, 2]
    # What predicted depth is of these, in both views; the unit in between is that of the pair.
    times = torch.stack([(depth[sharp][good] / there).log().median() for depth, there in zip(depths, z, strict=True)])
    unit = times.mean()
    translations = poses[:, :3, 3] * unit.exp()
    return [Cameras64(poses[:, :3, :3], translations, unit - times, torch.zeros((), dtype=x.dtype))]


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


def depth_at(depth: Float[Tensor, "H W"], points: Float[Tensor, "M 2"]) -> Float[Tensor, " M"]:
    """Between pixel centres, as inverse depth, which is linear on planes."""
    height, width = depth.shape
    place = points / torch.tensor([width, height]).to(points) * 2 - 1
    sampled = F.grid_sample(1 / depth[None, None], place[None, None], align_corners=False, padding_mode="border")
    return 1 / sampled[0, 0, 0]
