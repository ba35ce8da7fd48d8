"""What the metrics of generation compare: real and generated images of the same classes.

They are seen by two networks, one for features and one, the judge, for classes. What is kept of
real images is their features and labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from avalanche.evaluation import PluginMetric
from jaxtyping import Float, Int
from torch import Tensor, nn

from avalanche_magd.arguments import check_count
from avalanche_magd.classes import NULL_LABEL
from avalanche_magd.distillation.past import Past
from avalanche_magd.metrics.judge import Judge
from avalanche_magd.solver import past_as_it_is

BATCH_SIZE: Final = 256
"""Images that the networks see at once."""

Features = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n d"]]
"""A feature network; its images are in [0, 1]."""


@dataclass(frozen=True)
class Compared:
    """Real and generated images of the same classes, as the networks see them."""

    real: Float[Tensor, "n d"]
    """Features of real images."""
    generated: Float[Tensor, "n d"]
    """Features of generated images."""
    training: Float[Tensor, "m d"]
    """Features of training images of these classes; may be empty."""
    asked: Int[Tensor, " n"]
    """Class of each real image, which was asked for in the generated one."""
    seen: Int[Tensor, " n"]
    """Class that the judge sees in each generated image."""

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


class Comparison(PluginMetric[None]):
    """Generates, and shows all images to the networks; emits nothing. Stands before the metrics.

    Args:
        plugin: the strategy's plugin.
        judge: see :func:`~avalanche_magd.metrics.judge.train_judge`.
        features: of images in [0, 1]. Default: the judge's own.
        images: real and generated ones of each experience, at most.
        training_images: of each experience, at most, among which copies are looked for.
        seed: of the noise.

    Attributes:
        of_experience: the experience that was just evaluated; ``None`` if the generator does not
            know its classes, or is told none.
        of_stream: all those of this evaluation, by their index.
    """

    def __init__(
        self,
        plugin: Any,
        judge: Judge,
        features: Features | None = None,
        *,
        images: int = 500,
        training_images: int = 10_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_count("images", images, at_least=2)
        check_count("training_images", training_images)
        self.plugin = plugin
        self.judge = judge
        self.features = features
        self.images = images
        self.training_images = training_images
        self.seed = seed
        self.of_experience: Compared | None = None
        self.of_stream: dict[int, Compared] = {}
        self._real: dict[tuple[str, int, int], _Seen] = {}
        self._training: dict[int, Tensor] = {}
        self._known: dict[tuple[str, int, int], tuple[tuple[int, ...], Compared]] = {}

    def result(self) -> None:
        """Nothing by itself."""

    def reset(self) -> None:
        """Forget the evaluation; what real images look like is kept."""
        self.of_experience, self.of_stream = None, {}

    def before_training_exp(self, strategy: Any) -> None:
        """Look at training images, without augmentation."""
        generator = self.plugin.generator
        if generator is None:
            return
        with self.plugin.cost.evaluation.measure(generator):
            part = self._look(strategy.experience.dataset, self.training_images)
            numbers = self.judge.numbers_of(part.labels, part.tasks)
            for number in sorted(set(numbers.tolist())):
                known = self._training.get(number, part.features[:0])
                new = part.features[numbers == number]
                self._training[number] = torch.cat([known, new])[: self.training_images]

    def before_eval(self, strategy: Any) -> None:
        """A new evaluation."""
        self.reset()

    def after_eval_exp(self, strategy: Any) -> None:
        """Compare the experience."""
        self.of_experience = None
        past = past_as_it_is(self.plugin, strategy, self.seed)
        if past is None:
            return
        experience = strategy.experience
        index = experience.current_experience
        key = (experience.origin_stream.name, index, len(experience.dataset))
        with self.plugin.cost.evaluation.measure(past.teacher):
            if key not in self._real:
                self._real[key] = self._look(experience.dataset, self.images)
            training = self.plugin.generator_strategy
            moment: tuple[int, ...] = (
                training.clock.train_exp_counter,
                training.cost.training.backwards,
            )
            if training.distillation.asks_solver:
                moment += (strategy.clock.train_iterations,)
            self.of_experience = self._compare(key, past, moment)
        if self.of_experience is not None:
            self.of_stream[index] = self.of_experience

    def _compare(
        self, key: tuple[str, int, int], past: Past, moment: tuple[int, ...]
    ) -> Compared | None:
        """Anew, if the generator, or a solver that steers it, has learnt since the last time."""
        if key in self._known and self._known[key][0] == moment:
            return self._known[key][1]
        generator, real = past.teacher, self._real[key]
        numbers = generator.class_table.numbers_of(real.labels, real.tasks)
        known = numbers != NULL_LABEL
        if not known.any():
            return None
        wanted = numbers[known].to(generator.device)
        generated = self.plugin.generator_strategy.distillation.images(wanted, past)
        asked = self.judge.numbers_of(real.labels, real.tasks)[known]
        nothing = real.features[:0]
        trained = [self._training.get(number, nothing) for number in sorted(set(asked.tolist()))]
        parts = torch.split(generated, BATCH_SIZE)
        with torch.no_grad():
            logits = torch.cat([self.judge.to(generator.device)(part).cpu() for part in parts])
        compared = Compared(
            real.features[known],
            torch.cat([self._features_of(part) for part in parts]),
            torch.cat(trained),
            asked,
            torch.tensor(self.judge.class_table.numbers)[logits.argmax(1)],
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
            network: Features = self.judge.to(images.device).features
        else:
            images = self.plugin.generator.pixel_range.to_unit(images)
            network = self.features
            if isinstance(network, nn.Module):
                network.to(images.device)
        return network(images).float().cpu()
