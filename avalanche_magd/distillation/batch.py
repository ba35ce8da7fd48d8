"""The tensors in which every way of distilling ends: what the student sees and should answer."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avalanche_magd.sampling import Denoiser, images_at_once
from avalanche_magd.schedule import NoiseSchedule


class Input(IntEnum):
    """Where a lesson's noised image comes from."""

    REAL = 0
    """A current image under its own label, taught with the true answer."""
    STATE = 1
    """A state of a reverse run: NIGD, partial generation."""
    RENOISED = 2
    """A generated image, noised again."""
    CURRENT = 3
    """A current image in a lesson about the past: SGGD, LwF distillation."""
    NOISE = 4
    """Pure noise, whatever t says."""


class LessonBatch(NamedTuple):
    """Lessons: at ``x_t``, ``t`` and ``labels`` the student should predict ``target``."""

    x_t: Float[Tensor, "n c h w"]
    """Noised images."""
    t: Int[Tensor, " n"]
    """Timestep of each: the level at which the target is right."""
    labels: Int[Tensor, " n"]
    """Class of each, as the teacher was given it."""
    target: Float[Tensor, "n c h w"]
    """The raw prediction to learn, of the network's prediction type."""
    kind: Int[Tensor, " n"]
    """:class:`Input` of each."""

    def rows(self, index: Tensor | slice) -> "LessonBatch":
        """The chosen lessons."""
        return LessonBatch(*(rows_of(tensor, index) for tensor in self))

    def cast(self, dtype: torch.dtype) -> "LessonBatch":
        """The same lessons with ``x_t`` and ``target`` in another precision."""
        return self._replace(x_t=self.x_t.to(dtype), target=self.target.to(dtype))

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return sum(tensor.nbytes for tensor in self)

    @classmethod
    def cat(cls, batches: Sequence["LessonBatch"]) -> "LessonBatch":
        """All lessons of several batches."""
        return cls(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))


def rows_of(tensor: Tensor, index: Tensor | slice) -> Tensor:
    """The chosen rows of a tensor, on the device of their numbers: a pool's may be elsewhere."""
    if isinstance(index, slice):
        return tensor[index]
    return tensor[index.to(tensor.device)].to(index.device)


def noised_lessons(
    schedule: NoiseSchedule,
    x_0: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    rng: torch.Generator,
    kind: Input = Input.REAL,
) -> LessonBatch:
    """What finished images teach: noised to timesteps spread evenly over [0, T), answer known."""
    count = len(x_0)
    jitter = torch.rand(count, generator=rng, device=rng.device)
    strata = torch.randperm(count, generator=rng, device=rng.device)
    t = ((strata + jitter) * (schedule.num_train_timesteps / count)).long()
    t = t.clamp(max=schedule.num_train_timesteps - 1)
    noise = torch.randn(x_0.shape, generator=rng, device=rng.device)
    return LessonBatch(
        schedule.add_noise(x_0, noise, t),
        t,
        labels,
        schedule.target(x_0, noise, t),
        torch.full_like(t, kind, dtype=torch.int8),
    )


def noise_again(
    lessons: LessonBatch,
    chosen: Bool[Tensor, " n"],
    x_0: Float[Tensor, "m c h w"],
    schedule: NoiseSchedule,
    rng: torch.Generator,
) -> LessonBatch:
    """Give each chosen lesson another input: a current image ``x_0``, noised to the lesson's t.

    Their targets are stale afterwards: see :func:`ask_again`.
    """
    noise = torch.randn(x_0.shape, generator=rng, device=rng.device)
    x_t = lessons.x_t.clone()
    x_t[chosen] = schedule.add_noise(x_0, noise, lessons.t[chosen])
    kind = lessons.kind.masked_fill(chosen, Input.CURRENT)
    return lessons._replace(x_t=x_t, kind=kind)


def ask_again(lessons: LessonBatch, chosen: Bool[Tensor, " n"], teacher: Denoiser) -> LessonBatch:
    """Replace the chosen lessons' targets by the teacher's answers; one forward each."""
    if not chosen.any():
        return lessons
    target = lessons.target.clone()
    together = images_at_once(target.shape[1:], target.device, teacher)
    for index in torch.split(chosen.nonzero()[:, 0], together):
        asked = lessons.rows(index)
        target[index] = teacher(asked.x_t, asked.t, asked.labels)
    return lessons._replace(target=target)
