"""Lessons: what the student is shown, and what it should answer.

Every way of distilling ends in a :class:`LessonBatch`, whatever its lessons are made of.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avalanche_magd.diffusion.schedule import NoiseSchedule
from avalanche_magd.runtime.precision import normal, uniform


class InputSource(IntEnum):
    """Where a lesson's noised image comes from."""

    REAL = 0
    """A current image under its own label, with the true answer."""
    STATE = 1
    """A state of a reverse run: NIGD, partial generation."""
    RENOISED = 2
    """A generated image, noised again."""
    CURRENT = 3
    """A current image in a lesson about old classes: SGGD, LwF distillation."""
    NOISE = 4
    """Pure noise, whatever t says."""


class LessonBatch(NamedTuple):
    """Lessons: at ``x_t``, ``t`` and ``labels`` the student should predict ``target``."""

    x_t: Float[Tensor, "n c h w"]
    """Noised images."""
    t: Int[Tensor, " n"]
    """Timestep of each: the noise level at which the target is right."""
    labels: Int[Tensor, " n"]
    """Class of each, as the teacher was given it."""
    target: Float[Tensor, "n c h w"]
    """The raw prediction to learn, of the network's prediction type."""
    source: Int[Tensor, " n"]
    """:class:`InputSource` of each."""
    weight: Float[Tensor, " n"]
    """Width of the interval of t that each stands for; a pool draws in proportion to it."""

    def rows(self, index: Tensor | slice) -> "LessonBatch":
        """The chosen lessons."""
        return LessonBatch(*(rows_of(column, index) for column in self))

    def with_rows(self, mask: Bool[Tensor, " n"], lessons: "LessonBatch") -> "LessonBatch":
        """These lessons with others in the places of a mask."""
        columns = [column.clone() for column in self]
        for column, values in zip(columns, lessons, strict=True):
            column[mask] = values
        return LessonBatch(*columns)

    def cast(self, dtype: torch.dtype) -> "LessonBatch":
        """The same lessons with ``x_t`` and ``target`` in another precision."""
        return self._replace(x_t=self.x_t.to(dtype), target=self.target.to(dtype))

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return sum(column.nbytes for column in self)

    @classmethod
    def cat(cls, batches: Sequence["LessonBatch"]) -> "LessonBatch":
        """All lessons of several batches."""
        return cls(*(torch.cat(columns) for columns in zip(*batches, strict=True)))


def rows_of(tensor: Tensor, index: Tensor | slice) -> Tensor:
    """The chosen rows of a tensor, on the device of the index: a pool's may be elsewhere."""
    if isinstance(index, slice):
        return tensor[index]
    return tensor[index.to(tensor.device)].to(index.device)


def noised_lessons(
    schedule: NoiseSchedule,
    x_0: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    rng: torch.Generator,
    source: InputSource = InputSource.REAL,
) -> LessonBatch:
    """Clean images, noised to timesteps spread evenly over [0, T), with the noise's own target.

    Args:
        schedule: noise levels, and what a prediction means.
        x_0: clean images in [−1, 1].
        labels: class of each.
        rng: source of timesteps and noise.
        source: where the images come from.
    """
    count = len(x_0)
    jitter = uniform((count,), rng)
    strata = torch.randperm(count, generator=rng, device=rng.device)
    t = ((strata + jitter) * (schedule.num_train_timesteps / count)).long()
    t = t.clamp(max=schedule.num_train_timesteps - 1)
    noise = normal(x_0.shape, rng)
    return LessonBatch(
        schedule.add_noise(x_0, noise, t),
        t,
        labels,
        schedule.target(x_0, noise, t),
        torch.full_like(t, source, dtype=torch.int8),
        torch.ones_like(jitter),
    )


def renoise(
    lessons: LessonBatch,
    mask: Bool[Tensor, " n"],
    x_0: Float[Tensor, "m c h w"],
    schedule: NoiseSchedule,
    rng: torch.Generator,
) -> LessonBatch:
    """Lessons of which those of a mask start from a current image ``x_0``, noised to their t.

    Their targets are stale afterwards: the teacher has to relabel them.
    """
    noise = normal(x_0.shape, rng)
    x_t = lessons.x_t.clone()
    x_t[mask] = schedule.add_noise(x_0, noise, lessons.t[mask])
    source = lessons.source.masked_fill(mask, InputSource.CURRENT)
    return lessons._replace(x_t=x_t, source=source)
