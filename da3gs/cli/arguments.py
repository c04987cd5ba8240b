"""The flags of a command, read from its dataclass: for one-line errors and for completion in a shell.

tyro parses. What it says about wrong arguments is a box of many lines; the same facts are told here in one line.
"""

import contextlib
import dataclasses
import difflib
import io
import re
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, Union

from tyro.conf import Positional

from da3gs.errors import InputError

GLOBAL_FLAGS = ("--help", "--quiet", "--debug")

_POSITIONAL = typing.get_args(Positional[int])[1]
_EXIT_WRONG_ARGUMENTS = 2
_FRAME = re.compile(r"[╭╮╰╯│─|]|-{4,}")


@dataclasses.dataclass(frozen=True)
class Option:
    """One flag or positional argument.

    Attributes:
        flag: As typed, "--max-views"; "" for a positional argument.
        metavar: What stands for its value in the help.
        kind: bool (a flag without value), int, float, or str for everything that any text may be.
        choices: The words it accepts, if it is one of a few.
        required: Whether the command cannot run without it.
    """

    flag: str
    metavar: str
    kind: type
    choices: tuple[str, ...]
    required: bool

    @property
    def shown(self) -> str:
        return f"{self.flag} {self.metavar}".strip()


def command_options(command_class: type) -> tuple[Option, ...]:
    """Flags and positional arguments of a command, in the order of its fields."""
    hints = typing.get_type_hints(command_class, include_extras=True)
    return tuple(_option(field, hints[field.name]) for field in dataclasses.fields(command_class) if field.init)


def parse(command_class: type, arguments: Sequence[str], **tyro_options: Any) -> Any:
    """The command with its fields set.

    Raises:
        InputError: Wrong arguments, in one line.
        SystemExit: The help was asked for and has been printed.
    """
    import tyro

    # A command whose flags come from somewhere else than its fields brings a parser of its own.
    own = getattr(command_class, "parse", None)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if own is not None:
                return own(arguments, **tyro_options)
            return tyro.cli(command_class, args=list(arguments), **tyro_options)
    except SystemExit as exit_request:
        if exit_request.code != _EXIT_WRONG_ARGUMENTS:
            sys.stderr.write(said.getvalue())
            raise
        options = command_options(command_class)
        reason = _reason(options, arguments, said.getvalue(), open_ended=own is not None)
        raise InputError(f"{reason} (see '{tyro_options['prog']} --help')") from None


def check_at_least(*options: tuple[str, int | None, int]) -> None:
    """InputError for the first of (flag, value, least) whose value is given and smaller."""
    for name, value, least in options:
        if value is not None and value < least:
            raise InputError(f"{name} must be >= {least}; got {value}")


def check_device(name: str) -> None:
    """InputError unless torch can compute on the device of that name; "auto" always can."""
    import torch

    if name == "auto":
        return
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device must be auto, cpu, cuda or cuda:1 ..; got '{name}'") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"--device {name}: no such CUDA device here ({torch.cuda.device_count()} found); use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:1 ..; got '{name}'")


def _option(field: dataclasses.Field, hint: Any) -> Option:
    marks: tuple = ()
    if typing.get_origin(hint) is typing.Annotated:
        hint, *rest = typing.get_args(hint)
        marks = tuple(rest)
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    if typing.get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    choices = tuple(map(str, typing.get_args(hint))) if typing.get_origin(hint) is Literal else ()
    named = [name for mark in marks if (name := getattr(mark, "name", None))]
    metavars = [metavar for mark in marks if (metavar := getattr(mark, "metavar", None))]
    name = (named[0] if named else field.name).replace("_", "-")
    flag = "" if _POSITIONAL in marks else f"--no-{name}" if hint is bool and field.default is True else f"--{name}"
    kind = hint if hint in (bool, int, float) else str
    default_metavar = "" if kind is bool else kind.__name__.upper()
    return Option(flag, metavars[0] if metavars else default_metavar, kind, choices, required)


# ---------------------------------------------------------------- what is wrong


def _reason(options: Sequence[Option], arguments: Sequence[str], said: str, *, open_ended: bool) -> str:
    """What is wrong with arguments that tyro refused; tyro's own words when nothing better is found."""
    flags = {option.flag: option for option in options if option.flag}
    places = [option for option in options if not option.flag]
    words, seen, placed = list(arguments), set(), []
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        name = "--" + name[2:].replace("_", "-")
        if word == "--":
            placed += words
            break
        if not word.startswith("--"):
            placed.append(word)
        elif name not in flags and not open_ended:
            near = difflib.get_close_matches(name, flags, n=1)
            return f"unknown option '{word}'" + (f"; did you mean '{near[0]}'?" if near else "")
        elif name in flags and flags[name].kind is not bool:
            if not equals and (not words or words[0].startswith("--")):
                return f"{name} needs a value ({flags[name].metavar})"
            if wrong := _wrong_value(flags[name], value if equals else words.pop(0)):
                return f"{name} {wrong}"
        seen.add(name)
    missing = [option for option in flags.values() if option.required and option.flag not in seen]
    missing = [option for option in places[len(placed) :] if option.required] + missing
    if missing:
        return f"missing {', '.join(option.shown for option in missing)}"
    for option, word in zip(places, placed, strict=False):
        if wrong := _wrong_value(option, word):
            return f"{option.metavar} {wrong}"
    if placed[len(places) :] and not open_ended:
        return f"'{placed[len(places)]}' is one argument too many"
    return " ".join(_FRAME.sub(" ", said).split()) or "wrong arguments"


def _wrong_value(option: Option, value: str) -> str | None:
    if option.choices and value not in option.choices:
        near = difflib.get_close_matches(value, option.choices, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"must be one of {', '.join(option.choices)}; got '{value}'{hint}"
    if option.kind not in (int, float):
        return None
    try:
        option.kind(value)
    except ValueError:
        return f"must be a {'whole ' if option.kind is int else ''}number; got '{value}'"
    return None
