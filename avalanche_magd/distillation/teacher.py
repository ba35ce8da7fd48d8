"""The teacher: a running average of the student's weights.

Averaged weights generate better images than the last ones do. After each step ``θ_T ← m θ_T + (1 −
m) θ_S``; early on m is smaller, ``min(m, (1 + n) / (10 + n))`` after n steps, so that the average
does not remember where it started. Between trainings the generator is its own teacher: the average
stands in the network. What becomes of the student's own weights decides who trains: after a whole
experience they are dropped, and no second copy is kept; on an online stream they wait here and go
on with the next few images.

Only parameters that learn (``requires_grad``) are averaged. Frozen ones, such as those of a large
network whose adapters are taught, exist once, for student, average and teacher.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class EmaTeacher:
    """Exponential moving average of parameters, kept outside the module that owns them.

    Args:
        parameters: those of the student; the average starts from the values of those that learn.
        decay: m, the weight of the past, in [0, 1); 0 follows the student.

    Attributes:
        student: the parameters that learn, in the order of the network.
        average: their averages; while :attr:`teaching`, the student's weights.
        steps: steps averaged so far.
        teaching: whether the average stands in the network.

    Raises:
        ValueError: no parameter learns.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.student = learning(parameters)
        if not self.student:
            raise ValueError(
                "All of the generator's parameters are frozen: add adapters, or leave "
                "requires_grad on for those that shall learn."
            )
        self.average: list[Tensor] = [parameter.detach().clone() for parameter in self.student]
        self.decay = decay
        self.steps = 0
        self.teaching = False

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the student's present weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        torch._foreach_lerp_(self.average, self.student, 1 - decay)

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
        self.student = learning(parameters)
        for index, parameter in enumerate(self.student):
            waiting = self.average[index]
            if waiting.shape != parameter.shape:
                self.average[index] = torch.cat([waiting, parameter[len(waiting) :]])
        self._exchange()

    def _exchange(self) -> None:
        for index, parameter in enumerate(self.student):
            self.average[index], parameter.data = parameter.data, self.average[index]
        self.teaching = not self.teaching


def learning(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Those parameters that are not frozen."""
    return [parameter for parameter in parameters if parameter.requires_grad]
