"""Pictures for people: clips (.mp4, .gif), numbered stills, coloured depth, contact sheets.

Frames go to the encoder one by one as they are rendered; no clip is ever held in memory.
"""

import errno
import io
import logging
import math
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from da3gs.atomic import atomic_path
from da3gs.errors import BackendError, InputError
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.images import tracked
from da3gs.rendering.render import RenderConfig, render

if TYPE_CHECKING:
    import PIL.Image

log = logging.getLogger(__name__)

FrameMode = Literal["rgb", "depth", "side-by-side"]
Renderer = Callable[[Gaussians, Cameras, RenderConfig], Any]  # of one camera: to one RenderOutput
Picture = UInt8[np.ndarray, "_H _W 3"]  # pictures of one call may differ in size

VIDEO_OUTPUTS = (".mp4", ".gif")
# Players show no more than 50 pictures a second of a GIF: delays are whole hundredths, and 1/100 is taken for 1/10.
_MAX_GIF_FPS = 50
_RANGE_QUANTILES = (0.02, 0.98)
_OPAQUE = 0.5


# ---------------------------------------------------------------- frames


def render_frames(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    mode: FrameMode = "rgb",
    config: RenderConfig | None = None,
    depth_range: tuple[float, float] | None = None,
    renderer: Renderer = render,
) -> Iterator[Picture]:
    """Render the cameras one by one to uint8 pictures, as they are asked for.

    Args:
        gaussians: What to render.
        cameras: One per frame, all of one size.
        mode: "rgb", "depth" (coloured, near is warm), or "side-by-side" (rgb left, depth right).
        config: Passed to the renderer.
        depth_range: (near, far) z-depths of the ends of the colour map, the same for all frames so that colours mean
            one thing throughout a clip; None measures it with `measure_depth_range`.
        renderer: Stands in for `da3gs.rendering.render`.

    Raises:
        InputError: Unknown mode, cameras of several sizes, a depth range that is not 0 < near < far.
    """
    if mode not in ("rgb", "depth", "side-by-side"):
        raise InputError(f"mode must be rgb, depth or side-by-side; got {mode!r}")
    cameras.size  # noqa: B018  raises when sizes differ
    config = config or RenderConfig()
    if mode != "rgb" and depth_range is None:
        depth_range = measure_depth_range(gaussians, cameras, config=config, renderer=renderer)
    return _frames(gaussians, cameras, mode, config, depth_range, renderer)


def _frames(gaussians, cameras, mode, config, depth_range, renderer) -> Iterator[Picture]:
    for view in range(len(cameras)):
        with torch.no_grad():
            out = renderer(gaussians, cameras[view], config)
        parts = []
        if mode != "depth":
            parts.append(uint8_picture(out.rgb[0]))
        if mode != "rgb":
            parts.append(colorize_depth(out.depth[0, ..., 0], depth_range, alpha=out.alpha[0, ..., 0]))
        yield np.concatenate(parts, axis=1)


