"""Generated images join the solver's mini-batch, and leave it after the step.

They are appended, so that the real rows stay first, and trimmed afterwards, so that metrics and
other plugins see real rows only. The strategy's loss is that of all rows, as it is minimised.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from avalanche_magd.classes import ClassTable
from avalanche_magd.distillation import Pool

TEMPERATURE = 2.0
"""Of soft labels: what softens the solver's old and new answers alike."""

OTHER_HEAD = -1e4
"""A logit that leaves no probability, and is finite in half precision."""


@dataclass
class Replay:
    """What joins the solver's mini-batches in one experience, and how many rows of it.

    Rows are not rounded but carried to the next mini-batch, or small mini-batches would never be
    joined by any.

    Attributes:
        past: generated images of old classes.
        current: generated images of current classes, if any shall be shown.
        current_classes: how many classes the experience has.
        replay_size: rows per mini-batch; ``None`` for as many as give an old class the weight of a
            current one.
        generated_share: share of the current classes' rows that are generated, in [0, 1).
        soft_labels: logits that the solver of the past gives each image of ``past``.
    """

    past: Pool
    current: Pool | None
    current_classes: int
    replay_size: int | None
    generated_share: float
    soft_labels: Float[Tensor, "n k"] | None = None
    _owed: float = 0.0
    _owed_past: float = 0.0

    def draw(
        self, real_rows: int, rng: torch.Generator
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"], Int[Tensor, " m"]]:
        """Rows that join ``real_rows`` real ones: old classes first.

        Returns:
            Images, their classes by the generator's numbers, and the slots of those that come from
            ``past``.
        """
        now = 0.0
        if self.current is not None:
            now = real_rows * self.generated_share / (1 - self.generated_share)
        old = (real_rows + now) * len(self.past.classes) / self.current_classes
        rows = now + old if self.replay_size is None else self.replay_size
        self._owed += rows
        self._owed_past += rows * old / (now + old)
        count = int(self._owed)
        of_past = min(count, int(self._owed_past))
        self._owed -= count
        self._owed_past -= of_past
        slots = self.past.draw_slots(of_past, rng)
        images, numbers = self.past.images_of(slots), self.past.labels[slots]
        if self.current is not None:
            more = self.current.draw_slots(count - of_past, rng)
            images = torch.cat([images, self.current.images_of(more)])
            numbers = torch.cat([numbers, self.current.labels[more]])
        return images, numbers, slots

    def drift(
        self, strategy: Any, rows: slice, slots: Int[Tensor, " m"], table: ClassTable
    ) -> Float[Tensor, ""]:
        """How far the strategy's output is from the soft labels, within each head.

        Args:
            strategy: after its forward pass.
            rows: of its output, those that come from ``past``.
            slots: where each comes from.
            table: knows each class's column and head.

        Raises:
            ValueError: the output has no logit for each old class.
        """
        assert self.soft_labels is not None
        output, numbers = strategy.mb_output, torch.tensor(self.past.classes, device=slots.device)
        columns, heads = table.labels_of(numbers)
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] <= columns.max():
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                "Soft labels need a solver that is trained on logits, one for each class; "
                f"{type(strategy).__name__}'s output is {shape}: set soft_label_weight=0."
            )
        of_rows = heads[torch.searchsorted(numbers, self.past.labels[slots])]
        return soft_label_loss(
            output[rows][:, columns.to(output.device)],
            self.soft_labels[slots].to(output.device),
            (of_rows[:, None] == heads).to(output.device),
        )


def soft_label_loss(
    logits: Float[Tensor, "n k"],
    soft_labels: Float[Tensor, "n k"],
    same_head: Bool[Tensor, "n k"],
) -> Float[Tensor, ""]:
    """``τ² KL(softmax(soft/τ) ‖ softmax(logits/τ))``, mean over rows, τ = :data:`TEMPERATURE`.

    Args:
        logits: the solver's, over the old classes alone.
        soft_labels: what it said before, in the same order.
        same_head: whether a class belongs to the row's head; others do not count.

    References:
        Hinton et al. 2015, *Distilling the knowledge in a neural network*.
    """
    target, prediction = (
        functional.log_softmax(each.masked_fill(~same_head, OTHER_HEAD) / TEMPERATURE, 1)
        for each in (soft_labels, logits)
    )
    divergence = functional.kl_div(prediction, target, reduction="batchmean", log_target=True)
    return TEMPERATURE**2 * divergence


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
