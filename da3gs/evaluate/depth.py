"""Depth beside measured depth, from single views to views with known cameras.

Letters: V views, H W pixels.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from da3gs.data.view_choice import evenly_spread
from da3gs.errors import InputError
from da3gs.evaluate.frames import FrameChoice
from da3gs.evaluate.method import Method, at_size, reconstructed
from da3gs.evaluate.runner import Column, SceneResult
from da3gs.evaluate.scenes import EvaluationScene, EvaluationViews
from da3gs.export.depth_files import depth_limits
from da3gs.export.video import colorize_depth
from da3gs.metrics.shape import DepthMetrics, depth_metrics

DepthMode = Literal["single", "multiview", "posed", "refined"]
Alignment = Literal["none", "median", "scale", "scale_shift", "scale_shift_ransac"]

# Alignment whose numbers head the table, and whether each view is aligned by itself.
_USUAL: dict[DepthMode, Alignment] = {"single": "median", "multiview": "median", "posed": "none", "refined": "none"}
_OTHERS: tuple[Alignment, ...] = ("none", "median", "scale_shift")
_WHAT = {
    "single": "every view alone",
    "multiview": "all views together, cameras unknown",
    "posed": "all views together, cameras given, as the network predicts it",
    "refined": "all views together, cameras given, as da3gs reconstruct refines it by the pictures",
}
_SHOWN = 4


@dataclass(frozen=True, eq=False)
class DepthEstimation:
    """The task.

    Attributes:
        model_use: What is evaluated.
        frames: Which frames.
        size: Longest side, or (width, height), of the pictures; depth is compared at this size.
        mode: What the network is given; see `DepthMode`.
        align: A name of `DEPTH_ALIGNMENTS`; None: "median" where cameras are not given, else "none".
        max_depth: True depth beyond is not counted; in the unit of the data.
        intrinsics: Hand over the true intrinsics where cameras are not given (metric single-view models need them).
    """

    model_use: Method
    frames: FrameChoice
    size: tuple[int, int] | int
    mode: DepthMode = "multiview"
    align: Alignment | None = None
    max_depth: float | int | None = None
    intrinsics: bool = False
    name: str = "depth"

    def __post_init__(self):
        if self.max_depth is not None and not self.max_depth > 0:
            raise InputError(f"max_depth must be > 0; got {self.max_depth}")

    @property
    def alignment(self) -> Alignment:
        return self.align or _USUAL[self.mode]

    @property
    def columns(self) -> tuple[Column, ...]:
        others = [name for name in _OTHERS if name != self.alignment]
        return (
            Column("delta1", "delta1", ".3f"),
            Column("delta2", "delta2", ".3f"),
            Column("abs_rel", "AbsRel", ".3f"),
            Column("rmse", "RMSE", ".3f"),
            Column("log10", "log10", ".3f"),
            *(Column(f"delta1_{name}", f"delta1 ({name})", ".3f") for name in others),
            Column("delta1_constant", "delta1 constant", ".3f"),
        )

    def protocol(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "frames": self.frames.to_dict(),
            "size": self.size if isinstance(self.size, int) else list(self.size),
            "given": _WHAT[self.mode],
            "intrinsics": "given" if self.intrinsics or self.mode in ("posed", "refined") else "unknown",
            "alignment": f"{self.alignment}, {'each view' if self.mode == 'single' else 'all views together'}",
            "pixels": "true depth > 0" + ("" if self.max_depth is None else f" and <= {self.max_depth:g}"),
            "constant": "the same depth everywhere, aligned by the median",
            "mean": "over scenes of the mean over views",
        }

    def method(self) -> dict[str, Any]:
        return self.model_use.to_dict()

    def names(self, scene: str) -> bool:
        return True

    def evaluate(self, scene: EvaluationScene) -> SceneResult:
        frames = self.frames.choose(len(scene))
        views = scene.views(frames, self.size, depth=True)
        assert views.depth is not None
        predicted, warnings = self._predicted(views)
        mask = views.depth > 0
        if self.max_depth is not None:
            mask &= views.depth <= self.max_depth
        measured = mask.flatten(1).any(1)
        if not measured.any():
            raise InputError(f"scene {scene.name} has no measured depth in the chosen frames")
        predicted, truth, mask = predicted[measured], views.depth[measured], mask[measured]
        numbers, facts = self._numbers(predicted, truth, mask)
        facts |= {
            "frames": [name for name, has in zip(views.names, measured.tolist(), strict=True) if has],
            "size": list(views.size),
            "warnings": warnings,
        }
        images = [image for image, has in zip(views.images, measured.tolist(), strict=True) if has]
        scales, shifts = (torch.tensor(facts[key])[:, None, None] for key in ("scales", "shifts"))
        return SceneResult(numbers, facts, rows=_rows(images, scales * predicted + shifts, truth, mask))

    def _predicted(self, views: EvaluationViews) -> tuple[Float[Tensor, "V H W"], list[str]]:
        """Predicted z-depth on the pixels of the views, 0 where there is none; and what there is to say about it."""
        if self.mode == "refined":
            found = reconstructed(self.model_use, views, "given")
            return at_size(found.depth.cpu(), views.size), found.scene.report["warnings"]
        model, config = self.model_use.model, self.model_use.config_for(views.size)
        cameras = views.cameras if self.mode == "posed" else None
        if cameras is None and self.intrinsics:
            cameras = views.cameras.without_poses()
        groups = [[view] for view in range(len(views))] if self.mode == "single" else [list(range(len(views)))]
        self.model_use.check_memory(len(groups[0]), views.size)
        maps, notes = [], []
        for group in groups:
            prediction = model.predict(
                [views.images[view] for view in group],
                None if cameras is None else cameras[group],
                size_px=config.size_px,
                camera_source=config.camera_source,
                reference_view=config.reference_view,
                gaussians=False,
                refine_scale=False,
                seed=config.seed,
            ).at_original_size()
            assert isinstance(prediction.depth, Tensor)
            maps.append(prediction.depth.cpu())
            notes += [note for note in prediction.notes if note not in notes]
        return torch.cat(maps), notes

    def _numbers(
        self, predicted: Tensor, truth: Tensor, mask: Tensor
    ) -> tuple[dict[str, float | None], dict[str, Any]]:
        def measure(depth: Tensor, alignment: str, *, per_view: bool) -> DepthMetrics:
            return depth_metrics(depth, truth, mask=mask, alignment=alignment, per_view=per_view)

        per_view = self.mode == "single"
        own = measure(predicted, self.alignment, per_view=per_view)
        numbers: dict[str, float | None] = {
            key: getattr(own, key) for key in ("delta1", "delta2", "delta3", "abs_rel", "rmse", "log10")
        }
        for name in _OTHERS:
            if name != self.alignment:
                other = measure(predicted, name, per_view=per_view)
                numbers |= {f"delta1_{name}": other.delta1, f"abs_rel_{name}": other.abs_rel}
        constant = measure(torch.ones_like(predicted), "median", per_view=per_view)
        numbers |= {"delta1_constant": constant.delta1, "abs_rel_constant": constant.abs_rel}
        facts = {
            "scales": list(own.scales),
            "shifts": list(own.shifts),
            "views": own.views,
            "valid_pixels": own.valid_pixels,
        }
        return numbers, facts


def _rows(images, depth: Float[Tensor, "V H W"], truth: Float[Tensor, "V H W"], mask: Bool[Tensor, "V H W"]):
    shown = evenly_spread(len(images), _SHOWN)
    limits = depth_limits(truth * mask)
    ratio = torch.where(mask, (depth.clamp(min=1e-6) / truth.clamp(min=1e-6)).log().abs(), 0.0)
    return [
        ("picture", [images[view] for view in shown]),
        ("predicted depth", [colorize_depth(depth[view], limits) for view in shown]),
        ("true depth", [colorize_depth(truth[view] * mask[view], limits) for view in shown]),
        ("error", [_error_picture(ratio[view], mask[view]) for view in shown]),
    ]


def _error_picture(log_ratio: Float[Tensor, "H W"], mask: Bool[Tensor, "H W"]):
    """Black where right, red at 25 %, white from 56 % on; grey where unknown."""
    share = log_ratio / torch.tensor(1.25).log()
    colour = torch.stack([share.clamp(0, 1), (share - 1).clamp(0, 1), (share - 1).clamp(0, 1)], -1)
    return (torch.where(mask[..., None], colour, 0.35) * 255).round().byte().numpy()
