"""From linear radiance to a photograph: exposure, white balance, lens, sensor, tone curve, JPEG.

All of it runs on the tensors' device and comes from a seed. Letters: V views, H W pixels.
"""

import math
import random
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Quantisation tables of ITU-T T.81, annex K (quality 50).
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99, *(99,) * 32,
)  # fmt: skip
_YCC_FROM_RGB = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@dataclass(frozen=True)
class PhotoSettings:
    """How one set of pictures is taken; per-view values are tuples of length V.

    Attributes:
        exposure_ev: Stops around the automatic exposure.
        white_balance: Red and blue gains.
        vignette: Loss of light in the corners.
        blur_px: Standard deviation of the lens.
        noise: Relative strength of shot and read noise.
        shoulder: 0 plain clipping, 1 filmic.
        saturation, contrast: 1 neutral.
        jpeg_quality: 1-100, or 0 for none.
    """

    exposure_ev: tuple[float, ...]
    white_balance: tuple[tuple[float, float], ...]
    vignette: float
    blur_px: tuple[float, ...]
    noise: float
    shoulder: float
    saturation: float
    contrast: float
    jpeg_quality: int

    @staticmethod
    def draw(seed: int, views: int, difficulty: float) -> "PhotoSettings":
        rng = random.Random(f"photo {seed}")
        d = difficulty
        tint = rng.gauss(0, 0.02 + 0.05 * d), rng.gauss(0, 0.02 + 0.05 * d)
        blur = rng.uniform(0.0, 0.3 + 0.4 * d)
        return PhotoSettings(
            exposure_ev=tuple(rng.gauss(0.0, 0.2) + rng.gauss(0, 0.05 + 0.2 * d) for _ in range(views)),
            white_balance=tuple(
                (math.exp(tint[0] + rng.gauss(0, 0.02 * d)), math.exp(tint[1] + rng.gauss(0, 0.02 * d)))
                for _ in range(views)
            ),
            vignette=rng.uniform(0.0, 0.15 + 0.2 * d),
            blur_px=tuple(max(0.0, blur + rng.gauss(0, 0.15 * d)) for _ in range(views)),
            noise=rng.uniform(0.0, 0.008 + 0.022 * d),
            shoulder=rng.uniform(0.2, 1.0),
            saturation=rng.uniform(0.75, 1.2),
            contrast=rng.uniform(0.9, 1.15 + 0.1 * d),
            jpeg_quality=rng.randrange(round(92 - 45 * d), 98) if rng.random() < 0.4 + 0.4 * d else 0,
        )


@torch.no_grad()
def photograph(radiance: Float[Tensor, "V 3 H W"], settings: PhotoSettings, seed: int) -> Float[Tensor, "V 3 H W"]:
    """Display pictures in [0, 1] of linear radiance.

    The exposure is common to all views (as of a locked camera): the geometric mean of the luminance becomes middle
    grey.
    """
    height, width = radiance.shape[-2:]
    luminance = radiance.mean(1).flatten()
    gain = 0.19 / luminance.clamp(1e-3, 4.0).log().mean().exp()
    exposure = gain * 2.0 ** radiance.new_tensor(settings.exposure_ev)
    balance = radiance.new_tensor([(red, 1.0, blue) for red, blue in settings.white_balance])
    x = radiance * (exposure[:, None] * balance)[..., None, None]

    if settings.vignette > 0:
        v, u = torch.meshgrid(
            torch.linspace(-1, 1, height, device=x.device), torch.linspace(-1, 1, width, device=x.device), indexing="ij"
        )
        x = x * (1 - settings.vignette * (u * u + v * v) / 2)
    x = lens_blur(x.clamp(max=8.0), settings.blur_px)
    if settings.noise > 0:
        generator = torch.Generator(device=x.device).manual_seed(seed)
        grain = torch.randn(x.shape, generator=generator, device=x.device)
        x = x + settings.noise * (x.clamp_min(0) * 0.2 + 0.002).sqrt() * grain
    x = tone_curve(x.clamp_min(0), settings.shoulder)
    gray = x.mean(1, keepdim=True)
    x = gray + settings.saturation * (x - gray)
    x = (0.45 + settings.contrast * (x - 0.45)).clamp(0, 1)
    if settings.jpeg_quality:
        x = jpeg(x, settings.jpeg_quality)
    return x.clamp(0, 1)


def tone_curve(x: Float[Tensor, "*size"], shoulder: float) -> Float[Tensor, "*size"]:
    """Display value of exposed radiance: gamma 2 after a blend of clipping and a filmic curve (Narkowicz 2015)."""
    filmic = (x * (2.51 * x + 0.03)) / (x * (2.43 * x + 0.59) + 0.14)
    plain = x.clamp(max=1.0)
    return (plain + shoulder * (filmic.clamp(0, 1) - plain)).sqrt()


def lens_blur(x: Float[Tensor, "V C H W"], sigma_px: tuple[float, ...]) -> Float[Tensor, "V C H W"]:
    """Gaussian blur, separable, 5 taps: enough for standard deviations up to about 1 px."""
    if max(sigma_px) < 0.15:
        return x
    height, width = x.shape[-2:]
    sigma = torch.tensor(sigma_px, device=x.device, dtype=x.dtype).clamp_min(0.05)
    taps = torch.exp(-0.5 * (torch.arange(-2, 3, device=x.device, dtype=x.dtype) / sigma[:, None]) ** 2)
    taps = taps / taps.sum(-1, keepdim=True)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    across = sum(taps[:, i, None, None, None] * padded[..., i : i + width] for i in range(5))
    return sum(taps[:, i, None, None, None] * across[..., i : i + height, :] for i in range(5))


def jpeg(x: Float[Tensor, "V 3 H W"], quality: int) -> Float[Tensor, "V 3 H W"]:
    """What a JPEG file of this quality loses: 8 x 8 cosine transform, 4:2:0 colour, the standard tables."""
    height, width = x.shape[-2:]
    scale = 50 / quality if quality < 50 else 2 - quality / 50
    to_ycc = x.new_tensor(_YCC_FROM_RGB)
    padded = torch.nn.functional.pad(x, (0, -width % 16, 0, -height % 16), mode="replicate")
    ycc = torch.einsum("ij,vjhw->vihw", to_ycc, padded) * 255
    luma = _quantize_blocks(ycc[:, :1] - 128, x.new_tensor(_LUMA), scale) + 128
    small = torch.nn.functional.avg_pool2d(ycc[:, 1:], 2)
    chroma = _quantize_blocks(small, x.new_tensor(_CHROMA), scale)
    chroma = chroma.repeat_interleave(2, -1).repeat_interleave(2, -2)
    back = torch.einsum("ij,vjhw->vihw", torch.linalg.inv(to_ycc), torch.cat([luma, chroma], 1)) / 255
    return back[..., :height, :width].clamp(0, 1)


def _quantize_blocks(x: Tensor, table: Tensor, scale: float) -> Tensor:
    views, channels, height, width = x.shape
    k = torch.arange(8, device=x.device, dtype=x.dtype)
    basis = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) * torch.where(k[:, None] == 0, 0.125**0.5, 0.5)
    step = (table.view(8, 8) * scale).round().clamp(1, 255)
    blocks = x.reshape(views, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = ((basis @ blocks @ basis.T) / step).round() * step
    return (basis.T @ coefficients @ basis).transpose(3, 4).reshape(x.shape)
