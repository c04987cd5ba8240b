"""Posed photographs as training data: a real scene, scaled and cropped with its cameras."""

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from assets import asset
from PIL import Image
from train.rooms import room

from da3gs.data.transforms_json import write_transforms_json
from da3gs.data.view_sampling import ViewSamplingConfig, neighbouring_frames
from da3gs.errors import FormatError, InputError
from da3gs.images import uint8_from_tensor
from da3gs.train.student import StudentTask
from da3gs.train.transforms_data import TransformsData


def test_pictures_and_cameras_stay_together():
    folder = asset("data/posed_fox")
    source = TransformsData(folder=folder, sizes=((112, 140),), holdout=0).open()
    assert source.frame_count(0) >= 10
    sample = source.load(0, [5, 2])
    assert sample.images.shape == (2, 3, 140, 112) and sample.cameras.size == (112, 140)
    assert (sample.depth == 0).all() and sample.images.min() >= 0 and sample.images.max() <= 1
    # The crop about the centre keeps the angle a pixel covers: half the size gives half the focal length.
    half = TransformsData(folder=folder, sizes=((56, 70),), holdout=0).open().load(0, [5, 2])
    torch.testing.assert_close(half.cameras.K[:, 0, 0] * 2, sample.cameras.K[:, 0, 0], rtol=5e-3, atol=0)
    torch.testing.assert_close(half.cameras.cam_from_world, sample.cameras.cam_from_world)
    small = torch.nn.functional.avg_pool2d(sample.images, 2)
    assert (small - half.images).abs().mean() < 0.03
    other = source.load(0, [2])
    assert torch.equal(other.images[0], sample.images[1])


def test_no_scenes_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"no training scene with a transforms\.json under .* \(0 found in all\)"):
        TransformsData(folder=tmp_path).open()


def test_a_scene_too_short_for_a_sample_is_named(gs_task, tmp_path):
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "transforms.json").write_text('{"frames": [{}, {}, {}]}')
    data = TransformsData(folder=tmp_path, sizes=((56, 56),), holdout=0)
    task = gs_task(data=data, views=ViewSamplingConfig(context=(4, 4), targets=2)).open(0)
    with pytest.raises(InputError, match=r"short.transforms\.json: .* needs 6 frames; the scene has 3; leave"):
        task.batch(0, 0, 1)


# ------------------------------------------------------------------------------------------------ with depth


@pytest.fixture
def rgbd(tmp_path):
    """Two scenes of eight frames with exact depth, as files."""
    for scene in range(2):
        whole = room(scene, 8, 84, 56)
        folder = tmp_path / f"scene{scene}"
        (folder / "depth").mkdir(parents=True)
        for view in range(8):
            Image.fromarray(uint8_from_tensor(whole.images[view])).save(folder / f"{view}.png")
            np.save(folder / f"depth/{view}.npy", whole.depth[view].numpy())
        names, maps = [f"{view}.png" for view in range(8)], [f"depth/{view}.npy" for view in range(8)]
        write_transforms_json(folder / "transforms.json", whole.cameras, names, depth_paths=maps)
    return tmp_path


def student(folder, **settings):
    data = TransformsData(folder=folder, sizes=((84, 56),), holdout=0, depth=True)
    return StudentTask(
        data=data, evaluation_data=data, images_per_batch=6, views=(3, 3), mirror=False, color_jitter=0.0, **settings
    )


def test_depth_comes_with_the_pictures(rgbd):
    truth = room(1, 8, 84, 56)
    sample = TransformsData(folder=rgbd, sizes=((84, 56),), holdout=0, depth=True).open().load(1, [6, 2])
    torch.testing.assert_close(sample.depth, truth.depth[[6, 2]])
    assert (sample.images - truth.images[[6, 2]]).abs().max() < 0.003
    near = TransformsData(folder=rgbd, sizes=((84, 56),), holdout=0, depth=True, max_depth=2.0).open().load(1)
    assert near.depth.max() <= 2.0 and len(near) == 8
    assert torch.equal(near.depth == 0, truth.depth > 2.0)
    # Cropped and halved, depth still lies on the room: unprojected by the moved cameras, on the same walls.
    small = TransformsData(folder=rgbd, sizes=((28, 28),), holdout=0, depth=True).open().load(1)
    walls = truth.cameras.unproject(truth.depth).reshape(-1, 3).abs().amax(0)
    points = small.cameras.unproject(small.depth)
    on_wall = ((points.abs() - walls).abs() < 0.06).any(-1)
    assert on_wall.float().mean() > 0.97


