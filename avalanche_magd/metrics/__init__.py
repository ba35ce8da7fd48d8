"""What is generated, forgotten and spent: functions, and metrics for Avalanche's evaluator."""

from typing import Any

from avalanche_magd.metrics.classifier import EvaluationClassifier as EvaluationClassifier
from avalanche_magd.metrics.classifier import class_kld as class_kld
from avalanche_magd.metrics.classifier import label_agreement as label_agreement
from avalanche_magd.metrics.classifier import (
    train_evaluation_classifier as train_evaluation_classifier,
)
from avalanche_magd.metrics.cost import GeneratorCost as GeneratorCost
from avalanche_magd.metrics.distances import Moments as Moments
from avalanche_magd.metrics.distances import average_distance as average_distance
from avalanche_magd.metrics.distances import frechet_distance as frechet_distance
from avalanche_magd.metrics.distances import generative_forgetting as generative_forgetting
from avalanche_magd.metrics.distances import kernel_distance as kernel_distance
from avalanche_magd.metrics.distances import moments as moments
from avalanche_magd.metrics.distances import novelty as novelty
from avalanche_magd.metrics.distances import precision_recall as precision_recall
from avalanche_magd.metrics.features import EfficientNetFeatures as EfficientNetFeatures
from avalanche_magd.metrics.features import InceptionFeatures as InceptionFeatures
from avalanche_magd.metrics.gap import Gap as Gap
from avalanche_magd.metrics.gap import forward_backward_gap as forward_backward_gap
from avalanche_magd.metrics.generation import generation_metrics as generation_metrics
from avalanche_magd.metrics.losses import GeneratorLosses as GeneratorLosses
from avalanche_magd.metrics.samples import SamplePictures as SamplePictures
from avalanche_magd.runtime.deprecation import renamed


def __getattr__(name: str) -> Any:
    """The names of 0.1."""
    return renamed(__name__, name)
