"""Real and generated images of the same classes, as seen by two networks.

One gives features, the evaluation classifier gives classes. Of real images these alone are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from avalanche.evaluation import PluginMetric
from jaxtyping import Float, Int
from torch import Tensor, nn

from avalanche_magd.diffusion.label_map import NULL_LABEL
from avalanche_magd.diffusion.schedule import Images
from avalanche_magd.distillation.teacher import Teacher
from avalanche_magd.metrics.classifier import EvaluationClassifier
from avalanche_magd.runtime.random_state import random_states_kept
from avalanche_magd.runtime.validation import check_count, check_seed

BATCH_SIZE: Final = 256
"""Images that the networks see at once."""

Features = Callable[[Images], Float[Tensor, "b d"]]
"""A feature network; its images are in [0, 1]."""

Key = tuple[str, int, int]
"""A stream, an experience of it, and its number of images."""


@dataclass(frozen=True)
class Compared:
    """Real and generated images of the same classes, as the networks see them."""

    real: Float[Tensor, "n d"]  # features
    generated: Float[Tensor, "n d"]
    training: Float[Tensor, "m d"]
    """Features of training images of these classes; may be empty."""
    asked: Int[Tensor, " n"]
    """Class of each real image, which was asked for in the generated one."""
    seen: Int[Tensor, " n"]
    """Class that the evaluation classifier sees in each generated image."""

    @classmethod
    def cat(cls, parts: Sequence["Compared"]) -> "Compared":
        """All images of several."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))


class _Seen(NamedTuple):
    """Real images of an experience: what is kept of them."""

    labels: Tensor
    tasks: Tensor | None
    features: Tensor


@dataclass(eq=False, repr=False)
class Comparison(PluginMetric[None]):
    """Generates, and shows all images to the networks; emits nothing. Stands before the metrics.

    Its arguments are those of :func:`~avalanche_magd.metrics.generation_metrics`.

    Attributes:
        of_experience: the experience that was just evaluated; ``None`` if the generator does not
            know its classes, or is given none.
        of_stream: all those of this evaluation, by their index.
    """

    plugin: Any
    classifier: EvaluationClassifier
    features: Features | None = None
    images: int = 500
    training_images: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        self.images = check_count("images", self.images, at_least=2)
        self.training_images = check_count("training_images", self.training_images)
        self.seed = check_seed("seed", self.seed) or 0
        self.of_experience: Compared | None = None
        self.of_stream: dict[int, Compared] = {}
        self._real: dict[Key, _Seen] = {}
        self._training: dict[int, Tensor] = {}
        self._known: dict[Key, tuple[tuple[int, ...], Compared]] = {}

    def result(self) -> None:
        """Nothing by itself."""

    def reset(self) -> None:
        """Forget the evaluation; what real images look like is kept."""
        self.of_experience, self.of_stream = None, {}

    def before_training_exp(self, strategy: Any) -> None:
        """Look at training images, without augmentation."""
        if self.plugin.generator is None:
            return
        with self.plugin.cost.measure(self.plugin.cost.evaluation, self.plugin.generator):
            with random_states_kept(strategy.device):
                part = self._look(strategy.experience.dataset, self.training_images)
            ids = self.classifier.ids_of(part.labels, part.tasks)
            for each in sorted(set(ids.tolist())):
                features = [
                    self._training.get(each, part.features[:0]),
                    part.features[ids == each],
                ]
                self._training[each] = torch.cat(features)[: self.training_images]

    def before_eval(self, strategy: Any) -> None:
        """A new evaluation."""
        self.reset()

    def after_eval_exp(self, strategy: Any) -> None:
        """Compare the experience."""
        self.of_experience = None
        teacher = self.plugin.present_teacher(strategy, self.seed)
        if teacher is None:
            return
        experience, training = strategy.experience, self.plugin.generator_strategy
        index, dataset = experience.current_experience, experience.dataset
        key = (experience.origin_stream.name, index, len(dataset))
        solver = strategy.clock.train_iterations if teacher.guidance.needs_solver else 0
        moment = (training.clock.train_exp_counter, training.cost.training.backwards, solver)
        with self.plugin.cost.measure(self.plugin.cost.evaluation, teacher.generator):
            if key not in self._real:
                with random_states_kept(strategy.device):
                    self._real[key] = self._look(dataset, self.images)
            self.of_experience = self._compare(key, teacher, moment)
        if self.of_experience is not None:
            self.of_stream[index] = self.of_experience

    def _compare(self, key: Key, teacher: Teacher, moment: tuple[int, ...]) -> Compared | None:
        """Anew, if the generator, or a solver that guides it, has learnt since the last time."""
        if key in self._known and self._known[key][0] == moment:
            return self._known[key][1]
        real, device = self._real[key], teacher.generator.device
        ids = teacher.generator.label_map.ids_of(real.labels, real.tasks)
        known = ids != NULL_LABEL
        if not known.any():
            return None
        parts = torch.split(teacher.images(ids[known].to(device)), BATCH_SIZE)
        asked = self.classifier.ids_of(real.labels, real.tasks)[known]
        with torch.no_grad():
            best = [self.classifier.to(device)(part).argmax(1).cpu() for part in parts]
        classes, nothing = sorted(set(asked.tolist())), real.features[:0]
        compared = Compared(
            real.features[known],
            torch.cat([self._features_of(part) for part in parts]),
            torch.cat([self._training.get(each, nothing) for each in classes]),
            asked,
            torch.tensor(self.classifier.label_map.ids)[torch.cat(best)],
        )
        self._known[key] = (moment, compared)
        return compared

    def _look(self, dataset: Any, at_most: int) -> _Seen:
        """Some images of a dataset, spread evenly over it, as evaluation sees them."""
        dataset = dataset.eval()
        count = min(at_most, len(dataset))
        rows = [index * len(dataset) // count for index in range(count)]
        device, features, known = self.plugin.generator.device, [], []
        for start in range(0, count, BATCH_SIZE):
            samples = [dataset[row] for row in rows[start : start + BATCH_SIZE]]
            images = torch.stack([image for image, *_ in samples]).float()
            features.append(self._features_of(images.to(device)))
            known += [[int(value) for value in columns] for _, *columns in samples]
        labels, *tasks = torch.tensor(known).unbind(1)
        return _Seen(labels, tasks[0] if tasks else None, torch.cat(features))

    @torch.no_grad()
    def _features_of(self, images: Tensor) -> Tensor:
        """On the CPU, whatever computed them."""
        if self.features is None:
            return self.classifier.to(images.device).features(images).float().cpu()
        if isinstance(self.features, nn.Module):
            self.features.to(images.device)
        return self.features(self.plugin.generator.pixel_range.to_unit(images)).float().cpu()
