"""COLMAP models: written by us and read by pycolmap and back, every camera model, every way they are damaged."""

import shutil
import struct

import numpy as np
import pytest
import torch
from assets import asset
from PIL import Image

from da3gs.data import colmap
from da3gs.data.colmap import find_colmap_model, read_colmap, write_colmap
from da3gs.data.inputs import load_input
from da3gs.data.transforms_json import read_transforms_json
from da3gs.errors import FormatError, InputError, MissingDependencyError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import matrix_from_quat

pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")

SIZE = (64, 48)


def cameras_of(count, seed=0, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, :3] = matrix_from_quat(torch.randn(count, 4, generator=generator, dtype=torch.float64))
    poses[:, :3, 3] = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    K = torch.tensor([[50.25, 0, 31.5], [0, 51.5, 24.75], [0, 0, 1]], dtype=torch.float64).repeat(count, 1, 1)
    return Cameras(poses, K, *size)


def project_folder(folder, names=("1.png", "2.png", "10.png"), cameras=None, **points):
    """images/ and sparse/0/ as COLMAP leaves them."""
    (folder / "images").mkdir(parents=True)
    (folder / "sparse").mkdir()
    cameras = cameras_of(len(names)) if cameras is None else cameras
    for seed, name in enumerate(names):
        (folder / "images" / name).parent.mkdir(exist_ok=True)
        values = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / "images" / name)
    write_colmap(folder / "sparse" / "0", cameras, list(names), **points)
    return cameras


def with_model(folder, model, params, size=SIZE):
    """One image and a text model with this camera model; every COLMAP reads it."""
    (folder / "images").mkdir(parents=True)
    (folder / "sparse").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / "images" / "a.png")
    numbers = " ".join(map(str, params))
    (folder / "sparse" / "cameras.txt").write_text(f"1 {model} {SIZE[0]} {SIZE[1]} {numbers}\n")
    (folder / "sparse" / "images.txt").write_text("1 1 0 0 0 0.5 -0.25 2 1 a.png\n\n")
    (folder / "sparse" / "points3D.txt").write_text("")
    return folder


# ---------------------------------------------------------------- round trips


def test_what_we_write_comes_back(tmp_path):
    points = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    colors = torch.arange(21, dtype=torch.uint8).reshape(7, 3)
    names = ("1.png", "2.png", "10.png")
    cameras = project_folder(tmp_path, names, points=points, colors=colors)
    for folder in (tmp_path, tmp_path / "sparse" / "0"):
        model = read_colmap(folder)
        assert model.images.names == names and model.skipped == ()
        assert torch.allclose(model.images.cameras.cam_from_world.double(), cameras.cam_from_world, atol=1e-6)
        assert torch.equal(model.images.cameras.K.double(), cameras.K) and model.images.cameras.size == SIZE
        assert torch.equal(model.points, points) and torch.equal(model.colors, colors)
        assert all(photo.lens is None for photo in model.images.photos)


def test_pycolmap_agrees_where_a_point_lands(tmp_path):
    """Poses, axes, intrinsics and pixel centres mean the same to COLMAP: projections agree to 1e-9 px."""
    cameras = project_folder(tmp_path)
    reconstruction = pycolmap.Reconstruction(str(tmp_path / "sparse" / "0"))
    images = {image.name: image for image in reconstruction.images.values()}
    for view, name in enumerate(("1.png", "2.png", "10.png")):
        point = (cameras.world_from_cam[view] @ torch.tensor([0.3, -0.2, 2.0, 1.0], dtype=torch.float64))[:3]
        expected, _ = cameras[view].project(point[None])
        seen = images[name].project_point(point.numpy())
        assert np.allclose(seen, expected[0, 0].numpy(), atol=1e-9)
    assert len(reconstruction.cameras) == 1  # equal intrinsics share one camera


