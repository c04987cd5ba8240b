"""Reading images of every kind, the released input pipeline bit for bit, and its undo."""

import numpy as np
import pytest
import torch
from assets import asset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from da3gs.data.photo_files import decode_fully, exif_orientation
from da3gs.errors import FormatError, InputError
from da3gs.geometry.cameras import Cameras
from da3gs.images import (
    RESIZE_METHODS,
    Views,
    exif_focal_px,
    find_images,
    image_size,
    load_image,
    magnified,
    prepare_views,
    tensor_from_uint8,
    uint8_from_tensor,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height, width):
    y, x = np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij")
    return np.stack([255 * x, 255 * y, 127.5 + 127.5 * np.sin(6 * (x + y))], -1).astype(np.uint8)


def intrinsics(views, width, height, focal=200.0):
    K = torch.tensor([[focal, 0.0, width / 2 + 3], [0.0, 1.05 * focal, height / 2 - 2], [0.0, 0.0, 1.0]])
    return Cameras(None, K.expand(views, 3, 3).clone(), width, height)


@pytest.mark.parametrize("sizes", [[(270, 480), (480, 270)], [(300, 400), (302, 403), (301, 399)]])
def test_magnified_views_show_the_same_parts(sizes):
    """Their pixels lie where the cameras of the originals, brought to the larger size, say they do."""
    pictures = [smooth(height, width) for height, width in sizes]
    small = prepare_views(pictures, size_px=196)
    large = magnified(small, pictures, 504, exif_orientation=True)
    assert large.size == tuple(side * 18 // 7 for side in small.size)
    assert large.resized_size.max() == 504
    height, width = small.images.shape[-2:]
    shrunk = torch.nn.functional.interpolate(large.images, (height, width), mode="area")
    assert float((shrunk - small.images)[..., 2:-2, 2:-2].abs().max()) < 0.01
    originals = Cameras(None, intrinsics(1, 10, 10).K.expand(len(sizes), 3, 3), *torch.tensor(sizes).flip(1).T)
    expected = small.cameras_to_processed(originals).scaled(width=large.size[0], height=large.size[1])
    torch.testing.assert_close(large.cameras_to_processed(originals).K, expected.K)


# ---------------------------------------------------------------- finding


def test_folder_is_read_in_natural_order_without_hidden_or_foreign_files(tmp_path):
    for name in ("img10.jpg", "img2.JPG", "img1.png", "._img1.png", "notes.txt"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, format="PNG")
    assert [path.name for path in find_images(tmp_path)] == ["img1.png", "img2.JPG", "img10.jpg"]
    assert [path.name for path in find_images(str(tmp_path / "img*.jpg"))] == ["img10.jpg"]
    assert find_images(tmp_path / "img1.png") == [tmp_path / "img1.png"]


def test_list_keeps_its_order_and_names_what_is_missing(tmp_path):
    paths = [tmp_path / "b.png", tmp_path / "a.png"]
    for path in paths:
        Image.new("RGB", (4, 4)).save(path)
    assert find_images(paths) == paths
    with pytest.raises(InputError, match=r"gone\.png.*not found"):
        find_images([*paths, tmp_path / "gone.png"])


def test_images_subfolder_stands_in_for_an_empty_folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a.png")
    assert find_images(tmp_path) == [tmp_path / "images" / "a.png"]


def test_brackets_in_a_real_file_name_are_no_pattern(tmp_path):
    path = tmp_path / "room[1].png"
    Image.new("RGB", (4, 4)).save(path)
    assert find_images(str(path)) == [path]


def test_folder_of_raw_photos_says_what_to_do(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"ftypheic")
    with pytest.raises(InputError, match=r"\.heic.*convert"):
        find_images(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match="empty"):
        find_images([])


# ---------------------------------------------------------------- one file


# How each EXIF orientation (EXIF 2.3, 4.6.4) stores an upright picture: turned or mirrored.
_STORED_FROM_UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(tmp_path, orientation):
    upright = np.zeros((6, 10, 3), np.uint8)
    upright[0, 0], upright[0, -1], upright[-1, 0], upright[-1, -1] = RED, GREEN, BLUE, WHITE
    stored = np.ascontiguousarray(_STORED_FROM_UPRIGHT[orientation](upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), upright)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", exif_orientation=False), stored)


def test_grey_palette_alpha_and_cmyk_become_rgb(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))

    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putdata([0, 1])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(load_image(tmp_path / "palette.png"), [[RED, GREEN]])
    palette.save(tmp_path / "palette_alpha.png", transparency=1)
    np.testing.assert_array_equal(load_image(tmp_path / "palette_alpha.png"), [[RED, WHITE]])

    rgba = Image.fromarray(np.array([[[10, 20, 30, 0], [200, 100, 0, 255], [0, 0, 0, 128]]], np.uint8), "RGBA")
    rgba.save(tmp_path / "rgba.png")
    np.testing.assert_allclose(load_image(tmp_path / "rgba.png"), [[WHITE, (200, 100, 0), (127, 127, 127)]], atol=1)
    np.testing.assert_array_equal(load_image(tmp_path / "rgba.png", alpha="drop")[0, 0], (10, 20, 30))

    Image.fromarray(np.array([[[128, 255], [128, 0]]], np.uint8), "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(load_image(tmp_path / "la.png"), [[[128] * 3, [255] * 3]])

    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")  # no cyan, full magenta and yellow: red
    np.testing.assert_allclose(load_image(tmp_path / "cmyk.jpg")[4, 4], RED, atol=4)


def test_sixteen_bit_images_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(load_image(tmp_path / "deep.png")[..., 0], np.arange(256).reshape(16, 16))
    import cv2

    colour = np.stack([ramp, ramp[::-1], ramp.T], -1)
    for name in ("deep_rgb.png", "deep_rgb.tif"):
        cv2.imwrite(str(tmp_path / name), colour[..., ::-1])
        np.testing.assert_allclose(load_image(tmp_path / name), np.rint(colour / 257), atol=1)
        assert image_size(tmp_path / name) == (16, 16)
    Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)).save(tmp_path / "float.tif")
    assert load_image(tmp_path / "float.tif").max() == 255
    Image.fromarray(np.full((4, 4), 7.0, np.float32)).save(tmp_path / "hdr.tif")
    with pytest.raises(FormatError, match=r"hdr\.tif.*\[0, 1\].*7"):
        load_image(tmp_path / "hdr.tif")


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("hello, I am no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    Image.fromarray(picture(64, 64)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-800])
    Image.fromarray(picture(64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-2000])
    expected = {"text.jpg": "not an image.*hello", "empty.jpg": "empty", "cut.jpg": "truncated", "cut.png": "truncated"}
    for name, message in expected.items():
        with pytest.raises(FormatError, match=f"{name}.*{message}") as caught:
            load_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"gone\.jpg does not exist"):
        load_image(tmp_path / "gone.jpg")
    with pytest.raises(InputError, match="is a folder"):
        load_image(tmp_path)


