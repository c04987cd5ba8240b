"""Write files so that a final name never holds a partial file."""

import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from da3gs.errors import Da3gsError, InputError

# Empty file by which a folder that was written here is told from a folder of the user's.
MARK = ".da3gs"

_WRITE_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


def check_replaceable(folder: str | os.PathLike, what: str, own: Collection[str], marks: Collection[str] = ()) -> None:
    """InputError unless a folder may be written as a whole.

    It may be new (in an existing folder), empty, or an earlier one of its kind with nothing else in it.

    Args:
        folder: To be written.
        what: It will hold, for the message.
        own: Names that such a folder may hold.
        marks: Names that it holds for certain, by which an earlier one is told from other things of those names.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        raise InputError(f"cannot write {what} to {folder}: it is a file, a folder was expected")
    resolved = folder.resolve()
    if not resolved.parent.is_dir():
        raise InputError(f"cannot write {folder}: folder {resolved.parent} does not exist; create it first")
    if not os.access(resolved.parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {folder}: you may not write to {resolved.parent}; choose another folder")
    if not folder.is_dir():
        return
    found = {item.name for item in folder.iterdir()}
    foreign = sorted(found - set(own))
    if foreign or (found and not set(marks) <= found):
        name = foreign[0] if foreign else sorted(found)[0]
        raise InputError(
            f"folder {folder} holds other files ({name}), which {what} would replace; choose a new or empty folder"
        )
    if resolved == Path.cwd():
        raise InputError(f"the current folder cannot be replaced by {what}; name another one, such as out/")


@contextmanager
def atomic_path(path: str | os.PathLike, *, directory: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success rename it to `path`, on any error remove it.

    The temporary name keeps the suffix (encoders and writers choose their format by it) and starts with a dot.

    Args:
        path: Final path. Its folder must exist. An existing file is replaced; an existing folder only if `directory`.
        directory: Yield an (already created) folder instead of a file name.

    Raises:
        InputError: The folder of `path` does not exist or cannot be written, or `path` is of the other kind.
    """
    final = Path(path)
    if not final.name:  # "." and the like
        final = final.resolve()
    parent = final.parent
    if not parent.is_dir():
        raise InputError(f"cannot write {final}: folder {parent} does not exist; create it first")
    if final.is_dir() and not directory:
        raise InputError(f"cannot write {final}: it is a folder, a file name was expected")
    if final.is_file() and directory:
        raise InputError(f"cannot write {final}: it is a file, a folder name was expected")
    try:
        holder = Path(tempfile.mkdtemp(prefix=f".{final.stem}.", dir=parent))
    except OSError as error:
        raise InputError(
            f"cannot write {final}: {error.strerror or error}; choose a folder you may write to"
        ) from error
    temporary = holder / final.name
    try:
        if directory:
            temporary.mkdir()
        yield temporary
        if directory and final.is_dir():
            old = holder / "replaced"
            os.rename(final, old)
            try:
                os.rename(temporary, final)
            finally:  # an interrupt counts as well
                if not final.exists():
                    os.rename(old, final)
        else:
            os.replace(temporary, final)
    except Da3gsError as error:
        # A file inside a folder that is being written: its user knows the final name only.
        if str(temporary) not in str(error):
            raise
        raise type(error)(str(error).replace(str(temporary), str(final))) from error
    except OSError as error:
        # NumPy reports a short write without a number ("4000 requested and 128 written").
        if error.errno is not None and error.errno not in _WRITE_FAILURES:
            raise
        reason = error.strerror or f"the disk took only a part ({error})"
        raise InputError(f"cannot write {final}: {reason}; free space or choose another folder") from error
    finally:
        shutil.rmtree(holder, ignore_errors=True)
