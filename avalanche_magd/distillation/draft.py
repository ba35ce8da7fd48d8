"""What a mode of distillation is given, and what it gives back.

A *mode* makes lessons about the past: it chooses their inputs and says where the answers come
from. It is a callable ``mode(source, kept) → Draft``. The teacher is asked afterwards, once for
all lessons that need it, by :mod:`avalanche_magd.distillation.distillation`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avalanche_magd.distillation.batch import LessonBatch
from avalanche_magd.sampling import Trajectory
from avalanche_magd.schedule import NoiseSchedule

CurrentImages = Callable[[int], Float[Tensor, "n c h w"]]
"""Gives that many images of the current experience, drawn at random, in [−1, 1]."""


@dataclass(frozen=True)
class Source:
    """What lessons can be made from.

    Attributes:
        schedule: noise levels, and what a prediction means.
        labels: class of each of b images of the past.
        run: the teacher's reverse run that generates them, made when it is asked for. Given a
            position for each image, in [0, 1) from the noisy end, it need not go on from there.
        current_images: images of the current experience.
        rng: source of randomness.
    """

    schedule: NoiseSchedule
    labels: Int[Tensor, " b"]
    run: Callable[[Float[Tensor, " b"] | None], Trajectory]
    current_images: CurrentImages
    rng: torch.Generator


class Draft(NamedTuple):
    """Lessons whose answers may still have to be asked for."""

    lessons: LessonBatch
    """Those of an image next to one another."""
    weights: Float[Tensor, " n"]
    """How much of t each stands for."""
    unanswered: Bool[Tensor, " n"] | None
    """Those that the teacher must answer; ``None`` if the answers are not the teacher's at all."""


Mode = Callable[[Source, int], Draft]
"""A mode of distillation: lessons from a source, that many for each of its images."""
