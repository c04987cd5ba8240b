"""Data and model joined: the feed-forward start, and its quality at step 0."""

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE
from torch.cuda.amp.grad_scaler import GradScaler

from da3gs.errors import InputError
from da3gs.nerfstudio.config import FeedForwardPipelineConfig
from da3gs.nerfstudio.context import read_context
from da3gs.nerfstudio.models import FeedForwardSplats

logger = logging.getLogger(__name__)


class FeedForwardPipeline(VanillaPipeline):
    """nerfstudio's pipeline; when it is built for training, the network runs once on the context views."""

    config: FeedForwardPipelineConfig
    model: FeedForwardSplats

    def __init__(
        self,
        config: FeedForwardPipelineConfig,
        device: str | torch.device,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: GradScaler | None = None,
    ):
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise InputError("no CUDA device was found; train on the CPU with --machine.device-type cpu")
        if world_size > 1:
            raise InputError("da3gs trains on one device; leave --machine.num-devices at 1")
        super().__init__(config, str(device), test_mode, world_size, local_rank, grad_scaler)
        if test_mode == "val":  # training; all other commands load a checkpoint
            model = config.model
            context = read_context(self.datamanager, count=model.context_views, strategy=model.context_strategy)
            CONSOLE.log(f"{model.network} predicts Gaussians from {len(context.indices)} context views")
            self.model.start(context)

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """Evaluate the pure feed-forward result before the first step."""
        first = TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self._log_start)
        return [first, *super().get_training_callbacks(attributes)]

    def _log_start(self, step: int) -> None:
        if step > 0:
            return
        held_out = len(self.datamanager.eval_dataset) > 0
        if held_out:
            metrics = self.get_average_eval_image_metrics(step=0)
            writer.put_dict(name="Eval Images Metrics Dict (all images)", scalar_dict=metrics, step=0)
            where = f"{len(self.datamanager.eval_dataset)} held-out images"
            CONSOLE.log(
                f"step 0, feed-forward: PSNR {metrics['psnr']:.2f} dB, SSIM {metrics['ssim']:.3f} on {where}, "
                f"{self.model.num_points} Gaussians"
            )
        else:
            CONSOLE.log(f"step 0, feed-forward: {self.model.num_points} Gaussians; no held-out images to measure on")

    def get_eval_loss_dict(self, step: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        self.model.refresh()
        return super().get_eval_loss_dict(step)

    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        self.model.refresh()
        return super().get_eval_image_metrics_and_images(step)

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, float]:
        self.model.refresh()
        return super().get_average_eval_image_metrics(step, output_path, get_std)
