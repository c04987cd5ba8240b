"""The plane sweep: depth between known cameras, against exact depth of procedural scenes."""

import math

import numpy as np
import pytest
import torch

from da3gs.data.synthetic import make_sample
from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.similarity import Similarity
from da3gs.stereo import StereoConfig, refine_depth, surer_where_confirmed
from da3gs.stereo.agreement import agreement, bent_to_meet, consensus
from da3gs.stereo.matching_views import matching_views
from da3gs.stereo.refine import _islands


@pytest.fixture(scope="module")
def sample():
    """Five views of a kitchen; the depth to start from is 10 % too far and bent by up to another 15 %."""
    views = make_sample(5, 5, 182, 126, style="kitchen", difficulty=0.2, motion="orbit", min_covisibility=0.6)
    known = views.depth > 0
    truth = torch.where(known, views.depth, views.depth[known].median())
    waves = torch.linspace(0, 2 * math.pi, 182).sin() * 0.15
    return views, truth, truth * (0.1 + waves).exp()


def _log_error(depth, truth, mask):
    return (depth / truth).log().abs()[mask]


def test_depth_comes_much_nearer_the_truth(sample):
    views, truth, start = sample
    result = refine_depth(views.images, start, views.cameras)
    known = views.depth > 0
    before, after = _log_error(start, truth, known), _log_error(result.depth, truth, known)
    confirmed = result.confirmed & known
    assert float(before.median()) > 0.08
    assert float(after.median()) < 0.02
    assert float((after < math.log(1.25)).float().mean()) > 0.93
    assert float(confirmed.float().mean()) > 0.6
    # What other views confirm is right: that is what the word promises.
    assert float((_log_error(result.depth, truth, confirmed) < 0.05).float().mean()) > 0.8
    assert float(_log_error(result.depth, truth, confirmed).median()) < float(after[~confirmed[known]].median())


def test_a_good_start_is_not_spoilt(sample):
    """The true depth stays the true depth."""
    views, truth, _ = sample
    result = refine_depth(views.images, truth, views.cameras, config=StereoConfig.for_good_depth())
    error = _log_error(result.depth, truth, views.depth > 0)
    assert float(error.median()) < 0.015
    assert float((error < 0.1).float().mean()) > 0.97


def test_frame_and_unit_of_the_cameras_do_not_matter(sample):
    views, _, start = sample
    turned = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    turned = turned * torch.linalg.det(turned)
    moved = views.cameras.transform(Similarity(250.0, turned, torch.tensor([3.0, -40.0, 7.0])))
    here, there = refine_depth(views.images, start, views.cameras), refine_depth(views.images, 250 * start, moved)
    apart = (there.depth / (250 * here.depth)).log().abs()
    # Rounding decides near-ties between hypotheses in a few places.
    assert float((apart < 1e-2).float().mean()) > 0.97
    assert here.matched == there.matched


def test_the_number_of_threads_changes_nothing(sample):
    views, _, start = sample
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = refine_depth(views.images, start, views.cameras)
        torch.set_num_threads(2)
        two = refine_depth(views.images, start, views.cameras)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.confirmed, two.confirmed)
    assert torch.allclose(one.depth, two.depth, rtol=1e-5)


def test_other_photographs_can_be_matched_with(sample):
    """Views 0 and 4 alone see each other badly; with the three between them as sources they are measured as well."""
    views, truth, start = sample
    own, known = [0, 4], views.depth[[0, 4]] > 0
    result = refine_depth(
        views.images[own],
        start[own],
        views.cameras[own],
        sources=views.images,
        source_cameras=views.cameras,
        own=own,
    )
    assert all(set(sources) - {0, 4} for sources in result.matched)
    assert all(view not in sources for view, sources in zip(own, result.matched, strict=True))
    assert float(_log_error(result.depth, truth[own], known).median()) < 0.02


def test_views_in_one_place_keep_their_depth(sample):
    """Without a baseline the pictures say nothing."""
    views, _, start = sample
    still = views.cameras.with_poses(views.cameras.cam_from_world[:1].expand(5, 4, 4).clone())
    result = refine_depth(views.images, start, still)
    assert torch.equal(result.depth, start)
    assert not result.confirmed.any() and result.matched == [[]] * 5


def test_unknown_depth_is_refused(sample):
    views, _, start = sample
    holes = start.clone()
    holes[0, 3, 4] = 0
    with pytest.raises(InputError, match="> 0 everywhere"):
        refine_depth(views.images, holes, views.cameras)
    with pytest.raises(InputError, match="need cameras"):
        refine_depth(views.images, start, views.cameras, sources=views.images)


