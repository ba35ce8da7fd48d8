"""How the generator's errors fell as it learnt, as an Avalanche metric."""

from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue


class GeneratorLosses(PluginMetric[dict[str, float]]):
    """Curves of the squared errors, one for each source of lessons, over the generator's steps.

    ``GeneratorLoss/real``: current images; ``state``: NIGD's lessons; ``renoised``: generated
    images, noised again; ``current``: SGGD's lessons; ``noise``: those from pure noise. They come
    once the generator has learnt an experience, before the solver does.

    Its argument is the strategy's plugin.
    """

    def __init__(self, plugin: Any) -> None:
        self.plugin = plugin
        self._told = 0

    def result(self) -> dict[str, float]:
        """The newest error of each source."""
        points = self._points()
        return points[-1].errors if points else {}

    def reset(self) -> None:
        """Nothing is kept here."""

    def before_training_exp(self, strategy: Any) -> list[MetricValue]:
        """The points that are new."""
        new, self._told = self._points()[self._told :], len(self._points())
        errors = [(point.step, *each) for point in new for each in point.errors.items()]
        return [MetricValue(self, f"{self}/{name}", error, step) for step, name, error in errors]

    def _points(self) -> list[Any]:
        training = self.plugin.generator_strategy
        return [] if training is None else training.curves.points

    def __str__(self) -> str:
        return "GeneratorLoss"
