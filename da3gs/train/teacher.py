"""Task `teacher`: train a single-view network on exact depth and sky.

    scenes ─► single pictures ─► backbone ─► depth, sky score
    L = L_gl (global + local) + alpha L_grad + L_N + L_sky      (DA3's teacher, without its object masks)
        + an anchor for scale and shift

Depth is learned up to scale and shift. What a teacher predicts for pictures whose measured depth is sparse or noisy,
aligned to it, trains students (`da3gs depth --align`).

Letters: N pictures, H W pixels.
"""

import random
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from da3gs import losses
from da3gs.errors import InputError
from da3gs.geometry.conventions import camera_rays
from da3gs.images import normalise
from da3gs.metrics.shape import depth_metrics
from da3gs.model.checkpoints import load_network, save_checkpoint
from da3gs.model.depth_heads import SKY_THRESHOLD
from da3gs.model.network import build_model
from da3gs.model.presets import preset
from da3gs.train.panels import depth_picture, grid
from da3gs.train.samples import SyntheticData
from da3gs.train.student import jitter
from da3gs.train.task import Evaluation, pick_scenes, share_of
from da3gs.train.transforms_data import TransformsData


@dataclass(frozen=True)
class TeacherLosses:
    """Weights of the terms; see `da3gs.losses`.

    Attributes:
        anchor: |log D - log D*| without any alignment, D* in units of its mean: nothing else keeps scale and shift from
            drifting away, and depth without a shift of its own is worth more.
        depth, local: L_gl, aligned over the whole picture and over blocks of it.
        blocks: Grids of the local part, blocks per side.
        depth_gradient: alpha of L_grad, on depth after the global alignment, in units of the mean true depth.
        gradient_scales: Halvings L_grad is applied on.
        normals: L_N.
        sky: L_sky, squared error of the sky score (1 in the sky, else 0); procedural scenes only.
    """

    anchor: float = 0.5
    depth: float = 1.0
    local: float = 0.5
    blocks: tuple[int, ...] = (4, 8)
    depth_gradient: float = 0.5
    gradient_scales: int = 3
    normals: float = 0.5
    sky: float = 1.0

    def __post_init__(self):
        if self.gradient_scales < 1 or any(count < 1 for count in self.blocks):
            raise InputError("losses.gradient_scales and losses.blocks must be at least 1")


@dataclass(frozen=True)
class TeacherTask:
    """Train every parameter of a single-view network.

    Attributes:
        model: Preset, or weights to start from.
        pretrained: Load the weights `model` names instead of starting from random ones.
        data, evaluation_data: Scenes with depth.
        images_per_batch: Pictures per step over all processes, each of another scene where there are so many.
        color_jitter: Random exposure, contrast and tint (0: none).
        mirror: Mirror every other picture.
        evaluation_scenes: Pictures of the evaluation.
    """

    kind: Literal["teacher"] = "teacher"
    model: str = "da3mono-tiny"
    pretrained: bool = False
    data: SyntheticData | TransformsData = field(default_factory=SyntheticData)
    evaluation_data: SyntheticData | TransformsData = field(
        default_factory=lambda: SyntheticData(scenes=32, first_seed=3_000_000, views=4)
    )
    images_per_batch: int = 16
    color_jitter: float = 0.2
    mirror: bool = True
    losses: TeacherLosses = field(default_factory=TeacherLosses)
    evaluation_scenes: int = 32

    def __post_init__(self):
        if self.images_per_batch < 1:
            raise InputError(f"images_per_batch must be at least 1; got {self.images_per_batch}")
        for name in ("data", "evaluation_data"):
            if not getattr(getattr(self, name), "depth", True):
                raise InputError(f"a teacher learns from depth; set {name}.depth to true (frames need depth files)")

    def open(self, seed: int) -> "Teacher":
        return Teacher(self, seed)


class TeacherModule(nn.Module):
    """What gradients flow through in one call."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Depth and sky score [N, H, W] of normalised pictures [N, 3, H, W]; the sky is not filled."""
        tokens = self.network.backbone(images[:, None])
        with torch.autocast(images.device.type, enabled=False):
            maps = self.network.head(tokens, (images.shape[-2], images.shape[-1]))
        return maps.depth.float(), maps.sky.float()


