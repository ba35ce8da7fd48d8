"""Some files of a folder that are replaced together, or not at all.

They are written in a new folder beside the old one. When all are there, the old ones are moved
away and the new ones into their places. Whatever fails before or between leaves the old ones as
they were. Other files of the folder, and the folder itself, are not touched.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replaced_files(
    folder: Path, owned: Callable[[Path], Iterable[str]], last: str
) -> Iterator[Path]:
    """An empty folder, whose files replace those of ``folder`` after a block of code.

    Args:
        folder: made if it is not there.
        owned: the files of a folder that are replaced, relative to it.
        last: the file that is moved away first and into its place last: what is left by a process
            that was killed in between has none.

    Raises:
        NotADirectoryError: ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: give a folder, or a name that is free.")
    folder = folder.resolve()
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    # Files can be moved within one disk only.
    beside = folder.parent if _can_move_from(folder.parent, folder) else folder
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.saving-", dir=beside))
    new, old = staging / "new", staging / "old"
    new.mkdir()
    try:
        yield new
        files = sorted(_files(new), key=last.__eq__)
        for name in files:
            _to_disk(new / name)
        replaced = sorted(owned(folder), key=last.__ne__)
        moves = [(folder / name, old / name) for name in replaced]
        _move_all(moves + [(new / name, folder / name) for name in files])
        _remove_empty({(folder / name).parent for name in replaced} - {folder})
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new:
            _remove_empty([folder])


def _can_move_from(parent: Path, folder: Path) -> bool:
    return os.access(parent, os.W_OK) and parent.stat().st_dev == folder.stat().st_dev


def _files(folder: Path) -> list[str]:
    return [each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file()]


def _to_disk(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _move_all(moves: list[tuple[Path, Path]]) -> None:
    """Move files; if one cannot be moved, move back those that were."""
    made: list[Path] = []
    try:
        for source, goal in moves:
            if not goal.parent.exists():
                made.append(goal.parent)
                goal.parent.mkdir(parents=True)
            source.rename(goal)
    except BaseException:
        for source, goal in reversed(moves):
            # A link whose target is relative leads nowhere until it is back: it counts as there.
            if os.path.lexists(goal) and not os.path.lexists(source):
                goal.rename(source)
        _remove_empty(reversed(made))
        raise


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
