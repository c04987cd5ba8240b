"""One splat per pixel before anything is dropped: maps of a prediction, at the size splats are placed at.

    prediction ─► larger pictures ─► depth refined by the pictures, one tone (known cameras) ─► splats

Letters: V views, H W pixels, S sources.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from da3gs.errors import InputError
from da3gs.fusion import FilterConfig, blended, border, evened_out, exposures, fill_holes
from da3gs.fusion.filters import SKY_SCORE
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.images import Views
from da3gs.model.gaussian_adapter import gaussians_from_raw
from da3gs.model.scene_prediction import ScenePrediction
from da3gs.pipeline.upsampling import joint_upsample
from da3gs.stereo import StereoConfig, refine_depth, surer_where_confirmed


@dataclass(frozen=True, eq=False)
class Surface:
    """Maps of V views, and the splats they make.

    Attributes:
        views: The processed pictures.
        depth: z-depth in the unit of the cameras; <= 0 is unknown.
        cameras: Posed, at the size of the maps.
        gaussians: One per pixel in (view, row, column) order; None until they are placed.
        unit: Of all lengths.
        confidence, sky: As predicted, or None.
        raw: Output of a residual Gaussian head, or None.
        confirmed: Where other views agree with refined depth; None if it was not refined.
        exposure: [V, 3] how much brighter than all together each picture is, or None.
        blended: The pictures as if exposed alike and in one tone, or None.
    """

    views: Views
    depth: Float[Tensor, "V H W"]
    cameras: Cameras
    gaussians: Gaussians | None
    unit: str
    confidence: Float[Tensor, "V H W"] | None = None
    sky: Float[Tensor, "V H W"] | None = None
    raw: Float[Tensor, "V H W 38"] | None = None
    confirmed: Bool[Tensor, "V H W"] | None = None
    exposure: Float[Tensor, "V 3"] | None = None
    blended: Float[Tensor, "V 3 H W"] | None = None

    @property
    def colors(self) -> Float[Tensor, "V 3 H W"]:
        """Colours of splats: the pictures, as if exposed alike where that is known."""
        return self.views.images if self.blended is None else self.blended

    @property
    def splat_confidence(self) -> Float[Tensor, "V H W"] | None:
        """Confidence to place splats by: highest where other views confirm the depth."""
        if self.confirmed is None:
            return self.confidence
        return surer_where_confirmed(self.confidence, self.confirmed)

    @property
    def filter_confidence(self) -> Float[Tensor, "V H W"] | None:
        """Confidence to filter by: as predicted, and at least typical where other views confirm the depth."""
        if self.confidence is None or self.confirmed is None:
            return self.confidence
        typical = self.confidence.flatten(1).median(1).values[:, None, None]
        return torch.where(self.confirmed, torch.maximum(self.confidence, typical), self.confidence)


def predicted_surface(prediction: ScenePrediction) -> Surface:
    """A prediction at its processed size."""
    maps = (prediction.depth, prediction.confidence, prediction.sky)
    if prediction.resized or prediction.cameras is None:
        raise InputError("splats are placed at the processed size, by cameras")
    depth, confidence, sky = maps
    return Surface(
        prediction.views,
        depth,
        prediction.cameras,
        prediction.gaussians,
        prediction.unit,
        confidence,
        sky,
        prediction.raw_gaussians,
    )


def enlarged(surface: Surface, large: Views) -> Surface:
    """The maps at the size of larger pictures of the same full frames; splats are to be placed anew."""
    small = surface.views
    width, height = large.size

    def upsampled(values):
        return None if values is None else joint_upsample(values, small.images, large.images)

    # The head's corrections are relative to a pixel, its colour and its depth, so they hold at any size.
    raw = surface.raw
    if raw is not None:
        channels = torch.nn.functional.interpolate(raw.movedim(-1, 1), (height, width), mode="bilinear")
        raw = channels.movedim(1, -1)
    return replace(
        surface,
        views=large,
        depth=1 / upsampled(1 / surface.depth),  # inverse depth is linear on planes
        cameras=surface.cameras.scaled(width=width, height=height),
        gaussians=None,
        confidence=upsampled(surface.confidence),
        sky=upsampled(surface.sky),
        raw=raw,
    )


def refined(
    surface: Surface,
    *,
    sources: Float[Tensor, "S 3 h w"] | None = None,
    source_cameras: Cameras | None = None,
    own: list[int | None] | None = None,
    config: StereoConfig | None = None,
) -> Surface:
    """Depth refined by what the pictures say between the cameras; splats are to be placed anew.

    Where no two pictures can be matched (one place, no overlap), the surface as it was.

    Arguments as for `da3gs.stereo.refine_depth`: by default the views are matched with each other.
    """
    found = refine_depth(
        surface.views.images,
        surface.depth,
        surface.cameras,
        sources=sources,
        source_cameras=source_cameras,
        own=own,
        config=config,
    )
    if not any(found.matched):
        return surface
    images = surface.views.images
    exposure = exposures(images, found.depth, surface.cameras, found.confirmed)
    return replace(
        surface,
        depth=found.depth,
        confirmed=found.confirmed,
        exposure=exposure,
        blended=blended(evened_out(images, exposure), found.depth, surface.cameras),
        gaussians=None,
    )


def stereo_config(preset: str) -> StereoConfig:
    """How far predicted depth is trusted where the pictures cannot tell: that of da3-tiny little."""
    return StereoConfig() if preset == "da3-tiny" else StereoConfig.for_good_depth()


def placed(surface: Surface, *, head: bool = True) -> Surface:
    """With one splat per pixel, by the geometric prior and, if `head`, the corrections of a residual head."""
    splats = gaussians_from_raw(
        surface.raw if head else None,
        surface.depth,
        surface.cameras,
        images=surface.colors,
        confidence=surface.splat_confidence,
    )
    return replace(surface, gaussians=splats)


def hole_fillers(surface: Surface, layer: Gaussians, keep: Bool[Tensor, " N"], filters: FilterConfig) -> Gaussians:
    """Splats to add to what filters left of refined depth; none where sky or borders were dropped."""
    assert surface.confirmed is not None
    candidates = ~keep.reshape(surface.depth.shape) & (surface.depth > 0)
    if surface.sky is not None and filters.sky:
        candidates &= surface.sky < SKY_SCORE
    if filters.border:
        candidates &= ~border(surface.depth, filters.border)
    return fill_holes(layer, surface.colors, surface.depth, surface.cameras, candidates, surface.confirmed)
