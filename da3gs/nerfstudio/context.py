"""The feed-forward start: context views of the training set in, Gaussians in nerfstudio's frame out.

    training cameras ─► a few context views ─► network ─► depth ─► refined by the pictures ─► one Gaussian per pixel
            └─► views beside them, to match with ─────────────────────────┘                          │
                                                                      selection ◄─ masks, filters, budget

Letters: V context views, H W pixels of the processed images, N selected Gaussians.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from da3gs.data.view_choice import evenly_spread, farthest_views
from da3gs.errors import InputError
from da3gs.fusion import FilterConfig, filter_pixels, keep_budget
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.images import Views, prepare_views
from da3gs.model.da3_model import DA3Model
from da3gs.model.scene_prediction import ScenePrediction
from da3gs.nerfstudio.cameras import cameras_from_nerfstudio, picture, valid_pixels
from da3gs.pipeline.depth_scale import through_keypoints
from da3gs.pipeline.fitting import released_head
from da3gs.pipeline.keypoint_points import keypoint_points
from da3gs.pipeline.surface import Surface, enlarged, placed, predicted_surface, refined, stereo_config
from da3gs.rendering import RenderConfig
from da3gs.stereo import StereoConfig, matching_views

logger = logging.getLogger(__name__)

# Training moves a misplaced Gaussian, but nothing ever fills a hole: only what cannot be rendered is dropped, and where
# the pictures could tell, what they contradict.
FILTERS = FilterConfig(confidence=0, sky=False, border=0, edges=False, consistency=0, overlap=0)
REFINED_FILTERS = FilterConfig(confidence=0, sky=False, border=0, overlap=0)


@dataclass(frozen=True, eq=False)
class ContextViews:
    """The photographs the network sees, as the data manager holds them (undistorted).

    Attributes:
        indices: Of the training images, ascending.
        names: File names.
        images: V tensors [3, H, W] in [0, 1] on the CPU; sizes may differ.
        cameras: In nerfstudio's frame, at the sizes of the images.
        valid: Where a photograph counts; None for everywhere.
        training_cameras: All of them, likewise.
        training_image: A training photograph by its index.
    """

    indices: tuple[int, ...]
    names: tuple[str, ...]
    images: list[Tensor]
    cameras: Cameras
    valid: list[Tensor | None]
    training_cameras: Cameras
    training_image: Callable[[int], Tensor]


@dataclass(frozen=True, eq=False)
class FeedForward:
    """What the network and the pictures say about the context views.

    Attributes:
        prediction: In nerfstudio's frame and scale, at the network's size.
        surface: Depth and splats, at the size splats are placed at.
        selection: Index of every kept Gaussian among one per pixel.
        growth: Factors on their standard deviations: the budget lets the kept ones stand for others.
        gaussians: The kept ones, grown.
    """

    prediction: ScenePrediction
    surface: Surface
    selection: Int64[Tensor, " N"]
    growth: Float[Tensor, "N 3"]
    gaussians: Gaussians


def choose_views(cameras: Cameras, count: int, strategy: Literal["farthest", "evenly"]) -> list[int]:
    """Indices of at most `count` cameras, ascending; deterministic."""
    if count < 1:
        raise InputError(f"--pipeline.model.context-views must be >= 1; got {count}")
    if strategy == "evenly":
        return evenly_spread(len(cameras), count)
    return farthest_views(cameras, count)


def read_context(datamanager: Any, *, count: int, strategy: Literal["farthest", "evenly"]) -> ContextViews:
    """Context views of the training set.

    Args:
        datamanager: A FullImageDatamanager; its images are read (and undistorted) on the way, its cameras after that.
    """
    cached = datamanager.cached_train
    dataset = datamanager.train_dataset
    cameras = cameras_from_nerfstudio(dataset.cameras.to("cpu"))
    indices = choose_views(cameras, count, strategy)
    black = torch.zeros(3)

    def image(index: int) -> Tensor:
        return picture(cached[index], black).cpu().permute(2, 0, 1).contiguous()

    return ContextViews(
        tuple(indices),
        tuple(dataset.image_filenames[index].name for index in indices),
        [image(index) for index in indices],
        cameras[indices],
        [valid_pixels(cached[index]) for index in indices],
        cameras,
        image,
    )


@torch.no_grad()
def feed_forward(
    model: DA3Model,
    context: ContextViews,
    *,
    size_px: int,
    max_gaussians: int,
    sh_degree: int,
    refine_depth: bool = True,
) -> FeedForward:
    """Run the network once and keep the Gaussians that can be rendered, within masks and budget.

    Args:
        size_px: Longest side of the pictures splats are placed from; networks made for less see them smaller.
        refine_depth: Let keypoints and the pictures refine the depth between the given cameras.

    Raises:
        InputError: Nothing is left, or the model places no Gaussians.
    """
    released = released_head(model)
    network_px = size_px if released else min(size_px, model.config.size_px)
    prediction = model.predict(context.images, context.cameras, size_px=network_px, refine_scale=True)
    if prediction.gaussians is None or prediction.cameras is None:
        raise InputError(f"{model.config.name} places no Gaussians for these views; use an any-view model (da3-base)")
    surface = predicted_surface(prediction)
    if network_px < size_px:
        large = prepare_views(context.images, size_px=size_px, names=context.names)
        # Views of several sizes are cropped to what they share, at each size by itself.
        if large.size != surface.views.size and _same_frame(large, surface.views):
            surface = enlarged(surface, large.to(surface.depth.device))
    if refine_depth and not released:
        points = keypoint_points(context.images, prediction.views, prediction.cameras, prediction.depth)
        bent = through_keypoints(surface.depth, surface.cameras, points)
        if bent is not surface.depth:
            surface = replace(surface, depth=bent, gaussians=None)
        surface = _refined(surface, context, stereo_config(model.config.name))
    if surface.gaussians is None:
        # A residual head corrects the depth the network predicts.
        surface = placed(surface, head=surface.confirmed is None)
    assert surface.gaussians is not None
    keep, records = filter_pixels(
        surface.gaussians,
        surface.depth,
        surface.cameras,
        confirmed=surface.confirmed,
        config=FILTERS if surface.confirmed is None else REFINED_FILTERS,
    )
    keep &= _processed_masks(context.valid, surface.views).to(keep.device).flatten()
    selection = keep.nonzero()[:, 0]
    if len(selection) == 0:
        steps = ", ".join(f"{record.name} {record.before - record.after}" for record in records)
        raise InputError(f"no Gaussian of the context views is left after filtering (dropped: {steps})")
    selection, growth = _budget(surface.gaussians, selection, surface.cameras, max_gaussians)
    logger.info("%d of %d Gaussians kept", len(selection), len(keep))
    gaussians = with_growth(surface.gaussians[selection], growth).with_sh_degree(sh_degree)
    return FeedForward(prediction, surface, selection, growth, gaussians)


def _same_frame(large: Views, small: Views) -> bool:
    """Whether both show the full photographs, uncropped."""
    return all(
        bool((views.crop_left_top == 0).all()) and bool((views.resized_size == torch.tensor(views.size)).all())
        for views in (large, small)
    )


def _refined(surface: Surface, context: ContextViews, config: StereoConfig) -> Surface:
    """Depth refined by the training photographs beside the context views."""
    width, height = surface.views.size
    everyone = context.training_cameras.scaled(width=width, height=height).to(torch.float32)
    typical = surface.depth.flatten(1).median(1).values.cpu()
    matched = matching_views(surface.cameras.to("cpu"), typical, everyone, config.sources, list(context.indices))
    beside = sorted({index for sources in matched for index in sources})
    if not beside:
        return surface
    pictures = [F.interpolate(context.training_image(index)[None], (height, width), mode="area")[0] for index in beside]
    place = {index: number for number, index in enumerate(beside)}
    result = refined(
        surface,
        sources=torch.stack(pictures),
        source_cameras=everyone[beside],
        own=[place.get(index) for index in context.indices],
        config=config,
    )
    if result.confirmed is None:
        return surface
    share = float(result.confirmed.float().mean())
    logger.info("depth refined with %d photographs; other views confirm %.0f %% of it", len(beside), 100 * share)
    return result


def with_growth(gaussians: Gaussians, growth: Float[Tensor, "N 3"]) -> Gaussians:
    """Gaussians with their standard deviations multiplied; gradients flow."""
    means, quats, scales, opacities, sh = gaussians.tensors()
    return Gaussians.unchecked(means, quats, scales * growth, opacities, sh)


def _budget(
    gaussians: Gaussians, selection: Int64[Tensor, " N"], cameras: Cameras, count: int
) -> tuple[Tensor, Tensor]:
    """Which of the selected Gaussians `keep_budget` keeps, and how much it lets each grow."""
    candidates = gaussians[selection]
    # Colours have no part in the choice, so their place can carry each Gaussian's number (exact in two float32).
    number = torch.arange(len(selection), device=selection.device)
    label = torch.stack([number // 4096, number % 4096, torch.zeros_like(number)], -1).to(candidates.sh)[:, None]
    labelled = Gaussians.unchecked(*candidates.tensors()[:4], label)
    kept, _ = keep_budget(labelled, cameras, count, RenderConfig(depth=False))
    rows = kept.sh[:, 0].round().long()
    chosen = rows[:, 0] * 4096 + rows[:, 1]
    return selection[chosen], kept.scales / candidates.scales[chosen]


def _processed_masks(valid: list[Tensor | None], views: Views) -> Bool[Tensor, "V H W"]:
    """Masks of the photographs at the processed size, by the record of resizing and cropping."""
    width, height = views.size
    masks = torch.ones(len(views), height, width, dtype=torch.bool)
    for view, mask in enumerate(valid):
        if mask is not None:
            resized_width, resized_height = views.resized_size[view].tolist()
            left, top = views.crop_left_top[view].tolist()
            resized = F.interpolate(mask.cpu()[None, None].float(), (resized_height, resized_width), mode="area")
            masks[view] = resized[0, 0, top : top + height, left : left + width] > 0.5
    return masks


def typical_depth(gaussians: Gaussians, cameras: Cameras) -> Float[Tensor, ""]:
    """Median distance from the centre of the cameras to the Gaussians: the size of the scene."""
    center = cameras.centers.to(gaussians.means).mean(0)
    return (gaussians.means - center).norm(dim=1).median()
