"""Weights in and out: strict loading, clear errors, our own files, names and paths."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from da3gs.errors import InputError, WeightsError
from da3gs.model import checkpoints
from da3gs.model.checkpoints import (
    attach_gs_head,
    load_network,
    load_official_state_dict,
    official_shapes,
    read_header,
    save_checkpoint,
    save_gs_head,
)
from da3gs.model.gs_head import GaussianHead
from da3gs.model.network import build_model
from da3gs.model.presets import PRESETS, BackboneConfig, CameraConfig, GSHeadConfig, HeadConfig, ModelConfig

MINI = ModelConfig(
    name="mini",
    backbone=BackboneConfig(
        32, 6, 2, (1, 3, 4, 5), cross_view_start=2, qk_norm_start=2, rope_start=2, concat_local=True
    ),
    head=HeadConfig(8, (8, 8, 8, 8)),
    cameras=CameraConfig(heads=4, encoder_depth=1),
)
MINI_GS = replace(MINI, gs_head=GSHeadConfig(8, (8, 8, 8, 8), residual=True))
TIED = [f"model.head.scratch.output_conv2_aux.{level}.2.{kind}" for level in (1, 2, 3) for kind in ("weight", "bias")]


def state_of(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) * 0.05 for key, shape in official_shapes(network).items()}


@pytest.fixture
def mini():
    torch.manual_seed(0)
    return build_model(MINI)


# ------------------------------------------------------------------------------------------- released format


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_parameter_is_filled(device):
    network = build_model(MINI, device=device)
    state = state_of(network)
    load_official_state_dict(network, state)
    assert not any(parameter.is_meta for parameter in network.parameters())
    fused = state["model.backbone.pretrained.blocks.3.attn.qkv.weight"]
    assert torch.equal(network.backbone.blocks[3].attention.qkv.weight, fused)
    assert torch.equal(network.head.ray_norm.weight, state["model.head.scratch.output_conv2_aux.0.2.weight"])


def test_repeated_copies_of_the_tied_norm_are_accepted_only_if_equal(mini):
    state = state_of(mini)
    stored = {kind: f"model.head.scratch.output_conv2_aux.0.2.{kind}" for kind in ("weight", "bias")}
    for key in TIED:
        state[key] = state[stored[key.rsplit(".", 1)[1]]]
    load_official_state_dict(mini, state)
    alone = {key: value for key, value in state.items() if key not in stored.values()}
    load_official_state_dict(mini, alone)  # any one copy is enough
    state[TIED[0]] = state[TIED[0]] + 1
    with pytest.raises(WeightsError, match="one shared tensor"):
        load_official_state_dict(mini, state)


def test_missing_and_left_over_keys_are_named_and_nothing_is_copied(mini):
    before = {name: parameter.clone() for name, parameter in mini.named_parameters()}
    state = state_of(mini)
    del state["model.backbone.pretrained.cls_token"]
    state["model.backbone.pretrained.mask_token"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"missing .*cls_token.*left over .*mask_token") as caught:
        load_official_state_dict(mini, state)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(parameter, before[name]) for name, parameter in mini.named_parameters())


def test_unused_ray_levels_must_be_present_too(mini):
    state = state_of(mini)
    del state["model.head.scratch.output_conv1_aux.1.3.weight"]
    with pytest.raises(WeightsError, match=r"missing .*output_conv1_aux\.1\.3\.weight"):
        load_official_state_dict(mini, state)


def test_weights_of_another_preset_name_the_one_that_fits():
    state = {
        key: torch.zeros(()).expand(shape)
        for key, shape in official_shapes(build_model(PRESETS["da3-base"], device="meta")).items()
    }
    with pytest.raises(WeightsError, match=r"do not fit da3-small.*of another shape.*fit preset da3-base"):
        load_official_state_dict(build_model(PRESETS["da3-small"], device="meta"), state)


def test_half_precision_files_become_float32(mini):
    state = {key: value.half() for key, value in state_of(mini).items()}
    load_official_state_dict(mini, state)
    assert {parameter.dtype for parameter in mini.parameters()} == {torch.float32}


# ------------------------------------------------------------------------------------------- our format


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 0), (torch.float16, 1e-3)])
def test_own_checkpoint_round_trip(mini, tmp_path, dtype, tolerance):
    save_checkpoint(mini, tmp_path / "m.safetensors", {"data": "synthetic", "licences": ["CC0"]}, dtype)
    header = read_header(tmp_path / "m.safetensors")
    assert header["config"] == MINI and header["preset"] == "mini" and header["kind"] == "network"
    assert header["provenance"] == {"data": "synthetic", "licences": ["CC0"]}
    network = load_network(tmp_path / "m.safetensors")
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    for (name, ours), (_, theirs) in zip(network.named_parameters(), mini.named_parameters(), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs.detach(), atol=tolerance, rtol=tolerance, msg=name)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_values_that_half_precision_cannot_hold_are_refused(mini, tmp_path):
    with torch.no_grad():
        mini.head.depth_out.bias.fill_(1e6)
    with pytest.raises(WeightsError, match=r"depth_out.bias"):
        save_checkpoint(mini, tmp_path / "m.safetensors", {}, torch.float16)
    with pytest.raises(InputError, match="safetensors"):
        save_checkpoint(mini, tmp_path / "m.pth", {})
    assert not list(tmp_path.iterdir())


def trained_head(tmp_path, config=MINI_GS):
    torch.manual_seed(1)
    network = build_model(config)
    torch.nn.init.normal_(network.gs_head.out.weight)
    save_gs_head(network, tmp_path / "head.safetensors", {"data": "synthetic"})
    return network


def test_a_gaussian_head_is_its_own_file(mini, tmp_path):
    donor = trained_head(tmp_path)
    attach_gs_head(mini, tmp_path / "head.safetensors")
    assert isinstance(mini.gs_head, GaussianHead) and mini.config.gs_head == MINI_GS.gs_head
    images = torch.randn(1, 2, 3, 28, 28)
    with torch.no_grad():
        donor.backbone.load_state_dict(mini.backbone.state_dict())
        expected = donor.eval()(images, raw_gaussians=True).raw_gaussians
        assert torch.equal(mini.eval()(images, raw_gaussians=True).raw_gaussians, expected)
    with pytest.raises(WeightsError, match="attach it to a mini model"):
        load_network(tmp_path / "head.safetensors")


def test_a_gaussian_head_of_another_backbone_is_refused(tmp_path):
    trained_head(tmp_path)
    other = build_model(replace(MINI, name="other", backbone=replace(MINI.backbone, depth=7)))
    with pytest.raises(WeightsError, match="trained on mini; it does not fit other"):
        attach_gs_head(other, tmp_path / "head.safetensors")


def test_saving_a_head_that_is_not_there(mini, tmp_path):
    with pytest.raises(WeightsError, match="no Gaussian head"):
        save_gs_head(mini, tmp_path / "head.safetensors", {})


# ------------------------------------------------------------------------------------------- names, paths, the hub


def test_folder_with_released_files(mini, tmp_path):
    reduced = {
        "net": {
            "embed_dim": 32,
            "depth": 6,
            "num_heads": 2,
            "ffn_layer": "mlp",
            "alt_start": 2,
            "qknorm_start": 2,
            "rope_start": 2,
            "cat_token": True,
            "out_layers": [1, 3, 4, 5],
        },
        "head": {"dim_in": 64, "output_dim": 2, "features": 8, "out_channels": [8, 8, 8, 8]},
        "cam_enc": {"dim_out": 32},
        "cam_dec": {"dim_in": 64},
    }
    config = ModelConfig.from_official(reduced)
    network = build_model(config)
    save_file(state_of(network), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"config": reduced}))
    loaded = load_network(tmp_path)
    assert loaded.config == config
    (tmp_path / "config.json").write_text(json.dumps({"model_name": "da3-small"}))
    with pytest.raises(WeightsError, match=r"model.safetensors: weights do not fit da3-small"):
        load_network(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot read"):
        load_network(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"holds no config.json"):
        load_network(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", b"not a checkpoint at all, just text"])
def test_damaged_files(tmp_path, content):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="truncated or no safetensors file") as caught:
        load_network(path)
    assert "\n" not in str(caught.value)


def test_truncated_file_and_lfs_pointer(mini, tmp_path):
    path = tmp_path / "m.safetensors"
    save_checkpoint(mini, path, {})
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="truncated"):
        load_network(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(WeightsError, match="git-lfs pointer"):
        load_network(path)


def test_files_without_our_header_or_of_another_kind(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="no da3gs header"):
        load_network(tmp_path / "a.safetensors")
    (tmp_path / "b.pth").write_bytes(b"\x80\x02")
    with pytest.raises(WeightsError, match="nothing is ever unpickled"):
        load_network(tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="do not exist"):
        load_network(tmp_path / "missing.safetensors")


def test_a_header_that_lies(mini, tmp_path):
    path = tmp_path / "m.safetensors"
    save_checkpoint(mini, path, {})
    metadata = {"format": "da3gs-1", "kind": "network", "preset": "mini", "provenance": "{}"}
    wrong = json.dumps(replace(MINI, head=HeadConfig(16, (8, 8, 8, 8))).to_dict())
    save_file({name: p.detach() for name, p in mini.named_parameters()}, path, metadata | {"config": wrong})
    with pytest.raises(WeightsError, match="does not hold the weights of mini"):
        load_network(path)
    save_file({"a": torch.zeros(1)}, path, metadata | {"config": "{}"})
    with pytest.raises(WeightsError, match=r"header of .* is damaged"):
        load_network(path)


def test_unknown_names_list_the_nearest():
    with pytest.raises(WeightsError, match="did you mean da3-small"):
        load_network("da3-smal")


def fake_hub(monkeypatch, tmp_path, files):
    import huggingface_hub

    asked = []

    def get(repository, filename):
        asked.append((repository, filename))
        return str(tmp_path / files[repository, filename])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", get)
    return asked


def test_presets_come_from_their_repository_and_state_the_licence_once(monkeypatch, tmp_path, caplog):
    large = replace(MINI, name="da3-large", repository="depth-anything/DA3-LARGE", licence="CC BY-NC 4.0")
    monkeypatch.setitem(PRESETS, "da3-large", large)
    monkeypatch.setattr(checkpoints, "_announced", set())
    save_file(state_of(build_model(MINI)), tmp_path / "large.safetensors")
    files = {
        (f"depth-anything/{name}", "model.safetensors"): "large.safetensors" for name in ("DA3-LARGE", "DA3-LARGE-1.1")
    }
    asked = fake_hub(monkeypatch, tmp_path, files)
    with caplog.at_level(logging.INFO):
        for name in ("da3-large", "depth-anything/DA3-LARGE", "da3-large-1.1"):
            load_network(name)
    assert [repository for repository, _ in asked] == ["depth-anything/DA3-LARGE"] * 2 + [
        "depth-anything/DA3-LARGE-1.1"
    ]
    assert caplog.text.count("CC BY-NC 4.0") == 2  # once per repository


def test_other_repositories_are_read_by_their_config(monkeypatch, tmp_path):
    monkeypatch.setitem(PRESETS, "da3-small", replace(MINI, name="da3-small"))
    save_file(state_of(build_model(MINI)), tmp_path / "w.safetensors")
    (tmp_path / "c.json").write_text(json.dumps({"model_name": "da3-small"}))
    fake_hub(
        monkeypatch,
        tmp_path,
        {("me/tuned", "config.json"): "c.json", ("me/tuned", "model.safetensors"): "w.safetensors"},
    )
    assert load_network("me/tuned").config.repository == "me/tuned"


def test_offline_without_the_file_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"DA3-SMALL/model.safetensors is not in the local cache") as caught:
        load_network("da3-small")
    assert "\n" not in str(caught.value)


def test_a_preset_without_weights_says_which_have_some(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "ASSETS", tmp_path)
    with pytest.raises(WeightsError, match=r"no weights of da3-tiny are published.*da3-base"):
        load_network("da3-tiny")


def test_bundled_weights_are_found_by_name(mini, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "ASSETS", tmp_path)
    save_checkpoint(mini, tmp_path / "da3-tiny.safetensors", {})
    assert load_network("da3-tiny").config == MINI
    trained_head(tmp_path)
    attach_gs_head(mini, "head")
    assert mini.gs_head is not None
