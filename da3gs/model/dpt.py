"""Parts of the dense-prediction heads (DPT): level reassembly, fusion, position embedding, chunked execution.

::

    level 0..3 (patch grid) ─ 1x1 ─ resize x4 x2 x1 x1/2 ─ 3x3 ─► l0 l1 l2 l3
    l3 ─ fuse ─► + l2 ─ fuse ─► + l1 ─ fuse ─► + l0 ─ fuse ─► map at 8/14 of the image

Letters: n frames, c f channels, h w patch rows and columns, H W pixels. Maps are kept in channels-last memory: the
token layout already is, and the convolution kernels need no reordering then.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from da3gs.model.linear import Pointwise

UV_GAIN = 0.1
UV_BASE = 100.0


def add_uv_embedding(maps: Float[Tensor, "n c h w"], aspect: float) -> Float[Tensor, "n c h w"]:
    """Add a sinusoidal embedding of the position in the image plane, in place unless gradients are recorded.

    The plane is centred and its half diagonal is 1 for an image of width / height `aspect`. Channels are [sin xw, cos
    xw, sin yw, cos yw] with w_k = 100^(-k/K), k < K = c/4, times 0.1: the first half depends on the column only, the
    second on the row only.
    """
    channels, height, width = maps.shape[1:]
    diagonal = (aspect**2 + 1) ** 0.5
    half = channels // 2
    by_column = _axis_embedding(width, aspect / diagonal, half, maps)[:, None, :]
    by_row = _axis_embedding(height, 1 / diagonal, half, maps)[:, :, None]
    if maps.requires_grad:
        return maps + torch.cat([by_column.expand(-1, height, -1), by_row.expand(-1, -1, width)])
    maps[:, :half] += by_column
    maps[:, half:] += by_row
    return maps


def _axis_embedding(size: int, extent: float, channels: int, like: Tensor) -> Tensor:
    """[channels, size]: 0.1 [sin, cos] of cell centres between -extent and extent."""
    edge = extent * (size - 1) / size
    position = torch.linspace(-edge, edge, size, dtype=torch.float32, device=like.device)
    count = channels // 2
    frequency = UV_BASE ** (-torch.arange(count, dtype=torch.float32, device=like.device) / count)
    angle = frequency[:, None] * position
    return (UV_GAIN * torch.cat([angle.sin(), angle.cos()])).to(like.dtype)


def upsample(maps: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c H W"]:
    """Bilinear, corners aligned, as everywhere in these heads."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


class Reassemble(nn.Module):
    """Four token levels to four maps of `features` channels at 4, 2, 1 and 1/2 times the patch grid."""

    def __init__(self, width: int, channels: tuple[int, ...], features: int, *, positions: bool):
        super().__init__()
        self.positions = positions
        c0, c1, _, c3 = channels
        self.project = nn.ModuleList(Pointwise(width, c) for c in channels)
        self.resize = nn.ModuleList(
            [
                nn.ConvTranspose2d(c0, c0, 4, stride=4),
                nn.ConvTranspose2d(c1, c1, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(c3, c3, 3, stride=2, padding=1),
            ]
        )
        self.lateral = nn.ModuleList(nn.Conv2d(c, features, 3, padding=1, bias=False) for c in channels)

    def forward(self, level: int, tokens: Float[Tensor, "n P D"], grid: tuple[int, int]) -> Float[Tensor, "n f a b"]:
        # [n, P, D] read as [n, D, h, w] is a channels-last map without moving a value.
        maps = self.project[level](tokens.unflatten(1, grid).permute(0, 3, 1, 2))
        if self.positions:
            maps = add_uv_embedding(maps, grid[1] / grid[0])
        return self.lateral[level](self.resize[level](maps))


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, features: int):
        super().__init__()
        self.first = nn.Conv2d(features, features, 3, padding=1)
        self.second = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, maps: Float[Tensor, "n f h w"]) -> Float[Tensor, "n f h w"]:
        return self.second(F.relu(self.first(F.relu(maps)), inplace=True)).add_(maps)


class Fusion(nn.Module):
    """One step from coarse to fine: add the lateral map, refine, mix channels, upsample.

    The released network upsamples before the 1x1 convolution; both are linear and the interpolation weights sum to
    one, so mixing first gives the same map at a quarter of the cost.
    """

    def __init__(self, features: int, *, lateral: bool):
        super().__init__()
        self.lateral_unit = ResidualUnit(features) if lateral else None
        self.unit = ResidualUnit(features)
        self.mix = Pointwise(features, features)

    def forward(
        self, top: Float[Tensor, "n f a b"], lateral: Float[Tensor, "n f a b"] | None, size: tuple[int, int]
    ) -> Float[Tensor, "n f H W"]:
        if self.lateral_unit is not None:
            top = top + self.lateral_unit(lateral)
        return upsample(self.mix(self.unit(top)), size)


class FusionChain(nn.Module):
    """The four fusion steps; the result is at twice the resolution of the finest level."""

    def __init__(self, features: int):
        super().__init__()
        self.steps = nn.ModuleList(Fusion(features, lateral=index < 3) for index in range(4))

    def forward(self, levels: list[Float[Tensor, "n f _ _"]]) -> Float[Tensor, "n f h8 w8"]:
        sizes = [tuple(level.shape[-2:]) for level in levels]
        maps = self.steps[3](levels[3], None, sizes[2])
        maps = self.steps[2](maps, levels[2], sizes[1])
        maps = self.steps[1](maps, levels[1], sizes[0])
        return self.steps[0](maps, levels[0], (2 * sizes[0][0], 2 * sizes[0][1]))


# Pixels of one head chunk: a CPU is as fast with one large view as with many (small ones want company), a GPU wants
# about eight views of 504 x 504.
CHUNK_PIXELS = {"cpu": 1 << 17, "cuda": 1 << 21}


def chunk_frames(image_size: tuple[int, int], device_type: str) -> int:
    """Views that a head handles at once."""
    return max(1, CHUNK_PIXELS.get(device_type, 1) // (image_size[0] * image_size[1]))


def frame_chunks(frames: int, image_size: tuple[int, int], device: torch.device) -> Iterator[tuple[int, int]]:
    """(start, stop) ranges that keep the memory of a head independent of the number of views."""
    step = chunk_frames(image_size, device.type)
    for start in range(0, frames, step):
        yield start, min(frames, start + step)


class ChunkedOutput:
    """Collects named chunk results into full maps: preallocated without gradients, concatenated with them."""

    def __init__(self, frames: int):
        self.frames = frames
        self.whole: dict[str, Tensor] = {}
        self.parts: dict[str, list[Tensor]] = {}

    def put(self, start: int, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            if value.requires_grad:
                self.parts.setdefault(name, []).append(value)
                continue
            if name not in self.whole:
                self.whole[name] = value.new_empty(self.frames, *value.shape[1:])
            self.whole[name][start : start + len(value)] = value

    def collect(self) -> dict[str, Tensor]:
        return self.whole | {name: torch.cat(parts) for name, parts in self.parts.items()}
