"""`da3gs reconstruct`, as a user calls it: a small random model, and measured depth without any."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from assets import asset
from oracle import CONFIG, HEIGHT, WIDTH, arc, see
from PIL import Image
from strategies_geometry import similarity

from da3gs import Scene
from da3gs.cli.main import COMMANDS, main
from da3gs.data.cameras_json import read_cameras_json, write_cameras_json
from da3gs.data.transforms_json import write_transforms_json
from da3gs.export.scene_folder import OWN_NAMES
from da3gs.images import uint8_from_tensor
from da3gs.model.checkpoints import save_checkpoint
from da3gs.model.network import build_model
from da3gs.rendering.trajectories import up_direction


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    """photos/, rgbd/ (transforms.json with depth), cameras.json and model.safetensors of the room."""
    folder = tmp_path_factory.mktemp("capture")
    cameras = arc(5)
    images, depth = see(cameras)
    for name in ("photos", "rgbd", "rgbd/depth"):
        (folder / name).mkdir()
    for view in range(5):
        picture = Image.fromarray(uint8_from_tensor(images[view]))
        picture.save(folder / "photos" / f"{view}.png")
        picture.save(folder / "rgbd" / f"{view}.png")
        millimetres = (depth[view] * 1000).round().numpy().astype(np.uint16)
        Image.fromarray(millimetres).save(folder / "rgbd/depth" / f"{view}.png")
    write_transforms_json(
        folder / "rgbd/transforms.json",
        cameras,
        [f"{view}.png" for view in range(5)],
        depth_paths=[f"depth/{view}.png" for view in range(5)],
        depth_unit_scale_factor=1e-3,
    )
    write_cameras_json(folder / "cameras.json", cameras, [f"{view}.png" for view in range(5)])
    torch.manual_seed(0)
    save_checkpoint(build_model(CONFIG), folder / "model.safetensors", {"data": "none"})
    return folder


def run(capture, source, output, *arguments):
    model = ["--model", str(capture / "model.safetensors")]
    return main(
        ["reconstruct", str(capture / source), "--output", str(output), "--size", str(WIDTH), *model, *arguments]
    )


def test_photographs_become_a_complete_folder(capture, tmp_path, capsys):
    assert run(capture, "photos", tmp_path / "out", "--video-frames", "3") == 0
    out, _ = capsys.readouterr()
    assert {path.name for path in (tmp_path / "out").iterdir()} == OWN_NAMES
    lines = out.splitlines()
    assert len(lines) <= 24 and all(len(line) < 400 for line in lines)
    assert lines[0].startswith(f"{tmp_path / 'out'}: ") and "5 views at 126x98 px" in lines[0]
    assert "made for tests" in out and "geometric prior" in out  # model, licence, head
    scene = Scene.load(tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["views"] == [f"{view}.png" for view in range(5)] and report["input"]["kind"] == "folder"
    assert report["gaussians"]["count"] == len(scene.gaussians) == report["filters"][-1]["after"]
    assert [stage["name"] for stage in report["stages"]][-1] == "rendering the fly-through"
    assert all(stage["peak_memory_bytes"] is None or stage["peak_memory_bytes"] > 0 for stage in report["stages"])
    assert report["frame"]["source"] == "estimated" and scene.cameras.size == (WIDTH, HEIGHT)


def test_measured_depth_is_placed_where_it_was_measured(capture, tmp_path, capsys):
    arguments = ["--depth", "given", "--no-video", "--max-views", "3", "--json", "--model", "not-needed"]
    assert run(capture, "rgbd", tmp_path / "out", *arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["output"] == str(tmp_path / "out") and report["model"]["name"] is None
    scene, truth = Scene.load(tmp_path / "out"), arc(5)
    assert len(scene.cameras) == 3
    pick = [int(name[0]) for name in report["views"]]
    assert torch.allclose(scene.cameras.centers, truth.centers[pick], atol=1e-5)
    assert torch.allclose(scene.depth, see(truth)[1][pick], atol=6e-4)
    assert "flythrough.mp4" not in {path.name for path in (tmp_path / "out").iterdir()}


def test_cameras_of_a_file_are_obeyed_and_checked(capture, tmp_path, capsys):
    cameras = ["--cameras", str(capture / "cameras.json"), "--no-video", "--json"]
    assert run(capture, "photos", tmp_path / "out", *cameras) == 0
    report = json.loads(capsys.readouterr().out)
    assert torch.allclose(Scene.load(tmp_path / "out").cameras.cam_from_world, arc(5).cam_from_world, atol=1e-5)
    assert report["frame"]["source"] == "given cameras" and "check_without_poses" in report["poses"]
    assert run(capture, "photos", tmp_path / "other", *cameras, "--poses-are", "opengl", "--no-pose-check") == 0
    report = json.loads(capsys.readouterr().out)
    flipped = Scene.load(tmp_path / "other").cameras
    assert torch.allclose(flipped.centers, arc(5).centers, atol=1e-5)
    assert torch.allclose(flipped.look_directions, -arc(5).look_directions, atol=1e-5)
    assert "check_without_poses" not in report["poses"]


def same_cameras(folder, other):
    (cameras, names), (again, other_names) = (read_cameras_json(f / "cameras.json") for f in (folder, other))
    assert [Path(name).stem for name in names] == [Path(name).stem for name in other_names]
    assert cameras.size == again.size
    assert torch.allclose(again.K, cameras.K, rtol=0, atol=1e-4)  # pixels
    assert torch.allclose(again.cam_from_world, cameras.cam_from_world, rtol=0, atol=1e-5)


def test_cameras_fit_the_photographs_they_were_made_from(capture, tmp_path, capsys):
    """Real photographs with a lens, 9:16, so the patch grid bends the aspect ratio by more than 1 %."""
    fox = asset("data/posed_fox")
    quiet = ["--no-video", "--no-pose-check", "--json"]
    assert run(capture, fox, tmp_path / "out", *quiet, "--max-views", "2") == 0
    first = json.loads(capsys.readouterr().out)
    (tmp_path / "photos").mkdir()
    for name in first["views"]:
        shutil.copy(fox / name, tmp_path / "photos")
    for number, cameras in enumerate(("cameras.json", "", "transforms.json")):
        again = tmp_path / f"again{number}"
        arguments = ["--cameras", str(tmp_path / "out" / cameras), *quiet]
        assert run(capture, tmp_path / "photos", again, *arguments) == 0
        report = json.loads(capsys.readouterr().out)
        same_cameras(tmp_path / "out", again)
        assert any("were scaled to the size of their images" in note for note in report["input"]["notes"])
        assert report["photographs"] == first["photographs"] and "lens" in report["photographs"][0]
        # K at the photographs' size differs by float32 rounding, so undistorted pixels by a grey level at most.
        difference = (Scene.load(tmp_path / "out").images - Scene.load(again).images).abs()
        assert difference.max() < 1.01 / 255 and difference.mean() < 1e-4
    # The scene's own images are not undistorted a second time.
    assert run(capture, tmp_path / "out/images", tmp_path / "own", *arguments) == 0
    assert "were scaled" not in capsys.readouterr().out
    same_cameras(tmp_path / "out", tmp_path / "own")


def test_a_recorded_crop_is_undone_and_another_shape_refused(capture, tmp_path, capsys):
    """Photographs of two shapes are cropped to what they share; their cameras fit the whole photographs again."""
    (tmp_path / "photos").mkdir()
    for name, box in (("0003", (0, 0, 960, 640)), ("0004", (160, 0, 800, 640)), ("0005", (0, 0, 960, 640))):
        with Image.open(asset(f"data/posed_fountain_p11/images/{name}.jpg")) as image:
            image.crop(box).save(tmp_path / "photos" / f"{name}.png")
    quiet = ["--no-video", "--no-pose-check", "--json"]
    assert run(capture, tmp_path / "photos", tmp_path / "out", *quiet) == 0
    report = json.loads(capsys.readouterr().out)
    assert [record["crop_left_top"] for record in report["photographs"]] == [[0, 0], [0, 21], [0, 0]]
    cameras = ["--cameras", str(tmp_path / "out/cameras.json")]
    assert run(capture, tmp_path / "photos", tmp_path / "again", *quiet, *cameras) == 0
    report = json.loads(capsys.readouterr().out)
    assert "after undoing the recorded crop" in report["input"]["notes"][0]
    same_cameras(tmp_path / "out", tmp_path / "again")
    with Image.open(tmp_path / "photos/0003.png") as image:
        image.crop((0, 0, 500, 640)).save(tmp_path / "photos/0003.png")
    assert run(capture, tmp_path / "photos", tmp_path / "no", *quiet, *cameras) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "0003.png comes from a photograph of 960x640 px but the image has 500x640: another aspect ratio" in error


def test_found_cameras_make_an_upright_frame_of_unit_size(capture, tmp_path, capsys, monkeypatch):
    """Structure from motion stands in any frame and scale; the scene does not."""
    from da3gs.data import sfm

    found = arc(5).transform(similarity(3, 40.0))
    monkeypatch.setattr(sfm, "with_sfm_cameras", lambda views, **_: views.with_cameras(found))
    assert run(capture, "photos", tmp_path / "out", "--no-video", "--json", "--find-cameras", "sfm") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["poses"]["source"] == "structure from motion" and report["frame"]["source"] == "estimated"
    scene = Scene.load(tmp_path / "out")
    assert torch.allclose(up_direction(scene.cameras).float(), torch.tensor([0.0, -1, 0]), atol=1e-4)
    expected, shape = (torch.cdist(c.centers, c.centers) for c in (arc(5), scene.cameras))
    assert torch.allclose(shape / shape.max(), expected / expected.max(), atol=1e-3)
    assert run(capture, "rgbd", tmp_path / "no", "--find-cameras", "sfm") == 2
    assert "brings its own" in capsys.readouterr().err


def test_budget_and_filters_have_flags(capture, tmp_path, capsys):
    flags = ["--depth", "given", "--no-video", "--json", "--border", "0", "--consistency", "0", "--keep-edges"]
    assert run(capture, "rgbd", tmp_path / "out", *flags, "--max-gaussians", "2000") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["gaussians"]["count"] == 2000 == len(Scene.load(tmp_path / "out").gaussians)
    assert {f["name"]: f["before"] - f["after"] for f in report["filters"]} == {
        "invalid": 0, "confidence": 0, "sky": 0, "border": 0, "edges": 0, "consistency": 0, "overlap": 0,
        "max_gaussians": 5 * HEIGHT * WIDTH - 2000,
    }  # fmt: skip


def test_the_same_command_gives_the_same_files(capture, tmp_path, capsys):
    for name in ("a", "b"):
        assert run(capture, "photos", tmp_path / name, "--no-video", "--max-views", "2") == 0
    for name in ("scene.ply", "cameras.json", "transforms.json", "depth/0.npz", "preview.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_folder_with_other_things_is_refused_before_any_work(capture, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run(capture, "photos", tmp_path) == 2
    _, err = capsys.readouterr()
    assert "holds other files (thesis.tex)" in err and "running the network" not in err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_the_viewer_is_opened_on_the_result(capture, tmp_path, capsys, monkeypatch):
    from da3gs.cli import main as application

    monkeypatch.setitem(COMMANDS, "view", None)
    opened = []
    real = application.main
    monkeypatch.setattr(application, "main", lambda arguments: opened.append(arguments) or 0)
    flags = ["--depth", "given", "--no-video", "--view", "--model", "none"]
    arguments = ["reconstruct", str(capture / "rgbd"), "--output", str(tmp_path / "out"), "--size", "70", *flags]
    assert real(arguments) == 0
    assert opened == [["view", str(tmp_path / "out")]]
    monkeypatch.delitem(COMMANDS, "view")
    assert real(arguments) == 2
    assert "--view needs the command" in capsys.readouterr().err


def test_splats_can_be_fitted_at_once(capture, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("da3gs.refine._STEPS", (6, 6))
    options = ("--depth", "given", "--refine", "--no-video", "--max-views", "3")
    assert run(capture, "rgbd", tmp_path / "out", *options) == 0
    before, after = json.loads((tmp_path / "out/report.json").read_text())["refinement"]["psnr_fit"]
    assert after > before and f"refined   {before:.1f} -> {after:.1f} dB in 6 steps" in capsys.readouterr().out
