"""What the generator has cost so far, as an Avalanche metric."""

from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue

from avalanche_magd.distillation.cost import Cost


class GeneratorCost(PluginMetric[dict[str, float]]):
    """Reports :class:`~avalanche_magd.distillation.cost.Cost` when the generator has learnt.

    The values, one for each figure, are named ``GeneratorCost/<figure>`` and are sums since the
    start. Its argument is the strategy's :class:`~avalanche_magd.MAGDPlugin`, or a
    :class:`~avalanche_magd.MAGDTraining`: anything with a ``cost``.
    """

    def __init__(self, plugin: Any) -> None:
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
        found = self.result().items()
        return [MetricValue(self, f"{self}/{figure}", value, step) for figure, value in found]

    def __str__(self) -> str:
        return "GeneratorCost"
