"""The oracle's room as an evaluation scene, and methods that see it exactly."""

import numpy as np
import torch
from oracle import OracleModel, arc, see

from da3gs.evaluate.method import Method
from da3gs.evaluate.scenes import EvaluationScene
from da3gs.geometry.rotations import matrix_from_quat
from da3gs.geometry.similarity import Similarity
from da3gs.images import uint8_from_tensor
from da3gs.pipeline.reconstruction import ReconstructConfig

FRAMES = 9
NETWORK_FROM_WORLD = Similarity(
    0.4, matrix_from_quat(torch.tensor([0.9, 0.1, -0.3, 0.2])), torch.tensor([0.3, -1.0, 2.0])
)


def room(frames: int = FRAMES, name: str = "room", **fields) -> EvaluationScene:
    """Photographs of the room with its true depth."""
    cameras = arc(frames)
    images, depth = see(cameras)
    return EvaluationScene(
        name=name,
        frames=tuple(f"{frame:02d}.png" for frame in range(frames)),
        cameras=cameras,
        picture=lambda frame: uint8_from_tensor(images[frame]),
        depth=lambda frame: depth[frame].numpy(),
        **fields,
    )


class SeesAll(OracleModel):
    """An oracle that knows which frames of the room it is shown by their pictures, and may get depth or poses wrong."""

    def __init__(self, scene: EvaluationScene, depth_factor: float | torch.Tensor = 1.0, twist=None):
        super().__init__(scene.cameras, NETWORK_FROM_WORLD)
        self.scene, self.depth_factor, self.twist = scene, depth_factor, twist
        self.pictures = np.stack([scene.picture(frame) for frame in range(len(scene))]).astype(np.float32)

    def _run(self, views, given, *rest):
        shown = torch.nn.functional.interpolate(views.images, self.pictures.shape[1:3], mode="area") * 255
        errors = [np.abs(self.pictures - image.permute(1, 2, 0).numpy()).mean((1, 2, 3)) for image in shown]
        frames = [int(error.argmin()) for error in errors]
        self.truth = self.scene.cameras[frames]
        out = super()._run(views, given, *rest)
        cameras = out.cameras[0]
        if self.twist is not None and given is None:
            cameras = cameras.with_poses(self.twist[: len(cameras)] @ cameras.cam_from_world)
        return out.__class__(**{**out.__dict__, "depth": out.depth * self.depth_factor, "cameras": [cameras]})


def exact(scene: EvaluationScene, **settings) -> Method:
    """A method whose network is right up to one similarity."""
    model = SeesAll(scene, **settings)
    config = ReconstructConfig(size_px=126, check_poses=False, camera_source="head", refine_depth=False)
    return Method(model, config)
