"""Holes that filters left between surfaces, filled with splats that bridge what is around them.

    layer ─► seen by its own cameras: alpha, depth ─► holes with surface around ─► depth interpolated from there
                                                                                                  │
                            new splats ◄── one layer of them ◄── nobody surely sees through it ◄──┘

Letters: V views, H W pixels, N Gaussians.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from da3gs.fusion.across_views import contradicted, repeated, single_layer
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.model.gaussian_adapter import gaussians_from_raw
from da3gs.rendering import RenderConfig, render
from da3gs.stereo.agreement import bent_to_meet

# Alpha above which a pixel's rendered depth is a surface; below, it is a hole.
_SURFACE = 0.8
# A hole is bridged where this share of a square around it, of this reach as a fraction of the shorter side, is surface.
_SHARE, _REACH = 0.4, 0.08
# Relative depth by which a bridge must clear what others see behind it, and up to which two bridges are one.
_CLEAR, _SAME = 0.05, 0.03


@torch.no_grad()
def fill_holes(
    layer: Gaussians,
    images: Float[Tensor, "V 3 H W"],
    depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    candidates: Bool[Tensor, "V H W"],
    confirmed: Bool[Tensor, "V H W"],
) -> Gaussians:
    """Splats to add to a layer where its own cameras look through it.

    What was dropped had the wrong depth, but showed something; where surfaces are around, something between them is
    nearer the truth than nothing. Runs on the CPU, rendering aside.

    Args:
        layer: What was kept, in the frame of `cameras`.
        images: Colours in [0, 1].
        depth: z-depth in the unit of `cameras`; where confirmed it counts.
        cameras: Posed, at the size of the maps.
        candidates: Dropped pixels with something to show.
        confirmed: Where depth was measured: a bridge in front of that is none.
    """
    bridged, holes = depth.clone(), torch.zeros_like(candidates)
    for view in range(len(depth)):
        if not candidates[view].any():
            continue
        seen = render(layer, cameras[view : view + 1], RenderConfig(antialiased=True))
        alpha, surface = seen.alpha[..., 0].to(depth), seen.depth.reshape(1, *depth.shape[1:]).to(depth)
        known = (alpha > _SURFACE) & (surface > 0)
        hole = (candidates[view] & ~known & (_share_around(known) > _SHARE))[0]
        between = bent_to_meet(torch.ones_like(surface), torch.where(known, surface, 1.0), known)[0]
        bridged[view], holes[view] = torch.where(hole, between, depth[view]), hole
    if not holes.any():
        return layer[:0]
    points = cameras.to(depth.dtype).unproject(bridged)
    holes &= ~contradicted(points, bridged, cameras, _CLEAR, confirmed=confirmed & ~holes)
    splats = gaussians_from_raw(None, bridged, cameras, images=images)
    holes &= ~repeated(splats, bridged, cameras, holes, _SAME)
    return single_layer(splats[holes.flatten()])


def _share_around(known: Bool[Tensor, "V H W"]) -> Float[Tensor, "V H W"]:
    reach = max(1, round(_REACH * min(known.shape[1:])))
    side = 2 * reach + 1
    rows = F.avg_pool2d(known[:, None].float(), (side, 1), stride=1, padding=(reach, 0))
    return F.avg_pool2d(rows, (1, side), stride=1, padding=(0, reach))[:, 0]
