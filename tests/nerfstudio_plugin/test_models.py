"""Models and pipeline through nerfstudio's own interfaces, in this process."""

import copy
import dataclasses
import io

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.nerfstudio
pytest.importorskip("nerfstudio")

from da3gs.errors import FormatError, InputError, WeightsError  # noqa: E402


def _config(method: str, scene, weights, **model_options):
    from da3gs.nerfstudio import config as configs

    method_config = {"da3gs": configs.da3gs_method, "da3gs-splat": configs.da3gs_splat_method}[method].config
    pipeline = copy.deepcopy(method_config.pipeline)
    pipeline.datamanager.data = scene
    # The weights are random: what the pictures make of real depth has a test of its own.
    options = {"network": str(weights), "image_size": 56, "context_views": 3, "lpips": "off", "refine_depth": False}
    options |= model_options
    for name, value in options.items():
        assert hasattr(pipeline.model, name)
        setattr(pipeline.model, name, value)
    return pipeline


@pytest.fixture(scope="module")
def pipelines(scene, weights):
    """Both methods as training builds them. Tests must leave them as they are."""
    torch.manual_seed(0)
    return {name: _config(name, scene, weights).setup(device="cpu") for name in ("da3gs", "da3gs-splat")}


def _tensors(gaussians):
    return dict(zip(("means", "quats", "scales", "opacities", "sh"), gaussians.tensors(), strict=True))


def test_cameras_keep_their_rays(scene, weights):
    """A pixel's ray is the same in nerfstudio and here."""
    from nerfstudio.cameras.cameras import Cameras, CameraType

    from da3gs.nerfstudio.cameras import cameras_from_nerfstudio

    generator = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    rotation = rotation * torch.linalg.det(rotation)
    pose = torch.cat([rotation, torch.randn(3, 1, generator=generator)], 1)[None]
    theirs = Cameras(pose, 50.0, 47.0, 30.5, 22.25, 64, 48, camera_type=CameraType.PERSPECTIVE)
    bundle = theirs.generate_rays(camera_indices=0)
    ours = cameras_from_nerfstudio(theirs)
    directions, origins = ours.rays()
    unit = torch.nn.functional.normalize(directions[0], dim=-1)
    assert torch.allclose(unit, bundle.directions, atol=1e-5)
    assert torch.allclose(origins[0].expand(48, 64, 3), bundle.origins, atol=1e-5)
    assert torch.allclose(ours.to_opengl()[0, :3], pose[0], atol=1e-6)
    with pytest.raises(InputError, match="equirectangular"):
        cameras_from_nerfstudio(Cameras(pose, 50.0, 50.0, 32.0, 24.0, 64, 48, camera_type=CameraType.EQUIRECTANGULAR))


def test_step_zero_is_the_feed_forward_result(pipelines, scene, weights):
    """Both methods start from exactly what `predict` says, one Gaussian per pixel; a zero head changes nothing."""
    from da3gs.model.da3_model import load_model
    from da3gs.nerfstudio.context import read_context

    context = read_context(pipelines["da3gs"].datamanager, count=3, strategy="farthest")
    out = load_model(weights, device="cpu").predict(context.images, context.cameras, size_px=56, refine_scale=True)
    expected = _tensors(out.gaussians.with_sh_degree(2))
    for name, pipeline in pipelines.items():
        found = _tensors(pipeline.model.gaussians())
        for field in ("means", "scales", "opacities", "sh"):
            assert torch.allclose(found[field], expected[field], rtol=1e-4, atol=1e-5), (name, field)
        assert ((found["quats"] * expected["quats"]).sum(-1).abs() > 1 - 1e-4).all()
    head = pipelines["da3gs"].model
    again = _tensors(head._inputs.gaussians(head.head))
    stored = _tensors(head.gaussians())
    for field in ("means", "scales", "opacities", "sh"):
        assert torch.allclose(again[field], stored[field], rtol=1e-4, atol=1e-5), field


