"""The single-view teacher: its losses in closed form, its batches, and that it learns."""

import math
from dataclasses import replace

import pytest
import torch
from train.rooms import fill_cache, room

from da3gs import losses
from da3gs.errors import InputError
from da3gs.model.da3_model import load_model
from da3gs.train.samples import SyntheticData
from da3gs.train.teacher import TeacherLosses, TeacherTask, depth_errors_affine, teacher_batch, teacher_terms
from da3gs.train.transforms_data import TransformsData


@pytest.fixture
def depth():
    generator = torch.Generator().manual_seed(0)
    return 1 + 3 * torch.rand(2, 24, 32, generator=generator)


@pytest.fixture
def everywhere(depth):
    return torch.ones_like(depth, dtype=torch.bool)


# ------------------------------------------------------------------------------------------------ losses


def test_scale_and_shift_of_a_view_cost_nothing(depth, everywhere):
    changed = depth.clone()
    changed[0], changed[1] = 0.2 * depth[0] + 3, 5 * depth[1] - 1
    loss, aligned = losses.global_affine_l1(changed, depth, everywhere)
    assert loss < 1e-5
    torch.testing.assert_close(aligned, depth, rtol=1e-4, atol=1e-4)
    assert losses.global_affine_l1(depth.square(), depth, everywhere)[0] > 0.02


def test_aligned_losses_pull_neither_at_scale_nor_at_shift(depth, everywhere):
    wrong = (depth + 0.3 * depth.sin()).requires_grad_()
    for loss in (
        losses.global_affine_l1(wrong, depth, everywhere)[0],
        losses.local_affine_l1(wrong, depth, everywhere, blocks=1),
    ):
        (gradient,) = torch.autograd.grad(loss, wrong)
        assert gradient.abs().sum() > 0.01
        for view in range(2):
            assert abs(float(gradient[view].sum())) < 1e-5
            assert abs(float((gradient[view] * wrong[view].detach()).sum())) < 1e-5


def test_a_reversed_prediction_is_not_turned_over(depth, everywhere):
    _, aligned = losses.global_affine_l1(5 - depth, depth, everywhere)
    # Deeper stays deeper: a scale alone, so what was farthest is still nearest.
    assert (aligned > 0).all() and int(aligned[0].argmax()) == int(depth[0].argmin())


def test_masked_pixels_may_hold_anything(depth, everywhere):
    mask = everywhere.clone()
    mask[:, :5] = False
    dirty, dirty_target = depth.clone().requires_grad_(), depth.clone()
    dirty_target[:, :5] = 0
    with torch.no_grad():
        dirty[:, :5] = 1e6
    total = losses.global_affine_l1(dirty, dirty_target, mask)[0] + losses.local_affine_l1(
        dirty, dirty_target, mask, blocks=2
    )
    assert total < 1e-4
    total.backward()
    assert torch.isfinite(dirty.grad).all() and (dirty.grad[:, :5] == 0).all()
    nothing = torch.zeros_like(mask)
    assert losses.global_affine_l1(depth, depth, nothing)[0] == 0
    assert losses.local_affine_l1(depth, depth, nothing, blocks=4) == 0


def test_blocks_are_aligned_by_themselves(depth, everywhere):
    changed = depth.clone()
    for row in range(2):
        for column in range(2):
            block = (slice(None), slice(12 * row, 12 * row + 12), slice(16 * column, 16 * column + 16))
            changed[block] = (1 + row) * depth[block] + 3 * column
    assert losses.local_affine_l1(changed, depth, everywhere, blocks=2) < 1e-4
    assert losses.local_affine_l1(changed, depth, everywhere, blocks=1) > 0.05
    assert losses.global_affine_l1(changed, depth, everywhere)[0] > 0.05
    parts = losses._in_blocks(depth, 2)
    assert torch.equal(parts[1, 3], depth[1, 12:, 16:].flatten()) and torch.equal(
        parts[0, 1], depth[0, :12, 16:].flatten()
    )


def test_normals_of_a_tilted_plane_are_off_by_its_tilt():
    sample = room(0, 1, 64, 48)
    rays = teacher_batch([sample])["rays"]
    mask = torch.ones(1, 48, 64, dtype=torch.bool)

    def plane(tilt_deg):
        normal = torch.tensor([0.0, math.sin(math.radians(tilt_deg)), -math.cos(math.radians(tilt_deg))])
        return -2 / (rays @ normal)

    assert losses.normal_angle(plane(30), plane(30), mask, rays) < 1e-3
    for tilt in (5.0, 20.0, 45.0):
        found = float(losses.normal_angle(plane(tilt), plane(0), mask, rays))
        assert math.degrees(found) == pytest.approx(tilt, abs=0.1)
    # Normals do not depend on the unit.
    assert losses.normal_angle(3 * plane(30), plane(30), mask, rays) < 1e-3
    depth = plane(10).requires_grad_()
    losses.normal_angle(depth, plane(0), mask, rays).backward()
    assert torch.isfinite(depth.grad).all() and depth.grad.abs().max() > 0


