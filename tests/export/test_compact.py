"""Small formats: what is written comes back to the rounding each format has, and shows the same picture."""

import gzip
import math
import shutil
import subprocess

import numpy as np
import pytest
import torch
from oracle import arc

from da3gs import Gaussians, load_gaussians, render, save_gaussians
from da3gs.errors import FormatError, InputError
from da3gs.export.gaussian_files import file_comments
from da3gs.export.ply import ANTIALIASED_COMMENT
from da3gs.rendering import RenderConfig

SMALL = (".compressed.ply", ".spz", ".splat")


def ball(count: int = 4000, sh_degree: int = 0, seed: int = 0, size: float = 1.0) -> Gaussians:
    """Splats on the ball of the oracle's room, coloured by place and, above degree 0, by direction."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng)

    direction = torch.nn.functional.normalize(normal(count, 3), dim=1)
    sh = torch.zeros(count, (sh_degree + 1) ** 2, 3)
    sh[:, 0] = 1.2 * (3 * direction).sin()
    sh[:, 1:] = 0.15 * normal(count, sh.shape[1] - 1, 3)
    return Gaussians(
        size * (torch.tensor([0.1, 0.5, 0.0]) + 0.45 * direction),
        normal(count, 4),
        size * torch.exp(0.5 * normal(count, 3) - 4.2),
        torch.sigmoid(2 * normal(count)),
        sh,
    )


def picture(gaussians: Gaussians, size: float = 1.0) -> torch.Tensor:
    cameras = arc(3)
    poses = cameras.cam_from_world.clone()
    poses[:, :3, 3] *= size
    return render(gaussians, cameras.with_poses(poses), RenderConfig(depth=False)).rgb


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().clamp(min=1e-10).log10())


@pytest.mark.parametrize("suffix", SMALL)
@pytest.mark.parametrize("sh_degree", [0, 3])
def test_a_reread_file_shows_the_same_picture(tmp_path, suffix, sh_degree):
    gaussians = ball(sh_degree=sh_degree)
    expected = picture(gaussians if suffix != ".splat" else gaussians.with_sh_degree(0))
    save_gaussians(gaussians, tmp_path / f"x{suffix}")
    again = load_gaussians(tmp_path / f"x{suffix}")
    assert len(again) == len(gaussians) and again.sh_degree == (0 if suffix == ".splat" else sh_degree)
    assert psnr(picture(again), expected) > (38 if sh_degree else 42)
    plain = tmp_path / "x.ply"
    save_gaussians(gaussians, plain, sh_degree=again.sh_degree)
    assert (tmp_path / f"x{suffix}").stat().st_size < (0.55 if suffix == ".splat" else 0.4) * plain.stat().st_size


@pytest.mark.parametrize("suffix", SMALL)
def test_values_come_back_to_the_rounding_of_the_format(tmp_path, suffix):
    gaussians = ball(700)
    save_gaussians(gaussians, tmp_path / f"x{suffix}")
    again = load_gaussians(tmp_path / f"x{suffix}")
    pair = torch.cdist(again.means.double(), gaussians.means.double()).argmin(1)
    assert len(pair.unique()) == 700  # every splat is there once
    wanted = gaussians[pair]
    assert (again.means - wanted.means).abs().max() < {".compressed.ply": 2e-3, ".spz": 4e-6, ".splat": 1e-7}[suffix]
    assert (again.opacities - wanted.opacities).abs().max() <= 0.51 / 255
    ratio = (again.scales / wanted.scales).log().abs().max()
    assert ratio < {".compressed.ply": 0.01, ".spz": 0.5 / 16 + 1e-4, ".splat": 1e-6}[suffix]
    quats = torch.nn.functional.normalize(wanted.quats, dim=1)
    cosine = (again.quats * quats).sum(1).abs().clamp(max=1)
    assert math.degrees(2 * float(torch.arccos(cosine).max())) < 1.5
    assert torch.allclose(again.quats.norm(dim=1), torch.ones(700), atol=1e-5)


@pytest.mark.parametrize("suffix", SMALL)
@pytest.mark.parametrize("size", [0.02, 500.0])
def test_small_and_large_scenes(tmp_path, suffix, size):
    gaussians = ball(size=size)
    save_gaussians(gaussians, tmp_path / f"x{suffix}")
    assert psnr(picture(load_gaussians(tmp_path / f"x{suffix}"), size), picture(gaussians, size)) > 36


def test_spz_stands_in_its_own_frame(tmp_path):
    """Right, up, back: y and z of the file are those of OpenCV reversed."""
    gaussians = ball(1)
    save_gaussians(gaussians, tmp_path / "x.spz")
    content = gzip.decompress((tmp_path / "x.spz").read_bytes())
    magic, version, count = np.frombuffer(content, "<u4", 3)
    assert (magic, version, count) == (0x5053474E, 3, 1) and content[12] == 0
    packed = np.frombuffer(content, np.uint8, 9, 16).reshape(3, 3).astype(np.int64)
    fixed = packed[:, 0] + (packed[:, 1] << 8) + (packed[:, 2] << 16)
    fixed = np.where(fixed >= 1 << 23, fixed - (1 << 24), fixed) / 2.0 ** content[13]
    assert np.allclose(fixed, gaussians.means[0].numpy() * [1, -1, -1], atol=1e-5)


def test_spz_says_whether_splats_are_for_antialiased_rendering(tmp_path):
    gaussians = ball(50)
    save_gaussians(gaussians, tmp_path / "a.spz", antialiased=True)
    save_gaussians(gaussians, tmp_path / "b.spz")
    assert file_comments(tmp_path / "a.spz") == (ANTIALIASED_COMMENT,) and file_comments(tmp_path / "b.spz") == ()
    a, b = load_gaussians(tmp_path / "a.spz"), load_gaussians(tmp_path / "b.spz")
    assert torch.equal(a.means, b.means) and torch.equal(a.opacities, b.opacities)


def test_what_a_format_cannot_hold_is_said(tmp_path, caplog):
    save_gaussians(ball(10, sh_degree=1), tmp_path / "x.splat")
    assert "colour that depends on the direction of view is left out" in caplog.text
    tiny = ball(100, size=1e-6)
    save_gaussians(tiny, tmp_path / "x.spz")
    assert "100 % of the splats are smaller than 4.5e-05" in caplog.text
    with pytest.raises(InputError, match=r"positions reach 4.72e\+08 units"):
        save_gaussians(ball(10, size=5e8), tmp_path / "far.spz")
    for suffix in (".spz", ".compressed.ply"):
        with pytest.raises(InputError, match=f"a {suffix} needs at least one Gaussian"):
            save_gaussians(ball(10)[:0], tmp_path / f"none{suffix}")
        with pytest.raises(InputError, match=r"must be 0, 1, 2 or 3; got 4"):
            save_gaussians(ball(10), tmp_path / f"four{suffix}", sh_degree=4)
    assert {path.name for path in tmp_path.iterdir()} == {"x.splat", "x.spz"}
    save_gaussians(ball(10)[:0], tmp_path / "none.splat")
    assert len(load_gaussians(tmp_path / "none.splat")) == 0


@pytest.mark.parametrize("suffix", SMALL)
def test_damage_is_one_clear_line(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    save_gaussians(ball(600), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 - 7])
    with pytest.raises(FormatError, match=r"x\..*(damaged|truncated)"):
        load_gaussians(path)
    path.write_bytes(b"")
    if suffix != ".splat":  # an empty one holds no splats
        with pytest.raises(FormatError, match="damaged"):
            load_gaussians(path)
    path.unlink()
    with pytest.raises(InputError, match="cannot read the file"):
        load_gaussians(path)


def test_damage_inside_the_compression_is_one_clear_line_too(tmp_path):
    path = tmp_path / "x.spz"
    path.write_bytes(gzip.compress(b"")[:10] + b"\x07" + bytes(40))  # a block of the reserved type
    with pytest.raises(FormatError, match=r"x\.spz: not a \.spz, or damaged"):
        file_comments(path)


def test_another_program_reads_them(tmp_path):
    """PlayCanvas' splat-transform, where it is installed, brings every format back to the same .ply."""
    program = shutil.which("splat-transform") or pytest.skip("splat-transform (npm) is not installed")
    gaussians = ball()
    for suffix in SMALL:
        save_gaussians(gaussians, tmp_path / f"x{suffix}")
        subprocess.run([program, "-w", tmp_path / f"x{suffix}", tmp_path / "y.ply"], check=True, capture_output=True)
        assert psnr(picture(load_gaussians(tmp_path / "y.ply")), picture(gaussians)) > 40