def test_text_models_of_pycolmap(tmp_path):
    cameras = project_folder(tmp_path)
    reconstruction = pycolmap.Reconstruction(str(tmp_path / "sparse" / "0"))
    shutil.rmtree(tmp_path / "sparse" / "0")
    (tmp_path / "sparse" / "0").mkdir()
    reconstruction.write_text(str(tmp_path / "sparse" / "0"))
    assert torch.allclose(
        read_colmap(tmp_path).images.cameras.cam_from_world.double(), cameras.cam_from_world, atol=1e-6
    )


def test_fountain_survives_the_trip(tmp_path):
    data = read_transforms_json(asset("data/posed_fountain_p11"))
    names = [path.name for path in data.image_paths]
    write_colmap(tmp_path / "model", data.cameras, names)
    model = read_colmap(tmp_path / "model", asset("data/posed_fountain_p11/images"))
    assert torch.allclose(model.images.cameras.centers, data.cameras.centers, atol=1e-5)
    assert torch.equal(model.images.cameras.K, data.cameras.K)
    shutil.copytree(asset("data/posed_fountain_p11/images"), tmp_path / "images")
    views = load_input(tmp_path / "model", max_views=4)
    assert views.kind == "colmap" and len(views) == 4 and views.sizes[0] == (960, 640)


def test_replaces_a_model_whole(tmp_path):
    project_folder(tmp_path)
    write_colmap(tmp_path / "sparse" / "0", cameras_of(1), ["1.png"])
    assert len(read_colmap(tmp_path).images) == 1
    assert sorted(p.name for p in (tmp_path / "sparse").iterdir()) == ["0"]


# ---------------------------------------------------------------- lenses


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("SIMPLE_RADIAL", (50, 32, 24, 0.05)),
        ("RADIAL", (50, 32, 24, -0.1, 0.02)),
        ("OPENCV", (50, 51, 32.5, 23, -0.1, 0.03, 0.002, -0.001)),
        ("FULL_OPENCV", (50, 51, 32.5, 23, 0.1, 0.03, 0.002, -0.001, 0.01, 0.2, 0.01, 0.002)),
        ("SIMPLE_RADIAL_FISHEYE", (50, 32, 24, 0.02)),
        ("RADIAL_FISHEYE", (50, 32, 24, 0.02, -0.01)),
        ("OPENCV_FISHEYE", (50, 51, 32, 24, 0.02, -0.01, 0.003, -0.001)),
    ],
)
def test_lens_means_what_colmap_means(tmp_path, model, params):
    """Directions land on the same pixels of the photograph by our lens and by pycolmap's camera."""
    data = read_colmap(with_model(tmp_path, model, params)).images
    lens = data.photos[0].lens
    camera = pycolmap.Camera(model=model, width=SIZE[0], height=SIZE[1], params=list(params))
    directions = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 2))
    rays = np.concatenate([directions, np.ones((50, 1))], 1)
    expected = np.array([np.ravel(camera.img_from_cam(ray[None])) for ray in rays])
    ours = lens.pixels_from_pinhole(directions, np.eye(3))
    assert np.allclose(ours, expected, atol=1e-9)
    assert data.load_image(0).shape == (SIZE[1], SIZE[0], 3)


def test_camera_model_without_a_lens(tmp_path):
    with pytest.raises(
        FormatError, match=r"image a\.png: camera model FOV cannot be undistorted here.*image_undistorter"
    ):
        read_colmap(with_model(tmp_path, "FOV", (50, 51, 32, 24, 0.5)))


def test_simple_pinhole_and_downscaled_images(tmp_path):
    """images_2 in place of images: half the focal length, half the principal point."""
    data = read_colmap(with_model(tmp_path, "SIMPLE_PINHOLE", (50, 32, 24), size=(32, 24))).images
    assert data.cameras.size == (32, 24)
    assert data.cameras.K[0].tolist() == [[25, 0, 16], [0, 25, 12], [0, 0, 1]]
    assert data.cameras.cam_from_world[0, :3, 3].tolist() == [0.5, -0.25, 2]
    with pytest.raises(FormatError, match="another aspect ratio"):
        read_colmap(with_model(tmp_path / "b", "SIMPLE_PINHOLE", (50, 32, 24), size=(48, 48)))


