"""`da3gs evaluate nvs|pose|recon|depth`: numbers by named protocols, on data with a known truth."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from da3gs.cli.arguments import check_at_least, check_device
from da3gs.cli.console import print_json, print_result
from da3gs.errors import InputError

if TYPE_CHECKING:
    from da3gs.evaluate.frames import FrameChoice
    from da3gs.evaluate.method import Method
    from da3gs.evaluate.runner import Task
    from da3gs.evaluate.scenes import SceneOnDemand


@dataclass
class _EvaluateCommand:
    """What all evaluations share."""

    scenes: Annotated[Positional[list[str]], arg(metavar="SCENES")]
    """Data sets with cameras (COLMAP, transforms.json), folders of such, RealEstate10K chunks, or procedural:8."""

    output: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder for evaluation.json and pictures. Started again, an evaluation goes on from the scenes done there."""

    model: Annotated[str, arg(metavar="NAME|FILE")] = "da3-tiny"
    """Model: a preset (da3-small, da3-base, ..), hub repository, folder, or .safetensors file."""

    gs_head: Annotated[str | None, arg(metavar="NAME|FILE")] = None
    """Gaussian head trained for this model."""

    resolution: Annotated[str, arg(metavar="PX|WxH")] = "504"
    """Size of all pictures: the longest side, or WIDTHxHEIGHT, which they are scaled to cover and cropped to."""

    size: Annotated[int | None, arg(metavar="PX")] = None
    """Longest side of what the network sees. Default: what suits the model; never more than the resolution."""

    device: Annotated[str, arg(metavar="DEVICE")] = "auto"
    """auto, cpu, cuda, cuda:1, .."""

    seed: int = 0
    """Of everything random."""

    json: bool = False
    """Print everything as one JSON object instead of the table."""

    def run(self) -> int:
        from da3gs.evaluate.runner import RESULT, run_evaluation

        check_device(self.device)
        scenes = self._found()
        evaluation = run_evaluation(self._task(), scenes, self.output, progress=sys.stderr.isatty())
        found = evaluation.to_dict()
        if self.json:
            print_json(found)
            return 0
        failed = [f"left out {name}: {reason}" for name, reason in evaluation.failed.items()]
        ending = f"protocol {found['protocol_id']}"
        if self.output is not None:
            ending += f"; everything in {self.output / RESULT}, pictures beside it"
        print_result("\n".join([evaluation.table(), *failed, ending]))
        return 0

    def _found(self) -> "list[SceneOnDemand]":
        from da3gs.evaluate.scenes import find_scenes

        return find_scenes(self.scenes)

    def _task(self) -> "Task":
        raise NotImplementedError

    def _method(self, **settings) -> "Method":
        from da3gs.evaluate.method import Method
        from da3gs.model.da3_model import load_model
        from da3gs.pipeline.reconstruction import ReconstructConfig

        check_at_least(("--size", self.size, 14))
        config = ReconstructConfig(
            size_px=self.size,
            check_poses=False,
            when_memory_tight="refuse",
            seed=self.seed,
            gs_head=self.gs_head,
            **settings,
        )
        return Method(load_model(self.model, device=self.device, gs_head=self.gs_head), config)

    def _size(self) -> "tuple[int, int] | int":
        parts = self.resolution.lower().split("x")
        if len(parts) not in (1, 2) or not all(part.isdigit() and int(part) >= 14 for part in parts):
            raise InputError(
                f"--resolution must be a longest side (504) or WIDTHxHEIGHT (256x256), 14 px or more; got "
                f"'{self.resolution}'"
            )
        return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


@dataclass
class _OfFrames(_EvaluateCommand):
    max_views: Annotated[int | None, arg(metavar="N")] = 100
    """At most this many frames of a scene."""

    order: Literal["even", "random"] = "even"
    """Which: spread evenly over the sequence, or drawn at random."""

    def _frames(self) -> "FrameChoice":
        from da3gs.evaluate.frames import FrameChoice

        check_at_least(("--max-views", self.max_views, 1))
        return FrameChoice(self.max_views, self.order, self.seed)


