"""The README's table of strategies is what the strategies do."""

import functools

import pytest
from avalanche.training.plugins import MIRPlugin
from compatibility import END, KINDS, README, START, STRATEGIES, status, table
from tiny import naive, tiny_plugin

from avalanche_magd.benchmarks import split_digits


@functools.cache
def published() -> dict[str, list[str]]:
    """Cells of the README's table, by strategy."""
    lines = README.read_text().split(START)[1].split(END)[0].splitlines()
    notes = {line[1]: line.split("`")[1] for line in lines if line.startswith("(")}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    return {
        row[0]: [notes[c[-2]] if c.startswith("fails bare") else c for c in row[1:]]
        for row in rows[2:]
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_does_with_magd_what_the_table_says(name: str, kind: str) -> None:
    assert status(name, kind) == published()[name][list(KINDS).index(kind)]


def test_every_strategy_is_in_the_table() -> None:
    assert list(published()) == list(STRATEGIES)
    assert "fails bare (b)" in table({(n, k): f"Error: {k}" for n in STRATEGIES for k in KINDS})


def test_the_memory_of_mir_is_used_beside_replay() -> None:
    mir = MIRPlugin(batch_size_mem=5, mem_size=40, subsample=20)
    strategy = naive([tiny_plugin(), mir])
    for experience in split_digits(5, seed=0).train_stream[:2]:
        strategy.train(experience)
    # It leaves out the classes of the last mini-batch, which generated rows would all be in.
    assert mir.replay_loader is not None
