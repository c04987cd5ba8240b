"""The any-view transformer backbone.

::

    images ── patches + positions ──► local blocks ──► [reference view to the front] ──► camera token into token 0
                                                                                           │
            taps (4 levels, input order) ◄── every even block: one view, every odd block: all views

Letters: B scenes, V views, H W pixels, h w patch rows and columns, P = h w patches, C width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from da3gs.model.layers import Block, Rotation
from da3gs.model.presets import PATCH, POSITION_GRID, BackboneConfig
from da3gs.model.reference_view import reference_first, select_reference


@dataclass(frozen=True, eq=False)
class BackboneOutput:
    """What the heads read. Tokens are kept as the blocks left them; levels are assembled for a few views at a time.

    Attributes:
        taps: Per level (tokens after the last single-view block or None, tokens), each [B, V, 1 + P, C], views in
            processing order.
        norm: Final LayerNorm of the backbone, applied to the second half of a level.
        grid: (h, w) patches.
        inverse: [B, V]: position in the processing order of input view v.
        reference: [B] index of the reference view, or None when none was chosen.
        exported: Normalised patch features [B, V, h, w, C] of the blocks that were asked for, input order.
    """

    taps: tuple[tuple[Tensor | None, Tensor], ...]
    norm: nn.LayerNorm
    grid: tuple[int, int]
    inverse: Int64[Tensor, "B V"]
    reference: Int64[Tensor, " B"] | None
    exported: dict[int, Tensor]

    @property
    def frames(self) -> int:
        """B V: heads see every view of every scene as one frame, in input order."""
        return self.inverse.numel()

    def level(self, index: int, start: int = 0, stop: int | None = None) -> Float[Tensor, "n P D"]:
        """Patch features of a level, frames start .. stop: [local tokens, LayerNorm(tokens)], or the latter alone."""
        frames = torch.arange(self.frames, device=self.inverse.device)[start:stop]
        scene = frames // self.inverse.shape[1]
        view = self.inverse.flatten()[frames]
        local, tokens = self.taps[index]
        normed = self.norm(tokens[scene, view, 1:])
        return normed if local is None else torch.cat([local[scene, view, 1:].to(normed), normed], -1)

    def class_token(self, index: int) -> Float[Tensor, "B V D"]:
        """Token 0 of one level, without any norm, in input order."""
        scene = torch.arange(len(self.inverse), device=self.inverse.device)[:, None]
        local, tokens = self.taps[index]
        token = tokens[scene, self.inverse, 0]
        return token if local is None else torch.cat([local[scene, self.inverse, 0], token], -1)


class Backbone(nn.Module):
    """Vision transformer; see the picture on top of the module."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embedding = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + POSITION_GRID**2, width))
        # Entry 0 marks the reference view, entry 1 all others.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, width)) if config.cross_view_start is not None else None
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                feed_forward=config.feed_forward,
                qk_norm=config.qk_norm_start is not None and index >= config.qk_norm_start,
            )
            for index in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        images: Float[Tensor, "B V 3 H W"],
        camera_tokens: Float[Tensor, "B V C"] | None = None,
        *,
        reference_view: str = "saddle_balanced",
        feature_layers: Sequence[int] = (),
    ) -> BackboneOutput:
        """Run all blocks.

        Args:
            images: Normalised images; H and W multiples of 14.
            camera_tokens: Encoded known cameras; then no reference view is chosen.
            reference_view: Strategy of `reference_view.STRATEGIES`.
            feature_layers: Blocks whose normalised patch features are returned as well.
        """
        config = self.config
        batch, views, _, height, width = images.shape
        rows, columns = height // PATCH, width // PATCH
        head_dim = config.width // config.heads
        within = Rotation.within_view(rows, columns, head_dim, images.device)
        across = Rotation.across_views(1 + rows * columns, head_dim, images.device)
        start = config.depth + 1 if config.cross_view_start is None else config.cross_view_start
        rope_start = config.depth if config.rope_start is None else config.rope_start

        tokens = self.embed(images)
        local, reference, order = tokens, None, torch.arange(views, device=images.device).expand(batch, views)
        taps: dict[int, tuple[Tensor | None, Tensor]] = {}
        exported: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            # 1. Reference view to the front, just before the first cross-view block's predecessor.
            if index == start - 1 and views >= 3 and camera_tokens is None:
                reference = select_reference(tokens[:, :, 0], reference_view)
                order = reference_first(reference, views)
                tokens = local = torch.take_along_dim(tokens, order[:, :, None, None], 1)
            # 2. Token 0 becomes the camera token.
            if index == start:
                written = self._first_tokens(views) if camera_tokens is None else camera_tokens[:, :, None]
                tokens = torch.cat([written.expand(batch, -1, -1, -1).to(tokens.dtype), tokens[:, :, 1:]], 2)
            # 3. Odd blocks attend across all views, the others within each view.
            crosses = index >= start and index % 2 == 1
            rotation = None if index < rope_start else across if crosses else within
            joint = tokens.flatten(1, 2) if crosses else tokens.flatten(0, 1)
            tokens = block(joint, rotation).view(tokens.shape)
            local = local if crosses else tokens
            # 4. Keep what the heads and the caller asked for.
            if index in config.tap_layers:
                taps[index] = (local if config.concat_local else None, tokens)
            if index in feature_layers:
                inverse = order.argsort(1)[:, :, None, None]
                exported[index] = torch.take_along_dim(self.norm(tokens[:, :, 1:]), inverse, 1).unflatten(
                    2, (rows, columns)
                )
        return BackboneOutput(
            taps=tuple(taps[index] for index in config.tap_layers),
            norm=self.norm,
            grid=(rows, columns),
            inverse=order.argsort(1),
            reference=reference,
            exported=exported,
        )

    def embed(self, images: Float[Tensor, "B V 3 H W"]) -> Float[Tensor, "B V N C"]:
        """Patch tokens behind the class token, positions added."""
        patches = self.patch_embedding(images.flatten(0, 1).to(self.patch_embedding.weight.dtype))
        rows, columns = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.to(patches).expand(len(patches), -1, -1), patches], 1)
        tokens = tokens + interpolate_positions(self.position_embedding, rows, columns)
        return tokens.unflatten(0, images.shape[:2])

    def _first_tokens(self, views: int) -> Tensor:
        reference, others = self.camera_token[:, :1], self.camera_token[:, 1:]
        return torch.cat([reference, others.expand(-1, views - 1, -1)], 1)[:, :, None]


