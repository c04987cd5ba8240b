"""`da3gs info` and `da3gs convert` on good files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData

from da3gs import Gaussians, load_gaussians, save_gaussians
from da3gs.cli.convert import parse_similarity
from da3gs.cli.main import main
from da3gs.geometry.rotations import matrix_from_quat

COUNT = 101


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """101 Gaussians with opacities 0, 0.01, ..., 1 in scene.ply; the working folder is its folder."""
    monkeypatch.chdir(tmp_path)
    rng = torch.Generator().manual_seed(0)
    gaussians = Gaussians(
        torch.randn(COUNT, 3, generator=rng) * torch.tensor([1.0, 2.0, 3.0]),
        torch.nn.functional.normalize(torch.randn(COUNT, 4, generator=rng), dim=-1),
        torch.exp(torch.randn(COUNT, 3, generator=rng)),
        torch.linspace(0, 1, COUNT),
        torch.randn(COUNT, 9, 3, generator=rng),
    )
    save_gaussians(gaussians, "scene.ply", comments=["made for tests"], antialiased=True)
    return load_gaussians("scene.ply")


def assert_same(a, b, **tolerance):
    for x, y in zip(a.tensors(), b.tensors(), strict=True):
        torch.testing.assert_close(x, y, **({"rtol": 2e-6, "atol": 1e-6} | tolerance))


def test_info_json_is_right(capsys, scene, tmp_path):
    assert main(["info", "scene.ply", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["file"] == "scene.ply"
    assert facts["bytes"] == (tmp_path / "scene.ply").stat().st_size
    assert (facts["count"], facts["sh_degree"]) == (COUNT, 2)
    np.testing.assert_allclose(facts["bounds"]["min"], scene.means.numpy().min(0))
    np.testing.assert_allclose(facts["bounds"]["max"], scene.means.numpy().max(0))
    # 101 equally spaced values: the quantile q is q itself, up to the clamp at the ends of the file's logit.
    expected = {"0.0": 1e-6, "0.01": 0.01, "0.5": 0.5, "0.99": 0.99, "1.0": 1 - 1e-6}
    assert facts["opacity"] == pytest.approx(expected, abs=2e-7)
    assert list(facts["scale"]) == list(expected)
    assert facts["scale"]["0.5"] == pytest.approx(np.median(scene.scales.numpy()))
    assert {"made for tests", "SplatRenderMode: mip", "SH degree: 2"} <= set(facts["comments"])


def test_info_text_shows_the_same(capsys, scene):
    assert main(["info", "scene.ply"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].startswith("scene.ply: 101 Gaussians, SH degree 2, 17.3 KiB")
    assert lines[3].split()[:2] == ["z", f"{float(scene.means[:, 2].min()):.5g}"]
    assert lines[5].split() == ["opacity", "1e-06", "0.01", "0.5", "0.99", "1"]
    assert "  comment  made for tests" in lines


def test_info_of_an_empty_scene(capsys, tmp_path):
    save_gaussians(Gaussians.empty(sh_degree=1), tmp_path / "none.ply")
    assert main(["info", str(tmp_path / "none.ply"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["count"], facts["sh_degree"], facts["opacity"], facts["bounds"]["min"]) == (0, 1, None, None)
    assert main(["info", str(tmp_path / "none.ply")]) == 0
    assert "0 Gaussians, SH degree 1" in capsys.readouterr().out


def test_convert_copies_gaussians_and_what_the_header_says(capsys, scene):
    assert main(["convert", "scene.ply", "copy.PLY"]) == 0
    assert capsys.readouterr().out.startswith("copy.PLY: 101 Gaussians, SH degree 2, 17.3 KiB")
    assert_same(load_gaussians("copy.PLY"), scene)
    assert PlyData.read("copy.PLY").comments.count("SplatRenderMode: mip") == 1
    assert sorted(PlyData.read("copy.PLY").comments) == sorted(PlyData.read("scene.ply").comments)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_convert_sh_degree(capsys, scene, degree):
    assert main(["convert", "scene.ply", "out.ply", "--sh-degree", str(degree), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["sh_degree"], result["count"], result["dropped"]) == (degree, COUNT, 0)
    assert_same(load_gaussians("out.ply"), scene.with_sh_degree(degree))


def test_convert_min_opacity(capsys, scene):
    assert main(["convert", "scene.ply", "out.ply", "--min-opacity", "0.895"]) == 0
    assert "11 Gaussians (90 dropped)" in capsys.readouterr().out
    assert_same(load_gaussians("out.ply"), scene[90:])


def test_home_is_expanded_where_shells_do_not(scene, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert main(["convert", "scene.ply", "~/mine/copy.ply"]) == 0
    assert (tmp_path / "mine/copy.ply").is_file()
    assert main(["convert", "scene.ply", "~nobody-of-that-name.ply"]) == 0
    assert Path("~nobody-of-that-name.ply").is_file()


def test_convert_empty_scene(tmp_path):
    save_gaussians(Gaussians.empty(), tmp_path / "none.ply")
    arguments = ["--min-opacity", "0.5", "--transform", "2,1,0,0,0,1,1,1"]
    assert main(["convert", str(tmp_path / "none.ply"), str(tmp_path / "out.ply"), *arguments]) == 0
    assert len(load_gaussians(tmp_path / "out.ply")) == 0


def test_transform_by_numbers_and_by_matrix_move_the_scene(capsys, scene, tmp_path):
    """Means, covariances and the frame comment, against numpy; the quaternion of the flag need not be unit."""
    rotation = matrix_from_quat(torch.tensor([0.5, -1.0, 0.25, 2.0], dtype=torch.float64)).numpy()
    matrix = np.eye(4)
    matrix[:3, :3] = 2.5 * rotation
    matrix[:3, 3] = [10, -20, 30]
    (tmp_path / "move.json").write_text(json.dumps(matrix.tolist()))
    assert main(["convert", "scene.ply", "a.ply", "--transform", "2.5,0.5,-1,0.25,2,10,-20,30"]) == 0
    assert main(["convert", "scene.ply", "b.ply", "--transform", "move.json"]) == 0
    moved = load_gaussians("a.ply")
    assert_same(load_gaussians("b.ply"), moved)

    def covariances(gaussians):
        axes = matrix_from_quat(gaussians.quats.double()).numpy() * gaussians.scales.double().numpy()[:, None, :]
        return axes @ axes.transpose(0, 2, 1)

    np.testing.assert_allclose(
        moved.means, scene.means.numpy() @ matrix[:3, :3].T + matrix[:3, 3], rtol=1e-5, atol=1e-5
    )
    expected = matrix[:3, :3] @ covariances(scene) @ matrix[:3, :3].T
    np.testing.assert_allclose(covariances(moved), expected, rtol=1e-4, atol=1e-4 * expected.max())
    torch.testing.assert_close(moved.opacities, scene.opacities, rtol=2e-6, atol=1e-7)
    comments = PlyData.read("a.ply").comments
    assert "Frame: moved by a similarity from: x right, y down, z forward (OpenCV, COLMAP)" in comments
    assert "SplatRenderMode: mip" in comments and "made for tests" not in comments


def test_transform_and_its_inverse_give_the_scene_back(scene, tmp_path):
    inverse = parse_similarity("4,1,2,3,4,-1,0.5,2").inverse().matrix.tolist()
    (tmp_path / "inverse.json").write_text(json.dumps(inverse))
    assert main(["convert", "scene.ply", "there.ply", "--transform", "4,1,2,3,4,-1,0.5,2"]) == 0
    assert main(["convert", "there.ply", "back.ply", "--transform", "inverse.json"]) == 0
    back = load_gaussians("back.ply")
    sign = torch.sign((back.quats * scene.quats).sum(-1, keepdim=True))  # q and -q are one rotation
    back = Gaussians(back.means, back.quats * sign, back.scales, back.opacities, back.sh)
    assert_same(back, scene, rtol=1e-5, atol=1e-5)


def test_example_of_the_help_turns_y_up(scene):
    assert main(["convert", "scene.ply", "y_up.ply", "--transform", "1,0,1,0,0,0,0,0"]) == 0
    torch.testing.assert_close(load_gaussians("y_up.ply").means, scene.means * torch.tensor([1.0, -1, -1]))


def test_convert_onto_itself(scene, tmp_path):
    assert main(["convert", "scene.ply", "scene.ply", "--sh-degree", "0"]) == 0
    assert_same(load_gaussians("scene.ply"), scene.with_sh_degree(0))
    assert [p.name for p in tmp_path.iterdir()] == ["scene.ply"]
