"""The README keeps its promises: every command parses, every public name exists, two set-up commands."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from da3gs.cli import main as cli

README = Path(__file__).resolve().parents[1] / "README.md"
_BLOCKS = re.findall(r"(?:^    .+\n)+", README.read_text(), flags=re.M)
_LINES = [line.split("  #")[0].strip() for block in _BLOCKS for line in block.splitlines()]
_INLINE = re.findall(r"`(da3gs [a-z][^`]*)`", README.read_text())


def _commands():
    for line in dict.fromkeys([*_LINES, *_INLINE]):
        for part in line.split("&&"):
            words = shlex.split(part)
            if words[:2] == ["accelerate", "launch"]:
                words = ["da3gs", *words[words.index("da3gs.cli.main") + 1 :]]
            if words[0] == "da3gs":
                yield words[1:]


@pytest.mark.parametrize("arguments", list(_commands()), ids=" ".join)
def test_every_command_parses(arguments, monkeypatch):
    command = cli.COMMANDS[cli._split_command(arguments)[0]]
    seen = []
    command_class = getattr(importlib.import_module(command.module), command.class_name)
    monkeypatch.setattr(command_class, "run", lambda self: seen.append(self) or 0)
    if arguments[1:] == []:  # named in a sentence
        assert command_class.__doc__
    else:
        assert cli.main(arguments) == 0 and len(seen) == 1


def test_there_are_two_set_up_commands():
    set_up = README.read_text().split("## Set up")[1].split("\n## ")[0]
    commands = re.findall(r"^    (.+)$", set_up, flags=re.M)
    assert commands == ["pip install . && da3gs demo", 'pip install -e ".[dev]" && pytest']


def test_python_names_exist():
    import da3gs

    names = set(re.findall(r"\bda3gs\.([a-z_]+)\(", README.read_text()))
    assert names and all(hasattr(da3gs, name) for name in names)


def test_pictures_and_files_exist():
    root = README.parent
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README.read_text()):
        assert (root / path).is_file(), path
    for config in re.findall(r"`configs/([a-z_]+\.yaml)`", README.read_text()):
        assert (root / "configs" / config).is_file(), config
