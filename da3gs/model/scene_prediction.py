"""What `DA3Model.predict` returns: everything about one scene in one frame and one scale."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from torch import Tensor

from da3gs.errors import InputError
from da3gs.gaussians import Gaussians
from da3gs.geometry.alignment import Alignment
from da3gs.geometry.cameras import Cameras
from da3gs.images import Views
from da3gs.model.match_pose import MatchedCameras
from da3gs.model.photometric_scale import PhotometricScale

Unit = Literal["arbitrary", "given", "metres"]
# Lists of [H, W] come only out of `at_original_size`, for inputs of several sizes.
if TYPE_CHECKING:
    Maps = Tensor
else:
    Maps = Float[Tensor, "V H W"] | list[Tensor]


@dataclass(frozen=True, eq=False)
class ScenePrediction:
    """Depth, cameras, rays and Gaussians of V views, all in the same world frame and unit.

    The frame is that of the given cameras if there were any with poses; otherwise the network's own (OpenCV axes, near
    its reference view).

    Attributes:
        depth: [V, H, W] z-depth.
        confidence: [V, H, W] >= 1, larger is surer; None for single-view models.
        cameras: Given or predicted cameras at the size of the maps; None for single-view models without given cameras.
        rays: [V, h, w, 6] on the head's own grid: direction R K^-1 p (not unit) and origin; None unless predicted.
        ray_confidence: [V, h, w].
        sky: [V, H, W] sky score (>= 0.3 is sky); None for models without a sky head.
        gaussians: One per pixel in (view, row, column) order; None without cameras or when not asked for.
        unit: Of all lengths: "metres", "given" (that of the given cameras), or "arbitrary" (one scale per scene).
        views: The processed images and the record of resizing and cropping.
        alignment: How the network's cameras were moved onto given ones; None without given poses.
        photometric: With given poses and `refine_scale`: the scale of depth at which the pictures agree best.
        matched: With cameras from matches: which views are tied together, and by how many.
        raw_gaussians: [V, H, W, 38] output of a residual Gaussian head, to place Gaussians at another size; else None.
        notes: What a user should know about this result, a sentence each.
        resized: Whether the maps are at the size of the originals (`at_original_size`).
    """

    depth: Maps
    confidence: Maps | None
    cameras: Cameras | None
    rays: Float[Tensor, "V h w 6"] | None
    ray_confidence: Float[Tensor, "V h w"] | None
    sky: Maps | None
    gaussians: Gaussians | None
    unit: Unit
    views: Views
    alignment: Alignment | None = None
    photometric: PhotometricScale | None = None
    matched: MatchedCameras | None = None
    raw_gaussians: Float[Tensor, "V H W 38"] | None = None
    notes: tuple[str, ...] = ()
    resized: bool = False

    def at_original_size(self, interpolation: Literal["bilinear", "nearest"] = "bilinear") -> "ScenePrediction":
        """The same prediction with maps and cameras at the size of the input images.

        Maps become lists of [H, W] when the inputs differ in size. Where an input shows more than was processed (centre
        crops), depth and confidence are 0. Rays stay on their grid; Gaussians are in world units and stay as they are.

        Args:
            interpolation: "bilinear" is smooth and mixes depths across edges; "nearest" keeps predicted values.
        """
        if self.resized:
            return self

        def undo(values):
            return None if values is None else self.views.undo_map(values, interpolation=interpolation)

        return replace(
            self,
            depth=undo(self.depth),
            confidence=undo(self.confidence),
            sky=undo(self.sky),
            cameras=None if self.cameras is None else self.views.undo_cameras(self.cameras),
            resized=True,
        )

    @property
    def images(self) -> Float[Tensor, "V 3 H W"]:
        """The processed images in [0, 1], pixel for pixel under the maps."""
        if self.resized:
            raise InputError("images belong to the processed size; read them before at_original_size()")
        return self.views.images
