"""The application around the commands: help without weight, exit statuses, one line per failure, stdout for results."""

import json
import logging
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch

from da3gs import Gaussians, __version__, save_gaussians
from da3gs.cli import info
from da3gs.cli.console import set_up_logging
from da3gs.cli.main import COMMANDS, Command, main

HEAVY = (
    "torch",
    "numpy",
    "numba",
    "gsplat",
    "viser",
    "cv2",
    "PIL",
    "kornia",
    "imageio",
    "nerfstudio",
    "huggingface_hub",
)


def run_in_child(arguments: list[str], before: str = "", **kwargs) -> subprocess.CompletedProcess:
    """The application in a fresh interpreter; the last line of stderr lists the heavy packages it loaded."""
    code = (
        f"import sys\n{before}\nfrom da3gs.cli.main import main\nstatus = main({arguments!r})\n"
        f"print('loaded:', *[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\nsys.exit(status)"
    )
    environment = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120} | kwargs
    return subprocess.run([sys.executable, "-c", code], check=False, **environment)


@pytest.fixture
def scene_file(tmp_path):
    path = tmp_path / "scene.ply"
    ones = torch.ones(4)
    gaussians = Gaussians(torch.zeros(4, 3), torch.eye(4), torch.ones(4, 3), ones / 2, torch.zeros(4, 1, 3))
    save_gaussians(gaussians, path)
    return path


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["--version"], ["--quiet", "--help"]])
def test_help_and_version_load_nothing_heavy(arguments):
    result = run_in_child(arguments)
    assert result.returncode == 0
    assert result.stderr == "loaded:\n"
    if "--version" in arguments:
        assert result.stdout == f"da3gs {__version__}\n"
    else:
        for name, command in COMMANDS.items():
            assert name in result.stdout and command.summary in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_examples_and_does_not_load_torch(name):
    if find_spec(COMMANDS[name].module) is None:
        pytest.skip(f"{COMMANDS[name].module} is not part of this checkout")
    result = run_in_child([*name.split(), "--help"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: da3gs {name}")
    for expected in ("Examples:", f"da3gs {name} ", "--debug", "--quiet"):
        assert expected in result.stdout
    loaded = result.stderr.splitlines()[-1].split()[1:]
    assert not {"torch", "numba", "gsplat", "viser", "nerfstudio"} & set(loaded)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inf"], "unknown command 'inf'; did you mean 'info'?"),
        (["convret", "a", "b"], "unknown command 'convret'; did you mean 'convert'?"),
        (["zzz"], "unknown command 'zzz'; known commands: "),
        (["--jsn"], "unknown option '--jsn'; the command comes first"),
        (["a\x1b[2J\nb"], "unknown command 'a [2J b'"),
    ],
)
def test_unknown_command(capsys, arguments, message):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}") and err.count("\n") == 1


