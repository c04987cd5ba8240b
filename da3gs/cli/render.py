"""`da3gs render`: a Gaussian file as a clip, stills, or one picture."""

import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from da3gs.cli.arguments import check_device
from da3gs.cli.console import print_json, print_result
from da3gs.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from da3gs.gaussians import Gaussians
    from da3gs.geometry.cameras import Cameras
    from da3gs.rendering.render import RenderConfig

log = logging.getLogger(__name__)

Trajectory = Literal["auto", "orbit", "spiral", "wobble", "dolly", "dolly-zoom", "interpolate", "cameras"]

_DEFAULT_SIZE = (960, 540)
# Photographs are larger than clips need to be.
_MAX_DEFAULT_SIDE = 1280
_PREVIEW_FRAMES = 6
_NAMED_COLORS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "grey": (0.5, 0.5, 0.5)}


@dataclass
class RenderCommand:
    """Render a Gaussian file to a clip (.mp4, .gif), one picture (.png, .jpg), or a folder of stills.

    Camera paths follow the cameras of --cameras: cameras.json, transforms.json (nerfstudio), a COLMAP model, or a path
    drawn in the nerfstudio viewer. They must be in the frame and units of the file. Without cameras the path circles
    the splats with --up upright.

    Examples:
      da3gs render scene.ply --output fly.mp4
      da3gs render scene.ply --output fly.mp4 --cameras out/cameras.json --trajectory spiral --mode side-by-side
      da3gs render scene.ply --output views --cameras transforms.json --trajectory cameras
      da3gs render scene.ply --output fly.gif --seconds 3 --fps 20 --width 480 --preview preview.png
    """

    scene: Annotated[Positional[Path], arg(metavar="SCENE")]
    """File of Gaussians (.ply and the other formats)."""

    output: Annotated[Path, arg(metavar="PATH")]
    """fly.mp4 or fly.gif: a clip. view.png or .jpg: the first frame. A name without suffix: a folder of stills."""

    cameras: Annotated[Path | None, arg(metavar="FILE")] = None
    """cameras.json, transforms.json, a folder with one of them, a COLMAP folder, or a nerfstudio camera path."""

    trajectory: Trajectory = "auto"
    """Camera path; "cameras" renders the given ones as they are, auto does so with a drawn path and orbits else."""

    mode: Literal["rgb", "depth", "side-by-side"] = "rgb"
    """What to show; depth is coloured, near is red."""

    seconds: Annotated[float | None, arg(metavar="SECONDS")] = None
    """Length of the clip; default 4, or that of the drawn path."""

    fps: Annotated[float | None, arg(metavar="FPS")] = None
    """Frames per second; default 30, or that of the drawn path."""

    width: Annotated[int | None, arg(metavar="PX")] = None
    """Width of the picture. Default: that of the cameras up to 1280, else 960."""

    height: Annotated[int | None, arg(metavar="PX")] = None
    """Height of the picture; one of the two is enough."""

    sweep_deg: Annotated[float | None, arg(metavar="DEG")] = None
    """Arc of an orbit: 360 is a circle, less swings. Default: as far as the cameras saw."""

    up: Literal["auto", "-y", "+y", "-z", "+z", "-x", "+x"] = "auto"
    """World axis that is up, for paths without cameras; auto: as the file says, else -y (y down)."""

    background: Annotated[str, arg(metavar="COLOR")] = "black"
    """black, white, grey, #rrggbb, or r,g,b in 0..1."""

    antialiased: bool = False
    """Antialiased ("mip") splats; files that are marked as such are rendered so anyway."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to render; auto takes the GPU if there is one and gsplat is installed."""

    preview: Annotated[Path | None, arg(metavar="FILE")] = None
    """Also write a contact sheet (.png, .jpg) of a few frames and their depth."""

    json: bool = False
    """Print one JSON object about the result."""

    def run(self) -> int:
        from dataclasses import replace

        from da3gs.export.gaussian_files import gaussian_format, load_gaussians

        # Everything that can be refused is refused before the file, perhaps large, is read.
        gaussian_format(self.scene)
        kind = self._output_kind()
        config = self._config()
        given = None if self.cameras is None else _read_cameras(self.cameras)
        fps = self.fps or (given.fps if given and given.fps else 30.0)
        frames = self._frame_count(kind, fps, given)
        gaussians = load_gaussians(self.scene)
        if len(gaussians) == 0:
            raise InputError(f"{self.scene} holds no Gaussians; there is nothing to render")
        path = self._path(gaussians, given, frames)
        gaussians = gaussians.to(_device(self.device))
        started = time.perf_counter()
        count = self._write(kind, gaussians, path, replace(config, depth=self.mode != "rgb"), fps)
        if self.preview is not None:
            write_preview(self.preview, gaussians, path, replace(config, depth=True))
        self._report(kind, count, path.size, fps, time.perf_counter() - started)
        return 0

    # ---------------------------------------------------------------- arguments

    def _output_kind(self) -> Literal["clip", "picture", "stills"]:
        from da3gs.export.video import VIDEO_OUTPUTS

        for name, value in (("--seconds", self.seconds), ("--fps", self.fps)):
            if value is not None and not 0 < value < 1e6:
                raise InputError(f"{name} must be > 0; got {value:g}")
        for name, size in (("--width", self.width), ("--height", self.height)):
            if size is not None and not 1 <= size <= 16384:
                raise InputError(f"{name} must lie in 1..16384 px; got {size}")
        for target in (self.output, self.preview):
            if target is not None and not target.absolute().parent.is_dir():
                raise InputError(f"cannot write {target}: folder {target.absolute().parent} does not exist")
        if self.preview is not None and self.preview.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise InputError(f"--preview must be a .png or .jpg file; got {self.preview}")
        suffix = self.output.suffix.lower()
        if suffix in VIDEO_OUTPUTS:
            return "clip"
        if suffix in (".png", ".jpg", ".jpeg"):
            return "picture"
        if suffix and not self.output.is_dir():
            raise InputError(
                f"--output: {suffix} is not supported; use {', '.join(VIDEO_OUTPUTS)}, .png, .jpg, or a folder name"
            )
        return "stills"

    def _config(self) -> "RenderConfig":
        from da3gs.export.gaussian_files import file_comments
        from da3gs.export.ply import ANTIALIASED_COMMENT
        from da3gs.rendering.render import RenderConfig

        antialiased = self.antialiased or ANTIALIASED_COMMENT in file_comments(self.scene)
        return RenderConfig(background=parse_color(self.background), antialiased=antialiased)

    def _frame_count(self, kind: str, fps: float, given: "GivenCameras | None") -> int:
        if kind == "picture":
            return 1
        if self._trajectory(given) == "cameras":
            return 0 if given is None else len(given.cameras)
        return max(1, round(fps * (self.seconds or 4.0)))

    # ---------------------------------------------------------------- the path

    def _trajectory(self, given: "GivenCameras | None") -> str:
        if self.trajectory != "auto":
            return self.trajectory
        return "cameras" if given is not None and given.drawn else "orbit"

    def _path(self, gaussians: "Gaussians", given: "GivenCameras | None", frames: int) -> "Cameras":
        from functools import partial

        from da3gs.rendering import trajectories
        from da3gs.rendering.interpolation import interpolate

        name = self._trajectory(given)
        if self.sweep_deg is not None and name != "orbit":
            raise InputError(f"--sweep-deg belongs to the orbit, not to --trajectory {name}")
        if given is None:
            if name in ("interpolate", "cameras"):
                raise InputError(f"--trajectory {name} needs --cameras (cameras.json or transforms.json)")
            width, height = self._size(*_DEFAULT_SIZE)
            around = partial(
                trajectories.orbit_around_gaussians, gaussians, width=width, height=height, up=self._up_direction()
            )
            if name == "orbit":
                return around(frames, sweep_deg=360.0 if self.sweep_deg is None else self.sweep_deg)
            cameras = around(1)
            focus, depth_hint = trajectories.scene_center_and_extent(gaussians)[0], None
        else:
            cameras = fit_to_size(given.cameras, *self._size(*_typical_size(given.cameras)))
            focus, depth_hint = None, trajectories.typical_depth(gaussians, cameras)
            if depth_hint is None:
                log.warning("the cameras see none of the splats; are they in the frame and units of %s?", self.scene)
        if name == "cameras":
            return cameras[:frames]
        if name == "interpolate":
            return interpolate(cameras, frames)
        if name == "orbit":
            return trajectories.orbit(cameras, frames, sweep_deg=self.sweep_deg, focus=focus, depth_hint=depth_hint)
        if name == "spiral":
            return trajectories.spiral(cameras, frames, focus=focus, depth_hint=depth_hint)
        if name == "wobble":
            return trajectories.wobble(cameras, frames, focus=focus, depth_hint=depth_hint)
        zoom = name == "dolly-zoom"
        return trajectories.dolly(cameras, frames, zoom=zoom, focus=focus, depth_hint=depth_hint)

    def _up_direction(self) -> "Tensor":
        import torch

        from da3gs.export.gaussian_files import file_comments

        axis = self.up
        if axis == "auto":
            # nerfstudio's exporter says so; files that say nothing are y down, as 3DGS trains them.
            axis = "+z" if "Vertical Axis: z" in file_comments(self.scene) else "-y"
        return torch.eye(3)["xyz".index(axis[1])] * (1.0 if axis[0] == "+" else -1.0)

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """The asked-for size; what is not asked for follows from the given one and its aspect ratio, in even pixels."""
        if self.width is not None and self.height is not None:
            return self.width, self.height
        if self.width is not None:
            return self.width, _even(height * self.width / width)
        if self.height is not None:
            return _even(width * self.height / height), self.height
        shrink = min(1.0, _MAX_DEFAULT_SIDE / max(width, height))
        return (_even(width * shrink), _even(height * shrink)) if shrink < 1 else (width, height)

    # ---------------------------------------------------------------- the result

    def _write(self, kind: str, gaussians: "Gaussians", path: "Cameras", config: "RenderConfig", fps: float) -> int:
        from da3gs.export import stills, video

        frames = video.render_frames(gaussians, path, mode=self.mode, config=config)
        if kind == "picture":
            video.write_picture(self.output, next(iter(frames)))
            return 1
        if kind == "stills":
            return stills.write_stills(self.output, frames, total=len(path), progress=True)
        return video.write_video(self.output, frames, fps=fps, total=len(path), progress=True)

    def _report(self, kind: str, count: int, size: tuple[int, int], fps: float, elapsed: float) -> None:
        width, height = size[0] * (2 if self.mode == "side-by-side" else 1), size[1]
        if self.json:
            result = {"output": str(self.output), "frames": count, "width": width, "height": height}
            result |= {"mode": self.mode, "render_seconds": round(elapsed, 3)}
            print_json(result | ({"fps": fps, "seconds": count / fps} if kind == "clip" else {}))
            return
        length = f", {count / fps:.1f} s at {fps:g} fps" if kind == "clip" else ""
        plural = "frame" if count == 1 else "frames"
        print_result(f"{self.output}: {count} {plural} of {width}x{height} px{length} (rendered in {elapsed:.1f} s)")


