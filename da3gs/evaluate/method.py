"""What is evaluated: a model, where cameras come from, and a scene made of views with a known truth."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from da3gs.data.input_views import InputViews
from da3gs.data.sfm import with_sfm_cameras
from da3gs.errors import InputError
from da3gs.evaluate.scenes import EvaluationViews
from da3gs.gaussians import Gaussians, Scene
from da3gs.geometry.alignment import SCALE, align_cameras
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.similarity import Similarity
from da3gs.images import DEFAULT_SIZE_PX, PATCH_PX
from da3gs.metrics.poses import PoseMetrics, pose_metrics
from da3gs.model.da3_model import DA3Model
from da3gs.model.digest import weights_digest
from da3gs.pipeline.fitting import free_with_weights, released_head
from da3gs.pipeline.memory_plan import plan_memory
from da3gs.pipeline.reconstruction import ReconstructConfig, reconstruct
from da3gs.pipeline.sources import Source, source_from_input

Poses = Literal["given", "predicted", "sfm"]


@dataclass(frozen=True, eq=False)
class Method:
    """A model and how it is used.

    Attributes:
        model: Loaded, with its Gaussian head if it has one.
        config: Of `reconstruct`.
    """

    model: DA3Model
    config: ReconstructConfig

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values that name the method; the weights by a hash."""
        config, device = self.config, self.model.device
        low_precision = device.type == "cuda" and torch.cuda.is_bf16_supported()
        own_head = config.gs_head is not None or released_head(self.model)  # keeps the network's own depth
        return {
            "model": self.model.config.name,
            "weights_sha256": weights_digest(self.model.network, gaussian_head=True)[:16],
            "gaussian_head": self.model.network.gs_head is not None,
            "size_px": config.size_px or self.model.config.size_px,
            "splat_size_px": config.splat_size_px,
            "camera_source": config.camera_source,
            "refine_depth": config.refine_depth and not own_head,
            "keypoints": config.keypoints,
            "max_gaussians": config.max_gaussians,
            "seed": config.seed,
            "device": device.type,
            "precision": "bfloat16" if low_precision else "float32",
        }

    def config_for(self, size: tuple[int, int]) -> ReconstructConfig:
        """The settings for pictures of a size: the network sees them no larger than they are."""
        asked = self.config.size_px or self.model.config.size_px
        return replace(
            self.config,
            size_px=min(asked, max(PATCH_PX, max(size) // PATCH_PX * PATCH_PX)),
            splat_size_px=self.config.splat_size_px or self.config.size_px or DEFAULT_SIZE_PX,
        )

    def check_memory(self, views: int, size: tuple[int, int]) -> None:
        """InputError if one pass over so many pictures of a size (width, height) does not fit into free memory."""
        asked = self.config_for(size).size_px
        assert asked is not None
        plan_memory(
            self.model.estimate_memory,
            views=views,
            size_px=asked,
            aspect=min(size) / max(size),
            free_bytes=free_with_weights(self.model),
            when_tight="refuse",
        )


@dataclass(frozen=True, eq=False)
class AlignedScene:
    """A reconstruction in the frame and scale of the true cameras.

    Attributes:
        scene: As `reconstruct` returned it, in a frame of its own unless poses were given.
        gaussians: Its Gaussians, moved.
        depth: Its depth [V, H, W], scaled.
        given: Number of views that were handed over.
        kept: Which of them it is made of.
        true_cameras: Of these, at the size of the maps.
        poses: How far its cameras are from the true ones; None if poses were given or there is one view.
        scale: From the scene's unit to that of the true cameras.
        cameras: Of the reconstruction, moved.
        true_from_scene: The similarity that moved it.
    """

    scene: Scene
    gaussians: Gaussians
    depth: Tensor
    given: int
    kept: list[int]
    true_cameras: Cameras
    poses: PoseMetrics | None
    scale: float
    cameras: Cameras
    true_from_scene: Similarity

    @property
    def pose_numbers(self) -> dict[str, float | None]:
        """Share of views that were placed and, where poses were not given, AUC@30 (a pair without cameras counts as
        wrong) and the median rotation error of the others."""
        numbers: dict[str, float | None] = {"views_placed": len(self.kept) / self.given}
        if self.poses is not None:
            share = self.poses.pairs / (self.given * (self.given - 1) // 2)
            numbers["auc30"] = self.poses.auc["vggt"]["auc@30"] * share
            numbers["rotation_median_deg"] = self.poses.rotation_median_deg
        return numbers


def reconstructed(method: Method, views: EvaluationViews, poses: Poses) -> AlignedScene:
    """Reconstruct views and move the result onto the true cameras by one similarity, if these were not given.

    Raises:
        InputError: Nothing to reconstruct from them, or too little memory for all of them (nothing is lowered, since
            numbers would not be those of the method), or poses that leave the scale open.
    """
    # Numbered, so that the views that are kept can be told whatever the frames are called.
    labels = [f"{index:05d}" for index in range(len(views))]
    if poses == "sfm":
        found = with_sfm_cameras(_input_views(views, labels), seed=method.config.seed)
        source = replace(source_from_input(found), poses_from="structure from motion")
    else:
        source = Source(
            list(views.images), tuple(labels), views.cameras if poses == "given" else None, facts={"kind": "images"}
        )
    scene = reconstruct(source, model=method.model, config=method.config_for(views.size))
    kept = [labels.index(name) for name in scene.report["views"]]
    width, height = scene.cameras.size
    truth = views.cameras[kept].scaled(width=width, height=height)
    if poses == "given":
        alike = Similarity.identity()
        return AlignedScene(
            scene, scene.gaussians, scene.depth, len(views), kept, truth, None, 1.0, scene.cameras, alike
        )
    alignment = align_cameras(scene.cameras.to("cpu"), truth)
    if SCALE in alignment.unobservable:
        raise InputError(
            "the cameras that were found leave the scale open (one view, or all in one place); take more context, or "
            "give the poses"
        )
    move = alignment.target_from_source
    scale = float(move.scale)
    return AlignedScene(
        scene=scene,
        gaussians=scene.gaussians.transform(move),
        depth=scene.depth * scale,
        given=len(views),
        kept=kept,
        true_cameras=truth,
        poses=pose_metrics(scene.cameras.to("cpu"), truth) if len(kept) > 1 else None,
        scale=scale,
        cameras=scene.cameras.transform(move),
        true_from_scene=move,
    )


def at_size(maps: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Maps [V, H, W] of whole pictures at another (width, height)."""
    if (maps.shape[2], maps.shape[1]) == size:
        return maps
    options = {"align_corners": False} if mode == "bilinear" else {}
    return torch.nn.functional.interpolate(maps[:, None], (size[1], size[0]), mode=mode, **options)[:, 0]


def _input_views(views: EvaluationViews, labels: list[str]) -> InputViews:
    return InputViews(
        names=tuple(labels),
        images=views.images,
        sizes=(views.size,) * len(views),
        cameras=None,
        depth=None,
        kind="folder",
        focal_hint_px=(None,) * len(views),
    )
