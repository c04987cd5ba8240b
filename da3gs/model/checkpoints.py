"""Weights in and out: released checkpoints (strict, through one key table), our own checkpoints, Gaussian heads.

A file of ours is a ``.safetensors`` whose header says what it is: kind, preset name, architecture, provenance.
Nothing is ever unpickled.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from da3gs.atomic import atomic_path
from da3gs.errors import InputError, WeightsError
from da3gs.model.gs_head import GaussianHead
from da3gs.model.network import Da3Network, NestedNetwork, build_model
from da3gs.model.official_keys import TIED, TIED_STORED, released_key, unused_shapes
from da3gs.model.presets import PRESETS, ModelConfig, known_names, preset

logger = logging.getLogger(__name__)

Network = Da3Network | NestedNetwork

FORMAT = "da3gs-1"
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
ASSETS = Path(__file__).resolve().parent.parent / "assets"
SHOWN_KEYS = 4

# --------------------------------------------------------------------------------------------- released format


def official_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Every tensor a released checkpoint of this architecture holds: key with the leading ``model.`` -> shape."""
    used = {released_key(name): tuple(parameter.shape) for name, parameter in network.named_parameters()}
    return used | unused_shapes(network.config)


def load_official_state_dict(network: Network, state: Mapping[str, Tensor]) -> None:
    """Copy a released checkpoint into a network, strictly; parameters keep their dtype and device.

    Parameters on the meta device become float32 tensors on the device of `state`. Repeated copies of the tied
    LayerNorm are accepted if they are equal.

    Args:
        network: Built for the same architecture.
        state: Released keys (leading ``model.``) to tensors.

    Raises:
        WeightsError: Missing, left-over or differently shaped tensors, named; nothing is copied then.
    """
    state = _untie(state)
    shapes = official_shapes(network)
    _check_keys(network.config, {key: tuple(tensor.shape) for key, tensor in state.items()}, shapes)
    _fill(network, {name: state[released_key(name)] for name, _ in network.named_parameters()})


def _untie(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    untied = dict(state)
    for key in [key for key in untied if TIED.search(key)]:
        stored, copy = TIED.sub(TIED_STORED, key), untied.pop(key)
        if not torch.equal(untied.setdefault(stored, copy), copy):
            raise WeightsError(f"{key} and {stored} are one shared tensor in every released model, but differ here")
    return untied


def _check_keys(config: ModelConfig, found: dict[str, tuple], expected: dict[str, tuple]) -> None:
    missing, left_over = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    reshaped = sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key])
    if not (missing or left_over or reshaped):
        return
    problems = []
    if missing:
        problems.append(f"missing {_some(missing)}")
    if left_over:
        problems.append(f"left over {_some(left_over)}")
    if reshaped:
        key = reshaped[0]
        problems.append(
            f"{len(reshaped)} of another shape, {key} is {list(found[key])} instead of {list(expected[key])}"
        )
    fitting = _fitting_preset(found)
    hint = f"; these weights fit preset {fitting}" if fitting else ""
    raise WeightsError(f"weights do not fit {config.name}: {'; '.join(problems)}{hint}")


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return f"{', '.join(keys[:SHOWN_KEYS])}{more}"


def _fitting_preset(found: dict[str, tuple]) -> str | None:
    """The preset whose released tensors are exactly these; the first one where two share an architecture."""
    for name, config in PRESETS.items():
        if official_shapes(build_model(config, device="meta")) == found:
            return name
    return None


