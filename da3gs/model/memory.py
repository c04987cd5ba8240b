"""How much memory a prediction takes, from the architecture alone.

Counted are weights, images, and the tensors alive at the two possible peaks of a forward without gradients (one scene):

* the last backbone block: the levels kept for the heads (up to 8 N C values, N tokens of width C), and 10 N C in the
  attention or 5 N C plus the hidden layer in the feed-forward network;
* a head working on one chunk of views: every level, 21 P f values (P patches of f features), and the larger of the ray
  branch (180 P f) and the maps at image resolution (196 P values per channel: f/2 + 34, in the Gaussian head 1.75 f or
  f/2 + 70).

Kernels add scratch memory of their own (convolutions on the CPU up to the size of their input); it is not counted, so
leave a third of the activations as a reserve.
"""

from dataclasses import replace

import torch

from da3gs.model.dpt import chunk_frames
from da3gs.model.presets import PATCH, GSHeadConfig, HeadConfig, ModelConfig

HIDDEN = 32
RAY_CHANNELS, DEPTH_CHANNELS = 7, 2


def estimate_memory(
    config: ModelConfig,
    views: int,
    height: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float32,
    device_type: str = "cpu",
    parameters: int = 0,
) -> int:
    """Peak bytes of one prediction of one scene, rays included, Gaussian head included if the model has one.

    Args:
        config: Of the network.
        views: Number of views.
        height, width: Image size in pixels.
        dtype: Of weights and activations (maps are returned as float32).
        device_type: "cpu" or "cuda"; decides how many views a head handles at once.
        parameters: Number of parameters, for the weights' share.
    """
    if config.metric is not None:
        # The two networks run one after the other; the any-view results stay.
        parts = (
            _activations(part, views, height, width, dtype, device_type)
            for part in (replace(config, metric=None), config.metric)
        )
        activations = max(parts) + _results(config, views, height, width)
    else:
        activations = _activations(config, views, height, width, dtype, device_type)
    return parameters * dtype.itemsize + activations


def _activations(config: ModelConfig, views: int, height: int, width: int, dtype: torch.dtype, device_type: str) -> int:
    backbone = config.backbone
    patches = height * width // PATCH**2
    token_map = views * (patches + 1) * backbone.width
    kept = 8 if backbone.concat_local else 4
    # The fused linear map and GELU of the CPU needs one hidden layer, others two.
    hidden = 32 / 3 if backbone.feed_forward == "swiglu" else 4 if device_type == "cpu" else 8
    last_block = (kept * 3 / 4 + max(10, 5 + hidden)) * token_map
    frames = min(views, chunk_frames((height, width), device_type))
    heads = [_head(head, patches) for head in (config.head, config.gs_head) if head is not None]
    head_stage = (kept + 1) * token_map + frames * max(heads) + _results(config, views, height, width) / dtype.itemsize
    return int(max(last_block, head_stage) * dtype.itemsize) + 3 * views * height * width * 4


def _head(head: HeadConfig | GSHeadConfig, patches: int) -> float:
    """Values alive at the peak of a head, per view."""
    levels = 21.25 * patches * head.features
    image = PATCH**2 * patches
    if isinstance(head, GSHeadConfig):
        return levels + image * max(1.75 * head.features, head.features / 2 + HIDDEN + head.raw_channels)
    rays = 180 * patches * head.features if head.rays else 0
    return levels + max(rays, image * (head.features / 2 + HIDDEN + DEPTH_CHANNELS))


def _results(config: ModelConfig, views: int, height: int, width: int) -> int:
    """Bytes of the returned maps (float32)."""
    pixels = views * height * width
    values = pixels * DEPTH_CHANNELS
    if config.head.rays:
        values += pixels * 64 // PATCH**2 * RAY_CHANNELS
    if config.gs_head is not None:
        values += pixels * config.gs_head.raw_channels
    return 4 * values
