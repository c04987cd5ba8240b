"""What a run chose, found and warned about, as plain JSON values."""

import logging
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from da3gs import __version__
from da3gs.data.photographs import Photograph
from da3gs.geometry.alignment import Alignment
from da3gs.geometry.cameras import Cameras
from da3gs.images import Views
from da3gs.model.da3_model import DA3Model
from da3gs.model.scene_prediction import ScenePrediction
from da3gs.pipeline.sources import Source

logger = logging.getLogger(__name__)

REPORT_FORMAT, REPORT_VERSION = "da3gs-scene", 1


class Report:
    """Collects what the report will say; warnings are logged as they come."""

    def __init__(self, model: str):
        self.content: dict[str, Any] = {
            "format": REPORT_FORMAT,
            "version": REPORT_VERSION,
            "versions": {
                "da3gs": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "model": {"name": model},
            "choices": [],
            "warnings": [],
        }

    def chose(self, what: str, value: Any, why: str) -> None:
        self.content["choices"].append({"what": what, "value": value, "why": why})

    def warn(self, message: str, *, logged: bool = False) -> None:
        self.content["warnings"].append(message)
        if not logged:
            logger.warning(message)


def photograph_facts(source: Source, views: Views) -> list[dict[str, Any]]:
    """Per view how its image was made from a photograph; with it ``cameras.json`` fits the photographs again."""
    facts = []
    for view in range(len(source)):
        width, height = views.original_size[view].tolist()
        taken = Photograph(width, height, source.upright) if source.photographs is None else source.photographs[view]
        resized, left_top = views.resized_size[view].tolist(), views.crop_left_top[view].tolist()
        facts.append(replace(taken, resized=tuple(resized), left_top=tuple(left_top)).to_dict())
    return facts


def model_facts(model: DA3Model, asked: str | Path | DA3Model) -> dict[str, Any]:
    config = model.config
    facts: dict[str, Any] = {
        "name": config.name,
        "asked_for": str(asked) if isinstance(asked, str | Path) else config.name,
        "licence": config.licence,
        "repository": config.repository,
        "gaussian_head": "none (geometric prior)" if model.network.gs_head is None else "trained",
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        "device": str(model.device),
    }
    return facts


def pose_facts(
    prediction: ScenePrediction, *, poses_from: str | None, intrinsics: bool, camera_source: str
) -> dict[str, Any]:
    """Where the cameras come from, and how far the network's own are from given ones.

    Args:
        prediction: Its cameras are those in force.
        poses_from: Who gave the poses; None when the network found them.
        intrinsics: Whether intrinsics were given.
        camera_source: The network's part that finds cameras.
    """
    if poses_from is None:
        facts: dict[str, Any] = {"source": f"predicted ({camera_source})"}
        if intrinsics:
            facts["intrinsics"] = "given"
        return facts
    facts = {"source": poses_from}
    if prediction.alignment is not None:
        facts["alignment"] = _alignment_facts(prediction.alignment, prediction.cameras)
    return facts


def _alignment_facts(alignment: Alignment, given: Cameras) -> dict[str, Any]:
    """How far the network's cameras, conditioned on the given ones and moved onto them, end up from them."""
    extent = float((given.centers - given.centers.mean(0)).norm(dim=1).max())
    median, largest = float(alignment.residuals.median()), float(alignment.residuals.max())
    facts: dict[str, Any] = {
        "given_from_network_scale": float(alignment.target_from_source.scale),
        "centre_residual_median": median,
        "centre_residual_max": largest,
        "centre_residual_median_relative": median / extent if extent > 0 else None,
        "views_used": int(alignment.inliers.sum()),
        "unobservable": list(alignment.unobservable),
    }
    if alignment.rotation_residuals is not None:
        degrees = torch.rad2deg(alignment.rotation_residuals)
        facts |= {
            "rotation_residual_median_deg": float(degrees.median()),
            "rotation_residual_max_deg": float(degrees.max()),
        }
    return facts