@pytest.mark.parametrize("method", ["da3gs", "da3gs-splat"])
def test_training_improves_and_only_trains_what_it_says(method, scene, weights):
    torch.manual_seed(0)
    pipeline = _config(method, scene, weights).setup(device="cpu")
    model = pipeline.model
    groups = pipeline.get_param_groups()
    assert set(groups) == ({"head"} if method == "da3gs" else set(model.gauss_params))
    trained = {id(parameter) for group in groups.values() for parameter in group}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad} - {
        id(model.device_indicator_param)
    }
    optimizer = torch.optim.Adam([p for group in groups.values() for p in group], lr=2e-3)
    losses = []
    for step in range(24):
        pipeline.train()
        _, loss_dict, metrics = pipeline.get_train_loss_dict(step)
        loss = sum(loss_dict.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
        assert torch.isfinite(metrics["psnr"])
    assert sum(losses[-9:]) < sum(losses[:9])  # nine training images: one round each


def test_looking_never_runs_the_network(pipelines, monkeypatch):
    """The viewer renders from a thread of its own at any time: from the stored Gaussians, and nothing else."""
    from da3gs.nerfstudio.head import FrozenInputs

    pipeline = pipelines["da3gs"]
    monkeypatch.setattr(FrozenInputs, "gaussians", lambda *_: pytest.fail("the head was run"))
    pipeline.model.eval()
    camera, _ = pipeline.datamanager.next_eval_image(0)
    outputs = pipeline.model.get_outputs_for_camera(camera)
    height, width = int(camera.height), int(camera.width)
    assert outputs["rgb"].shape == (height, width, 3) and outputs["depth"].shape == (height, width, 1)
    assert outputs["accumulation"].shape == (height, width, 1) and outputs["background"].shape == (height, width, 3)
    assert float(outputs["rgb"].min()) >= 0 and float(outputs["rgb"].max()) <= 1
    rgba = pipeline.model.get_rgba_image(outputs)
    assert rgba.shape == (height, width, 4)
    composite = rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:]) * outputs["background"]
    assert torch.allclose(composite, outputs["rgb"], atol=1e-5)


def test_crop_box_hides_what_is_outside(pipelines):
    from nerfstudio.data.scene_box import OrientedBox

    model = pipelines["da3gs-splat"].model.eval()
    camera = pipelines["da3gs-splat"].datamanager.next_eval_image(0)[0]
    everything = OrientedBox(R=torch.eye(3), T=torch.zeros(3), S=torch.full((3,), 1e6))
    nothing = OrientedBox(R=torch.eye(3), T=torch.full((3,), 1e6), S=torch.ones(3))
    full = model.get_outputs_for_camera(camera)
    assert torch.equal(model.get_outputs_for_camera(camera, obb_box=everything)["rgb"], full["rgb"])
    empty = model.get_outputs_for_camera(camera, obb_box=nothing)
    assert float(empty["accumulation"].abs().max()) == 0 and float(empty["rgb"].abs().max()) == 0
    assert float(full["accumulation"].max()) > 0.5


def _saved(pipeline) -> dict:
    """The state as nerfstudio's trainer writes and reads it, through torch's safe loader."""
    file = io.BytesIO()
    torch.save({"pipeline": pipeline.state_dict(), "step": 7}, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)["pipeline"]


@pytest.mark.parametrize("method", ["da3gs", "da3gs-splat"])
def test_checkpoint_is_self_contained(method, pipelines, scene, weights, tmp_path):
    """Looking at a run needs neither the weights nor the context images; frozen weights are not in the file."""
    pipeline = pipelines[method]
    state = _saved(pipeline)
    prefixes = {key.removeprefix("_model.").split(".")[0] for key in state}
    extra = {"head"} if method == "da3gs" else set()
    assert prefixes == {"gauss_params", "scene_scale", "device_indicator_param", "_extra_state"} | extra
    provenance = state["_model._extra_state"]
    assert provenance["preset"] == "da3-tiny" and len(provenance["weights_sha256"]) == 64
    assert len(provenance["context"]) == 3
    gone = tmp_path / "gone.safetensors"
    state["_model._extra_state"]["network"] = str(gone)
    viewer = _config(method, scene, gone).setup(device="cpu", test_mode="test")
    assert viewer.model.num_points == 0
    viewer.load_pipeline(state, 7)
    camera, _ = viewer.datamanager.next_eval_image(0)
    pipeline.model.eval()
    viewer.model.eval()
    pair = [each.get_outputs_for_camera(camera)["rgb"] for each in (pipeline.model, viewer.model)]
    assert torch.equal(*pair)


def test_a_checkpoint_of_other_weights_is_refused(pipelines, scene, weights):
    state = _saved(pipelines["da3gs"])
    changed = copy.deepcopy(state)
    changed["_model._extra_state"]["weights_sha256"] = "0" * 64
    fresh = _config("da3gs", scene, weights).setup(device="cpu")
    with pytest.raises(WeightsError, match="not those the checkpoint was made with"):
        fresh.load_pipeline(changed, 7)
    changed["_model._extra_state"]["network"] = "da3-base"
    viewer = _config("da3gs", scene, weights).setup(device="cpu", test_mode="inference")
    with pytest.raises(WeightsError, match="made with network da3-base"):
        viewer.load_pipeline(changed, 7)
    fresh.load_pipeline(state, 7)


