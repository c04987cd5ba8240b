"""Filters drop what they say and nothing else; the budget keeps what makes up the pictures."""

import pytest
import torch
from oracle import HEIGHT, WIDTH, arc, psnr_db, see

from da3gs import Cameras, Gaussians, RenderConfig, render
from da3gs.errors import InputError
from da3gs.fusion import (
    FilterConfig,
    blended,
    border,
    contradicted,
    doubtful,
    evened_out,
    exposures,
    fill_holes,
    filter_pixels,
    flying_pixels,
    keep_budget,
    repeated,
    single_layer,
    usable,
)  # fmt: skip
from da3gs.fusion.windows import mean_around
from da3gs.model.gaussian_adapter import gaussians_from_depth
from da3gs.rendering import contributions

OFF = FilterConfig(confidence=0, sky=False, border=0, edges=False, consistency=0, overlap=0)


def _room(views=4):
    cameras = arc(views)
    images, depth = see(cameras)
    return cameras, images, depth, gaussians_from_depth(images, depth, cameras)


# ------------------------------------------------------------------------------------------------ pixels


def test_everything_off_keeps_everything():
    cameras, _, depth, splats = _room(2)
    keep, records = filter_pixels(splats, depth, cameras, config=OFF)
    assert keep.all() and all(record.before == record.after == len(splats) for record in records)
    assert [record.setting for record in records] == [True] + [False] * 6


def test_unusable_values_never_pass():
    cameras, _, depth, splats = _room(1)
    values = [value.clone() for value in splats.tensors()]
    values[0][3, 1] = float("nan")
    values[1][5] = 0
    values[2][7, 2] = -1e-3
    values[3][11] = 1.5
    values[4][13, 0, 0] = float("inf")
    bad = Gaussians.unchecked(*values)
    assert (~usable(bad)).nonzero().flatten().tolist() == [3, 5, 7, 11, 13]
    depth = depth.clone()
    depth[0, 5, 5] = 0
    keep, records = filter_pixels(bad, depth, cameras, config=OFF)
    assert records[0].before - records[0].after == 6
    bad[keep].validate()


def test_doubt_is_relative_to_the_scene():
    confidence = 1 + torch.linspace(0.5, 1.5, 1001).reshape(1, 7, 143)
    confidence[0, 0, :5] = 1.001
    assert doubtful(confidence, 0.1).sum() == 5
    assert torch.equal(doubtful(1 + 50 * (confidence - 1), 0.1), doubtful(confidence, 0.1))
    assert doubtful(torch.full((1, 5, 5), 3.0), 1.0).sum() == 0
    assert doubtful(torch.rand(1, 50, 50, generator=torch.Generator().manual_seed(0)), 1.0).float().mean() <= 0.5


def test_border_is_a_frame_of_the_asked_width():
    frame = border(torch.ones(2, 100, 200), 0.05)
    assert frame[:, :5].all() and frame[:, :, -5:].all() and not frame[:, 5:-5, 5:-5].any()
    assert border(torch.ones(1, 10, 10), 0.01).sum() == 36  # at least a pixel


@pytest.mark.parametrize("slope", [(0.0, 0.0), (0.012, 0.0), (0.0, 0.02), (0.01, -0.008)])
def test_planes_have_no_flying_pixels_however_steep(slope):
    """Inverse depth 1/z = a + b u + c v; the steep ones change by more than 5 % per pixel at the far end."""
    v, u = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    inverse = slope[0] * u + slope[1] * v
    inverse = inverse - inverse.min() + 0.02
    assert not flying_pixels((1 / inverse)[None]).any()


def test_flying_pixels_are_those_at_jumps():
    depth = torch.full((1, 40, 60), 2.0)
    depth[:, 10:30, 20:40] = 1.0
    depth[:, 9, 20:40] = 1.4  # hangs between both
    flying = flying_pixels(depth)
    assert flying[0, 9, 20:40].all()
    near_edge = torch.zeros(40, 60, dtype=torch.bool)
    near_edge[7:31, 19:41] = True
    near_edge[11:29, 21:39] = False
    assert not flying[0][~near_edge].any()
    assert not flying_pixels(torch.where(depth == 1.4, 0.0, 1.0)).any()  # unknown pixels are no jump


