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

from avalanche_magd.diffusion.label_map import LabelMap
from avalanche_magd.distillation import Pool

TEMPERATURE = 2.0
"""Of soft labels: what softens the solver's old and new answers alike."""

OTHER_HEAD = -1e4
"""A logit that leaves no probability, and is finite in half precision."""


@dataclass
class Replay:
    """What joins the solver's mini-batches in one experience, and how many rows of it.

    Fractions of rows are carried over to the next mini-batch, or small mini-batches would never be
    joined by any.

    Attributes:
        past: generated images of old classes.
        current: generated images of current classes; ``None`` to show none.
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
    # Of the present mini-batch: its real rows, and the slots of the rows that come from past.
    _real_rows: int | None = None
    _slots: Int[Tensor, " m"] | None = None

    def join(self, mbatch: list[Tensor], label_map: LabelMap, rng: torch.Generator) -> None:
        """Append rows to a mini-batch of two or three columns, in its dtypes, in place."""
        self._real_rows = len(mbatch[0])
        images, ids, self._slots = self.draw(self._real_rows, rng)
        if not len(images):
            return
        for column, rows in enumerate((images, *label_map.labels_of(ids))[: len(mbatch)]):
            real = mbatch[column]
            mbatch[column] = torch.cat([real, rows.to(real.device, real.dtype)])

    def leave(self, strategy: Any) -> None:
        """Cut mini-batch and output back to the real rows."""
        real_rows = self._real_rows
        strategy.mbatch = [column[:real_rows] for column in strategy.mbatch]
        if isinstance(strategy.mb_output, Tensor):
            strategy.mb_output = strategy.mb_output[:real_rows]

    def draw(
        self, real_rows: int, rng: torch.Generator
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"], Int[Tensor, " m"]]:
        """Rows that join ``real_rows`` real ones, those of old classes first.

        Returns:
            Images, their classes as ids of the generator's label map, and the slots of those that
            come from ``past``.
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
        images, ids = self.past.images_of(slots), self.past.labels[slots]
        if self.current is not None:
            more = self.current.draw_slots(count - of_past, rng)
            images = torch.cat([images, self.current.images_of(more)])
            ids = torch.cat([ids, self.current.labels[more]])
        return images, ids, slots

    def soft_label_loss(self, strategy: Any, label_map: LabelMap) -> Float[Tensor, ""]:
        """The distance of the strategy's output from the soft labels, within each head.

        Raises:
            ValueError: the output has no logit for each old class.
        """
        slots, real_rows = self._slots, self._real_rows
        if self.soft_labels is None or slots is None or real_rows is None or not len(slots):
            return torch.zeros((), device=strategy.device)
        output, ids = strategy.mb_output, torch.tensor(self.past.classes, device=slots.device)
        columns, heads = label_map.labels_of(ids)
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] <= columns.max():
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                "Soft labels need a solver that is trained on logits, one for each class; "
                f"{type(strategy).__name__}'s output is {shape}: set soft_label_weight=0."
            )
        of_rows = heads[torch.searchsorted(ids, self.past.labels[slots])]
        rows = slice(real_rows, real_rows + len(slots))
        return soft_label_divergence(
            output[rows][:, columns.to(output.device)],
            self.soft_labels[slots].to(output.device),
            (of_rows[:, None] == heads).to(output.device),
        )


def soft_label_divergence(
    logits: Float[Tensor, "n k"],
    soft_labels: Float[Tensor, "n k"],
    same_head: Bool[Tensor, "n k"],
) -> Float[Tensor, ""]:
    """``τ² KL(softmax(soft/τ) ‖ softmax(logits/τ))``, mean over rows, τ = :data:`TEMPERATURE`.

    Args:
        logits: the solver's, over the old classes alone.
        soft_labels: the logits that it gave before, in the same order.
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
