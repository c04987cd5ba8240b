"""The one table between our module names and the names in the released checkpoints.

Released files hold three kinds of tensors: those the network uses (`RULES`), weights of ray-branch levels that never
reach an output (`unused_shapes`: their presence and shape are checked, their values dropped), and, in some formats,
repeated copies of a tied LayerNorm (`TIED`).
"""

import re

from da3gs.model.presets import HeadConfig, ModelConfig

PREFIX = "model."

# Ours -> released; `#` is an index, `#+` that index plus one. The first rule whose left side is the beginning of a
# name at a dot applies; what follows it (.weight, .bias) is kept.
RULES: tuple[tuple[str, str], ...] = (
    # backbone
    ("backbone.patch_embedding", "backbone.pretrained.patch_embed.proj"),
    ("backbone.class_token", "backbone.pretrained.cls_token"),
    ("backbone.position_embedding", "backbone.pretrained.pos_embed"),
    ("backbone.camera_token", "backbone.pretrained.camera_token"),
    ("backbone.norm", "backbone.pretrained.norm"),
    ("backbone.blocks.#.attention_norm", "backbone.pretrained.blocks.#.norm1"),
    ("backbone.blocks.#.attention.qkv", "backbone.pretrained.blocks.#.attn.qkv"),
    ("backbone.blocks.#.attention.query_norm", "backbone.pretrained.blocks.#.attn.q_norm"),
    ("backbone.blocks.#.attention.key_norm", "backbone.pretrained.blocks.#.attn.k_norm"),
    ("backbone.blocks.#.attention.out", "backbone.pretrained.blocks.#.attn.proj"),
    ("backbone.blocks.#.attention_scale", "backbone.pretrained.blocks.#.ls1.gamma"),
    ("backbone.blocks.#.feed_forward_norm", "backbone.pretrained.blocks.#.norm2"),
    ("backbone.blocks.#.feed_forward.expand", "backbone.pretrained.blocks.#.mlp.fc1"),
    ("backbone.blocks.#.feed_forward.reduce", "backbone.pretrained.blocks.#.mlp.fc2"),
    ("backbone.blocks.#.feed_forward.gate_and_value", "backbone.pretrained.blocks.#.mlp.w12"),
    ("backbone.blocks.#.feed_forward.project", "backbone.pretrained.blocks.#.mlp.w3"),
    ("backbone.blocks.#.feed_forward_scale", "backbone.pretrained.blocks.#.ls2.gamma"),
    # camera encoder and decoder
    ("camera_encoder.embed.expand", "cam_enc.pose_branch.fc1"),
    ("camera_encoder.embed.reduce", "cam_enc.pose_branch.fc2"),
    ("camera_encoder.input_norm", "cam_enc.token_norm"),
    ("camera_encoder.norm", "cam_enc.trunk_norm"),
    ("camera_encoder.blocks.#.attention_norm", "cam_enc.trunk.#.norm1"),
    ("camera_encoder.blocks.#.attention.qkv", "cam_enc.trunk.#.attn.qkv"),
    ("camera_encoder.blocks.#.attention.out", "cam_enc.trunk.#.attn.proj"),
    ("camera_encoder.blocks.#.attention_scale", "cam_enc.trunk.#.ls1.gamma"),
    ("camera_encoder.blocks.#.feed_forward_norm", "cam_enc.trunk.#.norm2"),
    ("camera_encoder.blocks.#.feed_forward.expand", "cam_enc.trunk.#.mlp.fc1"),
    ("camera_encoder.blocks.#.feed_forward.reduce", "cam_enc.trunk.#.mlp.fc2"),
    ("camera_encoder.blocks.#.feed_forward_scale", "cam_enc.trunk.#.ls2.gamma"),
    ("camera_decoder.first", "cam_dec.backbone.0"),
    ("camera_decoder.second", "cam_dec.backbone.2"),
    ("camera_decoder.translation", "cam_dec.fc_t"),
    ("camera_decoder.quaternion", "cam_dec.fc_qvec"),
    ("camera_decoder.fov", "cam_dec.fc_fov.0"),
    # depth head; the ray branch is the finest of four levels, its LayerNorm is stored with the coarsest
    ("head.input_norm", "head.norm"),
    ("head.reassemble.project.#", "head.projects.#"),
    ("head.reassemble.resize.#", "head.resize_layers.#"),
    ("head.reassemble.lateral.#", "head.scratch.layer#+_rn"),
    ("head.depth_chain.steps.#.lateral_unit.first", "head.scratch.refinenet#+.resConfUnit1.conv1"),
    ("head.depth_chain.steps.#.lateral_unit.second", "head.scratch.refinenet#+.resConfUnit1.conv2"),
    ("head.depth_chain.steps.#.unit.first", "head.scratch.refinenet#+.resConfUnit2.conv1"),
    ("head.depth_chain.steps.#.unit.second", "head.scratch.refinenet#+.resConfUnit2.conv2"),
    ("head.depth_chain.steps.#.mix", "head.scratch.refinenet#+.out_conv"),
    ("head.depth_neck", "head.scratch.output_conv1"),
    ("head.depth_hidden", "head.scratch.output_conv2.0"),
    ("head.depth_out", "head.scratch.output_conv2.2"),
    ("head.ray_chain.steps.#.lateral_unit.first", "head.scratch.refinenet#+_aux.resConfUnit1.conv1"),
    ("head.ray_chain.steps.#.lateral_unit.second", "head.scratch.refinenet#+_aux.resConfUnit1.conv2"),
    ("head.ray_chain.steps.#.unit.first", "head.scratch.refinenet#+_aux.resConfUnit2.conv1"),
    ("head.ray_chain.steps.#.unit.second", "head.scratch.refinenet#+_aux.resConfUnit2.conv2"),
    ("head.ray_chain.steps.#.mix", "head.scratch.refinenet#+_aux.out_conv"),
    ("head.ray_neck.#", "head.scratch.output_conv1_aux.3.#"),
    ("head.ray_hidden", "head.scratch.output_conv2_aux.3.0"),
    ("head.ray_norm", "head.scratch.output_conv2_aux.0.2"),
    ("head.ray_out", "head.scratch.output_conv2_aux.3.5"),
    ("head.sky_hidden", "head.scratch.sky_output_conv2.0"),
    ("head.sky_out", "head.scratch.sky_output_conv2.2"),
    # Gaussian head
    ("gs_head.reassemble.project.#", "gs_head.projects.#"),
    ("gs_head.reassemble.resize.#", "gs_head.resize_layers.#"),
    ("gs_head.reassemble.lateral.#", "gs_head.scratch.layer#+_rn"),
    ("gs_head.chain.steps.#.lateral_unit.first", "gs_head.scratch.refinenet#+.resConfUnit1.conv1"),
    ("gs_head.chain.steps.#.lateral_unit.second", "gs_head.scratch.refinenet#+.resConfUnit1.conv2"),
    ("gs_head.chain.steps.#.unit.first", "gs_head.scratch.refinenet#+.resConfUnit2.conv1"),
    ("gs_head.chain.steps.#.unit.second", "gs_head.scratch.refinenet#+.resConfUnit2.conv2"),
    ("gs_head.chain.steps.#.mix", "gs_head.scratch.refinenet#+.out_conv"),
    ("gs_head.neck", "gs_head.scratch.output_conv1"),
    ("gs_head.image_convs.0", "gs_head.images_merger.0"),
    ("gs_head.image_convs.1", "gs_head.images_merger.2"),
    ("gs_head.image_convs.2", "gs_head.images_merger.4"),
    ("gs_head.hidden", "gs_head.scratch.output_conv2.0"),
    ("gs_head.out", "gs_head.scratch.output_conv2.2"),
)

