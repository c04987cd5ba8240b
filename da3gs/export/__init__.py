"""Writers and readers of files that leave the package. Importing it loads nothing heavy; names resolve on first use."""

import importlib

_NAMES = {
    "load_gaussians": "da3gs.export.gaussian_files",
    "save_gaussians": "da3gs.export.gaussian_files",
    "read_ply": "da3gs.export.ply",
    "write_ply": "da3gs.export.ply",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
