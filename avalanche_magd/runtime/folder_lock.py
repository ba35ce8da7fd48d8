"""A folder that one run at a time writes to."""

from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from avalanche_magd.runtime.distributed import is_main_process

FILE: Final = ".lock"
WAIT: Final = 10.0
"""Seconds: as long as the worker processes of a run that was killed may outlive it."""


class FolderLock:
    """Holds a folder from :meth:`hold` on until the lock is deleted, or its process ends.

    A copy, pickled or not, holds nothing yet. Locks of one process share what they hold.
    """

    def __init__(self) -> None:
        self._lock: Any = None

    def __reduce__(self) -> Any:
        return FolderLock, ()

    def hold(self, folder: Path, name: str) -> None:
        """Make a folder, and hold it; of several processes of one run the main one does.

        Raises:
            RuntimeError: another run holds it; the message calls the folder by this name.
        """
        if not is_main_process():
            return
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / FILE, timeout=WAIT, thread_local=False, is_singleton=True)
        if lock is not self._lock:
            try:
                lock.acquire()
            except Timeout as error:
                raise RuntimeError(
                    f"{name}={str(folder)!r} is in use by another run, which writes its files "
                    "there: give each run a folder of its own, or wait until that one has ended."
                ) from error
            self._lock = lock
