"""cameras.json: exact round trips, and one clear line for everything that can be wrong."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from da3gs.data.cameras_json import read_camera_records, read_cameras_json, write_cameras_json
from da3gs.data.lens import Lens
from da3gs.data.photographs import Photograph
from da3gs.errors import FormatError, InputError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import matrix_from_quat


def some_cameras(seed=0, views=3, posed=True):
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(4).repeat(views, 1, 1)
    poses[:, :3, :3] = matrix_from_quat(torch.randn(views, 4, generator=generator))
    poses[:, :3, 3] = torch.randn(views, 3, generator=generator) * 100
    K = torch.eye(3).repeat(views, 1, 1)
    K[:, :2, :2] *= 50 + 1000 * torch.rand(views, 1, 1, generator=generator)
    K[:, 0, 1], K[:, 0, 2], K[:, 1, 2] = 0.25, 31.7, 23.9
    return Cameras(poses if posed else None, K, torch.arange(64, 64 + views), 48)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.booleans())
def test_round_trip_is_exact(tmp_path_factory, seed, views, posed):
    path = tmp_path_factory.mktemp("c") / "cameras.json"
    cameras = some_cameras(seed, views, posed)
    names = tuple(f"photo {i} ü.jpg" for i in range(views))
    write_cameras_json(path, cameras, names)
    again, read_names = read_cameras_json(path)
    assert read_names == names and torch.equal(again.K, cameras.K)
    assert torch.equal(again.width, cameras.width) and torch.equal(again.height, cameras.height)
    if posed:
        assert torch.equal(again.cam_from_world, cameras.cam_from_world)
    else:
        assert again.cam_from_world is None
    content = json.loads(path.read_text())
    assert content["convention"] == "opencv" and "pixels" in content["units"]


def test_photographs_are_read_back_and_lead_to_the_whole_image(tmp_path):
    K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    lenses = [Lens("fisheye", np.arange(8) / 100, K.copy(), 640, 480) for _ in range(2)]
    records = [Photograph(640, 480, True, lenses[0], (70, 56), (3, 4)), Photograph(640, 480, False, lenses[1]), None]
    cameras = some_cameras()
    write_cameras_json(tmp_path / "a.json", cameras, None, records)
    _, _, found = read_camera_records(tmp_path / "a.json")
    assert [None if record is None else record.to_dict() for record in found] == [
        None if record is None else record.to_dict() for record in records
    ]
    assert found[0].lens is found[1].lens  # equal lenses are undone by one map
    whole = found[0].whole(cameras[0])
    again = whole.scaled(width=70, height=56).cropped(left=3, top=4, width=64, height=48)
    assert whole.size == (640, 480) and torch.allclose(again.K.float(), cameras[0].K, atol=1e-5)
    with pytest.raises(InputError, match="one photograph per camera"):
        write_cameras_json(tmp_path / "b.json", cameras, None, records[:1])


def changed(path, change):
    write_cameras_json(path, some_cameras())
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


PHOTOGRAPH = {"width": 640, "height": 480, "turned_by_exif": True, "resized": [70, 56], "crop_left_top": [3, 4]}


def in_view(key, value):
    return lambda content: content["views"][1].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), "da3gs-cameras"),
        (lambda c: c.update(version=2), "version 2"),
        (lambda c: c.update(convention="opengl"), "'opengl'.*convert"),
        (lambda c: c.pop("convention"), "opencv"),
        (lambda c: c.update(views=[]), "non-empty"),
        (in_view("width", 0), r"view 1 \(view_001\): width.*got 0"),
        (in_view("height", 4.5), r"view 1.*height.*4\.5"),
        (in_view("K", [[1, 0], [0, 1]]), r"view 1.*K must be 3x3.*\[2, 2\]"),
        (in_view("K", "eye"), "view 1.*K must be a 3x3"),
        (in_view("K", np.diag([0.0, 50, 1]).tolist()), "view 1.*singular"),
        (in_view("K", np.diag([50.0, 50, 2]).tolist()), "view 1.*last row 0 0 1"),
        (in_view("cam_from_world", np.eye(3).tolist()), r"view 1.*4x4.*\[3, 3\]"),
        (in_view("cam_from_world", np.diag([2.0, 2, 2, 1]).tolist()), "view 1.*no rotation"),
        (in_view("cam_from_world", np.diag([1.0, 1, -1, 1]).tolist()), "view 1.*mirror"),
        (in_view("cam_from_world", [[float("nan")] * 4] * 4), "view 1.*NaN"),
        (in_view("cam_from_world", None), "all or none"),
        (in_view("photograph", {"width": 4}), "view 1.*'photograph' must hold.*height.*remove it"),
        (in_view("photograph", [1, 2]), "view 1.*'photograph' must hold"),
        (in_view("photograph", PHOTOGRAPH | {"crop_left_top": [-3, 0]}), "view 1.*impossible sizes"),
        (
            in_view("photograph", PHOTOGRAPH | {"lens": {"model": "pinhole", "coefficients": [], "K": []}}),
            "view 1.*lens",
        ),
    ],
)
def test_bad_files_are_explained(tmp_path, change, message):
    with pytest.raises(FormatError, match=message) as caught:
        read_cameras_json(changed(tmp_path / "cameras.json", change))
    assert "\n" not in str(caught.value) and "cameras.json" in str(caught.value)


def test_other_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_cameras_json(tmp_path / "gone.json")
    (tmp_path / "a.json").write_text("not json")
    with pytest.raises(FormatError, match="not valid JSON"):
        read_cameras_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="one name per camera"):
        write_cameras_json(tmp_path / "b.json", some_cameras(), ["only one"])
    assert not (tmp_path / "b.json").exists()
