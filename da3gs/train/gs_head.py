"""Task `gs_head`: train a Gaussian head on rendered novel views; everything else of the network is frozen.

    context views ─► frozen backbone, depth, cameras ──┬─► head ─► adapter ─► Gaussians in the network's frame
    (true poses as tokens in some samples only)        │            │ one similarity: network's cameras ─► true cameras
                                                       │            └─► rendered at true target cameras ─► MSE + LPIPS
                                                       └─ computed once per sample     Gaussians' depth, rendered depth

Samples with and without given poses are mixed, so one head serves both.

Letters: V context views, T target views, H W pixels.
"""

import random
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from da3gs import losses
from da3gs.data.view_sampling import ViewSamplingConfig
from da3gs.errors import InputError
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.model.checkpoints import load_network, save_gs_head
from da3gs.model.gaussian_adapter import gaussians_from_raw
from da3gs.model.gs_head import GaussianHead
from da3gs.model.network import initialize
from da3gs.model.presets import GSHeadConfig
from da3gs.rendering.render import RenderConfig, render
from da3gs.train.frozen import FrozenSample, frozen_sample
from da3gs.train.samples import SyntheticData, TrainingSample
from da3gs.train.task import Evaluation, pick_scenes, share_of
from da3gs.train.transforms_data import TransformsData

_COVERED = 0.5  # alpha of the prior's render above which context views are taken to see a pixel


@dataclass(frozen=True)
class GSHeadLosses:
    """Weights of the terms.

    Attributes:
        color: Mean squared error on visible target pixels.
        lpips: Needs the weights of the network: `lpips_weights` (SqueezeNet), or the lpips package.
        depth: Scale-and-shift-invariant L1 on the Gaussians' own depth, offsets included.
        rendered_depth: The same on the rendered depth.
        raw: Mean square of the head's output: how far it may leave the prior without reason.
    """

    color: float = 1.0
    lpips: float = 0.05
    lpips_net: str | None = None
    lpips_weights: Path | None = None
    depth: float = 0.1
    rendered_depth: float = 0.1
    raw: float = 0.0


@dataclass(frozen=True)
class GSHeadTask:
    """Train a residual Gaussian head on a frozen any-view network.

    Attributes:
        model: Preset, repository or file of the frozen network.
        pretrained: Go on with the head that network has, instead of a new one.
        features, channels: Size of the head; 0 and () take that of the network's depth head.
        scenes_per_batch: Over all processes.
        given_poses: Probability that a sample's true poses are given.
        refine_depth: With given poses, train on depth refined by the pictures. Off by default: `reconstruct` gives a
            head that is named the network's own depth.
        views: Choice of context and target views.
        draws: Fixed choices of views per scene, so that frozen features can be kept; 0 draws anew every time.
        cache: Frozen samples kept in memory (0: none); worth scenes * draws of a small data set.
        antialiased: Train against the antialiased renderer.
    """

    kind: Literal["gs_head"] = "gs_head"
    model: str = "da3-tiny"
    pretrained: bool = False
    features: int = 0
    channels: tuple[int, ...] = ()
    data: SyntheticData | TransformsData = field(default_factory=SyntheticData)
    evaluation_data: SyntheticData | TransformsData = field(
        default_factory=lambda: SyntheticData(scenes=16, first_seed=3_000_000)
    )
    evaluation_scenes: int = 8
    scenes_per_batch: int = 2
    given_poses: float = 0.5
    refine_depth: bool = False
    views: ViewSamplingConfig = field(default_factory=ViewSamplingConfig)
    draws: int = 0
    cache: int = 0
    antialiased: bool = True
    losses: GSHeadLosses = field(default_factory=GSHeadLosses)

    def __post_init__(self):
        if self.scenes_per_batch < 1 or not 0 <= self.given_poses <= 1:
            raise InputError("scenes_per_batch must be >= 1 and given_poses a probability")
        if self.draws and self.views.warm_up_steps:
            raise InputError("draws fixes the views of a scene, views.warm_up_steps moves them; set one of them to 0")
        if self.cache and not self.draws:
            raise InputError("a cache of frozen features needs fixed draws per scene; set draws >= 1")

    def open(self, seed: int) -> "GSHeadTraining":
        return GSHeadTraining(self, seed)


