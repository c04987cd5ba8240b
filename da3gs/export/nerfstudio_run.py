"""Gaussians of a nerfstudio run of ours, in the frame and scale of the data set. Needs no nerfstudio.

nerfstudio turns, centres and scales every data set; `ns-export` writes Gaussians in that frame. The run folder says
what was done (``dataparser_transforms.json``): x_run = s (R x_data + t), undone here.

What a checkpoint holds (keys below ``pipeline`` / ``_model.``): ``gauss_params.*`` as splatfacto names them (logarithms
of standard deviations, logits), means divided by ``scene_scale``, and ``_extra_state`` with the format's name.
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from da3gs.errors import FormatError, InputError
from da3gs.gaussians import Gaussians
from da3gs.geometry.similarity import Similarity

FORMAT = "da3gs-nerfstudio-1"
CONFIG_FILE, TRANSFORM_FILE, CHECKPOINT_FOLDER = "config.yml", "dataparser_transforms.json", "nerfstudio_models"
# Header of the files made from a run.
RUN_COMMENTS = ("Frame: that of the cameras in the data set's files (nerfstudio's normalisation undone)",)
_BELOW = ("*/", "*/*/", "*/*/*/")  # <method>/<time>, <experiment>/<method>/<time>
PARAMETERS = ("means", "scales", "quats", "features_dc", "features_rest", "opacities")


def load_run(folder: str | Path) -> Gaussians:
    """The Gaussians of the latest checkpoint of a run, in the data set's own frame and scale.

    That is the frame of the cameras in the data set's files; of data that ns-process-data made from COLMAP
    (``applied_transform``), the frame of COLMAP.

    Args:
        folder: ``outputs/<experiment>/da3gs/<time>``, as ns-train printed it.

    Raises:
        InputError: Not the folder of a run.
        FormatError: The checkpoint is damaged, or was not written by a da3gs method.
    """
    folder = Path(folder)
    checkpoint = latest_checkpoint(folder)
    data_from_run = read_transform(folder / TRANSFORM_FILE).inverse()
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
        raise FormatError(f"{checkpoint} cannot be read as a checkpoint: {_first_line(error)}") from error
    return gaussians_from_state(content).transform(data_from_run)


def holds_run(folder: str | Path) -> bool:
    """Whether a path is the folder of a run, or of several (`load_run` then says which one to take)."""
    folder = Path(folder)
    return folder.is_dir() and any(next(folder.glob(f"{deep}{CONFIG_FILE}"), None) for deep in ("", *_BELOW))


def latest_checkpoint(folder: Path) -> Path:
    """The checkpoint with the most steps below a run folder."""
    if not (folder / CONFIG_FILE).is_file():
        inside = sorted(path.parent for deep in _BELOW for path in folder.glob(f"{deep}{CONFIG_FILE}"))
        hint = f"; did you mean {inside[-1]}?" if inside else ""
        raise InputError(f"{folder} is no nerfstudio run: it holds no {CONFIG_FILE}{hint}")
    found = {}
    for path in (folder / CHECKPOINT_FOLDER).glob("step-*.ckpt"):
        digits = path.stem.removeprefix("step-")
        if digits.isdigit():
            found[int(digits)] = path
    if not found:
        raise InputError(f"{folder} holds no checkpoint yet ({CHECKPOINT_FOLDER}/step-*.ckpt); let it train further")
    return found[max(found)]


def read_transform(path: Path) -> Similarity:
    """run_from_data of a ``dataparser_transforms.json``: x_run = s (R x_data + t)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        matrix = torch.tensor(content["transform"], dtype=torch.float64)
        scale = float(content["scale"])
    except OSError as error:
        raise InputError(
            f"{path.parent} holds no {path.name} ({error.strerror}); ns-train writes it when training starts"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path} does not hold a transform and a scale: {_first_line(error)}") from error
    if matrix.shape not in ((3, 4), (4, 4)):
        raise FormatError(f"{path}: the transform must be 3x4; got {list(matrix.shape)}")
    # nerfstudio computes the rotation in float32: make it exact before it is trusted as one.
    u, _, v = torch.linalg.svd(matrix[:3, :3])
    if (u @ v - matrix[:3, :3]).abs().max() > 1e-3:
        raise FormatError(f"{path}: the 3x3 part of the transform is no rotation")
    if torch.linalg.det(u @ v) < 0:
        raise FormatError(f"{path}: the transform mirrors space; Gaussians with view-dependent colour cannot follow")
    return Similarity(scale, u @ v, scale * matrix[:3, 3])


def gaussians_from_state(checkpoint: Mapping[str, Any]) -> Gaussians:
    """Gaussians of a checkpoint, in the run's own frame.

    Raises:
        FormatError: Not a checkpoint of a da3gs method, or values that are no Gaussians.
    """
    state = checkpoint.get("pipeline") if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping):
        raise FormatError("the file is no nerfstudio checkpoint (no 'pipeline')")
    own = {key.removeprefix("_model."): value for key, value in state.items() if key.startswith("_model.")}
    extra = own.get("_extra_state")
    if not isinstance(extra, Mapping) or extra.get("format") != FORMAT:
        raise FormatError("the checkpoint was not written by the methods da3gs or da3gs-splat")
    missing = [name for name in PARAMETERS if not isinstance(own.get(f"gauss_params.{name}"), Tensor)]
    if missing or not isinstance(own.get("scene_scale"), Tensor):
        raise FormatError(f"the checkpoint lacks {', '.join(missing) or 'scene_scale'}")
    raw = {name: own[f"gauss_params.{name}"].float() for name in PARAMETERS}
    try:
        return activated(raw, own["scene_scale"].float()).validate()
    except InputError as error:
        raise FormatError(f"the checkpoint holds no usable Gaussians: {error}") from error


def activated(raw: Mapping[str, Tensor], scene_scale: Tensor) -> Gaussians:
    """Gaussians of splatfacto's parameters; gradients flow.

    Args:
        raw: means [N, 3] in units of `scene_scale`, scales [N, 3] (logarithms), quats [N, 4] wxyz, features_dc [N, 3],
            features_rest [N, K - 1, 3], opacities [N, 1] (logits).
        scene_scale: [] length of that unit.
    """
    return Gaussians.unchecked(
        raw["means"] * scene_scale,
        raw["quats"],
        raw["scales"].exp(),
        raw["opacities"].sigmoid()[:, 0],
        torch.cat([raw["features_dc"][:, None], raw["features_rest"]], 1),
    )


def deactivated(gaussians: Gaussians, scene_scale: Tensor) -> dict[str, Tensor]:
    """splatfacto's parameters of Gaussians, the inverse of `activated`; opacities stay within (1e-6, 1 - 1e-6)."""
    return {
        "means": gaussians.means / scene_scale,
        "scales": gaussians.scales.clamp_min(torch.finfo(gaussians.scales.dtype).tiny).log(),
        "quats": torch.nn.functional.normalize(gaussians.quats, dim=-1),
        "features_dc": gaussians.sh[:, 0],
        "features_rest": gaussians.sh[:, 1:],
        "opacities": gaussians.opacities.clamp(1e-6, 1 - 1e-6).logit()[:, None],
    }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
