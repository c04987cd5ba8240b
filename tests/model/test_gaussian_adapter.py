import numpy as np
import pytest
import torch
import torch.nn.functional as F
from assets import asset
from strategies_geometry import generator

from da3gs import Cameras, Gaussians
from da3gs.errors import InputError
from da3gs.geometry.rotations import matrix_from_quat
from da3gs.geometry.spherical_harmonics import rgb_from_dc
from da3gs.model.gaussian_adapter import RAW_CHANNELS, AdapterConfig, gaussians_from_depth, gaussians_from_raw
from da3gs.model.geometric_prior import MIN_COSINE, SIGMA_PX, THICKNESS, geometric_prior

HEIGHT, WIDTH, FOCAL = 24, 32, 120.0


def _camera(views=1, pose=None):
    K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]]).expand(views, 3, 3)
    pose = torch.eye(4).expand(views, 4, 4) if pose is None else pose
    return Cameras(pose, K, WIDTH, HEIGHT)


def _plane_depth(normal, distance=2.0):
    """z-depth of the plane normal · x = -distance seen by `_camera()`; the normal faces the camera (n_z < 0)."""
    rays = _camera().camera_rays()[0]
    return (-distance / (rays @ normal))[None]


def _inner(values, border=3):
    return values[:, border:-border, border:-border]


# ------------------------------------------------------------------------------------------------ released head


