"""Frames chosen from videos: blurred ones are avoided, the camera's motion is covered, damaged files are refused."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from assets import asset

from da3gs.data.inputs import DEFAULT_VIDEO_FRAMES, load_input
from da3gs.data.video import choose_frames, frames_at_rate, measure_clip, read_frames
from da3gs.errors import FormatError, InputError

FPS = 10


def write_video(path, frames, fps=FPS):
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def panning_clip(shifts, blurred=()):
    """A textured plane seen through a window that moves by these many pixels per frame; some frames out of focus."""
    generator = np.random.default_rng(0)
    texture = cv2.resize(
        generator.integers(0, 256, (60, 500, 3), dtype=np.uint8), (4000, 480), interpolation=cv2.INTER_CUBIC
    )
    frames, left = [], 0
    for index, shift in enumerate(shifts):
        left += shift
        window = texture[:240, left : left + 320].copy()
        frames.append(cv2.GaussianBlur(window, (0, 0), 4) if index in blurred else window)
    return frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """60 frames; every frame but those with index % 5 == 2 is blurred."""
    blurred = {index for index in range(60) if index % 5 != 2}
    return write_video(tmp_path_factory.mktemp("clip") / "pan.mp4", panning_clip([4] * 60, blurred)), blurred


def test_planted_blur_is_avoided(clip):
    path, blurred = clip
    chosen = read_frames(path, frames=10)
    assert len(chosen) == 10 and chosen.total == 60 and not blurred & set(chosen.indices)
    assert np.diff(chosen.indices).max() <= 10  # and the whole clip is covered
    even = set(np.linspace(0, 59, 10).round().astype(int).tolist())
    assert len(even & blurred) >= 7  # evenly spaced frames would have been blurred ones
    assert [f"frame_{i:06d}" for i in chosen.indices] == list(chosen.names)
    assert chosen.times_s == pytest.approx([i / FPS for i in chosen.indices])


def test_frames_are_the_ones_named(clip):
    """Frame numbers, times and pixels belong together: each window shows what the clip shows at that time."""
    path, blurred = clip
    source = panning_clip([4] * 60, blurred)
    chosen = read_frames(path, frames=6)
    for index, image in zip(chosen.indices, chosen.images, strict=True):
        errors = [np.abs(image[..., ::-1].astype(int) - frame).mean() for frame in source]
        assert int(np.argmin(errors)) == index and errors[index] < 12


def test_motion_is_shared_out_not_time(tmp_path):
    """The camera rests for 30 frames and moves in the next 30: most frames come from where it moves."""
    path = write_video(tmp_path / "rest.mp4", panning_clip([0] * 30 + [8] * 30))
    measures = measure_clip(path)
    assert measures.motion[1:30].max() < 0.002 and np.median(measures.motion[31:]) == pytest.approx(8 / 320, rel=0.05)
    chosen = np.array(read_frames(path, frames=10).indices)
    assert (chosen >= 30).sum() >= 8 and (chosen < 30).sum() >= 1
    steps = np.diff(chosen[chosen >= 30])
    assert steps.min() >= 2 and steps.max() <= 5


def test_still_clip_is_spread_in_time(tmp_path):
    path = write_video(tmp_path / "still.mp4", panning_clip([0] * 20))
    assert np.diff(read_frames(path, frames=4).indices).min() >= 3


def test_more_frames_than_there_are(clip):
    assert read_frames(clip[0], frames=1000).indices == tuple(range(60))
    assert len(read_frames(clip[0], frames=1)) == 1


def test_frames_per_second(clip):
    assert read_frames(clip[0], fps=2).indices == tuple(range(0, 60, 5))
    assert read_frames(clip[0], fps=1000).indices == tuple(range(60))
    assert read_frames(clip[0], fps=2, max_frames=3).indices == (0, 30, 55)  # the middle of 12 is the sixth
    assert frames_at_rate(np.array([0.0, 0.5, 0.55, 2.0]), 1) == [0, 2, 3]


def test_every_piece_gives_a_frame_even_across_jumps():
    motion = np.zeros(40)
    motion[20] = 100.0  # all motion in one step
    chosen = choose_frames(np.ones(40), motion, 8)
    assert len(set(chosen)) == 8 and chosen == sorted(chosen)


def test_real_clips():
    golf = read_frames(asset("data/video_golfcart/golfcart.mp4"), frames=6)
    sharpness = measure_clip(asset("data/video_golfcart/golfcart.mp4")).sharpness
    assert len(golf) == 6 and golf.total == 40 and golf.images[0].shape == (720, 1280, 3)
    for index in golf.indices:  # each at least near the best of its neighbourhood
        near = sharpness[max(0, index - 3) : index + 4]
        assert sharpness[index] >= 0.7 * near.max()
    ramen = load_input(asset("data/video_ramen/ramen.mp4"), max_views=12)
    assert ramen.kind == "video" and len(ramen) == 12 and ramen.sizes == ((448, 336),) * 12
    assert "took 12 of 32 frames" in ramen.notes[0]
    assert len(load_input(asset("data/video_ramen/ramen.mp4"), fps=0.25)) == 8


def test_default_number_of_frames(clip):
    assert len(load_input(clip[0])) == DEFAULT_VIDEO_FRAMES
    assert len(load_input(clip[0], frames=20, max_views=5)) == 5


def test_damaged_videos_give_one_line(tmp_path, clip):
    whole = clip[0].read_bytes()
    cases = {
        "empty.mp4": (b"", "empty"),
        "text.mp4": (b"this is no video at all" * 50, "no frame can be decoded"),
        "half.mp4": (whole[: len(whole) // 2], "no frame can be decoded"),  # the index stands at the end
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=words) as caught:
            read_frames(tmp_path / name, frames=4)
        assert name in str(caught.value) and "\n" not in str(caught.value)

    # In a process of its own, as on the command line, FFmpeg's and OpenCV's complaints stay out of the way.
    code = f"""
