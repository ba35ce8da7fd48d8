"""Random numbers that a dataset's transforms draw are the strategy's: MAGD leaves them alone."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from avalanche_magd.benchmarks import split_digits
from avalanche_magd.metrics import train_evaluation_classifier
from avalanche_magd.runtime.random_state import random_states_kept, seeded

CPU = torch.device("cpu")

SOURCES: list[Callable[[], float]] = [
    lambda: float(np.random.rand()),  # noqa: NPY002
    random.random,
    lambda: float(torch.rand(())),
]


def seed_all(seed: int) -> None:
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("draw", SOURCES, ids=["numpy", "python", "torch"])
def test_seeded_decides_what_is_drawn_and_puts_the_state_back(draw: Callable[[], float]) -> None:
    seed_all(1)
    expected = draw()
    seed_all(1)
    inside = []
    for _ in range(2):
        with seeded(7, CPU):
            inside.append(draw())
    assert inside[0] == inside[1] != expected
    assert draw() == expected


@pytest.mark.parametrize("draw", SOURCES, ids=["numpy", "python", "torch"])
def test_states_are_put_back_after_an_error(draw: Callable[[], float]) -> None:
    def fail() -> None:
        draw()
        raise KeyError

    seed_all(1)
    expected = draw()
    seed_all(1)
    with pytest.raises(KeyError), random_states_kept(CPU):
        fail()
    assert draw() == expected


@pytest.mark.parametrize("draw", SOURCES, ids=["numpy", "python", "torch"])
def test_training_the_evaluation_classifier_draws_nothing(draw: Callable[[], float]) -> None:
    def noisy(image: Tensor) -> Tensor:
        return image + 0.01 * draw()

    benchmark = split_digits(5, seed=0, train_transform=noisy, eval_transform=noisy)
    seed_all(1)
    expected = draw()
    seed_all(1)
    train_evaluation_classifier(benchmark.train_stream[:1])
    assert draw() == expected
