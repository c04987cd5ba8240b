"""`da3gs render`: files that decode, sizes and paths that were asked for, and one clear line for what cannot be."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from da3gs.cli.main import main
from da3gs.cli.render import fit_to_size, parse_color
from da3gs.data.cameras_json import write_cameras_json
from da3gs.data.video import read_frames
from da3gs.errors import InputError
from da3gs.export.gaussian_files import save_gaussians
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.spherical_harmonics import dc_from_rgb

RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)


def balls():
    """A red ball in front (z = 3) on the left, a blue one behind (z = 5) on the right."""
    means = torch.tensor([[-0.6, 0.0, 3.0], [1.0, 0.0, 5.0]])
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(2, 1)
    sh = dc_from_rgb(torch.tensor([RED, BLUE]))[:, None]
    return Gaussians(means, quats, torch.full((2, 3), 0.25), torch.full((2,), 0.99), sh)


def row_of_cameras(count=3, width=64, height=48):
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, 0, 3] = -torch.linspace(-0.4, 0.4, count)
    K = torch.tensor([[60.0, 0, width / 2], [0, 60.0, height / 2], [0, 0, 1]]).repeat(count, 1, 1)
    return Cameras(poses, K, width, height)


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """scene.ply and cameras.json in the working folder."""
    monkeypatch.chdir(tmp_path)
    save_gaussians(balls(), tmp_path / "scene.ply")
    write_cameras_json(tmp_path / "cameras.json", row_of_cameras())
    return tmp_path


def run(*arguments):
    return main(["render", *arguments])


def test_given_cameras_as_stills(scene):
    assert run("scene.ply", "--output", "out", "--cameras", "cameras.json", "--trajectory", "cameras") == 0
    files = sorted((scene / "out").iterdir())
    assert [file.name for file in files] == ["0000.png", "0001.png", "0002.png"]
    for view, file in enumerate(files):
        picture = np.asarray(Image.open(file)).astype(int)
        assert picture.shape == (48, 64, 3)
        uv, _ = row_of_cameras()[view].project(balls().means)
        for (u, v), colour in zip(uv[0].tolist(), (RED, BLUE), strict=True):
            assert np.abs(picture[int(v), int(u)] - 255 * np.array(colour)).max() < 12


def test_clip_has_the_asked_for_length_and_size(scene, capsys):
    arguments = ["--cameras", "cameras.json", "--seconds", "1", "--fps", "8", "--width", "96", "--mode", "side-by-side"]
    assert run("scene.ply", "--output", "out.mp4", *arguments, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert {key: report[key] for key in ("frames", "width", "height", "fps", "seconds", "mode")} == {
        "frames": 8, "width": 192, "height": 72, "fps": 8.0, "seconds": 1.0, "mode": "side-by-side",
    }  # fmt: skip
    frames = read_frames(scene / "out.mp4", fps=8).images
    assert len(frames) == 8 and frames[0].shape == (72, 192, 3)
    left, right = frames[0][:, :96].astype(int), frames[0][:, 96:].astype(int)
    assert left[..., 0].max() > 150 and left[..., 2].max() > 150  # both balls are seen
    # Depth colours: the near ball is red, the far one blue.
    near, far = (np.unravel_index(left[..., c].argmax(), left.shape[:2]) for c in (0, 2))
    assert right[near][0] > right[near][2] and right[far][2] > right[far][0]


def test_cameras_of_a_colmap_model(scene):
    pytest.importorskip("pycolmap")
    from da3gs.data.colmap import write_colmap

    (scene / "images").mkdir()
    names = [f"{view}.png" for view in range(3)]
    for name in names:
        Image.new("RGB", (64, 48)).save(scene / "images" / name)
    write_colmap(scene / "sparse", row_of_cameras(), names)
    for source, output in ((".", "out_colmap"), ("cameras.json", "out_json")):
        if source == ".":
            (scene / "cameras.json").rename(scene / "hidden.json")
        assert run("scene.ply", "--output", output, "--cameras", source, "--trajectory", "cameras") == 0
        if source == ".":
            (scene / "hidden.json").rename(scene / "cameras.json")
    a, b = (np.asarray(Image.open(scene / name / "0001.png")).astype(int) for name in ("out_colmap", "out_json"))
    assert np.abs(a - b).max() <= 1


@pytest.mark.parametrize("trajectory", ["orbit", "spiral", "wobble", "dolly", "dolly-zoom", "interpolate"])
def test_every_path_moves_and_keeps_the_scene_in_view(scene, trajectory):
    options = ["--cameras", "cameras.json", "--trajectory", trajectory, "--seconds", "1", "--fps", "4"]
    assert run("scene.ply", "--output", "out", *options) == 0
    pictures = [np.asarray(Image.open(file)).astype(int) for file in sorted((scene / "out").iterdir())]
    assert len(pictures) == 4
    assert all((picture.max(-1) > 100).sum() > 20 for picture in pictures)
    assert max(np.abs(picture - pictures[0]).max() for picture in pictures) > 20


def test_without_cameras_it_goes_round_the_splats(scene):
    assert run("scene.ply", "--output", "out", "--seconds", "1", "--fps", "4", "--width", "80") == 0
    pictures = [np.asarray(Image.open(file)).astype(int) for file in sorted((scene / "out").iterdir())]
    assert pictures[0].shape == (44, 80, 3) and len(pictures) == 4

    def column(picture, channel):
        weight = (picture[..., channel] - picture[..., 2 - channel]).clip(0)
        return (weight.sum(0) * np.arange(80)).sum() / weight.sum()

    assert column(pictures[0], 0) < column(pictures[0], 2)  # from the front red is left
    assert column(pictures[2], 0) > column(pictures[2], 2)  # from behind it is right


def test_up_axis_of_the_file_is_believed(scene, tmp_path):
    from da3gs.export.ply import write_ply

    write_ply(balls(), tmp_path / "scene.zup.ply", comments=["Vertical Axis: z"])
    for name, options in (("out_a", []), ("out_b", ["--up", "+z"]), ("out_c", ["--up", "-y"])):
        assert run("scene.zup.ply", "--output", f"{name}.png", "--width", "64", *options) == 0
    a, b, c = (np.asarray(Image.open(tmp_path / f"out_{x}.png")).astype(int) for x in "abc")
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 20


def test_picture_background_and_preview(scene):
    options = ["--cameras", "cameras.json", "--background", "#00ff00", "--preview", "sheet.png"]
    assert run("scene.ply", "--output", "out.png", *options) == 0
    assert np.asarray(Image.open(scene / "out.png"))[0, 0].tolist() == [0, 255, 0]
    assert Image.open(scene / "sheet.png").size[1] > 300


def test_gif_and_drawn_path(scene):
    pose = np.diag([1.0, -1, -1, 1])  # OpenGL axes: looks along +z of the world
    frames = [{"camera_to_world": pose.reshape(-1).tolist(), "fov": 50.0, "aspect": 4 / 3}] * 3
    path = {"camera_type": "perspective", "render_height": 48, "render_width": 64, "fps": 5, "seconds": 0.6}
    (scene / "path.json").write_text(json.dumps(path | {"camera_path": frames}))
    assert run("scene.ply", "--output", "out.gif", "--cameras", "path.json") == 0
    with Image.open(scene / "out.gif") as image:
        assert image.n_frames == 3 and image.size == (64, 48) and image.info["duration"] == 200
        picture = np.asarray(image.convert("RGB")).astype(int)
    focal = 24 / np.tan(np.radians(25))
    assert picture[24, int(32 - 0.6 / 3 * focal), 0] > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scene.ply", "--output", "out/x/fly.mp4"], "does not exist"),
        (["scene.ply", "--output", "out.mp4", "--width", "0"], "--width"),
        (["scene.ply", "--output", "out.mp4", "--trajectory", "spiral", "--sweep-deg", "90"], "--sweep-deg"),
        (["scene.ply", "--output", "out.mp4", "--sweep-deg", "900"], "sweep_deg"),
        (["scene.ply", "--output", "out.mp4", "--cameras", "cameras_gone.json"], "does not exist"),
        (["scene.ply", "--output", "out.mp4", "--preview", "sheet.pdf"], "--preview"),
        (["scene_gone.ply", "--output", "out.mp4"], "scene_gone.ply"),
    ],
)
def test_what_cannot_be_is_one_line(scene, capsys, arguments, message):
    assert run(*arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0]
    assert sorted(item.name for item in scene.iterdir()) == ["cameras.json", "scene.ply"]


def test_cameras_of_another_world_are_noticed(scene, caplog):
    far = row_of_cameras()
    poses = far.cam_from_world.clone()
    poses[:, 2, 3] = -100.0  # the balls lie behind
    write_cameras_json(scene / "cameras.json", far.with_poses(poses))
    assert run("scene.ply", "--output", "out.png", "--cameras", "cameras.json", "--trajectory", "wobble") == 0
    assert "see none of the splats" in caplog.text


@pytest.mark.parametrize(("width", "height"), [(64, 48), (32, 24), (100, 30), (30, 100), (333, 77)])
def test_other_sizes_show_nothing_the_cameras_did_not_see(width, height):
    cameras = row_of_cameras()
    fitted = fit_to_size(cameras, width, height)
    assert fitted.size == (width, height)
    corners = torch.tensor([[0.0, 0, 1], [width, height, 1]])
    seen = (corners @ torch.linalg.inv(fitted.K[0]).T) @ cameras.K[0].T
    assert (seen[:, :2] >= -0.6).all() and (seen[1, :2] <= torch.tensor([64.6, 48.6])).all()
    centre = seen[:, :2].mean(0)
    assert (centre - torch.tensor([32.0, 24.0])).abs().max() < 1


def test_colours():
    assert parse_color("White") == (1, 1, 1) and parse_color("0.25,0,1") == (0.25, 0, 1)
    assert parse_color("#ff8000") == (1, 128 / 255, 0)
    for wrong in ("1,2,3", "0.5,0.5", "#fff", "nan,0,0"):
        with pytest.raises(InputError, match="--background"):
            parse_color(wrong)
