"""transforms.json of nerfstudio, instant-ngp and Blender: real sets, round trips, and everything that can be wrong."""

import json
import math

import numpy as np
import pytest
import torch
from assets import asset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from da3gs.data.inputs import load_input
from da3gs.data.transforms_json import read_transforms_json, write_transforms_json
from da3gs.errors import FormatError, InputError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import matrix_from_quat


def pose(x=0.0, y=0.0, z=0.0):
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return matrix.tolist()


def write_set(folder, frames=3, size=(40, 30), top=None, per_frame=None, **options):
    """A data set of plain images; returns the JSON's path."""
    (folder / "images").mkdir(exist_ok=True)
    content = {"w": 40, "h": 30, "fl_x": 50.0, "fl_y": 51.0, "cx": 21.0, "cy": 14.0} if top is None else dict(top)
    content["frames"] = []
    for index in range(frames):
        name = f"images/{index}.png"
        Image.new("RGB", size, (index, 0, 0)).save(folder / name)
        content["frames"].append({"file_path": name, "transform_matrix": pose(index), **(per_frame or {})})
    content |= options
    path = folder / "transforms.json"
    path.write_text(json.dumps(content))
    return path


# ---------------------------------------------------------------- real data


def epipolar_error_px(data, first, second):
    """Median distance of SIFT matches to their epipolar lines, from the loaded images and cameras alone."""
    import cv2

    sift = cv2.SIFT_create(2000)
    features = [
        sift.detectAndCompute(cv2.cvtColor(data.load_image(i), cv2.COLOR_RGB2GRAY), None) for i in (first, second)
    ]
    pairs = cv2.BFMatcher().knnMatch(features[0][1], features[1][1], k=2)
    good = [a for a, b in pairs if a.distance < 0.7 * b.distance]
    points = [
        np.array([features[side][0][m.queryIdx if side == 0 else m.trainIdx].pt for m in good]) + 0.5 for side in (0, 1)
    ]
    cameras = data.cameras[[first, second]].to(torch.float64)
    relative = (cameras.cam_from_world[1] @ cameras.world_from_cam[0]).numpy()
    t = relative[:3, 3]
    essential = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]]) @ relative[:3, :3]
    inverse = np.linalg.inv(cameras.K.numpy())
    fundamental = inverse[1].T @ essential @ inverse[0]
    lines = np.concatenate([points[0], np.ones((len(good), 1))], 1) @ fundamental.T
    distance = np.abs((lines[:, :2] * points[1]).sum(1) + lines[:, 2]) / np.linalg.norm(lines[:, :2], axis=1)
    assert len(good) > 60
    return float(np.median(distance))


@pytest.mark.parametrize(
    ("name", "views", "test_views", "size", "limit_px"),
    [
        ("posed_fox", 50, 6, (540, 960), 0.75),  # distorted; the set's own check finds 0.35 px over all pairs
        ("posed_fountain_p11", 11, 1, (960, 640), 0.3),  # 0.12 px
        ("rgbd_tabletop_d435i", 24, 3, (960, 540), 0.8),  # 0.40 px
    ],
)
def test_real_set_obeys_epipolar_geometry(name, views, test_views, size, limit_px):
    data = read_transforms_json(asset(f"data/{name}"))
    assert len(data) == views and data.cameras.size == size
    assert len(data.split("test")) == test_views and len(data.split("train")) == views - test_views
    assert set(data.split("test").names).isdisjoint(data.split("train").names)
    assert epipolar_error_px(data, 0, 1) < limit_px


def test_distortion_of_the_real_set_matters_and_is_removed():
    data = read_transforms_json(asset("data/posed_fox"))
    photo = data.photos[0]
    assert photo.lens is not None and data.photos[1].lens is photo.lens
    # Somewhere in the image the lens moves pixels by more than a pixel, so ignoring it would show.
    corner = np.array([[5.0, 5.0], [535.0, 955.0]])
    moved = photo.lens.pixels_from_pinhole(corner, photo.lens.K)
    assert np.abs(moved - corner).max() > 1.0
    image = data.load_image(0)
    assert image.shape == (960, 540, 3) and image.dtype == np.uint8
    assert float(data.cameras.K[0, 0, 2]) == pytest.approx(277.279, abs=1e-4)
    assert 0.95 < float(data.cameras.K[0, 0, 0]) / 687.76 < 1.05


