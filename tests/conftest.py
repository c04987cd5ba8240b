"""Executes every shape annotation of the package during the tests (jaxtyping + beartype)."""

import sys
from pathlib import Path

from jaxtyping import install_import_hook

sys.path.insert(0, str(Path(__file__).parent))
install_import_hook("da3gs", "beartype.beartype")