@pytest.mark.parametrize("case", ["nopose", "gt_similar", "gt_clamped", "gt_two_views", "gt_equal"])
def test_parity_with_the_released_adapter(case):
    arrays = np.load(asset("parity/unit_gs_adapter.npz"))
    data = {
        key.removeprefix(f"{case}."): torch.from_numpy(arrays[key])
        for key in arrays.files
        if key.startswith(f"{case}.")
    }
    size = {"width": 8, "height": 6}
    cameras = Cameras(data["w2c"], data["K"], **size)
    given = Cameras(data["gt_w2c"], data["K"], **size) if "gt_w2c" in data else None
    raw = torch.cat([data["raw"][0], torch.logit(data["density"][0].double()).float()[..., None]], -1)
    found = gaussians_from_raw(raw, data["depth"][0], cameras, config=AdapterConfig.official(), given_cameras=given)
    torch.testing.assert_close(found.means, data["out_means"][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.scales, data["out_scales"][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.opacities, data["out_opacities"][0], rtol=1e-4, atol=1e-5)
    quats, expected = found.quats, data["out_rotations"][0]
    signs = torch.sign((quats * expected).sum(1, keepdim=True))
    assert (quats * signs - expected).abs().max() < 2e-5
    assert (found.sh.transpose(1, 2) - data["out_harmonics"][0]).abs().max() < 2e-5


# ------------------------------------------------------------------------------------------------ the prior


@pytest.mark.parametrize("normal", [(0.0, 0, -1), (0.5, 0, -1), (0.3, -0.6, -1), (0, 0.9, -1)])
def test_splats_lie_flat_on_a_plane(normal):
    normal = F.normalize(torch.tensor(normal), dim=0)
    depth = _plane_depth(normal)
    prior = geometric_prior(depth, _camera())
    assert not _inner(prior.edge).any()
    assert (_inner(prior.axes[..., 2]) - normal).abs().max() < 2e-3
    view = F.normalize(_camera().camera_rays(), dim=-1)
    cosine = -(view @ normal).clamp(-1, -MIN_COSINE)
    expected = SIGMA_PX * torch.stack([torch.ones_like(cosine), 1 / cosine, torch.full_like(cosine, THICKNESS)], -1)
    torch.testing.assert_close(_inner(prior.sigma_px), _inner(expected), rtol=5e-3, atol=1e-4)
    eye = torch.eye(3)
    assert (prior.axes.transpose(-1, -2) @ prior.axes - eye).abs().max() < 1e-5
    assert (torch.linalg.det(prior.axes) - 1).abs().max() < 1e-5
    # t2 is the tilted direction: together with the normal it holds the viewing ray.
    assert (_inner((prior.axes[..., 0] * view).sum(-1))).abs().max() < 1e-3


def test_jumps_borders_and_holes_are_edges():
    depth = torch.ones(1, HEIGHT, WIDTH)
    depth[:, :, 16:] = 1.2
    depth[0, 12, 5] = 0
    edge = geometric_prior(depth, _camera()).edge[0]
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    expected[[0, -1]] = expected[:, [0, -1]] = expected[:, 15:17] = expected[11:14, 4:7] = True
    assert torch.equal(edge, expected)
    gentle = 1 + 0.01 * torch.arange(WIDTH).expand(1, HEIGHT, WIDTH)
    assert not _inner(geometric_prior(gentle, _camera()).edge).any()


def test_holes_do_not_bend_their_surroundings():
    depth = _plane_depth(torch.tensor([0.0, 0.0, -1.0]))
    depth[0, 12, 16] = 0
    normal = geometric_prior(depth, _camera()).axes[0, 12, 18, :, 2]  # two pixels away: inside the blur
    assert torch.allclose(normal, torch.tensor([0.0, 0.0, -1.0]), atol=1e-4)


def test_opacity_follows_the_rank_of_confidence():
    depth, confidence = torch.ones(2, HEIGHT, WIDTH), torch.ones(2, HEIGHT, WIDTH)
    ramp = torch.arange(HEIGHT * WIDTH).float().reshape(HEIGHT, WIDTH)
    confidence[0] = 1 + ramp
    opacity = geometric_prior(depth, _camera(2), confidence).opacity
    assert torch.allclose(opacity[1], torch.full((HEIGHT, WIDTH), 0.9))  # constant: certain
    assert abs(float(opacity[0].min()) - 0.5) < 1e-6 and abs(float(opacity[0].max()) - 0.9) < 1e-6
    assert (opacity[0].flatten().diff() >= 0).all()
    assert abs(float((opacity[0] > 0.8999).float().mean()) - 0.5) < 0.01


def test_frontal_raw_biases_are_the_documented_ones():
    """A frontal pixel's splat is c D / f wide: logit((c/0.2 - 1e-5) / 30) = -2.398 across and -4.779 along n."""
    depth = torch.full((1, HEIGHT, WIDTH), 3.0)
    gaussians = gaussians_from_raw(None, depth, _camera(), images=torch.rand(1, 3, HEIGHT, WIDTH))
    sigma = gaussians.scales.reshape(HEIGHT, WIDTH, 3)[12, 16]
    torch.testing.assert_close(sigma, torch.tensor([0.5, 0.5, 0.05]) * 3 / FOCAL, rtol=2e-3, atol=0)
    for scale, bias in ((0.5, -2.398), (0.05, -4.779)):
        assert abs(float(torch.logit(torch.tensor((scale / 0.2 - 1e-5) / (30 - 1e-5)))) - bias) < 5e-4


# ------------------------------------------------------------------------------------------------ the adapter


def _random_scene(seed=0, views=2):
    draw = generator(seed)
    depth = 1 + torch.rand(views, HEIGHT, WIDTH, generator=draw)
    pose = torch.eye(4).repeat(views, 1, 1)
    pose[:, :3, :3] = matrix_from_quat(torch.randn(views, 4, generator=draw))
    pose[:, :3, 3] = torch.randn(views, 3, generator=draw)
    images = torch.rand(views, 3, HEIGHT, WIDTH, generator=draw)
    return images, depth, _camera(views, pose)


def test_no_head_and_a_head_of_zeros_are_the_same_bit_for_bit():
    images, depth, cameras = _random_scene()
    none = gaussians_from_raw(None, depth, cameras, images=images)
    zeros = gaussians_from_raw(torch.zeros(2, HEIGHT, WIDTH, RAW_CHANNELS), depth, cameras, images=images)
    for a, b in zip(none.with_sh_degree(2).tensors(), zeros.tensors(), strict=True):
        assert torch.equal(a, b)


def test_splats_stand_on_their_pixels_with_their_colours():
    images, depth, cameras = _random_scene()
    gaussians = gaussians_from_depth(images, depth, cameras)
    assert len(gaussians) == 2 * HEIGHT * WIDTH and gaussians.sh_degree == 0
    torch.testing.assert_close(gaussians.means, cameras.unproject(depth).reshape(-1, 3), rtol=1e-5, atol=1e-5)
    colours = rgb_from_dc(gaussians.sh[:, 0]).reshape(2, HEIGHT, WIDTH, 3).movedim(-1, 1)
    assert torch.allclose(colours, images, atol=1e-6)
    # The normal of every splat, its third axis, faces the camera that made it.
    normals = matrix_from_quat(gaussians.quats)[..., 2].reshape(2, -1, 3)
    rays = gaussians.means.reshape(2, -1, 3) - cameras.centers[:, None]
    assert ((normals * rays).sum(-1) < 0).all()


def test_invalid_depth_yields_no_splat():
    images, depth, cameras = _random_scene()
    depth[0, 3, 4:9] = 0
    depth[1, 0, 0] = -1
    gaussians = gaussians_from_depth(images, depth, cameras)
    assert len(gaussians) == 2 * HEIGHT * WIDTH - 6 and isinstance(gaussians.validate(), Gaussians)
    with pytest.raises(InputError, match="no pixel"):
        gaussians_from_depth(images, depth * 0, cameras)
    with pytest.raises(InputError, match="finite"):
        gaussians_from_depth(images, depth * float("nan"), cameras)
    with pytest.raises(InputError, match="images"):
        gaussians_from_raw(None, depth, cameras)


def test_each_raw_channel_moves_what_it_names():
    images, depth, cameras = _random_scene(views=1)
    base = gaussians_from_raw(None, depth, cameras, images=images).with_sh_degree(2)

    def moved(channel, value):
        raw = torch.zeros(1, HEIGHT, WIDTH, RAW_CHANNELS)
        raw[..., channel] = value
        return gaussians_from_raw(raw, depth, cameras, images=images)

    uv, z = cameras.project(moved(0, 2.5).means)
    before, z_before = cameras.project(base.means)
    torch.testing.assert_close(uv[0] - before[0], torch.tensor([2.5, 0.0]).expand(HEIGHT * WIDTH, 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(z, z_before, rtol=1e-4, atol=1e-5)
    _, z = cameras.project(moved(36, 100.0).means)
    torch.testing.assert_close(z, z_before * 1.1, rtol=1e-4, atol=1e-5)
    wider = moved(2, 1.0).scales / base.scales
    assert (wider[:, 0] > 1.5).all() and torch.equal(wider[:, 1:], torch.ones_like(wider[:, 1:]))
    assert (moved(37, 2.0).opacities > base.opacities).all()
    assert torch.allclose(moved(9 + 9, 1.0).sh[:, 0] - base.sh[:, 0], torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)
    assert abs(float(moved(9 + 1, 1.0).sh[:, 1:4, 0].norm(dim=1).mean()) - 0.025) < 1e-5


def test_gradients_reach_the_head_and_the_depth_but_not_through_the_prior():
    images, depth, cameras = _random_scene()
    depth.requires_grad_()
    raw = torch.zeros(2, HEIGHT, WIDTH, RAW_CHANNELS, requires_grad=True)
    gaussians = gaussians_from_raw(raw, depth, cameras, images=images)
    weights = [torch.randn(value.shape, generator=generator(i)) for i, value in enumerate(gaussians.tensors())]
    sum((value * w).sum() for value, w in zip(gaussians.tensors(), weights, strict=True)).backward()
    reached = raw.grad.flatten(0, 2).abs().amax(0) > 0
    # Channel 5 stretches the quaternion (1, 0, 0, 0): no rotation, no gradient at the start.
    assert torch.isfinite(raw.grad).all() and reached.tolist() == [channel != 5 for channel in range(RAW_CHANNELS)]
    assert torch.isfinite(depth.grad).all() and (depth.grad != 0).all()
    # Opacity depends on depth only through the prior, so it must not move it.
    depth.grad = None
    quats = gaussians_from_raw(raw.detach(), depth, cameras, images=images).quats
    assert not quats.requires_grad
