"""Fine-tuning the Gaussian head: everything that stays constant while it trains.

Backbone, depth and cameras are frozen, so their outputs for the context views are computed once:

    images ─► backbone ─► tokens ─┐ once
              depth, cameras ─────┤
                                  ▼
                     Gaussian head ─► raw channels ─► adapter ─► Gaussians in nerfstudio's frame        every step

Letters: V context views, N selected Gaussians.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from da3gs.errors import InputError
from da3gs.gaussians import Gaussians
from da3gs.geometry.similarity import Similarity
from da3gs.images import Views
from da3gs.model.backbone import BackboneOutput
from da3gs.model.da3_model import DA3Model, normalized_poses
from da3gs.model.gaussian_adapter import AdapterConfig, gaussians_from_raw
from da3gs.model.gs_head import GaussianHead
from da3gs.model.network import Da3Network, initialize
from da3gs.model.presets import GSHeadConfig
from da3gs.nerfstudio.context import FeedForward, with_growth
from da3gs.pipeline.surface import Surface


def ensure_head(model: DA3Model) -> GaussianHead:
    """The model's Gaussian head; one that corrects the geometric prior by nothing (yet) is attached if it has none.

    A new head reads the tokens with the convolutions of the depth head, trained on the same tokens: only its output
    starts at zero.

    Raises:
        InputError: Single-view and nested models.
    """
    network, config = model.network, model.config
    if not isinstance(network, Da3Network) or config.cameras is None:
        raise InputError(
            f"{config.name} has no Gaussian head to fine-tune; name an any-view model (da3-base, da3-giant)"
        )
    if network.gs_head is None:
        head = GaussianHead(
            config.backbone.tap_width,
            GSHeadConfig(features=config.head.features, channels=config.head.channels, residual=True),
        )
        initialize(head)
        head.reassemble.load_state_dict(network.head.reassemble.state_dict())
        head.chain.load_state_dict(network.head.depth_chain.state_dict())
        head.neck.load_state_dict(network.head.depth_neck.state_dict())
        network.gs_head = head.to(model.device).requires_grad_(False).eval()
        network.config = model.config = replace(config, gs_head=head.config)
    return network.gs_head


def begin_at_prior(head: GaussianHead) -> None:
    """Make a residual head correct the geometric prior by nothing, and keep what it has learnt to look at."""
    nn.init.zeros_(head.out.weight)
    nn.init.zeros_(head.out.bias)


@dataclass(frozen=True, eq=False)
class FrozenInputs:
    """What the head reads and what the adapter adds to it.

    Attributes:
        tokens: Of the backbone.
        views: The images the network saw.
        surface: Depth and cameras in the network's own frame and scale, at the size splats are placed at.
        user_from_network: From there to nerfstudio's frame.
        selection: Index of every kept Gaussian among one per pixel.
        growth: Factors on their standard deviations.
    """

    tokens: BackboneOutput
    views: Views
    surface: Surface
    user_from_network: Similarity
    selection: Int64[Tensor, " N"]
    growth: Float[Tensor, "N 3"]

    def gaussians(self, head: GaussianHead) -> Gaussians:
        """The Gaussians a head makes of the context views; gradients flow to the head."""
        raw = head(self.tokens, self.views.normalised)
        surface = self.surface
        if raw.shape[1:3] != surface.depth.shape[1:]:
            raw = F.interpolate(raw.movedim(-1, 1), surface.depth.shape[1:], mode="bilinear").movedim(1, -1)
        splats = gaussians_from_raw(
            raw,
            surface.depth,
            surface.cameras,
            config=AdapterConfig() if head.config.residual else AdapterConfig.official(),
            images=surface.views.images,
            confidence=surface.splat_confidence,
        )
        return with_growth(splats[self.selection], self.growth).transform(self.user_from_network)


@torch.no_grad()
def freeze(model: DA3Model, start: FeedForward) -> FrozenInputs:
    """Tokens, depth and cameras of a prediction whose cameras were given."""
    prediction, surface = start.prediction, start.surface
    if prediction.alignment is None:
        raise InputError("fine-tuning a Gaussian head needs posed context views")
    user_from_network = prediction.alignment.target_from_source
    network, images = model.network, prediction.views.normalised[None]
    given = [normalized_poses(prediction.views.cameras)]
    mixed = model.device.type == "cuda" and torch.cuda.is_bf16_supported()
    with torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext():
        tokens = network.backbone(images, network.encode_known_cameras(given, images))
    own = replace(
        surface,
        depth=surface.depth / float(user_from_network.scale),
        cameras=surface.cameras.transform(user_from_network.inverse()),
        gaussians=None,
        raw=None,
    )
    return FrozenInputs(tokens, prediction.views, own, user_from_network, start.selection, start.growth)
