"""The Gaussian head's task: what is trained, what is frozen, what is compared, in which frame."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from train.rooms import room

from da3gs.data.view_sampling import ViewSamplingConfig
from da3gs.errors import InputError, WeightsError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.similarity import Similarity
from da3gs.model.camera_heads import encode_cameras
from da3gs.train.checkpointing import trained_parameters
from da3gs.train.frozen import frozen_sample
from da3gs.train.gs_head import GSHeadLosses, head_gaussians, seen_by_context
from da3gs.train.samples import TrainingSample

CPU = torch.device("cpu")


def drawn(training, *, posed=True, views=2):
    sample = training.source.load(0)
    context, target = sample[list(range(views))], sample[[2, 3]]
    return {"context": context, "target": target, "posed": posed, "key": None}


def with_true_geometry(training, draw):
    """A frozen sample whose network has been told the truth: exact depth and cameras, in a frame of its own."""
    frozen = frozen_sample(training.network, draw["context"], posed=True)
    world_from_network = Similarity(2.0, torch.eye(3), torch.tensor([0.3, 0.0, -0.2]))
    cameras = draw["context"].cameras.transform(world_from_network.inverse())
    depth = draw["context"].depth / 2
    return replace(
        frozen,
        depth=torch.where(depth > 0, depth, depth.max()),
        cameras=cameras,
        world_from_network=world_from_network,
    )


def test_only_the_head_is_trained_and_starts_at_the_prior(gs_task):
    training = gs_task().open(0)
    names = trained_parameters(training.module)
    assert names and all(not name.startswith(("backbone", "network")) for name in names)
    assert not any(parameter.requires_grad for parameter in training.network.parameters())
    frozen = frozen_sample(training.network, drawn(training)["context"], posed=True)
    raw = training.module(frozen.tokens, frozen.normalised)
    assert raw.abs().max() == 0
    with_head, without = head_gaussians(frozen, raw)[0], head_gaussians(frozen, None)[0]
    for a, b in zip(with_head.tensors()[:4], without.tensors()[:4], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("posed", [True, False])
def test_half_precision_stays_in_the_backbone(gs_task, posed):
    """Poses and parallax in bfloat16 would be wrong by pixels, or no rotations at all."""
    training = gs_task().open(0)
    draw = drawn(training, posed=posed)
    exact = frozen_sample(training.network, draw["context"], posed=posed)
    with torch.autocast("cpu", torch.bfloat16):
        half = frozen_sample(training.network, draw["context"], posed=posed)
        terms = training.loss(training.module, {"scenes": [draw]})
    assert all(torch.isfinite(value) for value in terms.values())
    assert half.depth.dtype == half.cameras.cam_from_world.dtype == torch.float32
    torch.testing.assert_close(half.depth, exact.depth, rtol=0.05, atol=0.02)
    R = half.cameras.cam_from_world[:, :3, :3]
    torch.testing.assert_close(R @ R.mT, torch.eye(3).expand_as(R), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("off_by", "used"), [(1.0, True), (3.6, False)])
def test_free_samples_without_depth_are_used_where_pictures_agree(gs_task, monkeypatch, off_by, used):
    """Cameras a tenth of the scene apart, seen exactly by the network: usable, unless its depth is far off."""
    training = gs_task().open(0)
    network, truth = training.network, room(5, 3, 112, 84)
    unit = float((truth.cameras.unproject(truth.depth) - truth.cameras.centers[0]).norm(dim=-1).mean())
    poses = truth.cameras.cam_from_world @ truth.cameras.world_from_cam[:1]
    poses[:, :3, 3] *= 1 / unit
    encoding = encode_cameras(poses, truth.cameras.K, 112, 84)
    maps = SimpleNamespace(depth=off_by * truth.depth / unit, confidence=torch.ones_like(truth.depth))
    monkeypatch.setattr(network.head, "forward", lambda *_, **__: maps)
    monkeypatch.setattr(network.camera_decoder, "forward", lambda *_: encoding[None])
    distances = truth.cameras.centers.diff(dim=0).norm(dim=-1) / unit
    assert distances.max() < 0.3  # the distance of cameras says nothing about the scale of the scene
    photographs = TrainingSample(truth.images, torch.zeros_like(truth.depth), truth.cameras)
    frozen = frozen_sample(network, photographs, posed=False)
    assert (frozen.world_from_network is not None) == used
    if used:
        assert float(frozen.world_from_network.scale) == pytest.approx(unit, rel=1e-3)


@pytest.mark.parametrize("term", ["color", "depth", "rendered_depth"])
def test_every_term_reaches_the_head(gs_task, term):
    weights = dict.fromkeys(("color", "lpips", "depth", "rendered_depth"), 0.0) | {term: 1.0}
    training = gs_task(losses=GSHeadLosses(**weights)).open(0)
    with torch.no_grad():  # a head that has moved off zero, so that its hidden layers get gradients too
        training.module.out.weight.normal_(std=0.02)
    terms = training.loss(training.module, {"scenes": [drawn(training)]})
    terms["loss"].backward()
    assert float(terms[term].detach()) > 0
    out = training.module.out.weight.grad
    assert torch.isfinite(out).all()
    # Offset and depth residual move Gaussians: the depth terms must see both the pixel offset and the depth channel.
    assert out[36].abs().max() > 0
    assert training.module.reassemble.project[0].weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in training.network.parameters())


def test_depth_of_gaussians_follows_the_offset(gs_task):
    training = gs_task().open(0)
    frozen = frozen_sample(training.network, drawn(training)["context"], posed=True)
    raw = torch.zeros(*frozen.depth.shape, 38)
    _, depth = head_gaussians(frozen, raw)
    torch.testing.assert_close(depth, frozen.depth, rtol=1e-4, atol=1e-4)
    raw[..., 36] = 0.5
    _, moved = head_gaussians(frozen, raw)
    torch.testing.assert_close(moved, frozen.depth * (1 + 0.1 * torch.tanh(torch.tensor(0.5))), rtol=1e-4, atol=1e-4)


def test_true_geometry_renders_the_target(gs_task):
    """The similarity, the mask and the pictures belong together: with exact depth even the prior is close."""
    training = gs_task().open(0)
    draw = drawn(training)
    frozen, target = with_true_geometry(training, draw), draw["target"]
    visible = training.visible(frozen, target, CPU)
    assert 0.2 < visible.float().mean() < 1
    gaussians, _ = head_gaussians(frozen, None)
    out = training.render(gaussians.transform(frozen.world_from_network), target.cameras)
    pictures = target.images.permute(0, 2, 3, 1)
    error = (out.rgb - pictures).square().mean(-1)
    assert error[visible].mean() < 0.2 * (pictures - pictures.mean((1, 2), keepdim=True)).square().mean()
    assert error[visible].mean() < 0.3 * error[~visible].mean()
    unmoved = training.render(gaussians, target.cameras).rgb
    assert (unmoved - pictures).square().mean(-1)[visible].mean() > 2 * error[visible].mean()


def test_mask_of_seen_pixels_against_itself_and_behind():
    depth = torch.full((1, 8, 8), 2.0)
    K = torch.tensor([[[8.0, 0, 4], [0, 8, 4], [0, 0, 1]]])
    pose = torch.eye(4)[None]
    view = TrainingSample(torch.rand(1, 3, 8, 8), depth, Cameras(pose, K, 8, 8))
    assert seen_by_context(view, depth, view.cameras).all()
    turned = pose.clone()
    turned[0, 0, 0] = turned[0, 2, 2] = -1  # looks the other way
    assert not seen_by_context(view, depth, Cameras(turned, K, 8, 8)).any()
    assert not seen_by_context(view, depth * 0.5, view.cameras).any()  # something stands in front
    shifted = pose.clone()
    shifted[0, 0, 3] = -1.0  # a pixel of the context is 0.25 wide at depth 2: four columns are out of sight
    seen = seen_by_context(view, depth, Cameras(shifted, K, 8, 8))
    assert seen[0, :, 4:].all() and not seen[0, :, :4].any()


def test_free_samples_use_the_context_only_and_reject_wild_scales(gs_task):
    training = gs_task().open(0)
    draw = drawn(training, posed=False)
    frozen = frozen_sample(training.network, draw["context"], posed=False)
    again = frozen_sample(training.network, draw["context"], posed=False)
    assert torch.equal(frozen.depth, again.depth)
    far = replace_translation(draw["context"], 1e4)
    assert frozen_sample(training.network, far, posed=False).world_from_network is None
    training.frozen = lambda *_: replace(frozen, world_from_network=None)
    terms = training.loss(training.module, {"scenes": [draw]})
    terms["loss"].backward()
    assert terms["loss"].item() == 0 and terms["used"].item() == 0
    assert training.module.out.weight.grad.abs().max() == 0


def replace_translation(sample, factor):
    poses = sample.cameras.cam_from_world.clone()
    poses[:, :3, 3] *= factor
    return TrainingSample(sample.images, sample.depth, sample.cameras.with_poses(poses))


def test_kept_features_are_those_computed_anew(gs_task):
    training = gs_task(draws=2, cache=8, given_poses=0.5).open(0)
    fresh = gs_task(draws=2, cache=0, given_poses=0.5).open(0)
    first = [training.loss(training.module, training.batch(index, 0, 1))["loss"].item() for index in range(4)]
    kept = len(training._kept)
    second = [training.loss(training.module, training.batch(index, 0, 1))["loss"].item() for index in range(4)]
    assert 0 < kept <= 4 == 2 * 2 and len(training._kept) == kept
    assert first == second
    assert first == [fresh.loss(fresh.module, fresh.batch(index, 0, 1))["loss"].item() for index in range(4)]
    with pytest.raises(InputError, match="needs fixed draws"):
        gs_task(cache=4)


def test_a_short_run_lowers_its_loss_and_its_head_attaches(gs_task, small_network, tmp_path):
    from da3gs.model.checkpoints import attach_gs_head, load_network, read_header
    from da3gs.train.loop import OptimConfig, TrainConfig, train

    task = gs_task(draws=1, cache=4, scenes_per_batch=1)
    optim = OptimConfig(lr=3e-3, steps=12, warm_up=1, ema=0.5)
    config = TrainConfig(task, optim, tmp_path / "run", device="cpu", evaluate_every=12, log_every=1)
    metrics = train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["color"] for line in lines if "color" in line]
    assert sum(losses[-3:]) < 0.98 * sum(losses[:3])
    assert {"psnr_head_posed", "psnr_prior_posed", "gain_db_posed"} <= metrics.keys()
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("*/state.safetensors"))
    assert checkpoint.stat().st_size < small_network.stat().st_size * 2  # no frozen weights inside
    network = load_network(small_network)
    attach_gs_head(network, tmp_path / "run" / "model.safetensors")
    assert network.gs_head.config.residual
    assert read_header(tmp_path / "run" / "model.safetensors")["provenance"]["backbone"] == str(small_network)
    out = network(torch.rand(1, 2, 3, 42, 56), gaussians=True, raw_gaussians=True)
    assert out.raw_gaussians.abs().max() > 0 and torch.isfinite(out.gaussians[0].means).all()


def test_view_sampling_is_a_curriculum_inside_the_scene():
    import random

    config = ViewSamplingConfig(context=(2, 6), targets=3, first_gap=(2, 3), gap=(8, 12), warm_up_steps=100)
    rng = random.Random(0)
    assert config.gap_at(0) == (2, 3) and config.gap_at(50) == (5, 8) and config.gap_at(1000) == (8, 12)
    spans = {0: [], 100: []}
    for step, found in spans.items():
        for _ in range(200):
            frames, count = rng.randint(9, 80), rng.randint(2, 6)
            context, targets = config.sample(frames, count, step, rng)
            assert len(set(context)) == count and len(set(targets)) == 3 and not set(context) & set(targets)
            assert min(context) >= 0 and max(context) < frames
            assert min(context) <= min(targets) and max(targets) <= max(context)
            if frames > 70:
                found.append((max(context) - min(context)) / (count - 1))
    assert sum(spans[100]) / len(spans[100]) > 2 * sum(spans[0]) / len(spans[0])
    with pytest.raises(InputError, match="needs 5 frames; the scene has 4"):
        config.sample(4, 2, 0, rng)


def test_wrong_networks_and_weights_are_refused(gs_task):
    with pytest.raises(WeightsError):
        gs_task(model="no-such-model").open(0)
    with pytest.raises(WeightsError):
        gs_task(losses=GSHeadLosses(lpips=0.05, lpips_weights=Path("/nowhere"))).open(0)


def test_training_can_go_on_with_the_head_a_network_has(gs_task):
    training = gs_task(model="da3-tiny", pretrained=True, features=0, channels=()).open(0)
    own = training.network.gs_head.state_dict()
    assert own and all(torch.equal(value, own[name]) for name, value in training.module.state_dict().items())
    assert training.module.out.weight.abs().max() > 0
    with pytest.raises(InputError, match="must have a residual Gaussian head"):
        gs_task(model="da3-tiny", pretrained=True, features=8, channels=()).open(0)


def test_refined_depth_of_posed_samples_is_nearer_the_truth():
    """A kitchen from four sides, by the bundled network."""
    from da3gs.data.synthetic import make_sample
    from da3gs.model.checkpoints import load_network

    views = make_sample(5, 4, 182, 126, style="kitchen", difficulty=0.2, motion="orbit", min_covisibility=0.6)
    context = TrainingSample(views.images, views.depth, views.cameras)
    network, known = load_network("da3-tiny"), views.depth > 0
    error, confidence = {}, {}
    for refine in (False, True):
        frozen = frozen_sample(network, context, posed=True, refine_depth=refine)
        depth = frozen.depth * float(frozen.world_from_network.scale)
        error[refine] = float((depth / views.depth).log().abs()[known].median())
        confidence[refine] = frozen.confidence
    assert error[True] < 0.5 * error[False]
    assert (confidence[True] >= confidence[False]).all() and (confidence[True] > confidence[False]).any()
