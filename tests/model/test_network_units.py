"""Parts of the network against component fixtures, closed forms and properties."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from assets import asset
from da3_parity import generator, unit
from torch.nn import functional as F

from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.conventions import rigid_inverse
from da3gs.model import dpt
from da3gs.model.backbone import interpolate_positions
from da3gs.model.camera_heads import decode_cameras, encode_cameras
from da3gs.model.depth_heads import fill_sky
from da3gs.model.dpt import Fusion, add_uv_embedding, upsample
from da3gs.model.layers import Attention, Rotation
from da3gs.model.linear import linear
from da3gs.model.network import build_model, check_cameras, denormalize
from da3gs.model.presets import BackboneConfig, CameraConfig, GSHeadConfig, HeadConfig, ModelConfig
from da3gs.model.reference_view import reference_first, select_reference

MINI = ModelConfig(
    name="mini",
    backbone=BackboneConfig(
        64, 6, 2, (1, 3, 4, 5), cross_view_start=2, qk_norm_start=2, rope_start=2, concat_local=True
    ),
    head=HeadConfig(16, (8, 16, 16, 16)),
    cameras=CameraConfig(heads=4, encoder_depth=1),
)
MINI_MONO = ModelConfig(
    name="mini-mono", backbone=BackboneConfig(64, 4, 2, (0, 1, 2, 3)), head=HeadConfig(16, (8, 16, 16, 16), rays=False)
)


def mini(config=MINI, seed=0):
    torch.manual_seed(seed)
    network = build_model(config).eval()
    for name, parameter in network.named_parameters():
        if "norm" not in name and parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.2)
        elif parameter.ndim > 1:
            # Wide enough that every branch matters; outputs stay within what exp() can take.
            gain = 0.3 if "_out." in name else 1.0
            torch.nn.init.normal_(parameter, std=gain / parameter[0].numel() ** 0.5)
    return network


def images(views, height=42, width=56, batch=1, seed=1):
    return torch.randn(batch, views, 3, height, width, generator=torch.Generator().manual_seed(seed))


def some_cameras(views, height=42, width=56, seed=2):
    pose, K = generator().cameras("units", f"cameras{seed}", views, height, width)
    return Cameras(torch.from_numpy(pose), torch.from_numpy(K), width, height)


# ------------------------------------------------------------------------------------------- component fixtures


@pytest.mark.parametrize("grid", [(9, 12), (37, 37), (12, 9), (40, 20), (2, 50)])
def test_position_table_is_resampled_as_released(grid):
    salt = json.loads(asset("parity/unit_pos_embed.json").read_text())["salt"]
    table = torch.from_numpy(generator().weight(salt, "unit.pos_embed", (1, 1370, 16)))
    ours = interpolate_positions(table, *grid)
    assert ours.shape[1] == 1 + grid[0] * grid[1]
    stored = unit("unit_pos_embed")[f"pos_{grid[0]}x{grid[1]}"]
    ours = ours[:, ::7] if grid[0] * grid[1] >= 400 else ours
    torch.testing.assert_close(ours, stored, atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    "name, size, image",
    [
        ("uv_c16_5x9_img126x168", (16, 5, 9), (126, 168)),
        ("uv_c32_12x9_img168x126", (32, 12, 9), (168, 126)),
        ("uv_c8_7x7_img98x98", (8, 7, 7), (98, 98)),
    ],
)
def test_uv_embedding(name, size, image):
    ours = add_uv_embedding(torch.zeros(1, *size), image[1] / image[0])
    torch.testing.assert_close(ours, unit("unit_uv_embed")[name], atol=1e-7, rtol=0)


@pytest.mark.parametrize("views", [3, 4, 7])
@pytest.mark.parametrize("strategy", ["first", "middle", "saddle_balanced"])
def test_reference_view_choice(views, strategy):
    data = unit("unit_ref_view")
    chosen = select_reference(data[f"x{views}"][:, :, 0], strategy)
    assert torch.equal(chosen, data[f"idx{views}.{strategy}"])


@pytest.mark.parametrize("views", [3, 4, 7])
def test_widest_similarity_range_up_to_ties(views):
    tokens = unit("unit_ref_view")[f"x{views}"][:, :, 0].double()
    unit_tokens = F.normalize(tokens, dim=-1)
    similarity = unit_tokens @ unit_tokens.transpose(1, 2) - torch.eye(views, dtype=torch.float64)
    width = similarity.amax(-1) - similarity.amin(-1)
    chosen = select_reference(tokens.float(), "saddle_sim_range")
    assert bool((width.gather(1, chosen[:, None])[:, 0] >= width.amax(1) - 1e-6).all())


@pytest.mark.parametrize("views", [3, 4, 7])
def test_reference_goes_to_the_front_and_back(views):
    data = unit("unit_ref_view")
    values = data[f"x{views}"][:, :, 0, 0]
    order = reference_first(torch.tensor([views - 1, 1]), views)
    moved = values.gather(1, order)
    assert torch.equal(moved, data[f"reordered{views}"])
    assert torch.equal(moved.gather(1, order.argsort(1)), values)


def test_fewer_than_three_views_keep_the_first():
    assert select_reference(torch.randn(2, 2, 8), "middle").tolist() == [0, 0]


def test_pose_encoding_matches_the_released_one():
    data = unit("unit_pose")
    encoding = encode_cameras(data["w2c"], data["K"], 280, 210)
    torch.testing.assert_close(encoding[None], data["enc"], atol=2e-6, rtol=2e-6)
    for given, pose, intrinsics in (("enc", "dec_c2w", "dec_K"), ("pe", "dec_raw_c2w", "dec_raw_K")):
        world_from_cam, K = decode_cameras(data[given], 280, 210)
        torch.testing.assert_close(world_from_cam[..., :3, :], data[pose], atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(K, data[intrinsics], atol=1e-5, rtol=2e-5)


def test_pose_encoding_round_trip_and_dead_field_of_view():
    cameras = some_cameras(5)
    centred = cameras.K.clone()
    centred[:, 0, 2], centred[:, 1, 2] = 28, 21
    world_from_cam, K = decode_cameras(encode_cameras(cameras.cam_from_world, centred, 56, 42), 56, 42)
    torch.testing.assert_close(rigid_inverse(world_from_cam), cameras.cam_from_world, atol=2e-6, rtol=0)
    torch.testing.assert_close(K, centred, atol=1e-4, rtol=1e-5)
    dead = torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 0, 0])
    assert decode_cameras(dead, 56, 42)[1][0, 0].item() == pytest.approx(28e6)


# ------------------------------------------------------------------------------------------- layers


def reference_rotation(values, positions):
    """The textbook form: per axis, channel k turns with channel k + D/2 by position * 100^(-2k/D)."""
    half = values.shape[-1] // 2
    parts = []
    for axis, part in enumerate(values.split(half, -1)):
        angle = positions[:, axis, None] * 100.0 ** (-2 * torch.arange(half // 2) / half)
        a, b = part.chunk(2, -1)
        parts += [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]
    return torch.cat(parts, -1)


def test_rotary_positions_within_a_view():
    values = torch.randn(2, 3, 7, 16)
    positions = torch.tensor([[0, 0], [1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]])
    rotated = Rotation.within_view(2, 3, 16, "cpu").apply(values)
    torch.testing.assert_close(rotated, reference_rotation(values, positions), atol=1e-6, rtol=1e-5)


def test_cross_view_rotation_of_class_tokens_equals_rotation_of_every_patch():
    query, key = torch.randn(2, 1, 2, 10, 16).unbind(0)
    positions = torch.ones(10, 2)
    positions[::5] = 0
    expected = reference_rotation(query, positions) @ reference_rotation(key, positions).transpose(-1, -2)
    rotation = Rotation.across_views(5, 16, "cpu")
    ours = rotation.apply(query.clone()) @ rotation.apply(key.clone()).transpose(-1, -2)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_gradients_survive_the_in_place_rotation(qk_norm):
    torch.manual_seed(0)
    attention = Attention(16, 2, qk_norm=qk_norm)
    tokens = torch.randn(1, 10, 16, requires_grad=True)
    rotation = Rotation.across_views(5, 8, "cpu")
    attention(tokens, rotation).square().sum().backward()
    step = 1e-2 * torch.randn_like(tokens)
    with torch.no_grad():
        up, down = (attention(tokens + sign * step, rotation).square().sum() for sign in (1, -1))
    assert ((up - down) / 2).item() == pytest.approx((tokens.grad * step).sum().item(), rel=2e-2)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_fast_linear_equals_torch(gelu, bias):
    torch.manual_seed(0)
    inputs = [torch.randn(3, 5, 7), torch.randn(4, 7), torch.randn(4) if bias else None]
    results = []
    for function in (
        lambda x, w, b: linear(x, w, b, gelu=gelu),
        lambda x, w, b: F.gelu(F.linear(x, w, b)) if gelu else F.linear(x, w, b),
    ):
        leaves = [None if value is None else value.clone().requires_grad_() for value in inputs]
        output = function(*leaves)
        output.sin().sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(function(*inputs), output, atol=1e-6, rtol=1e-6)
        results.append([output, *(leaf.grad for leaf in leaves if leaf is not None)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


def test_fast_linear_steps_aside_for_other_dtypes_and_autocast():
    values, weight = torch.randn(2, 3), torch.randn(4, 3)
    assert linear(values.double(), weight.double(), None).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(values, weight, None).dtype == torch.bfloat16


def test_mixing_before_upsampling_changes_nothing():
    torch.manual_seed(0)
    fusion, maps = Fusion(8, lateral=False), torch.randn(2, 8, 5, 4)
    expected = fusion.mix(upsample(fusion.unit(maps), (11, 9)))
    torch.testing.assert_close(fusion(maps, None, (11, 9)), expected, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------- sky


def test_sky_takes_the_quantile_of_the_ground():
    depth = torch.arange(100.0).view(1, 10, 10) + 1
    sky = torch.zeros(1, 10, 10)
    sky[0, :2] = 0.5
    filled = fill_sky(depth, sky)
    expected = np.quantile(depth[0, 2:].numpy(), 0.99)
    assert filled[0, :2].unique().tolist() == pytest.approx([expected])
    assert torch.equal(filled[0, 2:], depth[0, 2:])


@pytest.mark.parametrize("sky_pixels", [0, 10, 90, 100])
def test_sky_is_left_alone_when_one_side_is_tiny(sky_pixels):
    depth, sky = torch.rand(1, 10, 10) + 1, torch.zeros(100)
    sky[:sky_pixels] = 1
    assert fill_sky(depth, sky.view(1, 10, 10)) is depth


def test_sky_quantile_of_large_maps_is_a_sample():
    torch.manual_seed(0)
    depth, sky = torch.rand(2, 300, 400) + 1, torch.zeros(2, 300, 400)
    sky[:, :10] = 1
    value = fill_sky(depth, sky)[0, 0, 0].item()
    assert value == pytest.approx(1.99, abs=2e-3)


# ------------------------------------------------------------------------------------------- the whole network


def test_prediction_has_the_documented_shapes():
    prediction = mini()(images(3, batch=2), feature_layers=(0, 5))
    assert prediction.depth.shape == prediction.confidence.shape == (2, 3, 42, 56)
    assert prediction.rays.shape == (2, 3, 24, 32, 6) and prediction.ray_confidence.shape == (2, 3, 24, 32)
    assert len(prediction.cameras) == 2 and len(prediction.cameras[0]) == 3 and prediction.cameras[0].size == (56, 42)
    assert {key: tuple(value.shape) for key, value in prediction.features.items()} == {
        0: (2, 3, 3, 4, 64),
        5: (2, 3, 3, 4, 64),
    }
    assert prediction.sky is None and prediction.gaussians is None and prediction.scale_factor is None
    assert bool((prediction.depth > 0).all()) and bool((prediction.confidence >= 1).all())


def test_posed_views_are_equivariant_to_their_order():
    network, pictures, cameras = mini(), images(4), some_cameras(4)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        plain = network(pictures, [cameras], feature_layers=(5,))
        mixed = network(pictures[:, order], [cameras[order]], feature_layers=(5,))
    torch.testing.assert_close(mixed.depth, plain.depth[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixed.rays, plain.rays[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixed.features[5], plain.features[5][:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        mixed.cameras[0].cam_from_world, plain.cameras[0].cam_from_world[order], atol=1e-5, rtol=1e-4
    )


def test_results_follow_the_reference_view_not_the_input_order():
    """Whatever the order of the others, the same reference gives the same prediction per view."""
    network, pictures = mini(), images(4)
    with torch.no_grad():
        plain = network(pictures, reference_view="first", feature_layers=(5,))
        mixed = network(pictures[:, [1, 2, 0, 3]], reference_view="middle", feature_layers=(5,))
    torch.testing.assert_close(mixed.depth, plain.depth[:, [1, 2, 0, 3]], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixed.features[5], plain.features[5][:, [1, 2, 0, 3]], atol=1e-5, rtol=1e-4)


def test_scenes_of_a_batch_do_not_see_each_other():
    network, pictures = mini(), images(3, batch=2)
    with torch.no_grad():
        together, alone = network(pictures), network(pictures[1:])
    torch.testing.assert_close(together.depth[1:], alone.depth, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", [MINI, MINI_MONO])
def test_chunk_size_changes_nothing(config, monkeypatch):
    network, pictures = mini(config), images(9, batch=2)
    with torch.no_grad():
        one = network(pictures)
        monkeypatch.setitem(dpt.CHUNK_PIXELS, "cpu", 4 * 42 * 56)
        four = network(pictures)
    torch.testing.assert_close(one.depth, four.depth, atol=1e-6, rtol=1e-5)


def test_ray_branch_runs_only_when_asked():
    network = mini()
    calls = []
    network.head.ray_chain.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        without = network(images(2), rays=False)
        assert not calls and without.rays is None
        torch.manual_seed(0)
        fitted = network(images(2), rays=False, camera_source="rays")
    assert calls and fitted.rays is None
    torch.testing.assert_close(without.depth, fitted.depth)


def test_gradients_reach_every_parameter():
    network = mini(replace(MINI, gs_head=GSHeadConfig(16, (8, 16, 16, 16))))
    prediction = network(images(3), [some_cameras(3)], raw_gaussians=True)
    loss = prediction.depth.log().mean() + prediction.confidence.log().mean() + prediction.rays.mean()
    loss = loss + prediction.ray_confidence.mean() + prediction.raw_gaussians.square().mean()
    loss = loss + prediction.cameras[0].cam_from_world[:, :3].sum() + prediction.cameras[0].K.sum()
    loss.backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # Known poses replace the learned camera token; a key's bias shifts every score alike and softmax ignores it.
    assert without == ["backbone.camera_token"]


def test_under_autocast_only_the_backbone_is_in_mixed_precision():
    network = mini()
    dtypes = {}
    network.head.depth_neck.register_forward_hook(lambda _m, _i, output: dtypes.update(head=output.dtype))
    network.backbone.blocks[3].attention.register_forward_hook(
        lambda _m, _i, output: dtypes.update(attention=output.dtype)
    )
    with torch.no_grad():
        exact = network(images(3))
        dtypes.clear()
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(images(3))
    assert dtypes == {"head": torch.float32, "attention": torch.bfloat16}
    assert mixed.depth.dtype == torch.float32
    assert (mixed.depth / exact.depth).log().abs().median() < 0.05


def test_single_view_models_predict_each_view_alone():
    network, pictures = mini(MINI_MONO), images(3)
    with torch.no_grad():
        all_views = network(pictures)
        one = network(pictures[:, 1:2])
    assert all_views.cameras is None and all_views.confidence is None and all_views.rays is None
    torch.testing.assert_close(all_views.sky[:, 1:2], one.sky, atol=1e-5, rtol=1e-4)


def test_nested_scale_recovers_a_planted_one():
    nested = mini(replace(MINI, metric=MINI_MONO))
    with torch.no_grad():
        any_view = nested.any_view(images(2))
        for factor in (0.5, 4.0):
            focal = torch.stack([(c.K[:, 0, 0] + c.K[:, 1, 1]) / 2 for c in any_view.cameras])[..., None, None]
            metric = replace(any_view, depth=any_view.depth * factor * 300 / focal, sky=torch.zeros(1, 2, 42, 56))
            nested.metric.forward = lambda _images, _metric=metric: _metric
            scaled = nested(images(2))
            assert scaled.scale_factor == pytest.approx(factor, rel=1e-5)
            torch.testing.assert_close(scaled.depth, any_view.depth * factor)
            torch.testing.assert_close(scaled.cameras[0].centers, any_view.cameras[0].centers * factor)
        nested.metric.forward = lambda _images: replace(metric, sky=torch.ones(1, 2, 42, 56))
        with pytest.raises(InputError, match="sky"):
            nested(images(2))


def test_initial_network_predicts_identity_cameras_and_no_raw_gaussians():
    torch.manual_seed(0)
    network = build_model(replace(MINI, gs_head=GSHeadConfig(16, (8, 16, 16, 16)))).eval()
    with torch.no_grad():
        prediction = network(images(2), raw_gaussians=True)
    torch.testing.assert_close(prediction.cameras[0].look_directions, torch.tensor([[0.0, 0, 1]] * 2), atol=0.2, rtol=0)
    assert not prediction.raw_gaussians.any()
    assert bool(torch.isfinite(prediction.depth).all())


def test_denormalize_undoes_imagenet_normalisation():
    pictures = torch.rand(2, 3, 4, 5)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (pictures - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(denormalize(normalised), pictures, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda n: n(torch.zeros(1, 2, 3, 42, 50)), "multiples of 14.*42 x 50.*42 x 56"),
        (lambda n: n(torch.zeros(2, 3, 42, 56)), r"\[B, V, 3, H, W\]"),
        (lambda n: n(torch.zeros(1, 2, 3, 42, 56, dtype=torch.uint8)), "float"),
        (lambda n: check_cameras(some_cameras(2), images(2)), "list of 1 Cameras"),
        (lambda n: n(images(2), [some_cameras(3)]), "cameras of scene 0 must be 2"),
        (lambda n: n(images(2), [some_cameras(2).scaled(width=112, height=84)]), "112 x 84"),
        (
            lambda n: n(images(2, batch=2), [some_cameras(2), some_cameras(2).without_poses()]),
            "all scenes",
        ),
        (lambda n: n(images(2), camera_source="lidar"), "head, rays"),
        (lambda n: n(images(2), reference_view="best"), "saddle_balanced"),
        (lambda n: n(images(2), feature_layers=(6,)), "0 to 5"),
        (lambda n: n(images(2), raw_gaussians=True), "no Gaussian head"),
    ],
)
def test_bad_calls_say_what_to_do(call, message):
    with pytest.raises(InputError, match=message):
        call(mini())


def test_single_view_models_refuse_what_they_lack():
    with pytest.raises(InputError, match="single views"):
        mini(MINI_MONO)(images(1), gaussians=True)


def test_intrinsics_without_poses_do_not_condition_the_network():
    network, cameras = mini(), some_cameras(3)
    with torch.no_grad():
        torch.testing.assert_close(
            network(images(3), [cameras.without_poses()]).depth, network(images(3)).depth, atol=0, rtol=0
        )