class Teacher:
    """`TeacherTask` at work; see `task.Task` for the protocol."""

    def __init__(self, config: TeacherTask, seed: int):
        self.config, self.seed = config, seed
        if config.pretrained:
            network = load_network(config.model).requires_grad_(True).train()
        else:
            network = build_model(preset(config.model)).train()
        if network.config.head.rays or network.config.cameras is not None:
            raise InputError(f"a teacher is a single-view network such as da3mono-tiny; {config.model} relates views")
        self.module = TeacherModule(network)
        self.source = config.data.open()
        if config.evaluation_scenes:
            config.evaluation_data.open()  # what is wrong with it is said now, not after hours
        self.images_per_step = config.images_per_batch

    # ---------------------------------------------------------------- data

    def batch(self, index: int, rank: int, processes: int) -> dict[str, Tensor]:
        """Micro-batch `index` of the run: the share of one process. Pure function of its arguments and the seed."""
        config = self.config
        rng = random.Random(f"{self.seed} teacher {index}")
        size = rng.choice(self.source.sizes)
        scenes = pick_scenes(rng, self.source.indices(size), config.images_per_batch, processes)
        parts = []
        for place, scene in list(enumerate(scenes))[rank::processes]:
            own = random.Random(f"{self.seed} teacher {index} {place}")
            sample = self.source.load(scene, [own.randrange(self.source.frame_count(scene))])
            if config.mirror and own.random() < 0.5:
                sample = sample.mirrored()
            parts.append(replace(sample, images=jitter(sample.images, own, config.color_jitter)))
        share = torch.tensor(share_of(len(parts), len(scenes), processes))
        return teacher_batch(parts) | {"share": share}

    # ---------------------------------------------------------------- loss

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weighted sum under "loss", and the terms by name, times the "share" of the batch if it has one."""
        depth, sky = module(batch["images"])
        with torch.autocast(batch["images"].device.type, enabled=False):
            exact_sky = isinstance(self.config.data, SyntheticData)
            terms = teacher_terms(depth, sky if exact_sky else None, batch, self.config.losses)
            total = sum(getattr(self.config.losses, name) * term for name, term in terms.items())
        share = batch.get("share", 1.0)
        return {name: share * term for name, term in {"loss": total, **terms}.items()}

    # ---------------------------------------------------------------- evaluation and result

    @torch.no_grad()
    def evaluate(self, module: nn.Module) -> Evaluation:
        """Mean over pictures of depth errors after one scale (ratio of medians), and after scale and shift; share of
        pixels whose sky is told right."""
        config, inner = self.config, getattr(module, "module", module)
        source, training = config.evaluation_data.open(), inner.training
        device = next(inner.parameters()).device
        totals: dict[str, list[float]] = {}
        rows: list[list[Tensor]] = []
        inner.eval()
        for scene in range(min(config.evaluation_scenes, source.scenes)):
            sample = source.load(scene, [source.frame_count(scene) // 2])
            batch = teacher_batch([sample])
            depth, sky = (values[0].cpu() for values in inner(batch["images"].to(device)))
            target, mask = sample.depth[0], sample.depth[0] > 0
            if not mask.any():
                continue
            found = depth_errors_affine(depth, target, mask)
            if isinstance(config.evaluation_data, SyntheticData):
                found["sky_accuracy"] = float(((sky >= SKY_THRESHOLD) == ~mask).float().mean())
            for name, value in found.items():
                totals.setdefault(name, []).append(value)
            if len(rows) < 4 and (not rows or rows[0][0].shape == sample.images[0].shape):
                scale = float(target[mask].median() / depth[mask].median())
                rows.append(
                    [sample.images[0], depth_picture(scale * depth, like=target), depth_picture(target, like=target)]
                )
        inner.train(training)
        metrics = {name: sum(values) / len(values) for name, values in totals.items()}
        return Evaluation(metrics, {"depth": grid(rows)} if rows else {})

    def export(self, path, provenance: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
        """Write the network as a checkpoint that `load_network` reads."""
        save_checkpoint(self.module.network, path, provenance, dtype)


# ------------------------------------------------------------------------------------------------ parts


def teacher_batch(samples: list) -> dict[str, Tensor]:
    """Keys: images [N, 3, H, W] normalised; depth, mask [N, H, W], depth in units of its mean; rays [N, H, W, 3]."""
    depth = torch.cat([sample.depth for sample in samples])
    mask = depth > 0
    mean = depth.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)
    K = torch.cat([sample.cameras.K for sample in samples])
    return {
        "images": normalise(torch.cat([sample.images for sample in samples])),
        "depth": depth / mean.clamp(min=1e-9)[:, None, None],
        "mask": mask,
        "rays": camera_rays(torch.linalg.inv(K), depth.shape[1], depth.shape[2]),
    }


def teacher_terms(
    depth: Tensor, sky: Tensor | None, batch: dict[str, Tensor], weights: TeacherLosses
) -> dict[str, Tensor]:
    """Every term of nonzero weight, by the name of its weight."""
    target, mask = batch["depth"], batch["mask"]
    terms = {}
    whole, aligned = losses.global_affine_l1(depth, target, mask)
    if weights.anchor > 0:
        known = torch.where(mask, target, 1.0)
        terms["anchor"] = losses.masked_scene_mean((depth.clamp(min=1e-9).log() - known.log()).abs(), mask)
    if weights.depth > 0:
        terms["depth"] = whole
    if weights.local > 0 and weights.blocks:
        parts = [losses.local_affine_l1(depth, target, mask, blocks=count) for count in weights.blocks]
        terms["local"] = torch.stack(parts).mean()
    if weights.depth_gradient > 0:
        terms["depth_gradient"] = losses.depth_gradient_l1(
            aligned[:, None], target[:, None], mask[:, None], scales=weights.gradient_scales
        )
    if weights.normals > 0:
        terms["normals"] = losses.normal_angle(aligned, target, mask, batch["rays"])
    if sky is not None and weights.sky > 0:
        terms["sky"] = F.mse_loss(sky, (~mask).to(sky))
    return terms


def depth_errors_affine(depth: Tensor, target: Tensor, mask: Tensor) -> dict[str, float]:
    """AbsRel and delta < 1.25 after the ratio of medians, and after scale and shift (`_affine`)."""
    found: dict[str, float] = {}
    for ending, alignment in (("", "median"), ("_affine", "scale_shift")):
        errors = depth_metrics(depth[None], target[None], mask=mask[None], alignment=alignment)
        found |= {f"absrel{ending}": errors.abs_rel, f"delta1{ending}": errors.delta1}
    return found
