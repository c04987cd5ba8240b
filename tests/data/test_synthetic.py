"""Synthetic scenes: exact geometry, cameras that share what they see, one seed one picture."""

import math

import numpy as np
import pytest
import torch

from da3gs.data.synthetic import (
    HELD_OUT_STYLES,
    STYLES,
    TRAIN_STYLES,
    PhotoSettings,
    covisibility,
    make_sample,
    make_scene,
    render_views,
    sample_cameras,
)
from da3gs.data.synthetic.backdrops import Ground, Room
from da3gs.data.synthetic.camera_paths import look_at
from da3gs.data.synthetic.photo import jpeg, photograph
from da3gs.data.synthetic.rendering import render_radiance
from da3gs.data.synthetic.solids import Solids
from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras


@pytest.fixture(scope="module", params=STYLES)
def sample(request):
    return make_sample(11, 4, 80, 60, style=request.param, difficulty=0.5, motion="jitter")


def camera(eye, target, width=64, height=48, focal=60.0) -> Cameras:
    pose = look_at(torch.tensor([eye]), torch.tensor([target]), torch.zeros(1))
    K = torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]])
    return Cameras(pose, K, width, height)


def solids(boxes=0, **columns) -> Solids:
    count = len(columns["center"])
    rest = {
        "axes": torch.eye(3).repeat(count, 1, 1),
        "quadric": torch.tensor([[1.0, 0.0, 1.0]]).repeat(count, 1),
        "material": torch.zeros(count, dtype=torch.long),
        "object_id": torch.arange(count),
        "uv_offset": torch.zeros(count, 2),
    }
    rest.update({name: torch.as_tensor(value, dtype=torch.float32) for name, value in columns.items()})
    return Solids(boxes=boxes, radius=rest["half"].norm(dim=-1), **rest)


# ------------------------------------------------------------------------------------------------ geometry


def test_depth_agrees_between_views(sample):
    """A pixel's point, sent into another view along that view's own ray, is met there at the same depth."""
    scene = make_scene(sample.seed, style=sample.style, difficulty=0.5)
    points = sample.cameras.unproject(sample.depth)[0].reshape(-1, 3)
    points = points[~sample.sky[0].flatten()][::7]
    uv, z = sample.cameras[1].project(points)
    width, height = sample.cameras.size
    inside = (z[0] > 0.05) & (uv[0] > 0).all(-1) & (uv[0, :, 0] < width) & (uv[0, :, 1] < height)
    if int(inside.sum()) < 30:
        pytest.skip("these two views share too little")
    points, z = points[inside], z[0, inside]
    eye = sample.cameras.centers[1]
    t, _ = scene.solids.nearest(eye[None, :, None], (points - eye).T[None].contiguous())
    behind = scene.backdrop.trace(eye.expand_as(points), points - eye, t[0])
    first = torch.minimum(t[0], behind)
    # Along these rays the point is at t = 1: nothing may be met later than that; what is met earlier occludes it.
    # (But for rays that graze an edge, which rounding may let slip past.)
    assert float((first < 1 + 1e-3).float().mean()) > 0.995
    visible = (first - 1).abs() < 0.01
    assert visible.float().mean() > 0.15
    error = (first[visible] - 1).abs()
    assert float(error.quantile(0.99)) < 2e-4


def test_pixels_of_two_views_agree(sample):
    """The same through the depth maps alone: where nothing occludes, reprojected depths match to a pixel's slope."""
    points = sample.cameras[:1].unproject(sample.depth[:1]).reshape(-1, 3)[~sample.sky[0].flatten()]
    uv, z = sample.cameras[2].project(points)
    width, height = sample.cameras.size
    pixel = uv[0].floor().long()
    ok = (z[0] > 0) & (pixel >= 0).all(-1) & (pixel[:, 0] < width) & (pixel[:, 1] < height)
    seen = sample.depth[2][pixel[ok, 1], pixel[ok, 0]]
    relative = (z[0][ok] - seen).abs() / z[0][ok]
    # Floors at grazing angles change by a few per cent from pixel to pixel.
    assert float((relative[relative < 0.1]).median()) < 0.02
    assert float((relative < 0.03).float().mean()) > 0.2


