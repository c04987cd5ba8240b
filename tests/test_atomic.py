import os

import pytest

from da3gs.atomic import atomic_path
from da3gs.errors import InputError


def test_a_finished_file_replaces_the_old_one(tmp_path):
    target = tmp_path / "a.ply"
    target.write_text("old")
    with atomic_path(target) as path:
        assert path.suffix == ".ply" and path != target
        path.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["a.ply"]


def test_an_interrupted_write_leaves_everything_as_it_was(tmp_path):
    target = tmp_path / "a.ply"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as path:
        path.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.ply"]


def test_folders_are_replaced_as_a_whole(tmp_path):
    target = tmp_path / "out"
    for content in ("one", "two"):
        with atomic_path(target, directory=True) as path:
            (path / content).write_text(content)
    assert os.listdir(target) == ["two"] and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_exchange_brings_the_old_folder_back(tmp_path, monkeypatch, failure):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("years of work")
    rename = os.rename

    def once(source, goal):
        if goal == target and (source / "new").exists():
            raise failure
        rename(source, goal)

    monkeypatch.setattr("da3gs.atomic.os.rename", once)
    expected = InputError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected), atomic_path(target, directory=True) as path:
        (path / "new").write_text("")
    assert os.listdir(target) == ["old"] and os.listdir(tmp_path) == ["out"]


def test_places_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist; create it first"), atomic_path(tmp_path / "no" / "a"):
        pass
    with pytest.raises(InputError, match="it is a folder"), atomic_path(tmp_path):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="it is a file"), atomic_path(tmp_path / "file", directory=True):
        pass


def test_a_full_disk_is_one_clear_line(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with pytest.raises(InputError, match="No space left"), atomic_path(tmp_path / "a.ply") as path:
        path.symlink_to("/dev/full")
        path.write_text("x" * 100_000)
    assert os.listdir(tmp_path) == []
