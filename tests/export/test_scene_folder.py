"""A scene folder comes back as it was, shows the same pictures, and replaces nothing it should not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import HEIGHT, WIDTH, arc, see
from PIL import Image

from da3gs import Scene, Similarity, load_gaussians, render
from da3gs.cli.main import main
from da3gs.data.colmap import read_colmap
from da3gs.data.inputs import load_input
from da3gs.data.rgbd import read_rgbd
from da3gs.data.transforms_json import read_transforms_json
from da3gs.data.video import read_frames
from da3gs.errors import FormatError, InputError
from da3gs.export.colmap_project import save_colmap_project
from da3gs.export.scene_folder import (
    OWN_NAMES,
    check_output_folder,
    file_stems,
    flythrough_path,
    load_scene,
    save_scene,
)
from da3gs.geometry.spherical_harmonics import rgb_from_dc
from da3gs.images import tensor_from_uint8, uint8_from_tensor
from da3gs.model.gaussian_adapter import gaussians_from_depth
from da3gs.pipeline.stages import Stages


def room(views=3, **changes) -> Scene:
    cameras = arc(views)
    images, depth = see(cameras)
    images = torch.stack([tensor_from_uint8(uint8_from_tensor(image)) for image in images])
    depth[:, :4] = 0
    confidence = 1 + torch.rand(depth.shape, generator=torch.Generator().manual_seed(0))
    report = {"views": [f"photos/{name}.jpg" for name in "cab"[:views]], "antialiased": True, "frame": {"source": "x"}}
    gaussians = gaussians_from_depth(images, depth, cameras)
    return replace(Scene(gaussians, cameras, depth, confidence, images, report, near=0.01, far=90.0), **changes)


def test_a_scene_comes_back_as_it_was(tmp_path):
    scene = room()
    scene.save(tmp_path / "out")
    back = Scene.load(tmp_path / "out")
    for name in ("depth", "confidence", "images"):
        assert torch.equal(getattr(back, name), getattr(scene, name)), name
    assert torch.equal(back.cameras.cam_from_world, scene.cameras.cam_from_world)
    assert torch.equal(back.cameras.K, scene.cameras.K) and back.cameras.size == (WIDTH, HEIGHT)
    assert (back.near, back.far) == (0.01, 90.0)
    assert back.report == scene.report
    assert torch.equal(back.gaussians.means, scene.gaussians.means)
    assert torch.allclose(back.gaussians.scales, scene.gaussians.scales, rtol=1e-5)
    back.save(tmp_path / "again")
    for path in (tmp_path / "out").rglob("*.*"):
        if path.name == "preview.png":  # a splat at a threshold may flip when its opacity is rounded
            continue
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes()


def test_what_is_saved_renders_the_same_picture(tmp_path):
    scene = room()
    scene.save(tmp_path / "out", preview=False)
    back = Scene.load(tmp_path / "out")
    difference = (render(back.gaussians, back.cameras).rgb - render(scene.gaussians, scene.cameras).rgb).abs()
    assert float((difference <= 1e-4).float().mean()) > 0.999 and difference.max() < 5e-3


def test_nerfstudio_can_take_it_from_there(tmp_path):
    scene = room()
    scene.save(tmp_path / "out", preview=False)
    data = read_transforms_json(tmp_path / "out")
    assert torch.allclose(data.cameras.cam_from_world, scene.cameras.cam_from_world, atol=1e-6)
    assert torch.allclose(data.cameras.K, scene.cameras.K)
    frames = read_rgbd(data)
    assert torch.equal(frames.images, scene.images)
    step = data.depth_unit_scale_factor
    assert torch.equal(frames.depth > 0, scene.depth > 0)
    assert (frames.depth - scene.depth).abs().max() <= step / 2 * 1.001


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_16_bits_hold_the_depth_of_any_unit(tmp_path, scale):
    from da3gs import Similarity

    scene = room(2).transform(Similarity(scale, torch.eye(3), torch.zeros(3)))
    scene.save(tmp_path / "out", preview=False)
    frames = read_rgbd(tmp_path / "out")
    assert (frames.depth - scene.depth).abs().max() < 3e-4 * scene.depth.max()


def test_everything_is_there(tmp_path):
    stages = Stages()
    scene = room()
    save_scene(scene, tmp_path / "out", video=True, frames=5, stages=stages)
    assert {path.name for path in (tmp_path / "out").iterdir()} == OWN_NAMES
    assert sorted(p.name for p in (tmp_path / "out/images").iterdir()) == ["a.png", "b.png", "c.png"]
    assert sorted(p.name for p in (tmp_path / "out/depth").iterdir()) == sorted(
        f"{stem}{end}" for stem in "abc" for end in (".npz", ".png", "_color.png")
    )
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == [
        "writing files",
        "rendering the preview",
        "rendering the fly-through",
    ]
    frames = read_frames(tmp_path / "out/flythrough.mp4", fps=30).images
    assert len(frames) == 5 and frames[0].shape == (HEIGHT, WIDTH, 3)
    # The clip starts at an end of the trajectory, where it shows what the camera there saw.
    errors = [float((tensor_from_uint8(frames[0]) - image).abs().mean()) for image in scene.images]
    assert min(errors[0], errors[2]) < 0.1 and min(errors) < 0.6 * errors[1]


def test_the_preview_shows_input_depth_and_render_of_the_same_view(tmp_path):
    scene = room()
    scene.save(tmp_path / "out")
    sheet = np.asarray(Image.open(tmp_path / "out/preview.png")).astype(float)
    height, width = 260, round(260 * WIDTH / HEIGHT)
    left, top = sheet.shape[1] - 3 * (width + 4), sheet.shape[0] - 3 * (height + 4)

    def tile(row, view):
        return sheet[top + row * (height + 4) :, left + view * (width + 4) :][20 : height - 5, 5 : width - 5]

    for view in range(3):
        photo = np.asarray(Image.fromarray(uint8_from_tensor(scene.images[view])).resize((width, height)))
        assert np.abs(tile(0, view) - photo[20 : height - 5, 5 : width - 5]).mean() < 6
        differences = [np.abs(tile(0, view) - tile(2, other)).mean() for other in range(3)]
        assert differences[view] < 16 and differences[view] < 0.6 * sorted(differences)[1]


def test_an_earlier_scene_is_replaced_and_nothing_else_ever(tmp_path):
    first, second = room(3), room(2)
    first.save(tmp_path / "out", preview=False)
    second.save(tmp_path / "out", preview=False)
    assert len(Scene.load(tmp_path / "out").cameras) == 2
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files \(notes.txt\)"):
        first.save(tmp_path / "out")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/images").mkdir()  # one of our names, but no scene
    with pytest.raises(InputError, match=r"holds other files \(images\)"):
        first.save(tmp_path / "photos")
    (tmp_path / "labels").mkdir()
    for name in ("depth", "images", "cameras.json", "transforms.json", "preview.png", "report.json"):
        (tmp_path / "labels" / name).mkdir()  # what `da3gs depth` writes: all of them our names
    with pytest.raises(InputError, match="holds other files"):
        first.save(tmp_path / "labels")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a folder was expected"):
        check_output_folder(tmp_path / "file")
    with pytest.raises(InputError, match="does not exist; create it first"):
        check_output_folder(tmp_path / "no/where")
    (tmp_path / "empty").mkdir()
    check_output_folder(tmp_path / "empty")


def test_a_place_that_cannot_be_written_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("da3gs.atomic.os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match=rf"you may not write to {tmp_path}; choose another folder"):
        check_output_folder(tmp_path / "out")


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the current folder cannot be replaced"):
        room(1).save(".")


def test_a_failure_leaves_the_earlier_scene(tmp_path, monkeypatch):
    from da3gs.export import scene_folder

    room(2).save(tmp_path / "out", preview=False)

    def fail(*_, **__):
        raise InputError("no space")

    monkeypatch.setattr(scene_folder, "_write_preview", fail)
    with pytest.raises(InputError, match="no space"):
        room(3).save(tmp_path / "out")
    assert len(Scene.load(tmp_path / "out").cameras) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_names_become_portable_and_stay_apart():
    assert file_stems(["a/1.jpg", "a/2.jpg"]) == ("1", "2")
    assert file_stems(["a/1.jpg", "b/1.jpg"]) == ("0000_1", "0001_1")
    assert file_stems(["A.jpg", "a.jpg"]) == ("0000_A", "0001_a")
    assert file_stems(["dä n:1?.png", "..", "x\\y.png"]) == ("dä_n_1", "view", "y")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: (folder / "scene.ply").unlink(), InputError, "has no scene.ply"),
        (lambda folder: (folder / "depth/a.npz").write_bytes(b"PK"), FormatError, "not a depth file"),
        (lambda folder: (folder / "depth/b.npz").unlink(), InputError, "does not exist; the scene folder"),
        (lambda folder: (folder / "report.json").write_text("{"), FormatError, "not valid JSON"),
        (lambda folder: Image.new("RGB", (9, 9)).save(folder / "images/c.png"), FormatError, "is not 126x98 px"),
    ],
)
def test_damaged_folders_are_named(tmp_path, damage, error, message):
    room().save(tmp_path / "out", preview=False)
    damage(tmp_path / "out")
    with pytest.raises(error, match=message):
        load_scene(tmp_path / "out")
    with pytest.raises(InputError, match="does not exist"):
        load_scene(tmp_path / "nothing")


def test_the_clip_goes_along_the_cameras_in_a_short_order():
    cameras = arc(8)
    shuffled = cameras[[3, 6, 0, 5, 1, 7, 4, 2]]
    path, other = flythrough_path(cameras, 50), flythrough_path(shuffled, 50)
    steps = [(p.centers[1:] - p.centers[:-1]).norm(dim=1).sum() for p in (path, other)]
    assert float(steps[1]) == pytest.approx(float(steps[0]), rel=1e-3)
    assert len(flythrough_path(cameras[:1], 7, depth_hint=2.0)) == 7
    assert len(flythrough_path(cameras[:2], 7)) == 7
    with pytest.raises(InputError, match="at least one frame"):
        flythrough_path(cameras, 0)


# ------------------------------------------------------------------------------------------------ for COLMAP


def test_a_scene_becomes_a_colmap_project(tmp_path, capsys):
    scene = room()
    scene.save(tmp_path / "out", preview=False)
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "project"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cameras"] == 3
    data = read_colmap(tmp_path / "project").images
    order = [data.names.index(f"{name}.png") for name in "cab"]
    assert torch.allclose(data.cameras.cam_from_world[order], scene.cameras.cam_from_world, atol=1e-5)
    assert torch.allclose(data.cameras.K[order], scene.cameras.K)
    assert torch.equal(tensor_from_uint8(data.load_image(order[1])), scene.images[1])
    # The points are centres of splats, with their colours.
    loaded = load_input(tmp_path / "project")
    points, colors = pycolmap_points(tmp_path / "project")
    nearest = torch.cdist(points[:200].double(), scene.gaussians.means.double()).min(1)
    assert float(nearest.values.max()) < 1e-5 and len(points) > 10_000 and loaded.cameras is not None
    assert float((colors[:200].float() / 255 - rgb_from_dc(scene.gaussians.sh[nearest.indices, 0])).abs().max()) < 0.003


def test_the_project_can_be_moved_and_replaces_only_its_like(tmp_path):
    scene = room()
    scene.save(tmp_path / "out", preview=False)
    move = Similarity(2.0, torch.eye(3), torch.tensor([1.0, 2, 3]))
    save_colmap_project(tmp_path / "out", tmp_path / "project", similarity=move, max_points=50)
    assert save_colmap_project(tmp_path / "out", tmp_path / "project", similarity=move, max_points=50) == (3, 50)
    found = read_colmap(tmp_path / "project").images.cameras
    assert torch.allclose(
        found.centers.double().sort(0).values,
        (2 * scene.cameras.centers + move.translation).double().sort(0).values,
        atol=1e-5,
    )
    (tmp_path / "project/thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other files \(thesis.tex\)"):
        save_colmap_project(tmp_path / "out", tmp_path / "project")
    with pytest.raises(InputError, match="it is a file"):
        save_colmap_project(tmp_path / "out", tmp_path / "out/scene.ply")
    for name in ("images", "sparse"):
        (tmp_path / "mine" / name).mkdir(parents=True)  # somebody's own project looks just like ours
    with pytest.raises(InputError, match=r"holds other files \(images\)"):
        save_colmap_project(tmp_path / "out", tmp_path / "mine")


def test_a_scene_folder_stands_for_its_file(tmp_path, capsys):
    scene = room()
    scene.save(tmp_path / "out", preview=False)
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "x.spz")]) == 0
    assert len(load_gaussians(tmp_path / "x.spz")) == len(scene.gaussians)
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "project"), "--sh-degree", "1"]) == 2
    assert "--sh-degree and --min-opacity are for files of Gaussians" in capsys.readouterr().err


def pycolmap_points(folder):
    pycolmap = pytest.importorskip("pycolmap")
    points = list(pycolmap.Reconstruction(str(folder / "sparse/0")).points3D.values())
    places = torch.tensor(np.stack([point.xyz for point in points]))
    return places, torch.tensor(np.stack([point.color for point in points]))
