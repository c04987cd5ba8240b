"""Read a JSON file whose top level is an object."""

import json
from pathlib import Path
from typing import Any

from da3gs.errors import FormatError, InputError


def read_json_object(path: Path) -> dict[str, Any]:
    """The object of a UTF-8 file, with or without a byte order mark.

    Raises:
        InputError: The file does not exist.
        FormatError: It is not JSON, or its top level is no object.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path}: expected a JSON object at the top; got {type(content).__name__}")
    return content
