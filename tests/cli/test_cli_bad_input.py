"""Every bad input of `info` and `convert`: exit status 2, one line on stderr, nothing on stdout, no file left."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from da3gs import Gaussians, save_gaussians
from da3gs.cli.main import main
from da3gs.export.ply import property_names

IDENTITY = np.eye(4).tolist()


def matrix(**changes) -> str:
    value = np.eye(4)
    for key, number in changes.items():
        value[int(key[1]), int(key[2])] = number
    return json.dumps(value.tolist())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """good.ply and one damaged neighbour per fault; the working folder."""
    monkeypatch.chdir(tmp_path)
    gaussians = Gaussians(
        torch.rand(50, 3),
        torch.rand(50, 4) + 0.1,
        torch.rand(50, 3) + 0.1,
        torch.full((50,), 0.5),
        torch.rand(50, 4, 3),
    )
    save_gaussians(gaussians, "good.ply")
    good = Path("good.ply").read_bytes()
    head, body = good.split(b"end_header\n")
    values = np.frombuffer(body, "<f4").reshape(50, len(property_names(1))).copy()
    values[7, 1] = np.nan
    Path("a_folder").mkdir()
    Path("folder.ply").mkdir()
    files = {
        "empty.ply": b"",
        "text.ply": b"Dear diary,\ntoday I made no splats.\n",
        "truncated.ply": good[:-1],
        "half_header.ply": good[:100],
        "lying.ply": head.replace(b"vertex 50", b"vertex 4000000000") + b"end_header\n" + body,
        "nan.ply": head + b"end_header\n" + values.tobytes(),
        "no_opacity.ply": good.replace(b"float opacity", b"float opaqueness"),
        "list.ply": good.replace(b"property float scale_0", b"property list uchar float scale_0"),
        "good.xyz": good,
        "good.compressed.ply": good,
        "shear.json": matrix(m01=0.1).encode(),
        "mirror.json": matrix(m11=-1).encode(),
        "flat.json": matrix(m22=0).encode(),
        "stretched.json": matrix(m00=2).encode(),
        "projective.json": matrix(m30=0.5).encode(),
        "three_rows.json": json.dumps(IDENTITY[:3]).encode(),
        "ragged.json": b"[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1], [0, 0, 0, 1]]",
        "words.json": b'[["a", 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]',
        "object.json": b'{"scale": 1}',
        "nan.json": matrix(m03=float("nan")).encode(),
        "huge.json": matrix().replace("1.0", "1" + "0" * 400, 1).encode(),
        "deep.json": b"[" * 100_000,
        "not.json": b"1 0 0 0\n0 1 0 0\n",
        "binary.json": bytes(range(128, 256)),
    }
    for name, content in files.items():
        Path(name).write_bytes(content)
    return tmp_path


READING = {
    "missing.ply": "missing.ply: cannot read the file: No such file or directory",
    "a_folder": "a name without suffix is no known format",
    "folder.ply": "this is a folder",
    "empty.ply": "the file is empty",
    "text.ply": "not a PLY file",
    "truncated.ply": "truncated, the header promises 50 vertex rows",
    "half_header.ply": "header is truncated",
    "lying.ply": "promises 4000000000 vertex rows",
    "nan.ply": "y of vertex 7 is nan",
    "no_opacity.ply": "lacks opacity",
    "list.ply": "'scale_0' of element vertex is a list",
    "good.xyz": "'.xyz' is no known format of Gaussians; known suffixes: .ply",
    "good.compressed.ply": "'.compressed.ply'|compressed",
}

WRITING = {
    "out.obj": "'.obj' is no known format",
    "out": "a name without suffix",
    "nowhere/out.ply": "folder nowhere does not exist",
    "folder.ply": "is a folder",
    "good.ply/out.ply": "folder good.ply does not exist",
}

TRANSFORMS = {
    "1,2,3": "needs scale,qw,qx,qy,qz,tx,ty,tz or a JSON file",
    "1,1,0,0,0,0,0,zero": "needs scale,qw,qx,qy,qz,tx,ty,tz",
    "0,1,0,0,0,0,0,0": "scale of a similarity must be > 0",
    "nan,1,0,0,0,0,0,0": "finite",
    "1,0,0,0,0,0,0,0": "is not a quaternion",
    "1,1,0,0,0,0,inf,0": "finite",
    "missing.json": "cannot read missing.json: No such file",
    "a_folder": "cannot read a_folder",
    "shear.json": "shear.json: .*scaled rotation",
    "stretched.json": "stretched.json: .*scaled rotation",
    "mirror.json": "must not mirror or flatten",
    "flat.json": "must not mirror or flatten",
    "projective.json": "last row",
    "three_rows.json": "four lists of four numbers",
    "ragged.json": "four lists of four numbers",
    "words.json": "four lists of four numbers",
    "object.json": "four lists of four numbers",
    "nan.json": "finite",
    "huge.json": "huge.json",
    "deep.json": "is not JSON",
    "not.json": "is not JSON",
    "binary.json": "is not JSON",
}

CASES = {
    **{f"info {name}": (["info", name], message) for name, message in READING.items()},
    **{f"convert from {name}": (["convert", name, "out.ply"], message) for name, message in READING.items()},
    **{f"convert to {name}": (["convert", "good.ply", name], message) for name, message in WRITING.items()},
    **{
        f"transform {text}": (["convert", "good.ply", "out.ply", "--transform", text], message)
        for text, message in TRANSFORMS.items()
    },
    "opacity above 1": (["convert", "good.ply", "out.ply", "--min-opacity", "1.5"], r"must lie in \[0, 1\]; got 1.5"),
    "opacity nan": (["convert", "good.ply", "out.ply", "--min-opacity", "nan"], r"must lie in \[0, 1\]; got nan"),
    "nothing left": (["convert", "good.ply", "out.ply", "--min-opacity", "0.9"], "would drop all 50 Gaussians.* 0.5"),
    "nothing left, onto itself": (["convert", "good.ply", "good.ply", "--min-opacity", "0.9"], "would drop all 50"),
    "nan onto itself": (["convert", "nan.ply", "nan.ply"], "y of vertex 7 is nan"),
    "overflow, onto itself": (["convert", "good.ply", "good.ply", "--transform", "1e39,1,0,0,0,0,0,0"], "Gaussian 0"),
    "newline in a name": (["info", "two\nlines.ply"], "two lines.ply"),
}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("case", CASES)
def test_one_line_status_2_and_an_untouched_folder(folder, capsys, case):
    arguments, message = CASES[case]
    before = snapshot(folder)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n") and len(err) < 400
    assert re.search(message, err), err
    assert snapshot(folder) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(folder, capsys):
    Path("locked").mkdir(mode=0o555)
    assert main(["convert", "good.ply", "locked/out.ply"]) == 2
    assert "Permission denied" in capsys.readouterr().err