def test_too_many_pixels_are_one_clear_line_wherever_they_are_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "huge.jpg"
    Image.new("RGB", (64, 48)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for ask in (load_image, image_size, exif_focal_px, decode_fully, exif_orientation):
        with pytest.raises(FormatError, match=r"huge.jpg: .*scale the image down first"):
            ask(path)


def test_raw_photos_beside_others_are_named(tmp_path, caplog):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"ftypheic")
    assert [path.name for path in find_images(tmp_path)] == ["a.png"]
    assert "1 files in" in caplog.text and "IMG_1.HEIC" in caplog.text


def test_strange_names_and_patterns(tmp_path):
    for name in ("²1.png", "10.png", "9.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert [path.name for path in find_images(tmp_path)] == ["9.png", "10.png", "²1.png"]
    with pytest.raises(InputError, match="is no pattern that can be searched"):
        find_images(f"{tmp_path}/**.jpg")


def test_exif_focal_length(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 26
    Image.new("RGB", (4000, 3000)).save(tmp_path / "phone.jpg", exif=exif)
    # 26 mm on a 43.27 mm diagonal; the picture's diagonal is 5000 px.
    assert exif_focal_px(tmp_path / "phone.jpg") == pytest.approx(26 / 43.2666 * 5000, rel=1e-5)
    Image.new("RGB", (40, 30)).save(tmp_path / "bare.jpg")
    assert exif_focal_px(tmp_path / "bare.jpg") is None


# ---------------------------------------------------------------- the released pipeline


def released_picture(name, height, width):
    """`paritygen.uint8_image`: smooth waves plus noise, seeded by name."""
    import hashlib

    digest = hashlib.sha256(f"da3-parity-v1/input/{name}/uint8".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "big")))
    k, p = rng.standard_normal((3, 4, 2)) * 3.0, rng.standard_normal((3, 4)) * 3.0
    noise = rng.standard_normal((height, width, 3))
    y, x = np.arange(height)[:, None] / height, np.arange(width)[None, :] / width
    out = np.zeros((height, width, 3))
    for c in range(3):
        for j in range(4):
            out[..., c] += np.cos(2 * np.pi * (k[c, j, 0] * y + k[c, j, 1] * x) + p[c, j])
    return np.clip(np.rint(127.5 + 28.0 * out + 6.0 * noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("method", RESIZE_METHODS)
@pytest.mark.parametrize("size", ["150x227", "227x150", "120x160", "60x90"])
@pytest.mark.parametrize("bound", [112, 150])
def test_equals_the_released_pipeline(method, size, bound):
    fixture = np.load(asset("parity/unit_input_processor.npz"))
    height, width = map(int, size.split("x"))
    image = released_picture(f"pp_{size}", height, width)
    views = prepare_views([image], intrinsics(1, width, height), size_px=bound, method=method)
    key = f"{size}.{method}.{bound}"
    assert list(views.images.shape) == fixture[f"{key}.shape"].tolist()
    np.testing.assert_array_equal(views.normalised.numpy().reshape(-1)[::211], fixture[f"{key}.flat211"])
    np.testing.assert_allclose(views.cameras.K.numpy(), fixture[f"{key}.K"], rtol=2e-7, atol=1e-5)
    mean, std = fixture[f"{key}.stats"]
    assert float(views.normalised.double().mean()) == pytest.approx(mean, abs=1e-6)
    assert float(views.normalised.double().std(correction=0)) == pytest.approx(std, abs=1e-6)


def test_mixed_sizes_equal_the_released_pipeline():
    fixture = np.load(asset("parity/unit_input_processor.npz"))
    sizes = [(120, 160), (160, 120), (130, 160)]
    images = [released_picture(f"pp_mix{i}", h, w) for i, (h, w) in enumerate(sizes)]
    K = torch.tensor([[150.0, 0, 80], [0, 150, 60], [0, 0, 1]]).expand(3, 3, 3).clone()
    cameras = Cameras(None, K, torch.tensor([w for _, w in sizes]), torch.tensor([h for h, _ in sizes]))
    views = prepare_views(images, cameras, size_px=140)
    assert list(views.images.shape) == fixture["mixed.shape"].tolist()
    np.testing.assert_allclose(views.cameras.K.numpy(), fixture["mixed.K"], rtol=2e-7, atol=1e-5)
    np.testing.assert_array_equal(views.normalised.numpy().reshape(-1)[::211], fixture["mixed.flat211"])


def test_every_kind_of_input_gives_the_same_views(tmp_path):
    image = picture(61, 83)
    Image.fromarray(image).save(tmp_path / "a.png")
    tensor = tensor_from_uint8(image)
    reference = prepare_views([image], size_px=84).images
    for given_images in (
        [tmp_path / "a.png"],
        [str(tmp_path / "a.png")],
        [Image.fromarray(image)],
        [tensor],
        tensor[None],
    ):
        assert torch.equal(prepare_views(given_images, size_px=84).images, reference)
    np.testing.assert_array_equal(uint8_from_tensor(tensor), image)
    assert prepare_views([tmp_path / "a.png"], size_px=84).names == ("a.png",)


def test_photos_turn_upright_only_without_cameras(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(56, 84)).save(tmp_path / "a.png", exif=exif)
    assert prepare_views([tmp_path / "a.png"], size_px=84).size == (56, 84)
    views = prepare_views([tmp_path / "a.png"], intrinsics(1, 84, 56), size_px=84)
    assert views.size == (84, 56) and torch.equal(views.cameras.K, intrinsics(1, 84, 56).K)


# ---------------------------------------------------------------- undo


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(15, 90), st.integers(15, 90)), min_size=1, max_size=3),
    method=st.sampled_from(RESIZE_METHODS),
    bound=st.sampled_from([28, 56, 75]),
)
def test_cameras_come_back(sizes, method, bound):
    images = [picture(h, w) for h, w in sizes]
    cameras = Cameras.cat([intrinsics(1, w, h) for h, w in sizes]).to(torch.float64)
    try:
        views = prepare_views(images, cameras, size_px=bound, method=method)
    except InputError as error:
        assert "patch" in str(error) and method.endswith("crop")
        return
    assert views.size[0] % 14 == 0 and views.size[1] % 14 == 0
    back = views.undo_cameras(views.cameras)
    torch.testing.assert_close(back.K, cameras.K, rtol=1e-12, atol=1e-9)
    assert torch.equal(back.width, cameras.width) and torch.equal(back.height, cameras.height)