class GSHeadTraining:
    """`GSHeadTask` at work; see `task.Task` for the protocol."""

    def __init__(self, config: GSHeadTask, seed: int):
        self.config, self.seed = config, seed
        self.network = load_network(config.model)
        architecture = self.network.config
        if architecture.cameras is None or architecture.metric is not None:
            raise InputError(f"a Gaussian head is trained on an any-view network; {config.model} is none")
        head_config = GSHeadConfig(
            config.features or architecture.head.features,
            tuple(config.channels) or architecture.head.channels,
            residual=True,
        )
        self.architecture = replace(architecture, gs_head=head_config)
        self.module = GaussianHead(architecture.backbone.tap_width, head_config).train()
        if config.pretrained:
            self._take_over(head_config)
        else:
            initialize(self.module)
        self.source = config.data.open()
        self.images_per_step = config.scenes_per_batch * (config.views.context[1] + config.views.targets)
        self.lpips = _perceptual(config.losses)
        self._kept: OrderedDict[tuple, FrozenSample] = OrderedDict()

    def _take_over(self, head_config: GSHeadConfig) -> None:
        own = self.network.gs_head
        if own is None or own.config != head_config:
            has = "none" if own is None else "one of another size or kind"
            raise InputError(
                f"pretrained: {self.config.model} must have a residual Gaussian head of {head_config.features} "
                f"features and channels {list(head_config.channels)}; it has {has}"
            )
        self.module.load_state_dict(own.state_dict())

    # ---------------------------------------------------------------- data

    def batch(self, index: int, rank: int, processes: int) -> dict[str, Any]:
        """Scenes of micro-batch `index` for one process: a list of pictures and cameras, still without the network."""
        config = self.config
        rng = random.Random(f"{self.seed} gs_head {index}")
        size = rng.choice(self.source.sizes)
        context = rng.randint(*config.views.context)
        scenes = pick_scenes(rng, self.source.indices(size), config.scenes_per_batch, processes)
        drawn = []
        for place, scene in list(enumerate(scenes))[rank::processes]:
            own = random.Random(f"{self.seed} gs_head {index} {place}")
            key = None
            if config.draws:
                draw = own.randrange(config.draws)
                own = random.Random(f"{self.seed} gs_head draw {scene} {draw}")
                key = (scene, draw)
                context = own.randint(*config.views.context)
            posed = own.random() < config.given_poses
            drawn.append(self.draw(self.source, scene, context, index, own, posed) | {"key": key})
        return {"scenes": drawn, "share": share_of(len(drawn), len(scenes), processes)}

    def draw(self, source, scene: int, context: int, step: int, rng: random.Random, posed: bool) -> dict[str, Any]:
        """One sample: context and target views, and whether its poses are given."""
        frames, views = source.frame_count(scene), self.config.views
        if source.ordered:
            try:
                chosen, targets = views.sample(frames, context, step, rng)
            except InputError as error:
                raise InputError(f"{source.paths[scene]}: {error}; leave the scene out") from error
        else:
            if frames <= views.targets:
                raise InputError(f"scenes of {frames} views leave no context beside {views.targets} targets")
            order = rng.sample(range(frames), frames)
            chosen, targets = order[: min(context, frames - views.targets)], order[-views.targets :]
        sample = source.load(scene, [*chosen, *targets])
        count = len(chosen)
        return {
            "context": sample[list(range(count))],
            "target": sample[list(range(count, len(sample)))],
            "posed": posed,
        }

    def frozen(self, drawn: dict[str, Any], device: torch.device) -> FrozenSample:
        """What the frozen network makes of a sample; kept if the configuration says so."""
        key = drawn.get("key")
        if key is not None and key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key].to(device)
        if next(self.network.parameters()).device != device:
            self.network.to(device)
        result = frozen_sample(
            self.network, drawn["context"], posed=drawn["posed"], refine_depth=self.config.refine_depth
        )
        if key is not None and self.config.cache:
            self._kept[key] = result.to(torch.device("cpu"))
            if len(self._kept) > self.config.cache:
                self._kept.popitem(last=False)
        return result

    # ---------------------------------------------------------------- loss

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Mean over the scenes of the batch, times its "share" if it has one."""
        device = next(module.parameters()).device
        parts = [self._scene_loss(module, drawn, device) for drawn in batch["scenes"]]
        names = parts[0].keys()
        share = batch.get("share", 1.0)
        return {name: share * torch.stack([part[name] for part in parts]).mean() for name in names}

    def _scene_loss(self, module: nn.Module, drawn: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
        weights, target = self.config.losses, drawn["target"]
        frozen = self.frozen(drawn, device)
        # The head computes in the precision of the run, Gaussians and rendering in float32.
        raw = module(frozen.tokens, frozen.normalised).float()
        with torch.autocast(device.type, enabled=False):
            gaussians, depth = head_gaussians(frozen, raw)
            if frozen.world_from_network is None:  # the network's cameras are too far off to compare pictures
                zero = raw.sum() * 0.0
                return dict.fromkeys(("loss", "color", "lpips", "depth", "rendered_depth"), zero) | {
                    "used": zero.detach()
                }
            out = self.render(gaussians.transform(frozen.world_from_network), target.cameras)
            pictures = target.images.to(device).permute(0, 2, 3, 1)
            visible = self.visible(frozen, target, device)
            terms = {"color": losses.masked_mse(out.rgb, pictures, visible), "lpips": raw.new_zeros(())}
            if self.lpips is not None:
                painted = torch.where(visible[..., None], out.rgb, pictures).clamp(0, 1)
                self.lpips.to(device)
                terms["lpips"] = self.lpips(painted.permute(0, 3, 1, 2), pictures.permute(0, 3, 1, 2)).mean()
            terms["depth"], terms["rendered_depth"] = self._depth_terms(frozen, target, depth, gaussians, out, visible)
            total = sum(getattr(weights, name) * term for name, term in terms.items())
            if weights.raw:
                total = total + weights.raw * raw.square().mean()
        return {"loss": total, **terms, "used": torch.ones_like(total.detach())}

    def _depth_terms(self, frozen: FrozenSample, target: TrainingSample, depth, gaussians, out, visible):
        """On the Gaussians' depth in the context views and on the rendered depth; true depth where there is any."""
        true = frozen.true_depth
        known = true > 0
        own = losses.scale_shift_invariant_l1(
            depth, torch.where(known, true, frozen.depth), known | ~known.flatten(1).any(1)[:, None, None]
        )
        target_depth = target.depth.to(depth.device)
        if (target_depth > 0).any():
            mask = visible & (target_depth > 0) & (out.alpha[..., 0].detach() > _COVERED)
            return own, losses.scale_shift_invariant_l1(out.depth[..., 0], target_depth, mask)
        # Nothing is known about the targets' depth: the first context view stands in, with the frozen depth.
        seen = self.render(gaussians, frozen.cameras[0])
        mask = seen.alpha[..., 0].detach() > _COVERED
        return own, losses.scale_shift_invariant_l1(seen.depth[..., 0], frozen.depth[:1], mask)

    def render(self, gaussians: Gaussians, cameras: Cameras):
        return render(gaussians, cameras, RenderConfig(antialiased=self.config.antialiased))

    @torch.no_grad()
    def visible(self, frozen: FrozenSample, target: TrainingSample, device: torch.device) -> Tensor:
        """Target pixels [T, H, W] that some context view sees.

        By the true depth of both where it is known; else where the prior's own splats cover the target.
        """
        if (target.depth > 0).any() and (frozen.true_depth > 0).any():
            return seen_by_context(target, frozen.true_depth, frozen.true_cameras).to(device)
        prior, _ = head_gaussians(frozen, None)
        return self.render(prior.transform(frozen.world_from_network), target.cameras).alpha[..., 0] > _COVERED

    # ---------------------------------------------------------------- evaluation and result

    def evaluate(self, module: nn.Module) -> Evaluation:
        from da3gs.train.gs_head_evaluation import evaluate_gs_head

        return evaluate_gs_head(self, module)

    def export(self, path: str | Path, provenance: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
        """Write the head alone; `attach_gs_head` reads it."""
        host = self.network
        before = host.config, host.gs_head
        host.config, host.gs_head = self.architecture, self.module
        try:
            save_gs_head(host, path, provenance | {"backbone": self.config.model}, dtype)
        finally:
            host.config, host.gs_head = before


def head_gaussians(frozen: FrozenSample, raw: Tensor | None) -> tuple[Gaussians, Tensor]:
    """Gaussians in the network's frame, and their z-depth [V, H, W] in their own view; None gives the prior alone."""
    gaussians = gaussians_from_raw(
        raw, frozen.depth, frozen.cameras, images=frozen.images, confidence=frozen.confidence
    )
    poses = frozen.cameras.cam_from_world.to(gaussians.means)
    means = gaussians.means.view(*frozen.depth.shape, 3)
    depth = (means * poses[:, None, None, 2, :3]).sum(-1) + poses[:, None, None, 2, 3]
    return gaussians, depth


@torch.no_grad()
def seen_by_context(target: TrainingSample, context_depth: Tensor, context: Cameras, tolerance: float = 0.05) -> Tensor:
    """[T, H, W] target pixels whose surface some context view sees unoccluded, from true depths in one frame."""
    width, height = context.size
    depth = target.depth.to(context_depth.device)
    points = target.cameras.to(context_depth.device).unproject(depth).reshape(-1, 3)
    uv, z = context.project(points)
    column, row = uv.nan_to_num(-1.0).clamp(-1, 1e6).floor().long().unbind(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (z > 1e-6)
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    seen = context_depth.flatten(1).gather(1, place)
    agree = inside & (seen > 0) & ((seen - z).abs() < tolerance * z.abs())
    return agree.any(0).view(depth.shape) & (depth > 0)


def _perceptual(weights: GSHeadLosses) -> nn.Module | None:
    if weights.lpips == 0:
        return None
    from da3gs.metrics.images import load_lpips

    return load_lpips(weights.lpips_net, weights.lpips_weights)
