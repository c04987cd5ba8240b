"""`da3gs reconstruct`: photographs, a video or a data set to a folder with a scene."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from da3gs.cli.arguments import check_at_least, check_device
from da3gs.cli.console import human_bytes, print_json, print_result
from da3gs.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from da3gs.data.input_views import InputViews
    from da3gs.gaussians import Scene
    from da3gs.pipeline.reconstruction import ReconstructConfig
    from da3gs.pipeline.sources import Source
    from da3gs.pipeline.stages import Stages

logger = logging.getLogger(__name__)


@dataclass
class ReconstructCommand:
    """Turn photographs, a video or a data set into 3D Gaussian splats with cameras and depth.

    INPUT is a folder of images, a quoted pattern, image files, a video, a COLMAP project, or a transforms.json (or its
    folder). Cameras it brings are obeyed: the scene is in their frame and scale. Without cameras the scene is upright
    (y down), centred, and scaled so that the median distance from a camera to what it sees is 1.

    OUTPUT becomes a folder, complete or not at all: scene.ply, cameras.json, transforms.json (for ns-train), images/,
    depth/, preview.png, flythrough.mp4, and report.json, which says what was chosen, dropped and measured.

    Examples:
      da3gs reconstruct photos/ --output out/
      da3gs reconstruct clip.mp4 --output out/ --frames 24 --max-gaussians 500000
      da3gs reconstruct photos/ --output out/ --cameras cameras.json --model da3-base
      da3gs reconstruct photos/ --output out/ --find-cameras sfm
      da3gs reconstruct rgbd/ --output out/ --depth given --split train --max-views 6 --size 480
    """

    input: Annotated[Positional[list[Path]], arg(metavar="INPUT")]
    """Folder, quoted pattern, image files, video, COLMAP project, or transforms.json."""

    output: Annotated[Path, arg(metavar="FOLDER")]
    """Folder to write; new, empty, or with an earlier scene, which is replaced."""

    model: Annotated[str, arg(metavar="NAME|FILE")] = "da3-tiny"
    """Model: a preset (da3-small, da3-base, ..), hub repository, folder, or .safetensors file."""

    gs_head: Annotated[str | None, arg(metavar="NAME|FILE")] = None
    """Gaussian head trained for this model; without one depth and colour alone shape the splats."""

    cameras: Annotated[Path | None, arg(metavar="FILE")] = None
    """Cameras for images that bring none: cameras.json, transforms.json, or a COLMAP folder; matched by file name."""

    find_cameras: Literal["model", "sfm"] = "model"
    """Who finds the cameras of images that bring none: the model, or structure from motion (COLMAP; slower, needs
    overlap and texture, more exact where it works; pip install 'da3gs[colmap]')."""

    poses_are: Literal["as-read", "opengl", "c2w", "opengl-c2w"] = "as-read"
    """What given pose matrices really are, if a file does not keep to its own convention: in OpenGL axes,
    camera-to-world instead of world-to-camera, or both."""

    depth: Literal["network", "given"] = "network"
    """Depth from the network, or the input's own (RGB-D); with poses no network is needed then."""

    size: Annotated[int | None, arg(metavar="PX")] = None
    """Longest side of the processed images. Default: what suits the model."""

    splat_size: Annotated[int | None, arg(metavar="PX")] = None
    """Longest side of the images splats are placed from, where the network works on smaller ones. Default: 504 for
    such models, or --size."""

    max_views: Annotated[int | None, arg(metavar="N")] = None
    """Use at most this many views, spread over the input."""

    split: Annotated[str | None, arg(metavar="NAME")] = None
    """Only this split of a transforms.json (train, val, test)."""

    fps: Annotated[float | None, arg(metavar="FPS")] = None
    """Frames per second to take from a video."""

    frames: Annotated[int | None, arg(metavar="N")] = None
    """Number of frames to take from a video: sharp ones, spread over the camera's motion. Default 32."""

    max_gaussians: Annotated[int | None, arg(metavar="N")] = None
    """Keep at most this many Gaussians: those that make up most of the pictures."""

    min_confidence: Annotated[float | None, arg(metavar="0..1")] = None
    """Drop pixels whose confidence is below this fraction of the scene's median; 0 keeps all. None is 0 where pictures
    refined the depth, else 0.05."""

    border: Annotated[float | None, arg(metavar="0..0.4")] = None
    """Drop a frame this wide (fraction of the shorter side) around each image; 0 keeps it. None is 0 where the pictures
    refined the depth, else 0.01."""

    consistency: Annotated[float, arg(metavar="0..1")] = 0.05
    """Drop pixels that other views see through, by this relative difference of depth; 0 keeps all."""

    overlap: Annotated[float, arg(metavar="0..1")] = 0.03
    """Where views overlap, keep the splats of the one that shows a surface best; two views show the same surface up to
    this relative difference of depth. 0 keeps all. Only for depth refined by the pictures."""

    keep_edges: bool = False
    """Keep flying pixels at depth edges."""

    keep_sky: bool = False
    """Keep what the model takes for sky."""

    camera_source: Literal["auto", "head", "rays", "matches"] = "auto"
    """Where predicted cameras come from: the network's camera head, its rays, or matches between the views (networks
    trained to match, such as da3-tiny; auto takes them there)."""

    no_pose_check: bool = False
    """Do not compare given poses with a second prediction that does not know them (saves its time)."""

    no_refine_depth: bool = False
    """With known cameras, keep the network's depth instead of letting the pictures refine it (a named or released
    Gaussian head always does)."""

    no_keypoints: bool = False
    """Refine it without first triangulating keypoints that the pictures share, which set its scale and bend it."""

    refine: bool = False
    """Fit the splats to the pictures afterwards, as da3gs refine does: a minute or two more on a CPU."""

    memory: Literal["adapt", "refuse", "ignore"] = "adapt"
    """When memory is short: lower resolution and views, stop with advice, or try anyway."""

    device: Annotated[str, arg(metavar="DEVICE")] = "auto"
    """auto, cpu, cuda, cuda:1, .."""

    seed: int = 0
    """Of everything random."""

    no_video: bool = False
    """Do not render flythrough.mp4 (the slowest part on a CPU)."""

    video_frames: Annotated[int, arg(metavar="N")] = 120
    """Length of the fly-through, at 30 frames per second."""

    view: bool = False
    """Open the viewer when done."""

    json: bool = False
    """Print the report as one JSON object instead of the summary."""

    def run(self) -> int:
        from da3gs.export.scene_folder import check_output_folder, save_scene
        from da3gs.pipeline.reconstruction import reconstruct
        from da3gs.pipeline.stages import Stages

        # Everything that can be refused is refused before anything is computed.
        self._check()
        check_output_folder(self.output)
        config = self._config()
        with _progress() as tell:
            stages = Stages(tell)
            source = self._source(stages)
            scene = reconstruct(source, model=self.model, config=config, stages=stages)
            if self.refine:
                scene = self._refined(scene, stages)
            save_scene(
                scene,
                self.output,
                video=not self.no_video,
                frames=self.video_frames,
                progress=True,
                stages=stages,
            )
        report = scene.report | {"stages": stages.to_list()}
        if self.json:
            print_json({"output": str(self.output)} | report)
        else:
            print_result(summary(self.output, report, stages))
        if self.view:
            from da3gs.cli.main import main

            return main(["view", str(self.output)])
        return 0

    def _refined(self, scene: "Scene", stages: "Stages") -> "Scene":
        from da3gs.cli.refine import progress_bar
        from da3gs.refine import RefineConfig, refine

        config = RefineConfig(seed=self.seed)
        with stages("refining the splats"), progress_bar(config.steps_for(len(scene.cameras))) as tell:
            return refine(scene, config, on_step=tell)

    def _check(self) -> None:
        from da3gs.cli.main import COMMANDS

        if self.view and "view" not in COMMANDS:
            raise MissingDependencyError("--view needs the command 'da3gs view', which is not installed")
        check_at_least(
            ("--size", self.size, 14),
            ("--splat-size", self.splat_size, 14),
            ("--video-frames", self.video_frames, 1),
            ("--max-views", self.max_views, 1),
            ("--max-gaussians", self.max_gaussians, 1),
            ("--frames", self.frames, 1),
        )
        check_device(self.device)

    def _config(self) -> "ReconstructConfig":
        from da3gs.fusion import FilterConfig
        from da3gs.pipeline.reconstruction import ReconstructConfig

        return ReconstructConfig(
            size_px=self.size,
            splat_size_px=self.splat_size,
            depth=self.depth,
            camera_source=self.camera_source,
            check_poses=not self.no_pose_check,
            refine_depth=not self.no_refine_depth,
            keypoints=not self.no_keypoints,
            filters=FilterConfig(
                confidence=self.min_confidence,
                sky=not self.keep_sky,
                border=self.border,
                edges=not self.keep_edges,
                consistency=self.consistency,
                overlap=self.overlap,
            ),
            max_gaussians=self.max_gaussians,
            when_memory_tight=self.memory,
            device=self.device,
            gs_head=self.gs_head,
            seed=self.seed,
        )

    def _source(self, stages: "Stages") -> "Source":
        from dataclasses import replace

        from da3gs.data.inputs import load_input
        from da3gs.pipeline.pose_check import AS_READ, reinterpret_poses
        from da3gs.pipeline.sources import source_from_input

        if not self.input:
            raise InputError("name what to reconstruct: a folder, image files, a video, or a data set")
        with stages("reading the input"):
            loaded = load_input(
                self.input[0] if len(self.input) == 1 else self.input,
                cameras=self.cameras,
                max_views=self.max_views,
                fps=self.fps,
                frames=self.frames,
                depth=self.depth == "given",
                split=self.split,
                # These bars are drawn on stdout, which is for results when it is not a terminal.
                progress=sys.stdout.isatty(),
            )
        if self.find_cameras == "sfm":
            loaded = self._with_found_cameras(loaded, stages)
        for name, reason in loaded.skipped:
            logger.warning("left out %s: %s", name, reason)
        for note in loaded.notes:
            logger.info(note)
        source = source_from_input(loaded)
        if self.find_cameras == "sfm":
            source = replace(source, poses_from="structure from motion")
        if self.poses_are != AS_READ:
            if not source.posed:
                raise InputError("--poses-are needs an input with poses; this one has none")
            source = replace(source, cameras=reinterpret_poses(source.cameras, self.poses_are))
        return source

    def _with_found_cameras(self, loaded: "InputViews", stages: "Stages") -> "InputViews":
        from da3gs.data.sfm import with_sfm_cameras

        if loaded.cameras is not None:
            raise InputError("--find-cameras sfm is for images without cameras; this input brings its own")
        if len(loaded) < 2:
            raise InputError("structure from motion needs two images or more; use --find-cameras model")
        with stages("structure from motion"):
            return with_sfm_cameras(loaded, seed=self.seed, progress=sys.stdout.isatty())