def test_flying_pixels_at_any_unit():
    _, _, depth, _ = _room(1)
    assert torch.equal(flying_pixels(depth), flying_pixels(depth * 1e3))
    flying = flying_pixels(depth)
    assert 0 < flying.float().mean() < 0.05  # the outline of the ball, not the corners of the room


# ------------------------------------------------------------------------------------------------ views


def test_true_depth_is_not_contradicted():
    cameras, _, depth, _ = _room(5)
    assert contradicted(cameras.unproject(depth), depth, cameras, 0.05).sum() == 0


def test_a_blob_that_others_see_through_is_dropped_and_what_is_hidden_stays():
    cameras, images, depth, _ = _room(5)
    wrong = depth.clone()
    wrong[2, 30:50, 40:70] *= 0.6  # floats in front of the wall or ball of view 2
    splats = gaussians_from_depth(images, wrong, cameras)
    keep, records = filter_pixels(splats, wrong, cameras, config=FilterConfig(0, False, 0, False, 0.05))
    dropped = ~keep.reshape(depth.shape)
    assert dropped[2, 30:50, 40:70].float().mean() > 0.95
    dropped[2, 30:50, 40:70] = False
    assert dropped.sum() == 0 and records[-2].before - records[-2].after > 500


def test_not_being_seen_is_no_contradiction():
    cameras, _, depth, _ = _room(2)
    away = cameras.cam_from_world.clone()
    away[1, :3] = torch.diag(torch.tensor([-1.0, 1, -1])) @ away[1, :3]  # view 1 looks the other way
    turned = cameras.with_poses(away)
    depth[0] *= 0.5
    assert contradicted(turned.unproject(depth), depth, turned, 0.05).sum() == 0
    unknown = depth.clone()
    unknown[1] = 0
    assert contradicted(cameras.unproject(unknown), unknown, cameras, 0.05)[0].sum() == 0


def test_a_guess_that_one_confirmed_view_sees_through_is_dropped():
    """Two of three views (from one place) share a blob in front of the wall that the third sees."""
    cameras, _, depth, _ = _room(3)
    cameras = cameras[[0, 0, 0]]
    depth = depth[[0, 0, 0]].clone()
    depth[:2, 30:50, 40:70] *= 0.6
    points, inside = cameras.unproject(depth), (slice(0, 2), slice(31, 49), slice(41, 69))
    assert contradicted(points, depth, cameras, 0.05).sum() == 0  # one against one
    confirmed = torch.ones_like(depth, dtype=torch.bool)
    assert contradicted(points, depth, cameras, 0.05, confirmed=confirmed).sum() == 0
    confirmed[:2, 30:50, 40:70] = False
    dropped = contradicted(points, depth, cameras, 0.05, confirmed=confirmed)
    assert bool(dropped[inside].all())
    dropped[:2, 30:50, 40:70] = False
    assert dropped.sum() == 0
    confirmed[2] = False  # who guesses refutes nobody
    assert contradicted(points, depth, cameras, 0.05, confirmed=confirmed).sum() == 0


def test_consistency_does_not_depend_on_frame_or_unit():
    from strategies_geometry import similarity

    cameras, _, depth, _ = _room(4)
    depth[1] *= 0.8
    move = similarity(2, 30.0)
    plain = contradicted(cameras.unproject(depth), depth, cameras, 0.05)
    moved_cameras, moved_depth = cameras.transform(move), depth * 30
    moved = contradicted(moved_cameras.unproject(moved_depth), moved_depth, moved_cameras, 0.05)
    assert plain[1].float().mean() > 0.5
    assert (plain != moved).float().mean() < 1e-3