def test_each_photograph_knows_the_points_on_its_tracks(tmp_path):
    """They give the depth of the network its scale; a model without tracks says of no point who saw it."""
    folder = with_model(tmp_path, "PINHOLE", (60, 60, 40, 30))
    (folder / "sparse" / "images.txt").write_text("1 1 0 0 0 0.5 -0.25 2 1 a.png\n10 10 7 20 20 -1 30 30 9\n")
    (folder / "sparse" / "points3D.txt").write_text(
        "7 1 2 3 255 0 0 0.5 1 0\n8 4 4 4 255 0 0 0.5\n9 0.5 0 8 0 0 255 0.5 1 2\n"
    )
    assert read_colmap(folder).images.photos[0].points.tolist() == [[1, 2, 3], [0.5, 0, 8]]
    assert load_input(folder).points[0].tolist() == [[1, 2, 3], [0.5, 0, 8]]
    plain = load_input(folder / "images", cameras=folder / "sparse")
    assert torch.equal(plain.points[0], load_input(folder).points[0])
    project_folder(tmp_path / "other", points=torch.rand(5, 3))
    assert [len(seen) for seen in load_input(tmp_path / "other").points] == [0, 0, 0]
    project_folder(tmp_path / "none")
    assert load_input(tmp_path / "none").points is None


# ---------------------------------------------------------------- what can be wrong


def test_missing_images(tmp_path):
    project_folder(tmp_path)
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(InputError, match=r"image 2\.png: .*does not exist.*missing='skip'"):
        read_colmap(tmp_path)
    model = read_colmap(tmp_path, missing="skip")
    assert model.images.names == ("1.png", "10.png") and model.skipped == (("2.png", "does not exist"),)
    views = load_input(tmp_path)
    assert views.names == ("1.png", "10.png") and views.skipped == (("2.png", "does not exist"),)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(InputError, match="give the folder of the images as input and this one as --cameras"):
        read_colmap(tmp_path)


def test_no_model(tmp_path):
    assert find_colmap_model(tmp_path) is None
    with pytest.raises(InputError, match=r"no COLMAP model in .* or in sparse/0"):
        read_colmap(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_damaged_files(tmp_path, name, damage):
    project_folder(tmp_path, points=torch.zeros(5, 3))
    path = tmp_path / "sparse" / "0" / name
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": whole[: len(whole) * 2 // 3], "text": b"not a model at all"}[damage])
    with pytest.raises(FormatError, match=r"sparse/0"):
        read_colmap(tmp_path)


def test_poses_that_are_not_finite(tmp_path):
    project_folder(tmp_path)
    path = tmp_path / "sparse" / "0" / "images.bin"
    content = bytearray(path.read_bytes())
    content[8 + 4 + 32 : 8 + 4 + 40] = struct.pack("<d", float("nan"))  # the first translation of the first image
    path.write_bytes(content)
    with pytest.raises(FormatError, match="NaN"):
        read_colmap(tmp_path)


def test_writer_refuses(tmp_path):
    cameras = cameras_of(2)
    skewed = cameras.K.clone()
    skewed[:, 0, 1] = 0.5
    for arguments, words in [
        ((cameras, ["a"]), "one name of its own per camera"),
        ((cameras, ["a", "a"]), "one name of its own per camera"),
        ((cameras.without_poses(), ["a", "b"]), "needs posed cameras"),
        ((Cameras(cameras.cam_from_world, skewed, *SIZE), ["a", "b"]), "skewed"),
        ((cameras, ["a", "b"], torch.full((1, 3), float("nan"))), "finite points"),
    ]:
        with pytest.raises(InputError, match=words):
            write_colmap(tmp_path / "model", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_without_pycolmap(tmp_path, monkeypatch):
    project_folder(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pycolmap", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "da3gs\[colmap\]"'):
        colmap.read_colmap(tmp_path)
