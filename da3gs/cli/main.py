"""The `da3gs` application: find the command, parse its flags, run it, turn failures into one line and an exit status.

Exit status: 0 done, 2 bad input or arguments, 130 interrupted, 141 the reader of stdout went away.
"""

import dataclasses
import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from da3gs import __version__
from da3gs.errors import Da3gsError, InputError, MissingDependencyError


@dataclass(frozen=True)
class Command:
    """A command before its code is loaded: module, name of its dataclass in there, and a line for `da3gs --help`."""

    module: str
    class_name: str
    summary: str


# Keys of two words ("evaluate nvs") make groups.
COMMANDS: dict[str, Command] = {
    "demo": Command(
        "da3gs.cli.demo", "DemoCommand", "See it work on a procedural scene, with numbers beside the truth."
    ),
    "reconstruct": Command(
        "da3gs.cli.reconstruct", "ReconstructCommand", "Photographs, a video or a data set to Gaussian splats."
    ),
    "depth": Command("da3gs.cli.depth", "DepthCommand", "Depth maps of photographs, a video or a data set."),
    "refine": Command("da3gs.cli.refine", "RefineCommand", "Fit the splats of a scene to its own pictures."),
    "render": Command("da3gs.cli.render", "RenderCommand", "Render a Gaussian file to images or a video."),
    "view": Command("da3gs.cli.view", "ViewCommand", "Show a scene in the browser."),
    "convert": Command("da3gs.cli.convert", "ConvertCommand", "Convert a Gaussian file: format, frame, SH degree."),
    "info": Command("da3gs.cli.info", "InfoCommand", "Print what a Gaussian file holds."),
    "evaluate nvs": Command(
        "da3gs.cli.evaluate", "EvaluateNvsCommand", "View synthesis: PSNR, SSIM, LPIPS of held-out pictures."
    ),
    "evaluate pose": Command(
        "da3gs.cli.evaluate", "EvaluatePoseCommand", "Camera poses: relative-pose AUC and medians."
    ),
    "evaluate recon": Command(
        "da3gs.cli.evaluate", "EvaluateReconCommand", "Geometry: accuracy, completeness, F-score."
    ),
    "evaluate depth": Command("da3gs.cli.evaluate", "EvaluateDepthCommand", "Depth: delta1, AbsRel, by alignment."),
    "train": Command("da3gs.cli.train", "TrainCommand", "Train from a configuration; every key of it is a flag."),
    "doctor": Command(
        "da3gs.cli.doctor", "DoctorCommand", "Check this machine: what works, what to do about the rest."
    ),
    "completion": Command(
        "da3gs.cli.completion", "CompletionCommand", "Print a script that completes commands and flags in a shell."
    ),
}

GLOBAL_OPTIONS = """Every command also takes:
  --quiet   log warnings and errors only
  --debug   log more, and show the traceback of an error"""

