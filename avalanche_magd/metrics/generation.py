"""Generated images against real ones, whenever Avalanche evaluates.

Each experience that is evaluated, and whose classes the generator has learnt, is compared with as
many generated images of the same classes, sampled and guided as those that are replayed, from
noise that is the same each time. A generator that is told no classes is not compared. One pass of
generation, and one of the feature network, serves all metrics:

=================  =============================================  ==================
metric             what it compares                               best
=================  =============================================  ==================
FrechetDistance    moments of features                            0
KernelDistance     features, without the bias of few samples      0
Precision, Recall  neighbourhoods of features                     1
ClassKLD           class frequencies, as the judge sees them      0
LabelAgreement     classes asked for and classes seen             1
Novelty            distance to training images, in units of how   1; copies have 0
                   far new real images are
LabelCount000, …   images in which the judge sees a class         –
=================  =============================================  ==================

Avalanche's names say where: ``…_Exp/eval_phase/test_stream/…/Exp000`` for an experience,
``…_Stream/eval_phase/test_stream/…`` for all images of the stream together. Two more are of the
stream: ``FrechetDistanceAverage``, the mean over its experiences, and
``FrechetDistanceForgetting``, by how much those have grown that were first measured before the
generator's newest experience.

The metrics draw from random sources of their own: a run with them ends with the same weights as
one without.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name

from avalanche_magd.metrics.comparison import Compared, Comparison, Features
from avalanche_magd.metrics.cost import GeneratorCost
from avalanche_magd.metrics.features import InceptionFeatures
from avalanche_magd.metrics.forgetting import average_distance, generative_forgetting
from avalanche_magd.metrics.frechet import frechet_distance, moments
from avalanche_magd.metrics.judge import Judge
from avalanche_magd.metrics.kernel import kernel_distance
from avalanche_magd.metrics.labels import class_kld, label_agreement
from avalanche_magd.metrics.losses import GeneratorLosses
from avalanche_magd.metrics.neighbours import novelty, precision_recall
from avalanche_magd.metrics.samples import SamplePictures

NEIGHBOURS: Final = 3
"""Of precision and recall."""
NAMES: Final = ("FrechetDistance", "KernelDistance")

Figures = Callable[[Compared], dict[str, float]]
"""Figures by name; none, if there are too few images for them."""


_Evaluated = tuple[str, int, tuple[int, ...]]
"""A stream, an experience of it, and those of its classes that the generator knows."""


class GenerationMetric(PluginMetric[dict[str, float]]):
    """Figures of each experience, and of all of a stream together.

    Args:
        figures: what to compute.
        comparison: of which images; it stands before this metric in the evaluator.
        of_experiences: whether each experience gets its own, and not the stream alone.
    """

    def __init__(
        self, figures: Figures, comparison: Comparison, *, of_experiences: bool = True
    ) -> None:
        super().__init__()
        self.figures = figures
        self.comparison = comparison
        self.of_experiences = of_experiences

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
        with plugin.cost.evaluation.measure(plugin.generator):
            return self.figures(compared)

    def _values(self, strategy: Any, figures: dict[str, float], suffix: str) -> list[MetricValue]:
        of_experience = suffix == "Exp"
        return [
            MetricValue(
                self,
                get_metric_name(
                    f"{name}_{suffix}",
                    strategy,
                    add_experience=of_experience,
                    add_task=of_experience,
                ),
                value,
                strategy.clock.train_iterations,
            )
            for name, value in figures.items()
        ]


class FrechetDistance(GenerationMetric):
    """The Fréchet distance; its average over experiences; by how much it has grown.

    Args:
        name: what it is called: FID, if the features are Inception's.
        comparison: of which images.
    """

    def __init__(self, name: str, comparison: Comparison) -> None:
        super().__init__(partial(frechet, name), comparison)
        self.name = name
        self._first: dict[_Evaluated, tuple[int, float]] = {}
        self._now: dict[_Evaluated, float] = {}

    def before_eval(self, strategy: Any) -> None:
        """Those that are not evaluated now are not averaged."""
        self._now = {}

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Figures of the experience."""
        values = super().after_eval_exp(strategy)
        if values:
            experience, value = strategy.experience, values[0].value
            assert self.comparison.of_experience is not None
            known = sorted(set(self.comparison.of_experience.asked.tolist()))
            key = (experience.origin_stream.name, experience.current_experience, tuple(known))
            self._now[key] = value
            self._first.setdefault(key, (self._learnt, value))
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
    """:func:`~avalanche_magd.metrics.frechet.frechet_distance`."""
    if len(compared.real) < 2:
        return {}
    return {name: frechet_distance(moments(compared.real), moments(compared.generated))}


