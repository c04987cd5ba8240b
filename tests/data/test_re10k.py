"""Chunks of RealEstate10K: what is written as pixelSplat writes it is read back."""

import io
import json

import numpy as np
import pytest
import torch
from oracle import arc, see
from PIL import Image

from da3gs.data.re10k import chunk_index, is_chunk_folder, read_chunked_scene
from da3gs.errors import FormatError, InputError
from da3gs.evaluate.frames import HeldOut, read_frame_index
from da3gs.evaluate.scenes import find_scenes
from da3gs.images import uint8_from_tensor


def encoded(picture) -> torch.Tensor:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    return torch.frombuffer(bytearray(content.getvalue()), dtype=torch.uint8)


def chunk(keys, frames=5):
    cameras = arc(frames)
    images, _ = see(cameras)
    width, height = cameras.size
    numbers = torch.zeros(frames, 18)
    numbers[:, 0], numbers[:, 1] = cameras.K[:, 0, 0] / width, cameras.K[:, 1, 1] / height
    numbers[:, 2], numbers[:, 3] = cameras.K[:, 0, 2] / width, cameras.K[:, 1, 2] / height
    numbers[:, 6:] = cameras.cam_from_world[:, :3].flatten(1)
    pictures = [encoded(uint8_from_tensor(image)) for image in images]
    stamps = torch.arange(frames) * 33_000
    return [{"key": key, "url": "", "timestamps": stamps, "cameras": numbers, "images": pictures} for key in keys]


@pytest.fixture
def folder(tmp_path):
    torch.save(chunk(["aa", "bb"]), tmp_path / "000000.torch")
    torch.save(chunk(["cc"]), tmp_path / "000001.torch")
    index = {"aa": "000000.torch", "bb": "000000.torch", "cc": "000001.torch"}
    (tmp_path / "index.json").write_text(json.dumps(index))
    return tmp_path


def test_scenes_come_back(folder):
    assert is_chunk_folder(folder) and list(chunk_index(folder)) == ["aa", "bb", "cc"]
    scene = read_chunked_scene(folder / "000001.torch", "cc")
    cameras = arc(5)
    assert scene.key == "cc" and len(scene) == 5 and scene.timestamps[2] == 66_000
    torch.testing.assert_close(scene.cameras.cam_from_world, cameras.cam_from_world)
    torch.testing.assert_close(scene.cameras.K, cameras.K)
    assert scene.cameras.size == cameras.size
    assert np.array_equal(scene.load_image(3), uint8_from_tensor(see(cameras)[0][3]))


def test_they_are_scenes_to_evaluate_by_a_published_index(folder, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"aa": {"context": [0, 4], "target": [1, 2]}, "bb": None}))
    held_out = HeldOut(read_frame_index(path))
    scenes = find_scenes([folder])
    assert [scene.name for scene in scenes] == ["aa", "bb", "cc"]
    assert [scene.name for scene in scenes if held_out.names(scene.name)] == ["aa"]
    scene = scenes[0].open()
    assert held_out.choose(scene) == ([0, 4], [1, 2])
    views = scene.views([0, 4], (64, 64))
    assert views.size == (64, 64) and views.depth is None
    # The crop keeps every pixel on its ray: what the room shows there.
    seen = see(views.cameras)[0]
    assert (views.pictures - seen).abs().mean() < 0.02


def test_damage_is_one_clear_line(folder):
    (folder / "000002.torch").write_bytes(b"not a chunk")
    with pytest.raises(FormatError, match=r"000002.torch is no chunk of scenes, or damaged"):
        read_chunked_scene(folder / "000002.torch", "dd")
    torch.save({"a": 1}, folder / "000003.torch")
    with pytest.raises(FormatError, match="expected a list of scenes; got dict"):
        read_chunked_scene(folder / "000003.torch", "dd")
    with pytest.raises(InputError, match=r"holds no scene dd, although index.json says so"):
        read_chunked_scene(folder / "000000.torch", "dd")
    bad = chunk(["ee"])
    bad[0]["cameras"] = bad[0]["cameras"][:, :12]
    torch.save(bad, folder / "000004.torch")
    with pytest.raises(FormatError, match=r"scene ee: expected cameras \[N, 18\]"):
        read_chunked_scene(folder / "000004.torch", "ee")
    bad = chunk(["ff"])
    bad[0]["images"][0] = torch.zeros(10, dtype=torch.uint8)
    torch.save(bad, folder / "000005.torch")
    with pytest.raises(FormatError, match=r"scene ff, frame 0: not an encoded image"):
        read_chunked_scene(folder / "000005.torch", "ff")
    for name, content in (("000006.torch", b""), ("000007.torch", b"e\n")):
        (folder / name).write_bytes(content)
        with pytest.raises(FormatError, match=rf"{name} is no chunk of scenes, or damaged \(\w+"):
            read_chunked_scene(folder / name, "gg")
    cut = chunk(["hh"])
    cut[0]["images"][1] = cut[0]["images"][1][:-300]
    torch.save(cut, folder / "000008.torch")
    with pytest.raises(FormatError, match=r"hh, frame 1: not an encoded image"):
        read_chunked_scene(folder / "000008.torch", "hh").load_image(1)
    (folder / "index.json").write_text(json.dumps({"aa": "000009.torch"}))
    with pytest.raises(InputError, match=r"names 1 chunks that do not exist, such as 000009.torch"):
        chunk_index(folder)