def test_sphere_and_plane_have_closed_forms():
    scene = make_scene(0, style="street")
    radius, center = 0.7, torch.tensor([0.3, 3.0, 1.2])
    ball = solids(center=center[None], half=[[radius] * 3])
    flat = Ground(torch.zeros(0), torch.zeros(0, 2), torch.zeros(0), 100.0, torch.tensor([0]))
    scene = type(scene)(**{**vars_of(scene), "solids": ball, "backdrop": flat})
    view = camera([0.0, 0.0, 1.5], [0.2, 3.0, 1.0])
    _, geometry = render_radiance(scene, view)
    directions, origins = (x.double() for x in view.rays())
    d, o = directions[0], origins[0]
    oc = o - center.double()
    a, b, c = (d * d).sum(-1), (d * oc).sum(-1), (oc * oc).sum() - radius**2
    disc = b * b - a * c
    sphere = torch.where(disc > 0, (-b - disc.clamp_min(0).sqrt()) / a, torch.inf)
    plane = torch.where(d[..., 2] < 0, -o[2] / d[..., 2], torch.inf)
    expected = torch.minimum(sphere, plane)
    rim = (disc.abs() < 1e-3 * b * b) | (expected > 90)
    expected = expected.masked_fill(expected.isinf(), 0.0)
    assert (disc > 0).sum() > 300
    error = ((geometry.depth[0].double() - expected).abs() / expected.clamp_min(1e-3))[~rim]
    assert float(error.max()) < 1e-5
    on_ball = (sphere < plane) & ~rim
    normal = (o + sphere[..., None] * d - center.double()) / radius
    assert float((geometry.normals[0].double() - normal)[on_ball].abs().max()) < 1e-4
    on_plane = (plane < sphere) & ~geometry.sky[0]
    assert torch.equal(geometry.normals[0][on_plane], torch.tensor([0.0, 0.0, 1.0]).expand(int(on_plane.sum()), 3))


def vars_of(record) -> dict:
    from dataclasses import fields

    return {f.name: getattr(record, f.name) for f in fields(record)}


