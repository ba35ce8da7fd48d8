"""How old classes are taught: the settings of one experience's generation and lessons."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.diffusion.guidance import Classifier
from avalanche_magd.diffusion.samplers import Sampler, check_sampler
from avalanche_magd.diffusion.sampling import DEFAULT_SAMPLER
from avalanche_magd.distillation.cggd import CGGD
from avalanche_magd.distillation.magd import MAGD
from avalanche_magd.distillation.pool import Pool, image_bytes, lesson_bytes
from avalanche_magd.distillation.teacher import CurrentImages, Mode, Teacher
from avalanche_magd.runtime.deprecation import OLD_DISTILLATION_ARGUMENTS, old_arguments
from avalanche_magd.runtime.validation import (
    check_count,
    check_flag,
    check_instance,
    check_number,
    check_path,
    check_share,
)


@old_arguments(OLD_DISTILLATION_ARGUMENTS, guidance=CGGD())
@dataclass(frozen=True)
class Distillation:
    """How a teacher generates, and which lessons become of it. The defaults are MAGD's.

    Args:
        mode: which lessons; see :class:`~avalanche_magd.distillation.MAGD` and
            :mod:`~avalanche_magd.distillation.baselines`. ``None``: none, which is fine-tuning.
        guidance: what generation is conditioned on.
        pool_size: images generated per experience, over all old classes.
        num_inference_steps: K, network calls per image.
        sampler: what steps from state to state in a reverse run.
        replay_weight: λ, weight of the lessons' loss; 1 is the joint objective.
        on_the_fly: whether lessons are made anew in each training step, as the published baselines
            do, one from each image. If not, they wait in a pool.
        online_share: share of an experience's steps and pool that a part of an online stream
            gets, in (0, 1].
        max_pool_bytes: bound on the pool's size. If not all lessons fit, some of each image's are
            kept.
        pool_folder: where the pool is kept instead of in memory, in unlinked temporary files: they
            are gone with the pool, or with the process. Of several processes each has its own.

    Raises:
        FileNotFoundError: ``pool_folder`` is no folder.
        TypeError: a count is not an integer.
        ValueError: an argument is out of range.
    """

    mode: Mode | None = field(default_factory=MAGD)
    guidance: CGGD = field(default_factory=CGGD)
    pool_size: int = 4000
    num_inference_steps: int = 10
    sampler: Sampler = DEFAULT_SAMPLER
    replay_weight: float = 1.0
    on_the_fly: bool = False
    online_share: float = 1 / 40
    max_pool_bytes: int = 2**30
    pool_folder: str | Path | None = field(default=None, repr=False)  # changes no result

    def __post_init__(self) -> None:
        if self.mode is not None and (isinstance(self.mode, type) or not callable(self.mode)):
            raise TypeError(
                "mode must be None or a function (teacher, labels, lessons per image), such as "
                f"MAGD() or one of distillation.baselines; got {self.mode!r}."
            )
        check_instance("guidance", self.guidance, CGGD)
        check_sampler(self.sampler)
        checked: dict[str, Any] = {
            name: check_count(name, getattr(self, name))
            for name in ("pool_size", "num_inference_steps", "max_pool_bytes")
        }
        weight = self.replay_weight
        checked["replay_weight"] = check_number("replay_weight", weight, at_least=0, at_most=1e6)
        checked["online_share"] = check_share("online_share", self.online_share, excluded=0)
        checked["on_the_fly"] = check_flag("on_the_fly", self.on_the_fly)
        checked["pool_folder"] = folder = check_path("pool_folder", self.pool_folder)
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"pool_folder={str(self.pool_folder)!r} is not a folder.")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def keeps_lessons(self) -> bool:
        """Whether lessons wait in a pool."""
        return self.mode is not None and not self.on_the_fly

    def lessons_per_image(self, generator: DiffusionGenerator) -> int:
        """How many lessons of each image a pool keeps: at most K, and what its bytes allow.

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
        """A pool for ``pool_size`` images of this generator and their lessons."""
        lessons = self.lessons_per_image(generator)
        shapes = generator.image_shape, generator.device, generator.latent_shape
        return Pool(self.pool_size, lessons, *shapes, self.pool_folder)

    def images_in_a_pass(self, teacher: Teacher, pool: Pool, share: float) -> int:
        """How many images to generate for a share of an experience; one of each class at least."""
        missing = set(teacher.classes).difference(pool.classes)
        return max(1, len(missing), round(share * self.pool_size))

    def teacher(
        self,
        generator: DiffusionGenerator,
        classes: list[int],
        rng: torch.Generator,
        *,
        classifier: Classifier | None = None,
        current_images: CurrentImages | None = None,
    ) -> Teacher:
        """A teacher that generates by these settings; its attributes are those of the same names.

        Raises:
            ValueError: the guidance needs the solver of the past, and there is none.
        """
        if classifier is None and self.guidance.needs_solver:
            raise ValueError(
                "This distillation's guidance needs the solver of the past: pass it as "
                "classifier, or train by MAGDPlugin."
            )
        return Teacher(
            generator,
            classes,
            rng,
            self.num_inference_steps,
            self.sampler,
            self.guidance,
            classifier,
            current_images,
        )
