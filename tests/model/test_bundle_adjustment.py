"""Bundle adjustment: planted cameras and points come back, and its equations are those of its cost."""

import pytest
import torch
from strategies_geometry import generator

from da3gs.geometry.rotations import cross_matrix, rotation_angle
from da3gs.model.bundle_adjustment import Sightings, _Problem, bundle_adjust, sightings_from_matches
from da3gs.model.match_adjustment import Cameras64

WIDTH, HEIGHT, FOCAL = 196, 140, 180.0


def planted(views=4, points=60, *, seed=0, baseline=0.6, pixel_error=0.0, depth_error=0.0, wrong=0.0):
    """True cameras around a cloud at z = 3, their K, the cloud, and its sightings: every point by two views or more."""
    rng = generator(seed)

    def random(*shape):
        return torch.rand(*shape, generator=rng, dtype=torch.float64)

    cloud = random(points, 3) * torch.tensor([2.0, 1.5, 2.0]) + torch.tensor([-1.0, -0.75, 2.0])
    turns, centres = 0.3 * random(views, 3) - 0.15, baseline * (2 * random(views, 3) - 1)
    turns[0], centres[0] = 0, 0
    R = torch.linalg.matrix_exp(cross_matrix(turns))
    t = -(R @ centres[..., None])[..., 0]
    K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64).repeat(
        views, 1, 1
    )
    local = torch.einsum("vij,nj->nvi", R, cloud) + t
    seen = random(points, views) < 0.7
    seen[:, :2] = True
    point, view = seen.nonzero().unbind(1)
    x = FOCAL * local[..., :2] / local[..., 2:] + K[0, :2, 2]
    x = x[point, view] + pixel_error * torch.randn(len(point), 2, generator=rng, dtype=torch.float64)
    lost = random(len(point)) < wrong
    x[lost] = random(int(lost.sum()), 2) * WIDTH
    spoilt = torch.exp(depth_error * torch.randn(len(point), generator=rng, dtype=torch.float64))
    ones = torch.ones(len(point), dtype=torch.float64)
    sightings = Sightings(point, view, x, local[point, view, 2] * spoilt, 0.3 * ones, ones)
    cameras = Cameras64(R, t, torch.zeros(views, dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    return cameras, K, cloud, sightings


def disturbed(cameras: Cameras64, size: float, seed=1) -> Cameras64:
    step = size * torch.randn(7 * len(cameras.R) + 1, generator=generator(seed), dtype=torch.float64)
    step[:7], step[-1] = 0, 0
    return cameras.moved(step)


def errors(found: Cameras64, true: Cameras64) -> tuple[float, float]:
    """Largest error of rotations in degrees, and of centres after the one scale that fits them best."""
    a, b = (-(cameras.R.transpose(1, 2) @ cameras.t[..., None])[..., 0] for cameras in (found, true))
    scale = (a * b).sum() / a.square().sum()
    return float(torch.rad2deg(rotation_angle(found.R, true.R)).max()), float((scale * a - b).norm(dim=1).max())


def test_planted_cameras_and_points_come_back_exactly():
    true, K, cloud, seen = planted()
    result = bundle_adjust(disturbed(true, 0.05), K, seen, focal_sigma=0.0)
    turn, shift = errors(result.cameras, true)
    assert turn < 1e-3 and shift < 1e-5
    ratio = result.points / cloud  # one unit for all
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), atol=1e-4, rtol=0)
    # The unit is that of the predicted depth, which was true here.
    assert float(ratio.mean()) == pytest.approx(1, abs=1e-3)
    assert bool(result.well_placed.all()) and float(result.gaps.abs().max()) < 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_noise_wrong_sightings_and_useless_depth_cost_little(seed):
    true, K, _, seen = planted(points=150, seed=seed, pixel_error=0.2, depth_error=0.6, wrong=0.1)
    result = bundle_adjust(disturbed(true, 0.02, seed), K, seen, focal_sigma=0.0)
    turn, shift = errors(result.cameras, true)
    assert turn < 0.5 and shift < 0.02
    # Wrong sightings are told from right ones: hardly any of their points counts as well placed.
    clean = planted(points=150, seed=seed)[3]
    off = (seen.x - clean.x).norm(dim=1) > 3
    assert float(result.well_placed[off].float().mean()) < 0.05 < 0.5 < float(result.well_placed[~off].float().mean())


def test_focal_length_is_found_unless_it_is_given():
    true, K, _, seen = planted(points=150, pixel_error=0.1, depth_error=0.2)
    wrong = K.clone()
    wrong[:, [0, 1], [0, 1]] *= 1.15
    found = bundle_adjust(disturbed(true, 0.02), wrong, seen, focal_sigma=0.2).cameras
    assert float(found.log_focal.exp()) * 1.15 == pytest.approx(1, abs=0.01)
    assert float(bundle_adjust(true, wrong, seen, focal_sigma=0.0).cameras.log_focal) == 0


