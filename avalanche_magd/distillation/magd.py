"""MAGD: how one generation pass of the teacher becomes a pool, with NIGD, CGGD and SGGD combined.

====  ================================================  ===========================
part  what it decides                                   switched off by
====  ================================================  ===========================
NIGD  a lesson's input is a state of a reverse run      ``trajectory_share=0.0``
CGGD  runs are steered towards their (balanced) class   ``guidance_scale=1.0``
SGGD  at some noise levels current images are input     ``snr_band=None``
====  ================================================  ===========================

A run of K steps costs K forwards (2K if guided) and leaves K lessons with their answers. Only a
lesson whose input or label was changed afterwards costs one more forward.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from avalanche_magd.arguments import check_count, check_number
from avalanche_magd.classes import NULL_LABEL
from avalanche_magd.distillation.batch import LessonBatch, ask_again, noise_again
from avalanche_magd.distillation.cggd import ClassifierFreeGuidance, without_class
from avalanche_magd.distillation.nigd import off_trajectory, trajectory_lessons
from avalanche_magd.distillation.pool import Pool, image_bytes, lesson_bytes
from avalanche_magd.distillation.sggd import SnrBand, check_snr_band, outside_band
from avalanche_magd.generator import DiffusionGenerator
from avalanche_magd.sampling import Trajectory, balanced_labels, reverse_runs

CurrentImages = Callable[[int], Float[Tensor, "n c h w"]]
"""Gives that many images of the current experience, drawn at random, in [−1, 1]."""


@dataclass(frozen=True)
class MAGD:
    """How a teacher's knowledge is distilled.

    Args:
        pool_size: images generated per experience, over all old classes.
        num_inference_steps: K, network calls per image.
        snr_band: SGGD's ``(low, high)``; outside it lessons start from current images.
        guidance_scale: strength of classifier-free guidance; 1 is none.
        trajectory_share: NIGD's share of lessons; the others start from finished images, noised
            again.
        max_pool_bytes: bound on the pool's size in memory. If not all lessons fit, a random subset
            of each image's is kept.
        teacher_dtype: precision in which the teacher generates and answers, by autocast; ``None``
            is that of its weights. ``torch.bfloat16`` is for devices that are faster in it.

    Raises:
        TypeError: a count that is not an integer.
        ValueError: an argument out of range.
    """

    pool_size: int = 2000
    num_inference_steps: int = 10
    snr_band: SnrBand | None = None
    guidance_scale: float = 1.0
    trajectory_share: float = 1.0
    max_pool_bytes: int = 2**30
    teacher_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_count("pool_size", self.pool_size)
        check_count("num_inference_steps", self.num_inference_steps)
        check_snr_band(self.snr_band)
        check_number("guidance_scale", self.guidance_scale, at_least=1, at_most=100)
        check_number("trajectory_share", self.trajectory_share, at_least=0, at_most=1)
        check_count("max_pool_bytes", self.max_pool_bytes)

    def lessons_per_image(self, generator: DiffusionGenerator) -> int:
        """How many of a run's K lessons are kept, so that the pool stays within its bytes.

        Raises:
            ValueError: not even one lesson per image fits, or K exceeds the generator's noise
                levels.
        """
        if self.num_inference_steps > generator.schedule.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps must be at most {generator.schedule.num_train_timesteps}, "
                f"the generator's number of noise levels; got {self.num_inference_steps}."
            )
        pixels = math.prod(generator.image_shape)
        left = self.max_pool_bytes // self.pool_size - image_bytes(pixels)
        if left < lesson_bytes(pixels):
            needed = self.pool_size * (image_bytes(pixels) + lesson_bytes(pixels))
            raise ValueError(
                f"max_pool_bytes={self.max_pool_bytes:,} does not hold "
                f"pool_size={self.pool_size:,} images of shape {generator.image_shape} with a "
                f"lesson each: that takes {needed:,} bytes."
            )
        return min(self.num_inference_steps, left // lesson_bytes(pixels))

    def empty_pool(self, generator: DiffusionGenerator) -> Pool:
        """Room for ``pool_size`` images of this generator and their lessons."""
        kept = self.lessons_per_image(generator)
        return Pool(self.pool_size, kept, generator.image_shape, generator.device)

    def fill(
        self,
        pool: Pool,
        count: int,
        teacher: DiffusionGenerator,
        classes: list[int],
        current_images: CurrentImages,
        rng: torch.Generator,
        *,
        progress: bool = False,
    ) -> None:
        """One generation pass.

        Args:
            pool: where images and lessons go.
            count: images to generate; at most the pool's size.
            teacher: the generator as it was taught so far.
            classes: to generate, those first that the pool has fewest of.
            current_images: where SGGD takes its images from.
            rng: source of randomness, on the teacher's device.
            progress: show a bar, if standard error is a terminal.

        Raises:
            ValueError: the pool is smaller than the number of classes.
        """
        if self.pool_size < len(classes):
            raise ValueError(
                f"pool_size={self.pool_size} leaves some of the {len(classes)} old classes "
                "without an image: make it several times larger."
            )
        labels = balanced_labels(count, classes, rng, pool.counts)
        slots = pool.slots_for(labels)
        guidance = (
            None
            if self.guidance_scale == 1
            else ClassifierFreeGuidance(teacher, self.guidance_scale)
        )
        with teacher.frozen(self.teacher_dtype), _progress_bar(count, progress) as bar:
            for run in reverse_runs(
                teacher,
                teacher.schedule,
                teacher.image_shape,
                labels,
                self.num_inference_steps,
                rng,
                guidance=guidance,
            ):
                lessons, weights = self._lessons(run, teacher, current_images, rng)
                images = teacher.pixel_range.to_data(run.images)
                chosen, slots = slots.tensor_split([len(images)])
                pool.write(chosen, images, run.labels, lessons, weights)
                bar.update(len(images))
        pool.sort()

    def _lessons(
        self,
        run: Trajectory,
        teacher: DiffusionGenerator,
        current_images: CurrentImages,
        rng: torch.Generator,
    ) -> tuple[LessonBatch, Float[Tensor, " n"]]:
        """The lessons of a run, with the inputs and labels that the three techniques choose."""
        kept = self.lessons_per_image(teacher)
        lessons, weights = trajectory_lessons(run, kept, rng)
        finished = run.images.repeat_interleave(kept, 0)
        count, schedule = len(weights), teacher.schedule
        current = outside_band(schedule.snr(lessons.t), self.snr_band)
        again = off_trajectory(count, self.trajectory_share, rng) & ~current
        null = without_class(count, self.guidance_scale, rng)
        if again.any():
            lessons = noise_again(lessons, again, finished[again], schedule, rng)
        if current.any():
            x_0 = current_images(int(current.sum()))
            lessons = noise_again(lessons, current, x_0, schedule, rng)
        lessons = lessons._replace(labels=lessons.labels.masked_fill(null, NULL_LABEL))
        return ask_again(lessons, again | current | null, teacher), weights


def _progress_bar(total: int, progress: bool) -> "tqdm[None]":
    """A bar that stays silent on request and where standard error is no terminal."""
    return tqdm(
        total=total,
        desc="generating",
        unit="image",
        disable=None if progress else True,
        leave=False,
    )
