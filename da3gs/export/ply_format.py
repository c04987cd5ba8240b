"""The PLY container: header and rows of scalar properties, for files nobody vouches for.

Source: Greg Turk, "The PLY Polygon File Format" (1994), plus what writers do today: CRLF headers, type names such as
``float32``, comments anywhere. `plyfile` is not used for reading because it believes the header: a count of four
billion in a file of 1 KB must be refused before anything is allocated, and every fault must name the file.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from da3gs.errors import FormatError, InputError

SCALAR_TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}

MAX_HEADER_BYTES = 1 << 20
BLOCK_ROWS = 8192  # 62 float columns x 8192 rows = 2 MB: a block is gathered and scattered while it is in the cache

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class PlyProperty:
    """One property; `type` is a numpy code without byte order ("f4"), `is_list` marks variable-length ones."""

    name: str
    type: str
    is_list: bool = False


@dataclass(frozen=True)
class PlyElement:
    """A table of `count` rows with the same properties."""

    name: str
    count: int
    properties: tuple[PlyProperty, ...]

    @property
    def property_names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.properties)

    @property
    def has_lists(self) -> bool:
        return any(p.is_list for p in self.properties)

    @property
    def row_bytes(self) -> int:
        """Size of one binary row; only meaningful without list properties."""
        return sum(np.dtype(p.type).itemsize for p in self.properties)


@dataclass(frozen=True)
class PlyHeader:
    """A parsed header. `encoding` is a key of `BYTE_ORDERS`; the body starts at byte `data_offset`."""

    path: Path
    encoding: str
    elements: tuple[PlyElement, ...]
    comments: tuple[str, ...]
    data_offset: int
    file_bytes: int

    def element(self, name: str) -> PlyElement:
        """The element of that name, else FormatError."""
        for element in self.elements:
            if element.name == name:
                return element
        found = ", ".join(e.name for e in self.elements) or "none"
        raise FormatError(f"{self.path}: the PLY header has no 'element {name}' (elements: {found})")


def read_header(path: str | os.PathLike) -> PlyHeader:
    """Parse the header of a PLY file.

    Raises:
        InputError: The file is missing, is no regular file, or cannot be opened.
        FormatError: It is not PLY, or its header is damaged.
    """
    path = Path(path)
    with _open(path) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: a regular file was expected")
        start = file.read(MAX_HEADER_BYTES)
    if not start:
        raise FormatError(f"{path}: the file is empty; a PLY file was expected")
    signature = re.match(rb"ply[ \t]*\r?\n", start)
    if signature is None:
        raise FormatError(f"{path}: not a PLY file (the first line must be 'ply')")
    end = re.search(rb"\n[ \t]*end_header[ \t]*\r?\n", start)
    if end is None:
        problem = "is truncated" if len(start) < MAX_HEADER_BYTES else f"is longer than {MAX_HEADER_BYTES} bytes"
        raise FormatError(f"{path}: the PLY header {problem} (no 'end_header' line)")
    text = start[signature.end() : end.start() + 1].decode("utf-8", errors="replace")
    encoding, elements, comments = _parse_header(path, text.split("\n"))
    return PlyHeader(path, encoding, elements, comments, end.end(), status.st_size)


def iter_rows(header: PlyHeader, element_name: str, columns: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Read the named columns of one element in blocks.

    Everything the header promises is compared with the size of the file before this function returns, so a caller may
    allocate `count` rows afterwards. Memory use is one block.

    Args:
        header: From `read_header`.
        element_name: The element to read; fixed-size elements before it are skipped.
        columns: Names of scalar properties, all present (see `PlyElement.property_names`).

    Returns:
        An iterator of (index of the first row, rows [n, len(columns)] float32). Double values are rounded to float32,
        beyond its range to infinity; finiteness is the caller's to check.

    Raises:
        FormatError: At once if the counts do not fit the file, while iterating if an ascii value does not parse.
    """
    element = header.element(element_name)
    by_name = {p.name: p for p in element.properties}
    lists = [name for name in columns if by_name[name].is_list]
    if lists:
        raise FormatError(
            f"{header.path}: property '{lists[0]}' of element {element_name} is a list; a number was expected"
        )
    before = header.elements[: header.elements.index(element)]
    if header.encoding == "ascii":
        _check_ascii_size(header, element)
        return _ascii_blocks(header, element, before, columns)
    offset = _check_binary_size(header, element, before)
    return _binary_blocks(header, element, offset, columns)


