"""The table of strategies in the README of the examples says what the strategies do."""

import functools

import pytest
from avalanche.training.plugins import MIRPlugin
from compatibility import (
    END,
    KINDS,
    NO_PLUGINS,
    NOTHING,
    README,
    START,
    STORES,
    STRATEGIES,
    WORKS,
    status,
    table,
)
from tiny import naive, tiny_plugin

from avalanche_magd.benchmarks import split_digits


@functools.cache
def published() -> dict[str, list[str]]:
    """Cells of the table, by strategy."""
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


@pytest.mark.parametrize("kind", ["class-incremental", "online"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_does_the_same_with_whole_mini_batches(name: str, kind: str) -> None:
    expected = published()[name][list(KINDS).index(kind)]
    assert status(name, kind, whole=True) == expected


@pytest.mark.parametrize(
    ("cell", "strategies"),
    [
        (STORES, {"GSS_greedy"}),
        (NOTHING, {"Cumulative", "JointTraining"}),
        (NO_PLUGINS, {"PackNet"}),
    ],
)
def test_few_strategies_do_anything_but_work_or_fail(cell: str, strategies: set[str]) -> None:
    assert {name for name, cells in published().items() if cell in cells} == strategies


def test_the_table_names_no_other_outcome_than_these_and_errors() -> None:
    cells = {cell for row in published().values() for cell in row}
    errors = cells - {WORKS, STORES, NOTHING, NO_PLUGINS}
    assert all("Error" in error.split(":")[0] for error in errors)


def test_every_strategy_is_in_the_table() -> None:
    assert list(published()) == list(STRATEGIES)


def test_errors_are_notes_of_the_table() -> None:
    statuses = {(name, kind): f"Error: {kind}" for name in STRATEGIES for kind in KINDS}
    lines = table(statuses).splitlines()
    assert "| Naive | fails bare (a) | fails bare (b) | fails bare (c) | fails bare (d) |" in lines
    assert "(b) `Error: class-incremental`  " in lines


def test_mir_draws_from_its_memory_beside_replay() -> None:
    mir = MIRPlugin(batch_size_mem=5, mem_size=40, subsample=20)
    strategy = naive([tiny_plugin(), mir])
    for experience in split_digits(5, seed=0).train_stream[:2]:
        strategy.train(experience)
    # MIR draws no classes of the last mini-batch: with generated rows in it, it would draw none.
    assert mir.replay_loader is not None
