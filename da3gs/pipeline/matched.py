"""Cameras of pictures that bring none, by what they have in common; see `da3gs.model.match_pose`."""

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from da3gs.data.input_views import turned_upright
from da3gs.model.da3_model import DA3Model
from da3gs.pipeline.report import Report
from da3gs.pipeline.sources import Source

if TYPE_CHECKING:
    from da3gs.pipeline.reconstruction import ReconstructConfig

BY_MATCHES: Final = "matches between views"  # who found the cameras


def with_matched_cameras(
    source: Source, model: DA3Model, size_px: int, config: "ReconstructConfig", report: Report
) -> Source | None:
    """The views that matches tie together, with cameras; the others are left out with a word.

    None when no two views have enough in common.
    """
    prediction = model.predict(
        source.images,
        source.cameras,
        size_px=size_px,
        method=config.method,
        camera_source="matches",
        reference_view=config.reference_view,
        gaussians=False,
        seed=config.seed,
    )
    matched = prediction.matched
    if matched is None or prediction.cameras is None:
        report.warn(
            "no two pictures have enough in common to match, so the cameras are a rough guess of the network; take "
            "more overlapping photographs, give cameras, or try --find-cameras sfm",
            logged=True,
        )
        return None
    keep = matched.sure.nonzero().flatten().tolist()
    why = f"{matched.matches} matches tie {len(keep)} of {len(source)} views together"
    report.chose("cameras", BY_MATCHES, why)
    if len(keep) < len(source):
        names = [name for name, sure in zip(source.names, matched.sure.tolist(), strict=True) if not sure]
        report.warn(
            f"left out for want of overlap: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}", logged=True
        )
    cameras = prediction.views.undo_cameras(prediction.cameras.to("cpu"))
    posed = replace(
        source,
        images=turned_upright(source.images) if source.upright else source.images,
        cameras=cameras,
        upright=False,
        poses_from=BY_MATCHES,
        points=list(matched.points),
    )
    return posed[keep]
