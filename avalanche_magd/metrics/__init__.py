"""What generation costs and how it goes, for Avalanche's evaluator and for one's own eyes."""

from avalanche_magd.metrics.cost import GeneratorCost
from avalanche_magd.metrics.gap import Gap, forward_backward_gap

__all__ = ["Gap", "GeneratorCost", "forward_backward_gap"]
