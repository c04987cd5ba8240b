"""Every mistake of the error table: exit status 2, one line that names it, nothing written, nothing left behind."""

import re
from pathlib import Path

import pytest
from bad_inputs import build_inputs
from error_rows import ROWS

from da3gs.cli.main import COMMANDS, _split_command, main


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    build_inputs(folder)
    return folder


def snapshot(folder) -> dict:
    """Every path below a folder, with what would change if it were written."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_one_line_and_nothing_else(row, inputs, capsys, monkeypatch):
    if "/sys/kernel" in row.line and not Path("/sys/kernel").is_dir():
        pytest.skip("no folder here that even root cannot write to")
    monkeypatch.chdir(inputs)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    before = snapshot(inputs)
    if row.fault is None:
        status = main(row.arguments)
    else:
        with row.fault(monkeypatch):
            status = main(row.arguments)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert status == row.status, err
    assert out == ""
    assert sum(line.startswith("error: ") for line in lines) == 1 and lines[-1].startswith("error: "), err
    # What comes before is the log: the stages so far, and warnings.
    assert all(re.match(r"(INFO|WARNING) ", line) for line in lines[:-1]), err
    assert re.search(row.says, lines[-1]), lines[-1]
    assert len(lines[-1]) < 500
    left = snapshot(inputs)
    for name in row.leaves:
        assert left.pop(name) is None
        (inputs / name).rmdir()
    assert left == before


def test_the_table_covers_every_command():
    assert {_split_command(row.arguments)[0] for row in ROWS} >= set(COMMANDS)
    assert len({row.what for row in ROWS}) == len(ROWS)
