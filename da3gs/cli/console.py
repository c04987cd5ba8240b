"""What commands share when they talk to a terminal. stdout is for results, stderr for everything else."""

import json
import logging
import os
import re
import sys
from typing import Any

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def set_up_logging(*, quiet: bool = False, debug: bool = False) -> None:
    """Send the log, Python warnings included, to stderr: coloured by rich on a terminal, plain lines elsewhere.

    The level is INFO; `quiet` raises it to ERROR for Python warnings and other packages and to WARNING for da3gs;
    `debug` lowers da3gs to DEBUG. rich itself honours NO_COLOR.
    """
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, "da3gs_handler", False):
            root.removeHandler(old)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False)
    else:
        # rich wraps at 80 columns when there is no terminal, which breaks messages into pieces for whoever greps them.
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.da3gs_handler = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(logging.ERROR if quiet else logging.WARNING)
    logging.getLogger("da3gs").setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)
    logging.captureWarnings(True)


def print_error(message: str) -> None:
    """One line `error: ...` on stderr, whatever the message holds."""
    label = "error:"
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        label = f"\x1b[1;31m{label}\x1b[0m"
    sys.stderr.write(f"{label} {one_line(message)}\n")


def print_result(text: str) -> None:
    """A result for stdout."""
    # File names may hold bytes that are no UTF-8; they are shown escaped, as Python does on stderr.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="backslashreplace").decode(encoding) + "\n")


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout; NaN and infinity, which JSON lacks, are refused."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


def one_line(text: str) -> str:
    """The text with runs of line breaks and control characters, terminal escapes included, as single spaces."""
    return _UNPRINTABLE.sub(" ", text).strip()


def human_bytes(count: int) -> str:
    """File size in binary units: "164 B", "1.5 MiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
