"""Ray maps: one ray per cell of a grid over the image, as the network predicts them.

Channels 0-2 hold the direction d = R K^-1 p (world frame, not normalised: its camera z component is 1), channels 3-5
the origin t; a point at z-depth D lies at P = t + D d. The released networks have this order; the paper writes (t, d).

Letters: V views, h w cells.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.geometry.cameras import Cameras
from da3gs.geometry.similarity import Similarity

DIRECTION, ORIGIN = slice(0, 3), slice(3, 6)


def ray_map(cameras: Cameras, columns: int, rows: int) -> Float[Tensor, "V h w 6"]:
    """Rays of posed cameras at the centres of `columns` x `rows` cells that cover the image. Gradients flow."""
    directions, origins = cameras.scaled(width=columns, height=rows).rays()
    return torch.cat([directions, origins[:, None, None].expand_as(directions)], -1)


def points_on_rays(rays: Float[Tensor, "*cells 6"], depth: Float[Tensor, "*cells"]) -> Float[Tensor, "*cells 3"]:
    """World points P = t + D d at z-depths D."""
    return rays[..., ORIGIN] + depth[..., None] * rays[..., DIRECTION]


def transform_rays(rays: Float[Tensor, "*cells 6"], b_from_a: Similarity) -> Float[Tensor, "*cells 6"]:
    """Rays of the moved scene: directions turn, origins move, and z-depths grow by the scale."""
    rotation = b_from_a.rotation.to(rays)
    return torch.cat([rays[..., DIRECTION] @ rotation.T, b_from_a.apply(rays[..., ORIGIN])], -1)
