"""A run that was stopped between two experiences goes on in another process, bit-identical."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from resumable_run import build, experiences, finish, magd_of, result, run
from tiny import naive, tiny_plugin

from avalanche_magd.checkpoints import maybe_load_checkpoint, save_checkpoint
from avalanche_magd.distillation import Distillation
from avalanche_magd.reporting import RunLogger
from avalanche_magd.runtime.random_state import SeededGenerator

RUN: dict[str, Any] = {"iterations": 8}


@pytest.mark.parametrize(
    ("stops", "arguments"),
    [
        ((1,), {}),
        ((2,), {}),
        ((1, 2), {"many_plugins": True}),
        ((2, 5), {"online": True}),
    ],
)
def test_a_run_that_is_resumed_in_other_processes_is_bit_identical(
    tmp_path: Path, stops: tuple[int, ...], arguments: dict[str, Any]
) -> None:
    finish(run, tmp_path / "whole", checkpoints=False, **RUN, **arguments)
    for stop in (*stops, None):
        finish(run, tmp_path / "resumed", checkpoints=True, stop_after=stop, **RUN, **arguments)
    assert result(tmp_path / "resumed") == result(tmp_path / "whole")


def test_a_checkpoint_holds_weights_and_optimizers_but_no_pool(tmp_path: Path) -> None:
    strategy = build(None, iterations=3)
    training = magd_of(strategy).generator_strategy
    assert training is not None
    training.distillation = Distillation(pool_size=3000, num_inference_steps=4)
    for experience in experiences(online=False)[:2]:
        strategy.train(experience, eval_streams=[])
    save_checkpoint(strategy, tmp_path / "strategy.pt")
    assert training.cost.pool_bytes > 4_000_000
    # The generator, and the solver with the two averages that Adam keeps of each weight.
    weights = sum(p.nbytes for p in training.model.parameters())
    weights += sum(3 * p.nbytes for p in strategy.model.parameters())
    assert weights < (tmp_path / "strategy.pt").stat().st_size < weights + 250_000


def test_a_strategy_without_a_checkpoint_starts_at_the_first_experience(tmp_path: Path) -> None:
    strategy = naive([])
    assert maybe_load_checkpoint(strategy, tmp_path / "none.pt") == (strategy, 0)


def test_a_damaged_checkpoint_is_refused_by_name_and_the_previous_one_is_used(
    digits: Any, tmp_path: Path
) -> None:
    file = tmp_path / "strategy.pt"
    strategy = naive([tiny_plugin()])
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
        save_checkpoint(strategy, str(file))
    os.truncate(file, 1000)
    with pytest.warns(UserWarning, match=r"strategy\.pt is not used: it is damaged"):
        _, following = maybe_load_checkpoint(naive([]), file)
    assert following == 1
    os.truncate(f"{file}.previous", 1000)
    with (
        pytest.warns(UserWarning, match="is not used"),
        pytest.raises(RuntimeError, match="cannot be resumed from, nor what was there before"),
    ):
        maybe_load_checkpoint(naive([]), file)


def test_checkpoints_of_a_gpu_are_mapped_with_and_without_an_index(
    digits: Any, tmp_path: Path
) -> None:
    strategy = naive([tiny_plugin()])
    strategy.train(digits.train_stream[0])
    for index, device in enumerate(("cuda", "cuda:1")):
        strategy.device = torch.device(device)
        save_checkpoint(strategy, tmp_path / f"{index}.pt")
        loaded, _ = maybe_load_checkpoint(naive([]), tmp_path / f"{index}.pt", map_location="cpu")
        assert loaded.device == torch.device("cpu")


def test_an_unpickled_source_of_random_numbers_continues_its_sequence() -> None:
    rng = SeededGenerator(torch.device("cpu"), 3)
    torch.rand(5, generator=rng)
    copied = pickle.loads(pickle.dumps(rng))
    assert torch.equal(torch.rand(5, generator=copied), torch.rand(5, generator=rng))


def test_a_source_of_random_numbers_of_a_gpu_is_seeded_anew_by_its_state_on_a_cpu() -> None:
    rng = SeededGenerator(torch.device("cpu"), 3)
    restore, (device, _, state) = rng.__reduce__()
    expected = torch.rand(5, generator=rng)
    moved = [torch.rand(5, generator=restore(device, "cuda", state)) for _ in range(2)]
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], expected)


def test_loading_a_checkpoint_prints_nothing(
    digits: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strategy = naive([tiny_plugin()])
    strategy.train(digits.train_stream[0])
    save_checkpoint(strategy, tmp_path / "strategy.pt")
    maybe_load_checkpoint(naive([]), tmp_path / "strategy.pt")
    assert capsys.readouterr().out == ""


def test_a_run_that_was_moved_writes_where_it_is_now(digits: Any, tmp_path: Path) -> None:
    def built(folder: Path) -> Naive:
        plugin = tiny_plugin(checkpoint_folder=folder / "generator")
        logger = RunLogger(folder / "run")
        evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[logger])
        return naive([plugin], evaluator=evaluator)

    old, new = tmp_path / "old", tmp_path / "new"
    strategy = built(old)
    strategy.train(digits.train_stream[0], eval_streams=[])
    save_checkpoint(strategy, old / "strategy.pt")
    old.rename(new)
    strategy, first = maybe_load_checkpoint(built(new), new / "strategy.pt")
    strategy.train(digits.train_stream[first], eval_streams=[])
    strategy.eval(digits.test_stream[:1])
    assert not old.exists()
    assert (new / "run" / "rows.json").exists()
    assert {each.name for each in (new / "generator").iterdir()} >= {
        "experience-0.pt",
        "experience-1.pt",
    }
