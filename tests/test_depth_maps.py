"""`da3gs depth`: what the network sees arrives in the files."""

import json

import numpy as np
import pytest
import torch
from oracle import HEIGHT, WIDTH, OracleModel, arc, see
from PIL import Image

from da3gs import Similarity
from da3gs.cli.depth import DepthCommand, _with_fov
from da3gs.data.cameras_json import read_cameras_json
from da3gs.data.inputs import load_input
from da3gs.errors import InputError
from da3gs.export.depth_files import MILLIMETRE, depth_unit
from da3gs.export.depth_folder import save_depth
from da3gs.export.points import read_points, write_points
from da3gs.geometry.alignment import align_cameras
from da3gs.images import Views, uint8_from_tensor
from da3gs.model.scene_prediction import ScenePrediction
from da3gs.pipeline.depth_alignment import fit_to_measured
from da3gs.pipeline.depth_maps import DepthConfig, predict_depth
from da3gs.pipeline.sources import Source
from da3gs.train.transforms_data import TransformsData

VIEWS = 3
NETWORK_FROM_WORLD = Similarity(0.4, torch.eye(3), torch.tensor([0.3, -1.0, 2.0]))


@pytest.fixture(scope="module")
def pictures():
    return [uint8_from_tensor(image) for image in see(arc(VIEWS))[0]]


@pytest.fixture(scope="module")
def together(pictures):
    source = Source(pictures, ("a.jpg", "b.jpg", "c.jpg"))
    model = OracleModel(arc(VIEWS), NETWORK_FROM_WORLD)
    return predict_depth(source, model, DepthConfig(size_px=WIDTH, camera_source="head"))


def test_maps_are_what_the_network_saw(together):
    truth = see(arc(VIEWS))[1]
    assert together.together and together.posed and together.unit == "arbitrary" and len(together) == VIEWS
    for index, one in enumerate(together):
        assert torch.allclose(one.depth, 0.4 * truth[index], rtol=1e-4)
        assert one.camera.size == (WIDTH, HEIGHT) and one.picture.shape == (HEIGHT, WIDTH, 3)
    assert together.report["views"] == ["a.jpg", "b.jpg", "c.jpg"]


def test_maps_come_at_the_sizes_of_the_pictures(pictures):
    large = [np.kron(picture, np.ones((2, 2, 1), np.uint8)) for picture in pictures]
    model = OracleModel(arc(VIEWS), NETWORK_FROM_WORLD)
    config = DepthConfig(size_px=WIDTH, camera_source="head")
    first = predict_depth(Source(large, ("a", "b", "c")), model, config)[0]
    truth = see(first.camera.transform(NETWORK_FROM_WORLD.inverse()))[1][0]
    assert first.depth.shape == (2 * HEIGHT, 2 * WIDTH) == first.picture.shape[:2]
    assert float(((first.depth / 0.4 - truth).abs() / truth).median()) < 2e-3
    small = predict_depth(Source(large, ("a", "b", "c")), model, DepthConfig(size_px=WIDTH, original_size=False))[0]
    assert small.depth.shape == (HEIGHT, WIDTH) == small.picture.shape[:2] and small.camera.size == (WIDTH, HEIGHT)


def test_the_files_say_the_same(together, tmp_path):
    save_depth(together, tmp_path / "out", max_points=3000)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["unit"] == "arbitrary" and len(report["maps"]) == VIEWS
    for index, entry in enumerate(report["maps"]):
        with np.load(tmp_path / "out" / f"{entry['file']}.npz") as stored:
            assert np.array_equal(stored["depth"], together[index].depth.numpy())
            assert np.array_equal(stored["confidence"], together[index].confidence.numpy())
            exact = stored["depth"]
        levels = np.asarray(Image.open(tmp_path / "out" / f"{entry['file']}.png"))
        assert levels.dtype in (np.uint16, np.int32)
        assert np.abs(levels * entry["png_unit"] - exact).max() <= 0.51 * entry["png_unit"]
    cameras, names = read_cameras_json(tmp_path / "out/cameras.json")
    assert list(names) == ["a.jpg", "b.jpg", "c.jpg"]
    assert align_cameras(cameras, arc(VIEWS)).residuals.max() < 1e-4
    # The points lie on the room: from any camera, at the depth that camera sees, or behind something.
    points = read_points(tmp_path / "out/points.ply")
    assert 2500 < len(points) <= 3000
    inside = NETWORK_FROM_WORLD.inverse().apply(points)
    assert (inside.abs() <= torch.tensor([2.0, 1.2, 2.0]) + 1e-3).all()
    on_wall = ((inside.abs() - torch.tensor([2.0, 1.2, 2.0])).abs() < 2e-3).any(1)
    on_ball = ((inside - torch.tensor([0.1, 0.5, 0.0])).norm(dim=1) - 0.45).abs() < 2e-3
    assert (on_wall | on_ball).float().mean() > 0.999


