"""A disk that is full at a random write costs what could not be written, and nothing else."""

import functools
import subprocess
import sys
from pathlib import Path

import full_disk
import pytest

MOUNT = 'mount -t tmpfs -o size=16m none "$0" && exec "$@"'
"""A small disk, for one process and its children."""


@functools.cache
def private_mounts() -> list[str] | None:
    """The command in which a process may mount what no other sees."""
    for options in (["-m"], ["-r", "-m"]):
        command = ["unshare", *options, "sh", "-c", MOUNT]
        try:
            tried = subprocess.run([*command, "/mnt", "true"], capture_output=True, check=False)
        except OSError:
            return None
        if tried.returncode == 0:
            return command
    return None


@pytest.mark.slow
@pytest.mark.parametrize("case", [each.__name__ for each in full_disk.CASES])
def test_a_full_disk_costs_only_what_could_not_be_written(tmp_path: Path, case: str) -> None:
    command = private_mounts()
    if command is None:
        pytest.skip("a small disk cannot be mounted: `unshare -m` needs root, or user namespaces")
    run = [sys.executable, full_disk.__file__, str(tmp_path), case]
    done = subprocess.run(
        [*command, str(tmp_path), *run], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