def test_no_command_prints_the_help_to_stderr(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "usage: da3gs" in err


@pytest.mark.parametrize(
    "arguments", [["info"], ["info", "a.ply", "--jsno"], ["convert", "a.ply", "b.ply", "--sh-degree", "4"]]
)
def test_argument_errors_exit_2(capsys, arguments):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"da3gs {arguments[0]} --help" in err


@pytest.mark.parametrize("flag_first", [True, False])
def test_debug_shows_the_traceback(capsys, tmp_path, flag_first):
    arguments = ["info", str(tmp_path / "missing.ply")]
    assert main(["--debug", *arguments] if flag_first else [*arguments, "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and "InputError" in err
    assert err.splitlines()[-1].startswith("error: ")
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted; what was not complete has been removed"),
        (
            OSError(28, "No space left on device", "out.ply"),
            2,
            "error: out.ply: No space left on device; free space or choose another folder",
        ),
        (OSError("no number, no name"), 2, "error: no number, no name"),
    ],
)
def test_interruptions_and_system_errors_are_one_line(capsys, monkeypatch, scene_file, failure, status, line):
    def fail(path):
        raise failure

    monkeypatch.setattr(info, "gather_facts", fail)
    assert main(["info", str(scene_file)]) == status
    assert capsys.readouterr() == ("", line + "\n")


def test_programming_errors_are_not_hidden(monkeypatch, scene_file):
    def fail(path):
        raise KeyError("a bug")

    monkeypatch.setattr(info, "gather_facts", fail)
    with pytest.raises(KeyError, match="a bug"):
        main(["info", str(scene_file)])


def test_reader_of_stdout_gone_is_quiet(scene_file):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        result = run_in_child(["info", str(scene_file)], stdout=gone)
    assert result.returncode == 141
    assert [line for line in result.stderr.splitlines() if not line.startswith("loaded:")] == []


def test_command_whose_module_is_missing_fails_alone(capsys, monkeypatch, scene_file):
    monkeypatch.setitem(COMMANDS, "broken", Command("da3gs.cli.not_there", "NotThereCommand", "Nothing."))
    assert main(["broken"]) == 2
    err = capsys.readouterr().err
    assert err == "error: the command 'broken' cannot be loaded: module 'da3gs.cli.not_there' is not installed\n"
    assert main(["info", str(scene_file)]) == 0


@dataclass
class GreetCommand:
    """Greet.

    Examples:
      da3gs group greet
    """

    name: str = "you"
    """Whom."""

    def run(self) -> int:
        sys.stdout.write(f"hello {self.name}\n")
        return 3


def test_commands_of_two_words(capsys, monkeypatch):
    module = types.ModuleType("da3gs_test_greet")
    module.GreetCommand = GreetCommand
    monkeypatch.setitem(sys.modules, "da3gs_test_greet", module)
    monkeypatch.setitem(COMMANDS, "group greet", Command("da3gs_test_greet", "GreetCommand", "Greet someone."))
    assert main(["group", "greet", "--name", "Ada"]) == 3  # what the command returns is the exit status
    assert capsys.readouterr().out == "hello Ada\n"
    assert main(["group", "--help"]) == 0
    out = capsys.readouterr().out
    assert "group greet" in out and "convert" not in out
    assert main(["group", "great"]) == 2
    assert capsys.readouterr().err == "error: 'da3gs group' needs one of greet; got 'great'\n"
    assert main(["group"]) == 2
    assert "got nothing" in capsys.readouterr().err
    assert main(["grup", "greet"]) == 2
    assert "did you mean 'group'" in capsys.readouterr().err


def test_everything_after_two_dashes_belongs_to_the_command(capsys, tmp_path, monkeypatch, scene_file):
    monkeypatch.chdir(tmp_path)
    assert main(["info", "--", "--debug"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("quiet", "debug", "expected"), [
    (False, False, ["WARNING careful", "INFO by the way", "WARNING elsewhere"]),
    (True, False, ["WARNING careful"]),
    (False, True, ["WARNING careful", "INFO by the way", "DEBUG detail", "WARNING elsewhere"]),
])  # fmt: skip
def test_log_goes_to_stderr_once_at_the_level_asked_for(capsys, quiet, debug, expected):
    set_up_logging()
    set_up_logging(quiet=quiet, debug=debug)  # a second call replaces the first one's handler
    logger = logging.getLogger("da3gs.somewhere")
    logger.warning("careful")
    logger.info("by the way")
    logger.debug("detail")
    logging.getLogger("another.package").warning("elsewhere")
    logging.getLogger("another.package").info("not for you")
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == expected


def test_long_log_lines_stay_whole_when_there_is_no_terminal(capsys):
    set_up_logging()
    logging.getLogger("da3gs").warning("word " * 100 + "end")
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("no_color", [False, True])
def test_colour_on_a_terminal_unless_no_color(tmp_path, no_color):
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")} | {"TERM": "xterm"}
    if no_color:
        environment["NO_COLOR"] = "1"
    ours, theirs = pytest.importorskip("pty", reason="no pseudo-terminals here").openpty()
    try:
        result = run_in_child(["info", str(tmp_path / "missing.ply")], stderr=theirs, env=environment)
        shown = os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert result.returncode == 2
    assert ("\x1b[" in shown) is not no_color
    assert "missing.ply" in shown


def test_results_are_on_stdout_and_nothing_else(capsys, scene_file):
    assert main(["info", str(scene_file), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and json.loads(out)["count"] == 4
