"""`reconstruct` between known cameras: the pictures refine the depth of the network, and the report says how far."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from da3gs.data.synthetic import make_sample
from da3gs.images import uint8_from_tensor
from da3gs.metrics.poses import pose_metrics
from da3gs.metrics.shape import depth_metrics
from da3gs.model.da3_model import load_model
from da3gs.pipeline import ReconstructConfig, reconstruct, reinterpret_poses

# The sweep alone, without the help of keypoints.
CONFIG = ReconstructConfig(splat_size_px=182, check_poses=False, keypoints=False, device="cpu")


@pytest.fixture(scope="module")
def views():
    return make_sample(5, 5, 182, 126, style="kitchen", difficulty=0.2, motion="orbit", min_covisibility=0.6)


@pytest.fixture(scope="module")
def scenes(views):
    """By `refine_depth`."""
    return {
        wish: reconstruct(views.images, views.cameras, "da3-tiny", replace(CONFIG, refine_depth=wish))
        for wish in (True, False)
    }


def _error(scene, views):
    width, height = scene.cameras.size
    truth = torch.nn.functional.interpolate(views.depth[:, None], (height, width), mode="nearest-exact")[:, 0]
    return (scene.depth / truth).log().abs()[truth > 0]


def test_depth_is_several_times_nearer_the_truth(scenes, views):
    before, after = _error(scenes[False], views), _error(scenes[True], views)
    assert float(after.median()) < 0.4 * float(before.median())
    assert float((after < 0.223).float().mean()) > float((before < 0.223).float().mean()) + 0.05


def test_the_report_says_what_was_done(scenes):
    facts = scenes[True].report["refined_depth"]
    assert 0.3 < facts["confirmed"] < 1 and 0.02 < facts["median_change"] < 1
    chosen = {entry["what"]: entry for entry in scenes[True].report["choices"]}
    assert "other views confirm" in chosen["depth"]["why"]
    assert "refined_depth" not in scenes[False].report
    assert torch.equal(scenes[True].cameras.cam_from_world, scenes[False].cameras.cam_from_world)


def test_the_rough_cameras_of_the_head_leave_nothing_to_refine_by(views):
    scene = reconstruct(views.images, None, "da3-tiny", replace(CONFIG, camera_source="head"))
    assert "refined_depth" not in scene.report


def test_pictures_that_say_nothing_are_told(views):
    plain = torch.full_like(views.images, 0.5)
    scene = reconstruct(plain, views.cameras, "da3-tiny", CONFIG)
    assert scene.report["refined_depth"]["confirmed"] < 0.2
    assert any("--no-refine-depth" in warning for warning in scene.report["warnings"])


def test_views_from_one_place_keep_the_head_and_the_depth(views):
    """Without a baseline nothing can be refined: the result is that of --no-refine-depth, and nobody is warned."""
    still = views.cameras.with_poses(views.cameras.cam_from_world[:1].expand(5, 4, 4).clone())
    wished, plain = (
        reconstruct(views.images, still, "da3-tiny", replace(CONFIG, refine_depth=wish)) for wish in (True, False)
    )
    assert "refined_depth" not in wished.report
    assert not any("confirm" in warning for warning in wished.report["warnings"])
    assert torch.equal(wished.depth, plain.depth) and torch.equal(wished.gaussians.means, plain.gaussians.means)


def test_pictures_without_cameras_are_tied_together_by_matches_and_a_foreign_one_is_left_out():
    sample = make_sample(9_300_006, 4, 280, 196, difficulty=0.3, motion="orbit")
    foreign = make_sample(9_400_005, 1, 280, 196, difficulty=0.4)
    pictures = [*sample.images[:2], foreign.images[0], *sample.images[2:]]
    scene = reconstruct(pictures, names=["a", "b", "elsewhere", "c", "d"], model="da3-tiny")
    assert scene.report["views"] == ["a", "b", "c", "d"]
    assert any("elsewhere" in warning for warning in scene.report["warnings"])
    assert scene.report["poses"]["source"] == "matches between views"
    assert scene.report["frame"]["source"] == "estimated"
    width, height = scene.cameras.size
    found = pose_metrics(scene.cameras, sample.cameras.scaled(width=width, height=height))
    assert found.rotation_median_deg < 1 and found.translation_median_deg < 3
    # Depth is refined between them: nearer to the truth than the network's own, one scale for all.
    known = sample.depth > 0
    own = load_model("da3-tiny").predict(sample.images, gaussians=False, camera_source="head").depth
    errors = [
        depth_metrics(
            torch.nn.functional.interpolate(depth[:, None], sample.depth.shape[-2:], mode="nearest-exact")[:, 0],
            sample.depth,
            mask=known,
            per_view=False,
        ).abs_rel
        for depth in (scene.depth, own)
    ]
    assert errors[0] < 0.85 * errors[1]


def test_pictures_that_exif_turns_make_the_same_scene(tmp_path):
    """As files and as Pillow images: the cameras that matches find speak of the upright pictures."""
    sample = make_sample(9_300_006, 3, 280, 196, difficulty=0.3, motion="orbit")
    plain, turned = tmp_path / "plain", tmp_path / "turned"
    for folder in (plain, turned):
        folder.mkdir()
    for view, image in enumerate(sample.images):
        picture = Image.fromarray(uint8_from_tensor(image))
        picture.save(plain / f"{view}.png")
        exif = picture.getexif()
        exif[0x0112] = 6  # to be turned by a quarter to the right
        picture.transpose(Image.Transpose.ROTATE_90).save(turned / f"{view}.png", exif=exif)
    config = replace(CONFIG, refine_depth=False)
    expected = reconstruct(sorted(plain.iterdir()), config=config)
    assert expected.report["poses"]["source"] == "matches between views"
    files = sorted(turned.iterdir())
    for images in (files, [Image.open(file) for file in files]):
        scene = reconstruct(images, config=config)
        torch.testing.assert_close(scene.depth, expected.depth)
        torch.testing.assert_close(scene.cameras.cam_from_world, expected.cameras.cam_from_world)


@pytest.mark.parametrize("mistake", [None, "opengl", "c2w"])
def test_the_bundled_model_tells_right_poses_from_misread_ones(mistake):
    sample = make_sample(9_300_006, 4, 280, 196, difficulty=0.3, motion="orbit")
    given = sample.cameras if mistake is None else reinterpret_poses(sample.cameras, mistake)
    config = ReconstructConfig(size_px=196, splat_size_px=196, refine_depth=False, device="cpu")
    scene = reconstruct(list(sample.images), given, "da3-tiny", config)
    check = scene.report["poses"]["check_without_poses"]
    assert check["median_rotation_error_deg"][mistake or "as-read"] < 2
    assert check["likely_mistake"] == ([] if mistake is None else [mistake])
    told = [warning for warning in scene.report["warnings"] if "given poses" in warning]
    assert [f"--poses-are {mistake}" in warning for warning in told] == ([] if mistake is None else [True])


def test_pictures_with_nothing_in_common_have_no_say_on_poses(views):
    foreign = [make_sample(seed, 1, 182, 126, difficulty=0.4).images[0] for seed in (9_400_005, 9_400_006, 9_400_007)]
    config = replace(CONFIG, check_poses=True, refine_depth=False)
    scene = reconstruct(foreign, views.cameras[[0, 2, 4]], "da3-tiny", config)
    assert "too little in common" in scene.report["poses"]["not_checked"]
    assert "check_without_poses" not in scene.report["poses"]


def test_poses_are_checked_where_sizes_round_differently_on_the_way():
    """2000 x 1067 px becomes 196 x 112, but 196 x 98 by way of 798 px."""
    sample = make_sample(9_300_006, 3, 1000, 536, difficulty=0.3, motion="orbit")
    large = torch.nn.functional.interpolate(sample.images, (1067, 2000), mode="bilinear")
    config = ReconstructConfig(size_px=196, splat_size_px=196, refine_depth=False, device="cpu")
    scene = reconstruct(list(large), sample.cameras.scaled(width=2000, height=1067), "da3-tiny", config)
    assert scene.cameras.size == (196, 112)
    assert scene.report["poses"]["check_without_poses"]["median_rotation_error_deg"]["as-read"] < 1
