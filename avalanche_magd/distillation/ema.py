"""The average of the student's weights, which becomes the next teacher.

Averaged weights generate better images than the last ones do. After each step ``θ_T ← m θ_T + (1 −
m) θ_S``; early on m is smaller, ``min(m, (1 + n) / (10 + n))`` after n steps, so that the average
does not remember where it started. Between trainings the average stands in the network. After a
whole experience the student's own weights are dropped, and no second copy is kept; on an online
stream they wait here and go on with the next few images.

Only parameters that learn (``requires_grad``) are averaged. Frozen ones, such as those of a large
network whose adapters are taught, exist once, for student, average and teacher.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of parameters, kept outside the module that owns them.

    Args:
        parameters: of the student; the average starts from the values of those that learn.
        decay: m, the weight of the past, in [0, 1); 0 follows the student.

    Attributes:
        parameters: those that learn, in the order of the network.
        average: their averages; those that stand in the network share its memory.
        steps: steps averaged so far.

    Raises:
        ValueError: no parameter learns.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = trainable(parameters)
        if not self.parameters:
            raise ValueError(
                "All of the generator's parameters are frozen: add adapters, or leave "
                "requires_grad on for those that shall learn."
            )
        self.average: list[Tensor] = [each.detach().clone() for each in self.parameters]
        self.decay = decay
        self.steps = 0
        # The student's weights, while the average stands in the network.
        self._student: list[Tensor] | None = None

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the student's present weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        torch._foreach_lerp_(self.average, self.parameters, 1 - decay)

    def swap_in(self) -> None:
        """Put the average into the network; the student's weights wait here."""
        if self._student is not None:
            return
        self._student = [each.data for each in self.parameters]
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data = average

    @torch.no_grad()
    def swap_out(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the student's weights back into the network, whose parameters these are now.

        It may have more classes: their rows are the student's too.
        """
        if self._student is None:
            return
        self.parameters = trainable(parameters)
        self.average = [each.data for each in self.parameters]
        for parameter, weights in zip(self.parameters, self._student, strict=True):
            if weights.shape != parameter.shape:
                weights = torch.cat([weights, parameter.data[len(weights) :]])
            parameter.data = weights
        self._student = None


def trainable(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Those parameters that are not frozen."""
    return [parameter for parameter in parameters if parameter.requires_grad]