def test_real_poses_look_at_a_common_scene():
    """Cameras of the fox circle it: the point nearest to all optical axes lies in front of every camera."""
    cameras = read_transforms_json(asset("data/posed_fox")).cameras.to(torch.float64)
    directions, centers = cameras.look_directions, cameras.centers
    projectors = torch.eye(3, dtype=torch.float64) - directions[:, :, None] * directions[:, None]
    point = torch.linalg.solve(projectors.sum(0), (projectors @ centers[..., None]).sum(0))[:, 0]
    assert (((point - centers) * directions).sum(1) > 0).all()


# ---------------------------------------------------------------- intrinsics


def test_opengl_poses_become_opencv(tmp_path):
    cameras = read_transforms_json(write_set(tmp_path)).cameras
    assert cameras.centers.tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
    # The OpenGL camera looks along -z with y up; a point above the axis in front of it lies in the upper image half.
    uv, z = cameras[0].project(torch.tensor([[0.0, 0.5, -5.0]]))
    assert float(z) == 5.0 and uv[0, 0].tolist() == pytest.approx([21.0, 14.0 - 51.0 * 0.1])


def test_angle_only_and_downscaled_images(tmp_path):
    path = write_set(tmp_path, top={"camera_angle_x": 0.9})
    K = read_transforms_json(path).cameras.K[0]
    assert K.flatten().tolist() == pytest.approx([20 / math.tan(0.45), 0, 20, 0, 20 / math.tan(0.45), 15, 0, 0, 1])
    path = write_set(tmp_path, size=(20, 15))
    data = read_transforms_json(path)
    assert data.cameras.size == (20, 15)
    assert data.cameras.K[0].flatten().tolist() == [25.0, 0, 10.5, 0, 25.5, 7.0, 0, 0, 1]


def test_frames_override_the_file_and_may_differ(tmp_path):
    path = write_set(tmp_path)
    content = json.loads(path.read_text())
    content["frames"][1] |= {"fl_x": 60.0, "w": 40, "h": 30}
    content["frames"][2] |= {"w": 64, "h": 48, "fl_x": 80.0, "fl_y": 80.0, "cx": 32.0, "cy": 24.0}
    Image.new("RGB", (64, 48)).save(tmp_path / "images/2.png")
    path.write_text(json.dumps(content))
    cameras = read_transforms_json(path).cameras
    assert cameras.K[:, 0, 0].tolist() == [50.0, 60.0, 80.0]
    assert cameras.width.tolist() == [40, 40, 64] and not cameras.same_size


def test_fisheye_is_undistorted(tmp_path):
    path = write_set(tmp_path, camera_model="OPENCV_FISHEYE", k1=0.05, k2=0.01, k3=0.0, k4=0.0)
    data = read_transforms_json(path)
    assert data.photos[0].lens.model == "fisheye" and data.load_image(2).shape == (30, 40, 3)
    assert data.load_image(2)[15, 20].tolist() == [2, 0, 0]


def test_portrait_photos_turned_by_exif(tmp_path):
    path = write_set(tmp_path, frames=1, top={"w": 30, "h": 40, "fl_x": 50.0})
    stored = np.zeros((30, 40, 3), np.uint8)
    stored[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "images/0.png", exif=exif)
    data = read_transforms_json(path)
    assert data.cameras.size == (30, 40)
    image = data.load_image(0)
    assert image.shape == (40, 30, 3) and image[0, -1].tolist() == [255] * 3
    Image.fromarray(stored).save(tmp_path / "images/0.png")
    with pytest.raises(FormatError, match="40x30 px but w x h is 30x40"):
        read_transforms_json(path)


# ---------------------------------------------------------------- splits, names, records