@dataclass(frozen=True)
class GivenCameras:
    """Cameras from a file; `drawn` marks a finished camera path with its own timing."""

    cameras: "Cameras"
    drawn: bool = False
    fps: float | None = None


def write_preview(path: Path, gaussians: "Gaussians", cameras: "Cameras", config: "RenderConfig") -> None:
    """Contact sheet of a few frames of the path: colour above, depth below."""
    from da3gs.export.video import measure_depth_range, render_frames, write_contact_sheet

    count = min(_PREVIEW_FRAMES, len(cameras))
    picks = sorted({round(i * (len(cameras) - 1) / max(count - 1, 1)) for i in range(count)})
    chosen = cameras[picks]
    depth_range = measure_depth_range(gaussians, chosen, config=config)
    colour = list(render_frames(gaussians, chosen, mode="rgb", config=config))
    depth = list(render_frames(gaussians, chosen, mode="depth", config=config, depth_range=depth_range))
    columns = [f"frame {index}" for index in picks]
    write_contact_sheet(path, [("render", colour), ("depth", depth)], columns=columns)


def fit_to_size(cameras: "Cameras", width: int, height: int) -> "Cameras":
    """Cameras for pictures of another size: scaled until the picture is covered, the rest cropped about the centre.

    Nothing comes into view that the cameras did not see.
    """
    import torch

    scale = torch.maximum(width / cameras.width.double(), height / cameras.height.double())
    scaled_width = torch.maximum((cameras.width * scale).round().long(), torch.tensor(width))
    scaled_height = torch.maximum((cameras.height * scale).round().long(), torch.tensor(height))
    left, top = (scaled_width - width) // 2, (scaled_height - height) // 2
    scaled = cameras.scaled(width=scaled_width, height=scaled_height)
    return scaled.cropped(left=left, top=top, width=width, height=height)


