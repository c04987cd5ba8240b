"""Sparse points of pictures whose cameras are known: keypoints matched along epipolar lines and triangulated.

    pictures ─► keypoints ─► descriptors that choose each other near their epipolar lines ─► points per view

They are to predicted depth what the points of structure from motion are: they tell its scale and bend it.

Letters: V views, M points.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.geometry.cameras import Cameras
from da3gs.geometry.two_views import epipolar_distances, triangulate
from da3gs.images import ImageLike, Views
from da3gs.model.matching import PlacedKeypoints, keypoints_of, matched_descriptors
from da3gs.stereo import matching_views

_PARTNERS = 8  # views each view is matched with
# Distance from the epipolar line: pixels of the picture keypoints were found in, plus pixels of the processed one.
_KEYPOINT_PX, _LENS_PX = 1.5, 0.5
# Likeness of descriptors, and ratio of the distances to the best and the second best: near a line few are left to be
# taken for each other, so both are stricter than where attention has looked.
_LEAST_COSINE = 0.8
_RATIO = 0.8


@torch.no_grad()
def keypoint_points(
    images: Sequence[ImageLike], views: Views, cameras: Cameras, depth: Float[Tensor, "V H W"]
) -> list[Float[Tensor, "M 3"]]:
    """Per view the world points that its keypoints and those of other views agree on; possibly none.

    Args:
        images: What `views` were made from, not turned by EXIF.
        views: The processed pictures.
        cameras: Posed, at the size of the maps.
        depth: Predicted, > 0, roughly in the unit of the cameras: it tells which views see the same things.
    """
    cameras = cameras.detach().to("cpu")
    typical = depth.detach().cpu().flatten(1).median(1).values
    partners = matching_views(cameras, typical, cameras, _PARTNERS, list(range(len(cameras))))
    pairs = sorted({(min(i, j), max(i, j)) for i, row in enumerate(partners) for j in row})
    seen: list[list[Tensor]] = [[torch.zeros(0, 3)] for _ in images]
    if not pairs:
        return [torch.cat(parts) for parts in seen]
    keypoints = keypoints_of(images, views, upright=False)
    exact = cameras.to(torch.float64)
    for i, j in pairs:
        points = _of_pair(exact[[i]], exact[[j]], keypoints[i], keypoints[j]).float()
        seen[i].append(points)
        seen[j].append(points)
    return [torch.cat(parts) for parts in seen]


def _of_pair(camera_i: Cameras, camera_j: Cameras, i: PlacedKeypoints, j: PlacedKeypoints) -> Float[Tensor, "M 3"]:
    x_i, x_j = i.xy.double(), j.xy.double()
    near = epipolar_distances(camera_i, camera_j, x_i, x_j) < _KEYPOINT_PX * max(i.scale, j.scale) + _LENS_PX
    first, second = matched_descriptors(i, j, near, least_cosine=_LEAST_COSINE, ratio=_RATIO)
    found = triangulate(camera_i, camera_j, x_i[first], x_j[second])
    return found.points[found.good]
