"""The CPU kernels against the dense float64 rasterizer, the plain-torch tile rasterizer and gsplat's torch functions.

Outputs and every gradient. The kernels work in float32 with their own exp2; relative L2 errors are about 1e-6.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from reference import dense, tiled
from reference.scenes import random_scene, room_scene

from da3gs.gaussians import Gaussians
from da3gs.rendering import RenderConfig, render, render_features
from da3gs.rendering.cpu import backend as cpu_backend

TOLERANCE = 1e-4  # the promise; see the module docstring for what is reached


def relative_error(value, expected) -> float:
    value, expected = value.double(), expected.double()
    return float((value - expected).norm() / expected.norm().clamp_min(1e-12))


def run(rasterize, gaussians, colors, cameras, dtype=torch.float32, seed=1, **options):
    """Outputs and gradients {name: tensor} of a random weighting of the outputs."""
    inputs = {
        "means": gaussians.means,
        "quats": gaussians.quats,
        "scales": gaussians.scales,
        "opacities": gaussians.opacities,
        "colors": colors,
        "cam_from_world": cameras.cam_from_world,
    }
    inputs = {name: value.detach().to(dtype).requires_grad_() for name, value in inputs.items()}
    width, height = cameras.size
    planes = {"near": (0.01,) * len(cameras), "far": (1e10,) * len(cameras)}
    settings = {"width": width, "height": height, "depth": False, "antialiased": False} | planes | options
    image, alpha = rasterize(*inputs.values(), cameras.K.to(dtype), **settings)
    rng = torch.Generator().manual_seed(seed)
    weights = [torch.randn(value.shape, generator=rng).to(value) for value in (image, alpha)]
    sum((value * weight).sum() for value, weight in zip((image, alpha), weights, strict=True)).backward()
    return {"image": image.detach(), "alpha": alpha.detach()} | {name: value.grad for name, value in inputs.items()}


def on_cpu(*args, memory_bytes=1 << 30, **options):
    return cpu_backend.rasterize(*args, memory_bytes=memory_bytes, **options)


def assert_all_close(results, expected, tolerance=TOLERANCE):
    errors = {name: relative_error(results[name], expected[name]) for name in expected}
    assert max(errors.values()) <= tolerance, errors


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("depth", [False, True])
@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_outputs_and_gradients_equal_the_dense_reference(sh_degree, depth, antialiased):
    gaussians, cameras = random_scene(200, views=3, sh_degree=sh_degree, seed=sh_degree)
    options = {"depth": depth, "antialiased": antialiased}
    expected = run(dense.rasterize, gaussians, gaussians.sh, cameras, torch.float64, **options)
    assert expected["alpha"].max() > 0.9  # the scene covers something
    assert all(expected[name].norm() > 0 for name in expected)
    assert_all_close(run(on_cpu, gaussians, gaussians.sh, cameras, **options), expected, 1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("depth", [False, True])
def test_any_number_of_channels(channels, depth):
    gaussians, cameras = random_scene(200, views=2)
    features = torch.randn(200, channels, generator=torch.Generator().manual_seed(7))
    expected = run(dense.rasterize, gaussians, features, cameras, torch.float64, depth=depth)
    assert expected["image"].shape[-1] == channels + depth
    assert_all_close(run(on_cpu, gaussians, features, cameras, depth=depth), expected, 1e-5)


def test_render_features_is_the_rasterized_image():
    gaussians, cameras = random_scene(200, views=2)
    features = torch.rand(200, 5, generator=torch.Generator().manual_seed(7))
    config = RenderConfig(near=0.01, far=1e10)
    expected = run(dense.rasterize, gaussians, features, cameras, torch.float64)["image"]
    assert relative_error(render_features(gaussians, features, cameras, config), expected) < 1e-5


@pytest.mark.parametrize(
    "shape",
    [(37, 29), (64, 64), (5, 3), (1, 1), (33, 97)],
    ids=lambda shape: f"{shape[0]}x{shape[1]}",
)
def test_sizes_that_do_not_fill_tiles(shape):
    gaussians, cameras = random_scene(100, views=1)
    cameras = cameras.scaled(width=shape[0], height=shape[1])
    expected = run(dense.rasterize, gaussians, gaussians.sh, cameras, torch.float64)
    assert_all_close(run(on_cpu, gaussians, gaussians.sh, cameras), expected)


@pytest.mark.parametrize("kind", ["needle", "pancake"])
@pytest.mark.parametrize("antialiased", [False, True])
def test_needles_and_pancakes_stay_exact(kind, antialiased):
    """Axis ratios of 1e4, splats of hundreds of pixels and thousandths of one: the sheared form cancels nothing."""
    gaussians, cameras = random_scene(200, views=2, seed=3)
    scales = gaussians.scales.clone()
    long, short = 3.0, 3e-4
    scales[:] = torch.tensor([long, short, short] if kind == "needle" else [long, long, short])
    opacities = torch.full((200,), 0.3)
    gaussians = Gaussians(gaussians.means, gaussians.quats, scales, opacities, gaussians.sh)
    expected = run(dense.rasterize, gaussians, gaussians.sh, cameras, torch.float64, antialiased=antialiased)
    results = run(on_cpu, gaussians, gaussians.sh, cameras, antialiased=antialiased)
    # A splat at a threshold may flip: 4e-3 of one pixel. All else is float32 rounding of positions of 1e3 px.
    assert (results["image"] - expected["image"]).abs().max() < 5e-3
    assert relative_error(results["image"], expected["image"]) < 1e-4
    assert all(torch.isfinite(value).all() for value in results.values())
    errors = {name: relative_error(results[name], expected[name]) for name in expected}
    assert max(errors.values()) < 2e-3, errors


@pytest.mark.parametrize("depth", [False, True])
def test_a_room_equals_the_plain_torch_tiles(depth):
    gaussians, cameras = room_scene(4, 48, 64, 160, 120)
    expected = run(tiled.rasterize, gaussians, gaussians.sh, cameras, depth=depth)
    results = run(on_cpu, gaussians, gaussians.sh, cameras, depth=depth)
    assert (results["image"] - expected["image"]).abs()[..., :3].max() < 5e-3
    assert_all_close(results, expected)


@pytest.mark.slow
def test_a_large_room_equals_the_plain_torch_tiles():
    gaussians, cameras = room_scene(8, 160, 160, 256, 256)
    expected = run(tiled.rasterize, gaussians, gaussians.sh, cameras)
    results = run(on_cpu, gaussians, gaussians.sh, cameras)
    difference = (results["image"] - expected["image"]).abs()
    assert difference.max() < 5e-3
    assert (difference < 1e-4).float().mean() > 0.999
    assert_all_close(results, expected, 1e-3)  # both are float32, and of 4 million pairs some flip at a threshold


def test_the_tile_reference_equals_the_dense_reference():
    gaussians, cameras = random_scene(200, views=2, sh_degree=2)
    expected = run(dense.rasterize, gaussians, gaussians.sh, cameras, torch.float64, depth=True)
    assert_all_close(run(tiled.rasterize, gaussians, gaussians.sh, cameras, depth=True), expected)


# ---------------------------------------------------------------- gsplat's own torch functions


def gsplat_torch():
    return pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed")


def projected_records(gaussians, cameras, antialiased=False):
    """(visible [N], records [N, RECORD]) of stage 1 for the first camera."""
    from da3gs.rendering.cpu import autograd, stages
    from da3gs.rendering.cpu.scratch import Buffers

    width, height = cameras.size
    style = stages.Style(True, antialiased, np.float32(0.999))
    plan = autograd.Plan(width, height, (0.01,), (1e10,), style, True, 1 << 30)
    splats = autograd._splats(*gaussians.tensors(), plan)
    window = autograd._whole(cameras.cam_from_world[0], cameras.centers[0], cameras.K[0], plan, 0)
    image, alpha = np.zeros(width * height * 4, np.float32), np.zeros(width * height, np.float32)
    drawing = stages.draw(splats, window, style, 1, 1 << 30, Buffers(), Buffers(), image, alpha)
    boxes = torch.from_numpy(drawing.tile_boxes).view(-1, 4)
    return boxes[:, 2] >= boxes[:, 0], torch.from_numpy(drawing.records).view(len(gaussians), -1)


@pytest.mark.parametrize("antialiased", [False, True])
def test_projection_equals_gsplat(antialiased):
    gsplat = gsplat_torch()
    gaussians, cameras = random_scene(500, views=1, sh_degree=0)
    covariances, _ = gsplat._quat_scale_to_covar_preci(gaussians.quats.double(), gaussians.scales.double(), True, False)
    _, centers, depths, conics, compensations = gsplat._fully_fused_projection(
        gaussians.means.double(), covariances, cameras.cam_from_world.double(), cameras.K.double(), *cameras.size,
        calc_compensations=True,
    )  # fmt: skip
    visible, records = projected_records(gaussians, cameras, antialiased)
    assert visible.sum() > 200
    records = records[visible].double()
    centers, depths, conics = (value[0, visible] for value in (centers, depths, conics))
    opacities = gaussians.opacities[visible].double()
    if antialiased:
        opacities = opacities * compensations[0, visible]
    torch.testing.assert_close(records[:, :2], centers, rtol=1e-5, atol=1e-4)
    # the record's A (dx + S dy)^2 + G dy^2, with -log2(e) / 2 taken out, is the conic's A dx^2 + 2 B dx dy + C dy^2
    a, s, g = records[:, 2], records[:, 3], records[:, 4]
    ours = torch.stack([a, a * s, a * s * s + g], -1) / (-0.5 * np.log2(np.e))
    assert relative_error(ours, conics) < 1e-5
    torch.testing.assert_close(ours, conics, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(records[:, 5], opacities, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(records[:, 11], depths, rtol=1e-5, atol=1e-5)


def test_the_dense_projection_equals_gsplat():
    gsplat = gsplat_torch()
    gaussians, cameras = random_scene(500, views=1)
    inputs = [value.double() for value in (gaussians.means, gaussians.quats, gaussians.scales)]
    covariances, _ = gsplat._quat_scale_to_covar_preci(inputs[1], inputs[2], True, False)
    pose, K = cameras.cam_from_world.double(), cameras.K.double()
    _, centers, depths, conics, _ = gsplat._fully_fused_projection(inputs[0], covariances, pose, K, *cameras.size)
    ours, sharp, z = dense.project(*inputs, pose[0], K[0], *cameras.size)
    front = z > 0.01
    inverse = torch.linalg.inv(sharp + 0.3 * torch.eye(2).double())[front]
    torch.testing.assert_close(ours[front], centers[0, front], rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(z[front], depths[0, front], rtol=1e-12, atol=1e-12)
    ours = torch.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], -1)
    torch.testing.assert_close(ours, conics[0, front], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_colours_equal_gsplat(sh_degree):
    gsplat = gsplat_torch()
    gaussians, cameras = random_scene(500, views=1, sh_degree=sh_degree)
    directions = torch.nn.functional.normalize(gaussians.means - cameras.centers[0], dim=-1)
    expected = (gsplat._spherical_harmonics(sh_degree, directions, gaussians.sh) + 0.5).clamp_min(0)
    torch.testing.assert_close(
        dense.colors_of(gaussians.means, gaussians.sh, cameras.cam_from_world[0]), expected, rtol=1e-5, atol=1e-5
    )
    visible, records = projected_records(gaussians, cameras)
    torch.testing.assert_close(records[visible, 8:11], expected[visible], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- the picture does not depend on how it is made


def test_strips_make_the_same_picture_and_gradients():
    """Too little memory for the lists of the whole picture: it is drawn in strips, and again for the backward pass."""
    gaussians, cameras = random_scene(300, views=2, sh_degree=1, width=96, height=160)
    whole = run(on_cpu, gaussians, gaussians.sh, cameras, depth=True)
    strips = run(on_cpu, gaussians, gaussians.sh, cameras, depth=True, memory_bytes=4000)
    assert_all_close(strips, whole, 1e-5)


def test_threads_do_not_change_the_picture():
    gaussians, cameras = room_scene(2, 40, 40, 96, 96)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(on_cpu, gaussians, gaussians.sh, cameras)
        torch.set_num_threads(2)
        two = run(on_cpu, gaussians, gaussians.sh, cameras)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    for name in ("image", "alpha", "means", "quats", "scales", "opacities", "colors"):
        assert torch.equal(one[name], two[name]), name
    assert relative_error(two["cam_from_world"], one["cam_from_world"]) < 1e-5


def test_callers_in_several_threads_get_their_own_pictures():
    """As a viewer does; the scratch is shared, so the calls must not overlap."""
    scenes = [random_scene(150 + 50 * seed, views=1, seed=seed) for seed in range(4)]
    expected = [render(*scene).rgb for scene in scenes]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            pictures = list(pool.map(lambda scene: render(*scene).rgb, scenes))
            assert all(torch.equal(picture, other) for picture, other in zip(pictures, expected, strict=True))


def test_backward_twice_gives_the_same_gradients():
    gaussians, cameras = random_scene(100, views=1)
    means = gaussians.means.clone().requires_grad_()
    moved = Gaussians.unchecked(means, *gaussians.tensors()[1:])
    loss = render(moved, cameras).rgb.square().sum()
    (first,) = torch.autograd.grad(loss, means, retain_graph=True)
    (second,) = torch.autograd.grad(loss, means)
    assert first.norm() > 0
    assert torch.equal(first, second)
