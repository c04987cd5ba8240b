"""Everything a user may point at becomes views; what cannot be used is named, what was decided is noted."""

import json
import shutil

import numpy as np
import pytest
import torch
from assets import asset
from PIL import Image

from da3gs.data.cameras_json import write_cameras_json
from da3gs.data.inputs import load_input
from da3gs.data.view_choice import evenly_spread, farthest_views
from da3gs.errors import FormatError, InputError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import matrix_from_quat
from da3gs.images import load_image, prepare_views

ORIENTATION, EXIF_IFD, FOCAL_35MM = 0x0112, 0x8769, 0xA405


def picture(seed, size=(64, 48)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def photos(folder, count=3, size=(64, 48), suffix=".png"):
    folder.mkdir(exist_ok=True)
    for index in range(count):
        picture(index, size).save(folder / f"{index}{suffix}")
    return folder


def turned_photo(path, seed=0, size=(64, 48), orientation=6, focal_35mm=None):
    image = picture(seed, size)
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    if focal_35mm is not None:
        exif.get_ifd(EXIF_IFD)[FOCAL_35MM] = focal_35mm
    image.save(path, exif=exif, quality=95)


def cameras_around(count, size=(64, 48), seed=0):
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, :3, :3] = matrix_from_quat(torch.randn(count, 4, generator=generator))
    poses[:, :3, 3] = torch.randn(count, 3, generator=generator)
    K = torch.tensor([[50.0, 0, size[0] / 2], [0, 51.0, size[1] / 2], [0, 0, 1]]).repeat(count, 1, 1)
    return Cameras(poses, K, *size)


# ---------------------------------------------------------------- photographs without cameras


def test_folder_in_natural_order(tmp_path):
    folder = photos(tmp_path / "in", 11)
    views = load_input(folder)
    assert views.kind == "folder" and views.names == tuple(f"{i}.png" for i in range(11))
    assert views.cameras is None and views.depth is None and views.skipped == () and views.notes == ()
    assert views.sizes == ((64, 48),) * 11 and all(
        image == folder / name for image, name in zip(views.images, views.names, strict=True)
    )


def test_pattern_list_and_single_image(tmp_path):
    folder = photos(tmp_path / "in", 4)
    by_pattern = load_input(str(folder / "[0-2].png"))
    by_list = load_input([folder / "3.png", folder / "0.png"])
    one = load_input(folder / "2.png")
    assert by_pattern.kind == "glob" and by_pattern.names == ("0.png", "1.png", "2.png")
    assert by_list.names == ("3.png", "0.png")  # the order given
    assert one.kind == "image" and one.names == ("2.png",)


def test_names_stay_unique_across_folders(tmp_path):
    photos(tmp_path / "a", 1)
    (tmp_path / "b").mkdir()
    picture(9).save(tmp_path / "b" / "0.png")
    assert load_input(str(tmp_path / "*" / "0.png")).names == ("a/0.png", "b/0.png")


def test_what_cannot_be_used_is_named(tmp_path):
    folder = photos(tmp_path / "in", 4)
    shutil.copy(folder / "1.png", folder / "7_copy.png")
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    (folder / "4.png").write_bytes(b"")
    (folder / "5.jpg").write_text("no picture")
    picture(5, (64, 8)).save(folder / "6.png")
    views = load_input(folder)
    assert views.names == ("0.png", "1.png", "3.png")
    reasons = dict(views.skipped)
    assert list(reasons) == ["2.png", "4.png", "5.jpg", "6.png", "7_copy.png"]
    for name, words in {
        "2.png": "damaged",
        "4.png": "empty",
        "5.jpg": "not an image",
        "6.png": "64x8 px is too small",
        "7_copy.png": "same file as 1.png",
    }.items():
        assert words in reasons[name] and str(folder) not in reasons[name]


def test_truncated_jpeg_is_found(tmp_path):
    """At an eighth of the size, but to the last byte."""
    folder = photos(tmp_path / "in", 2, (640, 480), ".jpg")
    whole = (folder / "0.jpg").read_bytes()
    (folder / "0.jpg").write_bytes(whole[: int(len(whole) * 0.9)])
    assert [name for name, _ in load_input(folder).skipped] == ["0.jpg"]


def test_refused_when_nothing_is_left(tmp_path):
    folder = photos(tmp_path / "in", 1)
    (folder / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"no usable image .*0\.png: .*empty"):
        load_input(folder)
    with pytest.raises(FormatError, match="empty"):
        load_input(folder / "0.png")
    with pytest.raises(InputError, match="no images in folder"):
        load_input(tmp_path / "in" / "..")
    with pytest.raises(InputError, match="does not exist"):
        load_input(tmp_path / "absent")


