"""Generated images join the solver's mini-batch where it is loaded, and leave it after the update.

They are appended by the data loader, so that whatever a strategy or a plugin does to a mini-batch
(normalise, relabel, mix) it does to real and generated rows alike, and own training loops see them
too. The real rows stay first. After the update the others are trimmed off mini-batch and output,
so that metrics and other plugins see real rows only. The strategy's loss is that of all rows, as
it is minimised.
"""

import copy
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.diffusion.label_map import LabelMap
from avalanche_magd.distillation import Pool
from avalanche_magd.runtime.validation import check_minibatch

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
    # Of the present mini-batch: its real rows, all its rows, and the slots of those from past.
    _real_rows: int = 0
    _rows: int = 0
    _slots: Int[Tensor, " m"] | None = None
    joined: int = 0
    """Rows that have joined mini-batches so far."""

    def join(
        self, mbatch: list[Tensor], label_map: LabelMap, rng: torch.Generator
    ) -> list[Tensor]:
        """A mini-batch of two or three columns with rows appended, in its dtypes."""
        self._real_rows = len(mbatch[0])
        images, ids, self._slots = self.draw(self._real_rows, rng)
        self._rows = self._real_rows + len(images)
        self.joined += len(images)
        if not len(images):
            return mbatch
        columns = (images, *label_map.labels_of(ids))[: len(mbatch)]
        return [
            torch.cat([real, rows.to(real.device, real.dtype)])
            for real, rows in zip(mbatch, columns, strict=True)
        ]

    def leave(self, strategy: Any) -> None:
        """Trim mini-batch and output, however nested, back to the real rows.

        What a strategy has appended in its turn leaves too.
        """
        if self._rows > self._real_rows:
            rows = {self._rows, len(strategy.mbatch[0])}
            strategy.mbatch = trimmed(strategy.mbatch, rows, self._real_rows)
            strategy.mb_output = trimmed(strategy.mb_output, rows, self._real_rows)
            self._rows = self._real_rows

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
        if self.soft_labels is None or slots is None or not len(slots):
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


class ReplayLoader:
    """A data loader whose mini-batches generated rows join as they are loaded.

    Args:
        loader: of real mini-batches; everything else is asked of it.
        replay: what joins; ``None`` for nothing.
        generator: whose images these are: mini-batches of other images are refused.
        device: where mini-batches are moved, as Avalanche does.
        rng: source of the choice of rows.
    """

    def __init__(
        self,
        loader: Any,
        replay: Replay | None,
        generator: DiffusionGenerator,
        device: torch.device,
        rng: torch.Generator,
    ) -> None:
        self.loader = loader
        self.replay = replay
        self.generator = generator
        self.device = device
        self.rng = rng

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # a copy that is being made has none yet
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        for mbatch in self.loader:
            columns = list(mbatch) if isinstance(mbatch, tuple) else mbatch
            check_minibatch(columns, self.generator.image_shape)
            if self.replay is None:
                yield mbatch
                continue
            there = [column.to(self.device, non_blocking=True) for column in columns]
            yield self.replay.join(there, self.generator.label_map, self.rng)


def unwrapped(loader: Any) -> Any:
    """The loader of real mini-batches, whether it is wrapped or not."""
    return loader.loader if isinstance(loader, ReplayLoader) else loader


def trimmed(content: Any, rows: Container[int], real_rows: int) -> Any:
    """Content with the tensors of so many rows, in whatever it holds, cut to the real ones."""
    if isinstance(content, Tensor):
        return content[:real_rows] if content.ndim and len(content) in rows else content
    if isinstance(content, Mapping):
        cut = {key: trimmed(value, rows, real_rows) for key, value in content.items()}
        same: Any = copy.copy(content)
        for key, value in cut.items():
            same[key] = value
        return same
    if isinstance(content, (tuple, list)):
        parts = [trimmed(each, rows, real_rows) for each in content]
        if hasattr(content, "_make"):  # a named tuple
            return content._make(parts)
        return type(content)(parts)
    if is_dataclass(content) and not isinstance(content, type):
        names = [each.name for each in fields(content) if each.init]
        return replace(
            content, **{name: trimmed(getattr(content, name), rows, real_rows) for name in names}
        )
    return content