from da3gs.data.video import read_frames
from da3gs.errors import FormatError
try:
    read_frames({str(tmp_path / "half.mp4")!r}, frames=4)
except FormatError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout.count("\n") == 1


def test_video_that_breaks_off(tmp_path):
    """With its index in front (as cameras and web servers write it) a truncated file still opens."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    full = tmp_path / "full.mp4"
    source = write_video(tmp_path / "source.mp4", panning_clip([4] * 60))
    subprocess.run(
        [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-loglevel",
            "error",
            "-i",
            source,
            "-c",
            "copy",
            "-movflags",
            "faststart",
            full,
        ],
        check=True,
    )
    whole = full.read_bytes()
    assert len(read_frames(full, frames=4)) == 4
    full.write_bytes(whole[: int(len(whole) * 0.6)])
    with pytest.raises(FormatError, match=r"breaks off after \d+ of 60 frames"):
        read_frames(full, frames=4)
    with pytest.raises(FormatError, match="breaks off"):
        read_frames(full, fps=2)


def test_arguments(tmp_path, clip):
    for options, words in [
        ({}, "either fps or the number"),
        ({"fps": 1, "frames": 2}, "either fps or the number"),
        ({"fps": 0}, "fps must be > 0"),
        ({"fps": float("nan")}, "fps must be > 0"),
        ({"frames": 0}, "frames must be >= 1"),
    ]:
        with pytest.raises(InputError, match=words):
            read_frames(clip[0], **options)
    with pytest.raises(InputError, match="does not exist"):
        read_frames(tmp_path / "absent.mp4", frames=2)
    with pytest.raises(InputError, match="not both"):
        load_input(clip[0], fps=1, frames=3)
    with pytest.raises(InputError, match="cameras cannot be given for a video"):
        load_input(clip[0], cameras=tmp_path / "cameras.json")