def test_pictures_seen_alone_have_no_common_frame(pictures, tmp_path):
    class Alone(OracleModel):
        def _run(self, views, given, *rest):
            self.truth = arc(VIEWS)[len(self.calls) % VIEWS]
            return super()._run(views, given, *rest)

    model = Alone(arc(VIEWS), Similarity(0.1, torch.eye(3), torch.zeros(3)))
    source = Source(pictures, ("a", "b", "c"))
    maps = predict_depth(source, model, DepthConfig(together=False, size_px=WIDTH))
    assert len(model.calls) == VIEWS and not maps.together and not maps.posed and not maps.comparable
    truth = see(arc(VIEWS))[1]
    assert all(torch.allclose(maps[index].depth, 0.1 * truth[index], rtol=1e-4) for index in range(VIEWS))
    assert all(one.camera.cam_from_world is None for one in maps)
    save_depth(maps, tmp_path / "out")
    units = {entry["png_unit"] for entry in json.loads((tmp_path / "out/report.json").read_text())["maps"]}
    assert len(units) > 1
    with pytest.raises(InputError, match="points need cameras in one frame"):
        save_depth(maps, tmp_path / "points", max_points=10)
    assert not (tmp_path / "points").exists()


def test_an_earlier_result_is_replaced_and_nothing_else(together, tmp_path):
    save_depth(together, tmp_path / "out", clip_fps=4)
    assert (tmp_path / "out/depth.mp4").stat().st_size > 0
    save_depth(together, tmp_path / "out")
    assert not (tmp_path / "out/depth.mp4").exists()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files \(notes.txt\)"):
        save_depth(together, tmp_path / "out")


def test_units_of_16_bits():
    assert depth_unit(5.0) == depth_unit(65.535) == MILLIMETRE
    assert depth_unit(0.2) == pytest.approx(0.2 / 65535) and depth_unit(1000.0) == pytest.approx(1000 / 65535)


def test_points_come_back(tmp_path, without_shape_checks):
    points = torch.randn(7, 3)
    colors = np.arange(21, dtype=np.uint8).reshape(7, 3)
    write_points(tmp_path / "p.ply", points, colors, comments=("a comment",))
    assert torch.equal(read_points(tmp_path / "p.ply"), points)
    from plyfile import PlyData

    assert PlyData.read(str(tmp_path / "p.ply"))["vertex"]["green"].tolist() == colors[:, 1].tolist()
    with pytest.raises(InputError, match="one colour per point"):
        write_points(tmp_path / "q.ply", points, colors[:3])


def test_a_known_field_of_view_becomes_intrinsics(pictures, tmp_path):
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    cameras = _with_fov(load_input(tmp_path), 90.0)
    assert torch.allclose(cameras.K[:, 0, 0], torch.tensor(WIDTH / 2)) and cameras.cam_from_world is None


def test_the_command_writes_all_of_it(pictures, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"photos/{index}.png")
    command = DepthCommand([tmp_path / "photos"], tmp_path / "out", size=70, points=True, json=True)
    assert command.run() == 0
    said = json.loads(capsys.readouterr().out)
    assert said["together"] and said["model"]["name"] == "da3-tiny" and said["views"] == ["0.png", "1.png", "2.png"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"depth", "cameras.json", "points.ply", "preview.png", "report.json"}
    with np.load(tmp_path / "out/depth/1.npz") as stored:
        assert stored["depth"].shape == (HEIGHT, WIDTH) and np.isfinite(stored["depth"]).all()
        assert (stored["depth"] > 0).all()


# ------------------------------------------------------------------------------------------------ aligned


class Affine(OracleModel):
    """Depth that is right up to a scale and a shift of every picture's own."""

    def _run(self, views, given, *rest):
        view = len(self.calls) % VIEWS
        self.truth = arc(VIEWS)[view]
        out = super()._run(views, given, *rest)
        out.depth.mul_(0.5 + 0.4 * view).add_(0.3 * (view + 1))
        return out


def measured(pictures, share=0.02, wrong=0.2, **fields) -> Source:
    """Pictures with a few measurements, a fifth of them nonsense."""
    truth = see(arc(VIEWS))[1]
    generator = torch.Generator().manual_seed(0)
    sparse = torch.where(torch.rand(truth.shape, generator=generator) < share, truth, 0.0)
    nonsense = torch.rand(truth.shape, generator=generator) < wrong
    sparse = torch.where(nonsense & (sparse > 0), 4 * torch.rand(truth.shape, generator=generator) + 0.1, sparse)
    return Source(pictures, ("a", "b", "c"), arc(VIEWS), list(sparse), upright=False, **fields)


CONFIG_ALIGNED = DepthConfig(together=False, size_px=WIDTH, align=True)


