"""`reconstruct`: pictures to a Scene.

    pictures, cameras?, depth? ─► memory plan ─► network ─► depth, cameras, one splat per pixel
                                                   │  (or measured depth with given cameras: no network)
    given poses: checked against a prediction without them, obeyed, doubts reported; sparse points set depth's scale
    no poses:    upright, centred, unit size
                                                   ▼
                          filters ─► budget ─► Scene with a report of all that was chosen, dropped and measured

Letters: V views, H W pixels of the processed images, N Gaussians.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.errors import BackendError, InputError
from da3gs.fusion import FilterConfig, FilterRecord, filter_pixels, keep_budget, single_layer
from da3gs.gaussians import Gaussians, Scene
from da3gs.geometry.cameras import Cameras
from da3gs.images import ImageLike, ResizeMethod
from da3gs.model.da3_model import DA3Model, load_model
from da3gs.model.scene_prediction import ScenePrediction
from da3gs.pipeline.depth_scale import KEYPOINTS, with_point_scale
from da3gs.pipeline.fitting import fitted, fitted_without_network, released_head, splat_size
from da3gs.pipeline.frame import scene_from_surface
from da3gs.pipeline.keypoint_points import keypoint_points
from da3gs.pipeline.matched import BY_MATCHES, with_matched_cameras
from da3gs.pipeline.measured import measured_surface, with_measured_depth
from da3gs.pipeline.memory_plan import WhenTight
from da3gs.pipeline.pose_check import check_against_prediction
from da3gs.pipeline.report import Report, model_facts, photograph_facts, pose_facts
from da3gs.pipeline.sources import Source, check_usable, gather, larger_views, thinned
from da3gs.pipeline.stages import Stages
from da3gs.pipeline.surface import Surface, enlarged, hole_fillers, placed, predicted_surface, refined, stereo_config
from da3gs.rendering import RenderConfig

DEFAULT_MODEL = "da3-tiny"
# Share of pixels other views agree on below which refined depth is doubtful.
_FEW_CONFIRMED = 0.2
# Share of pixels contradicted by other views from which on something is wrong beyond single pixels.
_DISAGREEMENT = 0.2


@dataclass(frozen=True)
class ReconstructConfig:
    """How to reconstruct.

    Attributes:
        size_px: Longest (or shortest, by `method`) side of the processed images; lowered when memory is short. None:
            what suits the model, 504 without one.
        splat_size_px: Longest side of the images that splats are placed from, where the network works on smaller ones
            (and has no released Gaussian head): its depth is brought to their size along their edges. None: 504 for
            models that work on less, or `size_px` if that is given; never more than the images have.
        method: How images come to the network's patch grid; see `da3gs.images.prepare_views`.
        depth: "network", or "given": the input's own depth maps (RGB-D). With given poses no network is needed then.
        camera_source: Predicted cameras from the "head", fitted to the ray map ("rays"), or to what views have in
            common ("matches": for networks trained to match; depth is then predicted anew between these cameras, as if
            they were given). "auto": matches if the network can, else the head.
        reference_view: How the network picks its reference view.
        refine_scale: With given poses, choose the scale of depth by how well the pictures agree.
        refine_depth: With known cameras (given, or found by structure from motion), let the pictures refine depth: a
            plane sweep around the predicted one. Not with a released or named Gaussian head: those were trained on the
            network's own.
        keypoints: Before that, unless structure from motion or COLMAP brought sparse points, triangulate keypoints that
            the pictures share: they set the scale of depth and bend it.
        check_poses: Compare given poses with a second prediction that does not know them, and name likely mistakes.
        filters: What is dropped.
        max_gaussians: Keep at most this many, by their contribution to the pictures; None keeps all.
        max_views: Use at most this many views, evenly spread; None uses all.
        when_memory_tight: "adapt" lowers resolution, then views; "refuse" stops with advice; "ignore" goes on.
        device: "auto" takes CUDA when there is a GPU.
        gs_head: Name or file of a Gaussian head for the model.
        antialiased: Render (and mark files) in the antialiased mode.
        seed: Of everything random.
    """

    size_px: int | None = None
    splat_size_px: int | None = None
    method: ResizeMethod = "upper_bound_resize"
    depth: Literal["network", "given"] = "network"
    camera_source: Literal["auto", "head", "rays", "matches"] = "auto"
    reference_view: str = "saddle_balanced"
    refine_scale: bool = True
    refine_depth: bool = True
    keypoints: bool = True
    check_poses: bool = True
    filters: FilterConfig = field(default_factory=FilterConfig)
    max_gaussians: int | None = None
    max_views: int | None = None
    when_memory_tight: WhenTight = "adapt"
    device: str = "auto"
    gs_head: str | None = None
    antialiased: bool = True
    seed: int = 0


def reconstruct(
    images: ImageLike | Sequence[ImageLike] | Source | Float[Tensor, "V 3 H W"],
    cameras: Cameras | None = None,
    model: str | Path | DA3Model = DEFAULT_MODEL,
    config: ReconstructConfig | None = None,
    *,
    depth: Sequence[Tensor] | Float[Tensor, "V H W"] | None = None,
    names: Sequence[str] | None = None,
    stages: Stages | None = None,
) -> Scene:
    """Gaussians, cameras and depth of one static scene, in one frame and one unit. Writes no files.

    Given poses are obeyed: the scene is in their frame and scale; depth takes that from the sparse points of structure
    from motion or COLMAP, else from keypoints that the pictures share, where there are enough, else from the camera
    positions. Without poses the scene is upright (y down along the mean gravity of the pictures), centred on the median
    point, and scaled so that the median distance from a camera to its points is 1; a metric model's metres are kept.
    All of it stands in ``scene.report``.

    Args:
        images: A path (folder, pattern, video, COLMAP or nerfstudio data), or a sequence of paths, arrays, Pillow
            images or tensors, or [V, 3, H, W] in [0, 1].
        cameras: At the sizes of the images, OpenCV convention; poses optional. They replace those of the input.
        model: Name or file for `load_model`, or a loaded model.
        config: Defaults to ``ReconstructConfig()``.
        depth: z-depth maps in the unit of the cameras, for ``config.depth == "given"``; 0 where unknown.
        names: A label per view.
        stages: Receives seconds and memory per stage, and shows progress.

    Raises:
        InputError: Unusable input; no depth although it was asked for; nothing left after filtering; too little memory.
        WeightsError: The model cannot be loaded.
    """
    config = config or ReconstructConfig()
    stages = stages or Stages()
    report = Report(str(model) if isinstance(model, str | Path) else model.config.name)
    # 1. Pictures, and cameras and depth where the input has them.
    if isinstance(images, Source):
        source = images if config.max_views is None else thinned(images, config.max_views)
    else:
        with stages("reading the input"):
            source = gather(
                images, cameras, depth, names, max_views=config.max_views, load_depth=config.depth == "given"
            )
    check_usable(source, measured=config.depth == "given")
    # 2. One splat per pixel.
    if config.depth == "given" and source.posed:
        device = _device(config.device)
        source, size_px = fitted_without_network(source, config, device, report)
        with stages("placing Gaussians"):
            surface = measured_surface(source, size_px, device, report)
    else:
        surface = _predicted(source, model, config, stages, report)
    # 3. Drop what hangs in the air.
    with stages("filtering"):
        keep, records = filter_pixels(
            surface.gaussians,
            surface.depth,
            surface.cameras,
            confidence=surface.filter_confidence,
            sky=surface.sky,
            confirmed=surface.confirmed,
            config=config.filters,
        )
        _check_left(records, report)
        gaussians = surface.gaussians[keep].detach()
    fillers = None
    if any(record.name == "overlap" and record.setting for record in records):
        with stages("filling holes"):
            gaussians = single_layer(gaussians)
            fillers = _hole_fillers(surface, gaussians, keep, config, report)
        records.append(FilterRecord("holes filled", len(gaussians), len(gaussians) + len(fillers), True))
    # 4. The frame, when nobody gave one.
    given = source.posed and source.poses_from == "given"
    keep_unit = surface.unit == "metres" or config.depth == "given"
    moved = scene_from_surface(surface, gaussians.means, keep, report, given=given, keep_unit=keep_unit)
    gaussians = gaussians if fillers is None else Gaussians.cat([gaussians, fillers])
    confidence = surface.confidence
    scene = Scene(
        gaussians,
        surface.cameras.detach(),
        surface.depth.clamp(min=0),
        (surface.depth > 0).to(surface.depth) if confidence is None else confidence,
        surface.views.images,
    ).transform(moved)
    # 5. The budget.
    if config.max_gaussians is not None:
        with stages("keeping the budget"):
            kept, record = keep_budget(
                scene.gaussians,
                scene.cameras,
                config.max_gaussians,
                RenderConfig(antialiased=config.antialiased, depth=False),
            )
        records.append(record)
        scene = Scene(kept, scene.cameras, scene.depth, scene.confidence, scene.images)
    scene.gaussians.validate()
    report.content |= {
        "input": source.facts or {"views": len(source)},
        "views": list(surface.views.names),
        "size": list(surface.views.size),
        "gaussians": {"count": len(scene.gaussians), "sh_degree": scene.gaussians.sh_degree},
        "filters": [record.to_dict() for record in records],
        "antialiased": config.antialiased,
        "stages": stages.to_list(),
        "memory_measure": "peak resident set of the process during a stage, sampled every 20 ms; GPU: peak allocated",
    }
    scene.report.update(report.content)
    return scene


# ------------------------------------------------------------------------------------------------ surfaces


def _predicted(
    source: Source, model: str | Path | DA3Model, config: ReconstructConfig, stages: Stages, report: Report
) -> Surface:
    """The network's depth and cameras; with ``depth="given"`` its cameras alone, at the scale of the measurements."""
    with stages("loading the model"):
        loaded = model if isinstance(model, DA3Model) else load_model(
            model, device=config.device, gs_head=config.gs_head
        )  # fmt: skip
    report.content["model"] = model_facts(loaded, model)
    measured = config.depth == "given"
    splat_size_px = None if measured else splat_size(source, loaded, config)
    source, size_px = fitted(source, loaded, config, splat_size_px, report)
    if size_px < (config.size_px or loaded.config.size_px):
        splat_size_px = None  # memory is short
    camera_source: str = config.camera_source
    if camera_source == "auto":
        camera_source = loaded.camera_source(len(source))
    if camera_source == "matches" and not source.posed and not measured:
        with stages("matching the views"):
            matched = with_matched_cameras(source, loaded, size_px, config, report)
        source, camera_source = (source, "head") if matched is None else (matched, camera_source)
    with stages("running the network"):
        prediction = loaded.predict(
            source.images,
            source.cameras,
            size_px=size_px,
            method=config.method,
            camera_source=camera_source,
            reference_view=config.reference_view,
            gaussians=not measured,
            refine_scale=config.refine_scale and not measured,
            seed=config.seed,
        )
    if prediction.cameras is None:
        raise InputError(
            f"{loaded.config.name} looks at single views and predicts no cameras; give cameras, or use an any-view "
            "model such as da3-base"
        )
    if prediction.photometric is not None and prediction.photometric.factor != 1:
        found = prediction.photometric
        why = f"there the pictures agree best (mean difference {found.cost_before:.4f} -> {found.cost_after:.4f})"
        report.chose("scale of the depth by the pictures", found.factor, why)
    own_head = config.gs_head is not None or released_head(loaded)  # trained on the network's own depth
    refine = config.refine_depth and source.posed and len(source) > 1 and not own_head and not measured
    at_points = None
    sparse = source.points if source.posed and not measured else None
    if sparse is not None and source.poses_from != BY_MATCHES:
        at_points = with_point_scale(prediction, sparse, report)
    # Keypoints matched along epipolar lines are more than those that found the cameras.
    if at_points is None and refine and config.keypoints:
        with stages("matching keypoints"):
            at_points = _at_keypoints(prediction, source, report)
    if at_points is None and sparse is not None and source.poses_from == BY_MATCHES:
        at_points = with_point_scale(prediction, sparse, report)
    prediction = prediction if at_points is None else at_points
    for note in prediction.notes:
        report.warn(note, logged=True)
    views = replace(prediction.views, names=source.names)
    report.content["photographs"] = photograph_facts(source, views)
    report.content["poses"] = pose_facts(
        prediction,
        poses_from=source.poses_from if source.posed else None,
        intrinsics=source.cameras is not None,
        camera_source=camera_source,
    )
    doubtful = source.posed and source.poses_from == "given"
    if doubtful and config.check_poses and loaded.config.cameras is not None:
        with stages("checking the poses"):
            check_against_prediction(
                loaded,
                prediction,
                source.images,
                report,
                camera_source="rays" if camera_source == "rays" else loaded.camera_source(len(source)),
                reference_view=config.reference_view,
                seed=config.seed,
            )
    if measured:
        return with_measured_depth(source, views, prediction, report)
    surface = predicted_surface(replace(prediction, views=views))
    if splat_size_px is None and not refine:
        assert surface.gaussians is not None
        return surface
    if splat_size_px is not None:
        with stages("bringing depth to larger images"):
            surface = _finer(source, surface, splat_size_px, report)
    if refine:
        with stages("refining depth by the pictures"):
            surface = _refined(surface, loaded, report)
    if surface.gaussians is not None:
        return surface
    with stages("placing Gaussians"):
        return placed(surface, head=surface.confirmed is None)


