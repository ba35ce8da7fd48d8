"""Small plugins of Avalanche, and a terminal that remembers its text."""

import io
from collections.abc import Callable
from typing import Any

from avalanche.core import SupervisedPlugin
from torch import Tensor


def at(callback: str, function: Callable[[Any], object]) -> SupervisedPlugin:
    """A plugin that calls a function with the strategy, whenever one callback is due."""
    plugin = SupervisedPlugin()
    setattr(plugin, callback, lambda strategy, **_: function(strategy))
    return plugin


def stop_after(steps: int, error: type[BaseException]) -> SupervisedPlugin:
    """A plugin that raises an error in the middle of a step, once this many steps are done."""
    begun = 0

    def stop(strategy: Any) -> None:
        nonlocal begun
        begun += 1
        if begun > steps:
            raise error

    return at("before_backward", stop)


class Terminal(io.StringIO):
    """A stream on which progress bars are shown."""

    def isatty(self) -> bool:
        return True


class ReplayRecorder(SupervisedPlugin):
    """What joins the mini-batches of the last experience; stands before the MAGD plugin."""

    def __init__(self) -> None:
        super().__init__()
        self.real_rows = 0
        self.labels: list[int] = []
        self.tasks: list[int] = []
        self.images: list[Tensor] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.labels, self.tasks, self.images = [], [], []

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.real_rows = len(strategy.mb_x)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.images += strategy.mb_x[self.real_rows :]
        self.labels += strategy.mb_y[self.real_rows :].tolist()
        for tasks in strategy.mbatch[2:]:  # where there are task labels
            self.tasks += tasks[self.real_rows :].tolist()
