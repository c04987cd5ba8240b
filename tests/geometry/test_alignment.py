import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies_geometry import cameras, generator, seeds, similarity

from da3gs import Cameras, Similarity
from da3gs.errors import InputError
from da3gs.geometry import alignment
from da3gs.geometry.rotations import rotation_angle


def _points(seed, count):
    return torch.randn(count, 3, generator=generator(seed), dtype=torch.float64)


@given(seeds, st.integers(3, 40))
def test_umeyama_finds_a_planted_similarity(seed, count):
    planted, source = similarity(seed), _points(seed, count)
    found = alignment.umeyama(source, planted.apply(source))
    assert found.target_from_source.is_close(planted, 1e-7)
    assert found.unobservable == () and found.residuals.max() < 1e-6


@given(seeds)
def test_umeyama_handles_flat_point_sets_without_mirroring(seed):
    planted, source = similarity(seed), _points(seed, 12) * torch.tensor([1.0, 1.0, 0.0])
    found = alignment.umeyama(source, planted.apply(source))
    assert found.target_from_source.is_close(planted, 1e-7) and found.unobservable == ()


@given(seeds)
def test_weights_silence_points(seed):
    planted, source = similarity(seed), _points(seed, 10)
    target = planted.apply(source)
    target[7:] += 5
    weights = torch.ones(10)
    weights[7:] = 0
    found = alignment.umeyama(source, target, weights)
    assert found.target_from_source.is_close(planted, 1e-7)
    assert found.inliers.tolist() == [True] * 7 + [False] * 3


@given(seeds, st.integers(2, 6))
def test_collinear_points_fix_all_but_the_roll(seed, count):
    planted = similarity(seed)
    line = torch.arange(count, dtype=torch.float64)[:, None] * _points(seed, 1) + _points(seed + 1, 1)
    found = alignment.umeyama(line, planted.apply(line))
    assert found.unobservable == (alignment.ROTATION_ABOUT_LINE,)
    assert found.residuals.max() < 1e-7
    assert abs(float(found.target_from_source.scale / planted.scale) - 1) < 1e-7


def test_opposite_lines_turn_by_half_a_turn():
    line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    found = alignment.umeyama(line, -3 * line)
    assert found.residuals.max() < 1e-12
    assert abs(float(rotation_angle(found.target_from_source.rotation, torch.eye(3).double())) - torch.pi) < 1e-6


@pytest.mark.parametrize("count", [1, 4])
def test_coincident_points_fix_the_translation_only(count):
    source = torch.tensor([[1.0, 2, 3]]).expand(count, 3)
    found = alignment.umeyama(source, source + 4)
    assert found.unobservable == (alignment.SCALE, alignment.ROTATION)
    assert found.target_from_source.is_close(Similarity(1.0, torch.eye(3), torch.full((3,), 4.0)), 1e-6)


@settings(max_examples=8)  # a search of its own each
@given(seeds)
def test_ransac_survives_forty_percent_outliers(seed):
    planted, source = similarity(seed), _points(seed, 30)
    target = planted.apply(source) + 1e-3 * planted.scale * _points(seed + 1, 30)
    target[:12] += 3 * planted.scale * (1 + _points(seed + 2, 12).abs())
    found = alignment.ransac_umeyama(source, target, iterations=60, seed=1)
    assert not found.inliers[:12].any() and found.inliers[12:].float().mean() > 0.7
    assert rotation_angle(found.target_from_source.rotation, planted.rotation) < 5e-3
    assert abs(float(found.target_from_source.scale / planted.scale) - 1) < 5e-3
    again = alignment.ransac_umeyama(source, target, iterations=60, seed=1)
    assert torch.equal(again.target_from_source.matrix, found.target_from_source.matrix)


@settings(max_examples=8)  # a search of its own each
@given(seeds, st.integers(3, 8))
def test_cameras_align_to_a_planted_similarity(seed, views):
    planted, source = similarity(seed), cameras(seed, views)
    found = alignment.align_cameras(source, source.transform(planted))
    assert found.target_from_source.is_close(planted, 1e-6)
    assert found.rotation_residuals.max() < 1e-7 and found.unobservable == ()


def _with_centers(views: Cameras, centers: torch.Tensor) -> Cameras:
    poses = views.cam_from_world.clone()
    poses[:, :3, 3] = -(poses[:, :3, :3] @ centers[..., None]).squeeze(-1)
    return views.with_poses(poses)


@given(seeds, st.integers(2, 5))
def test_collinear_cameras_take_the_roll_from_their_axes(seed, views):
    planted = similarity(seed)
    line = torch.arange(views, dtype=torch.float64)[:, None] * _points(seed, 1) + _points(seed + 1, 1)
    source = _with_centers(cameras(seed, views), line)
    found = alignment.align_cameras(source, source.transform(planted))
    assert found.target_from_source.is_close(planted, 1e-6) and found.unobservable == ()


@given(seeds, st.integers(1, 5))
def test_one_or_rotating_cameras_name_the_scale_as_unobservable(seed, views):
    planted = similarity(seed)
    source = _with_centers(cameras(seed, views), _points(seed, 1).expand(views, 3))
    found = alignment.align_cameras(source, source.transform(planted))
    assert found.unobservable == (alignment.SCALE,) and float(found.target_from_source.scale) == 1
    assert found.residuals.max() < 1e-9 and found.rotation_residuals.max() < 1e-7


@given(seeds)
def test_depth_scale_and_shift(seed):
    draw = generator(seed)
    depth = 1 + torch.rand(500, generator=draw, dtype=torch.float64)
    target = 3 * depth - 0.5
    plain = alignment.align_scale_shift(depth, target)
    assert abs(plain.scale - 3) < 1e-9 and abs(plain.shift + 0.5) < 1e-9 and plain.residuals.max() < 1e-9
    assert abs(alignment.align_scale(depth, 3 * depth).scale - 3) < 1e-12
    assert abs(alignment.align_median_scale(depth, 3 * depth).scale - 3) < 1e-12
    target[:150] += 4 * torch.rand(150, generator=draw, dtype=torch.float64) + 1
    robust = alignment.ransac_scale_shift(depth, target, threshold=0.01)
    assert abs(robust.scale - 3) < 1e-6 and abs(robust.shift + 0.5) < 1e-6
    assert not robust.inliers[:150].any() and robust.inliers[150:].all()


def test_constant_depth_names_the_scale():
    found = alignment.align_scale_shift(torch.full((5,), 2.0), torch.arange(5.0))
    assert found.unobservable == (alignment.SCALE,) and found.scale == 1 and abs(found.shift) < 1e-12
    found = alignment.ransac_scale_shift(torch.full((5,), 2.0), torch.arange(5.0))
    assert found.unobservable == (alignment.SCALE,)


@pytest.mark.usefixtures("without_shape_checks")
def test_bad_inputs_are_refused():
    good = torch.zeros(3, 3)
    with pytest.raises(InputError, match="matching point sets"):
        alignment.umeyama(good, good[:2])
    with pytest.raises(InputError, match="NaN"):
        alignment.umeyama(good, good * float("nan"))
    with pytest.raises(InputError, match="not all 0"):
        alignment.umeyama(good, good, torch.zeros(3))
    with pytest.raises(InputError, match="every weighted source value is 0"):
        alignment.align_scale(torch.zeros(4), torch.ones(4))
    with pytest.raises(InputError, match="matching views"):
        alignment.align_cameras(cameras(0, 2), cameras(0, 3))
    with pytest.raises(InputError, match="mask invalid pixels"):
        alignment.align_scale_shift(torch.zeros(0), torch.zeros(0))