@contextmanager
def _progress() -> Iterator:
    """A spinner with the name of the stage on a terminal; a log line per stage elsewhere."""
    if not sys.stderr.isatty() or not logger.isEnabledFor(logging.INFO):
        yield lambda name: logger.info("%s", name)
        return
    from rich.console import Console

    console = Console(stderr=True)
    yield lambda name: console.print(f"[dim]{name}[/dim]")


def summary(output: Path, report: dict[str, Any], stages: "Stages") -> str:
    """What was made and how, on one screen."""
    width, height = report["size"]
    memory = max((record.peak_memory_bytes or 0 for record in stages.records), default=0)
    lines = [
        f"{output}: {report['gaussians']['count']} Gaussians from {len(report['views'])} views at {width}x{height} px "
        f"in {stages.seconds:.1f} s" + (f", peak memory {human_bytes(memory)}" if memory else "")
    ]

    def line(label: str, text: str) -> None:
        lines.append(f"  {label:<9} {text}")

    line("model", _model_text(report["model"]))
    line("cameras", _pose_text(report["poses"]))
    line("frame", f"{report['frame']['source']}, {report['frame']['axes']}; unit: {report['frame']['unit']}")
    filters = report["filters"]
    dropped = [f"{f['name']} {f['before'] - f['after']}" for f in filters if f["before"] > f["after"]]
    filled = sum(max(f["after"] - f["before"], 0) for f in filters)
    added = f"; {filled} splats added in holes" if filled else ""
    if "refinement" in report:
        before, after = report["refinement"]["psnr_fit"]
        line("refined", f"{before:.1f} -> {after:.1f} dB in {report['refinement']['steps']} steps")
    line("dropped", f"of {filters[0]['before']} pixels: {', '.join(dropped) or 'none'}{added}")
    slow = sorted(stages.records, key=lambda record: -record.seconds)[:4]
    line("time", ", ".join(f"{record.name} {record.seconds:.1f} s" for record in slow))
    for choice in report["choices"]:
        if choice["what"] == "size_px and views":
            line("lowered", choice["why"])
    skipped = report["input"].get("skipped", [])
    if skipped:
        line("left out", f"{len(skipped)} images, such as {skipped[0]['name']}: {skipped[0]['reason']}")
    for warning in report["warnings"]:
        line("warning", warning)
    names = sorted(item.name + ("/" if item.is_dir() else "") for item in output.iterdir())
    line("files", " ".join(names))
    line("next", f"da3gs view {output}   or   ns-train splatfacto --data {output}")
    return "\n".join(lines)


def _model_text(model: dict[str, Any]) -> str:
    if model["name"] is None:
        return model["note"]
    return f"{model['name']}, weights {model['licence']}, Gaussian head {model['gaussian_head']}, on {model['device']}"


def _pose_text(poses: dict[str, Any]) -> str:
    parts = [poses["source"]]
    if poses.get("intrinsics"):
        parts.append(f"intrinsics {poses['intrinsics']}")
    alignment = poses.get("alignment")
    if alignment is not None:
        if alignment.get("centre_residual_median_relative") is not None:
            parts.append(f"network's centres off by {alignment['centre_residual_median_relative']:.1%} of the extent")
        if "rotation_residual_median_deg" in alignment:
            parts.append(f"rotations by {alignment['rotation_residual_median_deg']:.1f} deg (medians)")
    check = poses.get("check_without_poses")
    if check is not None and check["median_rotation_error_deg"]:
        parts.append(f"without knowing them rotations by {check['median_rotation_error_deg']['as-read']:.1f} deg")
    if "not_checked" in poses:
        parts.append(f"not checked: {poses['not_checked']}")
    return ", ".join(parts)
