"""Damaged and hostile .ply files: one clear FormatError that names the file, and no memory spent on lies."""

import io
import os
import re
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData, PlyElement

from da3gs import Gaussians, load_gaussians, save_gaussians
from da3gs.errors import FormatError, InputError
from da3gs.export.ply import property_names, read_ply


def header(count=1, names=None, encoding="binary_little_endian", kind="float") -> bytes:
    names = property_names(0) if names is None else names
    lines = ["ply", f"format {encoding} 1.0", f"element vertex {count}", *(f"property {kind} {n}" for n in names)]
    return ("\n".join([*lines, "end_header"]) + "\n").encode()


def row(**changes) -> bytes:
    values = dict.fromkeys(property_names(0), 0.0) | {"rot_0": 1.0} | changes
    return np.array(list(values.values()), "<f4").tobytes()


def without(*dropped, degree=0) -> list[str]:
    return [n for n in property_names(degree) if n not in dropped]


ROW = row()
ASCII_ROW = b"0 0 0 0 0 0 0 0 0 0 0 0 0 1 0 0 0\n"
LIST_VERTEX = header().replace(b"property float opacity", b"property list uchar float opacity")
LIST_BEFORE = header().replace(
    b"element vertex", b"element face 1\nproperty list uchar int vertex_indices\nelement vertex"
)
LIST_BEHIND = header().replace(b"end_header", b"element face 1\nproperty list uint double vertex_indices\nend_header")

