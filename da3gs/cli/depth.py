"""`da3gs depth`: depth maps of photographs, a video or a data set."""

import logging
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from da3gs.cli.arguments import check_at_least, check_device
from da3gs.cli.console import print_json, print_result
from da3gs.errors import InputError

if TYPE_CHECKING:
    from da3gs.data.input_views import InputViews
    from da3gs.pipeline.depth_maps import DepthMaps

logger = logging.getLogger(__name__)

_NO_POINTS = "--points needs cameras in one frame: an any-view model such as da3-base, and no --single"
# Of clips whose frames were chosen and not taken at a rate.
_CLIP_FPS = 8.0


@dataclass
class DepthCommand:
    """Predict depth maps of photographs, a video or a data set.

    All pictures go through the network together: depth is in one scale, and cameras are found (or obeyed, where the
    input brings them). Single-view models, and --single, look at each picture alone.

    OUTPUT becomes a folder, complete or not at all: depth/ with NAME.npz (exact, and confidence), NAME.png (16 bit; its
    unit is in report.json) and NAME_color.png, cameras.json where cameras are known, preview.png, report.json, and for
    videos depth.mp4. For depth that the pictures refine, as good as they allow, see the depth/ of da3gs reconstruct.

    Examples:
      da3gs depth photos/ --output out/ --model da3-base
      da3gs depth photo.jpg --output out/ --model da3metric-large --fov 65
      da3gs depth clip.mp4 --output out/ --fps 10 --single --model da3mono-large
      da3gs depth photos/ --output out/ --points
      da3gs depth colmap_project/ --output labelled/ --align --model da3mono-large
    """

    input: Annotated[Positional[list[Path]], arg(metavar="INPUT")]
    """Folder, quoted pattern, image files, video, COLMAP project, or transforms.json."""

    output: Annotated[Path, arg(metavar="FOLDER")]
    """Folder to write; new, empty, or of an earlier run, which is replaced."""

    model: Annotated[str, arg(metavar="NAME|FILE")] = "da3-tiny"
    """Model: a preset (da3-small, da3-base, ..), hub repository, folder, or .safetensors file."""

    align: bool = False
    """Bring each map onto the input's measured depth (RGB-D), or its sparse points (COLMAP), by a scale and a shift of
    its own. Writes images/ and transforms.json too: a data set to train on."""

    single: bool = False
    """Look at each picture alone, also with a model that relates them."""

    cameras: Annotated[Path | None, arg(metavar="FILE")] = None
    """Cameras for images that bring none: cameras.json, transforms.json, or a COLMAP folder; matched by file name."""

    fov: Annotated[float | None, arg(metavar="DEG")] = None
    """Field of view across the longer side of all pictures, if it is known and the input does not say."""

    camera_source: Literal["auto", "head", "rays", "matches"] = "auto"
    """Where predicted cameras come from; see da3gs reconstruct."""

    size: Annotated[int | None, arg(metavar="PX")] = None
    """Longest side of what the network sees. Default: what suits the model."""

    map_size: Literal["original", "network"] = "original"
    """Maps at the sizes of the pictures, or as the network gives them."""

    max_views: Annotated[int | None, arg(metavar="N")] = None
    """Use at most this many pictures, spread over the input."""

    fps: Annotated[float | None, arg(metavar="FPS")] = None
    """Frames per second to take from a video."""

    frames: Annotated[int | None, arg(metavar="N")] = None
    """Number of frames to take from a video: sharp ones, spread over the camera's motion. Default 32."""

    points: bool = False
    """Also write points.ply: the maps as coloured points in the frame of the cameras."""

    max_points: Annotated[int, arg(metavar="N")] = 1_000_000
    """At most so many points."""

    memory: Literal["adapt", "refuse", "ignore"] = "adapt"
    """When memory is short: lower resolution and views, stop with advice, or try anyway."""

    device: Annotated[str, arg(metavar="DEVICE")] = "auto"
    """auto, cpu, cuda, cuda:1, .."""

    seed: int = 0
    """Of everything random."""

    json: bool = False
    """Print the report as one JSON object instead of the summary."""

    def run(self) -> int:
        from da3gs.export.depth_folder import check_depth_folder, save_depth
        from da3gs.pipeline.depth_maps import DepthConfig, predict_depth
        from da3gs.pipeline.sources import source_from_input
        from da3gs.pipeline.stages import Stages

        self._check()
        output = self.output
        check_depth_folder(output)
        shown = sys.stderr.isatty()
        stages = Stages(lambda name: logger.info("%s", name))
        with stages("reading the input"):
            loaded = self._loaded()
        config = DepthConfig(
            together=False if self.single else None,
            size_px=self.size,
            camera_source=self.camera_source,
            original_size=self.map_size == "original",
            align=self.align,
            when_memory_tight=self.memory,
            device=self.device,
            seed=self.seed,
        )
        maps = predict_depth(source_from_input(loaded), self.model, config, stages=stages, progress=shown)
        if self.points and not maps.posed:
            raise InputError(_NO_POINTS)
        with stages("writing files"):
            save_depth(
                maps,
                output,
                max_points=self.max_points if self.points else None,
                clip_fps=(self.fps or _CLIP_FPS) if loaded.kind == "video" else None,
                progress=shown,
            )
        if self.json:
            print_json({"output": str(output)} | maps.report | {"stages": stages.to_list()})
        else:
            print_result(_summary(output, maps, stages.seconds))
        return 0

    def _check(self) -> None:
        if not self.input:
            raise InputError("name what to predict depth of: a folder, image files, a video, or a data set")
        check_at_least(
            ("--size", self.size, 14),
            ("--max-views", self.max_views, 1),
            ("--max-points", self.max_points, 1),
            ("--frames", self.frames, 1),
        )
        if self.fov is not None and not 1 <= self.fov <= 170:
            raise InputError(f"--fov must lie in 1..170 degrees; got {self.fov:g}")
        if self.points and self.single and not self.align:
            raise InputError(_NO_POINTS)
        check_device(self.device)

    def _loaded(self) -> "InputViews":
        from da3gs.data.inputs import load_input

        first = self.input[0]
        transforms = first.suffix == ".json" or (first / "transforms.json").is_file()
        loaded = load_input(
            self.input[0] if len(self.input) == 1 else self.input,
            cameras=self.cameras,
            max_views=self.max_views,
            fps=self.fps,
            frames=self.frames,
            depth=self.align and transforms,
            progress=sys.stdout.isatty(),
        )
        for name, reason in loaded.skipped:
            logger.warning("left out %s: %s", name, reason)
        for note in loaded.notes:
            logger.info(note)
        if self.fov is not None:
            if loaded.cameras is not None:
                raise InputError("--fov is for pictures without cameras; this input brings its own")
            return loaded.with_cameras(_with_fov(loaded, self.fov))
        hinted = loaded.hinted_cameras() if loaded.cameras is None and self.model.startswith("da3metric") else None
        if hinted is None:
            return loaded
        logger.info("metres by the focal lengths that EXIF implies, some percent off; --fov says them better")
        return loaded.with_cameras(hinted)


