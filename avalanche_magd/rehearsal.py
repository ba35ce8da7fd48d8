"""What a generator's teacher says of the past while an experience is learnt.

It is asked once, before, and what it says waits in a pool; or, where lessons are fresh, in every
step.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from avalanche_magd.cost import Cost
from avalanche_magd.distillation.batch import LessonBatch
from avalanche_magd.distillation.cggd import Classifier
from avalanche_magd.distillation.distillation import Distillation
from avalanche_magd.distillation.past import Past
from avalanche_magd.distillation.pool import Pool
from avalanche_magd.distillation.teacher import learning
from avalanche_magd.generator import DiffusionGenerator
from avalanche_magd.processes import Processes


class Rehearsal:
    """The past of one generator, for its student and for a solver.

    Args:
        generator: the teacher, while it has not begun to learn.
        distillation: how it generates, and which lessons become of it.
        rng: source of all randomness here, on the generator's device.
        processes: among which generation is dealt out.
        cost: where it is written down.
        progress: show progress bars, if standard error is a terminal.

    Attributes:
        pool: what was generated; ``None`` if nothing was, or all was dropped.
        past: who is asked in the present experience; ``None`` if there is nothing to ask.
    """

    def __init__(
        self,
        generator: DiffusionGenerator,
        distillation: Distillation,
        rng: torch.Generator,
        processes: Processes,
        cost: Cost,
        progress: bool,
    ) -> None:
        self.generator = generator
        self.distillation = distillation
        self.rng = rng
        self.processes = processes
        self.cost = cost
        self.progress = progress
        self.pool: Pool | None = None
        self.past: Past | None = None

    def begin(
        self,
        classes: set[int],
        dataset: Any,
        classifier: Classifier | None,
        *,
        share: float,
        images: bool,
    ) -> None:
        """Ask the teacher about the past, before it begins to learn an experience.

        Args:
            classes: to generate.
            dataset: of the experience, in evaluation mode.
            classifier: the solver of the past.
            share: of the pool's size that is generated now; a pool that is there gets it added.
            images: whether images are wanted even where no lessons are kept with them.

        Raises:
            ValueError: a solver is needed and there is none.
        """
        self.past = None
        if not classes:
            return
        if classifier is None and self.distillation.asks_solver:
            raise ValueError("This distillation asks the solver: train it by MAGDPlugin.")

        def current_images(count: int, rng: torch.Generator) -> Tensor:
            rows = torch.randint(len(dataset), (count,), generator=rng, device=rng.device)
            images = torch.stack([dataset[row][0] for row in rows.tolist()])
            return self.generator.pixel_range.to_model(images.float().to(rng.device))

        past = (self.generator, sorted(classes), self.rng, current_images, classifier)
        self.past = Past(*past, self.processes)
        if not (images or self.distillation.keeps_lessons):
            return
        self.pool = self.pool or self.distillation.empty_pool(self.generator)
        missing = len(classes.difference(self.pool.classes))
        count = max(1, missing, round(share * self.distillation.pool_size))
        self._fill(self.pool, count, self.past, self.distillation)
        self.cost.lessons += count * self.pool.lessons_per_image
        self.cost.pool_bytes = max(self.cost.pool_bytes, self.pool.nbytes)

    def images_of(self, classes: list[int], count: int) -> Pool:
        """Images of known classes, for a solver, in the user's range; no lessons.

        No solver steers them: it may not know the classes yet.

        Args:
            classes: to generate, evenly.
            count: how many images.
        """
        folder = self.distillation.pool_folder
        pool = Pool(count, 0, self.generator.image_shape, self.generator.device, folder=folder)
        past = Past(self.generator, classes, self.rng, processes=self.processes)
        self._fill(pool, count, past, replace(self.distillation, classifier_scale=0.0))
        return pool

    def _fill(self, pool: Pool, count: int, past: Past, distillation: Distillation) -> None:
        phase = self.cost.generation if pool.lessons_per_image else self.cost.replay
        with phase.measure(self.generator):
            distillation.fill(pool, count, past, progress=self.progress)
        self.cost.look_at_memory(self.generator.device)

    def keep_teacher(self) -> None:
        """A copy for fresh lessons: the generator is about to become the student."""
        if not self.distillation.fresh or self.past is None:
            return
        if self.past.teacher is self.generator:  # else an interrupted experience has left it
            frozen = {id(p): p for p in self.generator.parameters() if not p.requires_grad}
            self.past = replace(self.past, teacher=copy.deepcopy(self.generator, frozen))

    @property
    def classes(self) -> list[int]:
        """Those that lessons are about; a pool may hold more than those that are asked for now."""
        if self.distillation.mode is None:
            return []
        source = self.past if self.distillation.fresh else self.pool
        return [] if source is None else source.classes

    def lessons(self, count: int, average: list[Tensor] | None = None) -> LessonBatch:
        """Lessons from the pool, or made on the spot.

        Args:
            count: how many.
            average: weights that the teacher of fresh lessons takes over before.
        """
        if not self.distillation.fresh:
            assert self.pool is not None
            return self.pool.draw_lessons(count, self.rng)
        assert self.past is not None
        if average is not None:
            with torch.no_grad():
                torch._foreach_copy_(learning(self.past.teacher.parameters()), average)
        before = self.cost.generation.seconds
        with self.cost.generation.measure(self.past.teacher):
            lessons = self.distillation.fresh_lessons(count, self.past)
        self.cost.training.seconds -= self.cost.generation.seconds - before
        self.cost.lessons += count
        return lessons

    def end(self, *, whole: bool) -> None:
        """The experience is learnt; after a part of one the pool stays."""
        self.past = None
        if whole and self.pool is not None:
            self.pool.drop_lessons()  # the solver may still need the images
            self.pool = None
