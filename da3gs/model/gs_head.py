"""Gaussian head: raw parameters of one Gaussian per pixel, from the same tokens as the depth head plus the image.

::

    four token levels ─ reassemble ─ fusion chain ─ conv ─ upsample to the image ──┐
                                    normalised image ─ three convs ────────────────┴─ + ─ conv conv ─► raw [n, H, W, 38]

Letters: n frames, H W pixels. What the channels mean is the adapter's business.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from da3gs.model.backbone import BackboneOutput
from da3gs.model.depth_heads import HIDDEN
from da3gs.model.dpt import ChunkedOutput, FusionChain, Reassemble, add_uv_embedding, frame_chunks, upsample
from da3gs.model.linear import Pointwise
from da3gs.model.presets import GSHeadConfig


class GaussianHead(nn.Module):
    """Raw Gaussian parameters; see the picture on top of the module."""

    def __init__(self, width: int, config: GSHeadConfig):
        super().__init__()
        self.config = config
        features, half = config.features, config.features // 2
        self.reassemble = Reassemble(width, config.channels, features, positions=True)
        self.chain = FusionChain(features)
        self.neck = nn.Conv2d(features, half, 3, padding=1)
        self.image_convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, half // 4), (half // 4, half // 2), (half // 2, half))
        )
        self.hidden = nn.Conv2d(half, HIDDEN, 3, padding=1)
        self.out = Pointwise(HIDDEN, config.raw_channels)

    def forward(
        self, tokens: BackboneOutput, images: Float[Tensor, "n 3 H W"], start: int = 0, stop: int | None = None
    ) -> Float[Tensor, "m H W k"]:
        """Raw channels of frames start .. stop (all by default), all linear: the last one is the opacity logit.

        Args:
            tokens: Backbone output of n frames.
            images: The normalised images the tokens came from, all n frames in input order.
            start, stop: Range of frames, for callers that turn frames into Gaussians one after the other.
        """
        image_size = (images.shape[-2], images.shape[-1])
        stop = tokens.frames if stop is None else stop
        output = ChunkedOutput(stop - start)
        for low, high in frame_chunks(stop - start, image_size, images.device):
            output.put(low, {"raw": self._chunk(tokens, images, start + low, start + high)})
        return output.collect()["raw"]

    def _chunk(self, tokens: BackboneOutput, images: Tensor, start: int, stop: int) -> Tensor:
        dtype, image_size = self.out.weight.dtype, (images.shape[-2], images.shape[-1])
        # 1. Tokens to a map at 8/14 of the image, then to the image.
        levels = [self.reassemble(i, tokens.level(i, start, stop).to(dtype), tokens.grid) for i in range(4)]
        maps = upsample(self.neck(self.chain(levels)), image_size)
        # 2. The image itself brings back the detail that tokens have lost.
        maps = maps + self._image_features(images[start:stop].to(dtype))
        maps = add_uv_embedding(maps, image_size[1] / image_size[0])
        # 3. Raw parameters.
        return self.out(F.relu(self.hidden(maps), inplace=True)).float().permute(0, 2, 3, 1)

    def _image_features(self, images: Tensor) -> Tensor:
        for conv in self.image_convs:
            images = F.gelu(conv(images))
        return images