def _with_fov(loaded: "InputViews", fov_deg: float):
    import math

    hints = tuple(max(size) / 2 / math.tan(math.radians(fov_deg) / 2) for size in loaded.sizes)
    return replace(loaded, focal_hint_px=hints).hinted_cameras()


def _summary(output: Path, maps: "DepthMaps", seconds: float) -> str:
    report = maps.report
    width, height = report["network_size"]
    how = "together" if maps.together else "each alone"
    unit = {
        "metres": "metres",
        "given": "that of the given cameras",
        "arbitrary": "arbitrary, one for all" if maps.together else "arbitrary, one per picture",
    }[maps.unit]
    fits = []
    if maps.fits is not None:
        inliers, error, constant = (
            statistics.median(getattr(fit, name) for fit in maps.fits) for name in ("inliers", "error", "constant")
        )
        fits = [
            f"  aligned   {inliers:.0%} of what was measured within 5 %, mean error {error:.1%}, with one depth per "
            f"picture {constant:.1%} (medians over pictures)"
        ]
    lines = [
        f"{output}: depth of {len(maps)} pictures, {how} at {width}x{height} px, in {seconds:.1f} s",
        f"  model     {report['model']['name']}, weights {report['model']['licence']}, on {report['model']['device']}",
        f"  unit      {unit}",
        *fits,
        *(f"  warning   {warning}" for warning in report["warnings"]),
        "  files     " + " ".join(sorted(item.name + ("/" if item.is_dir() else "") for item in output.iterdir())),
    ]
    return "\n".join(lines)
