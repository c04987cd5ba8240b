"""The Depth Anything 3 network: images in, released numbers out.

::

    images ─► backbone ──┬─ last camera token ─► camera decoder ─► cameras      (camera_source="head")
    cameras ─► encoder ──┘ ├─ four levels ─► depth + ray head ─► depth, rays ─► cameras      ("rays")
                           └─ four levels + images ─► Gaussian head ─► adapter (depth, cameras) ─► Gaussians
    nested: the same images ─► metric network ─► metric depth, sky ─► one scale for depth and poses

Letters: B scenes, V views, H W pixels, h w ray cells (8 per patch), k raw channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from da3gs.errors import InputError
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.conventions import rigid_inverse
from da3gs.images import IMAGENET_MEAN, IMAGENET_STD
from da3gs.model.backbone import Backbone, BackboneOutput, sine_positions
from da3gs.model.camera_heads import CameraDecoder, CameraEncoder, decode_cameras, encode_cameras
from da3gs.model.depth_heads import DepthMaps, DepthRayHead, DepthSkyHead, fill_sky
from da3gs.model.gs_head import GaussianHead
from da3gs.model.layers import Block, GeluMlp
from da3gs.model.matching import queries_and_keys
from da3gs.model.memory import estimate_memory
from da3gs.model.nested import align_to_metric
from da3gs.model.presets import PATCH, ModelConfig
from da3gs.model.ray_pose import released_cameras_from_rays
from da3gs.model.reference_view import STRATEGIES

CAMERA_SOURCES = ("head", "rays")


@dataclass(frozen=True, eq=False)
class Prediction:
    """Output of a network for B scenes of V views.

    Attributes:
        depth: [B, V, H, W] z-depth (> 0; metric for nested models, else up to one scale per scene).
        confidence: [B, V, H, W] >= 1, or None (single-view models).
        rays: [B, V, h, w, 6] direction R K^-1 p (not unit) and origin per cell; None if not asked for.
        ray_confidence: [B, V, h, w] >= 1, or None.
        cameras: One `Cameras` per scene, at the image size, or None (single-view models).
        sky: [B, V, H, W] sky score >= 0, or None (any-view models).
        gaussians: One `Gaussians` per scene ordered by (view, row, column), or None.
        raw_gaussians: [B, V, H, W, k] output of the Gaussian head, or None if not asked for.
        scale_factor: Metric scale found by a nested model.
        features: Block index -> normalised patch features [B, V, rows, columns, C], input order.
        match_queries, match_keys: [B, V, P, c] what patches look for and offer in other views (`matching`), or None.
    """

    depth: Float[Tensor, "B V H W"]
    confidence: Float[Tensor, "B V H W"] | None = None
    rays: Float[Tensor, "B V h w 6"] | None = None
    ray_confidence: Float[Tensor, "B V h w"] | None = None
    cameras: list[Cameras] | None = None
    sky: Float[Tensor, "B V H W"] | None = None
    gaussians: list[Gaussians] | None = None
    raw_gaussians: Float[Tensor, "B V H W k"] | None = None
    scale_factor: float | None = None
    features: dict[int, Tensor] = field(default_factory=dict)
    match_queries: Float[Tensor, "B V P c"] | None = None
    match_keys: Float[Tensor, "B V P c"] | None = None


class _Sized(nn.Module):
    config: ModelConfig

    def estimate_memory(self, views: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> int:
        """Peak bytes of one prediction without gradients, weights included; the formula stands in `memory`.

        Args:
            views: Views of one scene.
            height, width: Image size in pixels.
            dtype: Of weights and activations.
        """
        device_type = next(self.parameters()).device.type
        count = sum(parameter.numel() for parameter in self.parameters())
        return estimate_memory(
            self.config, views, height, width, dtype=dtype, device_type=device_type, parameters=count
        )


class Da3Network(_Sized):
    """Any preset but the nested ones. Build it with `build_model`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width, tap_width = config.backbone.width, config.backbone.tap_width
        self.backbone = Backbone(config.backbone)
        self.head = (DepthRayHead if config.head.rays else DepthSkyHead)(tap_width, config.head)
        self.camera_encoder = CameraEncoder(width, config.cameras) if config.cameras else None
        self.camera_decoder = CameraDecoder(tap_width) if config.cameras else None
        self.gs_head = GaussianHead(tap_width, config.gs_head) if config.gs_head else None

    def forward(
        self,
        images: Tensor,
        cameras: list[Cameras] | None = None,
        *,
        gaussians: bool = False,
        camera_source: str = "head",
        reference_view: str = "saddle_balanced",
        rays: bool = True,
        raw_gaussians: bool = False,
        feature_layers: Sequence[int] = (),
        matches: bool = False,
    ) -> Prediction:
        """Predict with the released numbers; gradients flow everywhere except through ``camera_source="rays"``.

        Under an outer autocast only the backbone runs in mixed precision, as released.

        Args:
            images: [B, V, 3, H, W] ImageNet-normalised, floating point; H and W multiples of 14.
            cameras: One `Cameras` per scene at the image size, poses of all scenes or of none. Poses condition
                the prediction; the cameras returned are still predicted ones. Intrinsics alone are ignored.
            gaussians: Also return Gaussians, through the model's Gaussian head if it has one.
            camera_source: "head" (camera decoder) or "rays" (released fit to the ray map, global random generator).
            reference_view: Strategy of `reference_view.STRATEGIES`; used from three views on and without poses.
            rays: Compute the ray map; False saves up to a third of the head's time.
            raw_gaussians: Also return the raw output of the Gaussian head.
            feature_layers: Backbone blocks whose features are returned.
            matches: Also return what matches patches between views; for networks that learned to (`match_layer`).

        Raises:
            InputError: Images or cameras of a wrong form, or an output this model does not have.
        """
        self._check(images, cameras, gaussians, camera_source, reference_view, raw_gaussians, feature_layers)
        if matches and self.config.match_layer is None:
            raise InputError(f"{self.config.name} was not trained to match patches between views")
        size = (images.shape[-2], images.shape[-1])
        # 1. Tokens of all views, conditioned on known poses.
        tokens = self.backbone(
            images,
            self.encode_known_cameras(cameras, images),
            reference_view=reference_view,
            feature_layers=feature_layers,
        )
        with torch.autocast(images.device.type, enabled=False):
            # 2. Depth, confidence, rays or sky of every view.
            maps = (
                self.head(tokens, size, rays=rays or camera_source == "rays")
                if self.config.head.rays
                else (self.head(tokens, size))
            )
            maps = _by_scene(maps, images.shape[:2])
            # 3. Cameras.
            predicted = self._cameras(tokens, maps, camera_source, size) if self.config.cameras else None
            # 4. Gaussians, from depth and predicted cameras before any metric scaling.
            raw, splats = self._gaussians(tokens, images, maps, predicted, cameras, gaussians, raw_gaussians)
            queries, keys = self._matches(tokens) if matches else (None, None)
        depth = maps.depth if maps.sky is None else fill_sky(maps.depth, maps.sky)
        return Prediction(
            depth=depth,
            confidence=maps.confidence,
            rays=maps.rays if rays else None,
            ray_confidence=maps.ray_confidence if rays else None,
            cameras=predicted,
            sky=maps.sky,
            gaussians=splats,
            raw_gaussians=raw,
            features=tokens.exported,
            match_queries=queries,
            match_keys=keys,
        )

    def encode_known_cameras(self, cameras: list[Cameras] | None, images: Tensor) -> Tensor | None:
        """Camera tokens [B, V, C] of known poses, or None when there are none."""
        if cameras is None or self.camera_encoder is None or cameras[0].cam_from_world is None:
            return None
        poses = torch.stack([scene.cam_from_world for scene in cameras]).to(images.device, torch.float32)
        K = torch.stack([scene.K for scene in cameras]).to(images.device, torch.float32)
        with torch.autocast(images.device.type, enabled=False):
            return self.camera_encoder(encode_cameras(poses, K, images.shape[-1], images.shape[-2]))

    def _matches(self, tokens: BackboneOutput) -> tuple[Tensor, Tensor]:
        """Queries and keys of the patches, in input order."""
        layer = self.config.match_layer
        assert layer is not None
        # A tap holds what leaves the last single-view block: what enters its own, cross-view block.
        local, _ = tokens.taps[self.config.backbone.tap_layers.index(layer)]
        assert local is not None
        block = cast(Block, self.backbone.blocks[layer])
        found = queries_and_keys(block, local[:, :, 1:].float())
        queries, keys = (torch.take_along_dim(part, tokens.inverse[:, :, None, None], 1) for part in found)
        return queries, keys

    def _cameras(self, tokens: BackboneOutput, maps: DepthMaps, source: str, size: tuple[int, int]) -> list[Cameras]:
        height, width = size
        if source == "rays":
            world_from_cam, K = released_cameras_from_rays(maps.rays, maps.ray_confidence, width=width, height=height)
        else:
            encoding = self.camera_decoder(tokens.class_token(-1))
            world_from_cam, K = decode_cameras(encoding, width, height)
        return [
            Cameras(pose, intrinsics, width, height)
            for pose, intrinsics in zip(rigid_inverse(world_from_cam), K, strict=True)
        ]

    def _gaussians(
        self,
        tokens: BackboneOutput,
        images: Tensor,
        maps: DepthMaps,
        predicted: list[Cameras] | None,
        given: list[Cameras] | None,
        want_gaussians: bool,
        want_raw: bool,
    ) -> tuple[Tensor | None, list[Gaussians] | None]:
        """Raw head output [B, V, H, W, k] and Gaussians per scene, each None unless wanted."""
        raw = None
        if self.gs_head is not None and (want_gaussians or want_raw):
            raw = self.gs_head(tokens, images.flatten(0, 1)).unflatten(0, images.shape[:2])
        if not want_gaussians:
            return raw, None
        from da3gs.model.gaussian_adapter import AdapterConfig, gaussians_from_raw

        released = self.gs_head is not None and not self.gs_head.config.residual
        config = AdapterConfig.official() if released else AdapterConfig()
        pictures = None if released else denormalize(images)
        posed = given is not None and given[0].cam_from_world is not None
        splats = [
            gaussians_from_raw(
                None if raw is None else raw[scene],
                maps.depth[scene],
                predicted[scene],
                config=config,
                images=None if pictures is None else pictures[scene],
                confidence=maps.confidence[scene],
                given_cameras=given[scene].to(images.device) if posed else None,
            )
            for scene in range(len(images))
        ]
        return raw if want_raw else None, splats

    def _check(self, images, cameras, gaussians, camera_source, reference_view, raw_gaussians, feature_layers) -> None:
        name = self.config.name
        check_images(images)
        if camera_source not in CAMERA_SOURCES:
            raise InputError(f"camera_source must be one of {', '.join(CAMERA_SOURCES)}; got {camera_source!r}")
        if reference_view not in STRATEGIES:
            raise InputError(f"reference_view must be one of {', '.join(STRATEGIES)}; got {reference_view!r}")
        if self.config.cameras is None and (gaussians or raw_gaussians or camera_source == "rays"):
            raise InputError(
                f"{name} predicts depth of single views only, no cameras, rays or Gaussians; use an any-view model"
            )
        if raw_gaussians and self.gs_head is None:
            raise InputError(f"{name} has no Gaussian head; attach one or ask for gaussians=True (geometric prior)")
        bad = [layer for layer in feature_layers if not 0 <= layer < self.config.backbone.depth]
        if bad:
            raise InputError(f"feature layers of {name} are 0 to {self.config.backbone.depth - 1}; got {bad}")
        if cameras is not None:
            check_cameras(cameras, images)