def test_a_damaged_choice_is_replaced(tmp_path):
    """max_views counts usable images, and only chosen ones are decoded to the end."""
    folder = photos(tmp_path / "in", 9)
    whole = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(whole[:-200])
    views = load_input(folder, max_views=3)
    assert views.names == ("0.png", "5.png", "8.png") and [name for name, _ in views.skipped] == ["4.png"]
    assert views.notes == ("took 3 of 8 images, spread evenly along the sequence",)
    assert load_input(folder, max_views=1).names == ("5.png",)
    assert len(load_input(folder, max_views=100)) == 8


def test_exif_turn_and_focal_hint(tmp_path):
    turned_photo(tmp_path / "a.jpg", 0, (80, 60), 6, focal_35mm=28)
    turned_photo(tmp_path / "b.jpg", 1, (80, 60), 1, focal_35mm=28)
    views = load_input(tmp_path)
    assert views.sizes == ((60, 80), (80, 60))
    assert [views.load_image(i).shape[:2] for i in (0, 1)] == [(80, 60), (60, 80)]
    expected = 28 / np.hypot(36, 24) * 100
    assert views.focal_hint_px == pytest.approx((expected, expected))
    hinted = views.hinted_cameras()
    assert hinted.cam_from_world is None and hinted.K[0].tolist() == pytest.approx(
        np.array([[expected, 0, 30], [0, expected, 40], [0, 0, 1]]), rel=1e-6
    )
    assert any("1 of 2 photographs turned upright" in note for note in views.notes)
    assert any("2 sizes (60x80, 80x60)" in note for note in views.notes)
    # What the network is fed is the same picture with and without cameras.
    plain = prepare_views(list(views.images), size_px=56)
    posed = views.with_cameras(hinted)
    with_cameras = prepare_views(list(posed.images), posed.cameras, size_px=56)
    assert torch.equal(plain.images, with_cameras.images)


def test_mixed_sizes(tmp_path):
    photos(tmp_path / "in", 2)
    picture(5, (50, 90)).save(tmp_path / "in" / "9.png")
    assert load_input(tmp_path / "in").sizes == ((64, 48), (64, 48), (50, 90))


def test_real_photographs():
    views = load_input(asset("data/unposed_lund/images"))
    assert views.names == tuple(f"{i:02d}.jpg" for i in range(5, 11)) and views.sizes == ((960, 720),) * 6


# ---------------------------------------------------------------- cameras


def test_transforms_json_of_fox():
    views = load_input(asset("data/posed_fox"), max_views=3)
    assert views.kind == "transforms" and len(views) == 3
    assert any("lens distortion undone in 3 of 3" in note for note in views.notes)
    assert any("took 3 of 50 views, farthest apart" in note for note in views.notes)
    for index in range(3):
        image = views.load_image(index)
        assert (image.shape[1], image.shape[0]) == views.sizes[index] == (540, 960)
    stored = load_image(asset("data/posed_fox") / views.names[0])
    assert not np.array_equal(views.images[0], stored)


def test_splits():
    folder = asset("data/posed_fountain_p11")
    whole = load_input(folder)
    train, test = load_input(folder, split="train"), load_input(folder / "transforms.json", split="test")
    assert len(whole) == 11 and set(train.names) | set(test.names) == set(whole.names)
    assert not set(train.names) & set(test.names)
    with pytest.raises(InputError, match="no views in split 'day'"):
        load_input(folder, split="day")


def test_missing_images_of_transforms_json_are_named(tmp_path):
    source = asset("data/posed_fountain_p11")
    content = json.loads((source / "transforms.json").read_text())
    (tmp_path / "images").mkdir()
    for frame in content["frames"][:9]:
        shutil.copy(source / frame["file_path"], tmp_path / frame["file_path"])
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    views = load_input(tmp_path)
    assert len(views) == 9
    assert views.skipped == tuple((frame["file_path"], "the image does not exist") for frame in content["frames"][9:])


