"""Task `student`: train a whole any-view network on depth, rays and cameras.

    scenes ─► views in random order, the first is the reference ─► frame of the reference, mean point distance 1
                                                                        │ targets
    pictures (+ true cameras as tokens, sometimes) ─► backbone ─► depth, rays, cameras ─► L

    L = L_D + L_M + L_P + beta L_C + alpha L_grad (DA3)  [+ relative pose, + matches between patches]

Letters: B scenes, V views, H W pixels, h w cells of the ray map.
"""

import logging
import random
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from da3gs import losses
from da3gs.data.view_sampling import neighbouring_frames, views_of_batch
from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rays import points_on_rays, ray_map
from da3gs.geometry.rotations import rotation_angle
from da3gs.images import normalise
from da3gs.model.camera_heads import decode_cameras, encode_cameras
from da3gs.model.checkpoints import load_network, save_checkpoint
from da3gs.model.da3_model import normalized_poses
from da3gs.model.network import build_model
from da3gs.model.presets import PATCH, preset
from da3gs.train.matching import MatchingConfig, MatchingHead, PatchGeometry, patch_geometry_loss
from da3gs.train.samples import SyntheticData, TrainingSample
from da3gs.train.task import Evaluation, pick_scenes, share_of
from da3gs.train.transforms_data import TransformsData

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudentLosses:
    """Weights of the terms; see `da3gs.losses`. The last two are not in the paper.

    Attributes:
        confidence_log_weight: lambda of L_D.
        relative_pose: Relative rotations, and translations measured against the baseline instead of the scene.
        gradient_scales: Halvings L_grad is applied on.
    """

    depth: float = 1.0
    confidence_log_weight: float = 0.2
    rays: float = 1.0
    points: float = 1.0
    camera: float = 1.0
    depth_gradient: float = 1.0
    gradient_scales: int = 1
    relative_pose: float = 0.0