def test_split_lists_in_the_file_and_beside_it(tmp_path):
    lists = {"train_filenames": ["./images/0.png", "images/1.png"], "test_filenames": ["images/2.png"]}
    lists["val_filenames"] = ["images/2.png"]
    path = write_set(tmp_path, **lists)
    data = read_transforms_json(path)
    assert data.splits == {"train": (0, 1), "val": (2,), "test": (2,)}
    assert data.split("test").names == ("images/2.png",) and data[[2, 0]].splits["test"] == (0,)
    (tmp_path / "split.json").write_text(json.dumps({"train": ["images/1.png"], "test": ["images/0.png"]}))
    assert read_transforms_json(path).splits == {"train": (1,), "test": (0,)}
    with pytest.raises(InputError, match=r"'val'.*train \(1\), test \(1\)"):
        read_transforms_json(path).split("val")
    (tmp_path / "split.json").write_text(json.dumps({"train": ["images/9.png"]}))
    with pytest.raises(FormatError, match=r"images/9\.png"):
        read_transforms_json(path)


def test_without_lists_every_view_trains(tmp_path):
    assert read_transforms_json(write_set(tmp_path)).splits == {"train": (0, 1, 2)}


def test_blender_layout(tmp_path):
    for split, count in (("train", 2), ("test", 1)):
        frames = []
        (tmp_path / split).mkdir()
        for index in range(count):
            Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / split / f"r_{index}.png")
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": pose(0, 0, 4)})
        content = {"camera_angle_x": 0.69, "frames": frames}
        (tmp_path / f"transforms_{split}.json").write_text(json.dumps(content))
    data = read_transforms_json(tmp_path)
    assert data.splits == {"train": (0, 1), "test": (2,)} and len(data) == 3
    assert data.load_image(0).min() == 255  # transparent background shows white


def test_missing_images_are_named_together_or_skipped(tmp_path):
    path = write_set(tmp_path, frames=4, train_filenames=["images/0.png", "images/3.png"])
    for index in (1, 3):
        (tmp_path / f"images/{index}.png").unlink()
    with pytest.raises(InputError, match=r"2 of 4 images do not exist: images/1\.png, images/3\.png") as caught:
        read_transforms_json(path)
    assert "\n" not in str(caught.value)
    data = read_transforms_json(path, missing="skip")
    assert data.names == ("images/0.png", "images/2.png") and data.splits == {"train": (0,)}
    assert data.cameras.centers[:, 0].tolist() == [0, 2]


def test_cameras_need_neither_images_nor_depth(tmp_path):
    path = write_set(tmp_path, per_frame={"depth_file_path": "depth/gone.png"})
    whole = read_transforms_json(path)  # depth is looked for when it is read
    photos = tmp_path / "elsewhere"
    (tmp_path / "images").rename(photos)
    cameras = read_transforms_json(path, missing="cameras").cameras
    assert torch.equal(cameras.K, whole.cameras.K) and torch.equal(cameras.width, whole.cameras.width)
    for name in ("0.png", "1.png", "2.png"):
        Image.new("RGB", (80, 60), f"#{name[0]}00").save(photos / name)  # the originals, twice as large
    views = load_input(photos, cameras=path)
    assert views.sizes == ((80, 60),) * 3
    torch.testing.assert_close(views.cameras.K[0, :2, :2], 2 * whole.cameras.K[0, :2, :2].float())
    for name in ("0.png", "1.png", "2.png"):  # turned by EXIF: 60 x 80 px as stored, shown as 80 x 60
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (60, 80), f"#{name[0]}00").save(photos / name, exif=exif)
    assert load_input(photos, cameras=path).sizes == ((80, 60),) * 3
    content = json.loads(path.read_text())
    del content["w"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"images.0.png does not exist"):
        read_transforms_json(path, missing="cameras")


