"""Camera paths of the nerfstudio viewer."""

import json
import math

import numpy as np
import pytest
import torch

from da3gs.data.camera_path import read_camera_path
from da3gs.errors import FormatError, InputError
from da3gs.geometry.rotations import matrix_from_quat

SHIFT = np.array([[0.0, 0, -1, 2], [1, 0, 0, 0.5], [0, -1, 0, 0]])


def write(path, frames, **changes):
    content = {
        "camera_type": "perspective", "render_height": 200, "render_width": 300, "fps": 30, "seconds": 2,
        "is_cycle": True, "smoothness_value": 0.5, "camera_path": frames,
    }  # fmt: skip
    path.write_text(json.dumps(content | changes))
    return path


def frame(matrix=None, fov=60.0):
    matrix = np.eye(4) if matrix is None else matrix
    return {"camera_to_world": np.asarray(matrix).reshape(-1).tolist(), "fov": fov, "aspect": 1.5}


def test_opengl_rows_and_vertical_field_of_view(tmp_path):
    pose = np.eye(4)
    pose[:3, 3] = 1, 2, 3
    clip = read_camera_path(write(tmp_path / "p.json", [frame(pose), frame(pose, 90.0)]))
    assert (clip.fps, clip.seconds, clip.is_closed) == (30, 2, True)
    assert clip.cameras.size == (300, 200) and clip.cameras.centers.tolist() == [[1, 2, 3]] * 2
    focal = 100 / math.tan(math.radians(30))
    assert clip.cameras.K[0].flatten().tolist() == pytest.approx([focal, 0, 150, 0, focal, 100, 0, 0, 1])
    assert float(clip.cameras.fov[1, 1]) == pytest.approx(math.pi / 2)
    # OpenGL looks along -z with y up: a point ahead and above appears in the upper half.
    uv, z = clip.cameras[1].project(torch.tensor([[1.0, 3.0, -7.0]]))
    assert float(z) == 10 and uv[0, 0].tolist() == pytest.approx([150, 90])


def test_normalised_world_is_brought_back(tmp_path):
    """nerfstudio holds [R | s t] of T @ pose: that pose comes back to the pose of the data."""
    data_pose = np.eye(4)
    data_pose[:3, :3] = matrix_from_quat(torch.tensor([0.9, 0.1, -0.3, 0.2], dtype=torch.float64)).numpy()
    data_pose[:3, 3] = 4, -5, 6
    shift = np.vstack([SHIFT, [0, 0, 0, 1]])
    normalised = shift @ data_pose
    normalised[:3, 3] *= 0.25
    (tmp_path / "t.json").write_text(json.dumps({"transform": SHIFT.tolist(), "scale": 0.25}))
    clip = read_camera_path(write(tmp_path / "p.json", [frame(normalised)]), dataparser_transforms=tmp_path / "t.json")
    torch.testing.assert_close(clip.cameras.to_opengl()[0], torch.from_numpy(data_pose).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("frames", "changes", "message"),
    [
        ([], {}, "non-empty"),
        ([frame()], {"camera_type": "equirectangular"}, "equirectangular is not supported"),
        ([frame()], {"render_width": 0}, "render_width"),
        ([frame(np.diag([2.0, 2, 2, 1]))], {}, "camera 0: .*no rigid transform"),
        ([frame(np.eye(3))], {}, "16 numbers"),
        ([frame(), frame(np.full((4, 4), np.nan))], {}, "camera 1.*NaN"),
        ([frame(fov=190.0)], {}, "fov"),
        ([frame(fov=None)], {}, "fov must be a number"),
        (["x"], {}, "camera 0"),
    ],
)
def test_bad_paths_are_explained(tmp_path, frames, changes, message):
    with pytest.raises(FormatError, match=message):
        read_camera_path(write(tmp_path / "p.json", frames, **changes))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_camera_path(tmp_path / "p.json")
