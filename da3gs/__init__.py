"""da3gs: photos in, 3D Gaussian splats out, in one forward pass.

Public names are resolved on first use, so that ``import da3gs`` loads neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> module that defines it.
_PUBLIC = {
    "Cameras": "da3gs.geometry.cameras",
    "Similarity": "da3gs.geometry.similarity",
    "Gaussians": "da3gs.gaussians",
    "Scene": "da3gs.gaussians",
    "load_model": "da3gs.model.da3_model",
    "reconstruct": "da3gs.pipeline.reconstruction",
    "render": "da3gs.rendering.render",
    "RenderConfig": "da3gs.rendering.render",
    "load_gaussians": "da3gs.export.gaussian_files",
    "save_gaussians": "da3gs.export.gaussian_files",
}

if TYPE_CHECKING:
    from da3gs.export.gaussian_files import load_gaussians, save_gaussians
    from da3gs.gaussians import Gaussians, Scene
    from da3gs.geometry.cameras import Cameras
    from da3gs.geometry.similarity import Similarity
    from da3gs.model.da3_model import load_model
    from da3gs.pipeline.reconstruction import reconstruct
    from da3gs.rendering.render import RenderConfig, render


__all__ = [
    "Cameras",
    "Gaussians",
    "RenderConfig",
    "Scene",
    "Similarity",
    "__version__",
    "load_gaussians",
    "load_model",
    "reconstruct",
    "render",
    "save_gaussians",
]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'da3gs' has no attribute '{name}'")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
