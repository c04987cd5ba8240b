"""Keypoints of a picture and their descriptors: OpenCV's SIFT, in this package's pixel convention.

Letters: N keypoints, H W pixels.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from da3gs.geometry.conventions import PIXEL_CENTER_PX


@dataclass(frozen=True, eq=False)
class Keypoints:
    """N keypoints in a fixed order.

    Attributes:
        xy: [N, 2] pixels; the centre of the first pixel is at 0.5.
        scale: [N] pixels.
        angle: [N] radians.
        descriptors: [N, 128] unit vectors: square roots of SIFT's histograms, compared by the Hellinger kernel
            (RootSIFT; Arandjelovic and Zisserman, CVPR 2012).
    """

    xy: Float32[np.ndarray, "N 2"]
    scale: Float32[np.ndarray, " N"]
    angle: Float32[np.ndarray, " N"]
    descriptors: Float32[np.ndarray, "N 128"]

    def __len__(self) -> int:
        return len(self.xy)


def find_keypoints(grey: UInt8[np.ndarray, "H W"], most: int = 4096, *, contrast: float = 0.02) -> Keypoints:
    """SIFT keypoints of a grey picture, the `most` strongest; none where there is no texture.

    Args:
        contrast: Below it a keypoint is dropped (OpenCV's own default is 0.04; walls and skies have little).
    """
    import cv2

    found, histograms = cv2.SIFT.create(most, contrastThreshold=contrast).detectAndCompute(grey, None)
    if histograms is None:
        nothing = np.empty(0, np.float32)
        return Keypoints(np.empty((0, 2), np.float32), nothing, nothing, np.empty((0, 128), np.float32))
    values = np.array([(*k.pt, k.size / 2, np.deg2rad(k.angle)) for k in found], dtype=np.float32)
    share = histograms / np.maximum(histograms.sum(1, keepdims=True), 1e-12)
    return Keypoints(values[:, :2] + np.float32(PIXEL_CENTER_PX), values[:, 2], values[:, 3], np.sqrt(share))
