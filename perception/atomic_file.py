"""Files that are either whole or absent: write to a temporary name, then rename."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perception.errors import InputError


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that no reader ever sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"Cannot write {path}: {error.strerror}; check the folder, its rights and free space."
        ) from error


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text, see `write_bytes`."""
    write_bytes(path, content.encode())


@contextmanager
def new_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends without an exception.

    Args:
        path: The folder to make.
        overwrite: Whether an existing folder may be replaced.

    Raises:
        InputError: `path` exists and may not be replaced, or cannot be made.
    """
    if path.exists() and not (overwrite and path.is_dir()):
        hint = "choose another name or pass --overwrite" if path.is_dir() else "it is a file"
        raise InputError(f"{path} exists already: {hint}.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"Cannot make {path}: {error.strerror}; check its parent.") from error
    try:
        yield temporary
        if path.exists():
            # renamed first: a reader, or whoever comes after a kill, never finds half a folder
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.replace(old)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
