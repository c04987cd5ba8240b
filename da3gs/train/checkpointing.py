"""Checkpoints of a run: complete or absent, without anything frozen, never unpickled.

A checkpoint is a folder ``step_000123`` with ``state.safetensors`` (trained parameters, their average, the moments of
the optimizers) and ``state.json`` (counters). The data of a step is a function of its number: nothing else is needed.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from da3gs.atomic import atomic_path
from da3gs.errors import WeightsError
from da3gs.train.optimizers import Muon, moments

FOLDER = "checkpoints"
_STATE, _FACTS = "state.safetensors", "state.json"
_NAME = re.compile(r"step_(\d+)")


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require gradients, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


class MovingAverage:
    """Exponential moving average of the trained parameters; its start is debiased by a growing window."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self.decay = decay
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Move towards the parameters after step `step` (counted from 1)."""
        decay = min(self.decay, step / (step + 10))
        for name, parameter in parameters.items():
            self.values[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def swap(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Exchange parameters and average; a second call undoes it."""
        for name, parameter in parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name] = kept


def save_state(
    run: Path,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    average: MovingAverage | None,
    optimizers: Sequence[torch.optim.Optimizer],
    facts: Mapping[str, Any],
    *,
    keep: int = 2,
) -> Path:
    """Write the checkpoint of a step and remove all but the last `keep`."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {f"model/{name}": parameter.detach() for name, parameter in parameters.items()}
    if average is not None:
        tensors |= {f"average/{name}": value for name, value in average.values.items()}
    counts = {}
    for optimizer in optimizers:
        for name, parameter in parameters.items():
            state = optimizer.state.get(parameter)
            if state:
                tensors |= {f"{moment}/{name}": state[moment] for moment in moments(optimizer)}
                counts[name] = int(state.get("step", step))
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step_{step:07d}"
    with atomic_path(final, directory=True) as temporary:
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, str(temporary / _STATE))
        (temporary / _FACTS).write_text(json.dumps({"step": step, "counts": counts, **facts}))
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [path for path in (run / FOLDER).glob("step_*") if _NAME.fullmatch(path.name) and (path / _FACTS).is_file()]
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]))


@torch.no_grad()
def load_state(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    average: MovingAverage | None,
    optimizers: Sequence[torch.optim.Optimizer],
) -> dict[str, Any]:
    """Put a checkpoint back, strictly; returns its facts.

    Raises:
        WeightsError: Damaged, or of other parameters or optimizers than those of now.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path / _STATE)
        facts = json.loads((path / _FACTS).read_text())
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsError(
            f"checkpoint {path} is damaged ({error}); delete it to resume from the one before"
        ) from error
    stored = {
        key.removeprefix("model/"): tuple(value.shape) for key, value in tensors.items() if key.startswith("model/")
    }
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if stored != expected:
        odd = sorted(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
        raise WeightsError(
            f"checkpoint {path} holds other parameters than this configuration trains ({', '.join(odd[:3])} ...); "
            "resume with the configuration of the run, or start a new run"
        )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[f"model/{name}"])
        if average is not None:
            average.values[name].copy_(tensors.get(f"average/{name}", tensors[f"model/{name}"]))
    for optimizer in optimizers:
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in parameters.items():
            if id(parameter) in own and name in facts["counts"]:
                optimizer.state[parameter] = _state(optimizer, parameter, tensors, name, facts["counts"][name], path)
    return facts


def _state(
    optimizer: torch.optim.Optimizer,
    parameter: nn.Parameter,
    tensors: Mapping[str, Tensor],
    name: str,
    count: int,
    path: Path,
) -> dict[str, Tensor]:
    """What the optimizer remembers of a parameter."""
    wanted = moments(optimizer)
    if not all(f"{moment}/{name}" in tensors for moment in wanted):
        raise WeightsError(
            f"checkpoint {path} is of another optimizer than {type(optimizer).__name__} (it has no {wanted[0]} of "
            f"{name}); resume with the optim.optimizer of the run, or start a new run"
        )
    state = {moment: tensors[f"{moment}/{name}"].to(parameter) for moment in wanted}
    return state if isinstance(optimizer, Muon) else {"step": torch.tensor(float(count)), **state}