def test_box_cylinder_dome_and_cone_from_above():
    """A ray straight down meets each solid at its top."""
    half = torch.tensor([0.5, 0.5, 1.0])
    quadric = [[1, 0, 1], [0, 0, 1], [0.25, 0.5, 0.75], [0, 0.5, 0.5], [1, 0, 1]]
    center = [[x, 0.0, 1.0] for x in (0.0, 2.0, 4.0, 6.0, 8.0)]
    things = solids(boxes=1, center=center, half=half.repeat(5, 1), quadric=quadric)
    origins = torch.tensor([[x + 0.1, 0.0, 5.0] for x in (0.0, 2.0, 4.0, 6.0, 8.0)])[..., None]
    down = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1).expand(5, 3, 1).contiguous()
    t, index = things.nearest(origins, down)
    r = 0.1 / 0.5
    heights = [2.0, 2.0, 2 * math.sqrt(1 - r * r), 2 * (1 - r * r), 1 + math.sqrt(1 - r * r)]
    assert torch.allclose(5 - t[:, 0], torch.tensor(heights), atol=1e-5)
    assert index[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_terrain_is_met_on_its_surface():
    scene = make_scene(5, style="ruins")
    ground = scene.backdrop
    assert isinstance(ground, Ground) and len(ground.amplitude) == 4
    generator = torch.Generator().manual_seed(0)
    origins = torch.rand(4000, 3, generator=generator) * torch.tensor([8.0, 8.0, 1.0]) + torch.tensor([-4.0, -4.0, 1.5])
    directions = torch.nn.functional.normalize(torch.randn(4000, 3, generator=generator), dim=-1)
    t = ground.trace(origins, directions, torch.full((4000,), torch.inf))
    hit = t.isfinite()
    points = (origins + t[:, None] * directions)[hit]
    assert hit.float().mean() > 0.3
    assert float((points[:, 2] - ground.height(points[:, :2])).abs().max()) < 2e-4


def test_normals_are_unit_and_face_the_camera(sample):
    surface = ~sample.sky
    assert torch.allclose(sample.normals[surface].norm(dim=-1), torch.ones(int(surface.sum())), atol=1e-4)
    toward_surface, _ = sample.cameras.rays()
    facing = (sample.normals * toward_surface).sum(-1)[surface]
    assert float((facing < 1e-3).float().mean()) > 0.999
    assert not sample.normals[sample.sky].any()


def test_normals_match_the_depth(sample):
    """Cross products of neighbouring points give the same normals, away from outlines."""
    points = sample.cameras.unproject(sample.depth)
    across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    numeric = torch.nn.functional.normalize(torch.linalg.cross(down, across), dim=-1)
    ids, n = sample.object_ids, sample.normals
    inner = torch.ones_like(ids[:, 1:-1, 1:-1], dtype=torch.bool) & ~sample.sky[:, 1:-1, 1:-1]
    for r, c in ((0, 1), (2, 1), (1, 0), (1, 2)):
        inner &= ids[:, r : r + ids.shape[1] - 2, c : c + ids.shape[2] - 2] == ids[:, 1:-1, 1:-1]
        shifted = n[:, r : r + ids.shape[1] - 2, c : c + ids.shape[2] - 2]
        inner &= (shifted * n[:, 1:-1, 1:-1]).sum(-1) > 0.995
    agreement = (numeric * n[:, 1:-1, 1:-1]).sum(-1)[inner]
    assert len(agreement) > 1000
    assert float((agreement > 0.99).float().mean()) > 0.97


def test_sky_is_where_nothing_is_met(sample):
    assert torch.equal(sample.sky, sample.depth == 0)
    assert torch.equal(sample.sky, sample.object_ids == -1)
    assert (sample.depth[~sample.sky] > 0.02).all()
    assert torch.isfinite(sample.depth).all() and torch.isfinite(sample.images).all()


def test_rooms_have_sky_only_behind_windows():
    scene = make_scene(3, style="office")
    assert isinstance(scene.backdrop, Room)
    closed = Room(scene.backdrop.low, scene.backdrop.high, scene.backdrop.openings[:0], scene.backdrop.materials)
    shut = type(scene)(**{**vars_of(scene), "backdrop": closed})
    eye = [0.5 * (a + b) for a, b in zip(scene.stage_low, scene.stage_high, strict=True)]
    wall, first, last, low, high = scene.backdrop.openings[0].tolist()
    at = [(scene.backdrop.low, scene.backdrop.high)[int(wall) % 2][int(wall) // 2].item(), (first + last) / 2]
    target = [*(at if wall < 2 else at[::-1]), (low + high) / 2]
    view = camera(eye, target)
    assert render_radiance(scene, view)[1].sky.float().mean() > 0.01
    assert not render_radiance(shut, view)[1].sky.any()


def test_geometry_does_not_depend_on_the_resolution():
    """Pixel (r, c) at W x H has the same centre as the middle of 3 x 3 pixels at 3 W x 3 H."""
    scene = make_scene(4, style="tabletop")
    small = sample_cameras(scene, 2, 0, 50, 37)
    coarse = render_views(scene, small)
    fine = render_views(scene, small.scaled(width=150, height=111))
    middle = (slice(None), slice(1, None, 3), slice(1, None, 3))
    same = (fine.depth[middle] - coarse.depth).abs() <= 1e-4 * coarse.depth
    assert same.float().mean() > 0.998  # rays through an outline may fall to either side
    assert (fine.object_ids[middle] == coarse.object_ids).float().mean() > 0.998


# ------------------------------------------------------------------------------------------------ cameras


def test_cameras_are_proper(sample):
    R = sample.cameras.cam_from_world[:, :3, :3].double()
    assert torch.allclose(R @ R.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(4, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(R), torch.ones(4, dtype=torch.float64), atol=1e-5)
    scene = make_scene(sample.seed, style=sample.style, difficulty=0.5)
    centers = sample.cameras.centers
    assert (scene.solids.clearance(centers.T[None].contiguous(), 0.5) > 0.02).all()
    assert (scene.backdrop.clearance(centers) > 0.02).all()
    fov = torch.rad2deg(sample.cameras.fov.amax(-1))
    assert (fov > 29.9).all() and (fov < 90.1).all()


@pytest.mark.parametrize(("difficulty", "bound"), [(0.0, 0.4), (1.0, 0.2), (0.5, 0.6)])
def test_views_hang_together_at_the_bound(difficulty, bound):
    """A tree of links, each at or above the bound in both directions, joins all views."""
    explicit = bound if difficulty == 0.5 else None
    for seed in range(4):
        made = make_sample(seed, 4, 64, 64, difficulty=difficulty, min_covisibility=explicit, edge_samples=0)
        shared = covisibility(made)
        assert torch.allclose(shared.diagonal(), torch.ones(4), atol=1e-3)
        link = torch.minimum(shared, shared.T) >= bound
        joined = {0}
        for _ in range(3):
            joined |= {j for i in joined for j in range(4) if link[i, j]}
        assert joined == {0, 1, 2, 3}, f"seed {seed} ({made.style}): {shared}"


def test_easy_scenes_have_large_baselines():
    ratios = []
    for seed in range(16):
        made = make_sample(seed, 4, 40, 40, difficulty=0.0, edge_samples=0)
        apart = torch.cdist(made.cameras.centers, made.cameras.centers)[0, 1:].mean()
        ratios.append(float(apart / made.depth[made.depth > 0].median()))
    assert np.median(ratios) > 0.3


@pytest.mark.parametrize("motion", ["orbit", "walk", "jitter", "overhead"])
def test_every_motion_gives_the_asked_views(motion):
    scene = make_scene(2, style="garden")
    cameras = sample_cameras(scene, 3, 1, 70, 98, motion=motion, fov_deg=(40, 40))
    assert len(cameras) == 3 and cameras.size == (70, 98)
    assert math.degrees(float(cameras.fov[0, 1])) == pytest.approx(40, abs=0.01)  # across the longer side


def test_overhead_cameras_look_down_and_are_turned_anyhow():
    down, rolls = [], []
    for seed in range(6):
        scene = make_scene(seed, style="tabletop")
        R = sample_cameras(scene, 2, 1, 70, 98, motion="overhead").cam_from_world[:, :3, :3]
        down.append(-R[:, 2, 2])  # the world's z is up
        rolls.append(torch.atan2(R[:, 0, 2], -R[:, 1, 2]))  # of the world's up in the picture
    assert float(torch.cat(down).min()) > 0.6 and float(torch.cat(down).mean()) > 0.8
    assert float(torch.cat(rolls).std()) > 1


# ------------------------------------------------------------------------------------------------ pictures and seeds


def test_one_seed_one_picture():
    first, again = (make_sample(8, 2, 48, 48, style="kitchen") for _ in range(2))
    assert torch.equal(first.images, again.images) and torch.equal(first.depth, again.depth)
    assert torch.equal(first.cameras.cam_from_world, again.cameras.cam_from_world)
    other = make_sample(9, 2, 48, 48, style="kitchen")
    assert float((first.images - other.images).abs().mean()) > 0.02


def test_pictures_are_photographs(sample):
    assert sample.images.min() >= 0 and sample.images.max() <= 1
    assert 0.15 < float(sample.images.mean()) < 0.85
    assert float(sample.images.std()) > 0.08
    # Neighbouring pixels are alike but not equal: texture, not noise and not flat paint.
    gray = sample.images.mean(1)
    a, b = gray[:, :, 1:].flatten(), gray[:, :, :-1].flatten()
    correlation = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
    assert 0.6 < correlation < 0.999


def test_held_out_styles_are_apart():
    assert not set(TRAIN_STYLES) & set(HELD_OUT_STYLES)
    assert {make_scene(seed).style for seed in range(40)} <= set(TRAIN_STYLES)
    train, held_out = make_scene(0), make_scene(0, style=HELD_OUT_STYLES[0])
    assert not torch.equal(train.bank.texels, held_out.bank.texels)


def test_difficulty_adds_things():
    counts = [np.mean([len(make_scene(s, style="ruins", difficulty=d).solids) for s in range(6)]) for d in (0.0, 1.0)]
    assert counts[1] > 1.2 * counts[0]


def test_photo_effects_keep_the_range_and_do_what_they_say():
    generator = torch.Generator().manual_seed(0)
    radiance = torch.rand(2, 3, 40, 56, generator=generator) ** 3 * 20
    for seed in range(12):
        settings = PhotoSettings.draw(seed, 2, difficulty=1.0)
        picture = photograph(radiance, settings, seed)
        assert picture.shape == radiance.shape and picture.min() >= 0 and picture.max() <= 1
        assert torch.isfinite(picture).all()
    plain = PhotoSettings((0.0, 1.0), ((1.0, 1.0),) * 2, 0.0, (0.0, 0.0), 0.0, 0.0, 1.0, 1.0, 0)
    same = radiance[:1].repeat(2, 1, 1, 1)
    normal, brighter = photograph(same, plain, 0)
    ratio = brighter[normal < 0.6] / normal[normal < 0.6].clamp_min(1e-3)
    assert float(ratio.median()) == pytest.approx(math.sqrt(2), rel=0.01)  # one stop through gamma 2


def test_jpeg_loses_more_at_lower_quality_and_keeps_the_mean():
    x = make_sample(1, 1, 70, 51, style="office").images
    errors = [float((jpeg(x, quality) - x).square().mean()) for quality in (95, 60, 25)]
    assert errors[0] < errors[1] < errors[2]
    assert errors[0] < 5e-4
    assert jpeg(x, 60).shape == x.shape
    assert torch.allclose(jpeg(x, 60).mean((-1, -2)), x.mean((-1, -2)), atol=0.02)


def test_user_photographs_become_textures(tmp_path):
    import cv2

    for index in range(2):
        picture = np.zeros((120, 160, 3), np.uint8)
        picture[..., 2 - index] = 250
        cv2.imwrite(str(tmp_path / f"{index}.png"), picture)
    scene = make_scene(1, style="gallery", photos=tmp_path)
    assert len(scene.bank.photo_layers) > 0
    used = set(scene.materials.layer.tolist()) & set(scene.bank.photo_layers)
    assert used
    colors = scene.bank.mean[list(scene.bank.photo_layers)]
    assert (colors.amax(-1) > 0.9).all() and (colors.amin(-1) < 1e-3).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_scene(0, style="castle"), "unknown style 'castle'"),
        (lambda: make_scene(0, difficulty=1.5), "difficulty must lie in"),
        (lambda: sample_cameras(make_scene(0), 0, 0, 32, 32), "at least one view"),
        (lambda: sample_cameras(make_scene(0), 2, 0, 32, 32, motion="fly"), "motion must be one of"),
        (lambda: sample_cameras(make_scene(0), 2, 0, 32, 32, min_covisibility=1.0), "min_covisibility must lie"),
        (lambda: render_views(make_scene(0), camera([0, 0, 1.0], [1.0, 0, 1]).without_poses()), "needs poses"),
        (lambda: make_scene(0, photos="/nowhere"), "no .jpg"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call()
