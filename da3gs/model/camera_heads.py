"""Cameras in and out of the network: the nine-number pose encoding, its encoder and its decoder.

A pose encoding is [translation 3, quaternion xyzw 4, fov_h, fov_w] of world_from_cam; the principal point is the image
centre. Quaternions are scalar-last here only because the released weights say so.

Letters: B scenes, V views, C width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from da3gs.geometry.conventions import rigid_inverse
from da3gs.geometry.rotations import matrix_from_quat, quat_from_matrix, wxyz_from_xyzw, xyzw_from_wxyz
from da3gs.model.layers import Block, GeluMlp
from da3gs.model.linear import Linear
from da3gs.model.presets import CameraConfig

ENCODING = 9
SMALLEST_TANGENT = 1e-6  # a decoder output of 0 (its ReLU is dead) gives a focal length of 1e6 half image widths


def encode_cameras(
    cam_from_world: Float[Tensor, "*batch 4 4"], K: Float[Tensor, "*batch 3 3"], width: int, height: int
) -> Float[Tensor, "*batch 9"]:
    """Pose encoding of cameras of one image size (px). The principal point is not encoded."""
    world_from_cam = rigid_inverse(cam_from_world)
    quat = xyzw_from_wxyz(quat_from_matrix(world_from_cam[..., :3, :3]))
    fov_h = 2 * torch.atan(height / 2 / K[..., 1, 1])
    fov_w = 2 * torch.atan(width / 2 / K[..., 0, 0])
    return torch.cat([world_from_cam[..., :3, 3], quat, fov_h[..., None], fov_w[..., None]], -1)


def decode_cameras(
    encoding: Float[Tensor, "*batch 9"], width: int, height: int
) -> tuple[Float[Tensor, "*batch 4 4"], Float[Tensor, "*batch 3 3"]]:
    """World-from-camera transforms and pixel intrinsics of a pose encoding (the quaternion may have any norm > 0)."""
    translation, quat, fov = encoding.split([3, 4, 2], -1)
    rotation = matrix_from_quat(wxyz_from_xyzw(quat))
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=encoding.dtype, device=encoding.device)
    top = torch.cat([rotation, translation[..., None]], -1)
    world_from_cam = torch.cat([top, bottom.expand(*encoding.shape[:-1], 1, 4)], -2)
    focal_y, focal_x = (
        size / 2 / torch.tan(angle / 2).clamp(min=SMALLEST_TANGENT)
        for size, angle in zip((height, width), fov.unbind(-1), strict=True)
    )
    zero, one = torch.zeros_like(focal_x), torch.ones_like(focal_x)
    entries = [focal_x, zero, one * width / 2, zero, focal_y, one * height / 2, zero, zero, one]
    return world_from_cam, torch.stack(entries, -1).unflatten(-1, (3, 3))


class CameraEncoder(nn.Module):
    """Pose encodings of known cameras to the camera tokens that replace the learned ones."""

    def __init__(self, width: int, config: CameraConfig):
        super().__init__()
        self.embed = GeluMlp(ENCODING, width // 2, width)
        self.input_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, config.heads, eps=1e-5) for _ in range(config.encoder_depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, encoding: Float[Tensor, "B V 9"]) -> Float[Tensor, "B V C"]:
        tokens = self.input_norm(self.embed(encoding.to(self.norm.weight.dtype)))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class CameraDecoder(nn.Module):
    """Camera token of the last level to a pose encoding; fields of view are >= 0, the quaternion is not normalised."""

    def __init__(self, width: int):
        super().__init__()
        self.first = Linear(width, width)
        self.second = Linear(width, width)
        self.translation = Linear(width, 3)
        self.quaternion = Linear(width, 4)
        self.fov = Linear(width, 2)

    def forward(self, token: Float[Tensor, "B V D"]) -> Float[Tensor, "B V 9"]:
        hidden = F.relu(self.second(F.relu(self.first(token.to(self.first.weight.dtype)))))
        return torch.cat([self.translation(hidden), self.quaternion(hidden), F.relu(self.fov(hidden))], -1).float()
