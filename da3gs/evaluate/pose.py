"""Camera poses from pictures alone, beside the true ones.

Letters: V views.
"""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from da3gs.data.sfm import run_sfm
from da3gs.errors import InputError
from da3gs.evaluate.frames import FrameChoice
from da3gs.evaluate.method import Method
from da3gs.evaluate.runner import Column, Picture, SceneResult
from da3gs.evaluate.scenes import EvaluationScene, EvaluationViews
from da3gs.geometry.alignment import align_cameras
from da3gs.geometry.cameras import Cameras
from da3gs.metrics.poses import PoseMetrics, pose_metrics, standing_still

logger = logging.getLogger(__name__)

CameraSource = Literal["auto", "head", "rays", "matches", "sfm"]
_THRESHOLDS = (3, 5, 15, 30)


@dataclass(frozen=True, eq=False)
class PoseEstimation:
    """The task.

    Attributes:
        model_use: The model; its `camera_source` is replaced by the one here. Not needed for "sfm".
        frames: Which frames.
        size: Longest side, or (width, height), of the pictures handed over.
        camera_source: The part of the model that finds cameras, or "sfm": COLMAP, for comparison.
        intrinsics: Hand over the true intrinsics (not to "sfm").
        seed: Of structure from motion.
    """

    model_use: Method | None
    frames: FrameChoice
    size: tuple[int, int] | int
    camera_source: CameraSource = "auto"
    intrinsics: bool = False
    seed: int = 0
    name: str = "pose"

    columns = (
        Column("auc3", "AUC@3"),
        Column("auc5", "AUC@5"),
        Column("auc30", "AUC@30"),
        Column("auc3_da3", "AUC@3 (DA3)"),
        Column("auc30_da3", "AUC@30 (DA3)"),
        Column("rotation_median_deg", "rotation deg", ".1f"),
        Column("translation_median_deg", "direction deg", ".1f"),
        Column("still_auc30", "standing still"),
        Column("views_placed", "views placed", ".0%"),
    )

    def __post_init__(self):
        if self.camera_source != "sfm" and self.model_use is None:
            raise InputError(f"cameras from '{self.camera_source}' need a model")
        if self.camera_source == "sfm" and self.intrinsics:
            raise InputError("structure from motion finds its own intrinsics here; leave --intrinsics out")

    def protocol(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "frames": self.frames.to_dict(),
            "size": self.size if isinstance(self.size, int) else list(self.size),
            "pairs": "all; those with a view that was not placed count as wrong, medians are over the others",
            "error": "larger of rotation and translation direction (up to sign)",
            "auc": "histogram of 1 degree over camera motions (VGGT); (DA3) over relative poses of its benchmark",
            "intrinsics": "given" if self.intrinsics else "unknown",
            "mean": "over scenes",
        }

    def method(self) -> dict[str, Any]:
        if self.camera_source == "sfm" or self.model_use is None:
            return {"model": "COLMAP", "seed": self.seed}
        return self.model_use.to_dict() | {"camera_source": self.camera_source}

    def names(self, scene: str) -> bool:
        return True

    def evaluate(self, scene: EvaluationScene) -> SceneResult:
        frames = self.frames.choose(len(scene))
        if len(frames) < 2:
            raise InputError(f"scene {scene.name} has {len(frames)} view; relative poses need two")
        views = scene.views(frames, self.size)
        found, kept = self._found(views)
        still = pose_metrics(standing_still(views.cameras), views.cameras, _THRESHOLDS)
        if found is None or len(kept) < 2:
            nothing = {"frames": list(views.names), "left_out": list(views.names)}
            return SceneResult(_numbers(None, still, len(views)), nothing)
        truth = views.cameras[kept]
        metrics = pose_metrics(found, truth, _THRESHOLDS)
        numbers = _numbers(metrics, still, len(views))
        facts: dict[str, Any] = {
            "frames": list(views.names),
            "left_out": [name for index, name in enumerate(views.names) if index not in kept],
            "ate_rmse": metrics.ate_rmse,
            "focal_ratio": float((found.K[:, 0, 0] / truth.K[:, 0, 0]).median()),
        }
        return SceneResult(numbers, facts, picture=_plan(found, truth))

    def _found(self, views: EvaluationViews) -> tuple[Cameras | None, list[int]]:
        """Cameras of the views that could be placed, and which these are."""
        if self.camera_source == "sfm" or self.model_use is None:
            try:
                found = run_sfm(views.images, views.names, seed=self.seed)
            except InputError as error:  # too little in common: that is a result
                logger.warning("%s", error)
                return None, []
            return found.cameras, found.registered.nonzero().flatten().tolist()
        self.model_use.check_memory(len(views), views.size)
        model, config = self.model_use.model, self.model_use.config_for(views.size)
        prediction = model.predict(
            list(views.images),
            views.cameras.without_poses() if self.intrinsics else None,
            size_px=config.size_px,
            camera_source=self.camera_source,
            reference_view=config.reference_view,
            gaussians=False,
            seed=config.seed,
        ).at_original_size()
        if prediction.cameras is None or prediction.cameras.cam_from_world is None:
            raise InputError(f"{model.config.name} predicts no cameras; take an any-view model such as da3-base")
        kept = list(range(len(views)))
        if prediction.matched is not None:
            kept = prediction.matched.sure.nonzero().flatten().tolist()
        return prediction.cameras.to("cpu")[kept], kept


