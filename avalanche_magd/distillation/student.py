"""The student: how a step's lessons go through the network, and how its weights follow.

Three things may lie between a step and the network, and all end in the same gradients: several
processes take the rows in turn, the rows go through the network in parts to save memory, or, on a
GPU, forward and backward are recorded once and replayed
(:mod:`avalanche_magd.distillation.cuda_graphs`).
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.diffusion.label_map import NULL_LABEL
from avalanche_magd.distillation.cggd import null_mask
from avalanche_magd.distillation.cuda_graphs import RecordedGenerator
from avalanche_magd.distillation.ema import WeightAverage
from avalanche_magd.distillation.lessons import LessonBatch, noised_lessons
from avalanche_magd.distillation.loss import squared_errors
from avalanche_magd.runtime.distributed import Processes
from avalanche_magd.runtime.precision import PRECISION


def real_lessons(
    generator: DiffusionGenerator,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    tasks: Int[Tensor, " n"] | None,
    null_share: float | None,
    rng: torch.Generator,
) -> LessonBatch:
    """Lessons of a real mini-batch, as the benchmark has it.

    A share of them has no class; ``None`` is for evaluation, where those of unknown classes have
    none.

    Raises:
        ValueError: in training, a class is unknown.
    """
    if null_share is None:
        ids = generator.label_map.ids_of(labels, tasks)
    else:
        ids = generator.label_map.known_ids_of(labels, tasks)
        ids = ids.masked_fill(null_mask(len(ids), null_share, rng), NULL_LABEL)
    x_0 = generator.pixel_range.normalize(images.to(PRECISION))
    return noised_lessons(generator.schedule, x_0, ids, rng)


Loss = Callable[[Float[Tensor, " n"]], Float[Tensor, ""]]
"""A step's loss from the squared errors of its rows; linear in them."""


class Student:
    """The generator in training, and the average of its weights.

    Args:
        generator: in training mode at each step.
        ema_decay: of the average.
        processes: that share the rows of a step.
        gradient_accumulation_steps: parts in which this process's rows go through the network.
    """

    def __init__(
        self,
        generator: DiffusionGenerator,
        ema_decay: float,
        processes: Processes,
        gradient_accumulation_steps: int = 1,
    ) -> None:
        self.generator = generator
        self.processes = processes
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.average = WeightAverage(generator.parameters(), ema_decay)
        self._recorded: RecordedGenerator | None = None

    def begin(self) -> None:
        """Put the student's weights into the generator, to go on with their training."""
        self.average.swap_out(self.generator.parameters())
        self._recorded = RecordedGenerator(self.generator)

    def end(self) -> None:
        """Put the average into the generator; the student's weights wait."""
        self._recorded = None
        self.average.swap_in()

    def __call__(self, lessons: LessonBatch, loss: Loss) -> Float[Tensor, "m c h w"]:
        """Predictions for this process's rows of a step's lessons.

        Where gradients are accumulated, those of the loss are computed here, part by part, and the
        predictions pass none on.
        """
        if self.gradient_accumulation_steps > 1:
            return self._accumulate(lessons, loss)
        assert self._recorded is not None
        mine = lessons.rows(self.processes.mine())
        return self._recorded(mine.x_t, mine.t, mine.labels)

    def _accumulate(self, lessons: LessonBatch, loss: Loss) -> Float[Tensor, "m c h w"]:
        device = lessons.t.device
        errors = lessons.target.new_zeros(len(lessons.t), requires_grad=True)
        (weights,) = torch.autograd.grad(loss(errors), errors)
        mine = torch.arange(len(errors), device=device)[self.processes.mine()]
        predictions = []
        for index in mine.chunk(self.gradient_accumulation_steps):
            part = lessons.rows(index)
            prediction = self.generator(part.x_t, part.t, part.labels)
            part_loss: Any = weights[index] @ squared_errors(prediction, part.target)
            part_loss.backward()
            predictions.append(prediction.detach())
        return torch.cat(predictions).requires_grad_()

    def squared_errors(
        self, predictions: Float[Tensor, "m c h w"], lessons: LessonBatch
    ) -> Float[Tensor, " n"]:
        """The squared error of each row of a step; those of this process have gradients."""
        mine = squared_errors(predictions, lessons.target[self.processes.mine()])
        return self.processes.rows_of_all(mine, len(lessons.t))

    def clip_gradients(self, max_norm: float) -> Tensor:
        """Add up the processes' gradients, and clip them; gives their norm before."""
        self.processes.add_up_gradients(self.average.parameters)
        return nn.utils.clip_grad_norm_(self.average.parameters, max_norm)