def interpolate_positions(table: Float[Tensor, "1 n C"], rows: int, columns: int) -> Float[Tensor, "1 m C"]:
    """Position table of a patch grid; the class entry is kept.

    The released weights were trained with the sampling factor (rows + 0.1) / 37 itself in the coordinate map (a guard
    against rounding in the original DINOv2 code), so a plain resize to (rows, columns) gives other numbers.
    """
    if (rows, columns) == (POSITION_GRID, POSITION_GRID):
        return table
    grid = table[:, 1:].float().unflatten(1, (POSITION_GRID, POSITION_GRID)).permute(0, 3, 1, 2)
    factors = [(rows + 0.1) / POSITION_GRID, (columns + 0.1) / POSITION_GRID]
    resized = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2).to(table.dtype)], 1)


def sine_positions(width: int, amplitude: float = 0.5) -> Float[Tensor, "1 n C"]:
    """A position table to start training from: sines and cosines of row and column, 1/2 to 4 periods per axis."""
    quarter = width // 4
    angles = torch.arange(POSITION_GRID)[:, None] * (2 * torch.pi / POSITION_GRID) * 2 ** torch.linspace(-1, 2, quarter)
    waves = torch.cat([angles.sin(), angles.cos()], -1)  # [grid, C/2]
    rows = waves[:, None].expand(-1, POSITION_GRID, -1)
    columns = waves[None].expand(POSITION_GRID, -1, -1)
    table = torch.cat([rows, columns], -1).flatten(0, 1)
    table = torch.cat([table, table.new_zeros(len(table), width - table.shape[1])], -1)
    return amplitude * torch.cat([torch.zeros(1, width), table])[None]
