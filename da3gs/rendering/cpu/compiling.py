"""How kernels are compiled: one set of flags, one cache folder that follows the sources.

Numba names a cache entry after the file a kernel stands in, so a change in a file it includes goes unseen. The folder
used here is therefore named after the content of this whole package.
"""

import hashlib
import inspect
import logging
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numba
from numba.core import config as numba_config

logger = logging.getLogger(__name__)

# Without "nnan" and "ninf": comparisons with NaN and infinity keep their meaning.
FAST_MATH = frozenset({"contract", "reassoc", "nsz", "arcp", "afn"})


def options(parallel: bool) -> dict:
    """Compiler flags; the numpy error model divides by zero without a branch."""
    return {"parallel": parallel, "fastmath": set(FAST_MATH), "error_model": "numpy"}


def kernel(function: Callable) -> Callable:
    """Compile a function that Python calls: parallel loops, cached on disk."""
    return _compile_cached(function, parallel=True)


def serial_kernel(function: Callable) -> Callable:
    """A kernel without parallel loops."""
    return _compile_cached(function, parallel=False)


def _compile_cached(function: Callable, parallel: bool) -> Callable:
    # The tests wrap functions in type checkers; numba needs the plain one.
    function = inspect.unwrap(function)
    folder = cache_folder()
    if folder is None:
        return numba.njit(**options(parallel))(function)
    before = numba_config.CACHE_DIR
    numba_config.CACHE_DIR = str(folder)  # read while decorating
    try:
        return numba.njit(cache=True, **options(parallel))(function)
    finally:
        numba_config.CACHE_DIR = before


def device(function: Callable) -> Callable:
    """Compile a function that only kernels call; without the wrappers that make it callable from outside."""
    return numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **options(False))(inspect.unwrap(function))


@cache
def cache_folder() -> Path | None:
    """Where compiled kernels live: in ``NUMBA_CACHE_DIR`` if set, else in ``~/.cache/da3gs/numba``.

    None (said once) when no folder can be written.
    """
    root = Path(numba_config.CACHE_DIR) if numba_config.CACHE_DIR else Path("~/.cache/da3gs/numba").expanduser()
    folder = root / source_digest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        logger.warning(
            "cannot keep compiled render kernels in %s (%s): every process compiles them anew, about half a minute; "
            "set NUMBA_CACHE_DIR to a writable folder",
            root,
            error.strerror,
        )
        return None
    if not any(folder.rglob("*.nbc")):
        logger.info("compiling render kernels, once per machine and version: about half a minute; kept in %s", folder)
    return folder


@cache
def source_digest() -> str:
    """Hash of every source file of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
