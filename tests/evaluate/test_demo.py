"""The demo's folder: its own is replaced, nobody else's."""

import pytest

from da3gs.errors import InputError
from da3gs.evaluate.demo import run_demo


def test_somebodys_photographs_are_not_taken_for_an_earlier_demo(tmp_path, monkeypatch):
    (tmp_path / "trip/photos").mkdir(parents=True)
    (tmp_path / "trip/photos/1.jpg").write_bytes(b"precious")
    monkeypatch.setattr("da3gs.evaluate.demo._photograph", lambda *_: pytest.fail("work began"))
    with pytest.raises(InputError, match=r"trip holds other files \(photos\), which a demo would replace"):
        run_demo(tmp_path / "trip")
    with pytest.raises(InputError, match="does not exist; create it first"):
        run_demo(tmp_path / "no/where")
    assert (tmp_path / "trip/photos/1.jpg").read_bytes() == b"precious"
