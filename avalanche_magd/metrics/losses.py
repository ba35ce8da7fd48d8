"""How the generator's errors fell as it learnt, as an Avalanche metric."""

from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue


class GeneratorLosses(PluginMetric[dict[str, float]]):
    """Curves of the squared errors, one for each kind of lesson, over the generator's steps.

    ``GeneratorLoss/real``: current images; ``state``: NIGD's lessons; ``renoised``: generated
    images, noised again; ``current``: SGGD's lessons; ``noise``: those from pure noise. They come
    once the generator has learnt an experience, before the solver does.

    Args:
        plugin: the strategy's plugin.
    """

    def __init__(self, plugin: Any) -> None:
        super().__init__()
        self.plugin = plugin
        self._told = 0

    def result(self) -> dict[str, float]:
        """The newest error of each kind."""
        training = self.plugin.generator_strategy
        points = [] if training is None else training.curves.points
        return points[-1].errors if points else {}

    def reset(self) -> None:
        """Nothing is kept here."""

    def before_training_exp(self, strategy: Any) -> list[MetricValue]:
        """The points that are new."""
        training = self.plugin.generator_strategy
        points = [] if training is None else training.curves.points
        values = [
            MetricValue(self, f"{self}/{kind}", error, point.step)
            for point in points[self._told :]
            for kind, error in point.errors.items()
        ]
        self._told = len(points)
        return values

    def __str__(self) -> str:
        return "GeneratorLoss"