def test_depth_is_brought_onto_sparse_and_wrong_measurements(pictures):
    maps = predict_depth(measured(pictures), Affine(arc(VIEWS), NETWORK_FROM_WORLD), CONFIG_ALIGNED)
    truth = see(arc(VIEWS))[1]
    assert maps.unit == "given" and maps.comparable and maps.posed
    for index, one in enumerate(maps):
        assert float(((one.depth - truth[index]).abs() / truth[index]).median()) < 0.02
        fit = maps.fits[index]
        assert fit.scale == pytest.approx(1 / (0.4 * (0.5 + 0.4 * index)), rel=0.1) and fit.inliers > 0.6
        torch.testing.assert_close(one.camera.cam_from_world[0], arc(VIEWS).cam_from_world[index])


def test_sparse_points_are_measurements_too(pictures):
    cameras = arc(VIEWS)
    points = cameras.unproject(see(cameras)[1])
    seen = [points[view].reshape(-1, 3)[::50] for view in range(VIEWS)]
    source = Source(pictures, ("a", "b", "c"), cameras, points=seen, upright=False)
    maps = predict_depth(source, Affine(cameras, NETWORK_FROM_WORLD), CONFIG_ALIGNED)
    truth = see(cameras)[1]
    assert all(torch.allclose(maps[view].depth, truth[view], rtol=0.02) for view in range(VIEWS))


def test_aligned_depth_is_a_data_set_to_train_on(pictures, tmp_path):
    maps = predict_depth(measured(pictures, wrong=0.0), Affine(arc(VIEWS), NETWORK_FROM_WORLD), CONFIG_ALIGNED)
    save_depth(maps, tmp_path / "out")
    sample = TransformsData(folder=tmp_path, sizes=((WIDTH, HEIGHT),), holdout=0, depth=True).open().load(0)
    truth = see(arc(VIEWS))[1]
    torch.testing.assert_close(sample.depth, truth, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(sample.cameras.cam_from_world, arc(VIEWS).cam_from_world, atol=1e-5, rtol=0)
    fits = [entry["fit"] for entry in json.loads((tmp_path / "out/report.json").read_text())["maps"]]
    assert all(fit["inliers"] > 0.95 and fit["error"] < 0.01 for fit in fits)


def test_pictures_with_too_little_to_align_to_are_left_out(pictures):
    source = measured(pictures, wrong=0.0)
    source.depth[1].zero_()
    source.depth[1][3, 5:20] = 1.0
    maps = predict_depth(source, Affine(arc(VIEWS), NETWORK_FROM_WORLD), CONFIG_ALIGNED)
    assert maps.report["views"] == ["a", "c"] and len(maps) == 2
    assert "left out, since their depth could not be aligned: b" in maps.report["warnings"]
    truth = see(arc(VIEWS))[1]
    assert torch.allclose(maps[1].depth, truth[2], rtol=0.02)
    nothing = Source(pictures, ("a", "b", "c"), arc(VIEWS), [torch.zeros(HEIGHT, WIDTH)] * 3, upright=False)
    with pytest.raises(InputError, match="no map could be aligned"):
        predict_depth(nothing, Affine(arc(VIEWS), NETWORK_FROM_WORLD), CONFIG_ALIGNED)
    with pytest.raises(InputError, match="aligned depth needs something measured"):
        predict_depth(Source(pictures, ("a", "b", "c")), Affine(arc(VIEWS), NETWORK_FROM_WORLD), CONFIG_ALIGNED)


@pytest.mark.parametrize("seed", range(3))
def test_a_wall_that_fills_the_picture_does_not_flatten_it(seed):
    generator = torch.Generator().manual_seed(seed)
    true = torch.full((40, 50), 2.0) + 0.004 * torch.randn(40, 50, generator=generator)
    true[:, 31:] = 0.8 + 0.7 * torch.rand(40, 19, generator=generator)
    noisy = (true - 0.3) / 1.7 * (1 + 0.01 * torch.randn(40, 50, generator=generator))
    fit = fitted(noisy, true, seed)
    assert fit.scale == pytest.approx(1.7, rel=0.1) and fit.error < 0.25 * fit.constant
    # Depth that has nothing to do with the picture is no depth.
    assert fitted(1 + torch.rand(40, 50, generator=generator), true, seed) is None


def fitted(depth, measured, seed):
    picture = torch.zeros(1, 3, 42, 56)
    size = torch.tensor([[56, 42]])
    views = Views(picture, size, size, torch.zeros_like(size), ("a",))
    maps = torch.nn.functional.interpolate(depth[None, None], (42, 56), mode="nearest")[0]
    wanted = torch.nn.functional.interpolate(measured[None, None], (42, 56), mode="nearest")[0, 0]
    prediction = ScenePrediction(maps, None, None, None, None, None, None, "arbitrary", views)
    return fit_to_measured(prediction, 0, Source([picture[0]], ("a",), None, [wanted]), 0, seed)


def test_the_current_folder_is_not_replaced(together, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the current folder cannot be replaced by depth"):
        save_depth(together, ".")