def _fill(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give every parameter its value; meta parameters are replaced, others written."""
    for name, parameter in list(module.named_parameters()):
        value = values[name].detach()
        if parameter.is_meta:
            owner, _, leaf = name.rpartition(".")
            loaded = nn.Parameter(value.to(torch.float32), requires_grad=parameter.requires_grad)
            setattr(module.get_submodule(owner), leaf, loaded)
        else:
            with torch.no_grad():
                parameter.copy_(value)


# ------------------------------------------------------------------------------------------------- our format


def save_checkpoint(
    network: Network, path: str | Path, provenance: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write all weights of a network and its Gaussian head, with preset name, architecture and provenance.

    Args:
        path: Ends in ``.safetensors``.
        provenance: JSON values: training data, their licences, the backbone's licence, settings.
        dtype: float32, or float16 to halve the file.
    """
    _save(path, "network", network.named_parameters(), network.config, provenance, dtype)


def save_gs_head(
    network: Network, path: str | Path, provenance: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write the Gaussian head of a network as its own file, which `attach_gs_head` reads."""
    if network.gs_head is None:
        raise WeightsError(f"{network.config.name} has no Gaussian head to save; attach or train one first")
    _save(path, "gs_head", network.gs_head.named_parameters(), network.config, provenance, dtype)


def _save(path, kind: str, parameters: Iterable, config: ModelConfig, provenance, dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"a checkpoint's name must end in .safetensors; got {path.name}")
    if dtype not in (torch.float32, torch.float16):
        raise InputError(f"checkpoints are stored as float32 or float16; got {dtype}")
    tensors = {name: parameter.detach().to("cpu", dtype).contiguous() for name, parameter in parameters}
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise WeightsError(f"weights to save are not finite as {str(dtype)[6:]}: {_some(bad)}")
    metadata = {
        "format": FORMAT,
        "kind": kind,
        "preset": config.name,
        "config": json.dumps(config.to_dict()),
        "provenance": json.dumps(dict(provenance)),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), metadata=metadata)


def read_header(path: str | Path) -> dict[str, Any]:
    """Header of a checkpoint of ours: kind, preset, config (`ModelConfig`), provenance (dict).

    Raises:
        WeightsError: Not a safetensors file, truncated, or without our header.
    """
    with _open(path) as file:
        return _header(path, file.metadata())


def _header(path, metadata: dict[str, str] | None) -> dict[str, Any]:
    if not metadata or metadata.get("format") != FORMAT:
        raise WeightsError(
            f"{path} has no da3gs header; name a preset, or for released weights the folder that holds {CONFIG_FILE}"
        )
    try:
        config = ModelConfig.from_dict(json.loads(metadata["config"]))
        return {
            "kind": metadata["kind"],
            "preset": metadata["preset"],
            "config": config,
            "provenance": json.loads(metadata["provenance"]),
        }
    except (KeyError, ValueError) as error:
        raise WeightsError(f"the da3gs header of {path} is damaged: {error}") from error


def _open(path: str | Path):
    """An open safetensors file; WeightsError in one line for anything else."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist")
    if path.suffix != ".safetensors":
        raise WeightsError(f"weights must be a .safetensors file (nothing is ever unpickled); got {path.name}")
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise WeightsError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` in that folder")
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is truncated or no safetensors file ({path.stat().st_size} bytes); download it again ({error})"
        ) from error


def _read(path: str | Path) -> dict[str, Tensor]:
    with _open(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)


def _load_ours(path: str | Path, module: nn.Module, name: str) -> None:
    values = _read(path)
    expected = {key: tuple(parameter.shape) for key, parameter in module.named_parameters()}
    found = {key: tuple(tensor.shape) for key, tensor in values.items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        raise WeightsError(f"{path} does not hold the weights of {name} its header promises: {_some(wrong)}")
    _fill(module, values)


# ------------------------------------------------------------------------------------------------- by name or path


def load_network(name_or_path: str | Path, *, device: str | torch.device = "cpu") -> Network:
    """A network with weights, in eval mode and frozen (no parameter requires gradients), float32.

    Args:
        name_or_path: A preset or alias (``da3-base``, ``da3-large-1.1``), a hub repository
            (``depth-anything/DA3-BASE``), a folder with ``config.json`` and ``model.safetensors``, or a
            ``.safetensors`` file written by da3gs. Downloads go through huggingface_hub: its cache, mirror
            (HF_ENDPOINT) and offline (HF_HUB_OFFLINE) settings apply.
        device: Where the weights go.

    Raises:
        WeightsError: Unknown name, no network, damaged or unfitting file.
    """
    path = Path(name_or_path)
    bundled = ASSETS / f"{str(name_or_path).lower()}.safetensors"
    named = str(name_or_path).lower() in known_names()  # a folder of that name in the working folder is not meant
    if path.is_dir() and not named:
        network = _load_folder(path)
    elif path.is_file() and not named:
        network = _load_file(path)
    elif bundled.is_file():
        network = _load_file(bundled)
    elif path.suffix == ".safetensors" or str(name_or_path).startswith((".", "/", "~")):
        raise WeightsError(
            f"weights {name_or_path} do not exist; expected a folder, a .safetensors file or a model name"
        )
    else:
        network = _load_hub(str(name_or_path))
    return network.to(device).eval().requires_grad_(False)


def _load_file(path: Path) -> Network:
    header = read_header(path)
    if header["kind"] != "network":
        raise WeightsError(f"{path} holds a {header['kind']}, not a network; attach it to a {header['preset']} model")
    network = build_model(header["config"], device="meta")
    _load_ours(path, network, header["preset"])
    return network


def _load_folder(path: Path) -> Network:
    config_path = path / CONFIG_FILE
    if not config_path.is_file():
        raise WeightsError(
            f"{path} holds no {CONFIG_FILE}, so the architecture is unknown; copy it next to the weights"
        )
    try:
        config = ModelConfig.from_official(json.loads(config_path.read_text()))
    except ValueError as error:  # JSON errors and InputError
        raise WeightsError(f"cannot read {config_path}: {error}") from error
    return _load_released(path / WEIGHTS_FILE, config)


def _load_hub(name: str) -> Network:
    try:
        config = preset(name)
    except InputError as error:
        if name.count("/") != 1:
            raise WeightsError(str(error)) from error
        logger.info("%s is not a released repository; reading its %s", name, CONFIG_FILE)
        config_path = download(name, CONFIG_FILE)
        try:
            config = replace(ModelConfig.from_official(json.loads(config_path.read_text())), repository=name)
        except ValueError as unreadable:
            raise WeightsError(f"{name}/{CONFIG_FILE} is not that of a DA3 model: {unreadable}") from unreadable
    if config.repository is None:
        raise WeightsError(
            f"no weights of {config.name} are published or bundled; train them or name a file "
            f"(with published weights: {', '.join(key for key in known_names() if preset(key).repository)})"
        )
    path = download(config.repository, WEIGHTS_FILE)
    _announce(config.repository, config.licence)
    return _load_released(path, config)


def _load_released(path: Path, config: ModelConfig) -> Network:
    network = build_model(config, device="meta")
    try:
        load_official_state_dict(network, _read(path))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    return network


def download(repository: str, filename: str) -> Path:
    """Local path of a file of a hub repository, downloaded (resumably, with progress) unless it is in the cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils import logging as hub_logging

    # The hub client tries for half a minute and reports every attempt twice; what follows says it once.
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        return Path(hf_hub_download(repository, filename))
    except GatedRepoError as error:
        raise WeightsError(
            f"{repository} needs an accepted licence: open its hub page, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(f"hub repository {repository} does not exist or is private") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise WeightsError(
            f"{repository}/{filename} is not in the local cache and the hub cannot be reached (offline?); connect, set "
            "HF_ENDPOINT to a mirror, or name a local folder"
        ) from error
    except EntryNotFoundError as error:
        raise WeightsError(f"hub repository {repository} has no file {filename}") from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"download of {repository}/{filename} failed ({reason}); run again to resume") from error
    finally:
        hub_logging.set_verbosity(verbosity)


_announced: set[str] = set()


def _announce(repository: str, licence: str) -> None:
    if repository not in _announced:
        _announced.add(repository)
        logger.warning("weights of %s are licensed under %s", repository, licence)


def attach_gs_head(network: Network, name_or_path: str | Path) -> None:
    """Give an any-view network the Gaussian head of a file of ours (or a bundled one by name), in place.

    Raises:
        WeightsError: Unreadable file, or a head trained on another architecture.
    """
    bundled = ASSETS / f"{name_or_path}.safetensors"
    path = bundled if not Path(name_or_path).exists() and bundled.is_file() else Path(name_or_path)
    header = read_header(path)
    config: ModelConfig = header["config"]
    target = network.any_view if isinstance(network, NestedNetwork) else network
    if config.gs_head is None:
        raise WeightsError(f"{path} holds no Gaussian head")
    if config.backbone != target.config.backbone or target.config.cameras is None:
        raise WeightsError(
            f"the Gaussian head {path} was trained on {config.name}; it does not fit {network.config.name}"
        )
    with torch.device("meta"):
        head = GaussianHead(config.backbone.tap_width, config.gs_head)
    values = _read(path)
    if header["kind"] == "network":
        values = {key.removeprefix("gs_head."): value for key, value in values.items() if key.startswith("gs_head.")}
    if values.keys() != dict(head.named_parameters()).keys():
        raise WeightsError(f"{path} does not hold the Gaussian head its header promises")
    _fill(head, values)
    reference = target.head.depth_out.weight
    target.gs_head = head.to(reference.device, reference.dtype).requires_grad_(reference.requires_grad)
    target.gs_head.train(target.training)
    for module in {network, target}:
        module.config = replace(module.config, gs_head=config.gs_head)
