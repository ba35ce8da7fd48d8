r"""Generated images against real ones, whenever Avalanche evaluates.

Each experience that is evaluated, and whose classes the generator has learnt, is compared with as
many generated images of the same classes, sampled and guided as those that are replayed, from
noise that is the same each time. A generator that is given no classes is not compared. One pass of
generation, and one of the feature network, serves all metrics:

================  =================  ================================================  ====
name              figures            what they compare                                 best
================  =================  ================================================  ====
frechet_distance  FrechetDistance    moments of features                               0
kernel_distance   KernelDistance     features, without the bias of few samples         0
precision_recall  Precision, Recall  neighbourhoods of features                        1
novelty           Novelty            distance to training images, in units of how far  1
                                     new real images are; 0 of copies
labels            ClassKLD           class frequencies, as the classifier sees them    0
\                 LabelAgreement     classes asked for and classes seen                1
\                 LabelCount000, …   images in which the classifier sees a class       –
samples           SampleGrid, …      pictures, see :class:`SamplePictures`             –
losses            GeneratorLoss/…    see :class:`GeneratorLosses`                      –
cost              GeneratorCost/…    see :class:`GeneratorCost`                        –
================  =================  ================================================  ====

Avalanche's names say where: ``…_Exp/eval_phase/test_stream/…/Exp000`` for an experience,
``…_Stream/eval_phase/test_stream/…`` for all images of the stream together. Two more are of the
stream: ``FrechetDistanceAverage``, the mean over its experiences, and
``FrechetDistanceForgetting``, by how much those have grown that were first measured before the
generator's newest experience. A figure that needs more images than there are is left out, and so
is novelty if the real images were trained on.

The metrics draw from random sources of their own: a run with them ends with the same weights as
one without. A new metric is a function from :class:`~avalanche_magd.metrics.comparison.Compared`
to figures, and a line in :data:`METRICS`.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name

from avalanche_magd.metrics.classifier import EvaluationClassifier, class_kld, label_agreement
from avalanche_magd.metrics.comparison import Compared, Comparison, Features
from avalanche_magd.metrics.cost import GeneratorCost
from avalanche_magd.metrics.distances import (
    average_distance,
    frechet_distance,
    generative_forgetting,
    kernel_distance,
    moments,
    novelty,
    precision_recall,
)
from avalanche_magd.metrics.features import InceptionFeatures
from avalanche_magd.metrics.losses import GeneratorLosses
from avalanche_magd.metrics.samples import SamplePictures
from avalanche_magd.runtime.validation import check_choice

_Evaluated = tuple[str, int, tuple[int, ...]]
"""A stream, an experience of it, and those of its classes that the generator knows."""


@dataclass(eq=False, repr=False)
class GenerationMetric(PluginMetric[dict[str, float]]):
    """Figures of each experience, and of all of a stream together.

    Args:
        figures: what to compute, by name; a ``ValueError`` leaves it out.
        comparison: of which images; it stands before this metric in the evaluator.
        of_experiences: whether each experience gets its own, and not the stream alone.
    """

    figures: Callable[[Compared], dict[str, float]]
    comparison: Comparison
    of_experiences: bool = True

    def result(self) -> dict[str, float]:
        """Of all experiences of the present evaluation."""
        parts = list(self.comparison.of_stream.values())
        return self._figures(Compared.cat(parts)) if parts else {}

    def reset(self) -> None:
        """Nothing is kept here."""

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Figures of the experience."""
        compared = self.comparison.of_experience
        if compared is None or not self.of_experiences:
            return []
        return self._values(strategy, self._figures(compared), "Exp")

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Figures of the stream."""
        return self._values(strategy, self.result(), "Stream")

    def _figures(self, compared: Compared) -> dict[str, float]:
        plugin = self.comparison.plugin
        with plugin.cost.measure(plugin.cost.evaluation, plugin.generator):
            try:
                return self.figures(compared)
            except ValueError:
                return {}

    def _values(self, strategy: Any, figures: dict[str, float], suffix: str) -> list[MetricValue]:
        step, of_experience, values = strategy.clock.train_iterations, suffix == "Exp", []
        for short, value in figures.items():
            name = get_metric_name(f"{short}_{suffix}", strategy, of_experience, of_experience)
            values.append(MetricValue(self, name, value, step))
        return values


class FrechetDistance(GenerationMetric):
    """The Fréchet distance; its average over experiences; by how much it has grown."""

    def __init__(self, comparison: Comparison) -> None:
        inception = isinstance(comparison.features, InceptionFeatures)
        self.name = "FID" if inception else "FrechetDistance"
        super().__init__(partial(frechet, self.name), comparison)
        self._first: dict[_Evaluated, tuple[int, float]] = {}
        self._now: dict[_Evaluated, float] = {}

    def before_eval(self, strategy: Any) -> None:
        """Experiences that are not evaluated now are not averaged."""
        self._now = {}

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Figures of the experience."""
        values = super().after_eval_exp(strategy)
        if values:
            experience, compared = strategy.experience, self.comparison.of_experience
            known = tuple(sorted(set(compared.asked.tolist()))) if compared else ()
            key = (experience.origin_stream.name, experience.current_experience, known)
            self._now[key] = values[0].value
            self._first.setdefault(key, (self._learnt, values[0].value))
        return values

    @property
    def _learnt(self) -> int:
        """Experiences of the generator, which learns them before the solver does."""
        return int(self.comparison.plugin.generator_strategy.clock.train_exp_counter)

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Figures of the stream."""
        values = super().after_eval(strategy)
        if not self._now:
            return values
        figures = {f"{self.name}Average": average_distance(self._now)}
        earlier = {key: value for key, (when, value) in self._first.items() if when < self._learnt}
        if earlier.keys() & self._now.keys():
            figures[f"{self.name}Forgetting"] = generative_forgetting(earlier, self._now)
        return values + self._values(strategy, figures, "Stream")


def frechet(name: str, compared: Compared) -> dict[str, float]:
    """The Fréchet distance."""
    return {name: frechet_distance(moments(compared.real), moments(compared.generated))}


def kernel(name: str, compared: Compared) -> dict[str, float]:
    """The kernel distance."""
    return {name: kernel_distance(compared.real, compared.generated)}


def neighbourhoods(compared: Compared) -> dict[str, float]:
    """Precision and recall, of three neighbours."""
    precision, recall = precision_recall(compared.real, compared.generated)
    return {"Precision": precision, "Recall": recall}


def copies(compared: Compared) -> dict[str, float]:
    """Whether generated images are copies."""
    return {"Novelty": novelty(compared.training, compared.real, compared.generated)}


def classes(compared: Compared) -> dict[str, float]:
    """Which classes are seen."""
    asked, seen = compared.asked, compared.seen
    return {"ClassKLD": class_kld(asked, seen), "LabelAgreement": label_agreement(asked, seen)}


def counts(compared: Compared) -> dict[str, float]:
    """In how many generated images the classifier sees each class."""
    seen = compared.seen.bincount(minlength=int(compared.asked.max()) + 1)
    return {f"LabelCount{label:03}": float(count) for label, count in enumerate(seen.tolist())}


def _kernel_metric(comparison: Comparison) -> GenerationMetric:
    name = "KID" if isinstance(comparison.features, InceptionFeatures) else "KernelDistance"
    return GenerationMetric(partial(kernel, name), comparison)


METRICS: Final[dict[str, list[Callable[[Comparison], PluginMetric[Any]]]]] = {
    "frechet_distance": [FrechetDistance],
    "kernel_distance": [_kernel_metric],
    "precision_recall": [partial(GenerationMetric, neighbourhoods)],
    "novelty": [partial(GenerationMetric, copies)],
    "labels": [
        partial(GenerationMetric, classes),
        partial(GenerationMetric, counts, of_experiences=False),
    ],
    "samples": [lambda shown: SamplePictures(shown.plugin, seed=shown.seed)],
    "losses": [lambda shown: GeneratorLosses(shown.plugin)],
    "cost": [lambda shown: GeneratorCost(shown.plugin)],
}
"""What makes each metric, by name."""


def generation_metrics(
    plugin: Any,
    classifier: EvaluationClassifier,
    *,
    features: Features | None = None,
    images: int = 500,
    training_images: int = 10_000,
    seed: int = 0,
    metrics: Collection[str] = tuple(METRICS),
) -> list[PluginMetric[Any]]:
    """Metrics of what a :class:`~avalanche_magd.MAGDPlugin` generates, for ``EvaluationPlugin``.

    Args:
        plugin: the strategy's plugin.
        classifier: see :func:`~avalanche_magd.metrics.classifier.train_evaluation_classifier`.
        features: feature network of images in [0, 1], see
            :mod:`avalanche_magd.metrics.features`. Default: the classifier's own.
        images: real and generated ones of each experience, at most.
        training_images: of each experience, at most, among which copies are looked for.
        seed: of the noise.
        metrics: which, by their names in the table of this module. Default: all.

    Raises:
        TypeError: a number of images is no integer.
        ValueError: ``images`` is less than two, ``training_images`` less than one, or a metric is
            unknown.
    """
    for name in metrics:
        check_choice("metrics", name, tuple(METRICS))
    comparison = Comparison(plugin, classifier, features, images, training_images, seed)
    chosen = [make for name, makers in METRICS.items() if name in metrics for make in makers]
    return [comparison, *(make(comparison) for make in chosen)]