def measure_depth_range(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    config: RenderConfig | None = None,
    renderer: Renderer = render,
    samples: int = 6,
) -> tuple[float, float]:
    """(near, far) that hold 96 % of the rendered z-depths where splats cover more than half a pixel.

    Measured on a few frames spread over the clip. (1, 2) if nothing is seen, or the range of a flat scene widened by 5
    %.
    """
    config = config or RenderConfig()
    picks = sorted({round(i * (len(cameras) - 1) / max(samples - 1, 1)) for i in range(samples)})
    lows, highs = [], []
    for view in picks:
        with torch.no_grad():
            out = renderer(gaussians, cameras[view], config)
        depth = out.depth[0, ..., 0][(out.alpha[0, ..., 0] > _OPAQUE) & (out.depth[0, ..., 0] > 0)]
        if len(depth):
            depth = depth[:: max(1, len(depth) // 200_000)].double()
            low, high = torch.quantile(depth, depth.new_tensor(_RANGE_QUANTILES)).tolist()
            lows.append(low)
            highs.append(high)
    if not lows:
        return 1.0, 2.0
    near, far = min(lows), max(highs)
    return (near, far) if far > 1.05 * near else (near / 1.05, far * 1.05)


def colorize_depth(
    depth: Float[Tensor, "H W"],
    depth_range: tuple[float, float],
    *,
    alpha: Float[Tensor, "H W"] | None = None,
) -> Picture:
    """z-depth as colour (turbo): near is red, far is blue, unknown (0) is black.

    The map is linear in 1 / depth, which is how much a surface moves between views. With `alpha` colours fade to black
    where the splats are transparent.
    """
    import cv2

    near, far = depth_range
    if not 0 < near < far < math.inf:
        raise InputError(f"the depth range must be 0 < near < far; got {near:g}, {far:g}")
    depth = depth.detach().float().cpu()
    known = depth > 0
    inverse = (1 / torch.where(known, depth, 1.0) - 1 / far) / (1 / near - 1 / far)
    levels = (inverse.clamp(0, 1) * 255).round().byte().numpy()
    colour = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[..., ::-1].astype(np.float32)
    weight = known.float() if alpha is None else known * alpha.detach().float().cpu().clamp(0, 1)
    return np.rint(colour * weight.numpy()[..., None]).astype(np.uint8)


def uint8_picture(rgb: Float[Tensor, "H W 3"]) -> Picture:
    """RGB of any range, clamped to [0, 1] and rounded to 8 bits."""
    return (rgb.detach().clamp(0, 1) * 255).round().byte().cpu().numpy()


# ---------------------------------------------------------------- files


def write_video(
    path: str | os.PathLike,
    frames: Iterable[Picture],
    *,
    fps: float | int = 30,
    total: int | None = None,
    progress: bool = False,
) -> int:
    """Encode frames to ``.mp4`` (H.264, yuv420p, BT.709: plays in browsers) or ``.gif`` (a palette per frame, loops).

    Odd sizes are padded by repeating the last row or column, because yuv420p halves the colour resolution; the log says
    so. Written whole or not at all.

    Args:
        path: The suffix chooses the format.
        frames: uint8 pictures of one size, taken one at a time.
        fps: Frames per second; at most 50 for GIF.
        total: Number of frames, for the progress bar.
        progress: Show one.

    Returns:
        Number of frames written.

    Raises:
        InputError: Another suffix, fps out of range, no frames, frames of several sizes, or a folder that cannot be
            written.
        BackendError: The encoder failed; the message ends with its last words.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in VIDEO_OUTPUTS:
        raise InputError(f"{path}: clips are written as {' or '.join(VIDEO_OUTPUTS)}; got {suffix or 'no suffix'!r}")
    if not (math.isfinite(fps) and 0 < fps <= (_MAX_GIF_FPS if suffix == ".gif" else 1000)):
        limit = f"{_MAX_GIF_FPS} for GIF" if suffix == ".gif" else "1000"
        raise InputError(f"fps must be > 0 and at most {limit}; got {fps:g}")
    count = 0
    with atomic_path(path) as temporary:
        encoder: _Encoder | None = None
        size = (0, 0)
        try:
            for frame in tracked(frames, f"Writing {path.name}", shown=progress, total=total):
                if encoder is None:
                    size = frame.shape[1], frame.shape[0]
                    encoder = _Encoder(temporary, suffix, size, fps)
                if (frame.shape[1], frame.shape[0]) != size:
                    raise InputError(
                        f"all frames of a clip need one size; frame {count} is {frame.shape[1]}x{frame.shape[0]} px, "
                        f"the first was {size[0]}x{size[1]} px"
                    )
                encoder.write(frame)
                count += 1
            if encoder is None:
                raise InputError(f"no frames to write to {path}")
            encoder.finish()
        finally:
            if encoder is not None:
                encoder.kill()
    return count


def write_picture(path: str | os.PathLike, picture: Picture) -> None:
    """One picture as PNG or JPEG (quality 95), by suffix."""
    from PIL import Image

    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise InputError(f"{path}: pictures are written as .png or .jpg; got {path.suffix or 'no suffix'!r}")
    with atomic_path(path) as temporary:
        save_image(Image.fromarray(picture), temporary, quality=95)  # PNG has no quality and ignores it


def save_image(image: "PIL.Image.Image", path: Path, **options: Any) -> None:
    """Encode to memory, then write: Pillow's own writing takes a disk that fills up half way for success."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG", **options)
    path.write_bytes(encoded.getvalue())


def write_contact_sheet(
    path: str | os.PathLike,
    rows: Sequence[tuple[str, Sequence[Picture]]],
    *,
    columns: Sequence[str] | None = None,
    tile_height_px: int = 180,
) -> None:
    """A labelled grid of pictures in one file, such as rows input, depth, render.

    Args:
        path: ``.png`` or ``.jpg``.
        rows: (label, pictures) from top to bottom; sizes may differ, every picture is fitted into its tile.
        columns: Labels above the columns.
        tile_height_px: Height of a tile; its width follows from the first picture.

    Raises:
        InputError: No pictures, or another suffix.
    """
    from PIL import Image, ImageDraw, ImageFont

    pictures = [picture for _, row in rows for picture in row]
    if not pictures:
        raise InputError(f"no pictures for the contact sheet {path}")
    tile = max(1, round(tile_height_px * pictures[0].shape[1] / pictures[0].shape[0])), tile_height_px
    gap, font = 4, ImageFont.load_default(size=14)
    labels = [label for label, _ in rows]
    gutter = max((int(font.getlength(label)) for label in labels), default=0)
    gutter = gutter + 3 * gap if gutter else gap
    header = 22 if columns else gap
    count = max(len(row) for _, row in rows)
    sheet = Image.new("RGB", (gutter + count * (tile[0] + gap), header + len(rows) * (tile[1] + gap)), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    for index, label in enumerate(columns or ()):
        draw.text((gutter + index * (tile[0] + gap), 3), label, fill=(230, 230, 230), font=font)
    for line, (label, row) in enumerate(rows):
        top = header + line * (tile[1] + gap)
        draw.text((gap, top + tile[1] // 2 - 8), label, fill=(230, 230, 230), font=font)
        for index, picture in enumerate(row):
            scale = min(tile[0] / picture.shape[1], tile[1] / picture.shape[0])
            size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
            small = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
            left = gutter + index * (tile[0] + gap)
            sheet.paste(small, (left + (tile[0] - size[0]) // 2, top + (tile[1] - size[1]) // 2))
    write_picture(path, np.asarray(sheet))


# ---------------------------------------------------------------- the encoder


class _Encoder:
    """An ffmpeg process that takes raw frames on its standard input."""

    def __init__(self, path: Path, suffix: str, size: tuple[int, int], fps: float | int):
        import imageio_ffmpeg

        width, height = size
        self._pad = (0, 0)
        if suffix == ".mp4" and (width % 2 or height % 2):
            self._pad = (height % 2, width % 2)
            width, height = width + width % 2, height + height % 2
            log.info("padding %dx%d px frames to %dx%d: H.264 needs even sizes", *size, width, height)
        rate = str(Fraction(fps).limit_denominator(100_000))
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate, "-i", "-", "-an"]
        if suffix == ".mp4":
            # Tagged BT.709: without the tags players guess the colour matrix from the size of the picture.
            scale = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int"
            tags = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
            command += ["-vf", f"{scale},format=yuv420p,{tags}"]
            command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "medium", "-crf", "18"]
            command += ["-movflags", "+faststart", "-f", "mp4"]
        else:
            # A palette per frame keeps memory bounded: one for the clip would make ffmpeg hold every frame.
            graph = "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1:dither=sierra2_4a"
            command += ["-filter_complex", graph, "-loop", "0", "-f", "gif"]
        # A file, because nobody reads a pipe while frames are written.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by kill()
        self._process = subprocess.Popen(
            [*command, str(path)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._errors
        )

    def write(self, frame: np.ndarray) -> None:
        if any(self._pad):
            frame = np.pad(frame, ((0, self._pad[0]), (0, self._pad[1]), (0, 0)), mode="edge")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frame).data)
        except BrokenPipeError:
            self._process.wait()
            self._fail()

    def finish(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            self._process.wait()
            self._fail()
        if self._process.wait() != 0:
            self._fail()

    def kill(self) -> None:
        """Release everything; does nothing to an encoder that has finished."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _fail(self) -> None:
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
        if self._process.returncode == -getattr(signal, "SIGXFSZ", 0):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if os.strerror(errno.ENOSPC) in words[-1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise BackendError(f"the video encoder (ffmpeg) failed with status {self._process.returncode}: {words[-1]}")
