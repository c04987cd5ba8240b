"""nerfstudio's cameras and pictures as the package's own.

Letters: V views, H W pixels.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.cameras.cameras import CameraType
from torch import Tensor

from da3gs.errors import InputError
from da3gs.geometry.cameras import Cameras

# Fisheye images are undistorted by the data manager and are pinhole images from then on.
_PINHOLE = {CameraType.PERSPECTIVE.value, CameraType.FISHEYE.value, CameraType.FISHEYE624.value}


def cameras_from_nerfstudio(cameras: NerfstudioCameras) -> Cameras:
    """Pinhole cameras of V views; nerfstudio holds camera-to-world with OpenGL axes and pixel centres at 0.5, as here.

    Raises:
        InputError: Cameras that are no pinholes (equirectangular, orthographic, ...).
    """
    cameras = cameras.flatten() if cameras.camera_to_worlds.ndim != 3 else cameras
    if cameras.camera_type is not None:
        kinds = set(cameras.camera_type.flatten().tolist()) - _PINHOLE
        if kinds:
            names = ", ".join(CameraType(kind).name.lower() for kind in sorted(kinds))
            raise InputError(f"Gaussians are rendered by pinhole cameras; got {names}: choose a perspective camera")
    poses = cameras.camera_to_worlds
    bottom = poses.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(poses), 1, 4)
    world_from_cam = torch.cat([poses, bottom], 1)
    K = cameras.get_intrinsics_matrices().to(poses)
    return Cameras.from_opengl(world_from_cam, K, cameras.width.flatten().long(), cameras.height.flatten().long())


def picture(batch: dict[str, Any], background: Float[Tensor, "3"]) -> Float[Tensor, "H W 3"]:
    """The photograph of a batch in [0, 1], on `background` where it is transparent."""
    image = batch["image"]
    image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    if image.shape[-1] == 4:
        alpha = image[..., 3:]
        return image[..., :3] * alpha + (1 - alpha) * background.to(image)
    return image[..., :3]


def valid_pixels(batch: dict[str, Any]) -> Bool[Tensor, "H W"] | None:
    """Where the photograph counts: inside its mask and not transparent; None stands for everywhere."""
    valid = None
    if "mask" in batch:
        valid = batch["mask"][..., 0] > 0
    if batch["image"].shape[-1] == 4:
        opaque = batch["image"][..., 3] > (127 if batch["image"].dtype == torch.uint8 else 0.5)
        valid = opaque if valid is None else valid.to(opaque.device) & opaque
    return valid
