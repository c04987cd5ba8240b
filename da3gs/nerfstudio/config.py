"""The two methods as nerfstudio finds them through the entry points in pyproject.toml.

Every ns-command of every user imports this module, whatever method it runs. So it imports nothing but nerfstudio's own
configuration classes: model and pipeline are loaded when they are built. The paths of these classes are part of every
saved ``config.yml``; moving one breaks old runs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification
from tyro.conf import Suppress

from da3gs.nerfstudio.datamanager import ContextDatamanager
from da3gs.nerfstudio.optimizers import AdamConfig, ExponentialDecayConfig


def _build_pipeline(config: "FeedForwardPipelineConfig", **arguments: Any):
    from da3gs.nerfstudio.pipeline import FeedForwardPipeline

    return FeedForwardPipeline(config, **arguments)


def _build_head_model(config: "HeadModelConfig", **arguments: Any):
    from da3gs.nerfstudio.models import HeadModel

    return HeadModel(config, **arguments)


def _build_splat_model(config: "SplatModelConfig", **arguments: Any):
    from da3gs.nerfstudio.models import SplatModel

    return SplatModel(config, **arguments)


@dataclass
class ContextDatamanagerConfig(FullImageDatamanagerConfig):
    """Full images, kept as bytes: a quarter of the memory of floats."""

    # A class and not a function: ns-render dataset patches methods of it.
    _target: Any = field(default_factory=lambda: ContextDatamanager)
    cache_images_type: Literal["uint8", "float32"] = "uint8"
    """How images are kept in memory; uint8 takes a quarter."""


@dataclass
class FeedForwardModelConfig(ModelConfig):
    """The feed-forward start both methods share."""

    _target: Callable = _build_splat_model
    network: str = "da3-tiny"
    """Depth Anything 3 network: a preset (da3-small), a hub repository, or a .safetensors file or folder."""
    gs_head: str | None = None
    """Trained Gaussian head for the network, by name or file; none: the geometric prior places the splats."""
    context_views: int = 16
    """How many training images the network sees (at once: time and memory grow with it, not with the data set)."""
    context_strategy: Literal["farthest", "evenly"] = "farthest"
    """Which ones: cameras as different as possible, or evenly along the sequence."""
    image_size: int | None = None
    """Longest side in pixels of the images splats are placed from, whatever size nerfstudio loads; 504 on a GPU, less
    on the CPU. A network made for smaller ones (da3-tiny: 196) sees them at its own size."""
    refine_depth: bool = True
    """Let the training images beside the context views refine the predicted depth (a plane sweep on the CPU). Not with
    --gs-head, which was trained on the network's own depth."""
    max_gaussians: int | None = None
    """Keep the Gaussians that contribute most to the context views, at most this many; 1,000,000 on a GPU, 150,000 on
    the CPU."""
    ssim_weight: float = 0.2
    """Weight of the structural term in the loss; the rest is mean squared error."""
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Colour behind the Gaussians, RGB in [0, 1]."""
    lpips: Literal["alex", "vgg", "squeeze", "off"] = "alex"
    """Network of the LPIPS metric; loaded at the first evaluation, left out with one line when it cannot be."""
    lpips_weights: Path | None = None
    """Folder with the weights of --lpips squeeze, so that nothing is downloaded."""
    sh_degree: Suppress[int] = 2
    # Of no use to a model of Gaussians; hidden from --help.
    enable_collider: Suppress[bool] = False
    collider_params: Suppress[dict[str, float] | None] = None
    loss_coefficients: Suppress[dict[str, float]] = field(default_factory=dict)
    eval_num_rays_per_chunk: Suppress[int] = 4096
    prompt: Suppress[str | None] = None


@dataclass
class HeadModelConfig(FeedForwardModelConfig):
    """Fine-tunes the Gaussian head on this scene; the backbone stays frozen."""

    _target: Callable = _build_head_model
    context_views: int = 10
    """How many training images the network sees; every step runs the head on all of them."""


@dataclass
class SplatModelConfig(FeedForwardModelConfig):
    """Optimises the Gaussians themselves from the feed-forward start."""

    _target: Callable = _build_splat_model
    sh_degree: Literal[0, 1, 2, 3] = 2
    """Degree of the spherical harmonics of the colours."""
    start_opacity: float = 0.2
    """Highest opacity once step 0 has been measured; splats then also grow 1.5 times. Opaque splats in wrong places
    hide what is behind them from the optimiser. 1 leaves them as the network placed them."""


@dataclass
class FeedForwardPipelineConfig(VanillaPipelineConfig):
    """Data and model, and the feed-forward prediction between them."""

    _target: Callable = _build_pipeline
    datamanager: DataManagerConfig = field(default_factory=ContextDatamanagerConfig)
    model: ModelConfig = field(default_factory=SplatModelConfig)


def _group(lr: float, lr_final: float, steps: int) -> dict[str, Any]:
    return {"optimizer": AdamConfig(lr=lr), "scheduler": ExponentialDecayConfig(lr_final=lr_final, max_steps=steps)}


# What --pipeline.model.image-size and --max-gaussians are by default, by device and by what a step has to do there.
IMAGE_SIZE = {"da3gs": {"cuda": 504, "cpu": 224}, "da3gs-splat": {"cuda": 504, "cpu": 308}}
MAX_GAUSSIANS = {"cuda": 1_000_000, "cpu": 150_000}

HEAD_STEPS = 1000
SPLAT_STEPS = 3000

da3gs_method = MethodSpecification(
    config=TrainerConfig(
        method_name="da3gs",
        max_num_iterations=HEAD_STEPS,
        steps_per_save=500,
        steps_per_eval_batch=0,
        steps_per_eval_image=100,
        steps_per_eval_all_images=500,
        mixed_precision=False,
        pipeline=FeedForwardPipelineConfig(model=HeadModelConfig()),
        optimizers={"head": _group(5e-4, 5e-5, HEAD_STEPS)},
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer+tensorboard",
    ),
    description="da3gs: splats in one forward pass, then fine-tunes the Gaussian head on the scene (frozen backbone).",
)

da3gs_splat_method = MethodSpecification(
    config=TrainerConfig(
        method_name="da3gs-splat",
        max_num_iterations=SPLAT_STEPS,
        steps_per_save=1000,
        steps_per_eval_batch=0,
        steps_per_eval_image=100,
        steps_per_eval_all_images=1000,
        mixed_precision=False,
        pipeline=FeedForwardPipelineConfig(model=SplatModelConfig()),
        optimizers={
            "means": _group(3.2e-4, 3.2e-6, SPLAT_STEPS),  # in units of the scene's size, see SplatModel
            "features_dc": _group(5e-3, 5e-4, SPLAT_STEPS),
            "features_rest": _group(2.5e-4, 2.5e-5, SPLAT_STEPS),
            "opacities": _group(5e-2, 5e-3, SPLAT_STEPS),
            "scales": _group(1e-2, 1e-3, SPLAT_STEPS),
            "quats": _group(2e-3, 2e-4, SPLAT_STEPS),
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer+tensorboard",
    ),
    description="da3gs: splats in one forward pass, then optimises the Gaussians themselves.",
)