def _open(path: Path) -> BinaryIO:
    try:
        if path.is_dir():  # before open(): opening a folder fails with a less helpful message
            raise InputError(f"{path}: this is a folder; a file was expected")
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot read the file: {error.strerror or error}") from error
    except ValueError as error:  # a NUL inside the name
        raise InputError(f"{str(path)!r} cannot be a file name: {error}") from error


def _parse_header(path: Path, lines: list[str]) -> tuple[str, tuple[PlyElement, ...], tuple[str, ...]]:
    encoding: str | None = None
    comments: list[str] = []
    elements: list[tuple[str, int, list[PlyProperty]]] = []
    for number, line in enumerate(lines, start=2):
        words = line.split()
        where = f"{path}: PLY header line {number}"
        if not words:
            continue
        if words[0] in ("comment", "obj_info"):
            # Comments reach terminals: escape sequences hidden in them must not.
            comments.append(CONTROL_CHARACTERS.sub(" ", line.strip()[len(words[0]) :]).strip())
        elif words[0] == "format":
            if len(words) < 2 or words[1] not in BYTE_ORDERS or encoding is not None:
                raise FormatError(f"{where}: '{_shown(line)}' is not one of 'format {{{'|'.join(BYTE_ORDERS)}}} 1.0'")
            encoding = words[1]
        elif words[0] == "element":
            if len(words) != 3 or not re.fullmatch(r"[0-9]{1,19}", words[2]):
                raise FormatError(f"{where}: '{_shown(line)}' is not 'element NAME COUNT'")
            if any(name == words[1] for name, _, _ in elements):
                raise FormatError(f"{where}: element '{_shown(words[1])}' appears twice")
            elements.append((words[1], int(words[2]), []))
        elif words[0] == "property":
            if not elements:
                raise FormatError(f"{where}: a property stands before the first element")
            properties = elements[-1][2]
            parsed = _parse_property(words)
            if parsed is None:
                raise FormatError(f"{where}: '{_shown(line)}' is not 'property TYPE NAME' with a known type")
            properties.append(parsed)
        else:
            raise FormatError(f"{where}: unknown keyword '{_shown(words[0])}'")
    if encoding is None:
        raise FormatError(f"{path}: the PLY header has no 'format' line")
    for name, _, properties in elements:
        names = [p.name for p in properties]
        if len(set(names)) < len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise FormatError(f"{path}: element {_shown(name)} has the property '{_shown(twice)}' twice")
    return encoding, tuple(PlyElement(n, c, tuple(p)) for n, c, p in elements), tuple(comments)


def _parse_property(words: list[str]) -> PlyProperty | None:
    if len(words) == 5 and words[1] == "list" and words[2] in SCALAR_TYPES and words[3] in SCALAR_TYPES:
        return PlyProperty(words[4], SCALAR_TYPES[words[3]], is_list=True)
    if len(words) == 3 and words[1] in SCALAR_TYPES:
        return PlyProperty(words[2], SCALAR_TYPES[words[1]])
    return None


def _shown(text: str) -> str:
    """Header text fit for a one-line message."""
    text = CONTROL_CHARACTERS.sub("?", text.strip())
    return text if len(text) <= 60 else text[:57] + "..."


