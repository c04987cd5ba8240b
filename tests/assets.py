"""Optional test data beside the checkout: real photographs, parity fixtures, reference weights."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("DA3GS_TEST_ASSETS", Path(__file__).resolve().parents[2] / "shared"))


def asset(relative: str) -> Path:
    """Path of a test asset, or skip the calling test with the reason."""
    path = ROOT / relative
    if not path.exists():
        pytest.skip(f"test asset {relative} not found under {ROOT} (set DA3GS_TEST_ASSETS)", allow_module_level=True)
    return path
