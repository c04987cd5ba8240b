"""How large and how many: sizes and views of a run, by model, input and free memory."""

from typing import TYPE_CHECKING

import torch

from da3gs.images import DEFAULT_SIZE_PX
from da3gs.model.da3_model import DA3Model
from da3gs.pipeline.memory_plan import MemoryPlan, free_memory, plan_memory
from da3gs.pipeline.report import Report
from da3gs.pipeline.sources import Source, thinned

if TYPE_CHECKING:
    from da3gs.pipeline.reconstruction import ReconstructConfig

# Peak of placing splats, filtering and rendering them per pixel of the input (about 550 measured without a head).
_BYTES_PER_PIXEL = 700


def splat_size(source: Source, model: DA3Model, config: "ReconstructConfig") -> int | None:
    """Longest side of the images to place splats from, if that is more than the network works on."""
    asked = config.splat_size_px or config.size_px or DEFAULT_SIZE_PX
    if released_head(model) or config.method != "upper_bound_resize":  # other methods crop at will
        return None
    wanted = min(asked, max(max(source.size(view)) for view in range(len(source))))
    return wanted if wanted > (config.size_px or model.config.size_px) else None


def released_head(model: DA3Model) -> bool:
    """Whether the model's Gaussian head places splats by itself, not as corrections of the geometric prior."""
    head = model.network.gs_head
    return head is not None and not head.config.residual


def fitted(
    source: Source, model: DA3Model, config: "ReconstructConfig", splat_size_px: int | None, report: Report
) -> tuple[Source, int]:
    """Views and size that fit into the memory that is free."""
    width, height = source.size(0)
    aspect = min(width, height) / max(width, height)
    asked = config.size_px or model.config.size_px
    longest = asked if config.method.startswith("upper") else round(asked / aspect)
    area = 1.0 if splat_size_px is None else (splat_size_px / longest) ** 2
    plan = plan_memory(
        lambda v, h, w: model.estimate_memory(v, h, w) + round(v * h * w * area) * _BYTES_PER_PIXEL,
        views=len(source),
        size_px=longest,
        aspect=aspect,
        free_bytes=free_with_weights(model),
        when_tight=config.when_memory_tight,
    )
    size_px = plan.size_px if config.method.startswith("upper") else round(plan.size_px * aspect)
    return _lowered(source, plan, report), asked if plan.changed is None else size_px


def free_with_weights(model: DA3Model) -> int | None:
    """Free bytes on the device of a model plus those of its weights, which are in memory and which estimates count."""
    free = free_memory(model.device)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.network.parameters())
    return None if free is None else free + weights


def fitted_without_network(
    source: Source, config: "ReconstructConfig", device: torch.device, report: Report
) -> tuple[Source, int]:
    """Views and size of measured depth that fit into the memory that is free."""
    width, height = source.size(0)
    asked = min(config.size_px or DEFAULT_SIZE_PX, max(width, height))  # pictures are not enlarged
    plan = plan_memory(
        lambda v, h, w: v * h * w * _BYTES_PER_PIXEL,
        views=len(source),
        size_px=asked,
        aspect=min(width, height) / max(width, height),
        free_bytes=free_memory(device),
        when_tight=config.when_memory_tight,
    )
    return _lowered(source, plan, report), plan.size_px


def _lowered(source: Source, plan: MemoryPlan, report: Report) -> Source:
    """The views of a plan, which the report explains."""
    report.content["memory"] = {"estimate_bytes": plan.estimate_bytes, "free_bytes": plan.free_bytes}
    if plan.changed is None:
        return source
    report.chose("size_px and views", [plan.size_px, plan.views], plan.changed)
    report.warn(plan.changed, logged=True)
    return thinned(source, plan.views)
