"""RGB-D frames: real depth that agrees between views, and the ways depth files come."""

import json

import cv2
import numpy as np
import pytest
import torch
from assets import asset
from PIL import Image

from da3gs.data.rgbd import read_depth, read_rgbd
from da3gs.errors import FormatError, InputError


def agreement(frames, a, b):
    """Median |depth difference| in metres, and pixel shift it means, where view a's points land in view b."""
    points = frames.cameras[a].unproject(frames.depth[a : a + 1])[0][frames.valid[a]]
    uv, z = frames.cameras[b].project(points)
    width, height = frames.cameras.size
    column, row = uv[0].floor().long().unbind(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (z[0] > 0)
    seen = frames.depth[b][row[inside], column[inside]]
    both = seen > 0
    return float((seen[both] - z[0][inside][both]).abs().median()), int(both.sum())


def test_real_depth_agrees_between_views():
    frames = read_rgbd(asset("data/rgbd_tabletop_d435i"), width=480)
    assert frames.images.shape == (24, 3, 270, 480) and frames.depth.shape == frames.valid.shape == (24, 270, 480)
    assert torch.equal(frames.valid, frames.depth > 0) and torch.isfinite(frames.depth).all()
    assert 0.3 < float(frames.depth[frames.valid].median()) < 1.0  # a table seen from about 0.6 m
    assert float(frames.cameras.K[0, 0, 0]) == pytest.approx(681.8172 / 2, rel=1e-6)
    for a, b in ((0, 12), (3, 20), (23, 1)):
        error_m, count = agreement(frames, a, b)
        assert count > 20_000 and error_m < 0.004


def test_colour_agrees_too():
    """Warping one view into another by depth explains most of its picture: cameras, depth and images are one system."""
    frames = read_rgbd(asset("data/rgbd_tabletop_d435i"), width=240)
    a, b = 0, 20
    points = frames.cameras[a].unproject(frames.depth[a : a + 1])[0]
    uv, _ = frames.cameras[b].project(points.reshape(-1, 3))
    width, height = frames.cameras.size
    grid = (uv.reshape(1, height, width, 2) / torch.tensor([width, height])) * 2 - 1
    warped = torch.nn.functional.grid_sample(frames.images[b : b + 1], grid, align_corners=False)[0]
    good = frames.valid[a] & (grid[0].abs() < 0.98).all(-1)
    after = (warped - frames.images[a])[:, good].abs().mean()
    before = (frames.images[b] - frames.images[a])[:, good].abs().mean()
    assert after < 0.5 * before


def test_splits_and_sizes():
    path = asset("data/rgbd_tabletop_d435i")
    test = read_rgbd(path, split="test", width=96)
    assert test.names == ("images/009.jpg", "images/025.jpg", "images/041.jpg") and test.depth.shape == (3, 54, 96)
    with pytest.raises(InputError, match="no views in split 'val'"):
        read_rgbd(path, split="val")
    near = read_rgbd(path, split="test", height=54, max_depth=0.5)
    assert near.depth.max() <= 0.5 and near.valid.sum() < test.valid.sum() and near.cameras.size == (96, 54)


def write_frame(folder, depth, name="d.npy", size=(8, 6), **top):
    image = np.zeros((size[1], size[0], 3), np.uint8)
    Image.fromarray(image).save(folder / "a.png")
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, depth)
    elif name.endswith(".npz"):
        np.savez(path, depth=depth)
    else:
        cv2.imwrite(str(path), depth)
    content = {"fl_x": 10.0, "w": size[0], "h": size[1], **top}
    content["frames"] = [{"file_path": "a.png", "depth_file_path": name, "transform_matrix": np.eye(4).tolist()}]
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", ["d.npy", "d.npz", "d.png", "d.tiff"])
def test_integers_are_millimetres_unless_the_file_says_otherwise(tmp_path, name):
    depth = np.full((6, 8), 1500, np.uint16)
    depth[0, 0] = 0
    frames = read_rgbd(write_frame(tmp_path, depth, name))
    assert float(frames.depth[0, 3, 3]) == pytest.approx(1.5) and not frames.valid[0, 0, 0]
    assert int(frames.valid.sum()) == 47
    frames = read_rgbd(write_frame(tmp_path, depth, name, depth_unit_scale_factor=0.0002))
    assert float(frames.depth[0, 3, 3]) == pytest.approx(0.3)


