"""Surfaces of measured depth (RGB-D)."""

from dataclasses import replace

import torch
from torch import Tensor

from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.similarity import Similarity
from da3gs.images import Views
from da3gs.model.gaussian_adapter import gaussians_from_raw
from da3gs.model.scene_prediction import ScenePrediction
from da3gs.pipeline.depth_scale import WITH_THE_CAMERAS, scale_from_points
from da3gs.pipeline.report import Report, photograph_facts
from da3gs.pipeline.sources import Source, depth_on, views_without_network
from da3gs.pipeline.surface import Surface, predicted_surface


def measured_surface(source: Source, size_px: int, device: torch.device, report: Report) -> Surface:
    """Measured depth seen by cameras with poses: splats by the geometric prior alone.

    Cameras that structure from motion found are brought to the unit of the depth first.
    """
    views = views_without_network(source, size_px)
    assert views.cameras is not None and source.depth is not None
    depth = depth_on(views, source.depth)
    if not (depth > 0).any():
        raise InputError("the given depth maps hold no measurement (all 0); check their unit and format")
    if source.poses_from != "given":
        views = replace(views, cameras=_in_measured_unit(views.cameras, depth, source, report))
    views, depth = views.to(device), depth.to(device)
    assert views.cameras is not None
    splats = gaussians_from_raw(None, depth, views.cameras, images=views.images)
    report.content["model"] = {
        "name": None,
        "licence": None,
        "note": "measured depth and given cameras: no network ran",
    }
    report.content["poses"] = {"source": source.poses_from}
    report.content["photographs"] = photograph_facts(source, views)
    return Surface(views, depth, views.cameras, splats, "given")


def _in_measured_unit(cameras: Cameras, depth: Tensor, source: Source, report: Report) -> Cameras:
    """Cameras scaled so that the sparse points found with them lie at the measured depth."""
    found = None if source.points is None else scale_from_points(depth, cameras, source.points)
    if found is None or not found.usable(WITH_THE_CAMERAS):
        raise InputError(
            f"cameras from {source.poses_from} have no unit, and too few of their points lie where depth was measured "
            "to find it; give the poses in the unit of the depth, or take --depth network"
        )
    report.chose("scale of the cameras", 1 / found.factor, f"measured depth at {found.points} sightings of points")
    return cameras.transform(Similarity(1 / found.factor, torch.eye(3), torch.zeros(3)))


def with_measured_depth(source: Source, views: Views, prediction: ScenePrediction, report: Report) -> Surface:
    """Predicted cameras moved to the scale of measured depth: the median ratio over all measured pixels."""
    assert source.depth is not None
    surface = predicted_surface(prediction)
    predicted = surface.depth
    depth = depth_on(views, source.depth).to(predicted)
    known = (depth > 0) & (predicted > 0)
    if not known.any():
        raise InputError("the given depth maps hold no measurement (all 0); check their unit and format")
    scale = float((depth[known] / predicted[known]).median())
    cameras = surface.cameras.transform(Similarity(scale, torch.eye(3), torch.zeros(3)))
    if prediction.matched is not None and not prediction.matched.sure.all():
        guessed = [name for name, sure in zip(views.names, prediction.matched.sure.tolist(), strict=True) if not sure]
        report.warn(
            f"cameras that are a guess of the network, for want of overlap: {', '.join(guessed[:8])}"
            f"{' ...' if len(guessed) > 8 else ''}; leave these pictures out, or give poses",
            logged=True,
        )
    report.chose("scale of the cameras", scale, "median ratio of measured to predicted depth")
    splats = gaussians_from_raw(None, depth, cameras, images=views.images)
    return Surface(views, depth, cameras, splats, "given", surface.confidence, surface.sky)
