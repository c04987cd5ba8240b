"""How plain loops are compiled: once per machine, kept on disk, one thread each."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import numba

log = logging.getLogger(__name__)


def loop(function: Callable) -> Callable:
    """Compile a function. Infinities keep their meaning; sums may be reordered; the lock of Python is released."""
    plain = inspect.unwrap(function)  # the tests wrap functions in type checkers; numba needs the function itself
    options: dict[str, Any] = {
        "nogil": True,
        "fastmath": {"contract", "arcp", "nsz", "reassoc"},
        "error_model": "numpy",
    }
    try:
        return numba.njit(cache=True, **options)(plain)
    except RuntimeError as error:  # numba's "cannot cache function": no folder can be written
        log.warning("compiling %s in every process anew (%s); set NUMBA_CACHE_DIR to a writable folder", plain, error)
        return numba.njit(**options)(plain)