def test_rgbd():
    folder = asset("data/rgbd_tabletop_d435i")
    plain = load_input(folder, max_views=2)
    assert plain.kind == "transforms" and plain.depth is None
    assert any("measured depth, which is not used" in note for note in plain.notes)
    views = load_input(folder, depth=True, max_views=2)
    assert views.kind == "rgbd" and views.names == plain.names
    for depth, (width, height) in zip(views.depth, views.sizes, strict=True):
        assert depth.shape == (height, width) and 0.3 < float(depth[depth > 0].median()) < 1.0
    # The depth of one view lands on the surface the other one sees: cameras, depth and order are one system.
    points = views.cameras[0].unproject(views.depth[0][None])[0][views.depth[0] > 0]
    uv, z = views.cameras[1].project(points)
    column, row = uv[0].floor().long().unbind(-1)
    inside = (column >= 0) & (column < views.sizes[1][0]) & (row >= 0) & (row < views.sizes[1][1])
    seen = views.depth[1][row[inside], column[inside]]
    error = (seen - z[0][inside]).abs()[seen > 0]
    assert len(error) > 50_000 and float(error.median()) < 0.006
    with pytest.raises(InputError, match="no depth file"):
        load_input(asset("data/posed_fountain_p11"), depth=True)


def test_cameras_json_is_matched_by_name(tmp_path):
    folder = photos(tmp_path / "in", 4)
    cameras = cameras_around(3)
    write_cameras_json(tmp_path / "cameras.json", cameras, ["2.png", "elsewhere.png", "0.png"])
    views = load_input(folder, cameras=tmp_path / "cameras.json")
    assert views.names == ("0.png", "2.png") and views.kind == "folder"
    assert torch.equal(views.cameras.cam_from_world, cameras[[2, 0]].cam_from_world)
    assert views.skipped == (
        ("1.png", "cameras.json has no camera for it"),
        ("3.png", "cameras.json has no camera for it"),
    )
    assert views.notes == ("1 cameras of cameras.json have no image here",)
    with pytest.raises(InputError, match="for any of the 4 images"):
        write_cameras_json(tmp_path / "cameras.json", cameras, ["x", "y", "z"])
        load_input(folder, cameras=tmp_path / "cameras.json")


def test_unnamed_cameras_are_taken_in_order(tmp_path):
    folder = photos(tmp_path / "in", 3)
    cameras = cameras_around(3)
    write_cameras_json(tmp_path / "cameras.json", cameras)
    views = load_input(folder, cameras=tmp_path / "cameras.json")
    assert torch.equal(views.cameras.K, cameras.K) and "in the order of the images" in views.notes[0]


def test_cameras_follow_the_size_of_the_image(tmp_path):
    folder = photos(tmp_path / "in", 2, (64, 48))
    cameras = cameras_around(2, (128, 96))
    write_cameras_json(tmp_path / "cameras.json", cameras, ["0.png", "1.png"])
    views = load_input(folder, cameras=tmp_path / "cameras.json")
    assert views.cameras.size == (64, 48) and float(views.cameras.K[0, 0, 0]) == 25.0
    write_cameras_json(tmp_path / "cameras.json", cameras_around(2, (96, 96)), ["0.png", "1.png"])
    with pytest.raises(InputError, match=r"camera of 0\.png is for 96x96 px but the image has 64x48"):
        load_input(folder, cameras=tmp_path / "cameras.json")


def test_cameras_of_the_patch_grid_without_a_record(tmp_path):
    """Rounding small sides to 14 px bends the aspect ratio; K is scaled per axis, which undoes it exactly."""
    folder = photos(tmp_path / "in", 2, (200, 150))
    cameras = cameras_around(2, (200, 150)).scaled(width=126, height=98)
    write_cameras_json(tmp_path / "cameras.json", cameras, ["0.png", "1.png"])
    views = load_input(folder, cameras=tmp_path / "cameras.json")
    assert torch.allclose(views.cameras.K, cameras_around(2, (200, 150)).K, rtol=1e-6)
    assert views.notes == (
        "2 of 2 cameras of cameras.json were scaled to the size of their images (126x98 to 200x150 px)",
    )
    write_cameras_json(tmp_path / "cameras.json", cameras.scaled(width=126, height=112), ["0.png", "1.png"])
    with pytest.raises(InputError, match="for 126x112 px but the image has 200x150: another aspect ratio"):
        load_input(folder, cameras=tmp_path / "cameras.json")


@pytest.mark.parametrize(("size", "upright"), [((48, 64), True), ((64, 48), False)])
def test_cameras_decide_whether_exif_turns(tmp_path, size, upright):
    """A camera of 48x64 px describes the turned picture of a 64x48 px file, one of 64x48 px the stored pixels."""
    (tmp_path / "in").mkdir()
    turned_photo(tmp_path / "in" / "a.jpg", size=(64, 48))
    write_cameras_json(tmp_path / "cameras.json", cameras_around(1, size), ["a.jpg"])
    views = load_input(tmp_path / "in", cameras=tmp_path / "cameras.json")
    expected = load_image(tmp_path / "in" / "a.jpg", exif_orientation=upright)
    assert np.array_equal(views.images[0], expected) and views.sizes == (size,)


