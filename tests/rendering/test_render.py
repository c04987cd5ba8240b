"""`render`: closed forms, invariances, extremes, bad input and the choice of the backend."""

import dataclasses
import importlib.util
import logging
import math
import subprocess
import sys

import pytest
import torch
from reference.scenes import look_at, random_scene

from da3gs.errors import BackendError, InputError
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import matrix_from_quat
from da3gs.geometry.similarity import Similarity
from da3gs.geometry.spherical_harmonics import dc_from_rgb
from da3gs.rendering import RenderConfig, RenderOutput, clipping_planes, contributions, render, render_features
from da3gs.rendering import render as render_function

render_module = sys.modules[render_function.__module__]


def camera(width=64, height=48, focal=50.0) -> Cameras:
    K = torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]])
    return Cameras(torch.eye(4)[None], K, width, height)


def splats(means, scales, opacities, rgb, quats=None) -> Gaussians:
    means, opacities = torch.tensor(means), torch.tensor(opacities)
    count = len(means)
    quats = torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4) if quats is None else quats
    return Gaussians(
        means, quats, torch.tensor(scales).expand(count, 3), opacities, dc_from_rgb(torch.tensor(rgb))[:, None]
    )


def assert_same_picture(a: RenderOutput, b: RenderOutput):
    """99.9 % of pixels within 1e-4, all within 5e-3: a splat at a threshold may flip."""
    for name in ("rgb", "alpha"):
        difference = (getattr(a, name) - getattr(b, name)).abs()
        assert difference.max() < 5e-3
        assert (difference < 1e-4).float().mean() > 0.999


# ---------------------------------------------------------------- closed forms


def test_one_round_splat_is_a_gaussian_of_known_width():
    z, s, opacity, focal = 4.0, 0.2, 0.8, 50.0
    rgb = torch.tensor([0.9, 0.5, 0.2])
    out = render(splats([[0.0, 0.0, z]], [[s, s, s]], [opacity], [rgb.tolist()]), camera(focal=focal))
    variance = (focal * s / z) ** 2 + 0.3
    v, u = torch.meshgrid(torch.arange(48) + 0.5 - 24, torch.arange(64) + 0.5 - 32, indexing="ij")
    alpha = opacity * torch.exp(-(u**2 + v**2) / (2 * variance))
    alpha[alpha < 1 / 255] = 0
    torch.testing.assert_close(out.alpha[0, ..., 0], alpha, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.rgb[0], alpha[..., None] * rgb, rtol=1e-5, atol=1e-6)
    seen = alpha > 0
    torch.testing.assert_close(out.depth[0, ..., 0][seen], torch.full((int(seen.sum()),), z))
    assert not out.depth[0, ..., 0][~seen].any()


def test_two_layers_blend_front_to_back():
    """Two wide splats: rgb = a c1 + (1-a) b c2, depth = the mean of the depths with the same weights."""
    scene = splats([[0.0, 0, 6.0], [0.0, 0, 3.0]], [[9.0, 9.0, 9.0]], [0.5, 0.6], [[0.0, 1, 0], [1.0, 0, 0]])
    out = render(scene, camera(), background=torch.tensor([0.0, 0.0, 1.0]))
    middle = out.rgb[0, 24, 32]
    torch.testing.assert_close(middle, torch.tensor([0.6, 0.4 * 0.5, 0.4 * 0.5]), atol=1e-3, rtol=0)
    torch.testing.assert_close(out.depth[0, 24, 32, 0], torch.tensor((0.6 * 3 + 0.2 * 6) / 0.8), atol=5e-3, rtol=0)


def test_an_opaque_splat_lets_a_thousandth_through():
    """Alpha is capped at 0.999; after two of them a pixel has ended, as in gsplat."""
    scene = splats([[0.0, 0, 3.0]] * 3, [[9.0, 9, 9]], [1.0] * 3, [[1.0, 1, 1], [0.0, 0, 0], [0.5, 0.5, 0.5]])
    out = render(scene, camera())
    torch.testing.assert_close(out.alpha[0, 24, 32, 0], torch.tensor(0.999))
    torch.testing.assert_close(out.rgb[0, 24, 32], torch.full((3,), 0.999))


