"""Pinhole cameras: poses, intrinsics and image sizes that are scaled, cropped and moved together.

Letters: V views, H W pixels, N points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from da3gs.errors import InputError
from da3gs.geometry.conventions import OPENCV_FROM_OPENGL, camera_rays, rigid_inverse
from da3gs.geometry.similarity import Similarity

_ROTATION_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False, init=False)
class Cameras:
    """V pinhole cameras. OpenCV axes; pixel (0, 0) is centred at (0.5, 0.5). Gradients flow to poses and intrinsics.

    Attributes:
        cam_from_world: [V, 4, 4] rigid transforms, or None when only the intrinsics are known.
        K: [V, 3, 3] intrinsics in pixels of the image of size `width` x `height`.
        width, height: [V] image sizes in pixels (int64, CPU); an int stands for all views.
        distortion: Optional record [V, 8] of the lens the photographs were taken with (k1 k2 p1 p2 k3 k4 k5 k6, OpenCV
            order). Readers undistort images, so no method here applies it.
    """

    cam_from_world: Float[Tensor, "V 4 4"] | None
    K: Float[Tensor, "V 3 3"]
    width: Int64[Tensor, " V"]
    height: Int64[Tensor, " V"]
    distortion: Float[Tensor, "V 8"] | None

    def __init__(self, cam_from_world, K, width, height, distortion=None):
        K = torch.as_tensor(K)
        if K.ndim != 3 or K.shape[1:] != (3, 3) or not K.is_floating_point() or len(K) == 0:
            raise InputError(f"K must be a float tensor [V, 3, 3] with V >= 1; got {_describe(K)}")
        views = len(K)
        if cam_from_world is not None:
            cam_from_world = torch.as_tensor(cam_from_world)
            if cam_from_world.shape != (views, 4, 4) or not cam_from_world.is_floating_point():
                raise InputError(
                    f"cam_from_world must be a float tensor [{views}, 4, 4], one per K; got {_describe(cam_from_world)}"
                )
            cam_from_world = cam_from_world.to(K)
        if distortion is not None:
            distortion = torch.as_tensor(distortion).to(K)
            if distortion.shape != (views, 8):
                raise InputError(f"distortion must be [{views}, 8]; got {_describe(distortion)}")
        object.__setattr__(self, "cam_from_world", cam_from_world)
        object.__setattr__(self, "K", K)
        object.__setattr__(self, "width", _sizes(width, views, "width"))
        object.__setattr__(self, "height", _sizes(height, views, "height"))
        object.__setattr__(self, "distortion", distortion)
        _check_intrinsics(K.detach())
        if cam_from_world is not None:
            _check_poses(cam_from_world.detach())

    # ---------------------------------------------------------------- collection

    def __len__(self) -> int:
        return len(self.K)

    def __getitem__(self, index) -> "Cameras":
        """Cameras of an int, slice, list of ints, index or boolean tensor; always a collection, never a bare camera."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"camera {index} of {len(self)}")
            index = [index]
        pick = torch.arange(len(self))[index]
        on_device = pick.to(self.K.device)
        return Cameras(
            None if self.cam_from_world is None else self.cam_from_world[on_device],
            self.K[on_device],
            self.width[pick],
            self.height[pick],
            None if self.distortion is None else self.distortion[on_device],
        )

    @staticmethod
    def cat(parts: Sequence["Cameras"]) -> "Cameras":
        """One collection of all views; poses are kept only when every part has them."""
        posed = all(part.cam_from_world is not None for part in parts)
        if not posed and any(part.cam_from_world is not None for part in parts):
            raise InputError("cannot join cameras with and without poses; drop the poses first (without_poses())")
        distorted = any(part.distortion is not None for part in parts)
        poses = [part.cam_from_world for part in parts if part.cam_from_world is not None]
        return Cameras(
            torch.cat(poses) if posed else None,
            torch.cat([part.K for part in parts]),
            torch.cat([part.width for part in parts]),
            torch.cat([part.height for part in parts]),
            torch.cat(
                [part.K.new_zeros(len(part), 8) if part.distortion is None else part.distortion for part in parts]
            )
            if distorted
            else None,
        )

    def to(self, *args, **kwargs) -> "Cameras":
        """Move to a device or float dtype, as `torch.Tensor.to`; image sizes stay on the CPU."""
        return Cameras(
            None if self.cam_from_world is None else self.cam_from_world.to(*args, **kwargs),
            self.K.to(*args, **kwargs),
            self.width,
            self.height,
            None if self.distortion is None else self.distortion.to(*args, **kwargs),
        )

    def detach(self) -> "Cameras":
        return replace_poses(
            self, None if self.cam_from_world is None else self.cam_from_world.detach(), self.K.detach()
        )

    def without_poses(self) -> "Cameras":
        """The same intrinsics and sizes with unknown poses."""
        return replace_poses(self, None, self.K)

    def with_poses(self, cam_from_world: Float[Tensor, "V 4 4"]) -> "Cameras":
        """The same intrinsics and sizes at other poses."""
        return replace_poses(self, cam_from_world, self.K)

    # ---------------------------------------------------------------- sizes

    @property
    def same_size(self) -> bool:
        return bool((self.width == self.width[0]).all() and (self.height == self.height[0]).all())

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, common to all views; InputError when they differ."""
        if not self.same_size:
            sizes = sorted({(int(w), int(h)) for w, h in zip(self.width, self.height, strict=True)})
            raise InputError(f"all views must have one image size here; got {sizes}; resize them or go view by view")
        return int(self.width[0]), int(self.height[0])

    def scaled(self, *, width, height) -> "Cameras":
        """Cameras of the images resized to `width` x `height` px (ints or [V]); undone by scaling back.

        Row 0 of K is multiplied by new / old width and row 1 by new / old height. With pixel centres at index + 0.5
        this is exact: no half-pixel term.
        """
        new_width, new_height = _sizes(width, len(self), "width"), _sizes(height, len(self), "height")
        factors = torch.ones(len(self), 3, 1, dtype=torch.float64)
        factors[:, 0, 0] = new_width.double() / self.width
        factors[:, 1, 0] = new_height.double() / self.height
        return Cameras(self.cam_from_world, self.K * factors.to(self.K), new_width, new_height, self.distortion)

    def cropped(self, *, left, top, width, height) -> "Cameras":
        """Cameras of the window starting at pixel (left, top); ints or [V].

        A crop by (left, top) is undone by ``cropped(left=-left, top=-top, width=old_width, height=old_height)``.
        """
        shift = torch.zeros(len(self), 3, 3, dtype=self.K.dtype)
        shift[:, 0, 2] = -torch.as_tensor(left)
        shift[:, 1, 2] = -torch.as_tensor(top)
        return Cameras(self.cam_from_world, self.K + shift.to(self.K), width, height, self.distortion)

    @property
    def normalized_K(self) -> Float[Tensor, "V 3 3"]:
        """Intrinsics for an image that spans [0, 1] in both axes."""
        size = torch.stack([self.width, self.height, torch.ones_like(self.width)], -1)
        return self.K / size.to(self.K)[..., None]

    @staticmethod
    def from_normalized_K(cam_from_world, normalized_K: Float[Tensor, "V 3 3"], width, height) -> "Cameras":
        """Cameras of intrinsics given for an image that spans [0, 1] in both axes."""
        unit = Cameras(cam_from_world, normalized_K, 1, 1)
        return unit.scaled(width=width, height=height)

    @property
    def fov(self) -> Float[Tensor, "V 2"]:
        """Horizontal and vertical field of view in radians, for a centred principal point: 2 atan(size / (2 f))."""
        focal = torch.stack([self.K[:, 0, 0], self.K[:, 1, 1]], -1)
        size = torch.stack([self.width, self.height], -1).to(focal)
        return 2 * torch.atan2(size / 2, focal)

    # ---------------------------------------------------------------- poses

    @property
    def world_from_cam(self) -> Float[Tensor, "V 4 4"]:
        return rigid_inverse(self._poses())

    @property
    def centers(self) -> Float[Tensor, "V 3"]:
        """Camera centres in the world frame."""
        poses = self._poses()
        return -(poses[:, :3, :3].transpose(1, 2) @ poses[:, :3, 3:]).squeeze(-1)

    @property
    def look_directions(self) -> Float[Tensor, "V 3"]:
        """Unit vectors along the optical axes (+z) in the world frame."""
        return self._poses()[:, 2, :3]

    @staticmethod
    def from_opengl(world_from_cam_opengl: Float[Tensor, "V 4 4"], K, width, height, distortion=None) -> "Cameras":
        """From camera-to-world matrices with OpenGL or Blender axes (x right, y up, z backward)."""
        flip = OPENCV_FROM_OPENGL.to(world_from_cam_opengl)
        return Cameras(rigid_inverse(world_from_cam_opengl @ flip), K, width, height, distortion)

    def to_opengl(self) -> Float[Tensor, "V 4 4"]:
        """Camera-to-world matrices with OpenGL axes; the inverse of `from_opengl`."""
        return self.world_from_cam @ OPENCV_FROM_OPENGL.to(self.K)

    def transform(self, b_from_a: Similarity) -> "Cameras":
        """Cameras of the scene moved by a similarity; depths seen by them grow by its scale.

        x_b = s R x_a + t gives cam_from_b = [Q | s T - Q t] with Q = R_cam R^T and T the old translation.
        """
        poses = self._poses()
        rotation, shift = b_from_a.rotation.to(poses), b_from_a.translation.to(poses)
        moved = poses.clone()
        moved[:, :3, :3] = poses[:, :3, :3] @ rotation.T
        moved[:, :3, 3] = b_from_a.scale.to(poses) * poses[:, :3, 3] - moved[:, :3, :3] @ shift
        return self.with_poses(moved)

    # ---------------------------------------------------------------- projection

    def project(
        self, points_world: Float[Tensor, "N 3"] | Float[Tensor, "V N 3"]
    ) -> tuple[Float[Tensor, "V N 2"], Float[Tensor, "V N"]]:
        """Pixel positions and z-depths of world points in every view.

        Points behind a camera have z <= 0; their pixel position is meaningless and at z = 0 infinite. Mask by z.
        """
        poses = self._poses()
        points_cam = points_world @ poses[:, :3, :3].transpose(1, 2) + poses[:, None, :3, 3]
        depth = points_cam[..., 2]
        pixels = points_cam @ self.K.transpose(1, 2)
        return pixels[..., :2] / pixels[..., 2:], depth

    def camera_rays(self) -> Float[Tensor, "V H W 3"]:
        """K^-1 [u, v, 1] at pixel centres, in camera frames (z component 1)."""
        width, height = self.size
        return camera_rays(torch.linalg.inv(self.K), height, width)

    def rays(self) -> tuple[Float[Tensor, "V H W 3"], Float[Tensor, "V 3"]]:
        """World directions d = R K^-1 [u, v, 1] (not unit: P = origin + z-depth * d) and the camera centres."""
        world_from_cam = self.world_from_cam
        directions = self.camera_rays() @ world_from_cam[:, None, :3, :3].transpose(-1, -2)
        return directions, world_from_cam[:, :3, 3]

    def with_intrinsics(self, other: "Cameras") -> "Cameras":
        """These poses with the intrinsics, sizes and lenses of other cameras."""
        return Cameras(self.cam_from_world, other.K, other.width, other.height, other.distortion)

    def unproject(self, depth: Float[Tensor, "V H W"]) -> Float[Tensor, "V H W 3"]:
        """World points of z-depth maps, at pixel centres."""
        self._check_map(depth)
        directions, origins = self.rays()
        return origins[:, None, None] + depth[..., None] * directions

    def unproject_ray_depth(self, ray_depth: Float[Tensor, "V H W"]) -> Float[Tensor, "V H W 3"]:
        """World points of maps that hold the distance along the unit ray."""
        self._check_map(ray_depth)
        directions, origins = self.rays()
        unit = directions / directions.norm(dim=-1, keepdim=True)
        return origins[:, None, None] + ray_depth[..., None] * unit

    # ---------------------------------------------------------------- checks

    def _poses(self) -> Tensor:
        if self.cam_from_world is None:
            raise InputError("these cameras have intrinsics only; this step needs poses (cam_from_world)")
        return self.cam_from_world

    def _check_map(self, values: Tensor) -> None:
        width, height = self.size
        if values.shape != (len(self), height, width):
            raise InputError(
                f"a map for these cameras must be [{len(self)}, {height}, {width}]; got {tuple(values.shape)}; "
                "scale the cameras or the map first"
            )


def replace_poses(cameras: Cameras, cam_from_world, K) -> Cameras:
    return Cameras(cam_from_world, K, cameras.width, cameras.height, cameras.distortion)


def _describe(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _sizes(value, views: int, name: str) -> Tensor:
    sizes = torch.as_tensor(value).cpu()
    if sizes.is_floating_point() or sizes.dtype == torch.bool:
        raise InputError(f"{name} must be a whole number of pixels; got {value}")
    sizes = sizes.long()
    if sizes.ndim == 0:
        sizes = sizes.expand(views).clone()
    if sizes.shape != (views,):
        raise InputError(f"{name} must be one integer or [{views}]; got {_describe(sizes)}")
    if (sizes <= 0).any():
        raise InputError(f"{name} must be > 0 px; got {int(sizes.min())}")
    return sizes


def _check_intrinsics(K: Tensor) -> None:
    if not torch.isfinite(K).all():
        view = int((~torch.isfinite(K)).flatten(1).any(1).nonzero()[0])
        raise InputError(
            f"K of view {view} holds NaN or infinity; expected focal lengths and principal point in pixels"
        )
    focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], -1)
    if (focal <= 0).any():
        view = int((focal <= 0).any(1).nonzero()[0])
        raise InputError(
            f"K of view {view} is singular: focal lengths must be > 0; got fx {float(focal[view, 0]):g}, "
            f"fy {float(focal[view, 1]):g}"
        )
    expected = torch.tensor([0.0, 0.0, 1.0], dtype=K.dtype, device=K.device)
    if not torch.equal(K[:, 2], expected.expand(len(K), 3)) or K[:, 1, 0].any():
        raise InputError("K must be upper triangular with last row 0 0 1: [[fx, skew, cx], [0, fy, cy], [0, 0, 1]]")


def _check_poses(poses: Tensor) -> None:
    if not torch.isfinite(poses).all():
        view = int((~torch.isfinite(poses)).flatten(1).any(1).nonzero()[0])
        raise InputError(f"cam_from_world of view {view} holds NaN or infinity")
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=poses.dtype, device=poses.device)
    if not torch.allclose(poses[:, 3], bottom.expand(len(poses), 4), atol=1e-6):
        raise InputError("the last row of cam_from_world must be 0 0 0 1 (is the matrix transposed?)")
    rotation = poses[:, :3, :3].double()
    off = (rotation @ rotation.transpose(1, 2) - torch.eye(3, dtype=rotation.dtype, device=rotation.device)).abs()
    worst = off.flatten(1).amax(1)
    if (worst > _ROTATION_TOLERANCE).any():
        view = int(worst.argmax())
        raise InputError(
            f"the 3x3 part of cam_from_world of view {view} is no rotation (R R^T is off the identity by "
            f"{float(worst[view]):.2g}); remove scale or shear from the pose"
        )
    determinant = torch.linalg.det(rotation)
    if (determinant < 0).any():
        view = int((determinant < 0).nonzero()[0])
        raise InputError(
            f"the rotation of view {view} is a mirror (determinant -1); check the axis convention of the pose"
        )
