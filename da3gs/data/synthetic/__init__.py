"""Procedural scenes with exact geometry: unlimited training and test data without downloads."""

from da3gs.data.synthetic.builder import SyntheticScene
from da3gs.data.synthetic.camera_paths import MOTIONS, sample_cameras
from da3gs.data.synthetic.photo import PhotoSettings
from da3gs.data.synthetic.scene import (
    HELD_OUT_STYLES,
    STYLES,
    TRAIN_STYLES,
    SyntheticViews,
    covisibility,
    make_sample,
    make_scene,
    render_views,
)

__all__ = [
    "HELD_OUT_STYLES",
    "MOTIONS",
    "STYLES",
    "TRAIN_STYLES",
    "PhotoSettings",
    "SyntheticScene",
    "SyntheticViews",
    "covisibility",
    "make_sample",
    "make_scene",
    "render_views",
    "sample_cameras",
]
