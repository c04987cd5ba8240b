"""Random geometry for property tests: seeds become float64 tensors."""

import torch
from hypothesis import strategies as st

from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import matrix_from_quat
from da3gs.geometry.similarity import Similarity

seeds = st.integers(0, 2**31 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotations(seed: int, *shape: int) -> torch.Tensor:
    return matrix_from_quat(torch.randn(*shape, 4, generator=generator(seed), dtype=torch.float64))


def similarity(seed: int, scale: float | None = None) -> Similarity:
    draw = generator(seed)
    size = torch.exp(torch.randn((), generator=draw, dtype=torch.float64)) if scale is None else scale
    return Similarity(size, rotations(seed + 1), torch.randn(3, generator=draw, dtype=torch.float64) * 3)


def cameras(seed: int, views: int = 3, width: int = 20, height: int = 14, dtype=torch.float64) -> Cameras:
    """Cameras with off-centre principal points, skew, and any pose."""
    draw = generator(seed)

    def uniform(low, high):
        return low + (high - low) * torch.rand(views, generator=draw, dtype=torch.float64)

    K = torch.zeros(views, 3, 3, dtype=torch.float64)
    K[:, 0, 0], K[:, 1, 1], K[:, 2, 2] = uniform(10, 40), uniform(10, 40), 1
    K[:, 0, 1], K[:, 0, 2], K[:, 1, 2] = uniform(-1, 1), uniform(5, 15), uniform(3, 11)
    poses = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    poses[:, :3, :3] = rotations(seed + 7, views)
    poses[:, :3, 3] = torch.randn(views, 3, generator=draw, dtype=torch.float64) * 2
    return Cameras(poses.to(dtype), K.to(dtype), width, height)