def kernel(name: str, compared: Compared) -> dict[str, float]:
    """:func:`~avalanche_magd.metrics.kernel.kernel_distance`."""
    if len(compared.real) < 2:
        return {}
    return {name: kernel_distance(compared.real, compared.generated)}


def neighbourhoods(compared: Compared) -> dict[str, float]:
    """:func:`~avalanche_magd.metrics.neighbours.precision_recall`."""
    if len(compared.real) <= NEIGHBOURS:
        return {}
    precision, recall = precision_recall(compared.real, compared.generated, NEIGHBOURS)
    return {"Precision": precision, "Recall": recall}


def copies(compared: Compared) -> dict[str, float]:
    """:func:`~avalanche_magd.metrics.neighbours.novelty`; none, if test images were trained on."""
    try:
        return {"Novelty": novelty(compared.training, compared.real, compared.generated)}
    except ValueError:
        return {}


def classes(compared: Compared) -> dict[str, float]:
    """:mod:`avalanche_magd.metrics.labels`."""
    return {
        "ClassKLD": class_kld(compared.asked, compared.seen),
        "LabelAgreement": label_agreement(compared.asked, compared.seen),
    }


def counts(compared: Compared) -> dict[str, float]:
    """In how many generated images the judge sees each class."""
    seen = compared.seen.bincount(minlength=int(compared.asked.max()) + 1)
    return {f"LabelCount{label:03}": float(count) for label, count in enumerate(seen.tolist())}


def generation_metrics(
    plugin: Any,
    judge: Judge,
    *,
    features: Features | None = None,
    images: int = 500,
    training_images: int = 10_000,
    seed: int = 0,
    frechet_distance: bool = True,
    kernel_distance: bool = True,
    precision_recall: bool = True,
    novelty: bool = True,
    labels: bool = True,
    samples: bool = True,
    losses: bool = True,
    cost: bool = True,
) -> list[PluginMetric[Any]]:
    """Metrics of what a :class:`~avalanche_magd.MAGDPlugin` generates, for ``EvaluationPlugin``.

    Args:
        plugin: the strategy's plugin.
        judge: see :func:`~avalanche_magd.metrics.judge.train_judge`.
        features: feature network of images in [0, 1], see
            :mod:`avalanche_magd.metrics.features`. Default: the judge's own.
        images: real and generated ones of each experience, at most.
        training_images: of each experience, at most, among which copies are looked for.
        seed: of the noise.
        frechet_distance: with its average over experiences and its growth.
        kernel_distance: of features.
        precision_recall: of features.
        novelty: distance to training images.
        labels: class frequencies, and whether classes are those asked for.
        samples: pictures.
        losses: the generator's training errors.
        cost: network calls, seconds, bytes.

    Raises:
        TypeError: a number of images is no integer.
        ValueError: ``images`` is less than two, or ``training_images`` less than one.
    """
    comparison = Comparison(
        plugin, judge, features, images=images, training_images=training_images, seed=seed
    )
    names = ("FID", "KID") if isinstance(features, InceptionFeatures) else NAMES
    chosen: list[tuple[bool, PluginMetric[Any]]] = [
        (frechet_distance, FrechetDistance(names[0], comparison)),
        (kernel_distance, GenerationMetric(partial(kernel, names[1]), comparison)),
        (precision_recall, GenerationMetric(neighbourhoods, comparison)),
        (novelty, GenerationMetric(copies, comparison)),
        (labels, GenerationMetric(classes, comparison)),
        (labels, GenerationMetric(counts, comparison, of_experiences=False)),
        (samples, SamplePictures(plugin, seed=seed)),
        (losses, GeneratorLosses(plugin)),
        (cost, GeneratorCost(plugin)),
    ]
    return [comparison, *(metric for wanted, metric in chosen if wanted)]
