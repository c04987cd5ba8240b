"""Cameras from matches: planted cameras come back from planted matches, and the bundled network's own matches."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from strategies_geometry import generator

from da3gs.data.synthetic import make_sample
from da3gs.errors import InputError
from da3gs.geometry.rotations import cross_matrix, rotation_angle
from da3gs.images import prepare_views
from da3gs.keypoints import find_keypoints
from da3gs.metrics.poses import pose_metrics
from da3gs.model.da3_model import load_model
from da3gs.model.match_adjustment import Cameras64, Observations, _errors, _normal_equations, adjust, agreement
from da3gs.model.match_pose import cameras_from_matches
from da3gs.model.matching import Matches, PairAttention, PlacedKeypoints, keypoints_of
from da3gs.model.pair_pose import relative_pose

WIDTH, HEIGHT, FOCAL = 196, 140, 180.0


def planted(views=3, points=120, *, seed=0, baseline=0.6, depth_error=0.0, wrong=0.0, pixel_error=0.0):
    """True cameras that look at a cloud around z = 3, their K, and what they see of each other in both directions."""
    rng = generator(seed)
    cloud = torch.rand(points, 3, generator=rng, dtype=torch.float64) * torch.tensor([2.0, 1.5, 2.0])
    cloud = cloud + torch.tensor([-1.0, -0.75, 2.0])
    turns = 0.15 * torch.randn(views, 3, generator=rng, dtype=torch.float64)
    centers = baseline * torch.randn(views, 3, generator=rng, dtype=torch.float64)
    turns[0], centers[0] = 0, 0
    R = torch.linalg.matrix_exp(cross_matrix(turns))
    t = -(R @ centers[..., None])[..., 0]
    K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)
    K = K.repeat(views, 1, 1)
    local = torch.einsum("vij,nj->vni", R, cloud) + t[:, None]
    pixels = FOCAL * local[..., :2] / local[..., 2:] + torch.tensor([WIDTH / 2, HEIGHT / 2])
    pixels = pixels + pixel_error * torch.randn(pixels.shape, generator=rng, dtype=torch.float64)
    depth = local[..., 2] * torch.exp(depth_error * torch.randn(views, points, generator=rng, dtype=torch.float64))
    parts = []
    for i in range(views):
        for j in range(views):
            if i == j:
                continue
            y = pixels[j].clone()
            lost = torch.rand(points, generator=rng) < wrong
            y[lost] = torch.rand(int(lost.sum()), 2, generator=rng, dtype=torch.float64) * WIDTH
            full = torch.full((points,), i), torch.full((points,), j)
            ones = torch.ones(points, dtype=torch.float64)
            parts.append(Observations(*full, pixels[i], y, depth[i], 0.5 * ones, ones))
    zero = torch.zeros((), dtype=torch.float64)
    return Cameras64(R, t, torch.zeros(views, dtype=torch.float64), zero), K, Observations.concatenate(parts)


def disturbed(cameras: Cameras64, seed=1, turn=0.15, shift=0.2) -> Cameras64:
    step = torch.randn(7 * len(cameras.R) + 1, generator=generator(seed), dtype=torch.float64)
    scales = torch.tensor([turn] * 3 + [shift] * 3 + [0.0], dtype=torch.float64).repeat(len(cameras.R))
    step[:-1] *= scales
    step[:7], step[-1] = 0, 0
    return cameras.moved(step)


def errors(found: Cameras64, true: Cameras64) -> tuple[float, float]:
    """Largest error in degrees of rotations, and of directions from the first camera's centre."""
    turn = torch.rad2deg(rotation_angle(found.R, true.R)).max()
    a, b = (-(c.R.transpose(1, 2) @ c.t[..., None])[1:, :, 0] for c in (found, true))
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)
    return float(turn), float(torch.rad2deg(cosine.acos()).max())


# ---------------------------------------------------------------- adjustment


def test_normal_equations_are_those_of_the_errors():
    """At matches that fit exactly (there the whitening, which Gauss-Newton holds still, plays no part): errors after a
    small step d are d'Hd, and their gradient is Hd."""
    true, K, observed = planted(depth_error=0.1)
    cameras = disturbed(true)
    exact = replace(observed, y=_landed(cameras, K, observed))
    H, gradient = _normal_equations(cameras, K, exact, 1e6)
    assert float(gradient.abs().max()) < 1e-6
    for seed in range(30):
        step = torch.randn(22, generator=generator(seed), dtype=torch.float64)
        if seed < 22:
            step = torch.eye(22, dtype=torch.float64)[seed]
        step *= 1e-5
        moved = cameras.moved(step)
        assert float(_errors(moved, K, exact).sum()) == pytest.approx(float(step @ H @ step), rel=1e-3)
        _, after = _normal_equations(moved, K, exact, 1e6)
        torch.testing.assert_close(after, H @ step, atol=1e-3 * float((H @ step).abs().max()), rtol=0)