@pytest.mark.parametrize("method", RESIZE_METHODS)
def test_pixels_follow_their_camera(method):
    """A map of viewing rays through the processed cameras, undone, is the map of rays through the original cameras."""
    sizes = [(90, 120), (120, 90), (100, 130)]
    cameras = Cameras.cat([intrinsics(1, w, h) for h, w in sizes])
    views = prepare_views([picture(h, w) for h, w in sizes], cameras, size_px=112, method=method)
    undone = views.undo_map(views.cameras.camera_rays()[..., :2].permute(0, 3, 1, 2), fill=9.0)
    covered = 0
    for view, rays in enumerate(undone):
        expected = cameras[view].camera_rays()[0, ..., :2].permute(2, 0, 1)
        assert rays.shape == expected.shape
        # A ray map is linear, so bilinear sampling is exact except where the border pixel is repeated (half a pixel).
        inside = (rays != 9.0).all(0)
        inside[0], inside[-1], inside[:, 0], inside[:, -1] = False, False, False, False
        error = (rays - expected).abs()[:, inside]
        assert error.quantile(0.9) < 1e-5 and error.max() < 0.6 / 150
        covered += int(inside.sum())
    assert covered > 0.4 * sum(h * w for h, w in sizes)


def test_undone_images_resemble_the_originals_and_the_margin_is_filled():
    image = smooth(150, 227)
    views = prepare_views([image, image], size_px=112)
    undone = views.undo_map(views.images)
    assert undone.shape == (2, 3, 150, 227)
    difference = (undone[0] - tensor_from_uint8(image)).abs()
    assert difference.mean() < 0.005 and difference.max() < 0.03
    cropped = prepare_views([image], size_px=150, method="upper_bound_crop")
    ones = cropped.undo_map(torch.ones(1, *cropped.images.shape[-2:]), fill=-1.0)
    assert ones[0, 75, 100] == pytest.approx(1) and ones[0, 75, 0] == -1 and ones[0, 75, -1] == -1
    assert ((ones == -1) | ((ones - 1).abs() < 1e-6)).all()
    assert torch.equal(cropped.undo_map(torch.ones(1, *cropped.images.shape[-2:], dtype=torch.bool)), ones > 0)


