"""A world of known shape, and a model that sees it exactly: what the pipeline adds can then be tested to rounding.

A room with a ball in it, seen by cameras on an arc. Colours vary smoothly over the surfaces.
"""

import torch

from da3gs import Cameras, Similarity
from da3gs.model.da3_model import DA3Model
from da3gs.model.network import Prediction, build_model
from da3gs.model.presets import BackboneConfig, CameraConfig, HeadConfig, ModelConfig
from da3gs.rendering.trajectories import look_at

WIDTH, HEIGHT = 126, 98
_HALF = torch.tensor([2.0, 1.2, 2.0])  # of the room
_BALL, _RADIUS = torch.tensor([0.1, 0.5, 0.0]), 0.45

CONFIG = ModelConfig(
    name="reduced",
    backbone=BackboneConfig(
        width=48,
        depth=4,
        heads=2,
        tap_layers=(0, 1, 2, 3),
        cross_view_start=1,
        qk_norm_start=1,
        rope_start=1,
        concat_local=True,
    ),
    head=HeadConfig(features=16, channels=(16, 16, 16, 16)),
    cameras=CameraConfig(heads=4, encoder_depth=1),
    licence="made for tests",
)


def arc(views: int, kind: str = "free") -> Cameras:
    """Cameras in the room: on an arc with some up and down ("free"), on a "line", or "rotating" in one place."""
    angle = torch.linspace(-0.6, 0.7, views) if views > 1 else torch.zeros(1)
    if kind == "free":
        eyes = torch.stack([1.5 * angle.sin(), -0.3 + 0.4 * (3 * angle).cos(), -1.5 * angle.cos()], 1)
        targets = torch.stack([0.2 * angle.cos(), 0.3 * (5 * angle).sin(), torch.zeros(views)], 1)
    elif kind == "line":
        eyes = torch.stack([angle, torch.full_like(angle, -0.2), torch.full_like(angle, -1.4)], 1)
        targets = torch.stack([0.4 * angle, 0.2 * angle, torch.zeros(views)], 1)
    else:
        eyes = torch.tensor([[0.0, -0.2, -1.4]]).expand(views, 3)
        targets = torch.stack([angle, 0.4 * (4 * angle).sin(), torch.zeros(views)], 1)
    up = torch.tensor([0.0, -1.0, 0.0])
    K = torch.tensor([[100.0, 0, 61.0], [0, 98.0, 50.0], [0, 0, 1]]).expand(views, 3, 3)
    return Cameras(look_at(eyes, targets, up), K, WIDTH, HEIGHT)


def see(cameras: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [V, 3, H, W] and z-depth [V, H, W] of the room."""
    directions, origins = cameras.rays()
    origins = origins[:, None, None].expand_as(directions)
    walls = (torch.sign(directions) * _HALF - origins) / directions.where(directions != 0, torch.tensor(1e-9))
    depth = walls.amin(-1)
    # |o + t d - c|^2 = r^2
    offset = origins - _BALL
    a, b = directions.square().sum(-1), (directions * offset).sum(-1)
    square = b.square() - a * (offset.square().sum(-1) - _RADIUS**2)
    hit = (-b - square.clamp(min=0).sqrt()) / a
    ball = (square > 0) & (hit > 0) & (hit < depth)
    depth = torch.where(ball, hit, depth)
    points = origins + depth[..., None] * directions
    waves = torch.stack([(points @ torch.tensor(k)).sin() for k in ([4.0, 1, 2], [1.0, 5, -2], [-2.0, 2, 4])], -1)
    colour = 0.5 + 0.3 * waves
    colour = torch.where(ball[..., None], 1 - 0.6 * colour, colour)
    return colour.permute(0, 3, 1, 2).contiguous(), depth


class OracleModel(DA3Model):
    """A model whose depth and cameras are true, in a frame and unit of its own.

    Attributes:
        truth: Cameras of the next images, in the world.
        network_from_world: The model's frame.
    """

    def __init__(self, truth: Cameras, network_from_world: Similarity, confidence=None, sky=None):
        super().__init__(build_model(CONFIG))
        self.truth, self.network_from_world = truth, network_from_world
        self.confidence, self.sky, self.calls = confidence, sky, []

    def _run(self, views, given, *_):
        self.calls.append(None if given is None or given.cam_from_world is None else given)
        truth = self.truth.scaled(width=views.size[0], height=views.size[1])
        depth = see(truth)[1] * float(self.network_from_world.scale)
        confidence = torch.full_like(depth, 2.0) if self.confidence is None else self.confidence
        return Prediction(
            depth=depth[None],
            confidence=confidence[None],
            cameras=[truth.transform(self.network_from_world)],
            sky=None if self.sky is None else self.sky[None],
        )

    def estimate_memory(self, views, height, width):
        return views * height * width * 100


def psnr_db(render: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> float:
    """Of a render [H, W, 3] against an image [3, H, W] over a mask [H, W]."""
    return float(-10 * (render - image.movedim(0, -1)).square().mean(-1)[mask].mean().log10())
