"""Depth of pictures, and nothing else: one pass of the network over all of them, or over each alone.

Letters: H W pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.images import Views, tracked, uint8_from_tensor
from da3gs.model.da3_model import DA3Model, load_model
from da3gs.model.depth_heads import SKY_THRESHOLD
from da3gs.model.scene_prediction import ScenePrediction
from da3gs.pipeline.depth_alignment import DepthFit, fit_to_measured
from da3gs.pipeline.fitting import fitted
from da3gs.pipeline.memory_plan import WhenTight
from da3gs.pipeline.reconstruction import DEFAULT_MODEL, ReconstructConfig
from da3gs.pipeline.report import Report, model_facts
from da3gs.pipeline.sources import Source, thinned
from da3gs.pipeline.stages import Stages


@dataclass(frozen=True)
class DepthConfig:
    """How to predict depth.

    Attributes:
        together: All pictures in one pass, in one scale and with cameras, or each alone. None: together if the model
            relates views.
        size_px: Longest side of what the network sees; None: what suits the model.
        camera_source: As for `ReconstructConfig`.
        original_size: Maps at the sizes of the pictures, else at those of the network.
        align: Bring every map onto the input's measured depth, or its sparse points, by a scale and a shift of its own.
        max_views: Use at most this many pictures, evenly spread.
        when_memory_tight: As for `ReconstructConfig`; pictures that are seen alone are only made smaller.
        device: "auto" takes CUDA when there is a GPU.
        seed: Of everything random.
    """

    together: bool | None = None
    size_px: int | None = None
    camera_source: Literal["auto", "head", "rays", "matches"] = "auto"
    original_size: bool = True
    align: bool = False
    max_views: int | None = None
    when_memory_tight: WhenTight = "adapt"
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class DepthMap:
    """Depth of one picture.

    Attributes:
        name: Of the picture.
        picture: RGB, pixel for pixel under the map.
        depth: z-depth; 0 where the picture shows more than the network saw.
        confidence: >= 1, larger is surer (0 outside of what the network saw); None for single-view models.
        sky: What the model takes for sky; None for models without a sky head.
        camera: [1], at the size of the map, without a pose if the picture was seen alone; None where nothing is known.
    """

    name: str
    picture: UInt8[np.ndarray, "H W 3"]
    depth: Float[Tensor, "H W"]
    confidence: Float[Tensor, "H W"] | None
    sky: Bool[Tensor, "H W"] | None
    camera: Cameras | None


@dataclass(frozen=True, eq=False)
class _Part:
    """What is kept of the prediction of one picture, on the CPU.

    Attributes:
        depth, confidence, sky: [1, H, W] at the size the network saw.
        camera: [1] at that size, or None.
        views: The record of resizing and cropping; its image has no memory.
        picture: As the network saw it, where it is asked for.
    """

    depth: Float[Tensor, "1 H W"]
    confidence: Float[Tensor, "1 H W"] | None
    sky: Bool[Tensor, "1 H W"] | None
    camera: Cameras | None
    views: Views
    picture: UInt8[np.ndarray, "H W 3"] | None

    @staticmethod
    def of(prediction: ScenePrediction, view: int, *, picture: bool) -> "_Part":
        views = prediction.views[view]
        maps: dict[str, Any] = {"depth": prediction.depth, "confidence": prediction.confidence, "sky": prediction.sky}
        found = {name: None if values is None else values[view : view + 1].cpu() for name, values in maps.items()}
        return _Part(
            depth=found["depth"].clone(),
            confidence=None if found["confidence"] is None else found["confidence"].clone(),
            sky=None if found["sky"] is None else found["sky"] >= SKY_THRESHOLD,
            camera=None if prediction.cameras is None else prediction.cameras[view].to("cpu"),
            views=replace(views, images=views.images.to("meta"), cameras=None),
            picture=uint8_from_tensor(views.images[0]) if picture else None,
        )


@dataclass(frozen=True, eq=False)
class DepthMaps:
    """Depth of V pictures; the maps are brought to their size one at a time, when they are asked for.

    Attributes:
        together: Whether all are in one scale, with cameras in one frame.
        unit: "metres", "given" (that of given cameras), or "arbitrary": one scale for all, or one per picture.
        report: What was chosen and found, plain JSON values.
        fits: Of aligned maps, one each; else None.
    """

    together: bool
    unit: str
    report: dict[str, Any]
    _parts: list[_Part]
    _source: Source
    _original_size: bool
    fits: tuple[DepthFit, ...] | None = None

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def comparable(self) -> bool:
        """Whether depths of two maps are in one unit."""
        return self.fits is not None or self.together or self.unit != "arbitrary"

    @property
    def posed(self) -> bool:
        """Whether every map has a camera with a pose, all in one frame."""
        if self.fits is not None:
            return self._source.posed
        cameras = [part.camera for part in self._parts]
        return self.together and all(camera is not None and camera.cam_from_world is not None for camera in cameras)

    def small(self, index: int) -> Float[Tensor, "H W"]:
        """A depth map at the size the network saw."""
        return self._aligned(index, self._parts[index].depth[0])

    def __getitem__(self, index: int) -> DepthMap:
        part = self._parts[index]
        camera = part.camera
        if self.fits is not None and self._source.cameras is not None:
            camera = part.views.cameras_to_processed(self._source.cameras[[index]])
        elif camera is not None and not self.together:
            camera = camera.without_poses()  # each stands at the origin of its own frame
        found: dict[str, Any] = {"depth": part.depth, "confidence": part.confidence, "sky": part.sky}
        if self._original_size:
            picture = self._source.picture(index)
            found = {name: None if values is None else part.views.undo_map(values) for name, values in found.items()}
            camera = None if camera is None else part.views.undo_cameras(camera)
        else:
            assert part.picture is not None
            picture = part.picture
        depth = self._aligned(index, found["depth"])
        if self.fits is not None and found["sky"] is not None:
            depth = torch.where(found["sky"], 0.0, depth)  # nothing was measured there
        return DepthMap(
            name=self._source.names[index],
            picture=picture,
            depth=depth[0],
            confidence=None if found["confidence"] is None else found["confidence"][0],
            sky=None if found["sky"] is None else found["sky"][0],
            camera=camera,
        )

    def _aligned(self, index: int, depth: Tensor) -> Tensor:
        return depth if self.fits is None else self.fits[index].apply(depth)

    def __iter__(self) -> Iterator[DepthMap]:
        return (self[index] for index in range(len(self)))


def predict_depth(
    source: Source,
    model: str | Path | DA3Model = DEFAULT_MODEL,
    config: DepthConfig | None = None,
    *,
    stages: Stages | None = None,
    progress: bool = False,
) -> DepthMaps:
    """Depth of pictures as the network predicts it. `reconstruct` refines it by the pictures and makes splats of it.

    Args:
        source: Pictures. Cameras with poses condition the network and set the unit; without poses they place points,
            and give metres to single-view metric models.
        model: Name or file for `load_model`, or a loaded model.
        config: Defaults to ``DepthConfig()``.
        stages: Receives seconds and memory per stage, and shows progress.
        progress: Show a bar over pictures that are seen alone.

    Raises:
        InputError: Pictures that cannot be read, or a single-view model asked to relate views.
        WeightsError: The model cannot be loaded.
    """
    config = config or DepthConfig()
    stages = stages or Stages()
    report = Report(str(model) if isinstance(model, str | Path) else model.config.name)
    if config.align and source.depth is None and (source.points is None or source.cameras is None):
        raise InputError(
            "aligned depth needs something measured: a transforms.json with depth files, or a COLMAP project's points"
        )
    with stages("loading the model"):
        loaded = model if isinstance(model, DA3Model) else load_model(model, device=config.device)
    report.content["model"] = model_facts(loaded, model)
    relates = loaded.config.cameras is not None
    together = relates if config.together is None else config.together
    if together and not relates and len(source) > 1:
        raise InputError(f"{loaded.config.name} looks at single views; leave --together out, or take da3-base")
    if config.max_views is not None:
        source = thinned(source, config.max_views)
    planned = ReconstructConfig(size_px=config.size_px, when_memory_tight=config.when_memory_tight)
    fitting, size_px = fitted(source if together else source[[0]], loaded, planned, None, report)
    source = fitting if together else source
    groups = [list(range(len(source)))] if together else [[view] for view in range(len(source))]
    parts: list[_Part] = []
    fits: list[DepthFit | None] = []
    unit = "arbitrary"
    notes: tuple[str, ...] = ()
    with stages("running the network"):
        for group in tracked(groups, "Predicting depth", shown=progress and len(groups) > 1):
            cameras = None if source.cameras is None else source.cameras[group]
            prediction = loaded.predict(
                [source.images[view] for view in group],
                cameras if cameras is None or together else cameras.without_poses(),
                size_px=size_px,
                camera_source=config.camera_source if together else "head",
                gaussians=False,
                seed=config.seed,
            )
            for place, view in enumerate(group):
                if config.align:
                    fits.append(fit_to_measured(prediction, place, source, view, config.seed))
                parts.append(_Part.of(prediction, place, picture=not config.original_size))
            unit, notes = prediction.unit, prediction.notes
            if together and prediction.matched is not None and not config.align:
                source, parts = _tied_parts(source, parts, prediction.matched.sure.tolist(), report)
    aligned = None
    if config.align:
        source, parts, aligned = _aligned_parts(source, parts, fits, report)
        unit = "given"
    else:
        for note in notes:
            report.warn(note, logged=True)
    report.content |= {
        "together": together,
        "unit": unit,
        "views": list(source.names),
        "network_size": list(parts[0].views.size),
        "input": source.facts or {"views": len(source)},
    }
    return DepthMaps(together, unit, report.content, parts, source, config.original_size, aligned)


def _tied_parts(source: Source, parts: list[_Part], sure: list[bool], report: Report) -> tuple[Source, list[_Part]]:
    """The pictures whose cameras are more than a guess, and their maps."""
    keep = [view for view, known in enumerate(sure) if known]
    if len(keep) < len(sure):
        names = [name for name, known in zip(source.names, sure, strict=True) if not known]
        report.warn(
            f"left out for want of overlap: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}; --single looks "
            "at each picture alone",
            logged=True,
        )
    return source[keep], [parts[view] for view in keep]


def _aligned_parts(
    source: Source, parts: list[_Part], fits: list[DepthFit | None], report: Report
) -> tuple[Source, list[_Part], tuple[DepthFit, ...]]:
    """The pictures whose depth could be aligned, their maps, and how."""
    keep = [view for view, fit in enumerate(fits) if fit is not None]
    if not keep:
        raise InputError(
            "no map could be aligned: too little was measured, or predicted depth says hardly more than a constant"
        )
    left_out = [source.names[view] for view in range(len(fits)) if view not in keep]
    if left_out:
        report.warn(
            f"left out, since their depth could not be aligned: {', '.join(left_out[:8])}"
            f"{' ...' if len(left_out) > 8 else ''}"
        )
    return source[keep], [parts[view] for view in keep], tuple(fit for fit in fits if fit is not None)
