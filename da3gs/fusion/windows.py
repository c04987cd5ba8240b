"""Means over the square around every pixel."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def mean_around(values: Float[Tensor, "*C H W"], reach: int) -> Float[Tensor, "*C H W"]:
    """Mean over the square that reaches `reach` pixels to every side, as far as it lies in the picture. On the CPU."""
    import cv2

    def total(plane: np.ndarray) -> np.ndarray:
        side = (2 * reach + 1, 2 * reach + 1)
        return cv2.boxFilter(plane, -1, side, normalize=False, borderType=cv2.BORDER_CONSTANT)

    planes = values.detach().cpu().float().contiguous().numpy()
    count = total(np.ones(values.shape[-2:], np.float32))
    means = [total(plane) / count for plane in planes.reshape(-1, *count.shape)]
    return torch.from_numpy(np.stack(means)).reshape(values.shape).to(values)
