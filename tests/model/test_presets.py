"""Presets against the manifests of the released checkpoints, and configurations in the released format."""

import gzip
import json

import pytest
from assets import asset

from da3gs.errors import InputError
from da3gs.model.checkpoints import official_shapes
from da3gs.model.network import build_model
from da3gs.model.official_keys import released_key
from da3gs.model.presets import HUB_ALIASES, PRESETS, ModelConfig, known_names, preset

RELEASED = [name for name in PRESETS if name not in ("da3-tiny", "da3mono-tiny")]


def released_format(name: str) -> dict:
    """The `config` block of a preset as the released yaml files write it."""
    config = PRESETS[name]
    if config.metric:
        return {
            "__object__": {"path": "depth_anything_3.model.da3", "name": "NestedDepthAnything3Net"},
            "anyview": released_format("da3-giant"),
            "metric": released_format("da3metric-large"),
        }
    size = {384: "vits", 768: "vitb", 1024: "vitl", 1536: "vitg"}[config.backbone.width]
    backbone = config.backbone
    starts = {
        "alt_start": backbone.cross_view_start,
        "qknorm_start": backbone.qk_norm_start,
        "rope_start": backbone.rope_start,
    }
    block = {
        "__object__": {"path": "depth_anything_3.model.da3", "name": "DepthAnything3Net", "args": "as_params"},
        "net": {
            "__object__": {"path": "depth_anything_3.model.dinov2.dinov2", "name": "DinoV2", "args": "as_params"},
            "name": size,
            "out_layers": list(config.backbone.tap_layers),
            "cat_token": config.backbone.concat_local,
            **{key: -1 if value is None else value for key, value in starts.items()},
        },
        "head": {
            "__object__": {"path": "x", "name": "DualDPT" if config.head.rays else "DPT"},
            "dim_in": config.backbone.tap_width,
            "output_dim": 2 if config.head.rays else 1,
            "features": config.head.features,
            "out_channels": list(config.head.channels),
        },
    }
    if config.cameras:
        block["cam_enc"] = {"__object__": {"name": "CameraEnc"}, "dim_out": config.backbone.width}
        block["cam_dec"] = {"__object__": {"name": "CameraDec"}, "dim_in": config.backbone.tap_width}
    if config.gs_head:
        block["gs_head"] = {
            "output_dim": 38,
            "features": config.gs_head.features,
            "out_channels": list(config.gs_head.channels),
        }
        block["gs_adapter"] = {"sh_degree": 2, "gaussian_scale_max": 30}
    return block


def architecture(config: ModelConfig) -> tuple:
    return config.backbone, config.head, config.cameras, config.gs_head, config.metric and architecture(config.metric)


@pytest.mark.parametrize("name", RELEASED)
def test_key_table_gives_every_released_tensor(name):
    manifest = json.loads(gzip.decompress(asset(f"manifest/{name}.json.gz").read_bytes()))
    network = build_model(PRESETS[name], device="meta")
    assert official_shapes(network) == {key: tuple(shape) for key, shape in manifest["tensors"]}


def test_names_that_anchor_the_key_table():
    for ours, released in {
        "backbone.blocks.11.attention.query_norm.weight": "model.backbone.pretrained.blocks.11.attn.q_norm.weight",
        "backbone.blocks.0.feed_forward.gate_and_value.bias": "model.backbone.pretrained.blocks.0.mlp.w12.bias",
        "head.depth_chain.steps.0.lateral_unit.second.bias": "model.head.scratch.refinenet1.resConfUnit1.conv2.bias",
        "head.ray_norm.weight": "model.head.scratch.output_conv2_aux.0.2.weight",
        "head.ray_out.weight": "model.head.scratch.output_conv2_aux.3.5.weight",
        "any_view.gs_head.image_convs.2.weight": "model.da3.gs_head.images_merger.4.weight",
        "metric.head.sky_out.bias": "model.da3_metric.head.scratch.sky_output_conv2.2.bias",
    }.items():
        assert released_key(ours) == released
    with pytest.raises(KeyError):
        released_key("backbone.pixels")


def test_tiny_is_small_and_wired_like_the_others():
    tiny, small = PRESETS["da3-tiny"], PRESETS["da3-small"]
    parameters = sum(p.numel() for p in build_model(tiny, device="meta").parameters())
    assert parameters < 9_000_000
    assert tiny.backbone.tap_layers == small.backbone.tap_layers
    assert (tiny.backbone.width, tiny.backbone.depth, tiny.backbone.heads) == (192, 12, 3)
    starts = (tiny.backbone.cross_view_start, tiny.backbone.qk_norm_start, tiny.backbone.rope_start)
    assert starts == (4, 4, 4) and tiny.head.rays


@pytest.mark.parametrize("name", RELEASED)
def test_released_configurations_are_read(name):
    block = released_format(name)
    assert architecture(ModelConfig.from_official(block)) == architecture(PRESETS[name])
    whole = {"model_name": name, "config": block}
    assert ModelConfig.from_official(whole) == PRESETS[name]
    assert architecture(ModelConfig.from_official({"config": block})) == architecture(PRESETS[name])
    assert ModelConfig.from_official({"preset": name}) == PRESETS[name]
    renamed = ModelConfig.from_official({"model_name": "fine-tuned", "config": block})
    assert architecture(renamed) == architecture(PRESETS[name])


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_survive_a_file_header(name):
    assert ModelConfig.from_dict(json.loads(json.dumps(PRESETS[name].to_dict()))) == PRESETS[name]


def test_names_aliases_and_repositories():
    assert preset("DA3-Base") is PRESETS["da3-base"]
    assert preset("depth-anything/DA3-BASE") is PRESETS["da3-base"]
    for alias, (repository, base) in HUB_ALIASES.items():
        for name in (alias, repository):
            assert preset(name).repository == repository
            assert architecture(preset(name)) == architecture(PRESETS[base])
    assert {config.licence for config in PRESETS.values()} == {"Apache-2.0", "CC BY-NC 4.0"}
    with pytest.raises(InputError, match="da3-small"):
        preset("da3-smal")
    with pytest.raises(InputError, match=known_names()[0]):
        preset("resnet50")


@pytest.mark.parametrize(
    "mapping, message",
    [
        ({"head": {}}, "`net` and `head`"),
        ({"net": {"out_layers": [1, 2, 3, 4]}, "head": {"features": 8, "out_channels": [8] * 4}}, "`net` needs a name"),
        ({"model_name": "da3-huge"}, "unknown model"),
        (
            {"net": {"name": "vits", "out_layers": [5, 7, 9, 12]}, "head": {"features": 8, "out_channels": [8] * 4}},
            "below 12",
        ),
    ],
)
def test_other_configurations_are_refused_with_the_reason(mapping, message):
    with pytest.raises(InputError, match=message):
        ModelConfig.from_official(mapping)
