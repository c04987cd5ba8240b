"""An auxiliary target: which patch of another view shows the same surface.

Multi-view features learn to match within hundreds of steps this way, long before depth or pose would teach them.
The projections belong to training only; they are not part of the exported network.

Letters: B scenes, V views, P patches of a view, C channels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from da3gs.losses import correspondence_cross_entropy
from da3gs.model.presets import PATCH

_SAME_DEPTH = 0.1  # relative difference up to which two depths are one surface


@dataclass(frozen=True)
class MatchingConfig:
    """Weight 0 turns it off.

    Attributes:
        layers: Backbone blocks whose features must match.
        width: Channels of the projected features.
        temperature: Factor on the cosine similarities.
    """

    weight: float = 0.0
    layers: tuple[int, ...] = (7, 9, 11)
    width: int = 96
    temperature: float = 15.0

    def loss(self, features: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and hit rate of view 0 against view 1, over layers. features [L, B, V, P, C]."""
        answer, mask = patch_matches(batch)
        results = [
            correspondence_cross_entropy(layer[:, 0], layer[:, 1], answer, mask, temperature=self.temperature)
            for layer in features
        ]
        loss, accuracy = (torch.stack(values) for values in zip(*results, strict=True))
        return loss.mean(), accuracy.max()


class MatchingHead(nn.Module):
    """One projection per layer."""

    def __init__(self, channels: int, config: MatchingConfig):
        super().__init__()
        self.layers = config.layers
        self.project = nn.ModuleList(nn.Linear(channels, config.width) for _ in config.layers)

    def forward(self, features: dict[int, Tensor]) -> Float[Tensor, "L B V P C"]:
        levels = [
            project(features[layer].flatten(2, 3)) for layer, project in zip(self.layers, self.project, strict=True)
        ]
        return torch.stack(levels)


@torch.no_grad()
def patch_matches(batch: dict[str, Tensor]) -> tuple[Int64[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """For every patch centre of view 0 the patch of view 1 that shows the same surface, and where there is one."""
    depth, world_from_cam, K = batch["depth"], batch["world_from_cam"].float(), batch["K"].float()
    height, width = depth.shape[-2:]
    rows, columns = height // PATCH, width // PATCH
    v, u = torch.meshgrid(
        torch.arange(rows, device=depth.device) * PATCH + PATCH // 2,
        torch.arange(columns, device=depth.device) * PATCH + PATCH // 2,
        indexing="ij",
    )
    u, v = u.flatten(), v.flatten()
    z = depth[:, 0, v, u]
    pixels = torch.stack([u + 0.5, v + 0.5, torch.ones_like(u)], -1).to(z)
    points = (pixels @ torch.linalg.inv(K[:, 0]).transpose(1, 2)) * z[..., None]
    world = points @ world_from_cam[:, 0, :3, :3].transpose(1, 2) + world_from_cam[:, 0, None, :3, 3]
    local = (world - world_from_cam[:, 1, None, :3, 3]) @ world_from_cam[:, 1, :3, :3]
    projected = local @ K[:, 1].transpose(1, 2)
    ahead = local[..., 2].clamp(min=1e-6)
    column = (projected[..., 0] / ahead).clamp(-1, width).floor().long()
    row = (projected[..., 1] / ahead).clamp(-1, height).floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (local[..., 2] > 0) & (z > 0)
    column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
    seen = depth[:, 1].flatten(1).gather(1, row * width + column)
    visible = inside & ((seen - local[..., 2]).abs() < _SAME_DEPTH * local[..., 2].abs())
    return (row // PATCH) * columns + column // PATCH, visible
