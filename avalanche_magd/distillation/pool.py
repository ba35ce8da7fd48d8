"""The pool: what one generation pass left for the student and for the solver.

The finished images are the solver's replay; the states, timesteps, labels and raw outputs on the
way are the student's lessons. Training loops only draw from it.

Draws are stratified: the unit interval is cut into as many strata as there are rows to draw, and
each draws one row by the rows' cumulative weight. As lessons are sorted by timestep and images by
class, each draw is spread evenly over timesteps and classes.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avalanche_magd.distillation.batch import LessonBatch


@dataclass(frozen=True)
class Pool:
    """Generated images with their classes, and lessons with their weights."""

    images: Float[Tensor, "n c h w"]
    """Finished images in the user's range, sorted by label."""
    labels: Int[Tensor, " n"]
    """Class of each image."""
    lessons: LessonBatch
    """Lessons sorted by timestep, images in half precision."""
    weights: Float[Tensor, " m"]
    """How much of t each lesson stands for."""
    classes: list[int] = field(init=False)
    """The classes that it holds, ascending."""
    _cumulative: Float[Tensor, " m"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", sorted(set(self.labels.tolist())))
        object.__setattr__(self, "_cumulative", self.weights.double().cumsum(0))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        rest = (self.images, self.labels, self.weights, self._cumulative)
        return self.lessons.nbytes + sum(tensor.nbytes for tensor in rest)

    def draw_lessons(self, count: int, rng: torch.Generator) -> LessonBatch:
        """Lessons spread evenly over t, in single precision."""
        index = stratified_draw(self._cumulative, count, rng)
        return self.lessons.rows(index).cast(torch.float32)

    def draw_images(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images and their labels, spread evenly over the classes."""
        even = torch.arange(1, len(self.labels) + 1, device=self.labels.device).double()
        index = stratified_draw(even, count, rng)
        return self.images[index], self.labels[index]


def stratified_draw(
    cumulative: Float[Tensor, " m"], count: int, rng: torch.Generator
) -> Int[Tensor, " {count}"]:
    """Rows drawn in proportion to their weight, one per stratum of the unit interval.

    Args:
        cumulative: running sum of positive weights.
        count: rows to draw; a row can come more than once.
        rng: source of randomness, on the device of ``cumulative``.
    """
    strata = torch.arange(count, device=cumulative.device)
    jitter = torch.rand(count, generator=rng, device=cumulative.device, dtype=torch.float64)
    position = (strata + jitter) / count * cumulative[-1]
    return torch.searchsorted(cumulative, position, right=True).clamp(max=len(cumulative) - 1)


def image_bytes(pixels: int) -> int:
    """Bytes of one image of a pool: single precision, and a label."""
    return 4 * pixels + 8


def lesson_bytes(pixels: int) -> int:
    """Bytes of one lesson: state and target in half precision, timestep, label, weights."""
    return 2 * (2 * pixels) + 8 + 8 + (4 + 8)