@dataclass
class EvaluateNvsCommand(_EvaluateCommand):
    """View synthesis: splats from some frames, pictures of others (PSNR, SSIM, LPIPS).

    Frames are given and held out by an index file (pixelSplat's format: scene -> context, target), else by the splits
    train and test of the data, else every 8th frame is held out. PSNR, SSIM and LPIPS are those of pixelSplat and its
    successors: over all pixels, on black. "covered" is PSNR where splats are, and the share of such pixels.

    With --poses predicted or sfm the cameras come from the context pictures alone; what is found is moved onto the true
    cameras by one similarity. --target-poses optimised also turns and shifts each target camera until its render fits
    its picture best, as methods without poses are compared.

    Examples:
      da3gs evaluate nvs fox/ fountain/ --context 9 --output results/
      da3gs evaluate nvs re10k/ --index evaluation_index_re10k.json --resolution 256x256 --model da3-base
      da3gs evaluate nvs dl3dv/ --context 12 --poses predicted --target-poses optimised
      da3gs evaluate nvs procedural:4
    """

    index: Annotated[Path | None, arg(metavar="FILE")] = None
    """JSON file that names context and target frames per scene; scenes it does not name are left out."""

    context: Annotated[int | None, arg(metavar="N")] = None
    """At most this many context frames, farthest apart. Default: all that are not held out."""

    targets: Annotated[int | None, arg(metavar="N")] = None
    """At most this many held-out frames, evenly spread."""

    hold_out: Annotated[int, arg(metavar="N")] = 8
    """Hold every N-th frame out, of data without splits."""

    poses: Literal["given", "predicted", "sfm"] = "given"
    """Cameras of the context: the true ones, the model's, or those of structure from motion."""

    target_poses: Literal["true", "optimised"] = "true"
    """Cameras of the targets."""

    lpips: Literal["vgg", "alex", "squeeze", "none"] = "none"
    """Network of LPIPS (pip install 'da3gs[metrics]'; it downloads its weights on first use)."""

    lpips_weights: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Weights of squeeze, to need neither the package nor a download."""

    no_refine_depth: bool = False
    """With known cameras, keep the network's depth instead of letting the pictures refine it."""

    max_gaussians: Annotated[int | None, arg(metavar="N")] = None
    """Keep at most this many Gaussians per scene."""

    refine_steps: Annotated[int, arg(metavar="N")] = 0
    """Fit the Gaussians to the context pictures first, as da3gs refine does, in so many steps; 0 leaves that out."""

    def _task(self) -> "Task":
        from da3gs.evaluate.frames import HeldOut, read_frame_index
        from da3gs.evaluate.nvs import ViewSynthesis
        from da3gs.metrics.images import load_lpips
        from da3gs.refine import RefineConfig

        size = self._size()
        check_at_least(
            ("--context", self.context, 1),
            ("--targets", self.targets, 1),
            ("--hold-out", self.hold_out, 2),
            ("--max-gaussians", self.max_gaussians, 1),
            ("--refine-steps", self.refine_steps, 0),
        )
        index = None if self.index is None else read_frame_index(self.index)
        held_out = HeldOut(index, self.context, self.targets, self.hold_out)
        held_out.check([scene.name for scene in self._found()])
        lpips = None
        if self.lpips != "none" or self.lpips_weights is not None:
            lpips = load_lpips(None if self.lpips == "none" else self.lpips, self.lpips_weights)
        method = self._method(refine_depth=not self.no_refine_depth, max_gaussians=self.max_gaussians)
        if lpips is not None:
            lpips = lpips.to(method.model.device)
        refinement = RefineConfig(steps=self.refine_steps, seed=self.seed) if self.refine_steps else None
        return ViewSynthesis(method, held_out, size, self.poses, self.target_poses, lpips, refinement)


