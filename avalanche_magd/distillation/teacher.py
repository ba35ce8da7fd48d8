"""The teacher: a running average of the student's weights.

Averaged weights generate better images than the last ones do. After each step ``θ_T ← m θ_T + (1 −
m) θ_S``; early on m is smaller, ``min(m, (1 + n) / (10 + n))`` after n steps, so that the average
does not remember where it started. When an experience ends, the average replaces the student's
weights: the generator that stays is its own next teacher, and no second copy is kept.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class EmaTeacher:
    """Exponential moving average of parameters, kept outside the module that owns them.

    Args:
        parameters: those of the student; the average starts from their values.
        decay: m, the weight of the past, in [0, 1); 0 follows the student.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.student: list[Tensor] = list(parameters)
        self.average: list[Tensor] = [parameter.detach().clone() for parameter in self.student]
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the student's present weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        torch._foreach_lerp_(self.average, self.student, 1 - decay)

    @torch.no_grad()
    def replace_student(self) -> None:
        """Give the student the averaged weights."""
        torch._foreach_copy_(self.student, self.average)
