"""The teacher: the generator as it was before an experience, and what it can be asked.

It generates old classes by reverse runs, and says what it predicts at any lesson's input. A *mode*
of distillation is a function of it: it chooses the lessons' inputs and where their targets come
from.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.diffusion.guidance import Classifier, GuidedDenoiser
from avalanche_magd.diffusion.label_map import NULL_LABEL
from avalanche_magd.diffusion.samplers import Sampler
from avalanche_magd.diffusion.sampling import (
    DEFAULT_SAMPLER,
    Trajectory,
    inference_batch_size,
    reverse_runs,
)
from avalanche_magd.diffusion.schedule import Images, Indices
from avalanche_magd.distillation.cggd import CGGD, null_mask
from avalanche_magd.distillation.lessons import LessonBatch
from avalanche_magd.runtime.precision import PRECISION

CurrentImages = Callable[[int, torch.Generator], Images]
"""That many images of the current experience, drawn at random, in [−1, 1]."""


def drawn_from(dataset: Any, generator: DiffusionGenerator) -> CurrentImages:
    """Images of a dataset in evaluation mode, as the generator sees them."""

    def draw(count: int, rng: torch.Generator) -> Images:
        rows = torch.randint(len(dataset), (count,), generator=rng, device=rng.device)
        images = torch.stack([dataset[row][0] for row in rows.tolist()])
        return generator.pixel_range.normalize(images.to(rng.device, PRECISION))

    return draw


@dataclass(frozen=True)
class Teacher:
    """A generator in the role of the teacher.

    Attributes:
        generator: as it was taught so far.
        classes: old classes that it shall generate, ascending.
        rng: source of randomness, on the generator's device.
        num_inference_steps: K, network calls per image.
        sampler: what steps through reverse runs.
        guidance: what the runs are conditioned on.
        classifier: the solver of the past, where the guidance calls it.
        current_images: of the current experience; ``None`` between experiences.
        run: a run that was made already, which :meth:`trajectories` then gives.
    """

    generator: DiffusionGenerator
    classes: list[int]
    rng: torch.Generator
    num_inference_steps: int = 10
    sampler: Sampler = DEFAULT_SAMPLER
    guidance: CGGD = field(default_factory=CGGD)
    classifier: Classifier | None = None
    current_images: CurrentImages | None = None
    run: Trajectory | None = None

    @property
    def guide(self) -> GuidedDenoiser | None:
        """The generator with guidance around it; ``None`` if there is none."""
        return self.guidance.guide(self.generator, self.classes, self.classifier)

    def trajectories(self, labels: Indices) -> Trajectory:
        """Reverse runs, as one batch, of labels as the network is given them."""
        if self.run is not None:
            return self.run
        runs = reverse_runs(
            self.generator,
            labels,
            self.num_inference_steps,
            self.rng,
            sampler=self.sampler,
            guide=self.guide,
            batch_size=len(labels),
        )
        return next(runs)

    def images(self, labels: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """Images of these classes in the user's range, made as those of a pool are."""
        generator, told = self.generator, self.guidance.network_labels(labels)
        batch_size = inference_batch_size(generator.latent_shape, self.rng.device, generator)
        with generator.frozen():
            runs = [self.trajectories(each) for each in torch.split(told, batch_size)]
            return torch.cat([generator.pixel_range.denormalize(run.images) for run in runs])

    def classify(self, images: Images) -> Int[Tensor, " b"]:
        """The old class that the solver of the past sees in each image, in [−1, 1]."""
        assert self.classifier is not None
        best = self.classifier(images, self.classes).argmax(1)
        return torch.tensor(self.classes, device=best.device)[best]

    def outcome(self, labels: Indices, mode: "Mode | None", per_image: int) -> dict[str, Tensor]:
        """What the run that was made leaves for a pool, by name.

        Args:
            labels: classes that were asked for.
            mode: which lessons; ``None`` for none.
            per_image: as many lessons; may be 0.

        Returns:
            ``images`` in the user's range, ``classes``, and the columns of the lessons, if any.
        """
        assert self.run is not None
        images = self.generator.pixel_range.denormalize(self.run.images)
        found = {"images": images, "classes": labels}
        if not self.guidance.conditional:
            found["classes"] = self.classify(self.run.images)
        if mode is not None and per_image:
            lessons = mode(self, self.run.labels, per_image)
            found |= lessons.cast(torch.float16)._asdict()
        return found

    def images_for(self, count: int) -> Images:
        """That many images of the current experience, in [−1, 1]."""
        if self.current_images is None:
            raise RuntimeError("There is no current experience to take images from.")
        return self.current_images(count, self.rng)

    def drop_labels(self, lessons: LessonBatch) -> tuple[LessonBatch, Bool[Tensor, " n"]]:
        """Lessons of which a share loses its class, if guidance needs that, and a mask of it."""
        dropped = null_mask(len(lessons.t), self.guidance.null_share, self.rng)
        dropped &= lessons.labels != NULL_LABEL
        return lessons._replace(labels=lessons.labels.masked_fill(dropped, NULL_LABEL)), dropped

    def relabel(self, lessons: LessonBatch, mask: Bool[Tensor, " n"]) -> LessonBatch:
        """Lessons with the teacher's own predictions as targets, one forward each.

        The mask is of those whose target is missing or stale. Some lose their class first, see
        :meth:`drop_labels`, and are added to it.
        """
        lessons, dropped = self.drop_labels(lessons)
        asked = (mask | dropped).nonzero()[:, 0]
        if not len(asked):
            return lessons
        target = lessons.target.clone()
        batch_size = inference_batch_size(target.shape[1:], target.device, self.generator)
        for index in torch.split(asked, batch_size):
            rows = lessons.rows(index)
            target[index] = self.generator(rows.x_t, rows.t, rows.labels)
        return lessons._replace(target=target)

    def apart_from(self, student: DiffusionGenerator) -> "Teacher":
        """This teacher with a generator that stays as it is when the student learns.

        If its generator is the student, that is a copy. Frozen parameters are shared.
        """
        if self.generator is not student:  # an interrupted experience has left the copy
            return self
        frozen = {id(each): each for each in student.parameters() if not each.requires_grad}
        return replace(self, generator=copy.deepcopy(student, frozen))


Mode = Callable[[Teacher, Indices, int], LessonBatch]
"""A mode of distillation: ``(teacher, labels, lessons per image) → lessons``.

The labels are those that the network is given; the lessons of an image are next to one another.
"""
