"""Depth and point metrics against closed forms, numpy and a brute-force search."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from da3gs.errors import InputError
from da3gs.metrics import shape
from da3gs.metrics.shape import DEPTH_ALIGNMENTS, depth_metrics, nearest_distances, point_metrics


def _depth(seed: int, views: int = 2) -> torch.Tensor:
    return 1 + 4 * torch.rand(views, 12, 15, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ depth


def test_hand_computed_depths():
    target = torch.tensor([[[1.0, 2.0], [4.0, 10.0]]])
    predicted = torch.tensor([[[1.0, 3.0], [4.8, 5.0]]])  # ratios 1, 1.5, 1.2, 2
    metrics = depth_metrics(predicted, target, alignment="none")
    assert metrics.abs_rel == pytest.approx((0 + 0.5 + 0.2 + 0.5) / 4)
    assert metrics.rmse == pytest.approx(math.sqrt((0 + 1 + 0.64 + 25) / 4))
    assert metrics.log10 == pytest.approx((math.log10(1.5) + math.log10(1.2) + math.log10(2)) / 4)
    assert (metrics.delta1, metrics.delta2, metrics.delta3) == (0.5, 0.75, 0.75)  # below 1.25, 1.5625, 1.953
    assert metrics.scales == (1.0,) and metrics.shifts == (0.0,) and metrics.valid_pixels == 4


def test_delta_thresholds_are_strict():
    target = torch.ones(1, 1, 2)
    metrics = depth_metrics(torch.tensor([[[1.25, 0.8]]]), target, alignment="none")
    assert metrics.delta1 <= 0.5  # 1.25 itself is outside (1 / 0.8 rounds to either side)
    assert metrics.delta2 == 1.0


@pytest.mark.parametrize(
    ("alignment", "scale", "shift"),
    [("median", 2.5, 0.0), ("scale", 2.5, 0.0), ("scale_shift", 2.5, 0.7), ("scale_shift_ransac", 2.5, 0.7)],
)
@pytest.mark.parametrize("per_view", [True, False])
def test_each_alignment_undoes_what_it_names(alignment, scale, shift, per_view):
    predicted = _depth(0)
    metrics = depth_metrics(predicted, scale * predicted + shift, alignment=alignment, per_view=per_view)
    assert metrics.scales == pytest.approx((scale, scale), rel=1e-5)
    assert metrics.shifts == pytest.approx((shift, shift), abs=1e-5)
    assert metrics.abs_rel < 1e-5 and metrics.rmse < 1e-4 and metrics.log10 < 1e-5 and metrics.delta1 == 1.0


def test_median_and_least_squares_scales_are_numpys():
    predicted, target = _depth(1, views=1), _depth(2, views=1)
    p, t = predicted.double().numpy(), target.double().numpy()
    assert depth_metrics(predicted, target, alignment="median").scales[0] == pytest.approx(np.median(t) / np.median(p))
    assert depth_metrics(predicted, target, alignment="scale").scales[0] == pytest.approx((p * t).sum() / (p * p).sum())
    fit = depth_metrics(predicted, target, alignment="scale_shift")
    slope, offset = np.polyfit(p.ravel(), t.ravel(), 1)
    assert (fit.scales[0], fit.shifts[0]) == pytest.approx((slope, offset))
    aligned = slope * p + offset
    assert fit.rmse == pytest.approx(np.sqrt(((aligned - t) ** 2).mean()))
    assert fit.abs_rel == pytest.approx((np.abs(aligned - t) / t).mean())


def test_ransac_ignores_outliers_that_bend_least_squares():
    predicted = _depth(3, views=1)
    target = 2 * predicted + 1
    target[:, :3] = 60.0
    mask = torch.ones_like(target, dtype=torch.bool)
    robust = depth_metrics(predicted, target, mask=mask, alignment="scale_shift_ransac")
    plain = depth_metrics(predicted, target, mask=mask, alignment="scale_shift")
    assert robust.scales[0] == pytest.approx(2, rel=1e-4) and robust.delta1 == pytest.approx(0.75)
    assert plain.delta1 < 0.5


def test_one_alignment_for_all_views_keeps_their_relative_scale():
    predicted = _depth(4)
    target = predicted * torch.tensor([1.0, 3.0])[:, None, None]
    each = depth_metrics(predicted, target, alignment="median")
    together = depth_metrics(predicted, target, alignment="median", per_view=False)
    assert each.abs_rel < 1e-6 and each.scales == pytest.approx((1.0, 3.0), rel=1e-5)
    assert together.scales[0] == together.scales[1] and together.abs_rel > 0.2


def test_views_weigh_the_same_whatever_their_valid_pixels():
    target = torch.ones(2, 4, 4)
    predicted = torch.stack([torch.full((4, 4), 1.1), torch.full((4, 4), 1.4)])
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0], mask[1, 0, 0] = True, True
    metrics = depth_metrics(predicted, target, mask=mask, alignment="none")
    assert metrics.abs_rel == pytest.approx((0.1 + 0.4) / 2, rel=1e-5) and metrics.valid_pixels == 17


def test_unmeasured_and_masked_pixels_do_not_count():
    predicted, target = _depth(5), _depth(5)
    target[0, 0, 0] = 0.0  # not measured
    predicted[0, 0, 0] = float("nan")
    target[1, 2, 3] = float("nan")
    mask = torch.isfinite(target)
    metrics = depth_metrics(predicted, target, mask=mask, alignment="scale_shift")
    assert metrics.abs_rel < 1e-6 and metrics.valid_pixels == 2 * 180 - 2


def test_depths_under_zero_after_alignment_stay_finite():
    predicted = torch.tensor([[[-2.0, 1.0, 2.0, 3.0]]])
    metrics = depth_metrics(predicted, torch.tensor([[[1.0, 1.0, 2.0, 3.0]]]), alignment="none")
    assert metrics.clamped_pixels == 1
    assert metrics.abs_rel == pytest.approx(0.25, abs=1e-6) and metrics.log10 == pytest.approx(1.5)
    json.dumps(dataclasses.asdict(metrics), allow_nan=False)


@given(st.floats(1e-6, 1e6))
def test_scaled_depths_score_the_same_after_median_alignment(unit):
    predicted, target = _depth(6), _depth(7)
    here, there = depth_metrics(predicted, target), depth_metrics(predicted.double() * unit, target.double())
    for name in ("abs_rel", "rmse", "log10", "delta1"):
        assert getattr(there, name) == pytest.approx(getattr(here, name), rel=1e-4)


def test_bad_depths_are_refused():
    predicted, target = _depth(8), _depth(9)
    with pytest.raises(InputError, match=f"known: {', '.join(DEPTH_ALIGNMENTS)}"):
        depth_metrics(predicted, target, alignment="least_squares")
    damaged = predicted.clone()
    damaged[1, 0, 0] = float("inf")
    with pytest.raises(InputError, match="predicted depth of view 1 holds NaN or infinity"):
        depth_metrics(damaged, target)
    with pytest.raises(InputError, match=r"target depth of view 1 .* mask=torch.isfinite"):
        depth_metrics(predicted, damaged)
    mask = torch.ones_like(target, dtype=torch.bool)
    mask[0] = False
    with pytest.raises(InputError, match="view 0 has no valid pixel"):
        depth_metrics(predicted, target, mask=mask)
    with pytest.raises(InputError, match="view 0 has no valid pixel"):
        depth_metrics(predicted, torch.zeros_like(target))


def test_depths_of_other_shapes_are_refused(without_shape_checks):
    predicted = _depth(8)
    for target in (predicted[0], predicted[:1], predicted[:, 1:]):
        with pytest.raises(InputError, match="two equal stacks"):
            depth_metrics(predicted, target)
    with pytest.raises(InputError, match=r"mask must be \[2, 12, 15\]"):
        depth_metrics(predicted, predicted, mask=torch.ones(12, 15, dtype=torch.bool))


# ------------------------------------------------------------------------------------------------ points


def test_hand_computed_points():
    predicted = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 5, 0]])
    target = torch.tensor([[0.0, 0, 0.1], [1, 0, 0.2]])
    metrics = point_metrics(predicted, target, threshold=0.15)
    far = math.sqrt(25 + 0.01)
    assert metrics.accuracy == pytest.approx((0.1 + 0.2 + far) / 3, rel=1e-6)
    assert metrics.completeness == pytest.approx(0.15, rel=1e-6)
    assert metrics.chamfer == pytest.approx((metrics.accuracy + metrics.completeness) / 2)
    assert metrics.precision == pytest.approx(1 / 3) and metrics.recall == 0.5
    assert metrics.f_score == pytest.approx(2 * (1 / 3) * 0.5 / (1 / 3 + 0.5))
    json.dumps(dataclasses.asdict(metrics), allow_nan=False)


def test_a_shifted_grid_is_its_shift_away():
    axis = torch.arange(6.0)
    grid = torch.cartesian_prod(axis, axis, axis)
    metrics = point_metrics(grid + torch.tensor([0.0, 0.3, 0.0]), grid, threshold=0.25)
    assert metrics.accuracy == pytest.approx(0.3, rel=1e-5) and metrics.completeness == pytest.approx(0.3, rel=1e-5)
    assert metrics.f_score == 0.0
    assert point_metrics(grid, grid, threshold=1e-9).f_score == 1.0


def test_swapping_the_sets_swaps_the_roles():
    a = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    b = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    one, other = point_metrics(a, b, 0.2), point_metrics(b, a, 0.2)
    assert (one.accuracy, one.precision) == (other.completeness, other.recall)
    assert one.f_score == pytest.approx(other.f_score) and one.chamfer == pytest.approx(other.chamfer)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_both_searches_give_the_brute_force_distances(monkeypatch, offset):
    monkeypatch.setattr(shape, "_BLOCK", 1000)  # many blocks
    points = torch.randn(157, 3, generator=torch.Generator().manual_seed(2)).double() + offset
    others = torch.randn(90, 3, generator=torch.Generator().manual_seed(3)).double() + offset
    expected = (points[:, None] - others[None]).norm(dim=-1).amin(1)
    assert torch.allclose(shape._nearest_by_blocks(points, others), expected, atol=1e-5)
    pytest.importorskip("scipy")
    assert torch.allclose(shape._nearest_by_tree(points, others), expected, atol=1e-12)


def test_points_need_no_scipy(monkeypatch):
    a, b = torch.rand(50, 3), torch.rand(40, 3)
    expected = nearest_distances(a, b)
    monkeypatch.setattr(shape, "find_spec", lambda name: None)
    monkeypatch.setattr(shape, "_nearest_by_tree", None)
    assert torch.allclose(nearest_distances(a, b), expected, atol=1e-6)


def test_bad_points_are_refused():
    points = torch.zeros(2, 3)
    for predicted, target, message in (
        (points[:0], points, r"need predicted points \[N, 3\], N >= 1; got \[0, 3\]"),
        (points, points[:0], "need target points"),
        (torch.full((1, 3), float("nan")), points, "predicted points hold NaN"),
    ):
        with pytest.raises(InputError, match=message):
            point_metrics(predicted, target, 0.1)
    for threshold in (0.0, float("nan")):
        with pytest.raises(InputError, match="threshold must be > 0"):
            point_metrics(points, points, threshold)