BAD_FILES = {
    "empty": (b"", "empty"),
    "text": (b"hello, this is no splat\n" * 50, "not a PLY file"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a PLY file"),
    "only the first line": (b"ply\n", "header is truncated"),
    "cut inside the header": (header()[:60], "header is truncated"),
    "header without end": (b"ply\n" + b"comment x\n" * 200_000, "longer than 1048576 bytes"),
    "no format": (
        header().replace(b"format binary_little_endian 1.0\n", b"") + ROW,
        "line 2: expected one of {format, ",
    ),
    "unknown format": (header(encoding="binary_middle_endian") + ROW, "binary_middle_endian"),
    "unknown type": (header(kind="half") + ROW, "line 4: field type 'half' not in"),
    "unknown keyword": (
        header().replace(b"property float x", b"properly float x"),
        "line 4: expected one of {element, .*property",
    ),
    "property before element": (
        header().replace(b"element vertex 1\n", b"") + ROW,
        "line 3: expected one of {element, ",
    ),
    "negative count": (header(count=-1) + ROW, "'element vertex -1' is not"),
    "count is text": (header(count="many") + ROW, "'element vertex many' is not"),
    "count of fifty digits": (header(count="9" * 50) + ROW, "is not 'element NAME COUNT'"),
    "property twice": (header(names=[*property_names(0), "x"]) + ROW + bytes(4), "two properties with same name"),
    "element twice": (
        header().replace(b"end_header", b"element vertex 1\nend_header") + ROW,
        "two elements with same name",
    ),
    "no vertices": (header().replace(b"vertex", b"face") + ROW, "no 'element vertex'"),
    "four billion": (header(count=4_000_000_000) + ROW * 15, "promises 4000000000 vertex rows"),
    "largest count": (header(count=9_999_999_999_999_999_999) + ROW * 15, "truncated"),
    "four billion in ascii": (header(count=4_000_000_000, encoding="ascii") + ASCII_ROW, "promises 4000000000"),
    "four billion rows before": (
        header().replace(b"element vertex", b"element camera 4000000000\nproperty float fx\nelement vertex") + ROW,
        "truncated",
    ),
    "last byte missing": (header(count=3) + ROW * 3 + ROW[:-1], None),  # filled in below
    "count too small": (header(count=2) + ROW * 5, "the count is wrong"),
    "count too small in ascii": (header(count=1, encoding="ascii") + ASCII_ROW * 2, "the count is wrong"),
    "rows missing in ascii": (
        header(count=2, encoding="ascii") + ASCII_ROW + b" " * 90,
        "'vertex': row 1: .*early end",
    ),
    "last line missing in ascii": (header(3, encoding="ascii") + b"0.00 " * 34 + ASCII_ROW * 2, "row 0: expected end"),
    "file ends early in ascii": (
        header(3, encoding="ascii") + ASCII_ROW.replace(b"0", b"0.00") * 2,
        "'vertex': row 2: early end-of-file",
    ),
    "word in ascii": (header(encoding="ascii") + ASCII_ROW.replace(b"1", b"one"), "row 0: property 'rot_0': malformed"),
    "short row in ascii": (
        header(encoding="ascii") + ASCII_ROW[2:] + b"\n\n\n",
        "row 0: property 'rot_3': early end-of-line",
    ),
    "ragged rows in ascii": (
        header(2, encoding="ascii") + ASCII_ROW[2:] + b"0 " + ASCII_ROW,
        "row 0: property 'rot_3': early end-of",
    ),
    "long row in ascii": (header(2, encoding="ascii") + ASCII_ROW + b"0 " + ASCII_ROW, "row 1: expected end-of-line"),
    "binary called ascii": (header(encoding="ascii") + bytes(range(128, 228)), "'ascii' codec can't decode byte 0x80"),
    "byte beyond ascii in the header": (
        header().replace(b"element", b"comment gr\xc3\xbc\xc3\x9fe\nelement") + ROW,
        "damaged PLY header: 'ascii' codec can't decode byte 0xc3",
    ),
    "integer beyond its type in ascii": (
        header(names=[*property_names(0), "label"], encoding="ascii").replace(b"float label", b"int label")
        + ASCII_ROW[:-1]
        + b" 1000000000000000000000000000000\n",
        "damaged PLY data: Python int",
    ),
    "element without property": (
        header().replace(b"end_header", b"element camera 9999999999\nend_header") + ROW,
        "element camera promises 9999999999 rows without a property",
    ),
    "element hidden behind a carriage return": (
        header(encoding="ascii").replace(
            b"end_header", b"comment\relement face 4000000000\rproperty char a\nend_header"
        )
        + ASCII_ROW * 2,
        "the count is wrong",
    ),
    "element hidden behind a line feed": (
        header().replace(b"\n", b"\r\n").replace(b"element vertex 1", b"element\nvertex 4000000000") + ROW,
        "promises 4000000000 vertex rows",
    ),
    "point cloud": (header(names=["x", "y", "z", "red"]) + bytes(16), r"point cloud or mesh\?.*lacks f_dc_0"),
    "no opacity": (header(names=without("opacity")) + bytes(64), "lacks opacity"),
    "two scales (2DGS)": (header(names=without("scale_2")) + bytes(64), "lacks scale_2"),
    "odd number of f_rest": (header(names=[*property_names(0), "f_rest_0"]) + bytes(72), "1 f_rest properties"),
    "hole in f_rest": (
        header(names=[*without("f_rest_4", degree=1), "f_rest_9"]) + bytes(26 * 4),
        "no f_rest_4",
    ),
    "list as opacity": (LIST_VERTEX + ROW, "'opacity' of element vertex is a list"),
    "list beside the numbers": (
        header().replace(b"end_header", b"property list uchar int tags\nend_header") + ROW,
        "promises 1 vertex rows of at least 69 bytes but 68",
    ),
    "list longer than the file": (LIST_BEFORE + b"\xff" + ROW, "'face': row 0: property 'vertex_indices': early end"),
    "four billion lists": (
        LIST_BEHIND.replace(b"face 1", b"face 4000000000") + ROW + bytes(9),
        "promises 4000000000 face rows of at least 4 bytes",
    ),
    "NaN position": (header(2) + ROW + row(y=np.nan), "y of vertex 1 is nan"),
    "NaN opacity": (header(2) + ROW + row(opacity=np.nan), "opacity of vertex 1 is nan"),
    "infinite scale": (header(1) + row(scale_2=-np.inf), "scale_2 of vertex 0 is -inf"),
    "NaN colour in ascii": (header(encoding="ascii") + ASCII_ROW[:-4] + b"nan 0\n", "rot_2 of vertex 0 is nan"),
    "scale too large": (header(1) + row(scale_1=89), "scale_1 of vertex 0 is 89; it should be the logarithm"),
    "zero quaternion": (header(2) + ROW + row(rot_0=0), "rotation of vertex 1 is a zero quaternion"),
    "double beyond float32": (
        header(kind="double") + np.array([1e300, *np.frombuffer(ROW, "<f4")[1:]], "<f8").tobytes(),
        "x of vertex 0 is inf",
    ),
    "compressed": (
        header().replace(b"element vertex", b"element chunk 0\nproperty float min_x\nelement vertex") + ROW,
        "compressed",
    ),
}
BAD_FILES["last byte missing"] = (header(count=4) + ROW * 3 + ROW[:-1], "4 vertex rows of 68 bytes but 271 bytes")


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_named_and_explained_in_one_line(tmp_path, name):
    content, message = BAD_FILES[name]
    path = tmp_path / "bad.ply"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            load_gaussians(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 200
    assert peak < 20 * len(content) + 4_000_000  # modules imported on the way count too


def test_list_of_four_billion_numbers(tmp_path):
    """Not in the table: plyfile asks the system for the room, gets none or leaves it untouched, and finds no data."""
    (tmp_path / "a.ply").write_bytes(LIST_BEHIND + ROW + b"\xff" * 9)
    with pytest.raises(FormatError, match="'face': row 0: property 'vertex_indices': early end-of-file"):
        load_gaussians(tmp_path / "a.ply")


def test_the_good_neighbours_of_the_bad_files_load(tmp_path):
    """The table above would prove nothing if its building blocks were rejected anyway."""
    for content in (header(3) + ROW * 3, header(1, encoding="ascii") + ASCII_ROW, header(0), header(1) + ROW + b"\n"):
        (tmp_path / "good.ply").write_bytes(content)
        count = int(re.search(rb"element vertex (\d+)", content)[1])
        assert len(load_gaussians(tmp_path / "good.ply").validate()) == count


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.ply", "No such file"),
        ("folder.ply", "this is a folder"),
        ("pipe.ply", "regular file"),
        ("a\0b.ply", "cannot be a file name"),
        ("cloud.las", "'.las' is no known format of Gaussians; known suffixes: .ply"),
        ("bare", "a name without suffix is no known format"),
    ],
)
def test_paths_that_are_no_gaussian_files(tmp_path, name, message):
    (tmp_path / "folder.ply").mkdir()
    if name == "pipe.ply":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no named pipes here")
        os.mkfifo(tmp_path / name)
        # Opening a pipe without a writer would wait for ever.
        holder = os.open(tmp_path / name, os.O_RDWR)
    try:
        with pytest.raises(InputError, match=message):
            load_gaussians(tmp_path / name)
    finally:
        if name == "pipe.ply":
            os.close(holder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scene.obj", "'.obj' is no known format"),
        ("nowhere/scene.ply", "does not exist"),
        ("folder.ply", "folder"),
    ],
)
def test_paths_that_cannot_be_written(tmp_path, name, message):
    (tmp_path / "folder.ply").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        save_gaussians(Gaussians.empty(), tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def small_files() -> list[bytes]:
    """A binary file of `save_gaussians`; the same in ascii with an element of lists before the vertices."""
    rng = torch.Generator().manual_seed(0)
    parts = [torch.rand(6, *shape, generator=rng) + 0.1 for shape in ((3,), (4,), (3,), (), (4, 3))]
    parts[3] = parts[3].clamp(0, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.ply"
        save_gaussians(Gaussians(*parts), path)
        faces = np.array([([0, 1, 2],), ([3],)], dtype=[("vertex_indices", "O")])
        elements = [PlyElement.describe(faces, "face"), PlyData.read(path)["vertex"]]
        ascii_file = io.BytesIO()
        PlyData(elements, text=True, comments=["one"]).write(ascii_file)
        return [path.read_bytes(), ascii_file.getvalue()]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_ends_in_gaussians_or_a_format_error(tmp_path_factory, small_files, data):
    """Set, cut, insert bytes anywhere: never another exception, never a NaN that comes through."""
    damaged = bytearray(data.draw(st.sampled_from(small_files)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "digit"])):
            case "set":
                damaged[at] = data.draw(st.integers(0, 255))
            case "cut":
                del damaged[at : at + data.draw(st.integers(1, 40))]
            case "insert":
                damaged[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "digit":
                damaged[at : at + 1] = data.draw(st.sampled_from([b"9", b"-", b"\n", b" ", b"list "]))
    path = tmp_path_factory.mktemp("fuzz") / "a.ply"
    path.write_bytes(bytes(damaged))
    try:
        gaussians = read_ply(path)
    except FormatError as error:
        assert "\n" not in str(error)
    else:
        gaussians.validate()
