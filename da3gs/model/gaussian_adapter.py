"""Raw channels of the Gaussian head → Gaussians in the world frame.

    raw 0,1 offset ─► pixel p ─┐
    raw 36 depth ───► z ───────┼─► mean = C + R_wc K^-1 [p, 1] z
    raw 2-4 ────────► scale    │   (relative to the pixel's footprint at z)
    raw 5-8 ────────► rotation │   prior: the axes of the surface, turned by the head
    raw 9-35 ───────► SH       │   prior: the image's colour in degree 0
    raw 37 ─────────► opacity ─┘   prior: from the confidence

One adapter serves three cases: no head (raw = None, the geometric prior alone), our head (a residual on the prior, all
zeros at first), and the released head (`AdapterConfig.official()`: prior off, its own conventions).

Letters: V views, H W pixels, N = V H W Gaussians in (view, row, column) order.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from da3gs.errors import InputError
from da3gs.gaussians import Gaussians
from da3gs.geometry import spherical_harmonics
from da3gs.geometry.alignment import SCALE, umeyama
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.conventions import PIXEL_CENTER_PX
from da3gs.geometry.rotations import matrix_from_quat, quat_from_matrix, wxyz_from_xyzw, xyzw_from_wxyz
from da3gs.geometry.similarity import Similarity
from da3gs.model.geometric_prior import GeometricPrior, geometric_prior

RAW_CHANNELS = 38
_OFFSET, _SCALE, _QUAT, _SH = slice(0, 2), slice(2, 5), slice(5, 9), slice(9, 36)
_DEPTH, _OPACITY = 36, 37
_SH_DEGREE = 2
# Damping of the head's SH per degree: 1, then 0.1 * 0.25^l.
_SH_MASK = (1.0, *(0.025,) * 3, *(0.00625,) * 5)
# Scale = (MIN + (MAX - MIN) sigmoid(raw)) * depth * 0.1 (1/fx + 1/fy).
_SCALE_MIN, _SCALE_MAX = 1e-5, 30.0
_FOOTPRINT = 0.1
# Range of the scale between prediction and given cameras that the released adapter accepts.
_SCALE_CLAMP = (1 / 3, 3.0)


@dataclass(frozen=True)
class AdapterConfig:
    """How raw channels are read. Not a flag for users: it belongs to the weights of a head.

    Attributes:
        prior: Add the geometric prior; needs the images.
        ray_depth: Read the depth as distance along the unit ray instead of z-depth.
        relative_depth: Raw channel 36 is a fraction, z = D (1 + 0.1 tanh r), instead of an addition, z = D + r.
        legacy_quaternion: The component order the released head was trained through (scalar-last, then read as wxyz).
    """

    prior: bool = True
    ray_depth: bool = False
    relative_depth: bool = True
    legacy_quaternion: bool = False

    @staticmethod
    def official() -> "AdapterConfig":
        """The adapter of the released giant and nested checkpoints."""
        return AdapterConfig(prior=False, ray_depth=True, relative_depth=False, legacy_quaternion=True)


def gaussians_from_depth(
    images: Float[Tensor, "V 3 H W"],
    depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    *,
    confidence: Float[Tensor, "V H W"] | None = None,
) -> Gaussians:
    """Splats of posed depth maps without any head: one per pixel with depth > 0.

    Args:
        images: Colours in [0, 1].
        depth: z-depth in world units; <= 0 is invalid and yields no splat.
        cameras: Posed, at the size of the maps.
        confidence: Larger is surer; None makes every splat equally opaque.

    Returns:
        Validated Gaussians of SH degree 0 in the world frame, in (view, row, column) order of the valid pixels.

    Raises:
        InputError: On mismatched sizes, non-finite depth, or when no pixel is valid.
    """
    if not torch.isfinite(depth).all():
        raise InputError("depth must be finite; mark invalid pixels by 0")
    valid = (depth > 0).flatten()
    if not valid.any():
        raise InputError("no pixel has a depth > 0; nothing to place")
    gaussians = gaussians_from_raw(None, depth, cameras, images=images, confidence=confidence)
    return gaussians[valid].validate()


def gaussians_from_raw(
    raw: Float[Tensor, "V H W 38"] | None,
    depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    *,
    config: AdapterConfig | None = None,
    images: Float[Tensor, "V 3 H W"] | None = None,
    confidence: Float[Tensor, "V H W"] | None = None,
    given_cameras: Cameras | None = None,
) -> Gaussians:
    """One Gaussian per pixel. Gradients flow to raw, depth and cameras; the prior is constant.

    Args:
        raw: Output of a Gaussian head, opacity as a logit; None stands for zeros.
        depth: Depth in the units of `cameras`.
        cameras: Posed, at the size of the maps.
        config: Of the head; default is ours with the prior.
        images: Colours in [0, 1]; needed with the prior.
        confidence: For the prior's opacity.
        given_cameras: Only for the released head, which scales its Gaussians (without moving or turning them) by the
            ratio of the given trajectory's size to the predicted one's.

    Returns:
        Unchecked Gaussians (the released head may yield negative scales), SH degree 2, or 0 when raw is None.
    """
    config = config or AdapterConfig()
    prior = None
    if config.prior:
        if images is None:
            raise InputError("the geometric prior takes its colour from the images; pass images [V, 3, H, W] in [0, 1]")
        prior = geometric_prior(depth.detach(), cameras.detach(), confidence)
    # No head is a head of zeros: one value, broadcast.
    channels = depth.new_zeros(()).expand(*depth.shape, RAW_CHANNELS) if raw is None else raw
    world_from_cam = cameras.world_from_cam.to(depth)
    rotation = world_from_cam[:, None, None, :3, :3]
    means, along = _means(channels, depth, cameras, world_from_cam, config)
    quats = _quats(channels, rotation, prior, config)
    scales = _scales(channels, along, cameras, prior)
    opacities = _opacities(channels, prior)
    sh = _colours(channels, rotation, images if config.prior else None, degree=0 if raw is None else _SH_DEGREE)
    gaussians = Gaussians.unchecked(
        means.flatten(0, 2), quats.flatten(0, 2), scales.flatten(0, 2), opacities.flatten(), sh.flatten(0, 2)
    )
    return gaussians if given_cameras is None else gaussians.transform(_scale_towards(cameras, given_cameras))


def _means(
    raw: Tensor, depth: Tensor, cameras: Cameras, world_from_cam: Tensor, config: AdapterConfig
) -> tuple[Tensor, Tensor]:
    """World positions [V, H, W, 3], and the depth (of the configured kind) each splat got."""
    _, height, width = depth.shape
    v, u = torch.meshgrid(
        torch.arange(height, device=depth.device, dtype=depth.dtype) + PIXEL_CENTER_PX,
        torch.arange(width, device=depth.device, dtype=depth.dtype) + PIXEL_CENTER_PX,
        indexing="ij",
    )
    pixels = torch.stack([u, v], -1) + raw[..., _OFFSET]
    pixels = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)
    rays = pixels @ torch.linalg.inv(cameras.K.to(depth)).transpose(1, 2)[:, None]
    if config.ray_depth:
        rays = rays / rays.norm(dim=-1, keepdim=True)
    residual = raw[..., _DEPTH]
    along = depth * (1 + 0.1 * torch.tanh(residual)) if config.relative_depth else depth + residual
    directions = rays @ world_from_cam[:, None, :3, :3].transpose(-1, -2)
    return world_from_cam[:, None, None, :3, 3] + directions * along[..., None], along


def _scales(raw: Tensor, along: Tensor, cameras: Cameras, prior: GeometricPrior | None) -> Tensor:
    focal = torch.stack([cameras.K[:, 0, 0], cameras.K[:, 1, 1]], -1).to(along)
    footprint = (_FOOTPRINT * (1 / focal).sum(-1))[:, None, None]
    logits = raw[..., _SCALE]
    if prior is not None:
        # The raw value at which the sigmoid gives the prior's size: sigma_px D / sqrt(fx fy).
        target = prior.sigma_px / focal.prod(-1).sqrt()[:, None, None, None] / footprint[..., None]
        logits = logits + torch.logit((target.clamp(1e-4, 29.9) - _SCALE_MIN) / (_SCALE_MAX - _SCALE_MIN))
    size = _SCALE_MIN + (_SCALE_MAX - _SCALE_MIN) * torch.sigmoid(logits)
    return size * (along * footprint)[..., None]


def _quats(raw: Tensor, rotation: Tensor, prior: GeometricPrior | None, config: AdapterConfig) -> Tensor:
    quat = raw[..., _QUAT]
    if config.legacy_quaternion:
        quat = quat / (quat.norm(dim=-1, keepdim=True) + 1e-8)
        # Rolled by one and then read scalar-last; the result is stored scalar-last and read as wxyz by every renderer.
        turn = matrix_from_quat(wxyz_from_xyzw(quat.roll(1, -1)))
        return xyzw_from_wxyz(quat_from_matrix(rotation @ turn))
    identity = quat.new_tensor([1.0, 0.0, 0.0, 0.0])
    turn = matrix_from_quat(F.normalize(quat + identity, dim=-1))
    if prior is not None:
        turn = prior.axes @ turn
    return quat_from_matrix(rotation @ turn)


def _opacities(raw: Tensor, prior: GeometricPrior | None) -> Tensor:
    logits = raw[..., _OPACITY]
    return torch.sigmoid(logits if prior is None else logits + torch.logit(prior.opacity))


def _colours(raw: Tensor, rotation: Tensor, images: Tensor | None, degree: int) -> Tensor:
    """SH [V, H, W, K, 3] in the world frame."""
    coefficients = (degree + 1) ** 2
    mask = raw.new_tensor(_SH_MASK[:coefficients])[:, None]
    sh = raw[..., _SH].unflatten(-1, (3, -1))[..., :coefficients].transpose(-1, -2) * mask
    if images is not None:
        base = spherical_harmonics.dc_from_rgb(images.movedim(1, -1)).to(sh)
        sh = torch.cat([sh[..., :1, :] + base[..., None, :], sh[..., 1:, :]], -2)
    return spherical_harmonics.rotate(sh, rotation)


def _scale_towards(predicted: Cameras, given: Cameras) -> Similarity:
    """Scaling about the origin from the predicted to the size of the given trajectory; nothing is moved or turned."""
    fit = umeyama(predicted.centers, given.centers)
    scale = 1.0 if SCALE in fit.unobservable else fit.target_from_source.scale.clamp(*_SCALE_CLAMP)
    return Similarity(scale, torch.eye(3), torch.zeros(3))
