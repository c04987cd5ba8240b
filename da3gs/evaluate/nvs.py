"""View synthesis: splats from some frames, pictures of others.

    context frames ─► reconstruct ─► Gaussians, in the frame of the true cameras ─► render at targets ─► PSNR SSIM LPIPS

Letters: T targets, V context views, H W pixels.
"""

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from da3gs.data.view_choice import evenly_spread
from da3gs.evaluate.frames import HeldOut
from da3gs.evaluate.method import AlignedScene, Method, Poses, reconstructed
from da3gs.evaluate.runner import Column, SceneResult
from da3gs.evaluate.scenes import EvaluationScene, EvaluationViews
from da3gs.evaluate.target_poses import OptimiseConfig, optimised_poses
from da3gs.export.video import colorize_depth, uint8_picture
from da3gs.geometry.cameras import Cameras
from da3gs.metrics.images import image_metrics, psnr
from da3gs.refine import RefineConfig, refine
from da3gs.rendering import RenderConfig, RenderOutput, render

logger = logging.getLogger(__name__)

_SHOWN = 4
_COVERED_ALPHA = 0.5


@dataclass(frozen=True, eq=False)
class ViewSynthesis:
    """The task.

    Attributes:
        model_use: What is evaluated.
        held_out: Which frames are given and which predicted.
        size: (width, height) of all pictures in pixels, or their longest side.
        poses: "given": of the context, the true ones. "predicted", "sfm": found from the context pictures alone, then
            moved onto the true ones by one similarity.
        target_poses: "true", or "optimised": each turned and shifted until its render fits its picture best, as
            methods without poses are compared.
        lpips: A network of `load_lpips`, or None.
        refinement: Fit the Gaussians to the context pictures first; None: as they are predicted.
    """

    model_use: Method
    held_out: HeldOut
    size: tuple[int, int] | int
    poses: Poses = "given"
    target_poses: Literal["true", "optimised"] = "true"
    lpips: nn.Module | None = None
    refinement: RefineConfig | None = None
    name: str = "nvs"

    @property
    def columns(self) -> tuple[Column, ...]:
        columns = [Column("psnr", "PSNR dB"), Column("ssim", "SSIM", ".3f")]
        if self.lpips is not None:
            columns.append(Column("lpips", f"LPIPS {self.lpips.net}", ".3f"))
        columns += [Column("psnr_covered", "covered dB"), Column("coverage", "covered", ".0%")]
        if self.poses != "given":
            columns += [Column("views_placed", "views placed", ".0%"), Column("auc30", "AUC@30")]
        return (*columns, Column("gaussians", "splats", ".0f"))

    def protocol(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "frames": self.held_out.to_dict(),
            "size": self.size if isinstance(self.size, int) else list(self.size),
            "resize": "Lanczos (Pillow) to cover the size, centre crop",
            "context_poses": self.poses,
            "alignment": "none" if self.poses == "given" else "one similarity from context cameras to the true ones",
            "target_poses": self.target_poses
            if self.target_poses == "true"
            else {"optimised": asdict(OptimiseConfig()), "lpips": self.lpips is not None},
            "background": "black",
            "psnr": "mean over views of -10 log10(MSE), clipped to [0, 1]",
            "ssim": "gaussian window 11, sigma 1.5, scikit-image",
            "lpips": None if self.lpips is None else f"{self.lpips.net}, v0.1, inputs in [0, 1]",
            "mean": "over scenes",
        }

    def method(self) -> dict[str, Any]:
        refinement = None if self.refinement is None else asdict(self.refinement)
        return self.model_use.to_dict() | {"refinement": refinement}

    def names(self, scene: str) -> bool:
        return self.held_out.names(scene)

    def evaluate(self, scene: EvaluationScene) -> SceneResult:
        # 1. Which frames.
        context, targets = self.held_out.choose(scene)
        size = scene.size(self.size) if isinstance(self.size, int) else self.size
        given, wanted = scene.views(context, size), scene.views(targets, size)
        # 2. Splats of the context, in the frame of the true cameras.
        found = reconstructed(self.model_use, given, self.poses)
        if self.refinement is not None:
            fitted = refine(found.scene, self.refinement)
            found = replace(found, scene=fitted, gaussians=fitted.gaussians.transform(found.true_from_scene))
        # 3. Pictures of the targets.
        cameras = self._target_cameras(found, wanted)
        out = render(found.gaussians, cameras, RenderConfig(antialiased=True))
        assert isinstance(out, RenderOutput) and out.depth is not None
        numbers = picture_numbers(out, wanted.pictures.to(out.rgb), self.lpips)
        numbers |= found.pose_numbers | {"gaussians": float(len(found.gaussians))}
        facts = {
            "context": [scene.frames[frame] for frame in context],
            "left_out": [scene.frames[frame] for index, frame in enumerate(context) if index not in found.kept],
            "targets": [scene.frames[frame] for frame in targets],
            "size": list(size),
            "warnings": found.scene.report["warnings"],
        }
        return SceneResult(numbers, facts, rows=_rows(out, wanted, found))

    def _target_cameras(self, found: AlignedScene, wanted: EvaluationViews) -> Cameras:
        if self.target_poses == "true":
            return wanted.cameras
        return optimised_poses(found.gaussians, wanted.cameras, wanted.pictures, OptimiseConfig(), lpips=self.lpips)


def picture_numbers(
    out: RenderOutput, pictures: Float[Tensor, "T 3 H W"], lpips: nn.Module | None = None
) -> dict[str, float | None]:
    """PSNR, SSIM and LPIPS over all pixels, on black, and PSNR over the covered ones (alpha > 0.5, colour divided by
    alpha; views of which nothing is covered have none)."""
    rendered = out.rgb.movedim(-1, 1).clamp(0, 1)
    found = image_metrics(rendered, pictures, lpips=lpips)
    alpha = out.alpha.movedim(-1, 1)
    covered = alpha[:, 0] > _COVERED_ALPHA
    seen = covered.flatten(1).any(1)
    colour = (out.rgb.movedim(-1, 1) / alpha.clamp(min=1e-3)).clamp(0, 1)
    on_covered = psnr(colour[seen], pictures[seen], covered[seen]).mean() if seen.any() else None
    return {
        "psnr": found.psnr,
        "ssim": found.ssim,
        "lpips": found.lpips,
        "psnr_covered": None if on_covered is None else float(on_covered),
        "coverage": float(covered.float().mean()),
    }


def _rows(out: RenderOutput, wanted: EvaluationViews, found: AlignedScene):
    shown = evenly_spread(len(wanted), _SHOWN)
    assert out.depth is not None
    middle = float(found.depth[found.depth > 0].median())
    limits = (0.4 * middle, 2.5 * middle)
    return [
        ("held-out picture", [wanted.images[view] for view in shown]),
        ("render", [uint8_picture(out.rgb[view]) for view in shown]),
        ("rendered depth", [colorize_depth(out.depth[view, ..., 0], limits) for view in shown]),
    ]
