"""What generation costs and how it goes, for Avalanche's evaluator and for one's own eyes."""

from avalanche_magd.metrics.cost import GeneratorCost
from avalanche_magd.metrics.forgetting import average_distance, generative_forgetting
from avalanche_magd.metrics.frechet import Moments, frechet_distance, moments
from avalanche_magd.metrics.gap import Gap, forward_backward_gap
from avalanche_magd.metrics.kernel import kernel_distance
from avalanche_magd.metrics.labels import class_kld, label_agreement
from avalanche_magd.metrics.neighbours import novelty, precision_recall

__all__ = [
    "Gap",
    "GeneratorCost",
    "Moments",
    "average_distance",
    "class_kld",
    "forward_backward_gap",
    "frechet_distance",
    "generative_forgetting",
    "kernel_distance",
    "label_agreement",
    "moments",
    "novelty",
    "precision_recall",
]