def test_costs_are_those_of_plain_correlation():
    """The running sums of the kernel against windows cut out one by one."""
    from da3gs.stereo.matching_cpu import match_source

    rng = np.random.default_rng(2)
    picture = rng.random((14, 19), np.float32)
    source = np.roll(picture, 2, 1) * np.float32(0.7) + np.float32(0.1)  # moved two pixels right, another exposure
    offsets = np.array([1.0, 2.0, 3.0], np.float32)
    lowest = np.full((3, 14, 19), np.inf, np.float32)
    second = lowest.copy()
    matrix, shift = np.eye(3, dtype=np.float32), np.array([1, 0, 0], np.float32)
    match_source(picture, source, matrix, shift, np.zeros_like(picture), offsets, 2, lowest, second)
    assert lowest[1, 4:10, 4:14].max() < 0.02  # the right shift matches in spite of the exposure
    for d, moved in enumerate((1, 2, 3)):
        for y, x in ((5, 6), (8, 11), (7, 4)):
            a = picture[y - 2 : y + 3, x - 2 : x + 3]
            b = source[y - 2 : y + 3, x - 2 + moved : x + 3 + moved]
            together = ((a - a.mean()) * (b - b.mean())).mean()
            expected = min(max(1 - together / (a.std() * b.std() + 3e-4), 0), 1)
            assert lowest[d, y, x] == pytest.approx(expected, abs=2e-3)
    assert np.isinf(lowest[:, :, 18]).all()  # leaves the picture at every shift
    assert np.isinf(second).all()
    match_source(picture, source[:, ::-1].copy(), matrix, shift, np.zeros_like(picture), offsets, 2, lowest, second)
    both = np.isfinite(second)
    assert both.any() and (second[both] >= lowest[both]).all()


def test_surface_is_smooth_where_pictures_say_nothing():
    from da3gs.stereo.matching_cpu import semi_global

    cost = np.full((6, 9, 5), 0.5, np.float32)
    cost[:, 0, 2] = cost[:, 8, 2] = 0  # known at both sides only
    cost[3, 4, 0] = 0.45  # one weak voice against it
    total = np.empty_like(cost)
    semi_global(cost, np.zeros((6, 9), np.float32), np.float32(0.1), np.float32(0.4), total)
    assert (total.argmin(-1) == 2).all()


def test_agreement_counts_who_sees_the_surface():
    """A wall at 4, seen by three cameras side by side; the middle one is wrong in two places."""
    K = torch.tensor([[40.0, 0, 20], [0, 40, 15], [0, 0, 1]]).expand(3, 3, 3)
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.4, 0.0, -0.4])
    depth = torch.full((3, 30, 40), 4.0)
    depth[1, 10, 20] = 2.0  # in front: the others look through it
    depth[1, 12, 20] = 8.0  # behind: hidden, neither
    agreeing, against = agreement(depth, Cameras(poses, K, 40, 30), [[1, 2], [0, 2], [0, 1]], 0.01)
    assert (agreeing[1, 10, 20], against[1, 10, 20]) == (0, 2)
    assert (agreeing[1, 12, 20], against[1, 12, 20]) == (0, 0)
    assert (agreeing[1, 5, 20], against[1, 5, 20]) == (2, 0)
    assert agreeing[0, 5, 0] == 0  # outside of both others


def _side_by_side(views, width=80, height=60, step=0.2):
    """Cameras side by side that look along z, turned a little towards each other."""
    K = torch.tensor([[80.0, 0, 0.5 * width], [0, 80, 0.5 * height], [0, 0, 1]]).expand(views, 3, 3)
    poses = torch.eye(4).repeat(views, 1, 1)
    for view in range(views):
        x = step * (view - (views - 1) / 2)
        angle = math.atan(-x / 4)  # the camera at x looks at (0, 0, 4)
        turn = torch.tensor([[math.cos(angle), 0, -math.sin(angle)], [0, 1, 0], [math.sin(angle), 0, math.cos(angle)]])
        poses[view, :3, :3] = turn
        poses[view, :3, 3] = -turn @ torch.tensor([x, 0.0, 0.0])
    return Cameras(poses, K, width, height)


def _wall(cameras, slope=0.3, distance=4.0):
    """Exact z-depth of the plane z + slope y = distance."""
    rays = cameras.camera_rays() @ cameras.world_from_cam[:, None, :3, :3].mT
    normal = torch.tensor([0.0, slope, 1.0])
    return (distance - cameras.centers @ normal)[:, None, None] / (rays @ normal)


def test_views_that_err_apart_come_together_at_the_truth():
    cameras = _side_by_side(6)
    truth = _wall(cameras)
    noise = 0.003 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    noise += torch.tensor([0.004, -0.004, 0.002, -0.002, 0.003, -0.003])[:, None, None]
    partners = [[other for other in range(6) if other != view] for view in range(6)]
    sure = torch.ones_like(truth, dtype=torch.bool)
    exact = consensus(truth, sure, cameras, partners)
    assert (exact / truth - 1).abs().max() < 1e-4
    met = consensus(truth * (1 + noise), sure, cameras, partners)
    inner = (slice(None), slice(5, -5), slice(15, -15))
    assert (met / truth - 1)[inner].std() < 0.4 * noise[inner].std()


