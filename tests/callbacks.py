"""Small plugins of Avalanche, a terminal that remembers its text, and a disk that is full."""

import io
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write more bytes into any file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Terminal(io.StringIO):
    """A stream on which progress bars are shown."""

    def isatty(self) -> bool:
        return True


class ReplayRecorder(SupervisedPlugin):
    """What joins the mini-batches of the last experience."""

    def __init__(self) -> None:
        super().__init__()
        self.joined: list[Tensor] = []
        self.labels: list[int] = []
        self.tasks: list[int] = []
        self.images: list[Tensor] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.labels, self.tasks, self.images = [], [], []

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.joined = [column.clone() for column in strategy.mbatch]

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """The rows that have left by now, wherever this plugin stands."""
        images, labels, *tasks = (column[len(strategy.mb_x) :] for column in self.joined)
        self.images += images
        self.labels += labels.tolist()
        for each in tasks:  # where there are task labels
            self.tasks += each.tolist()


class LossRecorder(SupervisedPlugin):
    """The strategy's loss before each backward, as the plugins before this one have made it."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        self.losses.append(strategy.loss.item())