def test_a_student_learns_from_rgbd(rgbd):
    task = student(rgbd, frame_gap=(2, 2)).open(0)
    batch = task.batch(0, 0, 1)
    assert batch["images"].shape == (2, 3, 3, 56, 84) and batch["mask"].all()
    # Points of rays and depth of all views lie on one box: that of the scene, in the frame of the first view.
    points = batch["rays"][..., 3:] + batch["cell_depth"][..., None] * batch["rays"][..., :3]
    assert points[batch["cell_mask"]].norm(dim=-1).mean() == pytest.approx(1, abs=0.03)
    again = task.batch(0, 0, 1)
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    halves = [task.batch(0, rank, 2)["images"] for rank in range(2)]
    assert torch.equal(torch.cat(halves), batch["images"])
    terms = task.loss(task.module, batch)
    terms["loss"].backward()
    assert torch.isfinite(terms["loss"]) and terms["depth"] > 0
    metrics = task.evaluate(task.module).metrics
    assert 0 <= metrics["delta1_free"] <= 1 and metrics["identity_deg_free"] > 1


def test_frames_of_a_student_are_neighbours():
    rng = random.Random(0)
    for _ in range(50):
        chosen = neighbouring_frames(rng, 30, 4, (2, 5))
        gaps = {b - a for a, b in itertools.pairwise(sorted(chosen))}
        assert len(gaps) == 1 and 2 <= gaps.pop() <= 5 and min(chosen) >= 0 and max(chosen) < 30
    assert sorted(neighbouring_frames(rng, 4, 4, (9, 9))) == [0, 1, 2, 3]  # the widest that fits
    assert len({tuple(neighbouring_frames(rng, 4, 4, (1, 1))) for _ in range(20)}) > 1  # any may be the reference
    with pytest.raises(InputError, match="a sample of 5 views needs as many frames; the scene has 4"):
        neighbouring_frames(rng, 4, 5, (1, 1))


def test_a_student_without_depth_is_one_clear_line(rgbd):
    data = TransformsData(folder=rgbd, sizes=((84, 56),), holdout=0)
    path = rgbd / "spoilt/transforms.json"
    path.parent.mkdir()
    path.write_text('{"frames": [{"file_path": "a.png", "depth_file_path": null}]}')
    with pytest.raises(InputError, match=r"1 of 3 scenes have frames without depth_file_path: .*spoilt"):
        student(rgbd).open(0)
    path.write_text('{"frames": []}')
    with pytest.raises(FormatError, match=r"spoilt.transforms.json is no transforms.json \(frames must be .* at least"):
        student(rgbd).open(0)
    path.unlink()
    with pytest.raises(InputError, match=r"a student learns from depth; set data.depth to true"):
        StudentTask(data=data)
    with pytest.raises(InputError, match=r"frame_gap must be \(fewest, most\)"):
        StudentTask(frame_gap=(0, 2))
    with pytest.raises(InputError, match="a sample needs 9 views; no scene has so many frames"):
        replace(student(rgbd), views=(9, 9), images_per_batch=9).open(0)
    (rgbd / "empty").mkdir()
    with pytest.raises(InputError, match="no training scene"):  # said at once, not at the first evaluation
        replace(student(rgbd), evaluation_data=TransformsData(folder=rgbd / "empty", depth=True)).open(0)


def test_short_scenes_are_drawn_where_they_suffice(rgbd, caplog):
    path = rgbd / "scene0/transforms.json"
    content = json.loads(path.read_text())
    content["frames"] = content["frames"][:4]
    path.write_text(json.dumps(content))
    task = replace(student(rgbd), views=(3, 6), images_per_batch=6).open(0)
    seen = {task.batch(index, 0, 1)["images"].shape[1] for index in range(12)}
    assert max(seen) > 4 and min(seen) == 3  # long samples come from the long scene
    content["frames"] = content["frames"][:2]
    path.write_text(json.dumps(content))
    replace(student(rgbd), views=(3, 6), images_per_batch=6).open(0).batch(0, 0, 1)
    assert "1 of 2 scenes have fewer than 3 frames and are not used" in caplog.text
    content["frames"][0].pop("depth_file_path")
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"1 of 2 scenes have frames without depth_file_path: .*scene0"):
        student(rgbd).open(0)
