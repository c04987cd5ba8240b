"""Which splats of a prediction deserve to stay: filters over pixels, and a budget over Gaussians.

    invalid ─► confidence ─► sky ─► border ─► flying pixels ─► contradicted ─► repeated ─► budget
    (not a number, no depth)         (depth edges)   (other views see through)   │   (sum of T alpha)
                                                             (another view shows it better)

Every filter says how many it dropped, whether or not it was on. Beside them: one exposure and one tone for all
pictures, and holes filled between the surfaces that stay.
"""

from da3gs.fusion.across_views import contradicted, repeated, single_layer
from da3gs.fusion.budget import keep_budget
from da3gs.fusion.exposure import blended, evened_out, exposures
from da3gs.fusion.filling import fill_holes
from da3gs.fusion.filters import (
    FilterConfig,
    FilterRecord,
    border,
    doubtful,
    filter_pixels,
    flying_pixels,
    usable,
)

__all__ = [
    "FilterConfig",
    "FilterRecord",
    "blended",
    "border",
    "contradicted",
    "doubtful",
    "evened_out",
    "exposures",
    "fill_holes",
    "filter_pixels",
    "flying_pixels",
    "keep_budget",
    "repeated",
    "single_layer",
    "usable",
]
