"""Few calls of the package lie between a callback of Avalanche and the generator's network."""

import traceback
from pathlib import Path
from typing import Any

import avalanche
import torch
from tiny import naive, tiny_training
from torch import Tensor, nn

import avalanche_magd
from avalanche_magd import DiffusionGenerator, MAGDPlugin, MAGDTraining
from avalanche_magd.distillation import Distillation

AVALANCHE = Path(avalanche.__file__).parent
PACKAGE = Path(avalanche_magd.__file__).parent
MOST_CALLS = 7


def calls_since_the_callback() -> list[str]:
    """Functions of the package that are being called, from the callback to the network.

    The callback, which Avalanche called, is the first of them.
    """
    calls: list[str] = []
    for frame in traceback.extract_stack():
        file = Path(frame.filename)
        if file.is_relative_to(AVALANCHE):
            calls.clear()
        elif file.is_relative_to(PACKAGE):
            calls.append(frame.name)
    return calls


class WatchedNetwork(nn.Module):
    """A network that records who calls it.

    Attributes:
        calls: of each forward in evaluation mode, the classes of the images and
            :func:`calls_since_the_callback`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls: list[tuple[set[int], list[str]]] = []

    def resize_class_embedding(self, num_class_embeds: int) -> None:
        """Its outputs do not depend on the class."""

    def forward(self, x_t: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        if not self.training:
            classes = set((class_labels - 1).tolist())
            self.calls.append((classes, calls_since_the_callback()))
        return self.scale * x_t


def watched_training() -> tuple[MAGDTraining, WatchedNetwork]:
    network = WatchedNetwork()
    training = tiny_training(
        model=DiffusionGenerator((1, 8, 8), network),
        distillation=Distillation(pool_size=8, num_inference_steps=2),
    )
    return training, network


def test_the_passes_of_a_plugin_reach_the_generator_within_seven_calls(digits: Any) -> None:
    training, network = watched_training()
    strategy = naive([MAGDPlugin(training)])
    first, second = digits.train_stream[:2]
    strategy.train(first)
    assert network.calls == []
    strategy.train(second)
    old, current = (set(each.classes_in_this_experience) for each in (first, second))
    # The pass of old classes fills the pool, then the generator learns, then the pass of current
    # classes fills another.
    assert [classes for classes, _ in network.calls] == [old, old, current, current]
    for _, calls in network.calls:
        assert calls[0] == "after_train_dataset_adaptation"
        assert len(calls) <= MOST_CALLS, " → ".join(calls)


def test_the_pass_of_a_training_without_plugin_reaches_the_generator_within_seven_calls(
    digits: Any,
) -> None:
    training, network = watched_training()
    for experience in digits.train_stream[:2]:
        training.train(experience, eval_streams=[])
    assert len(network.calls) == 2
    for _, calls in network.calls:
        assert calls[0] == "_after_train_dataset_adaptation"
        assert len(calls) <= MOST_CALLS, " → ".join(calls)
