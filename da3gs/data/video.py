"""Frames of a video that are worth reconstructing from: sharp, and spread over the camera's motion.

Letters: F frames of the clip, N frames chosen.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from da3gs.errors import FormatError, InputError
from da3gs.images import VIDEO_SUFFIXES

if TYPE_CHECKING:
    import cv2

# Sharpness and motion are measured on grey copies of this width: blur that hurts survives, noise does not.
_MEASURED_WIDTH_PX = 480
_TRACKED_POINTS = 200
# A frame counts as sharp if its measure reaches this fraction of the sharpest in its segment; of those the most central
# one is taken, so that neighbours keep their distance.
_SHARP_ENOUGH = 0.75
# Every frame advances by at least this fraction of the mean motion, so that pauses still get some frames, and by at
# least this fraction of the width, so that coding noise is not taken for motion.
_PAUSE_MOTION = 0.1
_NOISE_MOTION = 0.002
# Motion beyond this fraction of the width from one frame to the next is a cut or lost track.
_MAX_MOTION = 0.2
# A file whose frames and time both end before this fraction of what its header promises is truncated.
_TRUNCATED = 0.9
_LOG_LEVEL = "OPENCV_FFMPEG_LOGLEVEL"


@dataclass(frozen=True, eq=False)
class VideoFrames:
    """N frames of a clip.

    Attributes:
        images: RGB uint8, turned upright by the file's rotation tag.
        indices: Number of each frame in the clip, ascending.
        times_s: Its time in seconds.
        total: Frames in the clip.
    """

    images: tuple[UInt8[np.ndarray, "H W 3"], ...]
    indices: tuple[int, ...]
    times_s: tuple[float, ...]
    total: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"frame_{index:06d}" for index in self.indices)


@dataclass(frozen=True, eq=False)
class ClipMeasures:
    """What a first pass over a clip finds.

    Attributes:
        sharpness: [F] variance of the Laplacian of the grey image at a fixed width; blur lowers it.
        motion: [F] median shift of tracked points since the frame before, as a fraction of the width; motion[0] = 0.
        times_s: [F] presentation times.
    """

    sharpness: Float[np.ndarray, " F"]
    motion: Float[np.ndarray, " F"]
    times_s: Float[np.ndarray, " F"]


def read_frames(
    path: str | os.PathLike,
    *,
    fps: float | int | None = None,
    frames: int | None = None,
    max_frames: int | None = None,
    progress: bool = False,
) -> VideoFrames:
    """Frames of a video, chosen by time or by sharpness and motion. Deterministic.

    Args:
        path: Video file.
        fps: Take the frames nearest to a regular grid of this rate (at most that of the clip).
        frames: Take this many: the clip is cut into that many pieces of equal camera motion, and each gives the most
            central of its sharp frames. Not together with `fps`.
        max_frames: Upper bound for `fps`: more are thinned out evenly.
        progress: Show a progress bar.

    Raises:
        InputError: No such file; both or neither of `fps` and `frames`; numbers that are not positive.
        FormatError: Not a video, truncated, or nothing in it can be decoded.
    """
    if (fps is None) == (frames is None):
        raise InputError("give either fps or the number of frames to take from a video")
    if fps is not None and not fps > 0:
        raise InputError(f"fps must be > 0; got {fps}")
    if frames is not None and frames < 1:
        raise InputError(f"frames must be >= 1; got {frames}")
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames must be >= 1; got {max_frames}")
    path = Path(path)
    measures = measure_clip(path, content=frames is not None, progress=progress)
    total = len(measures.times_s)
    if frames is not None:
        chosen = choose_frames(measures.sharpness, measures.motion, frames)
    else:
        chosen = frames_at_rate(measures.times_s, float(fps or 0))
        if max_frames is not None and len(chosen) > max_frames:
            keep = np.linspace(0, len(chosen) - 1, max_frames).round().astype(int) if max_frames > 1 else [0]
            chosen = [chosen[index] for index in keep]
    images = _decode(path, chosen)
    return VideoFrames(tuple(images), tuple(chosen), tuple(float(measures.times_s[i]) for i in chosen), total)


def frames_at_rate(times_s: Float[np.ndarray, " F"], fps: float | int) -> list[int]:
    """The frames shown nearest to 0, 1/fps, 2/fps, ... seconds after the first."""
    grid = np.arange(times_s[0], times_s[-1] + 1e-6, 1 / fps)
    nearest = np.abs(times_s[None] - grid[:, None]).argmin(1) if len(grid) * len(times_s) < 10**7 else None
    if nearest is None:
        right = np.searchsorted(times_s, grid).clip(1, len(times_s) - 1)
        nearest = np.where(grid - times_s[right - 1] <= times_s[right] - grid, right - 1, right)
    return sorted({int(index) for index in nearest})


def choose_frames(sharpness: Float[np.ndarray, " F"], motion: Float[np.ndarray, " F"], count: int) -> list[int]:
    """`count` frames, one from each of as many pieces of equal camera motion: the most central of the sharp ones.

    Args:
        sharpness: [F] any measure that blur lowers.
        motion: [F] motion since the frame before.
        count: Frames wanted, >= 1; all when the clip has no more.
    """
    total = len(sharpness)
    if count >= total:
        return list(range(total))
    steps = np.asarray(motion, dtype=np.float64).copy()
    steps[0] = 0.0
    steps = np.maximum(steps, max(_PAUSE_MOTION * steps[1:].mean(), _NOISE_MOTION))
    position = np.cumsum(steps)
    position = (position - position[0]) / (position[-1] - position[0])
    piece = np.minimum((position * count).astype(int), count - 1)
    chosen = []
    for index in range(count):
        members = np.flatnonzero(piece == index)
        if not len(members):
            continue  # one step of the camera crossed the whole piece; filled up below
        sharp = members[sharpness[members] >= _SHARP_ENOUGH * sharpness[members].max()]
        middle = (index + 0.5) / count
        chosen.append(int(sharp[np.abs(position[sharp] - middle).argmin()]))
    while len(chosen) < count:
        free = np.setdiff1d(np.arange(total), chosen)
        gap = np.abs(position[free, None] - position[chosen]).min(1)
        # The sharper of equally lonely frames; the gap decides first.
        chosen.append(int(free[np.lexsort((sharpness[free], gap))[-1]]))
    return sorted(chosen)


def measure_clip(path: str | os.PathLike, *, content: bool = True, progress: bool = False) -> ClipMeasures:
    """Times, and with `content` sharpness and motion, of all frames: one pass of decoding.

    Raises:
        InputError, FormatError: As `read_frames`.
    """
    import cv2

    path = Path(path)
    sharpness, motion, times = [], [], []
    before: np.ndarray | None = None
    with _Capture(path) as capture:
        clip_fps = capture.get(cv2.CAP_PROP_FPS)
        promised = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        with _progress_bar(promised, progress and content) as advance:
            while capture.grab():
                times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
                advance()
                if not content:
                    continue
                decoded, frame = capture.retrieve()
                if not decoded:
                    raise FormatError(f"{path}: frame {len(times) - 1} cannot be decoded; the video is damaged")
                grey = _small_grey(frame)
                sharpness.append(float(cv2.Laplacian(grey, cv2.CV_32F).var()))
                motion.append(0.0 if before is None else _median_shift(before, grey))
                before = grey
    if not times:
        raise FormatError(
            f"{path}: no frame can be decoded: not a video, or damaged; expected {' '.join(VIDEO_SUFFIXES)}"
        )
    times_s = _increasing_times(np.array(times), clip_fps)
    # Headers of some containers only estimate the number of frames, so the time must end early as well.
    if (
        promised > 0
        and clip_fps > 0
        and len(times) < _TRUNCATED * promised
        and times_s[-1] - times_s[0] < _TRUNCATED * (promised - 1) / clip_fps
    ):
        raise FormatError(
            f"{path}: the video breaks off after {len(times)} of {int(promised)} frames "
            f"({times_s[-1] - times_s[0]:.1f} of {promised / clip_fps:.1f} s); copy or "
            "download it again, or encode it anew if it was cut without that"
        )
    missing = np.zeros(len(times))
    return ClipMeasures(np.array(sharpness) if content else missing, np.array(motion) if content else missing, times_s)


def _increasing_times(times_s: np.ndarray, clip_fps: float) -> np.ndarray:
    """Times as the container has them; by frame number when it has none or they run backwards."""
    if len(times_s) > 1 and (np.diff(times_s) <= 0).any():
        return np.arange(len(times_s)) / (clip_fps if clip_fps > 0 else 1.0)
    return times_s


def _small_grey(frame: np.ndarray) -> np.ndarray:
    import cv2

    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    height = max(1, round(grey.shape[0] * _MEASURED_WIDTH_PX / grey.shape[1]))
    return cv2.resize(grey, (_MEASURED_WIDTH_PX, height), interpolation=cv2.INTER_AREA)


def _median_shift(before: np.ndarray, after: np.ndarray) -> float:
    """Median shift of tracked corners, as a fraction of the width; 0 where nothing can be tracked."""
    import cv2

    corners = cv2.goodFeaturesToTrack(before, _TRACKED_POINTS, 0.01, 8)
    if corners is None:
        return 0.0
    moved, found, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, None)
    tracked = found.ravel() == 1
    if not tracked.any():
        return _MAX_MOTION
    shift = np.linalg.norm((moved - corners).reshape(-1, 2)[tracked], axis=1)
    return min(float(np.median(shift)) / before.shape[1], _MAX_MOTION)


def _decode(path: Path, wanted: list[int]) -> list[np.ndarray]:
    import cv2

    # Seeking by frame number is wrong in too many containers; grab() without retrieve() skips the colour conversion.
    images = []
    keep, last = set(wanted), wanted[-1]
    with _Capture(path) as capture:
        for index in range(last + 1):
            if not capture.grab():
                raise FormatError(f"{path}: frame {index} cannot be decoded a second time; the video is damaged")
            if index in keep:
                images.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    return images


class _Capture:
    """An opened cv2.VideoCapture. Complaints of OpenCV and FFmpeg about damaged files are kept off stderr.

    FFmpeg's level is read from the environment when OpenCV first opens a video, so another opener may have set it.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise InputError(f"video {path} {'is a folder' if path.is_dir() else 'does not exist'}")
        if path.stat().st_size == 0:
            raise FormatError(f"{path}: the file is empty (0 bytes); copy or download it again")
        self.path = path

    def __enter__(self) -> "cv2.VideoCapture":
        import cv2

        level = cv2.utils.logging.getLogLevel()
        unset = _LOG_LEVEL not in os.environ
        os.environ.setdefault(_LOG_LEVEL, "-8")  # AV_LOG_QUIET
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        try:
            self.capture = cv2.VideoCapture(str(self.path.absolute()), cv2.CAP_FFMPEG)
        finally:
            cv2.utils.logging.setLogLevel(level)
            if unset:
                del os.environ[_LOG_LEVEL]
        return self.capture

    def __exit__(self, *_) -> None:
        self.capture.release()


class _progress_bar:
    def __init__(self, total: float, shown: bool):
        from rich.console import Console
        from rich.progress import Progress

        self.bar = Progress(console=Console(stderr=True), disable=not shown, transient=True)
        self.total = total if total > 0 else None

    def __enter__(self):
        self.bar.start()
        task = self.bar.add_task("Measuring video frames", total=self.total)
        return lambda: self.bar.advance(task)

    def __exit__(self, *_) -> None:
        self.bar.stop()
