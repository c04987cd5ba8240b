"""Geometry: where the splats are, beside measured surfaces.

    views ─► reconstruct ─► centres of the splats, in the frame of the true cameras ─┐ seen by a measured pixel
    views ─► measured depth ─► points, or a scan (.ply) ─────────────────────────────┤
                                                                  one point per voxel ─► accuracy, completeness, F-score

Letters: V views, H W pixels, N points.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from da3gs.data.view_choice import evenly_spread
from da3gs.errors import InputError
from da3gs.evaluate.frames import FrameChoice
from da3gs.evaluate.method import AlignedScene, Method, Poses, reconstructed
from da3gs.evaluate.runner import Column, SceneResult
from da3gs.evaluate.scenes import EvaluationScene, EvaluationViews
from da3gs.export.points import read_points
from da3gs.export.video import colorize_depth
from da3gs.metrics.shape import nearest_distances, point_metrics, thinned_points

# Splats fainter than this are not seen as a surface.
_SOLID = 0.1
_VOXELS_PER_THRESHOLD = 5
_SHOWN = 4


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The task.

    Attributes:
        model_use: What is evaluated.
        frames: Which frames.
        size: Longest side, or (width, height), of the pictures.
        poses: "given", or found from the pictures and moved onto the true ones by one similarity.
        threshold: Distance below which a point counts as right, in the unit of the data. DA3's benchmark: 0.05 m
            indoors, 0.25 m for ETH3D.
        voxel: Of both point sets; None: a fifth of the threshold.
        max_depth: Measured depth beyond is not counted.
        scan: Name of a file of points (.ply, in the frame of the cameras) in the folder of each scene; None: the
            measured depth of the chosen frames.
    """

    model_use: Method
    frames: FrameChoice
    size: tuple[int, int] | int
    poses: Poses = "given"
    threshold: float | int = 0.05
    voxel: float | int | None = None
    max_depth: float | int | None = None
    scan: str | None = None
    name: str = "recon"

    @property
    def columns(self) -> tuple[Column, ...]:
        columns = (
            Column("f_score", "F-score", ".3f"),
            Column("precision", "precision", ".3f"),
            Column("recall", "recall", ".3f"),
            Column("accuracy", "accuracy", ".4f"),
            Column("completeness", "completeness", ".4f"),
            Column("chamfer", "overall", ".4f"),
        )
        if self.poses == "given":
            return columns
        return (*columns, Column("views_placed", "views placed", ".0%"), Column("auc30", "AUC@30"))

    def __post_init__(self):
        for name in ("threshold", "voxel", "max_depth"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be > 0; got {value}")

    @property
    def voxel_size(self) -> float:
        return self.voxel or self.threshold / _VOXELS_PER_THRESHOLD

    def protocol(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "frames": self.frames.to_dict(),
            "size": self.size if isinstance(self.size, int) else list(self.size),
            "poses": self.poses,
            "alignment": "none" if self.poses == "given" else "one similarity from the cameras to the true ones",
            "truth": "measured depth of the frames" if self.scan is None else f"the scan {self.scan}",
            "predicted": f"centres of splats with opacity >= {_SOLID}",
            "counted": "predicted points that some frame sees where its depth was measured"
            if self.scan is None
            else "predicted points within the scan's bounding box, grown by the threshold",
            "threshold": self.threshold,
            "voxel": self.voxel_size,
            "max_depth": self.max_depth,
            "mean": "over scenes",
        }

    def method(self) -> dict[str, Any]:
        return self.model_use.to_dict()

    def names(self, scene: str) -> bool:
        return True

    def evaluate(self, scene: EvaluationScene) -> SceneResult:
        frames = self.frames.choose(len(scene))
        views = scene.views(frames, self.size, depth=self.scan is None)
        found = reconstructed(self.model_use, views, self.poses)
        points = found.gaussians.means[found.gaussians.opacities >= _SOLID].detach().cpu()
        if self.scan is None:
            truth, counted = self._measured(views, points)
        else:
            truth, counted = self._scanned(scene, points)
        truth, points = thinned_points(truth, self.voxel_size), thinned_points(points[counted], self.voxel_size)
        if len(points) == 0:
            raise InputError(f"scene {scene.name}: no splat lies where the truth is known")
        metrics = point_metrics(points, truth, self.threshold)
        numbers: dict[str, float | None] = {
            key: getattr(metrics, key)
            for key in ("f_score", "precision", "recall", "accuracy", "completeness", "chamfer")
        }
        numbers |= found.pose_numbers
        facts = asdict(metrics) | {
            "frames": list(views.names),
            "size": list(views.size),
            "warnings": found.scene.report["warnings"],
        }
        return SceneResult(numbers, facts, rows=_rows(views, found, truth, self.threshold))

    def _measured(self, views: EvaluationViews, points: Tensor) -> tuple[Tensor, Bool[Tensor, " N"]]:
        """Measured points, and which predicted ones a measured pixel sees."""
        assert views.depth is not None
        depth = views.depth
        known = depth > 0
        if self.max_depth is not None:
            known &= depth <= self.max_depth
        if not known.any():
            raise InputError("no measured depth in the chosen frames")
        return views.cameras.unproject(depth)[known], seen_where(known, views, points)

    def _scanned(self, scene: EvaluationScene, points: Tensor) -> tuple[Tensor, Bool[Tensor, " N"]]:
        assert self.scan is not None
        if scene.folder is None:
            raise InputError(f"scene {scene.name} has no folder to hold the scan {self.scan}")
        truth = read_points(scene.folder / self.scan)
        low, high = truth.amin(0) - self.threshold, truth.amax(0) + self.threshold
        return truth, ((points >= low) & (points <= high)).all(1)


def seen_where(
    known: Bool[Tensor, "V H W"], views: EvaluationViews, points: Float[Tensor, "N 3"]
) -> Bool[Tensor, " N"]:
    """Points that project onto a known pixel of some view; what hides them is not asked."""
    width, height = views.size
    seen = torch.zeros(len(points), dtype=torch.bool)
    for view in range(len(views)):
        pixels, depth = (values[0] for values in views.cameras[view].project(points))
        column, row = pixels.floor().nan_to_num(-1).clamp(-1, max(width, height)).long().unbind(-1)
        inside = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        hit = known[view, row.clamp(0, height - 1), column.clamp(0, width - 1)]
        seen |= inside & hit
    return seen


def _rows(views: EvaluationViews, found: AlignedScene, truth: Float[Tensor, "N 3"], threshold: float):
    """Pictures, predicted depth, and how far its surface is from the truth: green up to the threshold, red beyond."""
    shown = evenly_spread(len(found.kept), _SHOWN)
    depth, cameras = found.depth.cpu()[shown], found.cameras.to("cpu")[shown]
    step = max(1, depth.shape[2] // 160)  # enough for a small picture
    points = cameras.unproject(depth)[:, ::step, ::step]
    known = depth[:, ::step, ::step] > 0
    distance = nearest_distances(points.reshape(-1, 3).float(), truth).float().reshape(known.shape) / threshold
    wrong = (distance - 1).clamp(0, 1)
    colour = torch.stack([wrong, (1 - distance / 2).clamp(0, 1), torch.zeros_like(wrong)], -1)
    colour = torch.where(known[..., None], colour, 0.35)
    middle = float(depth[depth > 0].median())
    limits = (0.4 * middle, 2.5 * middle)
    return [
        ("picture", [views.images[found.kept[view]] for view in shown]),
        ("depth", [colorize_depth(values, limits) for values in depth]),
        ("distance", list((colour * 255).round().byte().numpy())),
    ]
