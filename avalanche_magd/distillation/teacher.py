"""The teacher: a running average of the student's weights.

Averaged weights generate better images than the last ones do. After each step ``θ_T ← m θ_T + (1 −
m) θ_S``; early on m is smaller, ``min(m, (1 + n) / (10 + n))`` after n steps, so that the average
does not remember where it started. Between trainings the generator is its own teacher: the average
stands in the network. What becomes of the student's own weights decides who trains: after a whole
experience they are dropped, and no second copy is kept; on an online stream they wait here and go
on with the next few images.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class EmaTeacher:
    """Exponential moving average of parameters, kept outside the module that owns them.

    Args:
        parameters: those of the student; the average starts from their values.
        decay: m, the weight of the past, in [0, 1); 0 follows the student.

    Attributes:
        student: the parameters, in the order of the network.
        average: their averages; while :attr:`teaching`, the student's weights.
        steps: steps averaged so far.
        teaching: whether the average stands in the network.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.student = list(parameters)
        self.average: list[Tensor] = [parameter.detach().clone() for parameter in self.student]
        self.decay = decay
        self.steps = 0
        self.teaching = False

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the student's present weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        student: list[Tensor] = list(self.student)
        torch._foreach_lerp_(self.average, student, 1 - decay)

    def teach(self) -> None:
        """Put the average into the network; the student's weights wait here."""
        if not self.teaching:
            self._exchange()

    @torch.no_grad()
    def learn(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the student's weights back into the network, whose classes may have become more.

        Args:
            parameters: of the network as it is now.
        """
        if not self.teaching:
            return
        self.student = list(parameters)
        for index, parameter in enumerate(self.student):
            waiting = self.average[index]
            if waiting.shape != parameter.shape:
                self.average[index] = torch.cat([waiting, parameter[len(waiting) :]])
        self._exchange()

    def _exchange(self) -> None:
        for index, parameter in enumerate(self.student):
            self.average[index], parameter.data = parameter.data, self.average[index]
        self.teaching = not self.teaching