class NestedNetwork(_Sized):
    """An any-view network whose scale a metric network sets, on the same images. Build it with `build_model`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.any_view = Da3Network(replace(config, metric=None))
        self.metric = Da3Network(config.metric)

    def forward(self, images: Tensor, cameras: list[Cameras] | None = None, **options) -> Prediction:
        """As `Da3Network.forward` (same options), with metric depth and poses.

        As released: one scale for the whole batch, and Gaussians stay in the any-view network's own scale.

        Raises:
            InputError: Also if ten or fewer pixels of the images are not sky.
        """
        any_view = self.any_view(images, cameras, **options)
        metric = self.metric(images)
        return align_to_metric(any_view, metric)

    @property
    def gs_head(self) -> GaussianHead | None:
        return self.any_view.gs_head


def build_model(config: ModelConfig, *, device: str | torch.device = "cpu") -> Da3Network | NestedNetwork:
    """A network with random weights; on ``device="meta"`` without any memory or time."""
    with torch.device(device):
        network = NestedNetwork(config) if config.metric else Da3Network(config)
    if torch.device(device).type != "meta":
        initialize(network)
    return network


@torch.no_grad()
def initialize(network: nn.Module) -> None:
    """Random weights to train from in thousands of steps rather than hundreds of thousands.

    Linear maps keep the size of their input; what writes into the residual stream starts smaller by the square root of
    the number of writers (GPT-2), with LayerScale 1. Positions start as sines and cosines as strong as the patches,
    because rays and matches are about places. Predicted cameras start at the identity with a field of view of one
    radian, and the output of the Gaussian head at zero.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
    # A second pass: owners come before their parts in modules().
    for module in network.modules():
        if isinstance(module, Backbone):
            for token in (module.class_token, module.camera_token):
                if token is not None:
                    nn.init.trunc_normal_(token, std=0.02)
            module.position_embedding.copy_(sine_positions(module.position_embedding.shape[-1]))
        if isinstance(module, Backbone | CameraEncoder):
            blocks: list[Any] = list(module.blocks)
            for block in blocks:
                feed_forward = block.feed_forward
                last = feed_forward.reduce if isinstance(feed_forward, GeluMlp) else feed_forward.project
                for writer in (block.attention.out, last):
                    writer.weight.mul_((2 * len(blocks)) ** -0.5)
        if isinstance(module, CameraDecoder):
            # Its ReLUs must let the signal through: in a smaller start they die before views teach about cameras.
            for layer in (module.first, module.second):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            for layer in (module.translation, module.quaternion, module.fov):
                nn.init.trunc_normal_(layer.weight, std=0.1 * layer.in_features**-0.5)
            module.quaternion.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
            module.fov.bias.fill_(1.0)
        elif isinstance(module, GaussianHead):
            module.out.weight.zero_()
            module.out.bias.zero_()


