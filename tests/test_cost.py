"""Costs: what is measured in a block counts for its phase, and no second for two."""

import time

import pytest
import torch
from tiny import tiny_generator

from avalanche_magd.distillation.cost import Cost, PhaseCost


def test_forwards_and_seconds_of_a_block_count_for_its_phase() -> None:
    generator, cost = tiny_generator(classes=(0,)), Cost()
    with cost.measure(cost.generation, generator), torch.no_grad():
        generator(torch.zeros(3, 1, 8, 8), torch.zeros(3).long(), torch.zeros(3).long())
    assert cost.generation.forwards == cost.forwards == 3
    assert cost.generation.seconds == cost.seconds > 0


@pytest.mark.parametrize("name", ["generation", "evaluation"])
def test_seconds_of_a_block_within_a_block_count_for_the_inner_one_alone(name: str) -> None:
    generator, cost = tiny_generator(), Cost()
    start = time.perf_counter()
    with cost.measure(cost.training, generator), cost.measure(getattr(cost, name), generator):
        time.sleep(0.05)
    elapsed = time.perf_counter() - start
    assert getattr(cost, name).seconds >= 0.05
    assert cost.training.seconds + getattr(cost, name).seconds <= elapsed
    assert cost.training.seconds < getattr(cost, name).seconds


def test_a_block_that_ends_by_an_error_is_counted() -> None:
    generator, cost = tiny_generator(), Cost()
    with pytest.raises(KeyboardInterrupt), cost.measure(cost.training, generator):
        raise KeyboardInterrupt
    assert cost.training.seconds > 0


def test_evaluation_and_solver_are_no_part_of_the_totals() -> None:
    spent = PhaseCost(forwards=5, backwards=5, seconds=5.0)
    cost = Cost(evaluation=spent, solver=spent, replay=PhaseCost(2, 0, 1.0))
    assert (cost.forwards, cost.seconds) == (2, 1.0)


def test_forwards_per_lesson_are_those_of_generation_and_zero_before_any_lesson() -> None:
    assert Cost().teacher_forwards_per_lesson == 0
    cost = Cost(generation=PhaseCost(forwards=30), replay=PhaseCost(forwards=9), lessons=20)
    assert cost.teacher_forwards_per_lesson == 1.5
