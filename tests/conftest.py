"""Executes every shape annotation of the package during the tests (jaxtyping + beartype)."""

import os
import sys
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

sys.path.insert(0, str(Path(__file__).parent))
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # workers share the cores, before torch counts them
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
settings.register_profile("da3gs", max_examples=25, deadline=None)
settings.load_profile("da3gs")
install_import_hook("da3gs", "beartype.beartype")


@pytest.fixture
def without_shape_checks():
    """For tests of our own shape errors, which the executed annotations would otherwise anticipate."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
