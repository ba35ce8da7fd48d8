"""Processes that do not meet, or should not: the cause is told first, and soon."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_run import free_port, meet_as_another_run, start_all
from resumable_run import processes
from tiny import tiny_training
from torch import distributed

from avalanche_magd.runtime import rendezvous
from avalanche_magd.runtime.distributed import Processes, process_count, rank

CPU = torch.device("cpu")
ADDRESS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """Of this machine; the environment says that this is one of two processes."""
    number = free_port()
    address = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": number, "RANK": 0}
    for name, value in address.items():
        monkeypatch.setenv(name, str(value))
    return number


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "PATIENCE", timedelta(seconds=0.2))
    monkeypatch.setattr(rendezvous, "TIMEOUT", timedelta(seconds=0.6))


@pytest.fixture
def program(port: int) -> Iterator[None]:
    """Something that listens at the port and answers nothing."""
    with socket.create_server(("127.0.0.1", port)):
        yield


def meet() -> None:
    Processes().check_same(b"", "nothing", CPU)


@pytest.mark.usefixtures("program")
def test_rank_0_says_first_that_its_port_is_in_use() -> None:
    with pytest.raises(RuntimeError, match=r"^Port \d+ is in use by another run .* MASTER_PORT"):
        meet()


@pytest.mark.usefixtures("program", "hurry")
def test_other_ranks_name_an_address_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RuntimeError, match=f"^Rank 1 cannot meet .*:{port}: .* does not answer"):
        meet()


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize(("number", "other"), [(0, 1), (1, 0)])
def test_a_lone_script_says_what_it_waits_for_and_what_to_unset(
    monkeypatch: pytest.MonkeyPatch, port: int, number: int, other: int
) -> None:
    monkeypatch.setenv("RANK", str(number))
    what = f"waits at 127.0.0.1:{port} .* for rank {other}.* of the 2 processes .* unset RANK"
    with (
        pytest.warns(UserWarning, match=f"Rank {number} {what}"),
        pytest.raises(RuntimeError, match=f"Rank {number} has waited .* in vain at"),
    ):
        meet()


@pytest.mark.usefixtures("hurry")
def test_a_process_does_not_join_another_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: int
) -> None:
    server = distributed.TCPStore("127.0.0.1", port, 2, True, wait_for_workers=False)
    monkeypatch.setenv("RANK", "1")
    with (
        pytest.warns(UserWarning, match="Rank 1 waits"),
        pytest.raises(RuntimeError, match="Rank 1 has waited"),
    ):
        meet()
    for name in ADDRESS:  # which the server of processes would keep
        monkeypatch.delenv(name)
    address = {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    stranger = processes().Process(target=meet_as_another_run, args=(tmp_path, address))
    stranger.start()
    stranger.join(60)
    error = (tmp_path / "error-1.txt").read_text(encoding="utf-8")
    assert error.startswith(f"Another run uses 127.0.0.1:{port}: its rank 1 is of process group")
    del server


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WORLD_SIZE", "two", "WORLD_SIZE must be an integer at least 1, got 'two'. .* unset"),
        ("WORLD_SIZE", "0", "WORLD_SIZE must be an integer at least 1, got '0'"),
        ("RANK", "first", "RANK must be an integer from 0 to 1, by WORLD_SIZE=2, got 'first'"),
        ("RANK", "2", "RANK must be an integer from 0 to 1, by WORLD_SIZE=2, got '2'"),
        ("RANK", "-1", "RANK must be an integer from 0 to 1"),
    ],
)
@pytest.mark.usefixtures("port")
def test_variables_that_make_no_sense_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        tiny_training()


@pytest.mark.usefixtures("port")
@pytest.mark.parametrize("value", ["0", "65536", "http"])
def test_a_port_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MASTER_PORT", value)
    with pytest.raises(ValueError, match=f"MASTER_PORT must be .* 65535, got '{value}'"):
        meet()


@pytest.mark.usefixtures("port")
def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (rank(), process_count()) == (0, 2)
    monkeypatch.setenv("RANK", "")
    assert (rank(), process_count()) == (0, 1)


def test_a_default_group_without_a_backend_for_the_device_is_told_as_that(port: int) -> None:
    store = distributed.TCPStore("127.0.0.1", port, 1, True)
    distributed.init_process_group("cuda:gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match=r"default process group .* device type cpu"):
            Processes().share({"a": torch.ones(1)}, 0, CPU)
    finally:
        distributed.destroy_process_group()


DIFFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "initial weights": ({"solver_seeds": [0, 1]}, "the solver's initial weights"),
    "argument of the plugin": ({"shares": [0.5, 0.25]}, "MAGDPlugin's arguments"),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_processes_whose_solvers_differ_are_refused(tmp_path: Path, difference: str) -> None:
    arguments, message = DIFFERENCES[difference]
    for process in start_all(tmp_path, 2, **arguments):
        process.join(120)
        assert process.exitcode == 1
    for number in range(2):
        error = (tmp_path / f"error-{number}.txt").read_text(encoding="utf-8")
        assert error.startswith("The 2 processes differ in")
        assert message in error


def test_processes_of_which_one_has_no_checkpoint_folder_are_refused_if_it_holds_any(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / "checkpoints", None]
    for process in start_all(tmp_path / "first", 2, folders=folders):
        process.join(120)
        assert process.exitcode == 0
    for process in start_all(tmp_path / "again", 2, folders=folders):
        process.join(120)
        assert process.exitcode == 1
    error = (tmp_path / "again" / "error-0.txt").read_text(encoding="utf-8")
    assert "how far their checkpoints are" in error


def test_when_a_process_has_fewer_experiences_the_others_end_and_say_that_it_may(
    tmp_path: Path,
) -> None:
    for process in start_all(tmp_path, 2, lengths=[2, 1]):
        process.join(120)
    error = (tmp_path / "error-0.txt").read_text(encoding="utf-8")
    assert "without one it had fewer experiences" in error
    assert not (tmp_path / "error-1.txt").exists()


def test_a_process_with_an_error_of_its_own_says_that_and_the_others_point_to_it(
    tmp_path: Path,
) -> None:
    for process in start_all(tmp_path, 2, fails_at=13):
        process.join(120)
        assert process.exitcode == 1
    own, other = (tmp_path / f"error-{rank}.txt" for rank in (1, 0))
    assert own.read_text(encoding="utf-8") == "an error of rank 1"
    assert "look for its own error" in other.read_text(encoding="utf-8")


RESTARTED = """
import os, sys, torch
from pathlib import Path
from avalanche_magd.runtime.distributed import Processes
attempt, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
for _ in range(2):
    Processes().check_same(b"", "nothing", torch.device("cpu"))
if (attempt, rank) == ("0", "1"):
    sys.exit(3)
Path(__file__).with_name(f"rank {rank} came at attempt {attempt}").touch()
"""


def test_processes_that_torchrun_starts_again_meet_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(RESTARTED, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "--max-restarts", "1", str(script)]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    came = {each.name for each in tmp_path.glob("rank *")}
    assert {"rank 0 came at attempt 1", "rank 1 came at attempt 1"} <= came