def _landed(cameras: Cameras64, K, observed):
    """Where every match lands exactly."""
    X = torch.cat([(observed.x - K[0, :2, 2]) / FOCAL, torch.ones_like(observed.x[:, :1])], 1) * observed.depth[:, None]
    world = torch.einsum("nji,nj->ni", cameras.R[observed.i], X - cameras.t[observed.i])
    Z = torch.einsum("nij,nj->ni", cameras.R[observed.j], world) + cameras.t[observed.j]
    return FOCAL * Z[:, :2] / Z[:, 2:] + K[0, :2, 2]


@pytest.mark.parametrize("seed", range(4))
def test_planted_cameras_come_back_in_spite_of_bad_depth_and_wrong_matches(seed):
    true, K, observed = planted(seed=seed, depth_error=0.25, wrong=0.3, pixel_error=0.2)
    found, _ = adjust(disturbed(true, seed, 0.05, 0.1), K, observed, focal_sigma=0.0)
    turn, direction = errors(found, true)
    assert turn < 0.8 and direction < 1.5
    agreed = [agreement(cameras, K, observed) for cameras in (found, true)]
    assert float((agreed[0] - agreed[1]).abs().mean()) < 0.1 and 0.3 < float(agreed[0].mean()) < 0.7


def test_focal_length_is_corrected():
    true, K, observed = planted(views=4, points=200, pixel_error=0.1, depth_error=0.2)
    wrong = K.clone()
    wrong[:, [0, 1], [0, 1]] *= 1.3
    found, _ = adjust(disturbed(true, turn=0.05, shift=0.05), wrong, observed, focal_sigma=0.3)
    assert float(found.log_focal.exp()) * 1.3 == pytest.approx(1, abs=0.03)
    kept, _ = adjust(disturbed(true, turn=0.05, shift=0.05), wrong, observed, focal_sigma=0.0)
    assert float(kept.log_focal) == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_pair_far_apart_needs_no_depth(seed):
    """A flat guess of the depth of a cloud three deep, 40 degrees between the views, a quarter of the matches wrong."""
    rng = generator(seed)
    cloud = torch.rand(160, 3, generator=rng, dtype=torch.float64) * torch.tensor([3.0, 2.0, 3.0])
    cloud += torch.tensor([-1.5, -1.0, 2.5])
    R = torch.stack([torch.eye(3, dtype=torch.float64)] * 2)
    R[1] = torch.linalg.matrix_exp(cross_matrix(torch.tensor([[0.1, 0.7, 0.05]], dtype=torch.float64)))[0]
    middle = torch.tensor([0.0, 0.0, 4.0], dtype=torch.float64)
    t = torch.stack([torch.zeros(3, dtype=torch.float64), middle - R[1] @ middle])
    K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64).repeat(2, 1, 1)
    local = torch.einsum("vij,nj->vni", R, cloud) + t[:, None]
    x, y = FOCAL * local[..., :2] / local[..., 2:] + K[0, :2, 2]
    wrong = torch.rand(160, generator=rng) < 0.25
    y[wrong] = torch.rand(int(wrong.sum()), 2, generator=rng, dtype=torch.float64) * HEIGHT
    matches = Matches(x, y, torch.full((160,), 0.4), torch.ones(160))
    flat = torch.full((2, HEIGHT, WIDTH), 4.0, dtype=torch.float64)
    pair = relative_pose(0, 1, matches, flat, K, 0.0, generator(0))
    zeros = torch.zeros(3, dtype=torch.float64)
    found = Cameras64(torch.stack([R[0], pair.R]), torch.stack([t[0], pair.t]), zeros[:2], zeros[0])
    turn, direction = errors(found, Cameras64(R, t, zeros[:2], zeros[0]))
    assert turn < 0.5 and direction < 0.5 and pair.sure


def test_cameras_that_only_turn_need_no_parallax():
    true, K, observed = planted(baseline=0.0, depth_error=0.2, pixel_error=0.2)
    found, _ = adjust(disturbed(true, shift=0.0), K, observed, focal_sigma=0.0)
    assert float(torch.rad2deg(rotation_angle(found.R, true.R)).max()) < 0.3
    assert float(found.t.norm(dim=1).max()) < 0.1  # of a depth of 3


# ---------------------------------------------------------------- matches


def _attention(to: torch.Tensor, grid) -> PairAttention:
    """Views whose patch p looks at patch to[p] of the other, and back."""
    count = len(to)
    code = 40 * torch.eye(count)
    return PairAttention(torch.stack([code[to], code]), torch.stack([torch.eye(count)[to], torch.eye(count)]), grid)


def test_patches_that_choose_each_other_match():
    grid = (4, 6)
    to = (torch.arange(24) + 1) % 24  # each patch moves to its right neighbour
    matches = _attention(to, grid).patches()
    moved = matches.x_j - matches.x_i
    inner = matches.x_i[:, 0] < 14 * 5
    assert len(matches) == 48 and torch.allclose(
        moved[inner], torch.tensor([14.0, 0.0]).expand(int(inner.sum()), 2), atol=0.2
    )