def test_without_parallax_points_lie_where_depth_says():
    true, K, _, seen = planted(baseline=0.0)
    result = bundle_adjust(disturbed(true, 0.01), K, seen, focal_sigma=0.0)
    assert float(torch.rad2deg(rotation_angle(result.cameras.R, true.R)).max()) < 0.05
    assert float(result.gaps.abs().median()) < 0.1 and not bool(result.well_placed.any())


def test_one_step_is_that_of_the_dense_normal_equations():
    """Points eliminated or not, a step solves (J'WJ + damping) d = -J'Wr; J by differentiation of the residuals."""
    true, K, cloud, seen = planted(views=3, points=12, pixel_error=0.5, depth_error=0.3)
    cameras, points, damping = disturbed(true, 0.02), cloud + 0.01, 1e-3
    problem = _Problem(K, seen, 0.2)
    moved, landed = problem.step(cameras, points, damping)

    def residuals(step):
        state, sites = cameras.moved(step[:22]), points + step[22:].view(-1, 3)
        local = torch.einsum("nij,nj->ni", state.R[seen.view], sites[seen.point]) + state.t[seen.view]
        pixels = FOCAL * state.log_focal.exp() * local[:, :2] / local[:, 2:] + K[0, :2, 2]
        gaps = local[:, 2].log() - seen.depth.log() - state.log_scale[seen.view]
        return torch.cat([((pixels - seen.x) / seen.sigma[:, None]).flatten(), gaps])

    unknowns = 22 + 3 * len(points)
    r = residuals(torch.zeros(unknowns, dtype=torch.float64))
    J = torch.autograd.functional.jacobian(residuals, torch.zeros(unknowns, dtype=torch.float64))
    e, gaps = problem.errors(cameras, points)
    torch.testing.assert_close(e, r[: 2 * len(seen)].view(-1, 2).square().sum(1))
    weight = torch.cat([(1 / (1 + e / 0.7**2)).repeat_interleave(2), 1 / (1 + gaps.square() / 9) / 9])
    prior = torch.zeros(unknowns, dtype=torch.float64)
    prior[6:21:7], prior[21] = 0.08**-2, 0.2**-2
    state = torch.zeros(unknowns, dtype=torch.float64)
    state[6:21:7] = cameras.log_scale
    H = J.T @ (weight[:, None] * J) + prior.diag()
    free = torch.ones(unknowns, dtype=torch.bool)
    free[:6] = False
    A = (H + damping * H.diagonal().diag())[free][:, free]
    step = torch.zeros(unknowns, dtype=torch.float64)
    step[free] = torch.linalg.solve(A, -(J.T @ (weight * r) + prior * state)[free])
    expected = cameras.moved(step[:22])
    torch.testing.assert_close(moved.R, expected.R, atol=1e-7, rtol=0)
    torch.testing.assert_close(moved.t, expected.t, atol=1e-7, rtol=0)
    torch.testing.assert_close(moved.log_scale, expected.log_scale, atol=1e-7, rtol=0)
    torch.testing.assert_close(landed, points + step[22:].view(-1, 3), atol=1e-6, rtol=0)


def test_matches_that_share_places_are_one_point_and_a_view_sees_it_once():
    def places(*pairs):
        return torch.tensor(pairs, dtype=torch.float64)

    # 0-1-2 chain; 3-4 alone; and a chain that comes back to another place of view 0.
    view = torch.tensor([[0, 1], [1, 2], [3, 4], [0, 1], [1, 2], [2, 0]])
    x = places(
        [[1, 1], [2, 2]], [[2, 2], [3, 3]], [[4, 4], [5, 5]], [[6, 6], [7, 7]], [[7, 7], [8, 8]], [[8, 8], [9, 9]]
    )
    depth = torch.arange(12, dtype=torch.float64).view(6, 2) + 1
    seen = sightings_from_matches(view, x, depth, torch.ones(6).double(), torch.ones(6).double())
    found = {}
    for point, who, where in zip(seen.point.tolist(), seen.view.tolist(), seen.x[:, 0].tolist(), strict=True):
        found.setdefault(point, set()).add((who, where))
    expected = [{(0, 1.0), (1, 2.0), (2, 3.0)}, {(3, 4.0), (4, 5.0)}, {(1, 7.0), (2, 8.0)}]
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, expected))
    assert bool((seen.point.diff() >= 0).all()) and seen.points == 3
    assert float(seen.depth[(seen.view == 3)][0]) == 5.0 and float(seen.depth[(seen.view == 4)][0]) == 6.0
