"""Clips that decode back to what was written, depth colours that mean one thing, and contact sheets."""

import json
import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from da3gs.errors import BackendError, InputError
from da3gs.export.stills import write_stills
from da3gs.export.video import (
    colorize_depth,
    measure_depth_range,
    render_frames,
    uint8_picture,
    write_contact_sheet,
    write_picture,
    write_video,
)
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.rendering.render import RenderOutput

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def smooth_frames(count, width, height):
    y, x = np.mgrid[:height, :width]
    for index in range(count):
        red = 255 * x / width
        green = 255 * y / height
        blue = np.full_like(red, 255 * index / count)
        yield np.stack([red, green, blue], -1).astype(np.uint8)


def probe(path):
    """Codec, pixel format, size and rate, as ffmpeg reads them; and the decoded frames [F, H, W, 3]."""
    text = subprocess.run([FFMPEG, "-i", str(path)], capture_output=True, text=True).stderr
    line = re.search(r"Stream .*Video: (\w+).*?, (\w+)[(,].*? (\d+)x(\d+).*? ([\d.]+) fps", text)
    assert line is not None, text
    codec, pixels, width, height, fps = line.groups()
    decode = [FFMPEG, "-v", "error", "-i", str(path), "-fps_mode", "passthrough"]
    decode += ["-sws_flags", "accurate_rnd+full_chroma_int+full_chroma_inp"]
    raw = subprocess.run([*decode, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, int(height), int(width), 3)
    return codec, pixels, (int(width), int(height)), float(fps), frames, text


@pytest.mark.parametrize(("fps", "width", "height"), [(24, 128, 96), (30, 64, 48), (12.5, 128, 96)])
def test_mp4_decodes_back(tmp_path, fps, width, height):
    path = tmp_path / "clip.mp4"
    written = list(smooth_frames(20, width, height))
    assert write_video(path, iter(written), fps=fps) == 20
    codec, pixels, size, rate, frames, text = probe(path)
    assert (codec, pixels, size, rate) == ("h264", "yuv420p", (width, height), fps)
    assert "yuv420p(tv, bt709, progressive)" in text and frames.shape == (20, height, width, 3)
    difference = frames.astype(int) - np.stack(written)
    assert np.abs(difference).mean() < 2.5 and np.abs(difference.mean((0, 1, 2))).max() < 1.0
    assert [item.name for item in tmp_path.iterdir()] == ["clip.mp4"]


def test_mp4_starts_with_its_index(tmp_path):
    """Browsers can play while they load only if the moov box comes before the data."""
    write_video(tmp_path / "clip.mp4", smooth_frames(5, 32, 32))
    data = (tmp_path / "clip.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_odd_sizes_are_padded_and_the_log_says_so(tmp_path, caplog):
    with caplog.at_level("INFO"):
        write_video(tmp_path / "clip.mp4", smooth_frames(4, 65, 47))
    assert "65x47 px frames to 66x48" in caplog.text
    _, _, size, _, frames, _ = probe(tmp_path / "clip.mp4")
    assert size == (66, 48)
    assert np.abs(frames[0, :, 65].astype(int) - frames[0, :, 64]).mean() < 6  # the edge repeated, not black


def test_gif_loops_with_its_colours_and_timing(tmp_path):
    path = tmp_path / "clip.gif"
    written = list(smooth_frames(10, 64, 48))
    assert write_video(path, iter(written), fps=20) == 10
    with Image.open(path) as image:
        assert image.n_frames == 10 and image.size == (64, 48) and image.info["loop"] == 0
        durations = []
        for index in range(10):
            image.seek(index)
            durations.append(image.info["duration"])
            frame = np.asarray(image.convert("RGB")).astype(int)
            assert np.abs(frame - written[index]).mean() < 8
    assert sum(durations) == 500


def test_frames_are_taken_one_at_a_time(tmp_path):
    """The writer holds no clip: at most a frame is made before the previous one has been handed over."""
    alive, peak = [0], [0]

    class Frame(np.ndarray):
        def __del__(self):
            if getattr(self, "counted", False):
                alive[0] -= 1

    def frames():
        for _ in range(40):
            frame = np.zeros((64, 64, 3), np.uint8).view(Frame)
            frame.counted = True
            alive[0] += 1
            peak[0] = max(peak[0], alive[0])
            yield frame
            del frame

    write_video(tmp_path / "clip.mp4", frames())
    assert peak[0] <= 2


def test_failures_leave_nothing_behind(tmp_path):
    def breaks():
        yield from smooth_frames(3, 32, 32)
        raise KeyError("renderer died")

    with pytest.raises(KeyError):
        write_video(tmp_path / "a.mp4", breaks())
    with pytest.raises(InputError, match="no frames"):
        write_video(tmp_path / "b.mp4", iter(()))
    with pytest.raises(InputError, match="frame 1 is 16x16 px, the first was 32x32"):
        write_video(tmp_path / "c.mp4", iter([np.zeros((32, 32, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)]))
    with pytest.raises(InputError, match=r"\.mp4 or \.gif"):
        write_video(tmp_path / "d.avi", smooth_frames(3, 32, 32))
    with pytest.raises(InputError, match="50 for GIF"):
        write_video(tmp_path / "e.gif", smooth_frames(3, 32, 32), fps=60)
    with pytest.raises(InputError, match="does not exist"):
        write_video(tmp_path / "gone" / "f.mp4", smooth_frames(3, 32, 32))
    assert list(tmp_path.iterdir()) == []


def test_encoder_failure_is_reported(tmp_path, monkeypatch):
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\necho 'codec exploded' >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(script))
    with pytest.raises(BackendError, match="status 3: codec exploded"):
        write_video(tmp_path / "clip.mp4", smooth_frames(50, 256, 256))
    assert not (tmp_path / "clip.mp4").exists()


# ---------------------------------------------------------------- rendering


def path_of(count, width=32, height=24):
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, 2, 3] = torch.arange(count).float()
    K = torch.tensor([[30.0, 0, width / 2], [0, 30.0, height / 2], [0, 0, 1]]).expand(count, 3, 3).clone()
    return Cameras(poses, K, width, height)


class FakeRenderer:
    """Depth 2 on the left, 8 on the right, plus the camera's shift; nothing in the first row."""

    def __init__(self):
        self.calls = []

    def __call__(self, gaussians, cameras, config):
        width, height = cameras.size
        self.calls.append(float(cameras.cam_from_world[0, 2, 3]))
        depth = torch.full((1, height, width, 1), 8.0)
        depth[:, :, : width // 2] = 2.0
        depth += cameras.cam_from_world[0, 2, 3]
        alpha = torch.ones_like(depth)
        alpha[:, 0] = 0
        rgb = torch.full((1, height, width, 3), 0.5)
        rgb[..., 0] = 1.7
        return RenderOutput(rgb, alpha, torch.where(alpha > 0, depth, 0.0))


def test_frames_are_rendered_when_asked_for():
    renderer = FakeRenderer()
    frames = render_frames(Gaussians.empty(), path_of(5), renderer=renderer)
    assert renderer.calls == []
    first = next(frames)
    assert renderer.calls == [0.0] and first.shape == (24, 32, 3)
    assert first[5, 5].tolist() == [255, 128, 128]
    assert len(list(frames)) == 4 and renderer.calls == [0, 1, 2, 3, 4]


def test_one_colour_means_one_depth_over_the_clip():
    renderer = FakeRenderer()
    low, high = measure_depth_range(Gaussians.empty(), path_of(5), renderer=renderer)
    assert (low, high) == (2.0, 12.0)
    frames = list(
        render_frames(Gaussians.empty(), path_of(7), mode="depth", depth_range=(low, high), renderer=renderer)
    )
    # Depth 8 stands right in frame 0 and left in frame 6.
    assert frames[0][12, 30].tolist() == frames[6][12, 2].tolist()
    assert frames[0][12, 30].tolist() != frames[1][12, 30].tolist()
    assert (frames[0][0] == 0).all()
    near = frames[0][12, 2].astype(int)
    assert near[0] > near[2]  # red, not blue
    both = next(render_frames(Gaussians.empty(), path_of(2), mode="side-by-side", renderer=renderer))
    assert both.shape == (24, 64, 3)
    np.testing.assert_array_equal(both[:, :32], next(render_frames(Gaussians.empty(), path_of(1), renderer=renderer)))


def test_depth_colours_are_monotonic_in_depth():
    depth = torch.linspace(1, 10, 64)[None]
    picture = colorize_depth(depth, (1.0, 10.0)).astype(int)[0]
    assert picture[0, 0] > picture[0, 2] and picture[-1, 2] > picture[-1, 0]
    assert len({tuple(pixel) for pixel in picture.tolist()}) > 40
    beyond = colorize_depth(torch.tensor([[0.5, 20.0, 0.0]]), (1.0, 10.0))[0]
    assert beyond[0].tolist() == picture[0].tolist() and beyond[1].tolist() == picture[-1].tolist()
    assert beyond[2].tolist() == [0, 0, 0]
    half = colorize_depth(depth, (1.0, 10.0), alpha=torch.full_like(depth, 0.5)).astype(int)[0]
    assert np.abs(half * 2 - picture).max() <= 1
    with pytest.raises(InputError, match="near < far"):
        colorize_depth(depth, (2.0, 1.0))


def test_range_of_flat_and_empty_scenes():
    def flat(value, alpha):
        def renderer(gaussians, cameras, config):
            width, height = cameras.size
            ones = torch.ones(1, height, width, 1)
            return RenderOutput(ones.expand(1, height, width, 3), alpha * ones, value * ones)

        return renderer

    near, far = measure_depth_range(Gaussians.empty(), path_of(3), renderer=flat(4.0, 1.0))
    assert near < 4 < far and far / near == pytest.approx(1.05**2)
    assert measure_depth_range(Gaussians.empty(), path_of(3), renderer=flat(4.0, 0.0)) == (1.0, 2.0)


def test_frames_of_several_sizes_are_refused():
    mixed = Cameras.cat([path_of(1), path_of(1, 64, 48)])
    with pytest.raises(InputError, match="one image size"):
        render_frames(Gaussians.empty(), mixed, renderer=FakeRenderer())


# ---------------------------------------------------------------- stills and sheets


def test_stills_replace_only_stills(tmp_path):
    folder = tmp_path / "stills"
    assert write_stills(folder, smooth_frames(12, 16, 8)) == 12
    assert write_stills(folder, smooth_frames(2, 16, 8)) == 2
    assert sorted(item.name for item in folder.iterdir()) == ["0000.png", "0001.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "0001.png")), list(smooth_frames(2, 16, 8))[1])
    (folder / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"other files \(holiday\.jpg\)"):
        write_stills(folder, smooth_frames(2, 16, 8))
    assert (folder / "holiday.jpg").read_bytes() == b"precious"
    write_stills(tmp_path / "named", smooth_frames(2, 16, 8), names=["b/one.jpg", "two.png"])
    assert sorted(item.name for item in (tmp_path / "named").iterdir()) == ["b_one.png", "two.png"]
    assert write_stills(tmp_path / "named", smooth_frames(1, 16, 8)) == 1  # frames of an earlier call, by whatever name
    (tmp_path / "own").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "own/0001.png")  # cut from a video with ffmpeg, say
    with pytest.raises(InputError, match=r"holds other files \(0001.png\)"):
        write_stills(tmp_path / "own", smooth_frames(2, 16, 8))
    with pytest.raises(InputError, match="no frames"):
        write_stills(tmp_path / "none", iter(()))
    assert not (tmp_path / "none").exists()


def test_picture_formats(tmp_path):
    picture = next(smooth_frames(1, 16, 8))
    write_picture(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)
    write_picture(tmp_path / "a.jpg", picture)
    assert np.abs(np.asarray(Image.open(tmp_path / "a.jpg")).astype(int) - picture).mean() < 4
    with pytest.raises(InputError, match=r"got '\.bmp'"):
        write_picture(tmp_path / "a.bmp", picture)
    assert uint8_picture(torch.tensor([[[-1.0, 0.5, 3.0]]])).tolist() == [[[0, 128, 255]]]


def test_contact_sheet_holds_every_picture_and_label(tmp_path):
    red, green, wide = (np.zeros((40, 60, 3), np.uint8) for _ in range(3))
    red[..., 0], green[..., 1] = 255, 255
    wide = np.full((20, 90, 3), (0, 0, 255), np.uint8)
    write_contact_sheet(
        tmp_path / "sheet.png",
        [("input", [red, green]), ("render", [wide])],
        columns=["a.jpg", "b.jpg"],
        tile_height_px=80,
    )
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    area = {
        name: int((np.abs(sheet - colour).max(-1) < 10).sum())
        for name, colour in {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}.items()
    }
    assert area["red"] == area["green"] == 120 * 80 and abs(area["blue"] - 120 * 27) <= 120
    text = (sheet.min(-1) > 200).sum(0)
    assert text[:60].sum() > 50 and (sheet[:22].min(-1) > 200).sum() > 30  # row labels and column labels
    with pytest.raises(InputError, match="no pictures"):
        write_contact_sheet(tmp_path / "none.png", [])
    assert json.dumps(sorted(item.name for item in tmp_path.iterdir())) == '["sheet.png"]'
