"""Files that are written as a whole, so that what a killed process leaves can be read.

A file is written beside its place and moved there when it is on disk; what was there before stays
as ``<name>.previous``. A digest at the end tells a damaged file from a whole one.
"""

import glob
import hashlib
import io
import os
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from avalanche_magd.runtime.distributed import is_main_process

DIGEST_BYTES = 32
LEFT_OVER = 3600.0
"""Seconds after which a file that is not finished is nobody's."""
Content = TypeVar("Content")


def previous(file: Path) -> Path:
    """The file that keeps the content before the present one."""
    return file.with_name(f"{file.name}.previous")


def write_file(file: Path, save: Callable[[BinaryIO], None]) -> None:
    """Write a file, and its folder, as a whole; keep the one before.

    Of several processes the main one writes.

    Raises:
        OSError: there is no room, or the folder cannot be written to.
    """
    if not is_main_process():
        return
    content = io.BytesIO()
    save(content)
    payload = content.getbuffer()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(file)
        partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        try:
            with partial.open("xb") as stream:
                stream.write(payload)
                stream.write(hashlib.sha256(payload).digest())
                stream.flush()
                os.fsync(stream.fileno())
            if file.exists():
                file.replace(previous(file))
            partial.replace(file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(
            error.errno,
            f"{file} cannot be written, and what was there before stays: {error.strerror}. Make "
            "room there, or choose another place",
        ) from error


def _remove_leftovers(file: Path) -> None:
    """Remove what processes that were killed while writing left; others may be writing now."""
    for each in file.parent.glob(f".{glob.escape(file.name)}.{'?' * 32}"):
        if time.time() - each.stat().st_mtime > LEFT_OVER:
            each.unlink(missing_ok=True)


def read_file(file: Path, load: Callable[[BinaryIO], Content]) -> Content | None:
    """Read what :func:`write_file` wrote; if it is refused, what was there before.

    An error of ``load`` refuses a file. Each refusal is a warning that names file and reason.

    Returns:
        The content; ``None`` if no file can be used.
    """
    for candidate in (file, previous(file)):
        if not candidate.exists():
            continue
        try:
            whole = candidate.read_bytes()
            payload = whole[:-DIGEST_BYTES]
            if hashlib.sha256(payload).digest() != whole[-DIGEST_BYTES:]:
                raise ValueError("it is damaged, or no checkpoint of avalanche_magd")
            return load(io.BytesIO(payload))
        except Exception as error:
            warnings.warn(f"{candidate} is not used: {error}.", stacklevel=2)
    return None
