"""The bank of textures: built once per seed, packed with its mip levels, read at hit points with bilinear filtering.

Letters: T textures, N points.
"""

import functools
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from da3gs.data.synthetic.texture_recipes import RECIPES, SIZE
from da3gs.errors import InputError

log = logging.getLogger(__name__)

KINDS = tuple(RECIPES)
VARIANTS = 3
_LEVELS = SIZE.bit_length()  # 256 ... 1
_PHOTO_LAYERS = 24
# Relief is stored in one byte; this is the range it spans, in the recipes' units.
RELIEF_RANGE = 8.0


@dataclass(frozen=True, eq=False)
class TextureBank:
    """All textures of one bank.

    Attributes:
        texels: [M] int32, bytes R, G, B, relief of every texel; level by level, in each level texture by texture.
        level_start: Index of the first texel of every mip level.
        mean: [T, 3] mean linear colour of every texture.
        photo_layers: Indices of the textures cut from the user's photographs.
    """

    texels: Tensor
    level_start: Int64[Tensor, " L"]
    mean: Float[Tensor, "T 3"]
    photo_layers: tuple[int, ...]

    def to(self, device) -> "TextureBank":
        return TextureBank(self.texels.to(device), self.level_start.to(device), self.mean.to(device), self.photo_layers)

    def sample(
        self, layer: Int64[Tensor, " N"], uv: Float[Tensor, "N 2"], footprint: Float[Tensor, " N"]
    ) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 2"]]:
        """Linear colour and relief slope at points of the textures.

        Args:
            layer: Texture of every point.
            uv: Position in tiles; the texture repeats with period 1.
            footprint: Width of the pixel in tiles; picks the mip level.

        Returns:
            Linear colour in [0, 1], and d relief / d uv (relief units per tile), bounded by what the level resolves.
        """
        level = (footprint.clamp(1e-6, 1.0) * SIZE).log2().round_().clamp_(0, _LEVELS - 1).long()
        size = SIZE >> level
        position = (uv - uv.floor()) * size[:, None] - 0.5
        corner = position.floor()
        fraction = position - corner
        x0, y0 = corner.long().unbind(-1)
        wrap = size - 1
        x1, y1 = (x0 + 1) & wrap, (y0 + 1) & wrap
        x0, y0 = x0 & wrap, y0 & wrap
        start = self.level_start[level] + layer * size * size
        rows = torch.stack([y0 * size + x0, y0 * size + x1, y1 * size + x0, y1 * size + x1])
        packed = self.texels[(rows + start).flatten()]
        texel = packed.view(torch.uint8).view(4, -1, 4).float()
        top_left, top_right, low_left, low_right = texel
        fx, fy = fraction[:, :1], fraction[:, 1:]
        top = top_left + (top_right - top_left) * fx
        low = low_left + (low_right - low_left) * fx
        display = (top + (low - top) * fy)[:, :3] * (1 / 255)

        relief = texel[..., 3]
        du = (relief[1] - relief[0]) * (1 - fy[:, 0]) + (relief[3] - relief[2]) * fy[:, 0]
        dv = (relief[2] - relief[0]) * (1 - fx[:, 0]) + (relief[3] - relief[1]) * fx[:, 0]
        slope = torch.stack([du, dv], -1) * (size[:, None] * (RELIEF_RANGE / 255))
        return display * display, slope


def texture_layer(kind: str, variant: int) -> int:
    """Index of a variant of a kind of texture, the same in every bank."""
    return KINDS.index(kind) * VARIANTS + variant % VARIANTS


def texture_bank(seed: int, photos: str | os.PathLike | None = None) -> TextureBank:
    """The bank of a seed, built on first use (about two seconds) and kept.

    Args:
        photos: Folder of photographs to cut textures from, besides the drawn ones.

    Raises:
        InputError: The folder holds no readable image.
    """
    return _build_bank(seed, None if photos is None else str(Path(photos).expanduser().resolve()))


@functools.lru_cache(maxsize=12)
def _build_bank(seed: int, photos: str | None) -> TextureBank:
    pictures, reliefs = [], []
    for index, recipe in enumerate(RECIPES.values()):
        for variant in range(VARIANTS):
            picture, relief = recipe(np.random.default_rng([seed, index, variant]))
            pictures.append(np.clip(picture, 0, 1).astype(np.float32))
            reliefs.append(relief.astype(np.float32))
    photo_layers: tuple[int, ...] = ()
    if photos is not None:
        crops = photo_textures(Path(photos), _PHOTO_LAYERS, np.random.default_rng([seed, 1_000_003]))
        photo_layers = tuple(range(len(pictures), len(pictures) + len(crops)))
        pictures += crops
        reliefs += [np.zeros((SIZE, SIZE), np.float32)] * len(crops)
    texels, starts = _pack_levels(np.stack(pictures), np.stack(reliefs))
    mean = torch.from_numpy(np.stack(pictures) ** 2).mean((1, 2))
    log.debug("texture bank %d: %d textures", seed, len(pictures))
    return TextureBank(texels, starts, mean, photo_layers)


def _pack_levels(pictures: np.ndarray, reliefs: np.ndarray) -> tuple[Tensor, Tensor]:
    relief_byte = np.clip(reliefs / RELIEF_RANGE + 0.5, 0, 1)
    level = torch.from_numpy(np.concatenate([pictures, relief_byte[..., None]], -1)).permute(0, 3, 1, 2)
    parts, starts = [], [0]
    for _ in range(_LEVELS):
        packed = (level.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).contiguous()
        parts.append(packed.view(torch.int32).flatten())
        starts.append(starts[-1] + parts[-1].numel())
        if level.shape[-1] > 1:
            level = torch.nn.functional.avg_pool2d(level, 2)
    return torch.cat(parts), torch.tensor(starts[:-1])


def photo_textures(folder: Path, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Square crops of photographs, mirrored so that they tile, [S, S, 3] in [0, 1] each."""
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not files:
        raise InputError(
            f"no .jpg, .png or .webp photographs in {folder}; give a folder that holds some, or none at all"
        )
    half = SIZE // 2
    crops = []
    for index in range(count):
        path = files[index % len(files)]
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None:
            raise InputError(f"{path} cannot be read as an image; remove it from the folder of texture photographs")
        side = int(min(picture.shape[:2]) * rng.uniform(0.3, 0.9))
        top, left = (int(rng.integers(0, extent - side + 1)) for extent in picture.shape[:2])
        crop = cv2.resize(
            picture[top : top + side, left : left + side, ::-1], (half, half), interpolation=cv2.INTER_AREA
        )
        upper = np.concatenate([crop, crop[:, ::-1]], 1)
        crops.append(np.concatenate([upper, upper[::-1]], 0).astype(np.float32) / 255)
    return crops