_MAY_NOT = "check its permissions or choose another folder"
_NO_ROOM = "free space or choose another folder"
_REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _MAY_NOT),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _NO_ROOM),
}

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: Arguments without the program name; None takes those of the process.
    """
    # Before torch and numba load OpenMP: their idle threads would spin and take cores from each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    arguments, debug = _take_flag(arguments, "--debug")
    arguments, quiet = _take_flag(arguments, "--quiet")
    try:
        status = _dispatch(arguments, debug=debug, quiet=quiet)
        sys.stdout.flush()  # here, so that a reader that went away is noticed below and not at interpreter exit
        return status
    except Da3gsError as error:
        return _failed(str(error), debug)
    except BrokenPipeError:
        # What is still buffered goes nowhere; otherwise Python reports the same error again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        hint = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
        return _failed(f"{name}{error.strerror or error}{hint}", debug)
    except KeyboardInterrupt:
        _failed("interrupted; what was not complete has been removed", debug)
        return EXIT_INTERRUPTED


def _dispatch(arguments: list[str], *, debug: bool, quiet: bool) -> int:
    if not arguments:
        sys.stderr.write(_help_text() + "\n")
        return EXIT_BAD_INPUT
    if arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help_text() + "\n")
        return 0
    if arguments[0] == "--version":
        sys.stdout.write(f"da3gs {__version__}\n")
        return 0
    name, rest = _split_command(arguments)
    if name not in COMMANDS:
        members = [known for known in COMMANDS if known.startswith(f"{name} ")]
        if members and rest[:1] in (["-h"], ["--help"]):
            sys.stdout.write(_help_text(members) + "\n")
            return 0
        raise InputError(_unknown_command(name, rest, members))
    return _run(name, COMMANDS[name], rest, debug=debug, quiet=quiet)


def _run(name: str, command: Command, arguments: list[str], *, debug: bool, quiet: bool) -> int:
    import inspect

    import tyro

    from da3gs.cli.arguments import parse
    from da3gs.cli.console import set_up_logging

    command_class = getattr(_import_command(name, command.module), command.class_name)
    # tyro would drop the "Examples:" section of the docstring; the whole of it is the help text.
    description = f"{inspect.cleandoc(command_class.__doc__ or command.summary)}\n\n{GLOBAL_OPTIONS}"
    options: dict[str, Any] = {
        "prog": f"da3gs {name}",
        "description": description,
        "config": (tyro.conf.FlagCreatePairsOff,),
    }
    try:
        parsed = parse(command_class, arguments, **options)
    except SystemExit as exit_request:  # the help has been printed
        return exit_request.code if isinstance(exit_request.code, int) else EXIT_BAD_INPUT
    set_up_logging(quiet=quiet, debug=debug)
    _expand_home(parsed)
    return parsed.run()


def _expand_home(command: Any) -> None:
    """`~` at the start of paths, which shells leave alone in `--flag=~/path`."""
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if isinstance(value, Path):
            object.__setattr__(command, field.name, _at_home(value))  # a command may be frozen
        elif isinstance(value, list | tuple) and any(isinstance(item, Path) for item in value):
            expanded = (_at_home(item) if isinstance(item, Path) else item for item in value)
            object.__setattr__(command, field.name, type(value)(expanded))


def _at_home(path: Path) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111 - which leaves `~name` alone where no user has that name


def _import_command(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the command '{name}' cannot be loaded: module '{error.name}' is not installed"
        ) from error


def _failed(message: str, debug: bool) -> int:
    from da3gs.cli.console import print_error

    if debug:
        import traceback

        traceback.print_exc()
    print_error(message)
    return EXIT_BAD_INPUT


def _take_flag(arguments: list[str], flag: str) -> tuple[list[str], bool]:
    """Remove a global flag wherever it stands before `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [a for a in arguments[:end] if a != flag] + arguments[end:]
    return kept, len(kept) < len(arguments)


def _split_command(arguments: list[str]) -> tuple[str, list[str]]:
    two_words = " ".join(arguments[:2])
    if two_words in COMMANDS:
        return two_words, arguments[2:]
    return arguments[0], arguments[1:]


def _unknown_command(name: str, rest: Sequence[str], members: Sequence[str]) -> str:
    if members:
        got = f"got '{rest[0]}'" if rest else "got nothing"
        return f"'da3gs {name}' needs one of {', '.join(m.split()[1] for m in members)}; {got}"
    if name.startswith("-"):
        return f"unknown option '{name}'; the command comes first, see 'da3gs --help'"
    first_words = list(dict.fromkeys(known.split()[0] for known in COMMANDS))
    nearest = difflib.get_close_matches(name, first_words, n=1)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"known commands: {', '.join(first_words)}"
    return f"unknown command '{name}'; {hint}"


def _help_text(names: Sequence[str] | None = None) -> str:
    shown = list(COMMANDS) if names is None else list(names)
    width = max(map(len, shown))
    lines = [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in shown]
    return "\n".join(
        [
            "usage: da3gs COMMAND [OPTIONS]",
            "",
            "Photos in, 3D Gaussian splats out.",
            "",
            "Commands ('da3gs COMMAND --help' tells more):",
            *lines,
            "",
            GLOBAL_OPTIONS,
            "",
            "da3gs --version prints the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
