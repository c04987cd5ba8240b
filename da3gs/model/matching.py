"""What views have in common: patches that attention matches, and keypoints matched where it looks.

Networks trained with `train.matching` have a cross-view block whose first attention head looks at the same surface in
other views. That is right within a patch, wherever there is anything to see; keypoints are right within a pixel, but
repeat themselves all over a picture. Together: descriptors are compared only where attention looks, both ways.

    queries, keys ─► patches that choose each other ─┬─► Matches of a pair of views
    keypoints ─► nearest descriptors where they look ┘

Letters: V views, P patches of a view, C channels, M matches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from da3gs.images import ImageLike, Views, prepare_views, uint8_from_tensor
from da3gs.keypoints import find_keypoints
from da3gs.model.layers import Block
from da3gs.model.presets import PATCH

# Keypoints are found in pictures of at most this size (px), so many in each.
_KEYPOINT_SIZE = 798
_KEYPOINTS = 2000
_CONTRAST = 0.01  # pictures are small, and a wrong match costs little

# Standard deviations in pixels of the processed picture.
_PATCH_SIGMA = 6.0
_KEYPOINT_SIGMA = 0.5  # of a keypoint, in pixels of the picture it was found in ..
_LENS_SIGMA = 0.3  # .. and of what no pinhole explains
# Attention that a keypoint's patch must get from the other's, and the likeness of their descriptors.
_LEAST_ATTENTION = 0.01
_LEAST_COSINE = 0.6
_RATIO = 0.85  # of the distances to the best and the second best (Lowe)


@dataclass(frozen=True, eq=False)
class Matches:
    """M points seen by two views, i and j.

    Attributes:
        x_i, x_j: [M, 2] pixels of the processed pictures.
        sigma: [M] their standard deviation, pixels.
        weight: [M] in (0, 1]: how sure attention is; 1 for keypoints.
    """

    x_i: Float[Tensor, "M 2"]
    x_j: Float[Tensor, "M 2"]
    sigma: Float[Tensor, " M"]
    weight: Float[Tensor, " M"]

    def __len__(self) -> int:
        return len(self.x_i)

    @staticmethod
    def concatenate(parts: list["Matches"]) -> "Matches":
        names = ("x_i", "x_j", "sigma", "weight")
        return Matches(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def reversed(self) -> "Matches":
        return Matches(self.x_j, self.x_i, self.sigma, self.weight)


@dataclass(frozen=True, eq=False)
class PlacedKeypoints:
    """Keypoints of one view in pixels of its processed picture.

    Attributes:
        xy: [N, 2].
        descriptors: [N, 128], unit vectors.
        scale: Pixels of the processed picture per pixel of the one they were found in.
    """

    xy: Float[Tensor, "N 2"]
    descriptors: Float[Tensor, "N 128"]
    scale: float


def keypoints_of(images: Sequence[ImageLike] | Tensor, views: Views, *, upright: bool) -> list[PlacedKeypoints]:
    """Keypoints of the pictures that `views` were made from, found at up to 800 px.

    Args:
        upright: Whether files were turned by their EXIF tag for `views`.
    """
    size_px = min(_KEYPOINT_SIZE, int(views.original_size.max()))
    large = prepare_views(images, size_px=size_px, exif_orientation=upright)
    placed = []
    for view in range(len(views)):
        grey = uint8_from_tensor(large.images[view : view + 1].mean(1).expand(3, -1, -1))[..., 0]
        found = find_keypoints(grey, _KEYPOINTS, contrast=_CONTRAST)
        original = (torch.from_numpy(found.xy) + large.crop_left_top[view]) * (
            large.original_size[view] / large.resized_size[view]
        )
        stretch = views.resized_size[view] / views.original_size[view]
        scale = float((views.resized_size[view] / large.resized_size[view]).max())
        xy = original * stretch - views.crop_left_top[view]
        placed.append(PlacedKeypoints(xy, torch.from_numpy(found.descriptors), scale))
    return placed


def matched_descriptors(
    i: PlacedKeypoints, j: PlacedKeypoints, allowed: Bool[Tensor, "N L"], *, least_cosine: float, ratio: float
) -> tuple[Int64[Tensor, " M"], Int64[Tensor, " M"]]:
    """Keypoints of i and of j whose descriptors choose each other among those allowed.

    Args:
        allowed: Whether keypoint n of i may be keypoint l of j.
        least_cosine: Likeness that a match needs.
        ratio: Largest ratio of the distances to the best and to the second best (Lowe, IJCV 2004).
    """
    if min(len(i.xy), len(j.xy)) < 2:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    likeness = torch.where(allowed, i.descriptors @ j.descriptors.T, -1.0)
    best = likeness.topk(2, 1)
    (first, second), chosen = best.values.unbind(1), best.indices[:, 0]
    distance, other = ((2 - 2 * cosine.clamp(-1, 1)).sqrt() for cosine in (first, second))
    mutual = likeness.argmax(0)[chosen] == torch.arange(len(chosen))
    keep = (mutual & (first > least_cosine) & (distance < ratio * other)).nonzero()[:, 0]
    return keep, chosen[keep]


def queries_and_keys(block: Block, patches: Float[Tensor, "*views P C"]) -> tuple[Tensor, Tensor]:
    """What the first head of a cross-view block compares, [*views, P, c] each; their product is what it hands to its
    softmax, for patches (whose rotary angles are all one)."""
    attention, width = block.attention, patches.shape[-1]
    head = width // attention.heads
    normed = block.attention_norm(patches)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query, key = (
        norm(F.linear(normed, weight[first : first + head], bias[first : first + head]))
        for norm, first in ((attention.query_norm, 0), (attention.key_norm, width))
    )
    return query * head**-0.5, key


class PairAttention:
    """How the patches of two views look at each other."""

    def __init__(self, queries: Float[Tensor, "2 P C"], keys: Float[Tensor, "2 P C"], grid: tuple[int, int]):
        self.rows, self.columns = grid
        self.to_j = (queries[0] @ keys[1].T).softmax(-1)  # [patch of i, patch of j]
        self.to_i = (queries[1] @ keys[0].T).softmax(-1)

    def patches(self) -> Matches:
        """Patches that choose each other, up to a neighbour: i's patches in j, then j's patches in i."""
        there = self._one_way(self.to_j, self.to_i)
        return Matches.concatenate([there, self._one_way(self.to_i, self.to_j).reversed()])

    def _one_way(self, forth: Tensor, back: Tensor) -> Matches:
        patch = torch.arange(len(forth))
        row, column = patch // self.columns, patch % self.columns
        best = forth.argmax(1)
        home = back[best].argmax(1)
        mutual = ((row[home] - row).abs() <= 1) & ((column[home] - column).abs() <= 1)
        # The mean of the best patch and its neighbours, by attention.
        near = ((row - row[best][:, None]).abs() <= 1) & ((column - column[best][:, None]).abs() <= 1)
        attention = forth * near
        sure = attention.sum(1)
        centres = torch.stack([column, row], 1).to(forth) * PATCH + PATCH / 2
        there = (attention @ centres) / sure[:, None]
        count = int(mutual.sum())
        return Matches(centres[mutual], there[mutual], centres.new_full((count,), _PATCH_SIGMA), sure[mutual])

    def keypoints(self, i: PlacedKeypoints, j: PlacedKeypoints) -> Matches:
        """Keypoints whose descriptors choose each other among those where attention looks both ways."""
        patch_i, patch_j = self._patch(i.xy), self._patch(j.xy)
        allowed = self._around(self.to_j)[patch_i][:, patch_j] & self._around(self.to_i)[patch_j][:, patch_i].T
        first, second = matched_descriptors(i, j, allowed, least_cosine=_LEAST_COSINE, ratio=_RATIO)
        x_i, x_j = i.xy[first], j.xy[second]
        sigma = (_LENS_SIGMA**2 + (_KEYPOINT_SIGMA * max(i.scale, j.scale)) ** 2) ** 0.5
        return Matches(x_i, x_j, x_i.new_full((len(x_i),), sigma), x_i.new_ones(len(x_i)))

    def _patch(self, xy: Tensor) -> Tensor:
        column, row = (xy / PATCH).long().unbind(1)
        return row.clamp(0, self.rows - 1) * self.columns + column.clamp(0, self.columns - 1)

    def _around(self, attention: Tensor) -> Tensor:
        """Patches that get enough attention, with their neighbours."""
        maps = attention.view(-1, 1, self.rows, self.columns)
        return F.max_pool2d(maps, 3, 1, 1).flatten(1) > _LEAST_ATTENTION