def denormalize(images: Float[Tensor, "*batch 3 H W"]) -> Float[Tensor, "*batch 3 H W"]:
    """Pictures in [0, 1] from ImageNet-normalised ones."""
    mean = torch.tensor(IMAGENET_MEAN, dtype=images.dtype, device=images.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, dtype=images.dtype, device=images.device)[:, None, None]
    return (images * std + mean).clamp(0, 1)


def check_images(images: Tensor) -> None:
    """InputError unless images are [B, V, 3, H, W], floating point, H and W multiples of 14."""
    if images.ndim != 5 or images.shape[2] != 3 or not images.is_floating_point() or 0 in images.shape:
        raise InputError(f"images must be a float tensor [B, V, 3, H, W]; got {images.dtype} {list(images.shape)}")
    height, width = images.shape[-2:]
    if height % PATCH or width % PATCH:
        raise InputError(
            f"image height and width must be multiples of {PATCH} px; got {height} x {width}: resize to "
            f"{round(height / PATCH) * PATCH or PATCH} x {round(width / PATCH) * PATCH or PATCH}"
        )


def check_cameras(cameras: Sequence[Cameras] | Cameras, images: Tensor) -> None:
    """InputError unless there is one `Cameras` per scene, of all views, at the image size, all posed or none."""
    batch, views, _, height, width = images.shape
    if isinstance(cameras, Cameras) or len(cameras) != batch:
        raise InputError(f"cameras must be a list of {batch} Cameras, one per scene; got {type(cameras).__name__}")
    if len({scene.cam_from_world is None for scene in cameras}) > 1:
        raise InputError("either all scenes of a batch have known poses or none; got both kinds")
    for index, scene in enumerate(cameras):
        if len(scene) != views or scene.size != (width, height):
            raise InputError(
                f"cameras of scene {index} must be {views} of {width} x {height} px like the images; got {len(scene)} "
                f"of {int(scene.width[0])} x {int(scene.height[0])}; use Cameras.scaled"
            )


def _by_scene(maps: DepthMaps, shape: torch.Size) -> DepthMaps:
    fields = {name: value.unflatten(0, shape) for name, value in vars(maps).items() if value is not None}
    return DepthMaps(**fields)
