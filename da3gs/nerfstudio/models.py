"""The two models. Both are Gaussians that the network placed; they differ in what is trained.

    HeadModel    frozen inputs ─► head (trained) ─► Gaussians ─┐
    SplatModel                      Gaussians (trained) ───────┴─► da3gs.render ─► nerfstudio's outputs

Subclasses of SplatfactoModel, because ns-export and the viewer ask for one; none of its own code that makes, renders or
splits Gaussians is ever called.

Letters: N Gaussians, K SH coefficients, H W pixels.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.splatfacto import SplatfactoModel
from torch import Tensor, nn

from da3gs.errors import FormatError, InputError, MissingDependencyError, WeightsError
from da3gs.export.nerfstudio_run import FORMAT, PARAMETERS, activated, deactivated
from da3gs.gaussians import Gaussians
from da3gs.geometry.spherical_harmonics import rgb_from_dc
from da3gs.losses import masked_mse
from da3gs.metrics.images import load_lpips, psnr, ssim
from da3gs.model.da3_model import DA3Model, load_model
from da3gs.model.digest import weights_digest
from da3gs.nerfstudio.cameras import cameras_from_nerfstudio, picture, valid_pixels
from da3gs.nerfstudio.config import (
    IMAGE_SIZE,
    MAX_GAUSSIANS,
    FeedForwardModelConfig,
    HeadModelConfig,
    SplatModelConfig,
)
from da3gs.nerfstudio.context import ContextViews, FeedForward, feed_forward, typical_depth
from da3gs.nerfstudio.head import FrozenInputs, begin_at_prior, ensure_head, freeze
from da3gs.rendering import RenderConfig, render

logger = logging.getLogger(__name__)

_SOFT_GROWTH = 1.5  # of a start with lowered opacities


class FeedForwardSplats(SplatfactoModel):
    """What both models share: Gaussians in splatfacto's parameters, rendering, metrics, and the checkpoint.

    The Gaussians are empty until `start` runs the network (training) or a checkpoint is loaded (everything else), and
    are a part of the checkpoint: nothing but training ever runs the network.
    """

    config: FeedForwardModelConfig
    method: str
    trains_gaussians: bool

    def populate_modules(self) -> None:
        """Empty Gaussians; splatfacto's random points, its .cuda() and its LPIPS download are never reached."""
        rest = (self.config.sh_degree + 1) ** 2 - 1
        shapes = {"means": (3,), "scales": (3,), "quats": (4,), "features_dc": (3,), "features_rest": (rest, 3)}
        self.gauss_params = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros(0, *shapes.get(name, (1,))), requires_grad=self.trains_gaussians)
                for name in PARAMETERS
            }
        )
        self.register_buffer("scene_scale", torch.ones(()))
        self.background_color = torch.tensor(self.config.background)
        self.crop_box: OrientedBox | None = None
        self.step = 0
        self._provenance: dict[str, Any] = {}
        # In a list, so that its weights are no part of this module and its checkpoints.
        self._lpips: list[nn.Module] | None = None

    # ------------------------------------------------------------------------------------------------ start

    def start(self, context: ContextViews) -> None:
        """Run the network on the context views and begin from its Gaussians."""
        model = load_model(self.config.network, device=self.device, gs_head=self.config.gs_head)
        self._provenance = {
            "format": FORMAT,
            "network": self.config.network,
            "preset": model.config.name,
            "weights_sha256": weights_digest(model.network),
            "gs_head": self.config.gs_head,
            "context": list(context.names),
        }
        self._begin(model, context)

    def _begin(self, model: DA3Model, context: ContextViews) -> None:
        raise NotImplementedError

    def _feed_forward(self, model: DA3Model, context: ContextViews) -> FeedForward:
        device = "cuda" if torch.device(self.device).type == "cuda" else "cpu"
        return feed_forward(
            model,
            context,
            size_px=self.config.image_size or IMAGE_SIZE[self.method][device],
            max_gaussians=self.config.max_gaussians or MAX_GAUSSIANS[device],
            sh_degree=self.config.sh_degree,
            # A head that is named was trained on the network's own depth.
            refine_depth=self.config.refine_depth and self.config.gs_head is None,
        )

    def set_gaussians(self, gaussians: Gaussians) -> None:
        """Replace the Gaussians (the Parameter objects stay, so that optimizers keep them)."""
        raw = deactivated(gaussians.detach().to(self.device), self.scene_scale)
        for name in PARAMETERS:
            self.gauss_params[name].data = raw[name].contiguous()

    # ------------------------------------------------------------------------------------------------ Gaussians

    def gaussians(self) -> Gaussians:
        """The current Gaussians in nerfstudio's frame; gradients flow to the parameters."""
        return activated(dict(self.gauss_params.items()), self.scene_scale)

    def training_gaussians(self) -> Gaussians:
        """The Gaussians a training step renders."""
        return self.gaussians()

    def refresh(self) -> None:
        """Bring the stored Gaussians up to date; only the training thread calls this."""

    # What ns-export and the viewer read. splatfacto's own versions squash the colours of degree 0.
    @property
    def means(self) -> Tensor:
        return self.gauss_params["means"] * self.scene_scale

    @property
    def shs_0(self) -> Tensor:
        return self.gauss_params["features_dc"]

    @property
    def shs_rest(self) -> Tensor:
        return self.gauss_params["features_rest"]

    @property
    def colors(self) -> Tensor:
        return rgb_from_dc(self.gauss_params["features_dc"])

    @property
    def num_points(self) -> int:
        return len(self.gauss_params["means"])

    # ------------------------------------------------------------------------------------------------ pictures

    def get_outputs(self, camera: NerfstudioCameras) -> dict[str, Tensor]:
        """Picture of one camera: rgb [H, W, 3], accumulation and (in evaluation) depth [H, W, 1], background."""
        if not isinstance(camera, NerfstudioCameras):
            raise InputError("Gaussians render whole cameras, not rays (--render-nearest-camera is not supported)")
        gaussians = self.training_gaussians() if self.training else self.gaussians()
        if self.crop_box is not None and not self.training:
            gaussians = gaussians[self.crop_box.within(gaussians.means).flatten()]
        cameras = cameras_from_nerfstudio(camera)
        background = self.background_color.to(gaussians.means)
        out = render(gaussians, cameras, RenderConfig(depth=not self.training), background=background)
        if self.training:
            return {"rgb": out.rgb[0], "accumulation": out.alpha[0], "background": background}
        depth, alpha = out.depth[0], out.alpha[0]
        return {
            "rgb": out.rgb[0].clamp(0, 1),
            "depth": torch.where(alpha > 0, depth, depth.max()),
            "accumulation": alpha,
            "background": background.expand_as(out.rgb[0]),
        }

    @torch.no_grad()
    def get_outputs_for_camera(
        self, camera: NerfstudioCameras, obb_box: OrientedBox | None = None
    ) -> dict[str, Tensor]:
        """As `get_outputs`, cropped to a box. Never runs the network: the viewer calls this from its own thread."""
        self.set_crop(obb_box)
        return self.get_outputs(camera.to(self.device))

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """[H, W, 4]: the picture without its background, and its opacity."""
        alpha = outputs["accumulation"]
        colour = outputs[output_name] - (1 - alpha) * outputs["background"]
        return torch.cat([(colour / alpha.clamp(min=1e-10)).clamp(0, 1), alpha], -1)

    # ------------------------------------------------------------------------------------------------ losses, metrics

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        target = picture(batch, self.background_color).to(outputs["rgb"])
        value = psnr(_channels_first(outputs["rgb"].detach()), _channels_first(target))[0]
        return {"psnr": value, "gaussian_count": torch.tensor(float(self.num_points))}

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Squared error and structural similarity over the pixels that count."""
        rgb = outputs["rgb"]
        target = picture(batch, self.background_color).to(rgb)
        mask = valid_pixels(batch) if "mask" in batch else None
        mask = torch.ones_like(rgb[..., 0], dtype=torch.bool) if mask is None else mask.to(rgb.device)
        loss = {"mse": (1 - self.config.ssim_weight) * masked_mse(rgb[None], target[None], mask[None])}
        if self.config.ssim_weight > 0:
            inside = mask[..., None]
            similarity = ssim(_channels_first(rgb * inside), _channels_first(target * inside))[0]
            loss["ssim"] = self.config.ssim_weight * (1 - similarity)
        return loss

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and (when its network can be had) LPIPS; photograph and picture side by side."""
        predicted = outputs["rgb"]
        target = picture(batch, self.background_color).to(predicted)
        pair = _channels_first(predicted), _channels_first(target)
        metrics = {"psnr": float(psnr(*pair)[0]), "ssim": float(ssim(*pair)[0])}
        for network in self._lpips_network():
            metrics["lpips"] = float(network(*pair)[0])
        return metrics, {"img": torch.cat([target, predicted], 1)}

    def _lpips_network(self) -> Iterator[nn.Module]:
        """The LPIPS network, or nothing; loaded once, a failure is said once."""
        if self._lpips is None:
            self._lpips = []
            if self.config.lpips != "off":
                try:
                    network = load_lpips(self.config.lpips, self.config.lpips_weights)
                    self._lpips = [network.to(self.device)]
                except (WeightsError, MissingDependencyError) as error:
                    logger.warning("LPIPS is left out: %s", error)
        yield from self._lpips

    # ------------------------------------------------------------------------------------------------ training

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """None: splatfacto's split and prune Gaussians."""
        return []

    def get_extra_state(self) -> dict[str, Any]:
        return dict(self._provenance)

    def set_extra_state(self, state: Any) -> None:
        """Take over where a checkpoint comes from; refuse one that was made with other frozen weights.

        Raises:
            FormatError: Not a checkpoint of ours.
            WeightsError: Another network, or the same name with other weights.
        """
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            raise FormatError("the checkpoint was not written by this version of the methods da3gs and da3gs-splat")
        if state["network"] != self.config.network:
            raise WeightsError(
                f"the checkpoint was made with network {state['network']}, the configuration names "
                f"{self.config.network}; use the network it was made with"
            )
        own = self._provenance.get("weights_sha256", state["weights_sha256"])
        if own != state["weights_sha256"]:
            raise WeightsError(
                f"the weights of {self.config.network} are not those the checkpoint was made with "
                f"(sha256 {own[:12]}, expected {state['weights_sha256'][:12]}); restore that file"
            )
        self._provenance = dict(state)

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Gaussians, trained weights and provenance; frozen weights stay out, named by preset and hash."""
        self.refresh()
        return super().state_dict(*args, **options)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, **_: Any) -> Any:
        """Strict, whatever `strict` says: nerfstudio retries without when the first attempt fails.

        Raises:
            FormatError: Missing or left-over tensors, or another SH degree.
            WeightsError: See `set_extra_state`.
        """
        state = dict(state)
        self.set_extra_state(state.get("_extra_state"))
        for name in PARAMETERS:
            value = state.get(f"gauss_params.{name}")
            current = self.gauss_params[name]
            if value is None or value.shape[1:] != current.shape[1:]:
                found = "missing" if value is None else f"of shape {list(value.shape)}"
                raise FormatError(f"checkpoint: {name} of the Gaussians is {found}; expected [N, {current.shape[1:]}]")
            current.data = value.to(current)
        self._load_rest(state)
        expected, found = set(self.state_dict_keys()), set(state)
        if expected != found:
            raise FormatError(f"the checkpoint does not fit this model: {', '.join(sorted(expected ^ found)[:4])}")
        return nn.Module.load_state_dict(self, state, strict=True)

    def _load_rest(self, state: dict[str, Any]) -> None:
        """Make room for, or drop, what only this kind of model has."""

    def state_dict_keys(self) -> list[str]:
        return list(nn.Module.state_dict(self))


class SplatModel(FeedForwardSplats):
    """Optimises the Gaussians themselves.

    Means are stored in units of the scene's size, so that their learning rate means the same at any scale of the data.
    """

    config: SplatModelConfig
    method = "da3gs-splat"
    trains_gaussians = True

    def _begin(self, model: DA3Model, context: ContextViews) -> None:
        start = self._feed_forward(model, context)
        self.scene_scale.copy_(typical_depth(start.gaussians, start.surface.cameras))
        self.set_gaussians(start.gaussians)

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """Soften the start, once step 0 has been measured as the network left it."""
        if not 0 < self.config.start_opacity <= 1:
            raise InputError(f"start-opacity must lie in (0, 1]; got {self.config.start_opacity:g}")
        if self.config.start_opacity == 1:
            return []
        places = [TrainingCallbackLocation.BEFORE_TRAIN_ITERATION]
        return [TrainingCallback(places, self.soften, iters=(0,))]

    @torch.no_grad()
    def soften(self, step: int) -> None:
        """Gaussians see-through and larger, so that gradients reach those behind."""
        means, quats, scales, opacities, sh = self.gaussians().tensors()
        opacities = opacities.clamp(max=self.config.start_opacity)
        self.set_gaussians(Gaussians.unchecked(means, quats, _SOFT_GROWTH * scales, opacities, sh))

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        return {name: [self.gauss_params[name]] for name in PARAMETERS}


class HeadModel(FeedForwardSplats):
    """Fine-tunes the Gaussian head of this scene; the Gaussians it last predicted are stored beside it."""

    config: HeadModelConfig
    method = "da3gs"
    trains_gaussians = False

    def populate_modules(self) -> None:
        super().populate_modules()
        self.head: nn.Module | None = None
        self._inputs: FrozenInputs | None = None
        self._stale = False

    def _begin(self, model: DA3Model, context: ContextViews) -> None:
        head = ensure_head(model)
        start = self._feed_forward(model, context)
        if start.surface.confirmed is not None:  # a trained head corrects the network's own depth, not refined depth
            begin_at_prior(head)
        self._inputs = freeze(model, start)
        self.set_gaussians(start.gaussians)
        self.head = head.requires_grad_(True)

    def training_gaussians(self) -> Gaussians:
        if self.head is None or self._inputs is None:
            raise InputError("this model was loaded to be looked at; train it through ns-train --load-dir")
        gaussians = self._inputs.gaussians(self.head)
        self.set_gaussians(gaussians)
        self._stale = True
        return gaussians

    @torch.no_grad()
    def refresh(self) -> None:
        if self._stale and self.head is not None and self._inputs is not None:
            self.set_gaussians(self._inputs.gaussians(self.head))
            self._stale = False

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"head": [] if self.head is None else list(self.head.parameters())}

    def _load_rest(self, state: dict[str, Any]) -> None:
        if self.head is None:  # the Gaussians are stored: looking at them needs no head
            for key in [key for key in state if key.startswith("head.")]:
                del state[key]
        self._stale = False


def _channels_first(image: Tensor) -> Tensor:
    return image.permute(2, 0, 1)[None]
