"""Which scenes, which frames, at which size."""

import json

import numpy as np
import pytest
import torch
from oracle import arc, see
from PIL import Image
from worlds import room

from da3gs import Cameras
from da3gs.data.covering import Covering
from da3gs.data.transforms_json import write_transforms_json
from da3gs.errors import FormatError, InputError
from da3gs.evaluate.frames import FrameChoice, FrameIndex, HeldOut, read_frame_index
from da3gs.evaluate.scenes import find_scenes
from da3gs.images import uint8_from_tensor


def write_scene(folder, frames=3):
    cameras = arc(frames)
    images, _ = see(cameras)
    (folder / "images").mkdir(parents=True)
    names = [f"images/{frame}.png" for frame in range(frames)]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(uint8_from_tensor(image)).save(folder / name)
    write_transforms_json(folder / "transforms.json", cameras, names)


# ------------------------------------------------------------------------------------------------ size


@pytest.mark.parametrize(
    ("original", "size"), [((640, 480), (256, 256)), ((100, 300), (120, 90)), ((64, 48), (64, 48))]
)
def test_covering_moves_pictures_and_cameras_alike(original, size):
    covering = Covering.of(original, size)
    # A picture whose colours are its pixel coordinates says where each new pixel comes from.
    columns, rows = np.meshgrid(np.arange(original[0]) + 0.5, np.arange(original[1]) + 0.5)
    x, y = covering.nearest(columns), covering.nearest(rows)
    K = torch.tensor([[[500.0, 0, original[0] / 3], [0, 480.0, original[1] / 2], [0, 0, 1]]], dtype=torch.float64)
    camera = Cameras(None, K, *original)
    moved = covering.cameras(camera)
    assert moved.size == size and x.shape == (size[1], size[0])
    u, v = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    for new, old, axis in ((u, x, 0), (v, y, 1)):
        ray_new = (new - float(moved.K[0, axis, 2])) / float(moved.K[0, axis, axis])
        ray_old = (old - float(K[0, axis, 2])) / float(K[0, axis, axis])
        pixel = 1 / float(K[0, axis, axis])
        assert np.abs(ray_new - ray_old).max() <= 0.51 * pixel * max(1, original[axis] / covering.scaled[axis])


def test_covering_keeps_the_picture_when_nothing_changes():
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    assert np.array_equal(Covering.of((64, 48), (64, 48)).picture(image), image)
    with pytest.raises(InputError, match="expected a picture of 64x48 px"):
        Covering.of((64, 48), (32, 32)).picture(image[:40])


def test_views_of_a_scene_at_one_size():
    scene = room(3)
    views = scene.views([0, 2], 63, depth=True)
    assert views.size == (63, 49) and views.names == ("00.png", "02.png") and views.depth.shape == (2, 49, 63)
    assert scene.views([1], 1000).size == (126, 98)  # never larger than the file
    truth = see(views.cameras)[1]
    assert float(((views.depth - truth).abs() / truth).median()) < 0.02
    with pytest.raises(InputError, match="scene bare has no true depth"):
        room(3, name="bare").__class__("bare", ("a",), arc(1), lambda frame: None).views([0], 63, depth=True)


# ------------------------------------------------------------------------------------------------ scenes


def test_scenes_of_folders(tmp_path):
    write_scene(tmp_path / "all/one")
    write_scene(tmp_path / "all/two/nerfstudio")  # as DL3DV has them
    (tmp_path / "all/nothing").mkdir()
    assert [scene.name for scene in find_scenes([tmp_path / "all"])] == ["one", "two"]
    (single,) = find_scenes([tmp_path / "all/one/transforms.json"])
    assert single.name == "one" and single.open().frames == ("images/0.png", "images/1.png", "images/2.png")
    assert single.open().folder == tmp_path / "all/one"
    with pytest.raises(InputError, match="two scenes are called one"):
        find_scenes([tmp_path / "all", tmp_path / "all/one"])
    with pytest.raises(InputError, match="holds no scene with cameras"):
        find_scenes([tmp_path / "all/nothing"])
    with pytest.raises(InputError, match="does not exist; give a data set"):
        find_scenes([tmp_path / "absent"])


