"""Maps of a small network at the size of larger pictures, with edges where the pictures have theirs.

Letters: V views, h w pixels of the small images, H W of the large ones.
"""

import torch
from jaxtyping import Float
from torch import Tensor

# Difference of colour (RGB in [0, 1], root mean square) at which a neighbour counts e^-0.5 as much.
_COLOUR_SIGMA = 0.08
# Distance in small pixels likewise.
_SPACE_SIGMA = 0.6


@torch.no_grad()
def joint_upsample(
    values: Float[Tensor, "V h w"], small: Float[Tensor, "V 3 h w"], large: Float[Tensor, "V 3 H W"]
) -> Float[Tensor, "V H W"]:
    """Joint bilateral upsampling (Kopf et al. 2007): each large pixel averages the 3x3 small ones around it, weighted
    by distance and by how much their colours are alike.

    Both images show the same full frame. Weights are positive, so results stay within the range of the nine values.
    """
    height, width = large.shape[-2:]
    result = values.new_empty(len(values), height, width)
    rows, row_distance = _nearest(values.shape[1], height, values)
    columns, column_distance = _nearest(values.shape[2], width, values)
    for view in range(len(values)):
        total = values.new_zeros(height, width)
        weights = torch.zeros_like(total)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                row = (rows + down).clamp(0, values.shape[1] - 1)[:, None]
                column = (columns + right).clamp(0, values.shape[2] - 1)
                space = (row_distance - down).square()[:, None] + (column_distance - right).square()
                colour = (large[view] - small[view][:, row, column]).square().mean(0)
                # A floor keeps the weights apart from 0 where nothing around has this colour.
                weight = torch.exp(-space / (2 * _SPACE_SIGMA**2)) * (
                    torch.exp(-colour / (2 * _COLOUR_SIGMA**2)) + 1e-3
                )
                total += weight * values[view][row, column]
                weights += weight
        result[view] = total / weights
    return result


def _nearest(small: int, large: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the small pixel each large pixel centre falls into, and its offset from that one's centre."""
    position = (torch.arange(large, dtype=like.dtype, device=like.device) + 0.5) * small / large
    index = position.long().clamp(max=small - 1)
    return index, position - index - 0.5