def test_keypoints_match_only_where_attention_looks():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (56, 84), dtype=np.uint8)
    import cv2

    found = find_keypoints(cv2.resize(cv2.GaussianBlur(picture, (0, 0), 2), (84, 56)), 200)
    placed = PlacedKeypoints(torch.from_numpy(found.xy), torch.from_numpy(found.descriptors), 1.0)
    assert len(found) > 20
    same = _attention(torch.arange(24), (4, 6)).keypoints(placed, placed)
    assert len(same) > 0.6 * len(found) and float((same.x_i - same.x_j).abs().max()) == 0
    # Attention that looks three columns aside leaves every keypoint without its equal.
    rows, columns = torch.arange(24) // 6, torch.arange(24) % 6
    aside = _attention(rows * 6 + (columns + 3) % 6, (4, 6)).keypoints(placed, placed)
    assert len(aside) < 0.1 * len(found)


def test_keypoints_stand_in_pixels_of_the_processed_pictures():
    picture = torch.full((3, 300, 420), 0.2)
    v, u = torch.meshgrid(torch.arange(300.0), torch.arange(420.0), indexing="ij")
    picture += 0.7 * torch.exp(-((u + 0.5 - 300).square() + (v + 0.5 - 100).square()) / (2 * 9.0**2))
    views = prepare_views([picture], size_px=196)
    (found,) = keypoints_of([picture], views, upright=True)
    expected = torch.tensor([300 * 196 / 420, 100 * 140 / 300])
    assert float((found.xy - expected).norm(dim=1).min()) < 0.3
    assert found.scale == pytest.approx(140 / 300, abs=0.01)


# ---------------------------------------------------------------- the bundled network


@pytest.fixture(scope="module")
def model():
    return load_model("da3-tiny")


def test_bundled_network_finds_cameras_of_unseen_scenes(model):
    """Of three views each: far nearer to the truth than the camera head, which is far nearer than standing still."""
    scores = {"matches": [], "head": []}
    for seed in range(8):
        sample = make_sample(9_300_000 + seed, 3, 196, 140, difficulty=0.3, motion="orbit", edge_samples=0)
        for source, found in scores.items():
            result = model.predict(sample.images, gaussians=False, camera_source=source)
            found.append(pose_metrics(result.cameras, sample.cameras).auc["vggt"]["auc@30"])
    assert np.mean(scores["matches"]) > 0.6 and np.mean(scores["matches"]) > np.mean(scores["head"]) + 0.2


def test_depth_rays_and_cameras_stay_in_one_frame(model):
    sample = make_sample(9_300_001, 3, 196, 140, difficulty=0.3, motion="orbit", edge_samples=0)
    result = model.predict(sample.images, gaussians=False)
    assert result.matched is not None and bool(result.matched.sure.all())
    centres = result.rays[..., 3:].flatten(1, 2)
    assert torch.allclose(centres.mean(1), result.cameras.centers, atol=1e-4)
    again = model.predict(sample.images, gaussians=False)
    assert torch.equal(again.cameras.cam_from_world, result.cameras.cam_from_world)


def test_pictures_of_different_scenes_are_not_tied_together(model):
    """Chance ties a few pairs in a hundred; here none of eight (and cameras are finite all the same)."""
    seeds = range(9_400_000, 9_400_009)
    pictures = [make_sample(seed, 1, 196, 140, difficulty=0.4, edge_samples=0).images[0] for seed in seeds]
    for pair in pairwise(pictures):
        result = model.predict(torch.stack(pair), gaussians=False)
        assert result.matched is None and any("enough in common" in note for note in result.notes)
        assert torch.isfinite(result.cameras.cam_from_world).all()


def test_given_intrinsics_are_kept(model):
    sample = make_sample(9_300_002, 2, 196, 140, difficulty=0.3, motion="orbit", edge_samples=0)
    given = type(sample.cameras)(None, sample.cameras.K, sample.cameras.width, sample.cameras.height)
    result = model.predict(sample.images, given, gaussians=False)
    assert torch.allclose(result.cameras.K, sample.cameras.K, atol=1e-3)


def test_a_network_that_never_learned_to_match_says_so():
    from da3gs.model.network import build_model
    from da3gs.model.presets import preset

    network = build_model(preset("da3-small"), device="meta")
    with pytest.raises(InputError, match="was not trained to match"):
        network(torch.zeros(1, 2, 3, 28, 28), matches=True)


def test_nothing_in_common_gives_none():
    depth = torch.ones(2, 28, 28)
    apart = torch.zeros(2, 4, 8)
    from da3gs.geometry.cameras import Cameras

    cameras = Cameras(
        torch.eye(4).repeat(2, 1, 1), torch.tensor([[30.0, 0, 14], [0, 30, 14], [0, 0, 1]]).repeat(2, 1, 1), 28, 28
    )
    empty = PlacedKeypoints(torch.zeros(0, 2), torch.zeros(0, 128), 1.0)
    assert cameras_from_matches(depth, cameras, apart, apart, [empty, empty]) is None