@dataclass(frozen=True)
class StudentTask:
    """Train every parameter of an any-view network.

    Attributes:
        model: Preset, or weights to start from.
        pretrained: Load the weights `model` names instead of starting from random ones.
        data, evaluation_data: Scenes with depth: procedural ones, or RGB-D (`TransformsData` with ``depth: true``).
        frame_gap: Fewest and most frames between neighbouring views, of scenes whose frames have an order.
        images_per_batch: Pictures per step over all processes; scenes per step = images_per_batch // views.
        views: Fewest and most views of a sample.
        single_view: Probability of a batch of single views (depth from one picture).
        near_views: Probability that a sample takes the views turned least from its first one, instead of any.
        known_poses: Probability that a batch gets its true poses as camera tokens.
        color_jitter: Random exposure, contrast and tint of a scene (0: none).
        depth_at_cells: Predict and supervise depth on the ray map's grid (8/14 of the image) instead of every pixel:
            saves a third of the head's time; finish a run without it.
        low_precision_heads: Under bf16 let the heads run in it too, not only the backbone.
        mirror: Mirror every other scene.
        losses, matching: Weights.
        evaluation_scenes, evaluation_views: Size of the evaluation.
    """

    kind: Literal["student"] = "student"
    model: str = "da3-tiny"
    pretrained: bool = False
    data: SyntheticData | TransformsData = field(default_factory=SyntheticData)
    evaluation_data: SyntheticData | TransformsData = field(
        default_factory=lambda: SyntheticData(scenes=32, first_seed=3_000_000, views=4)
    )
    frame_gap: tuple[int, int] = (1, 10)
    images_per_batch: int = 16
    views: tuple[int, int] = (2, 18)
    single_view: float = 0.0
    near_views: float = 0.0
    known_poses: float = 0.2
    color_jitter: float = 0.2
    mirror: bool = True
    depth_at_cells: bool = False
    low_precision_heads: bool = False
    losses: StudentLosses = field(default_factory=StudentLosses)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    evaluation_scenes: int = 16
    evaluation_views: int = 2

    def __post_init__(self):
        low, high = self.views
        if not 1 <= low <= high:
            raise InputError(f"views must be (fewest, most) with 1 <= fewest <= most; got {low}, {high}")
        if not 1 <= self.frame_gap[0] <= self.frame_gap[1]:
            raise InputError(f"frame_gap must be (fewest, most) frames with 1 <= fewest <= most; got {self.frame_gap}")
        for name in ("data", "evaluation_data"):
            if not getattr(getattr(self, name), "depth", True):
                raise InputError(f"a student learns from depth; set {name}.depth to true (frames need depth files)")
        if self.images_per_batch < low:
            raise InputError(f"images_per_batch {self.images_per_batch} cannot hold a sample of {low} views")
        if self.losses.gradient_scales < 1:
            raise InputError(f"losses.gradient_scales must be at least 1; got {self.losses.gradient_scales}")
        for name in ("known_poses", "single_view", "near_views"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a probability; got {getattr(self, name)}")

    def open(self, seed: int) -> "Student":
        return Student(self, seed)


class StudentModule(nn.Module):
    """What gradients flow through in one call (so that data-parallel wrappers see one forward)."""

    def __init__(
        self,
        network: nn.Module,
        matching: MatchingHead | None,
        geometry: PatchGeometry | None = None,
        *,
        low_precision_heads: bool = False,
    ):
        super().__init__()
        self.network = network
        self.matching = matching
        self.geometry = geometry
        self.low_precision_heads = low_precision_heads

    def forward(
        self, images: Tensor, camera_encoding: Tensor | None, depth_size: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """Maps by name, [B, V, ...]; "camera_encoding" [B, V, 9]; "matching" logits and "geometry" of patches, or None.

        Args:
            images: Normalised.
            camera_encoding: Known poses as `encode_cameras` gives them, or None.
            depth_size: (rows, columns) of the depth map; by default the image's.
        """
        network = self.network
        heads = [head for head in (self.matching, self.geometry) if head is not None and images.shape[1] > 1]
        layers = sorted({layer for head in heads for layer in head.layers})
        known = None if camera_encoding is None else network.camera_encoder(camera_encoding)
        tokens = network.backbone(images, known, reference_view="first", feature_layers=layers)
        size = depth_size or (images.shape[-2], images.shape[-1])
        with nullcontext() if self.low_precision_heads else torch.autocast(images.device.type, enabled=False):
            maps = network.head(tokens, size, rays=True)
        with torch.autocast(images.device.type, enabled=False):
            encoding = network.camera_decoder(tokens.class_token(-1))
            features = {layer: tokens.exported[layer].float() for layer in layers}
            logits = geometry = None
            if self.matching in heads:
                # A tap holds what leaves the last single-view block: what enters its own, cross-view block.
                taps = dict(zip(network.config.backbone.tap_layers, tokens.taps, strict=True))
                entering = {layer: taps[layer][0].float() for layer in self.matching.attention_layers}
                logits = self.matching(features, network.backbone.blocks, entering)
            if self.geometry in heads:
                geometry = self.geometry(features)
        output = {
            name: value.float().unflatten(0, images.shape[:2])
            for name, value in vars(maps).items()
            if value is not None
        }
        return output | {"camera_encoding": encoding, "matching": logits, "geometry": geometry}


class Student:
    """`StudentTask` at work; see `task.Task` for the protocol."""

    def __init__(self, config: StudentTask, seed: int):
        self.config, self.seed = config, seed
        if config.pretrained:
            network = load_network(config.model).requires_grad_(True).train()
        else:
            network = build_model(preset(config.model)).train()
        if getattr(network, "camera_decoder", None) is None:
            raise InputError(f"the student must be an any-view network with cameras; {config.model} has none")
        if network.gs_head is not None:  # made for the backbone as it was
            logger.info("the Gaussian head of %s is left out: train a new one on the result", config.model)
            network.gs_head, network.config = None, replace(network.config, gs_head=None)
        backbone = network.config.backbone
        if not set(config.matching.attention_layers) <= set(backbone.tap_layers) or not backbone.concat_local:
            raise InputError(
                f"matching.attention_layers must be among the tap layers {list(backbone.tap_layers)} of "
                f"{config.model}; got {list(config.matching.attention_layers)}"
            )
        matching = MatchingHead(backbone.width, config.matching) if config.matching.weight > 0 else None
        if matching is not None and matching.attention_layers:
            network.config = replace(network.config, match_layer=max(matching.attention_layers))
        elif not config.pretrained:
            network.config = replace(network.config, match_layer=None)
        crossing = tuple(range(backbone.tap_layers[0], backbone.depth))
        geometry = PatchGeometry(backbone.width, crossing) if config.matching.geometry > 0 else None
        self.module = StudentModule(network, matching, geometry, low_precision_heads=config.low_precision_heads)
        self.source = config.data.open()
        self._frames = self._frame_counts()
        if config.evaluation_scenes:
            config.evaluation_data.open()  # what is wrong with it is said now, not after hours
        self.images_per_step = config.images_per_batch

    # ---------------------------------------------------------------- data

    def batch(self, index: int, rank: int, processes: int) -> dict[str, Tensor]:
        """Micro-batch `index` of the run: the share of one process. Pure function of its arguments and the seed."""
        config = self.config
        rng = random.Random(f"{self.seed} student {index}")
        single = rng.random() < config.single_view
        most = min(config.images_per_batch, max(self._frames.values()))
        views = views_of_batch(rng, config.views, most, single=single)
        size = rng.choice(self.source.sizes)
        posed = views > 1 and rng.random() < config.known_poses
        long_enough = [scene for scene in self.source.indices(size) if self._frames[scene] >= views]
        scenes = pick_scenes(rng, long_enough, max(1, config.images_per_batch // views), processes)
        samples = []
        for place, scene in list(enumerate(scenes))[rank::processes]:
            own = random.Random(f"{self.seed} student {index} {place}")
            sample = self._drawn(scene, views, own)
            if config.mirror and own.random() < 0.5:
                sample = sample.mirrored()
            samples.append(
                TrainingSample(jitter(sample.images, own, config.color_jitter), sample.depth, sample.cameras)
            )
        share = torch.tensor(share_of(len(samples), len(scenes), processes))
        return student_batch(samples, posed=posed) | {"share": share}

    def _frame_counts(self) -> dict[int, int]:
        """Frames of every scene; scenes of fewer than the fewest views are never drawn."""
        scenes = {scene for size in self.source.sizes for scene in self.source.indices(size)}
        counts = {scene: self.source.frame_count(scene) for scene in sorted(scenes)}
        short = [scene for scene, frames in counts.items() if frames < self.config.views[0]]
        if len(short) == len(counts):
            raise InputError(f"a sample needs {self.config.views[0]} views; no scene has so many frames")
        if short:
            logger.warning(
                "%d of %d scenes have fewer than %d frames and are not used",
                len(short),
                len(counts),
                self.config.views[0],
            )
        return counts

    def _drawn(self, scene: int, views: int, rng: random.Random) -> TrainingSample:
        """Views of a scene in random order: the first is the reference."""
        if self.source.ordered:
            chosen = neighbouring_frames(rng, self._frames[scene], views, self.config.frame_gap)
            return self.source.load(scene, chosen)
        sample = self.source.load(scene)
        near = rng.random() < self.config.near_views
        return sample[nearest_views(sample.cameras, rng, views) if near else rng.sample(range(len(sample)), views)]

    # ---------------------------------------------------------------- loss

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weighted sum under "loss", and the terms by name, times the "share" of the batch if it has one."""
        cells = tuple(batch["cell_depth"].shape[-2:]) if self.config.depth_at_cells else None
        output = module(batch["images"], batch.get("camera_encoding"), cells)
        # Pose algebra must not run in half precision.
        with torch.autocast(batch["images"].device.type, enabled=False):
            terms = student_terms(output, batch, self.config.losses)
            total = sum(getattr(self.config.losses, name) * term for name, term in terms.items())
            if output["matching"] is not None:
                terms["matching"], terms["matching_accuracy"] = self.config.matching.loss(output["matching"], batch)
                total = total + self.config.matching.weight * terms["matching"]
            if output["geometry"] is not None:
                terms["patch_geometry"] = patch_geometry_loss(output["geometry"], batch)
                total = total + self.config.matching.geometry * terms["patch_geometry"]
        share = batch.get("share", 1.0)
        return {name: share * term for name, term in {"loss": total, **terms}.items()}

    # ---------------------------------------------------------------- evaluation and result

    def evaluate(self, module: nn.Module) -> Evaluation:
        from da3gs.train.student_evaluation import evaluate_student

        inner = getattr(module, "module", module)
        return evaluate_student(inner, self.config)

    def export(self, path, provenance: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
        """Write the network alone (no matching head) as a checkpoint that `load_network` reads."""
        save_checkpoint(self.module.network, path, provenance, dtype)


# ------------------------------------------------------------------------------------------------ batches


def nearest_views(cameras: Cameras, rng: random.Random, count: int) -> list[int]:
    """A random view, then the `count` - 1 whose rotation is nearest to its own."""
    first = rng.randrange(len(cameras))
    R = cameras.cam_from_world[:, :3, :3]
    angles = rotation_angle(R[first].expand_as(R), R)
    angles[first] = -1
    return angles.argsort()[:count].tolist()


def jitter(images: Tensor, rng: random.Random, strength: float) -> Tensor:
    """One random gamma, gain and tint for all views of a scene."""
    if strength == 0:
        return images
    gamma = 2 ** (strength * rng.uniform(-1, 1))
    gain = torch.tensor([2 ** (0.5 * strength * (rng.uniform(-1, 1) + 0.4 * rng.uniform(-1, 1))) for _ in range(3)])
    return (images.clamp(min=0) ** gamma * gain[:, None, None]).clamp(0, 1)


def student_batch(samples: list[TrainingSample], *, posed: bool) -> dict[str, Tensor]:
    """Network input and targets of scenes of one size, in the frame of each scene's first view, scaled to 1.

    Keys: images [B, V, 3, H, W] normalised; depth, mask [B, V, H, W]; rays [B, V, h, w, 6]; cell_depth, cell_mask
    [B, V, h, w]; world_from_cam [B, V, 4, 4]; fov [B, V, 2]; camera_encoding [B, V, 9] if posed; K, size for matches.
    """
    targets = [scene_targets(sample) for sample in samples]
    batch = {key: torch.stack([target[key] for target in targets]) for key in targets[0]}
    batch["images"] = normalise(torch.stack([sample.images for sample in samples]))
    if posed:
        width, height = samples[0].cameras.size
        known = [normalized_poses(sample.cameras) for sample in samples]
        batch["camera_encoding"] = torch.stack(
            [encode_cameras(cameras.cam_from_world, cameras.K, width, height) for cameras in known]
        )
    return batch


def scene_targets(sample: TrainingSample) -> dict[str, Tensor]:
    """Depth, rays and cameras of a scene in the frame of view 0, divided by the mean distance of its points from it."""
    cameras, mask = sample.cameras, sample.depth > 0
    relative = cameras.with_poses(cameras.cam_from_world.double() @ cameras.world_from_cam[:1].double())
    points = relative.unproject(sample.depth)[mask]
    scale = float(points.norm(dim=-1).mean()) if len(points) else 1.0
    poses = relative.cam_from_world.clone()
    poses[:, :3, 3] /= scale
    cameras, depth = relative.with_poses(poses), sample.depth / scale
    width, height = cameras.size
    rows, columns = 8 * height // PATCH, 8 * width // PATCH
    rays = ray_map(cameras, columns, rows)
    cell_depth = F.interpolate(depth[None], (rows, columns), mode="nearest-exact")[0]
    return {
        "depth": depth,
        "mask": mask,
        "rays": rays,
        "cell_depth": cell_depth,
        "cell_mask": cell_depth > 0,
        "world_from_cam": cameras.world_from_cam,
        "fov": cameras.fov,
        "K": cameras.K,
    }


# ------------------------------------------------------------------------------------------------ terms


def student_terms(output: dict[str, Any], batch: dict[str, Tensor], weights: StudentLosses) -> dict[str, Tensor]:
    """Every term of nonzero weight, by the name of its weight."""
    height, width = batch["depth"].shape[-2:]
    rows, columns = batch["cell_depth"].shape[-2:]
    at_cells = output["depth"].shape[-2:] == (rows, columns)
    depth, mask = (batch["cell_depth"], batch["cell_mask"]) if at_cells else (batch["depth"], batch["mask"])
    cell_depth = F.interpolate(output["depth"], (rows, columns), mode="nearest-exact")
    cell_points = points_on_rays(batch["rays"], batch["cell_depth"])
    encoding = output["camera_encoding"]
    world_from_cam, _ = decode_cameras(encoding, width, height)
    horizontal_vertical = encoding[..., [8, 7]]
    terms = {
        "depth": lambda: losses.confident_depth_l1(
            output["depth"],
            output["confidence"],
            depth,
            mask,
            log_weight=weights.confidence_log_weight,
        ),
        "rays": lambda: losses.ray_l1(output["rays"], batch["rays"]),
        "points": lambda: losses.point_l1(output["rays"], cell_depth, cell_points, batch["cell_mask"]),
        "camera": lambda: losses.camera_l1(world_from_cam, horizontal_vertical, batch["world_from_cam"], batch["fov"]),
        "depth_gradient": lambda: losses.depth_gradient_l1(
            output["depth"], depth, mask, scales=weights.gradient_scales
        ),
        "relative_pose": lambda: losses.relative_pose(world_from_cam, batch["world_from_cam"]),
    }
    return {name: term() for name, term in terms.items() if getattr(weights, name) > 0}


def predicted_cameras(encoding: Tensor, width: int, height: int) -> Cameras:
    """Cameras of one scene's decoded encoding [V, 9]."""
    world_from_cam, K = decode_cameras(encoding.float(), width, height)
    return Cameras(torch.linalg.inv(world_from_cam), K, width, height)