@dataclass
class EvaluatePoseCommand(_OfFrames):
    """Camera poses from pictures alone (relative-pose AUC, medians, beside standing still).

    AUC@t is the area under the recall curve up to t degrees over all pairs of views, by the histogram of VGGT; "(DA3)"
    is the relative pose of DA3's own benchmark. A pair with a view that was not placed counts as wrong in AUC;
    medians are over the pairs placed.

    Examples:
      da3gs evaluate pose fox/ fountain/ --max-views 12 --output results/
      da3gs evaluate pose scenes/ --order random --model da3-base --camera-source rays
      da3gs evaluate pose scenes/ --camera-source sfm
      da3gs evaluate pose procedural:8
    """

    camera_source: Literal["auto", "head", "rays", "matches", "sfm"] = "auto"
    """The part of the model that finds cameras; sfm: structure from motion (COLMAP), for comparison."""

    intrinsics: bool = False
    """Hand over the true intrinsics."""

    def _task(self) -> "Task":
        from da3gs.evaluate.pose import PoseEstimation

        method = None if self.camera_source == "sfm" else self._method()
        return PoseEstimation(method, self._frames(), self._size(), self.camera_source, self.intrinsics, self.seed)


@dataclass
class EvaluateReconCommand(_OfFrames):
    """Geometry: where the splats are beside measured surfaces (accuracy, completeness, F-score).

    The truth is the measured depth of the frames (RGB-D), or a scan in the folder of each scene (--scan NAME.ply, in
    the frame of the cameras). Both point sets are thinned to one point per voxel. Of the splats those count that a
    frame sees where its depth was measured, or that lie in the scan's bounding box.

    Examples:
      da3gs evaluate recon tabletop/ --max-views 8 --threshold 0.05 --output results/
      da3gs evaluate recon eth3d/ --scan scan.ply --threshold 0.25 --poses predicted --model da3-base
      da3gs evaluate recon procedural:4 --threshold 0.1
    """

    poses: Literal["given", "predicted", "sfm"] = "given"
    """Cameras: the true ones, the model's, or those of structure from motion, moved onto the true ones."""

    threshold: Annotated[float, arg(metavar="LENGTH")] = 0.05
    """Distance below which a point counts as right, in the unit of the data."""

    voxel: Annotated[float | None, arg(metavar="LENGTH")] = None
    """Edge of the voxels. Default: a fifth of the threshold."""

    max_depth: Annotated[float | None, arg(metavar="LENGTH")] = None
    """Measured depth beyond is not counted."""

    scan: Annotated[str | None, arg(metavar="NAME")] = None
    """File of points in the folder of each scene."""

    no_refine_depth: bool = False
    """With known cameras, keep the network's depth instead of letting the pictures refine it."""

    def _task(self) -> "Task":
        from da3gs.evaluate.recon import Reconstruction

        method = self._method(refine_depth=not self.no_refine_depth)
        return Reconstruction(
            method, self._frames(), self._size(), self.poses, self.threshold, self.voxel, self.max_depth, self.scan
        )


@dataclass
class EvaluateDepthCommand(_OfFrames):
    """Depth beside measured depth (delta, AbsRel, RMSE, log10, by named alignments).

    --given says what the network is told: single (every view alone), multiview (all together), posed (with the true
    cameras), refined (as da3gs reconstruct refines it with them). Depth is aligned by the ratio of medians where
    cameras are unknown (each view by itself for single, else all together), and not at all where they are given.

    Examples:
      da3gs evaluate depth tabletop/ --max-views 8 --output results/
      da3gs evaluate depth nyu/ --given single --align scale_shift --model da3mono-large
      da3gs evaluate depth kitti/ --given single --align none --intrinsics --model da3metric-large --max-depth 80
      da3gs evaluate depth procedural:8 --given refined
    """

    given: Literal["single", "multiview", "posed", "refined"] = "multiview"
    """What the network is told."""

    align: Literal["auto", "none", "median", "scale", "scale_shift", "scale_shift_ransac"] = "auto"
    """Alignment of the numbers at the head of the table."""

    max_depth: Annotated[float | None, arg(metavar="LENGTH")] = None
    """True depth beyond is not counted."""

    intrinsics: bool = False
    """Hand over the true intrinsics where cameras are not given."""

    def _task(self) -> "Task":
        from da3gs.evaluate.depth import DepthEstimation

        align = None if self.align == "auto" else self.align
        return DepthEstimation(
            self._method(), self._frames(), self._size(), self.given, align, self.max_depth, self.intrinsics
        )
