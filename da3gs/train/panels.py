"""Pictures for the log: rows of equally sized images in one picture."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

# Key colours of a perceptually ordered map from near (bright) to far (dark), after matplotlib's magma (CC0).
_NEAR_TO_FAR = (
    (0.99, 0.99, 0.75), (1.0, 0.62, 0.43), (0.87, 0.29, 0.41), (0.55, 0.16, 0.51), (0.23, 0.06, 0.44), (0.0, 0.0, 0.02),
)  # fmt: skip


def depth_picture(depth: Float[Tensor, "H W"], *, like: Float[Tensor, "H W"] | None = None) -> Float[Tensor, "3 H W"]:
    """False colours of disparity over the range of `like` (2 % to 98 % of its valid pixels); unknown depth is black."""
    reference = (depth if like is None else like).detach().float()
    known = reference[reference > 0]
    depth = depth.detach().float().cpu()
    if not len(known):
        return torch.zeros(3, *depth.shape)
    far, near = torch.quantile(1 / known[:: max(1, len(known) // 100_000)], torch.tensor([0.02, 0.98]).to(known)).cpu()
    share = ((near - 1 / depth.clamp(min=1e-9)) / (near - far).clamp(min=1e-9)).clamp(0, 1) * (len(_NEAR_TO_FAR) - 1)
    colours = torch.tensor(_NEAR_TO_FAR)
    low = share.floor().long().clamp(max=len(colours) - 2)
    mixed = torch.lerp(colours[low], colours[low + 1], (share - low)[..., None])
    return torch.where(depth[..., None] > 0, mixed, 0.0).permute(2, 0, 1)


def grid(rows: list[list[Float[Tensor, "3 H W"]]], gap_px: int = 2) -> Float[Tensor, "3 h w"]:
    """Rows of pictures of one size, with a white gap between them."""

    def join(parts, axis):
        spacer = list(parts[0].shape)
        spacer[axis] = gap_px
        line = torch.ones(spacer)
        pieces = [piece for part in parts for piece in (part, line)][:-1]
        return torch.cat(pieces, axis)

    return join([join([p.detach().float().cpu().clamp(0, 1) for p in row], 2) for row in rows], 1)


def save_picture(picture: Float[Tensor, "3 H W"], path: Path) -> None:
    from PIL import Image

    Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(path)