def _check_binary_size(header: PlyHeader, element: PlyElement, before: Sequence[PlyElement]) -> int:
    """Offset of the element's first row, once the file is known to hold all of its rows."""
    for other in (*before, element):
        if other.has_lists:
            blocked = "cannot be skipped" if other is not element else "has rows of unknown size"
            raise FormatError(
                f"{header.path}: element {_shown(other.name)} with a list property {blocked}; "
                f"re-export the file with element {element.name} first and scalar properties only"
            )
    offset = header.data_offset + sum(e.count * e.row_bytes for e in before)
    promised = element.count * element.row_bytes
    available = max(0, header.file_bytes - offset)
    promise = f"the header promises {element.count} {element.name} rows of {element.row_bytes} bytes"
    if promised > available:
        raise FormatError(f"{header.path}: truncated, {promise} but {available} bytes are left for them")
    is_last = element is header.elements[-1]
    if is_last and available - promised >= max(1, element.row_bytes):
        raise FormatError(f"{header.path}: {promise} but {available - promised} more bytes follow; the count is wrong")
    return offset


def _check_ascii_size(header: PlyHeader, element: PlyElement) -> None:
    # The shortest row is one digit and one separator per property; the last separator may be missing.
    available = header.file_bytes - header.data_offset
    if element.count * 2 * max(1, len(element.properties)) - 1 > max(0, available):
        raise FormatError(
            f"{header.path}: truncated, the header promises {element.count} {element.name} rows of "
            f"{len(element.properties)} values but only {available} bytes follow"
        )


def _binary_blocks(
    header: PlyHeader, element: PlyElement, offset: int, columns: Sequence[str]
) -> Iterator[tuple[int, np.ndarray]]:
    order = BYTE_ORDERS[header.encoding]
    starts, position = {}, 0
    for p in element.properties:
        starts[p.name] = (order + p.type, position)
        position += np.dtype(p.type).itemsize
    row = np.dtype(
        {
            "names": [str(i) for i in range(len(columns))],
            "formats": [starts[name][0] for name in columns],
            "offsets": [starts[name][1] for name in columns],
            "itemsize": position,
        }
    )
    with _open(header.path) as file:
        file.seek(offset)
        for first in range(0, element.count, BLOCK_ROWS):
            count = min(BLOCK_ROWS, element.count - first)
            data = file.read(count * position)
            if len(data) != count * position:
                raise FormatError(f"{header.path}: the file became shorter while it was read")
            block = np.frombuffer(data, dtype=row)
            values = np.empty((count, len(columns)), dtype=np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                for i in range(len(columns)):
                    values[:, i] = block[str(i)]
            yield first, values


def _ascii_blocks(
    header: PlyHeader, element: PlyElement, before: Sequence[PlyElement], columns: Sequence[str]
) -> Iterator[tuple[int, np.ndarray]]:
    names = element.property_names
    indices = [names.index(name) for name in columns]
    with _open(header.path) as file:
        file.seek(header.data_offset)
        lines = (line for line in file if not line.isspace())
        for _ in islice(lines, sum(e.count for e in before)):
            pass
        for first in range(0, element.count, BLOCK_ROWS):
            count = min(BLOCK_ROWS, element.count - first)
            block = [line.decode("latin-1") for line in islice(lines, count)]
            if len(block) != count:
                raise FormatError(
                    f"{header.path}: truncated, the header promises {element.count} {element.name} rows "
                    f"but the file ends after {first + len(block)}"
                )
            try:
                table = np.loadtxt(block, dtype=np.float64, comments=None, ndmin=2)
            except ValueError as error:
                reason = _shown(str(error).split(";")[0])
                raise FormatError(f"{header.path}: bad value after {element.name} row {first}: {reason}") from error
            if table.shape != (count, len(names)):
                raise FormatError(
                    f"{header.path}: {element.name} rows after {first} hold {table.shape[1]} values; "
                    f"the header lists {len(names)} properties"
                )
            with np.errstate(over="ignore", invalid="ignore"):
                yield first, table[:, indices].astype(np.float32)
        if element is header.elements[-1] and next(lines, None) is not None:
            raise FormatError(f"{header.path}: more than {element.count} {element.name} rows; the count is wrong")
