"""Generation passes: the teacher fills a pool.

A run of K steps costs K forwards (2K with classifier-free guidance) and leaves K lessons with
their targets. Only a lesson whose input or label was changed afterwards costs one more forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from tqdm import tqdm

from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.diffusion.sampling import balanced_labels, inference_batch_size
from avalanche_magd.diffusion.schedule import Indices
from avalanche_magd.distillation.cost import Cost
from avalanche_magd.distillation.distillation import Distillation
from avalanche_magd.distillation.lessons import LessonBatch
from avalanche_magd.distillation.pool import Pool, check_pool_size
from avalanche_magd.distillation.teacher import Mode, Teacher
from avalanche_magd.runtime.distributed import Processes, is_main_process, process_count, rank
from avalanche_magd.runtime.random_state import SeededGenerator

EVEN: Final = 8
"""Batches are a multiple of this many, so that 2, 4 or 8 processes get equally many."""
SMALL: Final = 16
"""Smaller batches than this are not made for that."""


@dataclass
class Generation:
    """What generates for one strategy.

    Attributes:
        processes: among which batches are shared out.
        cost: where everything is counted.
        progress: whether to show a progress bar, if standard error is a terminal.
    """

    processes: Processes = field(default_factory=Processes)
    cost: Cost = field(default_factory=Cost)
    progress: bool = True

    def fill(self, pool: Pool, count: int, teacher: Teacher, mode: Mode | None) -> None:
        """Generate images into a pool, and lessons where it has any.

        Of the teacher's classes those come first of which the pool has fewest. All processes fill
        their pools with all batches. Each batch has a seed of its own, so that it is the same
        whichever process makes it.

        Raises:
            ValueError: the pool is smaller than the number of classes.
        """
        check_pool_size(len(pool.labels), len(teacher.classes))
        generator, device = teacher.generator, teacher.rng.device
        labels = balanced_labels(count, teacher.classes, teacher.rng, pool.counts)
        batches = _batches(labels, inference_batch_size(generator.latent_shape, device, generator))
        seeds = torch.randint(2**62, (len(batches),), generator=teacher.rng, device=device)
        tasks = list(zip(batches, seeds.tolist(), strict=True))
        phase = self.cost.generation if pool.lessons_per_image else self.cost.replay
        with (
            self.cost.measure(phase, generator),
            generator.frozen(),
            self.processes.counting(generator),
            self._bar(count) as bar,
            pool.filling(),
        ):
            for start in range(0, len(tasks), process_count()):
                together, made = tasks[start : start + process_count()], None
                if rank() < len(together):
                    labels, seed = together[rank()]
                    of_batch = replace(teacher, rng=SeededGenerator(device, seed))
                    run = of_batch.trajectories(teacher.guidance.network_labels(labels))
                    made = replace(of_batch, run=run).outcome(labels, mode, pool.lessons_per_image)
                for batch in self.processes.exchange(made, len(together), device):
                    images, classes = batch.pop("images"), batch.pop("classes")
                    lessons = LessonBatch(**batch) if batch else None
                    pool.write(pool.slots_for(classes), images, classes, lessons)
                    bar.update(len(images))
        self.cost.lessons += count * pool.lessons_per_image
        self.cost.record_peak_memory(generator.device)

    def lessons(
        self,
        count: int,
        distillation: Distillation,
        teacher: Teacher | None,
        pool: Pool | None,
        rng: torch.Generator,
    ) -> LessonBatch:
        """That many lessons of old classes: drawn from the pool, or made on the fly.

        On the fly each is from an image of its own, balanced over the classes.
        """
        if not distillation.on_the_fly:
            assert pool is not None
            return pool.draw_lessons(count, rng)
        assert teacher is not None
        assert distillation.mode is not None
        with self.cost.measure(self.cost.generation, teacher.generator):
            labels = balanced_labels(count, teacher.classes, teacher.rng)
            with teacher.generator.frozen():
                told = teacher.guidance.network_labels(labels)
                lessons = distillation.mode(teacher, told, 1)
        self.cost.lessons += count
        return lessons

    def images(
        self,
        classes: list[int],
        count: int,
        distillation: Distillation,
        generator: DiffusionGenerator,
        rng: torch.Generator,
    ) -> Pool:
        """So many images, over known classes evenly, for a solver; no lessons.

        No solver guides them: it may not know the classes yet.
        """
        shape, folder = generator.image_shape, distillation.pool_folder
        pool = Pool(count, 0, shape, generator.device, folder=folder)
        guidance = replace(distillation.guidance, classifier_scale=0.0)
        unguided = replace(distillation, guidance=guidance)
        self.fill(pool, count, unguided.teacher(generator, classes, rng), None)
        return pool

    def _bar(self, count: int) -> "tqdm[Any]":
        disable = None if self.progress and is_main_process() else True
        return tqdm(total=count, desc="generating", unit="image", disable=disable, leave=False)


def lesson_classes(
    distillation: Distillation, teacher: Teacher | None, pool: Pool | None
) -> list[int]:
    """The classes that lessons are of; a pool may hold more than the teacher generates now."""
    source = teacher if distillation.on_the_fly else pool
    return [] if source is None or distillation.mode is None else source.classes


def _batches(labels: Indices, batch_size: int) -> Sequence[Indices]:
    """Batches of equal size, as many for each process if that does not make them small."""
    number = -(-len(labels) // batch_size)
    even = -(-number // EVEN) * EVEN
    return labels.tensor_split(even if len(labels) >= even * SMALL else number)
