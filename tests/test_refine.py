"""Refinement: splats follow their pictures, cameras and exposures too where they may, in any unit."""

import json
from dataclasses import replace

import pytest
import torch
from oracle import arc, see

from da3gs import Scene, Similarity
from da3gs.cli.main import main
from da3gs.errors import InputError
from da3gs.geometry.rotations import cross_matrix, rotation_angle
from da3gs.model.gaussian_adapter import gaussians_from_depth
from da3gs.refine import RefineConfig, refine

VIEWS = 5


@pytest.fixture(scope="module")
def scene():
    """The oracle's room with pale splats: the place is right, the colours are not."""
    cameras = arc(VIEWS).scaled(width=63, height=49)
    images, depth = see(cameras)
    splats = gaussians_from_depth(0.5 + 0.5 * (images - 0.5), depth, cameras)
    report = {"views": [f"{view}.png" for view in range(VIEWS)], "antialiased": True}
    return Scene(splats, cameras, depth, torch.ones_like(depth), images, report)


def test_splats_follow_their_pictures_and_views_left_out_gain_too(scene):
    told = []
    config = RefineConfig(steps=40, hold_out=5)
    refined = refine(scene, config, on_step=lambda step, value: told.append((step, value)))
    facts = refined.report["refinement"]
    assert facts["psnr_fit"][1] > facts["psnr_fit"][0] + 1.2
    assert facts["psnr_held_out"][1] > facts["psnr_held_out"][0] + 0.6
    assert [step for step, _ in told] == list(range(1, 41)) and told[-1][1] > told[0][1]
    assert len(refined.gaussians) == len(scene.gaussians) and refined.gaussians.sh_degree == 1
    assert torch.equal(refined.cameras.cam_from_world, scene.cameras.cam_from_world)
    assert "refinement" not in scene.report and scene.gaussians.sh_degree == 0


def test_it_does_not_depend_on_the_unit(scene):
    config = RefineConfig(steps=12)
    larger = Similarity(25.0, torch.eye(3), torch.zeros(3))
    a = refine(scene, config).report["refinement"]["psnr_fit"][1]
    b = refine(scene.transform(larger), config).report["refinement"]["psnr_fit"][1]
    assert a == pytest.approx(b, abs=0.05)
    assert a == refine(scene, config).report["refinement"]["psnr_fit"][1]  # and is the same every time


def test_pictures_may_be_exposed_differently(scene):
    gain = torch.tensor([0.8, 1.2, 0.9, 1.1, 1.0])[:, None, None, None]
    uneven = replace(scene, images=(scene.images * gain).clamp(0, 1))
    own = refine(uneven, RefineConfig(steps=40)).report["refinement"]["psnr_fit"]
    alike = refine(uneven, RefineConfig(steps=40, exposure=False)).report["refinement"]["psnr_fit"]
    assert own[0] == pytest.approx(alike[0]) and own[1] > alike[1] + 0.3


def test_cameras_find_their_way_back(scene):
    generator = torch.zeros(VIEWS, 4, 4)
    generator[:, :3, :3] = cross_matrix(0.012 * torch.randn(VIEWS, 3, generator=torch.Generator().manual_seed(0)))
    moved = torch.linalg.matrix_exp(generator) @ scene.cameras.cam_from_world
    off = replace(scene, cameras=scene.cameras.with_poses(moved))
    true = scene.cameras.cam_from_world[:, :3, :3]
    refined = refine(off, RefineConfig(steps=80, poses=True))

    def spread(cameras):
        """Of the rotations that are left, about their mean: a turn of everything is no error."""
        left = cameras.cam_from_world[:, :3, :3].transpose(1, 2) @ true
        return float(rotation_angle(left, left[:1].expand_as(left))[1:].mean())

    assert spread(refined.cameras) < 0.85 * spread(off.cameras)
    fixed = refine(off, RefineConfig(steps=80)).report["refinement"]["psnr_fit"][1]
    assert refined.report["refinement"]["psnr_fit"][1] > fixed


def test_a_scene_keeps_its_degree_and_before_means_the_scene_as_it_was(scene):
    torch.manual_seed(0)
    splats = scene.gaussians.with_sh_degree(2)
    sh = splats.sh.clone()
    sh[:, 1:] = 0.2 * torch.randn_like(sh[:, 1:])
    coloured = replace(scene, gaussians=replace(splats, sh=sh))
    kept = refine(coloured, RefineConfig(steps=1, exposure=False))
    assert kept.gaussians.sh_degree == 2 and kept.report["refinement"]["sh_degree"] == 2
    flat = refine(coloured, RefineConfig(steps=1, exposure=False, sh_degree=0, max_gaussians=500))
    assert flat.report["refinement"]["psnr_fit"][0] == kept.report["refinement"]["psnr_fit"][0]


def test_a_budget_is_kept_and_steps_follow_the_views(scene):
    refined = refine(scene, RefineConfig(steps=2, max_gaussians=2000, sh_degree=0))
    assert len(refined.gaussians) == refined.report["gaussians"]["count"] == 2000
    assert refined.gaussians.sh_degree == 0
    config = RefineConfig()
    assert (config.steps_for(2), config.steps_for(9), config.steps_for(500)) == (300, 450, 3000)


def test_wrong_settings_are_one_clear_line(scene):
    for settings, message in (
        ({"steps": 0}, "steps must be >= 1"),
        ({"hold_out": 1}, "hold_out must be 0 or >= 2"),
        ({"sh_degree": 5}, "sh_degree must be 0, 1, 2 or 3"),
        ({"ssim_weight": 2.0}, r"ssim_weight must lie in \[0, 1\]"),
    ):
        with pytest.raises(InputError, match=message):
            RefineConfig(**settings)
    with pytest.raises(InputError, match="5 views are too few to hold one in 12 out"):
        refine(scene, RefineConfig(steps=1, hold_out=12))
    with pytest.raises(InputError, match="no Gaussians to refine"):
        refine(replace(scene, gaussians=scene.gaussians[:0]), RefineConfig(steps=1))


def test_the_command_writes_a_scene(scene, tmp_path, capsys):
    scene.save(tmp_path / "out", preview=False)
    arguments = ["refine", str(tmp_path / "out"), "--output", str(tmp_path / "fine"), "--steps", "15", "--no-video"]
    assert main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["psnr_fit"][1] > said["psnr_fit"][0] and said["steps"] == 15
    again = Scene.load(tmp_path / "fine")
    assert again.report["refinement"]["psnr_fit"] == said["psnr_fit"] and again.gaussians.sh_degree == 1
    assert main([*arguments[:3], str(tmp_path / "out/scene.ply"), "--steps", "1"]) == 2
