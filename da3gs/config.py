"""Strict configuration: YAML files and flags to dataclasses and back. Knows no component.

Dataclasses hold every default, a file holds differences only. An unknown key, a value of the wrong type or a missing
required value is one error that names the key and what was expected. A field of several dataclasses (``A | B``) is
chosen by its ``kind``, a ``Literal`` field of each.
"""

import dataclasses
import difflib
import importlib.resources
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from da3gs.atomic import atomic_path
from da3gs.errors import InputError

T = TypeVar("T")

KIND = "kind"
_UNIONS = (Union, types.UnionType)
# Folder of the shipped configurations in an installed package, and in a checkout.
_SHIPPED = ("configs", "../configs")


def load_config(cls: type[T], source: str | Path | None = None, overrides: Mapping[str, Any] | Sequence[str] = ()) -> T:
    """A configuration from defaults, a file and overrides, in this order.

    Args:
        cls: The dataclass.
        source: A YAML file, the name of a shipped configuration, or None for the defaults alone.
        overrides: ``{"optim.lr": 1e-4}``, or flags ``["--optim.lr", "1e-4", "--output=run"]`` whose values are read as
            YAML. Dashes and underscores in keys are the same.

    Raises:
        InputError: The file cannot be read, or a key or value is not one of `cls`.
    """
    tree = {} if source is None else read_config_file(source)
    pairs = overrides.items() if isinstance(overrides, Mapping) else _parse_flags(overrides)
    for path, value in pairs:
        _assign(tree, path, value)
    return config_from_tree(cls, tree)


def config_from_tree(cls: type[T], tree: Mapping[str, Any]) -> T:
    """A configuration from nested plain values; see `load_config`."""
    return _dataclass(cls, tree, "")


def config_to_tree(config: Any) -> Any:
    """Nested plain values (what YAML and JSON hold) of a configuration; `config_from_tree` reads them back."""
    if dataclasses.is_dataclass(config):
        return {field.name: config_to_tree(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: config_to_tree(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [config_to_tree(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def save_config(config: Any, path: str | Path) -> None:
    """Write the whole resolved tree, defaults included, as YAML."""
    import yaml

    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(config_to_tree(config), sort_keys=False))


def shipped_configs() -> dict[str, Path]:
    """Name -> file of every configuration that comes with the package."""
    root = Path(str(importlib.resources.files("da3gs")))
    found: dict[str, Path] = {}
    for folder in _SHIPPED:
        for path in sorted((root / folder).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def read_config_file(source: str | Path) -> dict[str, Any]:
    """Plain values of a YAML file or a shipped configuration."""
    import yaml

    path, shipped = Path(source), shipped_configs()
    if not path.is_file():
        if str(source) not in shipped:
            near = difflib.get_close_matches(path.stem, shipped, n=1)
            hint = f"did you mean {near[0]}?" if near else f"shipped: {', '.join(shipped) or 'none'}"
            raise InputError(f"configuration {str(source)!r} is neither a file nor a shipped name; {hint}")
        path = shipped[str(source)]
    try:
        tree = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} as YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{path} must hold `key: value` lines; got {_kind_of(tree)}")
    return tree


# ------------------------------------------------------------------------------------------------ flags


def _parse_flags(flags: Sequence[str]) -> list[tuple[str, Any]]:
    pairs, rest = [], list(flags)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or len(flag) == 2:
            raise InputError(f"expected --key value; got {flag!r}")
        key, equals, text = flag[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"--{key} needs a value, as in `--{key} VALUE` or `--{key}=VALUE`")
            text = rest.pop(0)
        pairs.append((key, _yaml_value(text, key)))
    return pairs


def _yaml_value(text: str, key: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--{key}: cannot read {text!r} as a YAML value") from error


def _assign(tree: dict, path: str, value: Any) -> None:
    *parents, leaf = path.replace("-", "_").split(".")
    for name in parents:
        inner = tree.setdefault(name, {})
        if not isinstance(inner, dict):
            raise InputError(f"{path}: {name} is {_kind_of(inner)}, it has no {leaf}")
        tree = inner
    tree[leaf] = value


# ------------------------------------------------------------------------------------------------ types


def _dataclass(cls, tree: Any, where: str):
    if not isinstance(tree, Mapping):
        raise InputError(f"{where or 'the configuration'} must be a mapping of keys; got {_kind_of(tree)}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in tree:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
            raise InputError(f"unknown key {_join(where, str(key))!r}; {hint}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        if name not in tree:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise InputError(f"{_join(where, name)} is required ({_describe(hints[name])})")
            continue
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        values[name] = _value(hints[name], tree[name], _join(where, name), default)
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from error


def _value(hint, value: Any, where: str, default: Any = None):
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in _UNIONS:
        return _union(hint, arguments, value, where, default)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise InputError(f"{where} must be one of {', '.join(map(str, arguments))}; got {value!r}")
        return value
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, where)
    if origin in (tuple, list):
        return _sequence(origin, arguments, value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where} must be a mapping; got {_kind_of(value)}")
        return {key: _value(arguments[1], item, _join(where, str(key))) for key, item in value.items()}
    return _scalar(hint, value, where)


def _scalar(hint, value: Any, where: str):
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML 1.1 reads 1e-4 as text
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    elif hint is Path and isinstance(value, str):
        return Path(value).expanduser()
    elif hint is type(None):
        if value is None:
            return None
    elif isinstance(value, hint) and (hint is not int or not isinstance(value, bool)):
        return value
    raise InputError(f"{where} must be {_describe(hint)}; got {value!r}")


def _union(hint, arguments, value: Any, where: str, default: Any):
    records = [option for option in arguments if dataclasses.is_dataclass(option)]
    if value is None and type(None) in arguments:
        return None
    if isinstance(value, Mapping) and records:
        if len(records) == 1:
            return _dataclass(records[0], value, where)
        by_kind = {typing.get_args(typing.get_type_hints(option)[KIND])[0]: option for option in records}
        kind = value.get(KIND, getattr(default, KIND, None))
        if kind not in by_kind:
            raise InputError(f"{_join(where, KIND)} must be one of {', '.join(by_kind)}; got {kind!r}")
        return _dataclass(by_kind[kind], value, where)
    for option in arguments:
        try:
            return _value(option, value, where)
        except InputError:
            continue
    raise InputError(f"{where} must be {_describe(hint)}; got {value!r}")


def _sequence(origin, arguments, value: Any, where: str):
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{where} must be a list; got {_kind_of(value)}")
    if origin is list or arguments[-1] is Ellipsis:
        items = [arguments[0]] * len(value)
    else:
        items = list(arguments)
        if len(items) != len(value):
            raise InputError(f"{where} must have {len(items)} entries; got {len(value)}")
    return origin(
        _value(item, entry, f"{where}[{i}]") for i, (item, entry) in enumerate(zip(items, value, strict=True))
    )


def _describe(hint) -> str:
    if typing.get_origin(hint) in _UNIONS:
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    names = {float: "a finite number", int: "a whole number", str: "text", bool: "true or false", Path: "a path"}
    return "null" if hint is type(None) else names.get(hint, str(getattr(hint, "__name__", hint)))


def _kind_of(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
