"""Photographs to a Scene: `reconstruct` and its parts. Writes no files, parses no arguments."""

from da3gs.pipeline.pose_check import PoseCheck, check_poses, reinterpret_poses
from da3gs.pipeline.reconstruction import ReconstructConfig, reconstruct

__all__ = ["PoseCheck", "ReconstructConfig", "check_poses", "reconstruct", "reinterpret_poses"]
