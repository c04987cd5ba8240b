"""Depth heads: depth + confidence + ray map (any-view models), depth + sky score (single-view models).

::

    four token levels ─ reassemble ─► l0..l3 ─┬─ fusion chain ─ conv ─ upsample to the image ─ conv conv ─► depth, conf.
                                              └─ fusion chain ─ five convs ─ at 8/14 of the image ─ conv conv ─► rays

Letters: n frames, H W pixels, h w cells of the ray map (8 per patch).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from da3gs.model.backbone import BackboneOutput
from da3gs.model.dpt import ChunkedOutput, FusionChain, Reassemble, add_uv_embedding, frame_chunks, upsample
from da3gs.model.linear import Pointwise
from da3gs.model.presets import HeadConfig

HIDDEN = 32  # channels in front of every output convolution
SKY_THRESHOLD = 0.3
SKY_QUANTILE = 0.99
QUANTILE_SAMPLES = 100_000
FEWEST_PIXELS = 10


@dataclass(frozen=True, eq=False)
class DepthMaps:
    """Output of a depth head, one frame per view.

    Attributes:
        depth: [n, H, W] z-depth > 0.
        confidence: [n, H, W] >= 1, or None (single-view models).
        rays: [n, h, w, 6] direction (not unit) and origin of every cell's ray in the reference view's frame, or None.
        ray_confidence: [n, h, w] >= 1, or None.
        sky: [n, H, W] sky score >= 0 (unbounded), or None.
    """

    depth: Tensor
    confidence: Tensor | None = None
    rays: Tensor | None = None
    ray_confidence: Tensor | None = None
    sky: Tensor | None = None


class DepthRayHead(nn.Module):
    """Depth, confidence and ray map. Of the released ray branch only the finest level is kept: no other has effect."""

    def __init__(self, width: int, config: HeadConfig):
        super().__init__()
        features, half = config.features, config.features // 2
        self.input_norm = nn.LayerNorm(width)
        self.reassemble = Reassemble(width, config.channels, features, positions=True)
        self.depth_chain = FusionChain(features)
        self.depth_neck = nn.Conv2d(features, half, 3, padding=1)
        self.depth_hidden = nn.Conv2d(half, HIDDEN, 3, padding=1)
        self.depth_out = Pointwise(HIDDEN, 2)
        self.ray_chain = FusionChain(features)
        self.ray_neck = nn.Sequential(
            *(
                nn.Conv2d(features, half, 3, padding=1) if index % 2 == 0 else nn.Conv2d(half, features, 3, padding=1)
                for index in range(5)
            )
        )
        self.ray_hidden = nn.Conv2d(half, HIDDEN, 3, padding=1)
        self.ray_norm = nn.LayerNorm(HIDDEN)
        self.ray_out = Pointwise(HIDDEN, 7)

    def forward(self, tokens: BackboneOutput, image_size: tuple[int, int], *, rays: bool = True) -> DepthMaps:
        """Maps of all frames; the ray branch runs only if `rays`."""
        output = ChunkedOutput(tokens.frames)
        for start, stop in frame_chunks(tokens.frames, image_size, self.depth_out.weight.device):
            output.put(start, self._chunk(tokens, start, stop, image_size, rays))
        return DepthMaps(**output.collect())

    def _chunk(self, tokens: BackboneOutput, start: int, stop: int, image_size: tuple[int, int], rays: bool):
        # 1. Token levels to four maps of common width.
        levels = [self._level(tokens, index, start, stop) for index in range(4)]
        # 2. Ray branch, on its own grid; 3. depth branch, at image resolution.
        return (self._rays(levels, tokens.grid) if rays else {}) | self._depth(levels, image_size)

    def _level(self, tokens: BackboneOutput, index: int, start: int, stop: int) -> Tensor:
        features = tokens.level(index, start, stop).to(self.input_norm.weight.dtype)
        return self.reassemble(index, self.input_norm(features), tokens.grid)

    def _depth(self, levels: list[Tensor], image_size: tuple[int, int]) -> dict[str, Tensor]:
        maps = upsample(self.depth_neck(self.depth_chain(levels)), image_size)
        maps = add_uv_embedding(maps, image_size[1] / image_size[0])
        raw = self.depth_out(F.relu(self.depth_hidden(maps), inplace=True)).float()
        return {"depth": raw[:, 0].exp(), "confidence": 1 + raw[:, 1].exp()}

    def _rays(self, levels: list[Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
        maps = add_uv_embedding(self.ray_neck(self.ray_chain(levels)), grid[1] / grid[0])
        hidden = self.ray_norm(self.ray_hidden(maps).permute(0, 2, 3, 1))
        raw = self.ray_out(F.relu(hidden).permute(0, 3, 1, 2)).float().permute(0, 2, 3, 1)
        return {"rays": raw[..., :6], "ray_confidence": 1 + raw[..., 6].exp()}


class DepthSkyHead(nn.Module):
    """Depth and sky score of the single-view models: no input norm, no position embedding."""

    def __init__(self, width: int, config: HeadConfig):
        super().__init__()
        features, half = config.features, config.features // 2
        self.reassemble = Reassemble(width, config.channels, features, positions=False)
        self.depth_chain = FusionChain(features)
        self.depth_neck = nn.Conv2d(features, half, 3, padding=1)
        self.depth_hidden = nn.Conv2d(half, HIDDEN, 3, padding=1)
        self.depth_out = Pointwise(HIDDEN, 1)
        self.sky_hidden = nn.Conv2d(half, HIDDEN, 3, padding=1)
        self.sky_out = Pointwise(HIDDEN, 1)

    def forward(self, tokens: BackboneOutput, image_size: tuple[int, int]) -> DepthMaps:
        """Maps of all frames, sky not yet filled (see `fill_sky`)."""
        output = ChunkedOutput(tokens.frames)
        for start, stop in frame_chunks(tokens.frames, image_size, self.depth_out.weight.device):
            output.put(start, self._chunk(tokens, start, stop, image_size))
        return DepthMaps(**output.collect())

    def _chunk(self, tokens: BackboneOutput, start: int, stop: int, image_size: tuple[int, int]) -> dict[str, Tensor]:
        dtype = self.depth_out.weight.dtype
        levels = [self.reassemble(i, tokens.level(i, start, stop).to(dtype), tokens.grid) for i in range(4)]
        maps = upsample(self.depth_neck(self.depth_chain(levels)), image_size)
        depth = self.depth_out(F.relu(self.depth_hidden(maps), inplace=True)).float()
        sky = self.sky_out(F.relu(self.sky_hidden(maps), inplace=True)).float()
        return {"depth": depth[:, 0].exp(), "sky": sky[:, 0].relu()}


def fill_sky(depth: Float[Tensor, "*maps H W"], sky: Float[Tensor, "*maps H W"]) -> Float[Tensor, "*maps H W"]:
    """Depth with sky pixels at the 0.99 quantile of the rest, over all maps given.

    As released: sky is a score >= 0.3, nothing changes unless both sides have more than ten pixels, and more than
    100000 pixels are subsampled with torch's global generator.
    """
    ground = sky < SKY_THRESHOLD
    count = int(ground.sum())
    if count <= FEWEST_PIXELS or ground.numel() - count <= FEWEST_PIXELS:
        return depth
    values = depth[ground]
    if count > QUANTILE_SAMPLES:
        values = values[torch.randint(0, count, (QUANTILE_SAMPLES,), device=values.device)]
    return torch.where(ground, depth, torch.quantile(values, SKY_QUANTILE))