@pytest.mark.parametrize("name", ["d.npy", "d.npz", "d.tiff"])
def test_floats_are_world_units_and_holes_become_zero(tmp_path, name):
    depth = np.full((6, 8), 2.5, np.float32)
    depth[0, :4] = np.nan, np.inf, -1.0, 0.0
    frames = read_rgbd(write_frame(tmp_path, depth, name))
    assert frames.depth[0, 0, :4].tolist() == [0, 0, 0, 0] and float(frames.depth[0, 1, 1]) == 2.5
    assert int(frames.valid.sum()) == 44 and torch.isfinite(frames.depth).all()


def test_small_depth_maps_are_brought_to_the_image_without_new_values(tmp_path):
    depth = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [9.0, 10.0, 11.0, 12.0]], np.float32)
    frames = read_rgbd(write_frame(tmp_path, depth))
    np.testing.assert_array_equal(frames.depth[0].numpy(), depth.repeat(2, 0).repeat(2, 1))
    half = read_rgbd(tmp_path, width=4)
    np.testing.assert_array_equal(half.depth[0].numpy(), depth)


def test_depth_follows_its_lens(tmp_path):
    """A plane tilted in x: depth and viewing direction agree after undistortion, and would not before."""
    width, height, k1 = 160, 120, -0.2
    K = np.array([[150.0, 0, 80], [0, 150.0, 60], [0, 0, 1]])
    v, u = np.mgrid[:height, :width] + 0.5
    x_distorted, y_distorted = (u - 80) / 150, (v - 60) / 150
    points = cv2.undistortPoints(
        np.stack([x_distorted.ravel(), y_distorted.ravel()], 1)[:, None], np.eye(3), np.array([k1, 0, 0, 0])
    )
    x = points[:, 0, 0].reshape(height, width)
    depth = (2.0 / (1 - 0.5 * x)).astype(np.float32)  # the plane z = 2 + 0.5 X with X = x z
    folder = write_frame(tmp_path, depth, size=(width, height), k1=k1, cx=K[0, 2], cy=K[1, 2], fl_x=150.0)
    frames = read_rgbd(folder)
    points = frames.cameras.unproject(frames.depth)[0]
    # The cameras are OpenGL identity poses: the world has y up and z backward.
    residual = (-points[..., 2] - 2 - 0.5 * points[..., 0]).abs()
    assert residual.max() < 0.012  # nearest neighbour: half a pixel at 150 px focal length on this slope
    wrong = (frames.depth[0] - torch.from_numpy(depth)).abs()
    assert wrong.max() > 0.03


def test_bad_depth_is_explained(tmp_path):
    with pytest.raises(FormatError, match="aspect ratio"):
        read_rgbd(write_frame(tmp_path, np.ones((8, 6), np.float32)))
    with pytest.raises(FormatError, match=r"d\.png.*8-bit"):
        read_rgbd(write_frame(tmp_path, np.ones((6, 8), np.uint8), "d.png"))
    (tmp_path / "d.npy").write_bytes(b"junk")
    for name, message in (("d.npy", "NumPy"), ("gone.png", "does not exist")):
        with pytest.raises((FormatError, InputError), match=message):
            read_depth(tmp_path / name)
    np.savez(tmp_path / "two.npz", a=np.ones((2, 2)), b=np.ones((2, 2)))
    with pytest.raises(FormatError, match="it holds a, b"):
        read_depth(tmp_path / "two.npz")
    np.save(tmp_path / "d.npy", np.ones((2, 2, 3)))
    with pytest.raises(FormatError, match=r"\[2, 2, 3\]"):
        read_depth(tmp_path / "d.npy")


def test_frames_without_depth_are_named():
    with pytest.raises(InputError, match=r"11 of 11 frames have no depth_file_path.*images/0000\.jpg"):
        read_rgbd(asset("data/posed_fountain_p11"))
