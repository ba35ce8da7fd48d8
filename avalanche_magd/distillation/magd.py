"""MAGD: the lessons that NIGD, CGGD and SGGD make of reverse runs.

====  ===============================================  ================================
part  what it decides                                  switched off by
====  ===============================================  ================================
NIGD  a lesson's input is a state of a reverse run     ``MAGD(trajectory_share=0.0)``
CGGD  classes are asked for, and evenly                ``CGGD(conditional=False)``
SGGD  at some noise levels current images are input    ``MAGD(snr_band=None)``
====  ===============================================  ================================

Without NIGD, a lesson's input is a finished image, noised again to a timestep of its own: this is
generative distillation.

References:
    MAGD's published abstract. Masip et al. 2023, *Continual learning of diffusion models with
    generative distillation*, arXiv 2311.14028.
"""

from dataclasses import dataclass

from avalanche_magd.diffusion.schedule import Indices
from avalanche_magd.distillation.lessons import (
    InputSource,
    LessonBatch,
    noised_lessons,
    renoise,
)
from avalanche_magd.distillation.nigd import trajectory_lessons
from avalanche_magd.distillation.sggd import SnrBand, check_snr_band, outside_band
from avalanche_magd.distillation.teacher import Teacher
from avalanche_magd.runtime.precision import uniform
from avalanche_magd.runtime.validation import check_number


@dataclass(frozen=True)
class MAGD:
    """The mode that this package is about; its targets are always the teacher's.

    Args:
        trajectory_share: NIGD's share of lessons, ρ; the others start from finished images, noised
            again.
        snr_band: SGGD's ``(low, high)``; outside it lessons start from current images.

    Raises:
        ValueError: an argument is out of range.
    """

    trajectory_share: float = 1.0
    snr_band: SnrBand | None = None

    def __post_init__(self) -> None:
        share = check_number("trajectory_share", self.trajectory_share, at_least=0, at_most=1)
        object.__setattr__(self, "trajectory_share", share)
        object.__setattr__(self, "snr_band", check_snr_band(self.snr_band))

    def __call__(self, teacher: Teacher, labels: Indices, per_image: int) -> LessonBatch:
        """Lessons from one batch of reverse runs, with the inputs that the techniques choose."""
        schedule, rng = teacher.generator.schedule, teacher.rng
        run = teacher.trajectories(labels)
        lessons = trajectory_lessons(run, per_image, rng)
        again = uniform(lessons.t.shape, rng)
        again = again >= self.trajectory_share
        if again.any():
            images = run.images.repeat_interleave(per_image, 0)[again]
            noised = noised_lessons(
                schedule, images, lessons.labels[again], rng, InputSource.RENOISED
            )
            noised = noised._replace(weight=lessons.weight.mean().expand(len(images)))
            lessons = lessons.with_rows(again, noised)
        current = outside_band(schedule.snr(lessons.t), self.snr_band)
        if current.any():
            x_0 = teacher.images_for(int(current.sum()))
            lessons = renoise(lessons, current, x_0, schedule, rng)
        return teacher.relabel(lessons, again | current)
