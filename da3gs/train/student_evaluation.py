"""How good a student is: depth and poses on held-out scenes, with and without known poses.

Letters: V views, N valid pixels.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from da3gs.errors import InputError
from da3gs.geometry.rotations import rotation_angle
from da3gs.metrics.poses import auc_histogram
from da3gs.train.panels import depth_picture, grid
from da3gs.train.samples import SyntheticData
from da3gs.train.task import Evaluation

if TYPE_CHECKING:
    from da3gs.train.samples import SyntheticSource
    from da3gs.train.student import StudentModule, StudentTask
    from da3gs.train.transforms_data import TransformsSource


@torch.no_grad()
def evaluate_student(module: "StudentModule", config: "StudentTask") -> Evaluation:
    """Mean over scenes of depth and pose errors.

    Depth of a scene is compared after one scale (ratio of medians over all its views). Metric names end in the way the
    network was asked: ``single`` one picture, ``free`` several without poses, ``posed`` with the true poses as tokens;
    ``posed_own`` compares the depth after the scale from predicted to true camera positions, as `predict` applies it.
    """
    from da3gs.train.student import student_batch

    views, training = config.evaluation_views, module.training
    source = _source(config)
    totals: dict[str, list[float]] = {}
    panels: dict[str, Tensor] = {}
    module.eval()
    for scene in range(min(config.evaluation_scenes, source.scenes)):
        sample = source.load(scene, _frames(source, scene, config))
        for way in ("single", "free", "posed"):
            if way != "single" and views < 2:
                continue
            chosen = sample[[0]] if way == "single" else sample
            batch = student_batch([chosen], posed=way == "posed")
            device = next(module.parameters()).device
            batch = {key: value.to(device) for key, value in batch.items()}
            output = module(batch["images"], batch.get("camera_encoding"))
            for name, value in depth_errors(output["depth"][0], batch["depth"][0], batch["mask"][0]).items():
                totals.setdefault(f"{name}_{way}", []).append(value)
            if way != "single":
                for name, value in pose_errors(output["camera_encoding"][0], batch).items():
                    totals.setdefault(f"{name}_{way}", []).append(value)
            if scene == 0 and way != "single":
                panels[way] = depth_panel(chosen.images, output["depth"][0], batch["depth"][0])
    module.train(training)
    metrics = {name: sum(values) / len(values) for name, values in totals.items()}
    for way in ("free", "posed"):
        errors = totals.get(f"pose_deg_{way}")
        if errors:
            metrics[f"auc30_{way}"] = auc_histogram(torch.tensor(errors), 30)
    return Evaluation(metrics, panels)


def _source(config: "StudentTask") -> "SyntheticSource | TransformsSource":
    data = config.evaluation_data
    if isinstance(data, SyntheticData):
        data = replace(data, views=max(config.evaluation_views, data.views))
    return data.open()


def _frames(source: "SyntheticSource | TransformsSource", scene: int, config: "StudentTask") -> list[int]:
    """The first views, or frames of a sequence as far apart as in training on average, about its middle."""
    views = config.evaluation_views
    if not source.ordered:
        return list(range(views))
    frames = source.frame_count(scene)
    if frames < views:
        raise InputError(f"an evaluation of {views} views needs as many frames; scene {scene} has {frames}")
    gap = max(1, min(round(sum(config.frame_gap) / 2), (frames - 1) // max(1, views - 1)))
    start = (frames - 1 - gap * (views - 1)) // 2
    return [start + gap * place for place in range(views)]


def depth_errors(depth: Tensor, target: Tensor, mask: Tensor) -> dict[str, float]:
    """AbsRel and delta < 1.25 after the ratio of medians."""
    predicted, true = depth[mask], target[mask]
    if not len(true):
        return {}
    predicted = predicted * (true.median() / predicted.median())
    ratio = torch.maximum(predicted / true, true / predicted)
    return {
        "absrel": float(((predicted - true).abs() / true).mean()),
        "delta1": float((ratio < 1.25).float().mean()),
    }


def pose_errors(encoding: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
    """Of view 0 to every other: rotation, direction of translation (degrees), their larger one, ratio of lengths."""
    from da3gs.train.student import predicted_cameras

    height, width = batch["depth"].shape[-2:]
    predicted, true = predicted_cameras(encoding, width, height), batch["world_from_cam"][0]
    relative = predicted.cam_from_world[:1] @ predicted.world_from_cam
    expected = torch.linalg.inv(true[:1]) @ true
    rotation = torch.rad2deg(rotation_angle(relative[1:, :3, :3], expected[1:, :3, :3]))
    a, b = relative[1:, :3, 3], expected[1:, :3, 3]
    cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=1e-9)
    direction = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
    identity = torch.rad2deg(rotation_angle(expected[1:, :3, :3], torch.eye(3).to(expected)))
    ratio = (a.norm(dim=-1) / b.norm(dim=-1).clamp(min=1e-9)).clamp(min=1e-3).log().abs()
    return {
        "rotation_deg": float(rotation.mean()),
        "identity_deg": float(identity.mean()),
        "direction_deg": float(direction.mean()),
        "pose_deg": float(torch.maximum(rotation, direction).mean()),
        "log_scale": float(ratio.mean()),
        "fov_deg": float(torch.rad2deg((predicted.fov - batch["fov"][0]).abs()).mean()),
    }


def depth_panel(images: Tensor, depth: Tensor, target: Tensor) -> Tensor:
    """context | predicted depth | true depth, a row per view."""
    scale = target[target > 0].median() / depth.median()
    rows = [
        [image.cpu(), depth_picture(d * scale, like=t), depth_picture(t, like=t)]
        for image, d, t in zip(images, depth, target, strict=True)
    ]
    return grid(rows)