def test_one_layer_remains_where_views_overlap_and_nothing_is_lost():
    cameras, _, depth, splats = _room(5)
    everything = torch.ones_like(depth, dtype=torch.bool)
    gone = repeated(splats, depth, cameras, everything, 0.03)
    assert 0.4 < gone.float().mean() < 0.8  # of five layers, at the sides of fewer
    # From between the views the pictures are as complete as with all layers.
    between = arc(9)[[1, 3, 5, 7]]
    config = RenderConfig(antialiased=True, depth=False)
    full = render(splats, between, config)
    layer = render(single_layer(splats[~gone.flatten()]), between, config)
    solid = full.alpha[..., 0] > 0.9
    assert (layer.alpha[..., 0][solid] > 0.75).float().mean() > 0.98
    off_full, off_layer = (
        (out.rgb / out.alpha.clamp(min=1e-3) - see(between)[0].movedim(1, -1))[solid].abs().mean()
        for out in (full, layer)
    )
    assert off_layer < 1.1 * off_full < 0.05, (off_layer, off_full)
    # Each that went is shown by one that stayed, in the same place.
    kept = cameras.unproject(depth)[~gone]
    distance = torch.cdist(cameras.unproject(depth)[gone][::97], kept).amin(1)
    assert (distance / depth[gone][::97]).quantile(0.99) < 0.03


