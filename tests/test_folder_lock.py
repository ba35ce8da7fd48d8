"""A folder that a run writes to is refused to other runs until it has ended."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from avalanche.training.plugins import EvaluationPlugin
from tiny import naive, tiny_training

from avalanche_magd.reporting import RunLogger
from avalanche_magd.runtime import folder_lock

HOLD = """
import sys, time
from pathlib import Path
from avalanche_magd.runtime.folder_lock import FolderLock
lock = FolderLock()
lock.hold(Path(sys.argv[1]), "folder")
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def held_by_another_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """That run is killed in the end."""
    monkeypatch.setattr(folder_lock, "WAIT", 0.1)
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield
        other.kill()


def test_a_checkpoint_folder_is_one_runs(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = tiny_training(checkpoint_folder=tmp_path)
    with held_by_another_run(tmp_path, monkeypatch):
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"checkpoint_folder=.* in use by another run"):
                training.train(digits.train_stream[0], eval_streams=[])
        assert not training.model.classes
    training.train(digits.train_stream[0], eval_streams=[])
    # Of one process: a copy that was pickled holds nothing of itself, and may go on.
    copy = pickle.loads(pickle.dumps(training))
    copy.train(digits.train_stream[1], eval_streams=[])


def test_the_folder_of_a_run_logger_is_one_runs(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = naive([], evaluator=EvaluationPlugin(loggers=[RunLogger(tmp_path)]))
    with held_by_another_run(tmp_path, monkeypatch):
        with pytest.raises(RuntimeError, match=r"RunLogger's folder=.* in use by another run"):
            strategy.train(digits.train_stream[0])
        assert strategy.clock.train_iterations == 0
    strategy.train(digits.train_stream[0])
    strategy.eval(digits.test_stream[:1])
    assert (tmp_path / "rows.json").exists()
