"""The loss of a step: real images of now, lessons of the past.

``L = w_new L_current + (1 − w_new) λ L_replay``, each part a mean over its rows of the squared
error of the raw prediction. ``w_new`` = current / (current + replayed) classes makes each class
count the same, as in training on all of them at once.
"""

from jaxtyping import Float
from torch import Tensor


def current_share(current_classes: int, replayed_classes: int) -> float:
    """``w_new``: the share of current classes among current and replayed ones.

    A class that is both, since it has come again, counts twice.
    """
    return current_classes / (current_classes + replayed_classes)


def squared_errors(
    prediction: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"]
) -> Float[Tensor, " n"]:
    """Mean squared error of each row."""
    return (prediction - target).square().flatten(1).mean(1)


def total_loss(
    current: Float[Tensor, " n"],
    replay: Float[Tensor, " m"],
    w_new: float,
    replay_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """``w_new · mean(current) + (1 − w_new) · λ · mean(replay)``; without replay the first mean.

    Args:
        current: errors on the current experience.
        replay: errors on lessons of old classes; may be empty.
        w_new: see :func:`current_share`.
        replay_weight: λ.
    """
    if not len(replay):
        return current.mean()
    return w_new * current.mean() + (1 - w_new) * replay_weight * replay.mean()
