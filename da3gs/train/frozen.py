"""What a frozen network knows about the context views of a sample: computed once, kept or thrown away.

Letters: V views, H W pixels.
"""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs import stereo
from da3gs.geometry.alignment import SCALE, align_cameras
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.similarity import Similarity
from da3gs.images import normalise
from da3gs.model.backbone import BackboneOutput
from da3gs.model.camera_heads import decode_cameras
from da3gs.model.da3_model import normalized_poses
from da3gs.model.photometric_scale import photometric_scale
from da3gs.pipeline.surface import stereo_config
from da3gs.train.samples import TrainingSample

# Range of errors of the scale within which the pictures of predicted and true cameras are compared.
SCALE_RANGE = (1 / 3, 3.0)


@dataclass(frozen=True, eq=False)
class FrozenSample:
    """Context views of one scene after the frozen network.

    Attributes:
        images, normalised: [V, 3, H, W] in [0, 1], and as the network takes them.
        tokens: Output of the backbone, for the head.
        depth, confidence: [V, H, W] in the network's unit; between given poses refined by the pictures, if asked for.
        cameras: In the network's frame: its own, or with given poses the true ones moved there.
        world_from_network: Into the frame of the targets; None if the scale of predicted cameras is further off than
            `SCALE_RANGE`, by the true depth, or where there is none by how the pictures agree between the true cameras.
        true_depth, true_cameras: Of the context in the frame of the targets; depth 0 where unknown.
    """

    images: Float[Tensor, "V 3 H W"]
    normalised: Float[Tensor, "V 3 H W"]
    tokens: BackboneOutput
    depth: Float[Tensor, "V H W"]
    confidence: Float[Tensor, "V H W"]
    cameras: Cameras
    world_from_network: Similarity | None
    true_depth: Float[Tensor, "V H W"]
    true_cameras: Cameras

    def to(self, device: torch.device) -> "FrozenSample":
        if self.images.device == device:
            return self
        moved = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, (Tensor, Cameras)):
                moved[entry.name] = value.to(device)
        tokens = self.tokens
        moved["tokens"] = replace(
            tokens,
            taps=tuple((None if a is None else a.to(device), b.to(device)) for a, b in tokens.taps),
            inverse=tokens.inverse.to(device),
            reference=None if tokens.reference is None else tokens.reference.to(device),
        )
        return replace(self, **moved)


@torch.no_grad()
def frozen_sample(network, context: TrainingSample, *, posed: bool, refine_depth: bool = False) -> FrozenSample:
    """Run the frozen network on context views.

    Args:
        posed: Their true poses are given to it.
        refine_depth: Depth between given poses is refined by the pictures, as `reconstruct` does without a head.
    """
    device = next(network.parameters()).device
    images, true = context.images.to(device), context.cameras.to(device)
    normalised = normalise(images)
    # 1. Tokens, conditioned as in `DA3Model.predict`.
    # Only the backbone may run in half precision: poses and parallax must not.
    with torch.autocast(device.type, enabled=False):
        known = network.encode_known_cameras([normalized_poses(true)], normalised[None]) if posed else None
    tokens = network.backbone(normalised[None], known)
    with torch.autocast(device.type, enabled=False):
        return _placed(network, context, images, normalised, tokens, posed=posed, refine_depth=refine_depth)


def _placed(
    network,
    context: TrainingSample,
    images: Tensor,
    normalised: Tensor,
    tokens: BackboneOutput,
    *,
    posed: bool,
    refine_depth: bool,
) -> FrozenSample:
    """Depth and cameras of the tokens, and the way from there into the frame of the targets."""
    true, true_depth = context.cameras.to(images.device), context.depth.to(images.device)
    width, height = true.size
    # 2. Depth and cameras.
    maps = network.head(tokens, (height, width), rays=False)
    encoding = network.camera_decoder(tokens.class_token(-1))[0]
    world_from_cam, K = decode_cameras(encoding, width, height)
    predicted = Cameras(torch.linalg.inv(world_from_cam), K, width, height)
    # 3. The way to the true frame, over the context cameras; scales are compared with both worlds of size about 1.
    alignment = align_cameras(predicted, true)
    moved = alignment.target_from_source
    if SCALE in alignment.unobservable:
        moved = _with_scale(moved, predicted, true, _depth_ratio(true_depth, maps.depth))
    known = bool((true_depth > 0).any())
    agreeing = 1.0  # factor on depth at which the pictures agree between the true cameras
    if posed or not known:
        agreeing = photometric_scale(images, maps.depth, true.transform(moved.inverse())).factor
    if posed:  # as `DA3Model.predict` does with refine_scale
        moved = moved @ Similarity(agreeing, torch.eye(3), torch.zeros(3))
    depth, confidence = maps.depth, maps.confidence
    cameras = true.transform(moved.inverse()) if posed else predicted
    if posed and refine_depth:
        refined = stereo.refine_depth(images, depth, cameras, config=stereo_config(network.config.name))
        depth, confidence = refined.depth, stereo.surer_where_confirmed(confidence, refined.confirmed)
    ratio = float(moved.scale) / _mean_distance(true, true_depth) if known else agreeing
    usable = posed or SCALE_RANGE[0] <= ratio <= SCALE_RANGE[1]
    return FrozenSample(
        images=images,
        normalised=normalised,
        tokens=tokens,
        depth=depth,
        confidence=confidence,
        cameras=cameras,
        world_from_network=moved if usable else None,
        true_depth=true_depth,
        true_cameras=true,
    )


def _mean_distance(cameras: Cameras, depth: Tensor) -> float:
    """Mean distance of the known points from the first camera: the length that the network calls about 1."""
    points = cameras.unproject(depth)[depth > 0]
    return float((points - cameras.centers[0]).norm(dim=-1).mean())


def _depth_ratio(true: Tensor, predicted: Tensor) -> float:
    known = true > 0
    return float(true[known].median() / predicted[known].median()) if known.any() else 1.0


def _with_scale(similarity: Similarity, source: Cameras, target: Cameras, scale: float) -> Similarity:
    """The same rotation with another scale; camera centres still meet in the mean."""
    rotation = similarity.rotation
    middle, goal = source.centers.double().cpu().mean(0), target.centers.double().cpu().mean(0)
    return Similarity(scale, rotation, goal - scale * (rotation @ middle))