def test_consensus_asks_only_those_who_know_and_are_near():
    cameras = _side_by_side(3)
    truth = _wall(cameras, slope=0.0)
    partners = [[1, 2], [0, 2], [0, 1]]
    sure = torch.ones_like(truth, dtype=torch.bool)
    apart = truth * torch.tensor([0.97, 1.0, 1.03])[:, None, None]
    assert torch.equal(consensus(apart, sure, cameras, partners), apart)
    near = truth * torch.tensor([0.99, 1.0, 1.01])[:, None, None]
    assert torch.equal(consensus(near, ~sure, cameras, partners), near)
    assert torch.equal(consensus(near, sure, cameras, [[], [], []]), near)
    # A guess follows what the others are sure of; its own word does not count.
    sure[0] = False
    followed = consensus(truth * torch.tensor([0.99, 1.0, 1.0])[:, None, None], sure, cameras, partners)
    inner = (0, slice(5, -5), slice(10, -10))
    assert (followed / truth - 1)[inner].abs().max() < 1e-3
    # Across an edge nothing is mixed.
    step = truth.clone()
    step[:, :, :40] *= 0.5
    result = consensus(step[[1, 1, 1]], torch.ones_like(sure), cameras[[1, 1, 1]], partners)
    torch.testing.assert_close(result[1], step[1])


def test_gaps_meet_what_is_measured():
    predicted = torch.full((1, 20, 20), 2.0)
    predicted[0, :, 10:] = 4.0  # an edge the measurement knows only in part
    known = torch.zeros(1, 20, 20, dtype=torch.bool)
    known[:, :6] = True
    filled = bent_to_meet(predicted, 1.5 * predicted, known)
    assert torch.equal(filled[known], 1.5 * predicted[known])
    assert torch.allclose(filled, 1.5 * predicted, rtol=1e-5)  # one factor everywhere: the edge stays
    wide = bent_to_meet(torch.ones(1, 16, 80), torch.full((1, 16, 80), 500.0), torch.arange(80).expand(1, 16, 80) < 9)
    assert torch.allclose(wide, torch.full_like(wide, 500.0), rtol=1e-4)  # however far the next measurement is
    nothing = bent_to_meet(predicted, torch.full_like(predicted, 9.0), torch.zeros_like(known))
    assert torch.equal(nothing, predicted)


def test_matching_views_see_the_same_from_aside():
    angles = torch.deg2rad(torch.tensor([0.0, 0.2, 8.0, 70.0, 180.0]))
    R = torch.zeros(5, 3, 3)
    R[:, 1, 1] = 1
    R[:, 0, 0] = R[:, 2, 2] = angles.cos()
    R[:, 0, 2], R[:, 2, 0] = -angles.sin(), angles.sin()
    poses = torch.eye(4).repeat(5, 1, 1)
    poses[:, :3, :3] = R
    poses[:, 2, 3] = 5.0  # on a circle around the origin, looking at it
    cameras = Cameras(poses, torch.tensor([[60.0, 0, 30], [0, 60, 30], [0, 0, 1]]).expand(5, 3, 3), 60, 60)
    chosen = matching_views(cameras, torch.full((5,), 5.0), cameras, 4, list(range(5)))
    assert chosen[0] == [2]  # not the one beside it, which tells nothing, nor those that see another side
    assert len(matching_views(cameras, torch.full((5,), 5.0), cameras, 4, [None] * 5, least_score=0.0)[0]) >= 2


def test_confirmed_is_as_sure_as_the_surest():
    confidence = torch.tensor([[[1.0, 1.5, 3.0]]])
    confirmed = torch.tensor([[[True, False, False]]])
    assert surer_where_confirmed(confidence, confirmed).flatten().tolist() == [3.0, 1.5, 3.0]
    assert surer_where_confirmed(None, confirmed).flatten().tolist() == [2.0, 1.0, 1.0]


def test_small_patches_that_jump_are_no_measurement():
    disparity = torch.linspace(10, 30, 160).expand(1, 120, 160).clone()  # a slanted plane
    disparity[0, 20:26, 20:26] += 4  # a match by chance
    disparity[0, 60:100, 60:120] += 4  # a box
    known = torch.ones(1, 120, 160, dtype=torch.bool)
    known[0, 110:] = False
    expected = ~known
    expected[0, 20:26, 20:26] = True
    assert torch.equal(_islands(disparity, known), expected)