def test_intrinsics_alone(tmp_path):
    folder = photos(tmp_path / "in", 3)
    write_cameras_json(tmp_path / "cameras.json", cameras_around(3).without_poses(), [f"{i}.png" for i in range(3)])
    views = load_input(folder, cameras=tmp_path / "cameras.json", max_views=2)
    assert views.cameras.cam_from_world is None and views.names == ("0.png", "2.png")


def test_cameras_of_transforms_json_for_a_plain_folder():
    folder = asset("data/posed_fox")
    whole = load_input(folder)[:3]
    views = load_input([folder / name for name in whole.names], cameras=folder / "transforms.json")
    assert torch.equal(views.cameras.cam_from_world, whole.cameras.cam_from_world)
    assert all(np.array_equal(a, b) for a, b in zip(views.images, whole.images, strict=True))


# ---------------------------------------------------------------- choosing


def test_evenly_spread():
    assert evenly_spread(10, 4) == [0, 3, 6, 9] and evenly_spread(10, 1) == [5] and evenly_spread(3, 9) == [0, 1, 2]
    with pytest.raises(InputError):
        evenly_spread(3, 0)


def test_farthest_views_cover_clusters():
    """Three clusters of very different sizes: three views are one of each; the order of the views does not matter."""
    centres = torch.cat([torch.zeros(20, 3), torch.tensor([[10.0, 0, 0]]).repeat(3, 1), torch.tensor([[0, 10.0, 0]])])
    centres = centres + 0.01 * torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
    poses = torch.eye(4).repeat(24, 1, 1)
    poses[:, :3, 3] = -centres
    cameras = Cameras(poses, torch.eye(3).repeat(24, 1, 1), 8, 8)
    chosen = farthest_views(cameras, 3)
    assert {min(i // 20 + i // 23, 2) for i in chosen} == {0, 1, 2} and chosen == sorted(chosen)
    shuffle = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    assert sorted(int(shuffle[i]) for i in farthest_views(cameras[shuffle], 3)) == chosen
    assert 0 not in farthest_views(cameras, 3, among=range(1, 24))


def test_farthest_views_see_directions():
    """A camera turning on the spot: four views look into four directions."""
    angles = torch.arange(12) * torch.pi / 6
    poses = torch.eye(4).repeat(12, 1, 1)
    poses[:, 0, 0], poses[:, 0, 2], poses[:, 2, 0], poses[:, 2, 2] = (
        angles.cos(),
        -angles.sin(),
        angles.sin(),
        angles.cos(),
    )
    chosen = farthest_views(Cameras(poses, torch.eye(3).repeat(12, 1, 1), 8, 8), 4)
    gaps = np.diff([*chosen, chosen[0] + 12])
    assert len(chosen) == 4 and gaps.min() >= 2


def test_farthest_views_of_one_place():
    cameras = Cameras(torch.eye(4).repeat(5, 1, 1), torch.eye(3).repeat(5, 1, 1), 8, 8)
    assert len(set(farthest_views(cameras, 3))) == 3


# ---------------------------------------------------------------- options that do not fit


def test_options_must_fit_the_kind(tmp_path):
    folder = photos(tmp_path / "in", 2)
    for options, words in [
        ({"fps": 2}, "are for videos"),
        ({"frames": 2}, "are for videos"),
        ({"depth": True}, "'depth' needs a transforms.json"),
        ({"split": "train"}, "'split' needs a transforms.json"),
        ({"max_views": 0}, "max_views must be >= 1"),
        ({"cameras": tmp_path / "absent.json"}, "does not exist"),
    ]:
        with pytest.raises(InputError, match=words):
            load_input(folder, **options)
    (tmp_path / "scene.ply").write_bytes(b"ply")
    with pytest.raises(InputError, match="holds Gaussians already"):
        load_input(tmp_path / "scene.ply")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"x")
    with pytest.raises(InputError, match=r"the video a\.mp4; give that file"):
        load_input(tmp_path / "clips")


def test_damaged_image_list(tmp_path):
    folder = photos(tmp_path / "in", 2)
    with pytest.raises(InputError, match=r"gone\.png not found"):
        load_input([folder / "0.png", folder / "gone.png"])
    with pytest.raises(InputError, match="more than once"):
        load_input([folder / "0.png", folder / "0.png"])