@pytest.mark.parametrize("damage", ["_model.gauss_params.means", "_model.scene_scale", "_model._extra_state"])
def test_a_damaged_checkpoint_is_refused(damage, pipelines, scene, weights):
    """nerfstudio retries a failed strict load without strictness; that must not get through."""
    state = _saved(pipelines["da3gs-splat"])
    del state[damage]
    viewer = _config("da3gs-splat", scene, weights).setup(device="cpu", test_mode="test")
    with pytest.raises(FormatError):
        viewer.load_pipeline(state, 7)


def test_another_number_of_gaussians_loads_into_the_optimizer(pipelines, scene, weights):
    """Resuming where the prediction kept another number: the optimizer goes on with the loaded Gaussians."""
    resumed = _config("da3gs-splat", scene, weights, max_gaussians=500).setup(device="cpu")
    groups = resumed.get_param_groups()
    assert len(groups["means"][0]) == 500
    resumed.load_pipeline(_saved(pipelines["da3gs-splat"]), 7)
    assert groups["means"][0] is resumed.model.gauss_params["means"]
    assert len(groups["means"][0]) == pipelines["da3gs-splat"].model.num_points > 500


def test_what_ns_export_reads(pipelines):
    """Logits, logarithms, coefficients: exporting and reading back gives the same Gaussians."""
    for pipeline in pipelines.values():
        model, gaussians = pipeline.model, pipeline.model.gaussians()
        assert torch.allclose(model.means, gaussians.means)
        assert torch.allclose(model.scales.exp(), gaussians.scales)
        assert torch.allclose(model.opacities.sigmoid()[:, 0], gaussians.opacities)
        assert torch.allclose(torch.cat([model.shs_0[:, None], model.shs_rest], 1), gaussians.sh)
        assert torch.allclose(model.colors, 0.28209479177387814 * gaussians.sh[:, 0] + 0.5)
        assert model.shs_rest.shape[1] == (model.config.sh_degree + 1) ** 2 - 1


def test_means_are_stored_in_units_of_the_scene(scene, weights):
    """The learning rate of positions means the same whatever the scale of the data."""
    small, large = (_config("da3gs-splat", scene, weights) for _ in range(2))
    large.datamanager.dataparser.scale_factor = 100.0
    models = [config.setup(device="cpu").model for config in (small, large)]
    assert float(models[1].scene_scale / models[0].scene_scale) == pytest.approx(100, rel=1e-3)
    assert models[0].num_points == pytest.approx(models[1].num_points, rel=0.01)
    assert float(models[0].gauss_params["means"].abs().median()) < 10


def test_context_is_bounded_and_sized_by_us(pipelines, scene, weights):
    from da3gs.nerfstudio.context import read_context

    datamanager = pipelines["da3gs"].datamanager
    assert all(data["image"].dtype == torch.uint8 for data in datamanager.cached_train)
    context = read_context(datamanager, count=4, strategy="evenly")
    assert context.indices == (0, 3, 5, 8) and len(context.images) == 4
    assert read_context(datamanager, count=99, strategy="farthest").indices == tuple(range(9))
    halved = _config("da3gs", scene, weights)
    halved.datamanager.camera_res_scale_factor = 0.5
    views = halved.setup(device="cpu").model._inputs.views
    assert views.size == pipelines["da3gs"].model._inputs.views.size == (56, 42)
    assert views.original_size[0].tolist() == [32, 24]


def test_transparent_and_masked_pixels_make_no_gaussians(pipelines):
    from da3gs.images import prepare_views
    from da3gs.nerfstudio.cameras import picture, valid_pixels
    from da3gs.nerfstudio.context import _processed_masks

    image = torch.full((48, 64, 4), 255, dtype=torch.uint8)
    image[:, 32:, 3] = 0
    batch = {"image": image, "mask": torch.ones(48, 64, 1, dtype=torch.bool)}
    batch["mask"][:24] = False
    valid = valid_pixels(batch)
    assert valid.sum() == 24 * 32 and valid[24:, :32].all()
    on_red = picture(batch, torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(on_red[0, 0], torch.ones(3)) and torch.equal(on_red[0, 63], torch.tensor([1.0, 0.0, 0.0]))
    views = prepare_views([torch.zeros(3, 48, 64)], size_px=56)
    processed = _processed_masks([valid], views)
    assert processed.shape == (1, 42, 56) and processed[0, 21:, :28].all() and processed.sum() == 21 * 28


def test_a_budget_keeps_the_same_choice_for_the_head(scene, weights):
    model = _config("da3gs", scene, weights, max_gaussians=800).setup(device="cpu").model
    assert model.num_points == 800
    again, stored = (_tensors(each) for each in (model._inputs.gaussians(model.head), model.gaussians()))
    for field in ("means", "scales", "opacities"):
        assert torch.allclose(again[field], stored[field], rtol=1e-4, atol=1e-5), field


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """Twelve photographs of a procedural kitchen in nerfstudio's format, and their depth in its own unit."""
    from da3gs.data.synthetic import make_sample
    from da3gs.data.transforms_json import write_transforms_json

    folder = tmp_path_factory.mktemp("data") / "kitchen"
    folder.mkdir()
    views = make_sample(5, 12, 182, 126, style="kitchen", difficulty=0.2, motion="orbit", min_covisibility=0.6)
    names = [f"{view:02d}.png" for view in range(len(views))]
    for name, picture in zip(names, views.images, strict=True):
        Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy()).save(folder / name)
    write_transforms_json(folder / "transforms.json", views.cameras, names)
    return folder, views.depth