def test_the_mean_normal_stands_by_the_near_side_of_an_edge():
    sample = room(0, 1, 64, 48)
    rays = teacher_batch([sample])["rays"]
    step = torch.full((1, 48, 64), 2.0)
    step[:, :, 32:] = 4.0
    five = losses._five_normals(rays * step[..., None])[0, 20, 30]  # pixel 31: its right neighbour lies behind the edge
    plain = five[:4].mean(0)
    assert abs(float(plain[2] / plain.norm())) < 0.75 and abs(float(five[4, 2])) > 0.85


def test_terms_of_the_truth_are_nothing():
    samples = [room(seed, 1, 84, 56) for seed in range(2)]
    batch = teacher_batch(samples)
    batch["mask"][0, :10] = False
    terms = teacher_terms(7 * batch["depth"] + 0.3, (~batch["mask"]).float(), batch, TeacherLosses())
    assert set(terms) == {"anchor", "depth", "local", "depth_gradient", "normals", "sky"}
    assert float(terms.pop("anchor")) > 1  # the one that knows scale and shift
    assert all(float(term) < 2e-3 for term in terms.values()), terms
    exact = teacher_terms(batch["depth"], (~batch["mask"]).float(), batch, TeacherLosses())
    assert all(float(term) < 2e-3 for term in exact.values()), exact
    assert set(teacher_terms(batch["depth"], None, batch, TeacherLosses(anchor=0.0, local=0.0, normals=0.0))) == {
        "depth",
        "depth_gradient",
    }


def test_errors_after_scale_and_shift(depth):
    mask = torch.ones_like(depth[0], dtype=torch.bool)
    errors = depth_errors_affine(0.2 * depth[0] + 3, depth[0], mask)
    assert errors["delta1_affine"] == 1 and errors["absrel_affine"] < 1e-5 and errors["delta1"] < 1


# ------------------------------------------------------------------------------------------------ the task


@pytest.fixture
def task(tmp_path):
    data = SyntheticData(scenes=6, views=2, sizes=((56, 42),), cache=tmp_path)
    fill_cache(data)
    held_out = SyntheticData(scenes=6, first_seed=0, views=2, sizes=((56, 42), (42, 56)), cache=tmp_path)
    fill_cache(held_out)
    return TeacherTask(data=data, evaluation_data=held_out, images_per_batch=6, evaluation_scenes=6, color_jitter=0.0)


def test_batches_depend_on_their_number_alone(task):
    teacher = task.open(0)
    batch, again = teacher.batch(3, 0, 1), task.open(0).batch(3, 0, 1)
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert not torch.equal(batch["images"], teacher.batch(4, 0, 1)["images"])
    for rank in range(2):
        assert torch.equal(teacher.batch(3, rank, 2)["images"], batch["images"][rank::2])
    assert batch["images"].shape == (6, 3, 42, 56)
    means = batch["depth"].flatten(1).sum(1) / batch["mask"].flatten(1).sum(1)
    torch.testing.assert_close(means, torch.ones(6))


def test_it_learns_and_its_weights_predict(task, tmp_path):
    torch.manual_seed(0)
    teacher = task.open(0)
    optimizer = torch.optim.AdamW(teacher.module.parameters(), lr=1e-3)
    before = teacher.evaluate(teacher.module).metrics
    history = []
    for step in range(25):
        terms = teacher.loss(teacher.module, teacher.batch(step, 0, 1))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        history.append(float(terms["loss"].detach()))
    after = teacher.evaluate(teacher.module)
    assert sum(history[-5:]) < 0.75 * sum(history[:5])
    assert after.metrics["absrel_affine"] < before["absrel_affine"]
    assert after.metrics["sky_accuracy"] > 0.99  # rooms have none
    assert after.panels["depth"].shape[0] == 3
    teacher.export(tmp_path / "teacher.safetensors", {"made by": "a test"})
    model = load_model(tmp_path / "teacher.safetensors", device="cpu")
    picture = room(0, 1, 56, 42).images
    depth = model.predict(picture, size_px=56, gaussians=False).depth
    with torch.no_grad():
        expected, _ = teacher.module.eval()(teacher_batch([room(0, 1, 56, 42)])["images"])
    torch.testing.assert_close(depth, expected, rtol=2e-2, atol=1e-3)


def test_wrong_settings_are_one_clear_line(task, tmp_path):
    with pytest.raises(InputError, match="a teacher is a single-view network such as da3mono-tiny; da3-tiny relates"):
        replace(task, model="da3-tiny").open(0)
    with pytest.raises(InputError, match=r"a teacher learns from depth; set data.depth to true"):
        replace(task, data=TransformsData(folder=tmp_path))
    with pytest.raises(InputError, match=r"losses.blocks must be at least 1"):
        TeacherLosses(blocks=(0,))
