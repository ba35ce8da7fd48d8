"""MAGD: which lessons NIGD, CGGD and SGGD make of a reverse run.

====  ================================================  ===========================
part  what it decides                                   switched off by
====  ================================================  ===========================
NIGD  a lesson's input is a state of a reverse run      ``trajectory_share=0.0``
CGGD  classes are asked for, and evenly                 ``Distillation(conditional=False)``
SGGD  at some noise levels current images are input     ``snr_band=None``
====  ================================================  ===========================

Without NIGD, a lesson's input is a finished image, noised again to a timestep of its own: this is
generative distillation.

References:
    MAGD's published abstract. Masip et al. 2023, *Continual learning of diffusion models with
    generative distillation*, arXiv 2311.14028.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from avalanche_magd.arguments import check_number
from avalanche_magd.distillation.batch import Input, noise_again, noised_lessons
from avalanche_magd.distillation.draft import Draft, Source
from avalanche_magd.distillation.nigd import trajectory_lessons
from avalanche_magd.distillation.sggd import SnrBand, check_snr_band, outside_band, safe_band


@dataclass(frozen=True)
class MAGD:
    """The mode that this package is about; its answers are always the teacher's.

    Args:
        trajectory_share: NIGD's share of lessons, ρ; the others start from finished images, noised
            again.
        snr_band: SGGD's ``(low, high)``; outside it lessons start from current images. ``"safe"``
            finds a lower end from the generated images.

    Raises:
        ValueError: an argument out of range.
    """

    trajectory_share: float = 1.0
    snr_band: SnrBand | Literal["safe"] | None = None

    def __post_init__(self) -> None:
        check_number("trajectory_share", self.trajectory_share, at_least=0, at_most=1)
        check_snr_band(self.snr_band)

    def __call__(self, source: Source, kept: int) -> Draft:
        """Lessons from one reverse run, with the inputs that the techniques choose."""
        schedule, rng = source.schedule, source.rng
        run = source.run(None)
        lessons, weights = trajectory_lessons(run, kept, rng)
        again = torch.rand(len(weights), generator=rng, device=rng.device) >= self.trajectory_share
        if again.any():
            finished = run.images.repeat_interleave(kept, 0)[again]
            noised = noised_lessons(schedule, finished, lessons.labels[again], rng, Input.RENOISED)
            for column, values in zip(lessons, noised, strict=True):
                column[again] = values
            weights = weights.masked_fill(again, weights.mean())
        band = safe_band(run.images) if self.snr_band == "safe" else self.snr_band
        current = outside_band(schedule.snr(lessons.t), band)
        if current.any():
            x_0 = source.current_images(int(current.sum()))
            lessons = noise_again(lessons, current, x_0, schedule, rng)
        return Draft(lessons, weights, again | current)
