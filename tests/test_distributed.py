"""Several processes give the result of one; all end when one has ended, and go on together."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_run import results, start_all
from tiny import tiny_training

from avalanche_magd.distillation import CGGD, MAGD, baselines
from avalanche_magd.runtime.distributed import TIMEOUT, process_count, rank

SETTINGS: dict[str, dict[str, Any]] = {
    "MAGD": {},
    "SGGD and guidance": {
        "mode": MAGD(snr_band=(0.05, 20.0)),
        "guidance": CGGD(guidance_scale=2.0),
    },
    "classified by the solver": {"guidance": CGGD(conditional=False)},
    "accumulated gradients": {"gradient_accumulation_steps": 3},
    "lessons on the fly": {"mode": baselines.dgr, "on_the_fly": True},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_two_processes_give_the_result_of_one(tmp_path: Path, setting: str) -> None:
    (alone,) = results(tmp_path / "alone", 1, **SETTINGS[setting])
    first, second = results(tmp_path / "together", 2, **SETTINGS[setting])
    for name in ("solver", "generator", "replayed", "errors"):
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], alone[name], rtol=1e-3, atol=2e-4)
    assert first["spent"] == second["spent"]
    assert first["spent"] == alone["spent"]
    for name in ("run", "generator"):
        assert list((tmp_path / "together").glob(f"{name}-0/*"))
        assert not list((tmp_path / "together").glob(f"{name}-1/*"))


def test_when_one_process_is_killed_the_others_end_with_an_error_and_all_can_be_resumed(
    tmp_path: Path,
) -> None:
    undisturbed, _ = results(tmp_path / "undisturbed", 2)
    output, folder = tmp_path / "killed", tmp_path / "checkpoints"
    survivor, victim = start_all(output, 2, folder=folder, dies_at=13)
    victim.join(120)
    killed = time.monotonic()
    survivor.join(120)
    assert victim.exitcode == -9
    assert survivor.exitcode == 1
    assert time.monotonic() - killed < TIMEOUT.total_seconds() / 10
    assert "Another of the 2 processes has ended" in (output / "error-0.txt").read_text()
    again, _ = results(output, 2, folder=folder)
    assert torch.equal(again["generator"], undisturbed["generator"])
    assert torch.equal(again["solver"], undisturbed["solver"])
    # Of the second experience's 20 steps the first 10 were not done again; 8 and 8 rows each.
    assert undisturbed["spent"][-1] - again["spent"][-1] == 20 * 8 + 10 * 16


def test_processes_with_different_seeds_are_refused(tmp_path: Path) -> None:
    for process in start_all(tmp_path, 2, seeds=[0, 1]):
        process.join(120)
        assert process.exitcode == 1
    assert "same seeds" in (tmp_path / "error-0.txt").read_text()


def test_a_solver_that_is_wrapped_for_data_parallelism_sees_other_rows_in_each_process(
    tmp_path: Path,
) -> None:
    first, second = results(tmp_path, 2, wrapped=True)
    for name in ("solver", "generator"):
        assert torch.equal(first[name], second[name])
    assert not torch.equal(first["replayed"], second["replayed"])


def test_rank_and_count_are_read_from_a_complete_address_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # a scheduler's; no address to meet at
    assert (rank(), process_count()) == (0, 1)
    for name, value in (("RANK", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert (rank(), process_count()) == (2, 4)
    with pytest.raises(ValueError, match="train_mb_size must be at least 4, got 3"):
        tiny_training(train_mb_size=3)
