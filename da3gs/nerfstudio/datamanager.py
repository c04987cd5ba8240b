"""Full images for training and evaluation, and the few that are the context."""

from typing import Any, Literal

import torch
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager
from nerfstudio.data.datasets.base_dataset import InputDataset


class ContextDatamanager(FullImageDatamanager[InputDataset]):
    """nerfstudio's full-image data manager, usable on machines without a GPU."""

    def _load_images(
        self, split: Literal["train", "eval"], cache_images_device: Literal["cpu", "gpu"]
    ) -> list[dict[str, Any]]:
        # "cpu" asks for pinned memory, which needs a driver; "gpu" means the training device, here the same memory.
        on_cpu = torch.device(self.device).type == "cpu"
        return super()._load_images(split, "gpu" if on_cpu else cache_images_device)
