"""Target cameras turned and shifted until their renders fit their pictures.

Poses found without the truth differ from it by more than one similarity, so renders from the true target cameras are
displaced, and displaced pictures say little about the splats. As in the evaluations of AnySplat and ZipSplat, each
target's own pose is optimised by the render, the splats stay.

Letters: T targets, H W pixels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import rigid_from_twist
from da3gs.rendering import RenderConfig, render


@dataclass(frozen=True)
class OptimiseConfig:
    """How (defaults of ZipSplat's evaluation).

    Attributes:
        steps: At most.
        learning_rate: In radians, and in shares of the typical distance to the splats.
        patience: Steps without improvement after which it stops.
        lpips_weight: Of LPIPS beside the mean squared error, where a network is given.
    """

    steps: int = 200
    learning_rate: float = 5e-3
    patience: int = 5
    lpips_weight: float = 0.05


def optimised_poses(
    gaussians: Gaussians,
    cameras: Cameras,
    pictures: Float[Tensor, "T 3 H W"],
    config: OptimiseConfig | None = None,
    *,
    lpips: nn.Module | None = None,
) -> Cameras:
    """The cameras, each with the pose of the lowest loss that was met; never worse than it was.

    Args:
        gaussians: Fixed.
        cameras: Posed, of the size of the pictures.
        pictures: In [0, 1].
        config: Defaults to ``OptimiseConfig()``.
        lpips: Adds its distance to the loss.
    """
    config = config or OptimiseConfig()
    gaussians = gaussians.detach()
    poses = []
    for view in range(len(cameras)):
        camera = cameras[view].to(gaussians.means.device)
        target = pictures[view : view + 1].to(gaussians.means)
        poses.append(_optimised(gaussians, camera, target, config, lpips))
    return cameras.with_poses(torch.cat(poses).to(cameras.K))


def _optimised(
    gaussians: Gaussians, camera: Cameras, target: Tensor, config: OptimiseConfig, lpips: nn.Module | None
) -> Float[Tensor, "1 4 4"]:
    start = camera.cam_from_world
    assert start is not None
    unit = _typical_distance(gaussians, camera)
    twist = torch.zeros(6, device=start.device, requires_grad=True)  # rotation, then translation in units
    optimizer = torch.optim.AdamW([twist], lr=config.learning_rate, weight_decay=0)
    best, best_pose, waited = float("inf"), start, 0
    for _ in range(config.steps):
        pose = _moved(start, twist, unit)
        out = render(gaussians, camera.with_poses(pose), RenderConfig(antialiased=True, depth=False))
        rendered = out.rgb.movedim(-1, 1)  # type: ignore[union-attr]  # one camera, one size
        loss = (rendered - target).square().mean()
        if lpips is not None:
            loss = loss + config.lpips_weight * lpips(rendered.clamp(0, 1), target).mean()
        value = float(loss.detach())
        if value < best:
            best, best_pose, waited = value, pose.detach(), 0
        else:
            waited += 1
            if waited >= config.patience:
                break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best_pose


def _moved(pose: Float[Tensor, "1 4 4"], twist: Float[Tensor, " 6"], unit: float) -> Float[Tensor, "1 4 4"]:
    """exp(twist) pose: the motion in the camera's frame, its translation in units."""
    return rigid_from_twist(torch.cat([twist[:3], unit * twist[3:]])) @ pose


def _typical_distance(gaussians: Gaussians, camera: Cameras) -> float:
    """Median z-depth of the Gaussians in front of the camera."""
    assert camera.cam_from_world is not None
    pose = camera.cam_from_world[0].to(gaussians.means)
    depth = gaussians.means @ pose[2, :3] + pose[2, 3]
    return float(depth[depth > 0].median()) if (depth > 0).any() else 1.0
