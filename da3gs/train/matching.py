"""Auxiliary targets of patches: which patch of another view shows the same surface, and where the surface is.

Multi-view features learn to match within hundreds of steps this way, long before depth or pose would teach them. Two
places can be asked: projections of a block's features, and the attention itself: the queries and keys of one head of
the blocks that look across views. The second puts the position of the match straight into the token that asked, which
is what rays, depth and cameras are then read from.

The projections belong to training only; they are not part of the exported network.

Letters: B scenes, V views, P patches of a view, C channels, L places that are asked.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from da3gs.errors import InputError
from da3gs.geometry.rays import points_on_rays
from da3gs.losses import correspondence_cross_entropy, masked_scene_mean
from da3gs.model.layers import Block
from da3gs.model.matching import queries_and_keys
from da3gs.model.presets import PATCH

_SAME_DEPTH = 0.1  # relative difference up to which two depths are one surface


@dataclass(frozen=True)
class MatchingConfig:
    """Weight 0 turns it off.

    Attributes:
        layers: Backbone blocks whose features must match.
        width: Channels of the projected features.
        temperature: Factor on the cosine similarities.
        attention_layers: Cross-view blocks whose first attention head must look at the match.
        geometry: Weight of a linear reading of ray and point off the features of every block from the first cross-view
            one: squared errors, which reward the first bit of evidence where absolute ones keep to the median.
    """

    weight: float = 0.0
    layers: tuple[int, ...] = (7, 9, 11)
    width: int = 96
    temperature: float = 15.0
    attention_layers: tuple[int, ...] = ()
    geometry: float = 0.0

    def __post_init__(self):
        if self.weight > 0 and not (self.layers or self.attention_layers):
            raise InputError("matching.weight > 0 needs matching.layers or matching.attention_layers to ask")

    def loss(self, logits: Float[Tensor, "L B V P V P"], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over places and ordered pairs of views, and the hit rate of the best place."""
        answer, mask = patch_matches(batch)
        results = [correspondence_cross_entropy(place, answer, mask) for place in logits]
        loss, accuracy = (torch.stack(values) for values in zip(*results, strict=True))
        return loss.mean(), accuracy.max()


class MatchingHead(nn.Module):
    """One projection per layer of features; attention needs none."""

    def __init__(self, channels: int, config: MatchingConfig):
        super().__init__()
        self.layers, self.attention_layers = config.layers, config.attention_layers
        self.temperature = config.temperature
        self.project = nn.ModuleList(nn.Linear(channels, config.width) for _ in config.layers)

    def forward(
        self, features: dict[int, Tensor], blocks: nn.ModuleList, entering: dict[int, Tensor]
    ) -> Float[Tensor, "L B V P V P"]:
        """Logits of every patch for every patch of every view.

        Args:
            features: Patch features [B, V, h, w, C] of `layers`.
            blocks: Those of the backbone.
            entering: Tokens [B, V, 1 + P, C] that enter each of `attention_layers`.
        """
        places = []
        for layer, project in zip(self.layers, self.project, strict=True):
            descriptors = F.normalize(project(features[layer].flatten(2, 3)), dim=-1)
            places.append(self.temperature * torch.einsum("bipc,bjqc->bipjq", descriptors, descriptors))
        places += [attention_logits(blocks[layer], entering[layer][:, :, 1:]) for layer in self.attention_layers]
        return torch.stack(places)


class PatchGeometry(nn.Module):
    """Ray direction, ray origin and point of a patch centre, linear in the features of each of several blocks."""

    def __init__(self, channels: int, layers: tuple[int, ...]):
        super().__init__()
        self.layers = layers
        self.read = nn.ModuleList(nn.Linear(channels, 9) for _ in layers)

    def forward(self, features: dict[int, Tensor]) -> Float[Tensor, "L B V h w 9"]:
        return torch.stack([read(features[layer]) for layer, read in zip(self.layers, self.read, strict=True)])


def patch_geometry_loss(read: Float[Tensor, "L B V h w 9"], batch: dict[str, Tensor]) -> Float[Tensor, ""]:
    """Mean squared error of rays and points at patch centres, in the frame of the reference view and its unit."""
    centre = (..., slice(4, None, 8), slice(4, None, 8))
    rays, depth = batch["rays"][:, :, 4::8, 4::8], batch["cell_depth"][centre]
    points = points_on_rays(rays, depth)
    ray_error = (read[..., :6] - rays).square().mean()
    # Far points would outweigh all others.
    point_error = ((read[..., 6:] - points) / (1 + points.norm(dim=-1, keepdim=True))).square().mean(-1)
    known = batch["cell_mask"][centre]
    return ray_error + masked_scene_mean(point_error.mean(0), known)


def attention_logits(block: Block, patches: Float[Tensor, "B V P C"]) -> Float[Tensor, "B V P V P"]:
    """What the first head of a cross-view block hands to its softmax, for every patch of every view."""
    return torch.einsum("bipc,bjqc->bipjq", *queries_and_keys(block, patches))


@torch.no_grad()
def patch_matches(batch: dict[str, Tensor]) -> tuple[Int64[Tensor, "B V P V"], Bool[Tensor, "B V P V"]]:
    """For the centre of every patch of every view: the patch of each view that shows the same surface, if one does.

    A view is never asked about itself.
    """
    depth, world_from_cam, K = batch["depth"], batch["world_from_cam"].float(), batch["K"].float()
    views, (height, width) = depth.shape[1], depth.shape[-2:]
    rows, columns = height // PATCH, width // PATCH
    v, u = torch.meshgrid(
        torch.arange(rows, device=depth.device) * PATCH + PATCH // 2,
        torch.arange(columns, device=depth.device) * PATCH + PATCH // 2,
        indexing="ij",
    )
    u, v = u.flatten(), v.flatten()
    z = depth[:, :, v, u]
    pixels = torch.stack([u + 0.5, v + 0.5, torch.ones_like(u)], -1).to(z)
    points = torch.einsum("bvij,pj->bvpi", torch.linalg.inv(K), pixels) * z[..., None]
    R, t = world_from_cam[..., :3, :3], world_from_cam[..., :3, 3]
    world = torch.einsum("bvij,bvpj->bvpi", R, points) + t[:, :, None]
    local = torch.einsum("bwji,bvpwj->bvpwi", R, world[:, :, :, None] - t[:, None, None])
    projected = torch.einsum("bwij,bvpwj->bvpwi", K, local)
    ahead = local[..., 2].clamp(min=1e-6)
    column = (projected[..., 0] / ahead).clamp(-1, width).floor().long()
    row = (projected[..., 1] / ahead).clamp(-1, height).floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (local[..., 2] > 0)
    column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
    index = (row * width + column).permute(0, 3, 1, 2).flatten(2)  # [B, W, V P]
    seen = depth.flatten(2).gather(2, index).unflatten(2, (views, -1)).permute(0, 2, 3, 1)
    visible = inside & ((seen - local[..., 2]).abs() < _SAME_DEPTH * local[..., 2].abs()) & (z > 0)[..., None]
    visible &= ~torch.eye(views, dtype=torch.bool, device=depth.device)[None, :, None]
    return (row // PATCH) * columns + column // PATCH, visible
