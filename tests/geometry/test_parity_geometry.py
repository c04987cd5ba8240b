"""Against outputs of the official code (facts: API pose normalisation and alignment, SH rotation)."""

import json

import numpy as np
import pytest
import torch
from assets import asset

from da3gs import Cameras
from da3gs.geometry import alignment, spherical_harmonics


def _load(name):
    arrays = np.load(asset(f"parity/{name}.npz"))
    return {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].dtype.kind == "f"}


def test_sh_rotation():
    data = _load("unit_rotate_sh")
    coefficients = data["sh"][..., :16].transpose(1, 2)  # official: [6, colour, K]
    rotated = spherical_harmonics.rotate(coefficients.double(), data["R"].double())
    assert (rotated.transpose(1, 2) - data["out"][..., :16]).abs().max() < 2e-5


@pytest.mark.parametrize("case", ["n4", "n12"])
def test_alignment_of_predicted_to_given_cameras(case):
    """The official alignment looks for predicted_from_given and divides the depth by its scale."""
    data = {key.removeprefix(f"{case}."): value.double() for key, value in _load("unit_api_align").items()}
    count = len(data["w2c"])
    size = {"width": 8, "height": 6}
    given = Cameras(data["w2c"], data["K"], **size)
    predicted = Cameras(data["pred_w2c"], data["K"], **size)
    if count < 10:
        found = alignment.umeyama(given.centers, predicted.centers)
    else:
        first = alignment.umeyama(given.centers, predicted.centers).target_from_source.apply(given.centers)
        threshold = float(np.median(torch.cdist(first, predicted.centers).min(1).values.numpy()))
        found = alignment.ransac_umeyama(
            given.centers,
            predicted.centers,
            threshold=threshold,
            iterations=10,
            sample_size=max(3, (count + 1) // 2),
            seed=42,
        )
    predicted_from_given = found.target_from_source
    depth = data["depth"] / predicted_from_given.scale
    torch.testing.assert_close(depth, data["align_True.depth"], rtol=1e-4, atol=1e-5)
    moved = given.transform(predicted_from_given).cam_from_world
    torch.testing.assert_close(moved, data["align_False.extrinsics"], rtol=1e-4, atol=1e-5)


def test_fixture_has_both_sizes():
    shapes = json.loads(asset("parity/unit_api_align.json").read_text())["arrays"]
    assert shapes["n4.w2c"] == [4, 4, 4] and shapes["n12.w2c"] == [12, 4, 4]