def test_the_pictures_refine_the_start(kitchen):
    """Depth of the bundled network, as it is and refined by the training images beside the context views."""
    from da3gs.model.da3_model import load_model
    from da3gs.nerfstudio.context import feed_forward, read_context

    folder, truth = kitchen
    options = {"image_size": 182, "context_views": 6, "refine_depth": True}
    pipeline = _config("da3gs", folder, "da3-tiny", **options).setup(device="cpu")
    context = read_context(pipeline.datamanager, count=6, strategy="farthest")
    scale = pipeline.datamanager.train_dataparser_outputs.dataparser_scale
    known = truth[[int(name.split(".")[0]) for name in context.names]]
    error, model = {}, load_model("da3-tiny", device="cpu")
    for refine in (False, True):
        start = feed_forward(model, context, size_px=182, max_gaussians=100_000, sh_degree=2, refine_depth=refine)
        assert (start.surface.confirmed is not None) == refine
        error[refine] = float((start.surface.depth / scale / known).log().abs()[known > 0].median())
    assert error[True] < 0.5 * error[False], error
    # The head begins at what was measured, by correcting it by nothing.
    again, stored = (
        _tensors(pipeline.model._inputs.gaussians(pipeline.model.head)),
        _tensors(pipeline.model.gaussians()),
    )
    for field in ("means", "scales", "opacities"):
        same = torch.isclose(again[field], stored[field], rtol=1e-3, atol=1e-4).reshape(len(stored[field]), -1).all(1)
        # Rounding decides which pixels right at the threshold count as edges.
        assert float(same.float().mean()) > 0.995, field


def test_lpips_that_cannot_be_had_is_left_out_with_one_line(pipelines, monkeypatch, caplog):
    from da3gs.nerfstudio import models

    def offline(*_):
        raise WeightsError("the 'alex' backbone of LPIPS could not be fetched: offline")

    monkeypatch.setattr(models, "load_lpips", offline)
    model, data = pipelines["da3gs-splat"].model.eval(), pipelines["da3gs-splat"].datamanager
    monkeypatch.setattr(model.config, "lpips", "alex")
    monkeypatch.setattr(model, "_lpips", None)
    camera, batch = data.next_eval_image(0)
    outputs = model.get_outputs_for_camera(camera)
    for _ in range(2):
        metrics, images = model.get_image_metrics_and_images(outputs, batch)
        assert set(metrics) == {"psnr", "ssim"} and images["img"].shape[1] == 2 * int(camera.width)
    assert len([record for record in caplog.records if "LPIPS is left out" in record.message]) == 1


def test_bad_requests_are_one_clear_line(scene, weights):
    with pytest.raises(InputError, match="context-views must be >= 1"):
        _config("da3gs", scene, weights, context_views=0).setup(device="cpu")
    with pytest.raises(WeightsError, match="do not exist"):
        _config("da3gs", scene, weights.with_name("none.safetensors")).setup(device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="train on the CPU with"):
            _config("da3gs", scene, weights).setup(device="cuda")


def test_a_soft_start_lowers_opacities_once_training_begins(pipelines):
    from nerfstudio.engine.callbacks import TrainingCallbackAttributes

    nothing = TrainingCallbackAttributes(optimizers=None, grad_scaler=None, pipeline=None, trainer=None)
    model = pipelines["da3gs-splat"].model
    before, config = model.gaussians().detach(), model.config
    try:
        model.config = dataclasses.replace(config, start_opacity=1.0)
        assert model.get_training_callbacks(nothing) == []  # as the network left it
        model.config = dataclasses.replace(config, start_opacity=0.1)
        (callback,) = model.get_training_callbacks(nothing)
        callback.run_callback(5)
        assert torch.equal(model.gaussians().opacities, before.opacities)  # a resumed run is not softened again
        callback.run_callback(0)
        assert float(model.gaussians().opacities.max()) <= 0.1001
        assert torch.allclose(model.gaussians().scales, 1.5 * before.scales, rtol=1e-4)
        model.config = dataclasses.replace(config, start_opacity=0.0)
        with pytest.raises(InputError, match="start-opacity"):
            model.get_training_callbacks(nothing)
    finally:
        model.config = config
        model.set_gaussians(before)