def test_antialiasing_keeps_the_light_of_a_tiny_splat():
    """A splat much smaller than a pixel: the blur alone makes it 0.3 px^2 wide, antialiasing gives its area back."""
    scene = splats([[0.0, 0.0, 10.0]], [[0.05, 0.05, 0.05]], [0.9], [[1.0, 1, 1]])
    classic = render(scene, camera(65, 49)).alpha.sum()
    smooth = render(scene, camera(65, 49), RenderConfig(antialiased=True)).alpha.sum()
    area = (50 * 0.05 / 10) ** 2
    torch.testing.assert_close(smooth / classic, torch.tensor(area / (area + 0.3)), atol=0.02, rtol=0)


# ---------------------------------------------------------------- invariances


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_similarity_of_scene_and_cameras_leaves_the_picture(scale):
    gaussians, cameras = random_scene(300, views=2, sh_degree=3)
    rotation = matrix_from_quat(torch.tensor([0.3, -0.5, 0.7, 0.4]))
    move = Similarity(torch.tensor(scale), rotation, scale * torch.tensor([3.0, -1.0, 2.0]))
    before = render(gaussians, cameras)
    after = render(gaussians.transform(move), cameras.transform(move))
    assert before.alpha.max() > 0.9
    assert_same_picture(before, after)
    torch.testing.assert_close(after.depth, scale * before.depth, rtol=2e-2, atol=1e-3 * scale)


def test_clipping_planes_follow_the_scene_and_yield_to_the_config():
    gaussians, cameras = random_scene(300, views=2)
    (near, _), (far, _) = clipping_planes(gaussians.means, cameras)
    depth = (gaussians.means @ cameras.cam_from_world[0, 2, :3]) + cameras.cam_from_world[0, 2, 3]
    typical = depth[depth > 0].log().mean().exp()
    assert near == pytest.approx(0.01 * float(typical), rel=1e-5)
    assert far == pytest.approx(1e6 * float(typical), rel=1e-5)
    assert clipping_planes(gaussians.means, cameras, 0.5, 7.0) == ((0.5, 0.5), (7.0, 7.0))
    clipped = render(gaussians, cameras, RenderConfig(near=3.0, far=4.0))
    between = gaussians[(depth >= 3.0) & (depth <= 4.0)]
    torch.testing.assert_close(clipped.rgb[0], render(between, cameras, RenderConfig(near=0.01)).rgb[0])


