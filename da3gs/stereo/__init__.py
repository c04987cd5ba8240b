"""Depth between known cameras: a plane sweep around predicted depth."""

from da3gs.stereo.matching_views import matching_views
from da3gs.stereo.refine import RefinedDepth, StereoConfig, refine_depth, resized_depth, surer_where_confirmed

__all__ = ["RefinedDepth", "StereoConfig", "matching_views", "refine_depth", "resized_depth", "surer_where_confirmed"]
