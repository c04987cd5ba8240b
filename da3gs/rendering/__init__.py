"""Gaussians and cameras to pictures: `render` and the backends behind it."""

from da3gs.rendering.render import (
    RenderConfig,
    RenderOutput,
    clipping_planes,
    contributions,
    render,
    render_features,
)

__all__ = ["RenderConfig", "RenderOutput", "clipping_planes", "contributions", "render", "render_features"]
