"""Print what da3gs says to every mistake of the error table, as Markdown.

    python scripts/error_table.py > errors.md

Each command line is run, as the tests run it, on a folder of small damaged inputs.
"""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("tests", "tests/cli")]


def answer(row) -> str:
    """The error line of a row; the current folder holds the inputs."""
    import pytest

    from da3gs.cli.main import main

    said = io.StringIO()
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.enter_context(contextlib.redirect_stderr(said))
        if row.fault is not None:
            stack.enter_context(row.fault(patch))
        main(row.arguments)
    return said.getvalue().splitlines()[-1]


def print_table() -> None:
    from bad_inputs import build_inputs
    from error_rows import ROWS

    with tempfile.TemporaryDirectory() as folder:
        build_inputs(Path(folder))
        os.chdir(folder)
        print("| mistake | `da3gs ...` | answer |\n| --- | --- | --- |")
        for row in ROWS:
            cells = (row.what, f"`{row.line}`", answer(row).removeprefix("error: ").replace(f"{folder}/", ""))
            print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        os.chdir("/")


if __name__ == "__main__":
    print_table()
