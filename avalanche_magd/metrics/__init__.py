"""What is generated, forgotten and spent: functions, and metrics for Avalanche's evaluator."""

from avalanche_magd.metrics.cost import GeneratorCost
from avalanche_magd.metrics.features import EfficientNetFeatures, InceptionFeatures
from avalanche_magd.metrics.forgetting import average_distance, generative_forgetting
from avalanche_magd.metrics.frechet import Moments, frechet_distance, moments
from avalanche_magd.metrics.gap import Gap, forward_backward_gap
from avalanche_magd.metrics.generation import generation_metrics
from avalanche_magd.metrics.judge import Judge, train_judge
from avalanche_magd.metrics.kernel import kernel_distance
from avalanche_magd.metrics.labels import class_kld, label_agreement
from avalanche_magd.metrics.losses import GeneratorLosses
from avalanche_magd.metrics.neighbours import novelty, precision_recall
from avalanche_magd.metrics.samples import SamplePictures

__all__ = [
    "EfficientNetFeatures",
    "Gap",
    "GeneratorCost",
    "GeneratorLosses",
    "InceptionFeatures",
    "Judge",
    "Moments",
    "SamplePictures",
    "average_distance",
    "class_kld",
    "forward_backward_gap",
    "frechet_distance",
    "generation_metrics",
    "generative_forgetting",
    "kernel_distance",
    "label_agreement",
    "moments",
    "novelty",
    "precision_recall",
    "train_judge",
]