def test_splits_in_files_of_their_own_are_read_together(tmp_path):
    write_scene(tmp_path / "lego", frames=4)
    content = json.loads((tmp_path / "lego/transforms.json").read_text())
    for split, frames in (("train", content["frames"][:3]), ("test", content["frames"][3:])):
        (tmp_path / f"lego/transforms_{split}.json").write_text(json.dumps(content | {"frames": frames}))
    (tmp_path / "lego/transforms.json").unlink()
    scene = find_scenes([tmp_path / "lego"])[0].open()
    context, targets = HeldOut().choose(scene)
    assert [scene.frames[frame] for frame in targets] == ["images/3.png"] and len(context) == 3


def test_a_linked_scene_has_the_name_of_its_link(tmp_path, caplog):
    write_scene(tmp_path / "real")
    (tmp_path / "all").mkdir()
    (tmp_path / "all/room1").symlink_to(tmp_path / "real")
    (found,) = find_scenes([tmp_path / "all"])
    index = FrameIndex("index.json", "0" * 64, {"room1": ((0, 2), (1,)), "room2": ((0,), (1,)), "room3": None})
    assert found.name == found.open().name == "room1"
    assert HeldOut(index).choose(found.open()) == ([0, 2], [1])
    HeldOut(index).check(["room1"])
    assert "1 scenes of index.json are not here, such as room2" in caplog.text


def test_procedural_scenes_are_the_same_every_time(monkeypatch):
    monkeypatch.setattr("da3gs.evaluate.scenes._PROCEDURAL_SIZE", (112, 84))
    monkeypatch.setattr("da3gs.evaluate.scenes._PROCEDURAL_FRAMES", 6)
    first, second = find_scenes(["procedural:2"])
    assert (first.name, second.name) == ("procedural_00", "procedural_01")
    scene, again = first.open(), first.open()
    assert np.array_equal(scene.picture(4), again.picture(4)) and (scene.depth(4) > 0).mean() > 0.3
    assert set(scene.splits["train"]) | set(scene.splits["test"]) == set(range(len(scene)))
    assert not np.array_equal(scene.picture(4), second.open().picture(4))


# ------------------------------------------------------------------------------------------------ frames


def test_frames_are_held_out_by_splits_or_every_eighth():
    scene = room(9)
    assert HeldOut().choose(scene) == ([1, 2, 3, 4, 5, 6, 7], [0, 8])
    assert HeldOut(every=3, targets=2).choose(scene)[1] == [0, 6]
    split = room(9, splits={"train": (0, 2, 4), "test": (1, 3)})
    assert HeldOut().choose(split) == ([0, 2, 4], [1, 3])
    context, targets = HeldOut(context=3).choose(scene)
    assert len(context) == 3 and not set(context) & set(targets) and context == sorted(context)
    assert {context[0], context[-1]} == {1, 7}  # far apart
    with pytest.raises(InputError, match="too few to hold one in 8 out"):
        HeldOut().choose(room(1))


def test_choices_of_frames():
    assert FrameChoice(3).choose(9) == [0, 4, 8] and FrameChoice(None).choose(4) == [0, 1, 2, 3]
    drawn = FrameChoice(4, "random", seed=1).choose(50)
    assert drawn == sorted(set(drawn)) and drawn == FrameChoice(4, "random", seed=1).choose(50) and len(drawn) == 4
    assert drawn != FrameChoice(4, "random", seed=2).choose(50)


def test_index_files(tmp_path):
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"room": {"context": [0, 2], "target": [1]}, "unusable": None}))
    index = read_frame_index(path)
    assert index.scenes == {"room": ((0, 2), (1,)), "unusable": None}
    assert HeldOut(index).choose(room(3)) == ([0, 2], [1])
    with pytest.raises(InputError, match=r"index.json names frame 2 of scene room, which has 2 frames"):
        HeldOut(index).choose(room(2))
    with pytest.raises(InputError, match="leave their numbers out"):
        HeldOut(index, context=4)
    for content, message in (
        ("[1]", "expected an object of scenes"),
        ("{", "not valid JSON"),
        ('{"room": {"context": []}}', "scene room needs a list 'context'"),
        ('{"room": {"context": [0]}}', "scene room needs a list 'target'"),
    ):
        path.write_text(content)
        with pytest.raises(FormatError, match=message):
            read_frame_index(path)