# Nested models: our sub-network -> released sub-network.
NETWORKS = (("any_view.", "da3."), ("metric.", "da3_metric."))

# One LayerNorm is shared by the four ray-branch levels: files hold level 0, other formats may repeat it.
TIED = re.compile(r"(head\.scratch\.output_conv2_aux\.)[123](\.2\.(?:weight|bias))$")
TIED_STORED = r"\g<1>0\2"

_COMPILED = tuple(
    (re.compile(re.escape(ours).replace(r"\#", "#").replace("#", r"(\d+)") + r"(?=\.|$)"), released)
    for ours, released in RULES
)


def released_key(name: str) -> str:
    """Name in the released files of one of our parameters, with the leading ``model.``."""
    outer = PREFIX
    for ours, released in NETWORKS:
        if name.startswith(ours):
            outer, name = PREFIX + released, name.removeprefix(ours)
    for pattern, released in _COMPILED:
        match = pattern.match(name)
        if match:
            index = int(match[1]) if match.groups() else 0
            return outer + released.replace("#+", str(index + 1)).replace("#", str(index)) + name[match.end() :]
    raise KeyError(f"no rule for parameter {name}")


def unused_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Stored tensors of a released file that no output depends on: levels 0-2 of the ray branch."""
    if config.metric is not None:
        shapes = _unused_levels(config.head)
        return {key.replace(PREFIX, PREFIX + "da3.", 1): shape for key, shape in shapes.items()}
    return _unused_levels(config.head) if config.head.rays else {}


def _unused_levels(head: HeadConfig) -> dict[str, tuple[int, ...]]:
    full, half = head.features, head.features // 2
    shapes: dict[str, tuple[int, ...]] = {}
    for level in range(3):
        for index in range(5):
            into, out = (full, half) if index % 2 == 0 else (half, full)
            key = f"{PREFIX}head.scratch.output_conv1_aux.{level}.{index}"
            shapes[f"{key}.weight"], shapes[f"{key}.bias"] = (out, into, 3, 3), (out,)
        key = f"{PREFIX}head.scratch.output_conv2_aux.{level}"
        shapes[f"{key}.0.weight"], shapes[f"{key}.0.bias"] = (32, half, 3, 3), (32,)
        shapes[f"{key}.5.weight"], shapes[f"{key}.5.bias"] = (7, 32, 1, 1), (7,)
    return shapes