def test_applied_transform_is_recorded_and_poses_left_alone(tmp_path):
    matrix = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0.5]]
    data = read_transforms_json(write_set(tmp_path, applied_transform=matrix, applied_scale=0.25))
    np.testing.assert_array_equal(data.applied_transform, [*matrix, [0, 0, 0, 1]])
    assert data.applied_scale == 0.25 and data.cameras.centers[1].tolist() == [1, 0, 0]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": []}, "non-empty list 'frames'"),
        ({"fl_x": "wide"}, "fl_x must be a finite number; got 'wide'"),
        ({"fl_x": None, "fl_y": None}, "no focal length"),
        ({"fl_x": -3.0}, "must be > 0 px"),
        ({"fl_x": None, "fl_y": None, "camera_angle_x": 4.0}, r"\(0, pi\)"),
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR is not supported"),
        ({"w": 0}, "must be positive"),
        ({"applied_transform": [[1, 2]]}, "applied_transform"),
        ({"train_filenames": "all"}, "list of file names"),
    ],
)
def test_bad_files_are_explained(tmp_path, change, message):
    path = write_set(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FormatError, match=message) as caught:
        read_transforms_json(path)
    assert "\n" not in str(caught.value) and "transforms.json" in str(caught.value)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1, 0], [0, 1]], "4x4"),
        ("eye", "4x4"),
        (np.diag([2.0, 2, 2, 1]).tolist(), "no rotation"),
        (np.diag([1.0, 1, -1, 1]).tolist(), "no rotation"),
        ([[1, 0, 0, float("nan")], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "NaN"),
    ],
)
def test_bad_poses_name_their_frame(tmp_path, matrix, message):
    path = write_set(tmp_path)
    content = json.loads(path.read_text())
    content["frames"][1]["transform_matrix"] = matrix
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=rf"frame 1 \(images/1\.png\).*{message}"):
        read_transforms_json(path)


def test_no_json_at_all(tmp_path):
    with pytest.raises(InputError, match=r"no transforms\.json"):
        read_transforms_json(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_transforms_json(tmp_path / "x.json")
    (tmp_path / "transforms.json").write_text("{'single': 1}")
    with pytest.raises(FormatError, match="not valid JSON"):
        read_transforms_json(tmp_path)
    (tmp_path / "transforms.json").write_text("[]")
    with pytest.raises(FormatError, match="JSON object"):
        read_transforms_json(tmp_path)


# ---------------------------------------------------------------- writing


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_round_trip(tmp_path_factory, seed, same_lens):
    folder = tmp_path_factory.mktemp("set")
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, :3, :3] = matrix_from_quat(torch.randn(3, 4, generator=generator))
    poses[:, :3, 3] = torch.randn(3, 3, generator=generator) * 10
    K = torch.tensor([[50.0, 0, 21.5], [0, 51.0, 14.25], [0, 0, 1]]).repeat(3, 1, 1)
    if not same_lens:
        K[:, 0, 0] += torch.rand(3, generator=generator)
    cameras = Cameras(poses, K, 40, 30)
    (folder / "images").mkdir()
    paths = [folder / "images" / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.new("RGB", (40, 30)).save(path)
    shift = np.eye(4)[[1, 0, 2, 3]]
    write_transforms_json(
        folder / "transforms.json", cameras, paths, splits={"train": [0, 2], "test": [1]}, applied_transform=shift
    )
    data = read_transforms_json(folder)
    torch.testing.assert_close(data.cameras.cam_from_world, poses, rtol=1e-5, atol=1e-5)
    assert torch.equal(data.cameras.K, K) and data.image_paths == tuple(paths)
    assert data.splits == {"train": (0, 2), "test": (1,)} and data.photos[0].lens is None
    np.testing.assert_array_equal(data.applied_transform, shift)


def test_writing_refuses_what_the_format_cannot_hold(tmp_path):
    K = torch.tensor([[[50.0, 0.5, 20], [0, 50, 15], [0, 0, 1]]])
    with pytest.raises(InputError, match="skew"):
        write_transforms_json(tmp_path / "t.json", Cameras(torch.eye(4)[None], K, 40, 30), ["a.png"])
    K[:, 0, 1] = 0
    with pytest.raises(InputError, match="one image"):
        write_transforms_json(tmp_path / "t.json", Cameras(torch.eye(4)[None], K, 40, 30), ["a.png", "b.png"])
    with pytest.raises(InputError, match="poses"):
        write_transforms_json(tmp_path / "t.json", Cameras(None, K, 40, 30), ["a.png"])
    assert list(tmp_path.iterdir()) == []