def _at_keypoints(prediction: ScenePrediction, source: Source, report: Report) -> ScenePrediction | None:
    """Depth through keypoints that the pictures share; None where there are too few."""
    # Single-view models know no unit that cameras could give.
    if prediction.alignment is None or prediction.cameras is None:
        return None
    points = keypoint_points(source.images, prediction.views, prediction.cameras, prediction.depth)
    return with_point_scale(prediction, points, report, KEYPOINTS)


def _finer(source: Source, surface: Surface, size_px: int, report: Report) -> Surface:
    """The surface at the size of larger images."""
    small = surface.views
    large = larger_views(source, small, size_px).to(surface.depth.device)
    if large.size == small.size:
        return surface
    report.content["photographs"] = photograph_facts(source, large)
    why = f"the network's {small.size[0]}x{small.size[1]} px depth was brought to larger images along their edges"
    report.chose("size of the maps and splats", list(large.size), why)
    return enlarged(surface, large)


def _refined(surface: Surface, model: DA3Model, report: Report) -> Surface:
    """The surface with depth that carries the pictures onto each other between the known cameras."""
    result = refined(surface, config=stereo_config(model.config.name))
    if result.confirmed is None:
        report.chose("depth", "as predicted", "no two views see the same things from different places")
        return result
    share = float(result.confirmed.float().mean())
    report.content["refined_depth"] = {
        "confirmed": share,
        "median_change": float((result.depth / surface.depth).log().abs().median().exp() - 1),
        "exposure": None if result.exposure is None else result.exposure.mean(1).tolist(),
    }
    why = f"a plane sweep around the predicted depth; other views confirm {share:.0%} of the pixels"
    report.chose("depth", "refined by the pictures", why)
    if surface.raw is not None:
        why = "its corrections are for the depth the network predicts, not for depth refined by the pictures"
        report.chose("Gaussian head", "not used", why)
    if share < _FEW_CONFIRMED:
        report.warn(
            f"the pictures confirm the depth of only {share:.0%} of the pixels: views that hardly overlap, plain "
            "surfaces, or wrong cameras; --no-refine-depth keeps the network's own",
            logged=True,
        )
    return result


# ------------------------------------------------------------------------------------------------ parts


def _hole_fillers(
    surface: Surface, layer: Gaussians, keep: Tensor, config: ReconstructConfig, report: Report
) -> Gaussians:
    """Splats to add to the layer; none, with a word, where nothing here can render."""
    try:
        return hole_fillers(surface, layer, keep, config.filters)
    except BackendError as error:
        report.warn(f"holes are not filled: {error}", logged=True)
        return layer[:0]


def _check_left(records: list[FilterRecord], report: Report) -> None:
    if records[-1].after == 0:
        worst = max(records, key=lambda record: record.before - record.after)
        raise InputError(
            f"no pixel is left after filtering; the {worst.name} filter alone dropped {worst.before - worst.after} of "
            f"{records[0].before}: relax or switch it off"
        )
    last = next(record for record in records if record.name == "consistency")
    share = 1 - last.after / last.before
    if share > _DISAGREEMENT:
        report.warn(
            f"the views contradict each other in {share:.0%} of the pixels left, which were dropped: depth and "
            "cameras do not fit together (a weak model, wrong cameras, or a scene that moved)"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
