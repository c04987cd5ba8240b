"""PSNR, SSIM and LPIPS of rendered views, in the definitions of pixelSplat, MVSplat, DepthSplat, AnySplat and ZipSplat.

Images are [V, 3, H, W] with values in [0, 1]. Only PSNR clips to that range, as the reference does.

Letters: V views, H W pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from da3gs.errors import InputError, MissingDependencyError, WeightsError

# What identical images score instead of infinity, so that means and JSON files stay finite. 100 dB is a difference of
# 1e-5 (rms), far below one step of an 8-bit image (59 dB).
PSNR_CEILING_DB = 100.0

_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
# Layers of SqueezeNet whose output LPIPS compares, and their channels (lpips/pretrained_networks.py).
_SQUEEZE_TAPS = {1: 64, 4: 128, 7: 256, 9: 384, 10: 384, 11: 512, 12: 512}
# Side in pixels below which a stage of SqueezeNet would have no output.
_SQUEEZE_MIN_SIDE = 17


@dataclass(frozen=True)
class ImageMetrics:
    """Means over views, and the values of each view in their order.

    Attributes:
        views: Number of views.
        psnr, ssim: Means over views; PSNR in dB.
        psnr_per_view, ssim_per_view: One value per view.
        lpips: Mean LPIPS, None when no network was given.
        lpips_net: "squeeze", "vgg" or "alex"; numbers of different networks are not comparable.
        lpips_per_view: One value per view.
        psnr_covered: Mean PSNR over the pixels of the mask; None without a mask.
        coverage: Share of pixels inside the mask.
    """

    views: int
    psnr: float
    ssim: float
    psnr_per_view: tuple[float, ...]
    ssim_per_view: tuple[float, ...]
    lpips: float | None = None
    lpips_net: str | None = None
    lpips_per_view: tuple[float, ...] | None = None
    psnr_covered: float | None = None
    coverage: float | None = None


@torch.no_grad()
def image_metrics(
    predicted: Float[Tensor, "V 3 H W"],
    target: Float[Tensor, "V 3 H W"],
    *,
    mask: Bool[Tensor, "V H W"] | None = None,
    lpips: nn.Module | None = None,
) -> ImageMetrics:
    """All image metrics of a set of views.

    Args:
        predicted, target: Images in [0, 1] on one device.
        mask: Adds the PSNR over its True pixels, such as those the context views cover; SSIM and LPIPS ignore it.
        lpips: A network of `load_lpips`, on the device of the images; None leaves LPIPS out.
    """
    _check(predicted, target)
    psnr_per_view = psnr(predicted, target).tolist()
    pairs = [(predicted[i : i + 1], target[i : i + 1]) for i in range(len(predicted))]  # bounds the memory
    ssim_per_view = [float(ssim(*pair)) for pair in pairs]
    lpips_per_view = None if lpips is None else [float(lpips(*pair)) for pair in pairs]
    return ImageMetrics(
        views=len(predicted),
        psnr=_mean(psnr_per_view),
        ssim=_mean(ssim_per_view),
        psnr_per_view=tuple(psnr_per_view),
        ssim_per_view=tuple(ssim_per_view),
        lpips=None if lpips_per_view is None else _mean(lpips_per_view),
        lpips_net=None if lpips is None else str(lpips.net),
        lpips_per_view=None if lpips_per_view is None else tuple(lpips_per_view),
        psnr_covered=None if mask is None else _mean(psnr(predicted, target, mask).tolist()),
        coverage=None if mask is None else float(mask.float().mean()),
    )


def psnr(
    predicted: Float[Tensor, "V 3 H W"], target: Float[Tensor, "V 3 H W"], mask: Bool[Tensor, "V H W"] | None = None
) -> Float[Tensor, " V"]:
    """Peak signal-to-noise ratio of each view in dB: -10 log10(MSE over channels and pixels), both clipped to [0, 1].

    At most `PSNR_CEILING_DB`, which identical images reach. Differentiable below the ceiling.

    Args:
        predicted, target: Images.
        mask: Restricts the mean to its True pixels; each view needs at least one.
    """
    _check(predicted, target)
    error = (predicted.float().clip(0, 1) - target.float().clip(0, 1)).square().mean(1)
    if mask is None:
        mse = error.mean((1, 2))
    else:
        if mask.shape != error.shape:
            raise InputError(f"the mask must be {list(error.shape)} like the images; got {list(mask.shape)}")
        counts = mask.sum((1, 2))
        if (counts == 0).any():
            view = int((counts == 0).nonzero()[0])
            raise InputError(f"the mask of view {view} is empty; leave the view out or pass no mask")
        mse = torch.where(mask, error, 0.0).sum((1, 2)) / counts
    return -10 * mse.clamp(min=10 ** (-PSNR_CEILING_DB / 10)).log10()


def ssim(predicted: Float[Tensor, "V 3 H W"], target: Float[Tensor, "V 3 H W"]) -> Float[Tensor, " V"]:
    """Structural similarity of each view (Wang et al., 2004), in [-1, 1]. Differentiable.

    Equals skimage.metrics.structural_similarity(win_size=11, gaussian_weights=True, channel_axis=0, data_range=1.0):
    a Gaussian window of sigma 1.5, *sample* covariance (kornia and torchmetrics take the population's, which differs
    in the third digit), and the mean over the pixels whose window lies inside the image.
    """
    _check(predicted, target)
    if min(predicted.shape[-2:]) < _SSIM_WINDOW:
        raise InputError(f"SSIM needs images of at least 11 x 11 px; got {_size(predicted)}")
    x, y = predicted.float(), target.float()
    distance = torch.arange(_SSIM_WINDOW, dtype=x.dtype, device=x.device) - _SSIM_WINDOW // 2
    window = torch.exp(-0.5 * (distance / _SSIM_SIGMA).square())
    window = window / window.sum()

    def blurred(image: Tensor) -> Tensor:
        rows = F.conv2d(image.flatten(0, 1)[:, None], window[None, None, :, None])
        return F.conv2d(rows, window[None, None, None, :])

    mean_x, mean_y = blurred(x), blurred(y)
    sample = _SSIM_WINDOW**2 / (_SSIM_WINDOW**2 - 1)
    variance_x = sample * (blurred(x * x) - mean_x * mean_x)
    variance_y = sample * (blurred(y * y) - mean_y * mean_y)
    covariance = sample * (blurred(x * y) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).reshape(len(x), -1).mean(1)


# ------------------------------------------------------------------------------------------------ LPIPS


def load_lpips(net: str | None = None, lpips_weights: str | Path | None = None) -> nn.Module:
    """LPIPS (Zhang et al., CVPR 2018, weights v0.1): frozen, called with images in [0, 1], returns [V] values.

    Differentiable with respect to the images. Move it with ``.to(device)``.

    Args:
        net: "squeeze", "vgg" or "alex". None takes "squeeze" when weights are given, else "vgg", the field's choice.
        lpips_weights: Folder with squeezenet1_1_features.safetensors and lpips_lin_squeeze_v0.1.safetensors, or the
            path of the former. The network is then plain torch; without it the lpips package (and torchvision, which
            downloads its own weights) is used.

    Raises:
        MissingDependencyError: No weights were given and the lpips package is not installed.
        WeightsError: The weights cannot be found, or do not fit.
    """
    net = net or ("squeeze" if lpips_weights is not None else "vgg")
    if net not in {"squeeze", "vgg", "alex"}:
        raise InputError(f"unknown LPIPS network '{net}'; known: squeeze, vgg, alex")
    if lpips_weights is None:
        return PackageLpips(net)
    if net != "squeeze":
        raise InputError(f"lpips_weights holds the squeeze network; leave it out to use '{net}' of the lpips package")
    return SqueezeLpips(Path(lpips_weights))


class SqueezeLpips(nn.Module):
    """LPIPS on SqueezeNet 1.1 in plain torch: (predicted, target) [V, 3, H, W] in [0, 1] -> [V]."""

    net = "squeeze"
    shift: Tensor
    scale: Tensor

    def __init__(self, weights: Path):
        """Loads ``squeezenet1_1_features.safetensors`` and the linear heads beside it, strictly."""
        super().__init__()
        backbone = weights / "squeezenet1_1_features.safetensors" if weights.is_dir() else weights
        # Index = key prefix in torchvision's squeezenet1_1.features.
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2),
            nn.ReLU(),
            _pool(),
            _Fire(64, 16, 64),
            _Fire(128, 16, 64),
            _pool(),
            _Fire(128, 32, 128),
            _Fire(256, 32, 128),
            _pool(),
            _Fire(256, 48, 192),
            _Fire(384, 48, 192),
            _Fire(384, 64, 256),
            _Fire(512, 64, 256),
        )
        self.heads = nn.ParameterList(torch.empty(1, channels, 1, 1) for channels in _SQUEEZE_TAPS.values())
        _load_strictly(dict(self.features.named_parameters()), backbone)
        heads = {f"lin{i}.model.1.weight": head for i, head in enumerate(self.heads)}
        _load_strictly(heads, backbone.with_name("lpips_lin_squeeze_v0.1.safetensors"))
        # The published mean and standard deviation of images in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, predicted: Float[Tensor, "V 3 H W"], target: Float[Tensor, "V 3 H W"]) -> Float[Tensor, " V"]:
        if min(predicted.shape[-2:]) < _SQUEEZE_MIN_SIDE:
            raise InputError(
                f"LPIPS needs images of at least {_SQUEEZE_MIN_SIDE} px on each side; got {_size(predicted)}"
            )
        x, y = ((2 * image.float() - 1 - self.shift) / self.scale for image in (predicted, target))
        heads = iter(self.heads)
        total = x.new_zeros(len(x))
        for index, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if index in _SQUEEZE_TAPS:
                difference = (_unit(x) - _unit(y)).square()
                total = total + (difference * next(heads)).sum(1).mean((1, 2))
        return total


class PackageLpips(nn.Module):
    """LPIPS of the lpips package behind the same call: images in [0, 1] (``normalize=True``), [V] values."""

    def __init__(self, net: str):
        super().__init__()
        self.net = net
        try:
            import lpips
        except ImportError as error:
            raise MissingDependencyError(
                f"LPIPS with '{net}' needs the lpips package: pip install 'da3gs[metrics]' (or pass "
                "lpips_weights= with the squeeze weights, which need no package)"
            ) from error
        try:
            self.network = lpips.LPIPS(net=net, verbose=False)
        except OSError as error:  # URLError included: torchvision fetches the backbone on first use
            raise WeightsError(f"the '{net}' backbone of LPIPS could not be fetched: {error}") from error
        self.requires_grad_(False).eval()

    def forward(self, predicted: Float[Tensor, "V 3 H W"], target: Float[Tensor, "V 3 H W"]) -> Float[Tensor, " V"]:
        # The range must be said: fed with [0, 1] as if it were [-1, 1], LPIPS is silently wrong (pixelSplat's README).
        return self.network(predicted.float(), target.float(), normalize=True).flatten()


class _Fire(nn.Module):
    """Squeeze to few channels, expand by 1x1 and 3x3 filters side by side (SqueezeNet, 2016)."""

    def __init__(self, channels: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def _unit(features: Tensor) -> Tensor:
    """Unit length across channels. vector_norm has gradient 0 at 0, where sqrt(sum of squares) would give NaN."""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def _load_strictly(parameters: dict[str, nn.Parameter], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(f"LPIPS weights not found: {path}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is no readable safetensors file: {error}") from error
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        wrong = sorted({name for name, _ in expected.items() ^ found.items()})
        raise WeightsError(f"{path} does not fit LPIPS v0.1 (squeeze); missing, surplus or of another shape: {wrong}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


# ------------------------------------------------------------------------------------------------ checks


def _check(predicted: Tensor, target: Tensor) -> None:
    if predicted.shape != target.shape or predicted.ndim != 4 or predicted.numel() == 0:
        raise InputError(
            f"image metrics need two equal stacks [V, 3, H, W]; got {list(predicted.shape)} and {list(target.shape)}"
        )
    for name, images in (("predicted", predicted), ("target", target)):
        finite = torch.isfinite(images).flatten(1).all(1)
        if not finite.all():
            raise InputError(f"the {name} image of view {int((~finite).nonzero()[0])} holds NaN or infinity")


def _size(images: Tensor) -> str:
    return f"{images.shape[-1]} x {images.shape[-2]} px"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
