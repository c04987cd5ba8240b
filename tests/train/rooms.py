"""Painted rooms in closed form: samples for training tests that need exact geometry but no renderer."""

import torch

from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import matrix_from_quat
from da3gs.train.samples import SyntheticData, TrainingSample, _write_sample


def room(seed: int, views: int, width: int, height: int) -> TrainingSample:
    """The inside of a box with waves of colour on its walls, seen from around its middle."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return 2 * torch.rand(*shape, generator=generator) - 1

    half = torch.tensor([2.0, 1.5, 2.5]) * (1 + 0.2 * draw(3))
    turns = matrix_from_quat(torch.cat([torch.ones(views, 1), 0.15 * draw(views, 3)], 1))
    poses = torch.eye(4).repeat(views, 1, 1)
    poses[:, :3, :3] = turns
    poses[:, :3, 3] = -(turns @ (0.6 * draw(views, 3, 1)))[..., 0]
    focal = 0.8 * width
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]]).expand(views, 3, 3)
    cameras = Cameras(poses, K, width, height)
    directions, origins = cameras.rays()
    origins = origins[:, None, None]
    depth = ((directions.sign() * half - origins) / directions).amin(-1)  # the nearest wall ahead
    points = origins + depth[..., None] * directions
    waves, phases = 4 * draw(3, 3), 3 * draw(3)
    images = (0.5 + 0.45 * torch.sin(points @ waves + phases)).permute(0, 3, 1, 2)
    return TrainingSample(images, depth, cameras)


def fill_cache(data: SyntheticData) -> None:
    """Put rooms where the rendered scenes of `data` are looked for."""
    folder = data.open()._folder
    for scene in range(data.scenes):
        width, height = data.sizes[scene % len(data.sizes)]
        sample = room(data.first_seed + scene, data.views, width, height)
        _write_sample(folder / f"{scene:07d}.safetensors", sample)
