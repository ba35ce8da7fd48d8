"""What the generator has cost so far, as an Avalanche metric."""

from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue

from avalanche_magd.cost import Cost


class GeneratorCost(PluginMetric[dict[str, float]]):
    """Reports :class:`~avalanche_magd.cost.Cost` once the generator has learnt an experience.

    ``EvaluationPlugin(accuracy_metrics(stream=True), GeneratorCost(plugin))``; the
    values, one for each figure, are named ``GeneratorCost/<figure>`` and are sums since the start.

    Args:
        plugin: the strategy's :class:`~avalanche_magd.MAGDPlugin`, or a
            :class:`~avalanche_magd.MAGDTraining`: anything with a ``cost``.
    """

    def __init__(self, plugin: Any) -> None:
        super().__init__()
        self.plugin = plugin

    def result(self) -> dict[str, float]:
        """The figures so far."""
        cost: Cost = self.plugin.cost
        return {
            "teacher forwards": cost.generation.forwards + cost.replay.forwards,
            "student forwards": cost.training.forwards,
            "student backwards": cost.training.backwards,
            "solver forwards": cost.solver.forwards,
            "solver backwards": cost.solver.backwards,
            "lessons": cost.lessons,
            "generation seconds": cost.generation.seconds + cost.replay.seconds,
            "training seconds": cost.training.seconds,
            "evaluation seconds": cost.evaluation.seconds,
            "pool bytes": cost.pool_bytes,
            "peak bytes": cost.peak_bytes,
        }

    def reset(self) -> None:
        """Nothing is kept here."""

    def before_training_exp(self, strategy: Any) -> list[MetricValue]:
        """A value for each figure."""
        step = strategy.clock.train_iterations
        return [
            MetricValue(self, f"{self}/{figure}", value, step)
            for figure, value in self.result().items()
        ]

    def __str__(self) -> str:
        return "GeneratorCost"