def _numbers(metrics: PoseMetrics | None, still: PoseMetrics, views: int) -> dict[str, float | None]:
    """AUC over all pairs, placed or not; medians over the placed ones."""
    share = 0.0 if metrics is None else metrics.pairs / (views * (views - 1) // 2)
    numbers: dict[str, float | None] = {
        f"auc{limit}{suffix}": 0.0 if metrics is None else metrics.auc[protocol][f"auc@{limit}"] * share
        for protocol, suffix in (("vggt", ""), ("da3", "_da3"), ("superglue", "_trapezoid"))
        for limit in _THRESHOLDS
    }
    return numbers | {
        "rotation_median_deg": None if metrics is None else metrics.rotation_median_deg,
        "translation_median_deg": None if metrics is None else metrics.translation_median_deg,
        "still_auc30": still.auc["vggt"]["auc@30"],
        "still_rotation_median_deg": still.rotation_median_deg,
        "views_placed": 0.0 if metrics is None else metrics.views / views,
    }


def _plan(found: Cameras, truth: Cameras) -> Picture:
    """True (green) and found (red) camera centres from above their common plane, with viewing directions."""
    import cv2

    side, margin = 480, 40
    moved = found.transform(align_cameras(found, truth).target_from_source)
    centres = truth.centers.double()
    middle = centres.mean(0)
    _, _, axes = torch.linalg.svd(centres - middle, full_matrices=False)
    plane = axes[:2] if len(axes) > 1 else torch.eye(3, dtype=torch.float64)[:2]
    spread = float(((centres - middle) @ plane.T).abs().max()) or 1.0
    sheet = np.full((side, side, 3), 24, np.uint8)

    def at(points: torch.Tensor) -> np.ndarray:
        places = ((points.double() - middle) @ plane.T / spread / 1.2 + 1) / 2 * (side - 2 * margin) + margin
        return places.clamp(-side, 2 * side).round().int().numpy()

    length = 0.25 * spread
    for a, b in zip(at(truth.centers), at(moved.centers), strict=True):
        cv2.line(sheet, tuple(map(int, a)), tuple(map(int, b)), (120, 120, 120), 1, cv2.LINE_AA)
    # The true ones are the wider rings, so that both show where they coincide.
    for cameras, colour, radius, filled in ((truth, (90, 200, 90), 8, 2), (moved, (230, 80, 70), 4, -1)):
        ends = cameras.centers + length * cameras.look_directions
        for a, b in zip(at(cameras.centers), at(ends), strict=True):
            cv2.line(sheet, tuple(map(int, a)), tuple(map(int, b)), colour, 1, cv2.LINE_AA)
            cv2.circle(sheet, tuple(map(int, a)), radius, colour, filled, cv2.LINE_AA)
    for line, (text, colour) in enumerate((("true", (90, 200, 90)), ("found", (230, 80, 70)))):
        cv2.putText(sheet, text, (8, 20 + 20 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
    return sheet
