"""The loss of a step: current images, and lessons of old classes.

``L = w_new L_current + (1 − w_new) λ L_replay``, each part a mean over its rows of the squared
error of the raw prediction. ``w_new`` = current / (current + replayed) classes makes each class
count the same, as in training on all of them at once.
"""

from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss

from avalanche_magd.distillation.lessons import InputSource

STEPS_PER_POINT: Final = 20
"""Training steps that a point of a curve is the mean of."""


def current_share(current_classes: int, replayed_classes: int) -> float:
    """``w_new``: the share of current classes among current and replayed ones.

    A class that is both, because it has come again, counts twice.
    """
    return current_classes / (current_classes + replayed_classes)


def squared_errors(
    prediction: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"]
) -> Float[Tensor, " n"]:
    """Mean squared error of each row."""
    return mse_loss(prediction, target, reduction="none").flatten(1).mean(1)


def total_loss(
    current: Float[Tensor, " n"], replay: Float[Tensor, " m"], w_new: float, replay_weight: float
) -> Float[Tensor, ""]:
    """``w_new · mean(current) + (1 − w_new) λ · mean(replay)``; without replay the first mean."""
    if not len(replay):
        return current.mean()
    return w_new * current.mean() + (1 - w_new) * replay_weight * replay.mean()


class CurvePoint(NamedTuple):
    """The mean of some training steps."""

    step: int
    """The last of them, counted from the generator's first."""
    errors: dict[str, float]
    """Mean squared error by source of the lessons, where there were any."""


class LossCurves:
    """Squared errors by the lessons' ``InputSource``, over the training steps.

    Attributes:
        points: so far; a part of an online stream may end between two.
    """

    def __init__(self) -> None:
        self.points: list[CurvePoint] = []
        self._steps = 0
        self._sums: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` goes on from: numbers, strings and a tensor."""
        points = [list(point) for point in self.points]
        return {"points": points, "steps": self._steps, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.points = [CurvePoint(*point) for point in state["points"]]
        self._steps, self._sums = state["steps"], state["sums"]

    def add(self, errors: Float[Tensor, " n"], source: Int[Tensor, " n"]) -> CurvePoint | None:
        """Count a training step; gives a point if one is complete."""
        if self._sums is None:
            self._sums = errors.new_zeros(2, len(InputSource))
        columns = torch.stack([errors, torch.ones_like(errors)])
        self._sums.index_add_(1, source.long(), columns)
        self._steps += 1
        if self._steps % STEPS_PER_POINT:
            return None
        sums, counts = self._sums.tolist()
        self._sums = None
        named = zip(InputSource, sums, counts, strict=True)
        errors_of = {source.name.lower(): total / n for source, total, n in named if n}
        self.points.append(CurvePoint(self._steps, errors_of))
        return self.points[-1]