def test_nearest_keeps_measured_values_and_bilinear_carries_gradients():
    views = prepare_views([smooth(100, 150)], size_px=112)
    depth = torch.rand(1, *views.images.shape[-2:], generator=torch.Generator().manual_seed(0)).requires_grad_()
    nearest = views.undo_map(depth.detach(), interpolation="nearest")
    assert set(nearest.unique().tolist()) <= set(depth.unique().tolist())
    views.undo_map(depth).sum().backward()
    assert float(depth.grad.sum()) == pytest.approx(100 * 150, rel=1e-4)  # weights of every output pixel sum to one


def test_subset_and_wrong_sizes():
    views = prepare_views([picture(56, 84, seed) for seed in range(3)], intrinsics(3, 84, 56), size_px=84)
    subset = views[[2, 0]]
    assert isinstance(subset, Views) and subset.names == ("view_002", "view_000") and len(subset.cameras) == 2
    assert torch.equal(subset.images[1], views.images[0]) and len(views[-1]) == 1
    with pytest.raises(InputError, match=r"\(42, 28\).*\(84, 56\)"):
        views.cameras_to_processed(intrinsics(3, 42, 28))
    with pytest.raises(InputError, match="one camera per view"):
        views.undo_cameras(intrinsics(2, 84, 56))
    with pytest.raises(InputError, match="maps must be"):
        views.undo_map(torch.zeros(3, 10, 10))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        ([torch.full((3, 20, 20), 200.0)], "divide 8-bit values by 255"),
        ([torch.full((3, 20, 20), float("nan"))], r"\[0, 1\]"),
        ([torch.zeros(20, 20, 3)], r"\[3, H, W\]"),
        ([np.zeros((20, 20, 3), np.float32)], "uint8"),
    ],
)
def test_bad_input_is_refused(images, message):
    with pytest.raises(InputError, match=message):
        prepare_views(images)