def parse_color(text: str) -> tuple[float, float, float]:
    """A colour name, ``#rrggbb`` or ``r,g,b`` in [0, 1] as RGB in [0, 1]."""
    if text.lower() in _NAMED_COLORS:
        return _NAMED_COLORS[text.lower()]
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        red, green, blue = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return red, green, blue
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(0 <= number <= 1 for number in numbers):
        raise InputError(f"--background must be {', '.join(_NAMED_COLORS)}, #rrggbb or r,g,b in 0..1; got '{text}'")
    return numbers[0], numbers[1], numbers[2]


def _read_cameras(path: Path) -> GivenCameras:
    """Cameras of any of the formats, told apart by their content."""
    import json

    from da3gs.data.camera_path import read_camera_path
    from da3gs.data.cameras_json import read_cameras_json
    from da3gs.data.colmap import find_colmap_model, read_colmap
    from da3gs.data.transforms_json import read_transforms_json

    if path.is_dir():
        if (path / "cameras.json").is_file():
            return _read_cameras(path / "cameras.json")
        if not (path / "transforms.json").is_file() and find_colmap_model(path) is not None:
            return GivenCameras(read_colmap(path).images.cameras)
        return GivenCameras(read_transforms_json(path, missing="cameras").cameras)
    if not path.is_file():
        raise InputError(f"--cameras: {path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # not UTF-8, not JSON
        raise InputError(f"--cameras: {path} is not JSON ({error})") from error
    if isinstance(content, dict) and "camera_path" in content:
        drawn = read_camera_path(path)
        return GivenCameras(drawn.cameras, drawn=True, fps=drawn.fps)
    if isinstance(content, dict) and "frames" in content:
        return GivenCameras(read_transforms_json(path, missing="cameras").cameras)
    cameras, _ = read_cameras_json(path)
    if cameras.cam_from_world is None:
        raise InputError(f"--cameras: {path} holds intrinsics only; rendering needs poses")
    return GivenCameras(cameras)


def _typical_size(cameras: "Cameras") -> tuple[int, int]:
    return int(cameras.width[0]), int(cameras.height[0])


def _even(value: float) -> int:
    return max(2, 2 * round(value / 2))


def _device(name: str) -> str:
    import importlib.util

    import torch

    check_device(name)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() and importlib.util.find_spec("gsplat") else "cpu"
    return name
