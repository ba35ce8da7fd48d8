"""Generated images join the solver's mini-batch, and leave it after the step.

They are appended, so that the real rows stay first, and trimmed afterwards, so that metrics and
other plugins see real rows only.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def balanced_replay_size(current_rows: int, current_classes: int, old_classes: int) -> float:
    """How many generated rows give an old class as many as a current class can expect.

    Not rounded: whoever appends whole rows carries the rest to the next mini-batch, or small
    mini-batches would never be joined by any.
    """
    return current_rows * old_classes / current_classes


def append_replay(
    mbatch: list[Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    task_labels: Int[Tensor, " n"],
) -> None:
    """Append generated rows to a mini-batch of two or three columns, in its dtypes, in place."""
    for column, replay in enumerate((images, labels, task_labels)[: len(mbatch)]):
        real = mbatch[column]
        mbatch[column] = torch.cat([real, replay.to(real.device, real.dtype)])


def trim_replay(strategy: Any, real_rows: int) -> None:
    """Cut mini-batch and output back to the real rows."""
    strategy.mbatch = [column[:real_rows] for column in strategy.mbatch]
    if isinstance(strategy.mb_output, Tensor):
        strategy.mb_output = strategy.mb_output[:real_rows]