def test_order_and_collection_do_not_matter():
    gaussians, cameras = random_scene(300, views=2, sh_degree=1)
    shuffled = gaussians[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    assert_same_picture(render(gaussians, cameras), render(shuffled, cameras))


def test_each_view_is_rendered_as_if_alone():
    gaussians, cameras = random_scene(300, views=3, sh_degree=1)
    together = render(gaussians, cameras)
    for view in range(3):
        assert torch.equal(render(gaussians, cameras[view]).rgb[0], together.rgb[view])


def test_cameras_of_mixed_sizes_give_a_list():
    gaussians, cameras = random_scene(200, views=2)
    mixed = Cameras.cat([cameras, cameras[0].scaled(width=97, height=64)])
    outputs = render(gaussians, mixed)
    assert [tuple(out.rgb.shape) for out in outputs] == [(1, 32, 48, 3), (1, 32, 48, 3), (1, 64, 97, 3)]
    assert torch.equal(outputs[1].rgb[0], render(gaussians, cameras).rgb[1])


def test_lower_sh_degree():
    gaussians, cameras = random_scene(200, views=1, sh_degree=3)
    expected = render(gaussians.with_sh_degree(1), cameras).rgb
    assert torch.equal(render(gaussians, cameras, RenderConfig(sh_degree=1)).rgb, expected)
    assert not torch.equal(render(gaussians, cameras).rgb, expected)


def test_depth_only_when_asked():
    gaussians, cameras = random_scene(200, views=1)
    without = render(gaussians, cameras, RenderConfig(depth=False))
    assert without.depth is None
    assert torch.equal(without.rgb, render(gaussians, cameras).rgb)


# ---------------------------------------------------------------- background


def test_backgrounds():
    gaussians, cameras = random_scene(200, views=2)
    black = render(gaussians, cameras)
    color = torch.tensor([0.2, 0.4, 0.9])
    expected = black.rgb + (1 - black.alpha) * color
    pictures = color.expand(2, 32, 48, 3)
    for background in (color, color.expand(2, 3), pictures, lambda view: pictures[0]):
        torch.testing.assert_close(render(gaussians, cameras, background=background).rgb, expected)
    from_config = render(gaussians, cameras, RenderConfig(background=tuple(color.tolist())))
    torch.testing.assert_close(from_config.rgb, expected)


def test_a_background_function_sees_each_view():
    gaussians, cameras = random_scene(1, views=2)
    empty = gaussians[torch.zeros(1, dtype=torch.bool)]

    def sky(view: Cameras) -> torch.Tensor:
        assert len(view) == 1
        directions, _ = view.rays()
        return directions[0]

    torch.testing.assert_close(render(empty, cameras, background=sky).rgb, cameras.rays()[0])


def test_gradients_reach_the_background():
    gaussians, cameras = random_scene(200, views=1)
    color = torch.zeros(3, requires_grad=True)
    out = render(gaussians, cameras, background=color)
    out.rgb.sum().backward()
    torch.testing.assert_close(color.grad, (1 - out.alpha).sum().expand(3))


@pytest.mark.parametrize("shape", [(4,), (3, 3), (2, 8, 8, 3)])
def test_a_background_of_the_wrong_shape_is_refused(shape):
    gaussians, cameras = random_scene(10, views=2)
    with pytest.raises(InputError, match=r"the background must be a colour .* got \[" + str(shape[0])):
        render(gaussians, cameras, background=torch.zeros(shape))


# ---------------------------------------------------------------- contributions


def test_contributions_are_the_share_of_each_gaussian():
    gaussians, cameras = random_scene(200, views=2)
    share = contributions(gaussians, cameras)
    assert not share.requires_grad
    torch.testing.assert_close(share.sum(), render(gaussians, cameras).alpha.sum(), rtol=1e-4, atol=0)
    one_hot = torch.eye(200)[:, 150:160]
    images = render_features(gaussians, one_hot, cameras)
    torch.testing.assert_close(share[150:160], images.sum((0, 1, 2)), rtol=1e-4, atol=1e-4)
    assert not share[gaussians.opacities < 1 / 255].any()


# ---------------------------------------------------------------- extremes


def grads_of(gaussians: Gaussians, cameras: Cameras) -> list[torch.Tensor]:
    leaves = [value.detach().clone().requires_grad_() for value in gaussians.tensors()]
    out = render(Gaussians.unchecked(*leaves), cameras)
    (out.rgb.sum() + out.alpha.sum() + out.depth.sum()).backward()
    return [leaf.grad for leaf in leaves]


def test_no_gaussians_show_the_background():
    out = render(Gaussians.empty(), camera(), background=torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(out.rgb, torch.tensor([0.1, 0.2, 0.3]).expand(1, 48, 64, 3))
    assert not out.alpha.any() and not out.depth.any()
    assert all(len(gradient) == 0 for gradient in grads_of(Gaussians.empty(2), camera()))
    assert len(contributions(Gaussians.empty(), camera())) == 0


def test_everything_behind_the_camera():
    scene = splats([[0.0, 0, -3.0], [1.0, 0, -1.0]], [[1.0, 1, 1]], [0.9, 0.9], [[1.0, 1, 1]] * 2)
    assert not render(scene, camera()).alpha.any()
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in grads_of(scene, camera()))


def test_transparent_splats_are_not_there():
    scene = splats([[0.0, 0, 3.0], [0.0, 0, 4.0]], [[1.0, 1, 1]], [0.0, 0.9], [[1.0, 1, 1], [0.0, 1, 0]])
    torch.testing.assert_close(render(scene, camera()).rgb, render(scene[1], camera()).rgb)
    gradients = grads_of(scene, camera())
    assert all(torch.isfinite(gradient).all() and not gradient[0].any() for gradient in gradients)


def test_a_splat_in_the_camera_and_one_at_the_horizon():
    """Depths 1e-6 to 1e6 in one scene stay finite, gradients included."""
    scene = splats([[0.0, 0, 10.0**k] for k in range(-6, 7)], [[0.1, 0.1, 0.1]], [0.5] * 13, [[1.0, 0.5, 0.2]] * 13)
    out = render(scene, camera())
    assert torch.isfinite(out.rgb).all() and torch.isfinite(out.depth).all()
    assert all(torch.isfinite(gradient).all() for gradient in grads_of(scene, camera()))


@pytest.mark.parametrize("size", [1e-30, 1e9, 1e30])
def test_absurd_sizes_stay_finite(size):
    scene = splats([[0.0, 0, 3.0], [0.1, 0, 4.0]], [[size, size, 0.1 * size]], [0.5, 0.9], [[1.0, 0.5, 0.2]] * 2)
    assert torch.isfinite(render(scene, camera()).rgb).all()
    assert all(torch.isfinite(gradient).all() for gradient in grads_of(scene, camera()))


@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "sh"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(name, value):
    gaussians, cameras = random_scene(20, views=1)
    fields = {field.name: getattr(gaussians, field.name).clone() for field in dataclasses.fields(Gaussians)}
    fields[name].view(20, -1)[7, 0] = value
    shown = "colors" if name == "sh" else name
    with pytest.raises(InputError, match=rf"{shown} of 1 of 20 Gaussians hold NaN or infinity \(first: 7\)"):
        render(Gaussians.unchecked(**fields), cameras)


def test_cameras_without_poses_and_with_skew_are_refused():
    gaussians, cameras = random_scene(20, views=1)
    with pytest.raises(InputError, match="needs cameras with poses"):
        render(gaussians, cameras.without_poses())
    K = cameras.K.clone()
    K[:, 0, 1] = 3.0
    with pytest.raises(InputError, match="skew"):
        render(gaussians, Cameras(cameras.cam_from_world, K, 48, 32))
    with pytest.raises(InputError, match="0 < near < far"):
        render(gaussians, cameras, RenderConfig(near=2.0, far=1.0))


@pytest.mark.slow
def test_a_million_gaussians():
    count = 1_000_000
    rng = torch.Generator().manual_seed(0)
    means = torch.rand(count, 3, generator=rng) * torch.tensor([4.0, 3.0, 4.0]) + torch.tensor([-2.0, -1.5, 2.0])
    gaussians = Gaussians(
        means,
        torch.randn(count, 4, generator=rng),
        torch.rand(count, 3, generator=rng) * 0.01 + 0.001,
        torch.rand(count, generator=rng),
        torch.randn(count, 4, 3, generator=rng),
    )
    pose = torch.tensor(look_at((0, 0, 0), (0, 0, 4))).float()[None]
    K = torch.tensor([[[500.0, 0, 320], [0, 500.0, 240], [0, 0, 1]]])
    out = render(gaussians, Cameras(pose, K, 640, 480))
    assert out.alpha[0, 200:280, 280:360].min() > 0.99
    assert 2.0 < out.depth[0, 240, 320, 0] < 6.0
    gradients = grads_of(gaussians, Cameras(pose, K, 640, 480))
    assert all(torch.isfinite(gradient).all() and gradient.any() for gradient in gradients)


# ---------------------------------------------------------------- backends


def test_the_backend_follows_the_tensors_and_is_announced_once(caplog, monkeypatch):
    monkeypatch.setattr(render_module, "_announced", set())
    gaussians, cameras = random_scene(20, views=1)
    with caplog.at_level(logging.INFO, logger=render_module.__name__):
        render(gaussians, cameras)
        render(gaussians, cameras)
    assert [record.getMessage() for record in caplog.records] == ["rendering with cpu (numba): tensors are on the CPU"]


def test_a_backend_that_cannot_run_is_an_error():
    gaussians, cameras = random_scene(20, views=1)
    with pytest.raises(BackendError, match="gsplat renders CUDA tensors; these are on cpu"):
        render(gaussians, cameras, RenderConfig(backend="gsplat"))
    with pytest.raises(BackendError, match="cpu renders CPU tensors; these are on cuda"):
        render_module.choose_backend("cpu", torch.device("cuda", 0))
    with pytest.raises(BackendError, match="no backend renders tensors on mps"):
        render_module.choose_backend("auto", torch.device("mps"))
    with pytest.raises(InputError, match="one of auto, gsplat, cpu"):
        render_module.choose_backend("opengl", torch.device("cpu"))


@pytest.mark.parametrize(("package", "device"), [("numba", "cpu"), ("gsplat", "cuda")])
def test_a_missing_package_names_the_install_command(package, device, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(BackendError, match=f"needs the package {package}: pip install {package}"):
        render_module.choose_backend("auto", torch.device(device))


def test_importing_the_renderer_loads_no_backend():
    script = "import sys, da3gs.rendering; print(sorted({'numba', 'gsplat', 'llvmlite'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
