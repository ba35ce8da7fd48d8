"""How a teacher's knowledge is passed on: one generation pass becomes a pool.

A run of K steps costs K forwards (2K with classifier-free guidance) and leaves K lessons with
their answers. Only a lesson whose input or label was changed afterwards costs one more forward.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from avalanche_magd.arguments import check_count, check_number
from avalanche_magd.classes import NULL_LABEL
from avalanche_magd.distillation.batch import LessonBatch, ask_again
from avalanche_magd.distillation.cggd import (
    LABEL_DROPOUT,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    without_class,
)
from avalanche_magd.distillation.draft import Draft, Mode, Source
from avalanche_magd.distillation.magd import MAGD
from avalanche_magd.distillation.past import Past
from avalanche_magd.distillation.pool import Pool, image_bytes, lesson_bytes
from avalanche_magd.generator import DiffusionGenerator
from avalanche_magd.processes import is_main_process
from avalanche_magd.randomness import SeededGenerator
from avalanche_magd.samplers import DEFAULT_SAMPLER, Images, Indices, SamplerName, check_sampler
from avalanche_magd.sampling import (
    Guidance,
    Trajectory,
    balanced_labels,
    images_at_once,
    reverse_runs,
)

EVEN, SMALL = 8, 16


@dataclass(frozen=True)
class Distillation:
    """How a teacher generates, and which lessons become of it. The defaults are MAGD's.

    Args:
        mode: which lessons; see :class:`~avalanche_magd.distillation.MAGD` and
            :mod:`~avalanche_magd.distillation.baselines`. ``None``: none, which is fine-tuning.
        pool_size: images generated per experience, over all old classes.
        num_inference_steps: K, network calls per image.
        sampler: how a run steps from state to state.
        eta: share of new noise of a DDIM run, in [0, 1].
        guidance_scale: strength of classifier-free guidance; 1 is none.
        classifier_scale: strength of guidance by the solver; 0 is none.
        conditional: whether the network is told classes. If not, the solver of the past says what
            was generated.
        fresh: whether lessons are made anew in each training step, as the published baselines do,
            one from each image. If not, they wait in a pool.
        max_pool_bytes: bound on the pool's size. If not all lessons fit, some of each image's are
            kept.
        pool_folder: where the pool is kept instead of in memory, in files that no name leads to:
            they are gone with the pool, or with the process. Of several processes each has its
            own.

    Raises:
        FileNotFoundError: ``pool_folder`` is no folder.
        TypeError: a count that is not an integer.
        ValueError: an argument out of range.
    """

    mode: Mode | None = field(default_factory=MAGD)
    pool_size: int = 4000
    num_inference_steps: int = 10
    sampler: SamplerName = DEFAULT_SAMPLER
    eta: float = 0.0
    guidance_scale: float = 1.0
    classifier_scale: float = 0.0
    conditional: bool = True
    fresh: bool = False
    max_pool_bytes: int = 2**30
    pool_folder: str | Path | None = field(default=None, repr=False)  # changes no result

    def __post_init__(self) -> None:
        check_count("pool_size", self.pool_size)
        check_count("num_inference_steps", self.num_inference_steps)
        check_sampler(self.sampler, self.eta)
        check_number("guidance_scale", self.guidance_scale, at_least=1, at_most=100)
        check_number("classifier_scale", self.classifier_scale, at_least=0, at_most=100)
        if not self.conditional and (self.guidance_scale > 1 or self.classifier_scale):
            raise ValueError(
                "Guidance is towards a class: conditional=False leaves none to steer to."
            )
        check_count("max_pool_bytes", self.max_pool_bytes)
        if self.pool_folder is not None and not Path(self.pool_folder).is_dir():
            raise FileNotFoundError(f"pool_folder={str(self.pool_folder)!r} is not a folder.")

    @property
    def asks_solver(self) -> bool:
        """Whether the solver of the past is needed."""
        return self.classifier_scale > 0 or not self.conditional

    @property
    def keeps_lessons(self) -> bool:
        """Whether lessons wait in a pool."""
        return self.mode is not None and not self.fresh

    def lessons_per_image(self, generator: DiffusionGenerator) -> int:
        """How many lessons a pool keeps of each image, at most K, so that it fits its bytes.

        Raises:
            ValueError: not even one lesson per image fits, or K exceeds the generator's noise
                levels.
        """
        if self.num_inference_steps > generator.schedule.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps must be at most {generator.schedule.num_train_timesteps}, "
                f"the generator's number of noise levels; got {self.num_inference_steps}."
            )
        wanted = self.num_inference_steps if self.keeps_lessons else 0
        each_image = image_bytes(math.prod(generator.image_shape))
        each_lesson = lesson_bytes(math.prod(generator.latent_shape))
        left = self.max_pool_bytes // self.pool_size - each_image
        if left < min(wanted, 1) * each_lesson:
            needed = self.pool_size * (each_image + min(wanted, 1) * each_lesson)
            raise ValueError(
                f"max_pool_bytes={self.max_pool_bytes:,} does not hold "
                f"pool_size={self.pool_size:,} images of shape {generator.image_shape}"
                f"{' with a lesson each' if wanted else ''}: that takes {needed:,} bytes. Lower "
                "pool_size or raise max_pool_bytes."
            )
        return min(wanted, left // each_lesson)

    def empty_pool(self, generator: DiffusionGenerator) -> Pool:
        """Room for ``pool_size`` images of this generator and their lessons."""
        kept = self.lessons_per_image(generator)
        shape, device = generator.image_shape, generator.device
        return Pool(self.pool_size, kept, shape, device, generator.latent_shape, self.pool_folder)

    @property
    def null_share(self) -> float:
        """The share of lessons that are taught without a class."""
        if not self.conditional:
            return 1.0
        return LABEL_DROPOUT if self.guidance_scale > 1 else 0.0

    def fill(self, pool: Pool, count: int, past: Past, *, progress: bool = False) -> None:
        """One generation pass, dealt out among the processes; all fill their pools with all of it.

        Args:
            pool: where images go, and lessons if it has room for any.
            count: images to generate; at most the pool's size.
            past: what is asked; of its classes those come first that the pool has fewest of.
            progress: show a bar, if standard error is a terminal.

        Raises:
            ValueError: the pool is smaller than the number of classes.
        """
        if len(pool.labels) < len(past.classes):
            raise ValueError(
                f"pool_size={len(pool.labels)} leaves some of the {len(past.classes)} classes "
                "without an image: make it several times larger."
            )
        device = past.rng.device
        labels = balanced_labels(count, past.classes, past.rng, pool.counts)
        together = images_at_once(past.teacher.latent_shape, device, past.teacher)
        batches = _batches(labels, together)
        # Each batch has a seed, so that it is the same whichever process makes it.
        seeds = torch.randint(2**62, (len(batches),), generator=past.rng, device=device).tolist()
        work = partial(self._batch, past, pool.lessons_per_image)
        with (
            past.teacher.frozen(),
            past.processes.counting(past.teacher),
            _progress_bar(count, progress and is_main_process()) as bar,
        ):
            for batch in past.processes.deal(list(zip(batches, seeds, strict=True)), work, device):
                images, recognised, *columns = batch
                lessons = (LessonBatch(*columns[:-1]), columns[-1]) if columns else None
                pool.write(pool.slots_for(recognised), images, recognised, lessons)
                bar.update(len(images))
        pool.sort()

    def _batch(self, past: Past, kept: int, task: tuple[Indices, int]) -> list[Tensor]:
        """Images of these labels in the user's range and their classes; lessons and weights."""
        labels, seed = task
        past = replace(past, rng=SeededGenerator(past.rng.device, seed))
        source = self._source(past, labels)
        run = source.run(None)
        if not self.conditional:
            labels = past.recognised(run.images)
        batch = [past.teacher.pixel_range.to_data(run.images), labels]
        if kept and self.mode is not None:
            draft = self.mode(replace(source, run=_finished(run)), kept)
            lessons, weights = self._answered(draft, past)
            batch += [*lessons.cast(torch.float16), weights]
        return batch

    def images(self, labels: Int[Tensor, " n"], past: Past) -> Float[Tensor, "n c h w"]:
        """Images of these classes, made as those of a pool are, in the user's range."""
        together = images_at_once(past.teacher.latent_shape, past.rng.device, past.teacher)
        with past.teacher.frozen():
            batches = [self._source(past, x).run(None) for x in torch.split(labels, together)]
            return torch.cat([past.teacher.pixel_range.to_data(each.images) for each in batches])

    def fresh_lessons(self, count: int, past: Past) -> LessonBatch:
        """That many lessons, each from an image of its own, balanced over the classes."""
        assert self.mode is not None
        labels = balanced_labels(count, past.classes, past.rng)
        with past.teacher.frozen():
            lessons, _ = self._answered(self.mode(self._source(past, labels), 1), past)
        return lessons

    def _source(self, past: Past, labels: Int[Tensor, " b"]) -> Source:
        told = labels if self.conditional else torch.full_like(labels, NULL_LABEL)
        teacher, rng = past.teacher, past.rng

        def run(position: Float[Tensor, " b"] | None) -> Trajectory:
            (finished,) = reverse_runs(
                teacher,
                teacher.schedule,
                teacher.latent_shape,
                told,
                self.num_inference_steps,
                rng,
                sampler=self.sampler,
                eta=self.eta,
                guidance=self.guidance(past),
                position=position,
                batch_size=len(told),
            )
            return finished

        return Source(teacher.schedule, told, run, lambda n: past.current_images(n, rng), rng)

    def guidance(self, past: Past) -> Guidance | None:
        """What steers a run: both kinds, one after the other, or the one that there is."""
        free = ClassifierFreeGuidance(past.teacher, self.guidance_scale)
        if not self.classifier_scale:
            return None if self.guidance_scale == 1 else free
        assert past.classifier is not None
        steered = ClassifierGuidance(
            past.classifier, past.classes, past.teacher.schedule, self.classifier_scale
        )
        if self.guidance_scale == 1:
            return steered

        def both(prediction: Images, x_t: Images, t: Indices, labels: Indices) -> Images:
            return steered(free(prediction, x_t, t, labels), x_t, t, labels)

        return both

    def _answered(self, draft: Draft, past: Past) -> tuple[LessonBatch, Float[Tensor, " n"]]:
        """Lessons and their weights, with every answer that the teacher owes."""
        lessons, weights, unanswered = draft
        null = without_class(len(weights), self.null_share, past.rng)
        null &= lessons.labels != NULL_LABEL
        lessons = lessons._replace(labels=lessons.labels.masked_fill(null, NULL_LABEL))
        if unanswered is not None:
            lessons = ask_again(lessons, unanswered | null, past.teacher)
        return lessons, weights


def _batches(labels: Indices, together: int) -> Sequence[Indices]:
    """Batches of equal size, and as many for each of 2, 4 or 8 processes if they are not small."""
    number = -(-len(labels) // together)
    even = -(-number // EVEN) * EVEN
    return labels.tensor_split(even if len(labels) >= even * SMALL else number)


def _finished(run: Trajectory) -> Callable[[Float[Tensor, " b"] | None], Trajectory]:
    """Gives a run that was made already."""
    return lambda position: run


def _progress_bar(total: int, progress: bool) -> "tqdm[None]":
    """A bar that stays silent on request and where standard error is no terminal."""
    return tqdm(
        total=total,
        desc="generating",
        unit="image",
        disable=None if progress else True,
        leave=False,
    )