def test_the_view_that_shows_a_surface_best_keeps_it():
    """Two views along one axis, then one turned aside."""
    cameras, _, depth, _ = _room(1)
    near, far = cameras.cam_from_world.clone(), cameras.cam_from_world.clone()
    far[0, 2, 3] += 1.0
    both = Cameras.cat([cameras.with_poses(far), cameras.with_poses(near)])
    plane = torch.stack([torch.full_like(depth[0], 3.0), torch.full_like(depth[0], 2.0)])
    splats = gaussians_from_depth(torch.rand(2, 3, HEIGHT, WIDTH), plane, both)
    gone = repeated(splats, plane, both, torch.ones_like(plane, dtype=torch.bool), 0.03)
    assert not gone[1].any()
    inside = gone[0][HEIGHT // 6 + 2 : -HEIGHT // 6 - 2, WIDTH // 6 + 2 : -WIDTH // 6 - 2]
    assert inside.all() and not gone[0][:, : WIDTH // 6 - 3].any()  # what only the far one sees is its own


def test_of_equal_views_the_first_stays_and_what_was_dropped_drops_nothing():
    cameras, _, depth, _ = _room(1)
    cameras, depth = cameras[[0, 0, 0]], depth[[0, 0, 0]]
    splats = gaussians_from_depth(torch.rand(3, 3, HEIGHT, WIDTH), depth, cameras)
    keep = torch.ones_like(depth, dtype=torch.bool)
    gone = repeated(splats, depth, cameras, keep, 0.03)
    assert not gone[0].any() and gone[1:].all()
    keep[0, :, : WIDTH // 2] = False
    gone = repeated(splats, depth, cameras, keep, 0.03)
    assert not gone[1, :, : WIDTH // 2 - 2].any() and gone[2].all() and not gone[0].any()
    apart = depth * torch.tensor([1.0, 1.1, 1.25])[:, None, None]
    splats = gaussians_from_depth(torch.rand(3, 3, HEIGHT, WIDTH), apart, cameras)
    assert not repeated(splats, apart, cameras, torch.ones_like(keep), 0.03).any()  # three surfaces


def test_overlap_is_for_measured_depth():
    cameras, _, depth, splats = _room(3)
    config = FilterConfig(confidence=0, sky=False, border=0, edges=False, consistency=0)
    assert filter_pixels(splats, depth, cameras, config=config)[0].all()
    keep, records = filter_pixels(
        splats, depth, cameras, confirmed=torch.ones_like(depth, dtype=torch.bool), config=config
    )
    assert records[-1].setting == 0.03 and keep.float().mean() < 0.7


def test_a_single_layer_is_opaque_and_its_splats_do_not_stick_out():
    thin = torch.tensor([[0.01, 0.1, 0.15], [0.01, 0.1, 0.9]])
    splats = Gaussians(
        torch.zeros(2, 3), torch.eye(4)[:1].expand(2, 4), thin, torch.tensor([0.5, 0.99]), torch.zeros(2, 1, 3)
    )
    layer = single_layer(splats)
    torch.testing.assert_close(layer.scales, 1.2 * torch.tensor([[0.01, 0.1, 0.15], [0.01, 0.1, 0.2]]))
    torch.testing.assert_close(layer.opacities, torch.tensor([0.95, 0.99]))


def test_every_filter_counts_only_its_own():
    cameras, _, depth, splats = _room(3)
    sky = torch.zeros_like(depth)
    sky[:, :10] = 0.5
    confidence = torch.full_like(depth, 3.0)
    confidence[:, 5:20] = 1.01
    keep, records = filter_pixels(splats, depth, cameras, confidence=confidence, sky=sky)
    dropped = {record.name: record.before - record.after for record in records}
    assert dropped["confidence"] == 3 * 15 * WIDTH and dropped["sky"] == 3 * 5 * WIDTH
    # Where other views have checked the depth, they are asked, not the network; unless somebody insists.
    sure = torch.ones_like(depth, dtype=torch.bool)
    for fraction, expected in ((None, 0), (0.05, 3 * 15 * WIDTH)):
        config = FilterConfig(confidence=fraction)
        _, records = filter_pixels(splats, depth, cameras, confidence=confidence, confirmed=sure, config=config)
        assert records[1].name == "confidence" and records[1].before - records[1].after == expected
    assert sum(dropped.values()) == int((~keep).sum())


def test_wrong_settings_and_sizes_are_refused():
    with pytest.raises(InputError, match=r"border filter must lie in \[0, 0.4\]"):
        FilterConfig(border=0.5)
    cameras, _, depth, splats = _room(2)
    with pytest.raises(InputError, match="one Gaussian per pixel"):
        filter_pixels(splats[:10], depth, cameras)


# ------------------------------------------------------------------------------------------------ holes


def _with_a_hole():
    """Five views of a room whose back wall lost a patch in the middle, where depth was a fifth too small."""
    cameras, images, depth, _ = _room(5)
    points = cameras.unproject(depth)
    flat = torch.stack([points[2, HEIGHT // 4, WIDTH // 2], points[2, HEIGHT // 4, WIDTH // 2 + 8]])
    gone = (points - flat[0]).norm(dim=-1) < (flat[1] - flat[0]).norm()
    wrong = torch.where(gone, 0.8 * depth, depth)
    splats = gaussians_from_depth(images, depth, cameras)
    return cameras, images, depth, wrong, gone, splats[~gone.flatten()]


def test_holes_are_bridged_where_the_surfaces_around_say():
    cameras, images, depth, wrong, gone, layer = _with_a_hole()
    assert gone.any(0).any() and 50 < gone[2].sum() < 1000
    fillers = fill_holes(layer, images, wrong, cameras, gone, ~gone)
    assert 50 < len(fillers) < gone.sum()  # one layer of them
    uv, z = cameras[2].project(fillers.means)
    column, row = uv[0].long().unbind(-1)
    assert (z[0] / depth[2][row.clamp(0, HEIGHT - 1), column.clamp(0, WIDTH - 1)] - 1).abs().median() < 0.02
    config = RenderConfig(antialiased=True)
    before = render(layer, cameras[2], config).alpha[0, ..., 0]
    after = render(Gaussians.cat([layer, fillers]), cameras[2], config).alpha[0, ..., 0]
    inner = gone[2] & (before < 0.2)
    assert inner.sum() > 30 and (after[inner] > 0.6).float().mean() > 0.9


@pytest.mark.parametrize("unit", [0.01, 100.0])
def test_holes_are_bridged_alike_in_any_unit(unit):
    cameras, images, _, wrong, gone, layer = _with_a_hole()
    once = fill_holes(layer, images, wrong, cameras, gone, ~gone)
    poses = cameras.cam_from_world.clone()
    poses[:, :3, 3] *= unit
    scaled = Gaussians.unchecked(unit * layer.means, layer.quats, unit * layer.scales, layer.opacities, layer.sh)
    again = fill_holes(scaled, images, unit * wrong, cameras.with_poses(poses), gone, ~gone)
    assert abs(len(again) / len(once) - 1) < 0.05
    assert (again.means.median(0).values / unit - once.means.median(0).values).abs().max() < 0.02


def test_the_filter_does_not_mind_how_maps_lie_in_memory():
    cameras, _, depth, splats = _room(4)
    keep = torch.ones_like(depth, dtype=torch.bool)
    turned = keep.transpose(1, 2).contiguous().transpose(1, 2)
    found = repeated(splats, depth, cameras, keep, 0.03)
    assert found.any() and torch.equal(repeated(splats, depth.mT.contiguous().mT, cameras, turned, 0.03), found)


def test_nothing_is_filled_without_a_picture_or_in_front_of_what_others_see():
    cameras, images, depth, wrong, gone, layer = _with_a_hole()
    assert len(fill_holes(layer, images, wrong, cameras, torch.zeros_like(gone), ~gone)) == 0
    few = layer[:: len(layer) // 500]  # hardly a surface anywhere
    assert len(fill_holes(few, images, wrong, cameras, gone, ~gone)) == 0
    # One view measured something far behind the patch: it is a window.
    window = torch.where(gone, 1.5 * depth, depth)
    kept, candidates = ~gone, gone.clone()
    candidates[0] = False
    without = len(fill_holes(layer, images, window, cameras, candidates, kept))
    kept[0] = True
    assert len(fill_holes(layer, images, window, cameras, candidates, kept)) < 0.6 * without


# ------------------------------------------------------------------------------------------------ exposure


@pytest.mark.parametrize("reach", [1, 4, 40])
def test_means_around_a_pixel_take_what_lies_in_the_picture(reach):
    values = torch.rand(2, 3, 13, 17)
    found = mean_around(values, reach)
    for row, column in ((0, 0), (6, 9), (12, 3)):
        rows, columns = (slice(max(0, at - reach), at + reach + 1) for at in (row, column))
        expected = values[..., rows, columns].mean((-2, -1))
        torch.testing.assert_close(found[..., row, column], expected, atol=1e-6, rtol=1e-5)


def test_planted_exposures_are_found_and_taken_out():
    cameras, images, depth, _ = _room(5)
    sure = torch.ones_like(depth, dtype=torch.bool)
    images = 0.2 + 0.6 * images
    assert (exposures(images, depth, cameras, sure) - 1).abs().max() < 0.02
    planted = torch.tensor([[1.0, 1, 1], [1.2, 1.1, 1.0], [0.8, 0.85, 0.9], [1.1, 1.1, 1.1], [0.9, 0.9, 1.0]])
    shot = (images * planted[:, :, None, None]).clamp(0, 1)
    found = exposures(shot, depth, cameras, sure)
    relative = planted / planted.log().mean(0).exp()
    assert (found / relative - 1).abs().max() < 0.03
    even = evened_out(shot, found)
    unclipped = (shot < 0.99).all(1)[:, None].expand_as(shot)
    off = (even / even[unclipped].mean() * images[unclipped].mean() - images)[unclipped].abs().mean()
    assert off < 0.02 < 0.04 < (shot - images)[unclipped].abs().mean()


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_exposures_are_found_from_few_places_in_any_light(share):
    """A tenth of the places say the same as all of them; a channel that is dark leaves the others alone."""
    cameras, images, depth, _ = _room(5)
    images = 0.2 + 0.5 * images
    images[:, 2] *= 0.05  # the light of a candle
    torch.manual_seed(0)
    sure = torch.rand_like(depth) < share
    planted = torch.tensor([1.0, 1.25, 0.8, 1.0, 1.1])
    found = exposures(images * planted[:, None, None, None], depth, cameras, sure)
    assert (found[:, :2] / planted[:, None] - 1).abs().max() < 0.04
    assert torch.equal(found[:, 2], torch.ones(5))


def test_a_spoilt_picture_leaves_the_others_as_they_are():
    cameras, images, depth, _ = _room(5)
    images = 0.2 + 0.6 * images
    spoilt = images.clone()
    spoilt[4] *= 0.05
    sure = torch.ones_like(depth, dtype=torch.bool)
    sure[4] = False
    even = blended(evened_out(spoilt, exposures(spoilt, depth, cameras, sure)), depth, cameras)
    assert (even[:4] / images[:4] - 1).abs().mean() < 0.02


def test_exposure_is_left_alone_where_pictures_share_nothing():
    cameras, images, depth, _ = _room(3)
    images = images * torch.tensor([0.5, 1.0, 0.8])[:, None, None, None]
    nobody = torch.zeros_like(depth, dtype=torch.bool)
    assert torch.equal(exposures(images, depth, cameras, nobody), torch.ones(3, 3))
    only = nobody.clone()
    only[:2] = True
    found = exposures(images, depth, cameras, only)
    assert torch.equal(found[2], torch.ones(3)) and (found[1] / found[0] - 2).abs().max() < 0.15
    assert torch.equal(evened_out(images, torch.ones(3, 3)), images)


def test_shades_that_vary_within_pictures_are_blended_and_detail_stays():
    cameras, images, depth, _ = _room(5)
    images = 0.2 + 0.6 * images
    across = torch.linspace(-1, 1, WIDTH)
    down = torch.linspace(-1, 1, HEIGHT)[:, None]
    shade = 1 - 0.3 * (across**2 + down**2) / 2  # vignetting
    shade = (
        shade
        * torch.stack([1 + 0.15 * slope * across.expand(HEIGHT, WIDTH) for slope in (-1, 0.5, 0, 1, -0.5)])[:, None]
    )

    def seams(pictures):
        """Mean difference of a place's colour between the middle view and the others."""
        found = []
        points = cameras[2].unproject(depth[2:3]).reshape(-1, 3)
        for other in (0, 1, 3, 4):
            uv, z = (values[0] for values in cameras[other].project(points))
            inside = (z > 0) & (uv >= 0).all(-1) & (uv < torch.tensor([WIDTH, HEIGHT])).all(-1)
            column, row = uv[inside].long().unbind(-1)
            same = (z[inside] / depth[other, row, column] - 1).abs() < 0.02
            pair = pictures[2].flatten(1)[:, inside][:, same] - pictures[other][:, row[same], column[same]]
            found.append(pair.abs().mean())
        return float(torch.stack(found).mean())

    shot = images * shade
    even = blended(shot, depth, cameras)
    floor = seams(images)  # pixels that do not fall onto each other exactly
    assert seams(even) - floor < 0.35 * (seams(shot) - floor)
    assert (blended(images, depth, cameras) / images - 1).abs().mean() < 0.01
    factor = even / shot
    assert factor.diff(dim=-1).abs().max() < 0.1 and factor.min() >= 0.5 and factor.max() <= 2
    nowhere = torch.zeros_like(depth)
    torch.testing.assert_close(blended(shot, nowhere, cameras), shot)


# ------------------------------------------------------------------------------------------------ budget


@pytest.mark.parametrize(("share", "gain_db"), [(0.5, 8), (0.1, 8)])
def test_the_budget_keeps_the_pictures(share, gain_db):
    """Far closer to the pictures of all Gaussians than a random subset, or the largest contributions alone."""
    cameras, _, _, splats = _room(4)
    config = RenderConfig(antialiased=True, depth=False)
    count = round(share * len(splats))
    kept, record = keep_budget(splats, cameras, count, config)
    assert len(kept) == count == record.after and record.before == len(splats)
    kept.validate()
    random = splats[torch.randperm(len(splats), generator=torch.Generator().manual_seed(0))[:count]]
    largest = splats[contributions(splats, cameras, config).topk(count).indices]
    views = Cameras.cat([cameras, arc(7)[[1, 3, 5]]])
    full = render(splats, views, config).rgb.permute(0, 3, 1, 2)
    everything = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)

    def score(subset):
        out = render(subset, views, config).rgb
        return sum(psnr_db(out[v], full[v], everything) for v in range(len(views))) / len(views)

    assert score(kept) > max(score(random), score(largest)) + gain_db


def test_what_nobody_sees_goes_first():
    cameras, _, _, splats = _room(2)
    hidden = Gaussians(
        splats.means[:50] * 10, splats.quats[:50], splats.scales[:50], splats.opacities[:50], splats.sh[:50]
    )
    both = Gaussians.cat([hidden, splats])
    kept, _ = keep_budget(both, cameras, len(splats))
    assert torch.equal(kept.means, splats.means)  # in their old order
    assert torch.equal(kept.scales, splats.scales)  # nothing visible was lost, so nothing grew


def test_a_budget_of_one_and_of_equal_points():
    cameras, _, _, splats = _room(1)
    assert len(keep_budget(splats, cameras, 1)[0]) == 1
    same = Gaussians.cat([splats[:1]] * 20)
    kept, _ = keep_budget(same, cameras, 7)
    assert len(kept) == 7
    kept.validate()


def test_a_budget_that_is_not_reached_changes_nothing():
    cameras, _, _, splats = _room(1)
    kept, record = keep_budget(splats, cameras, len(splats) + 1)
    assert kept is splats and record.before == record.after
    with pytest.raises(InputError, match="must be >= 1"):
        keep_budget(splats, cameras, 0)
