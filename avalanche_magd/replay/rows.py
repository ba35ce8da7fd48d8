"""The rows that join a mini-batch: drawn, dealt out to its parts, and trimmed off again."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avalanche_magd.diffusion.label_map import LabelMap
from avalanche_magd.distillation import Pool
from avalanche_magd.replay.losses import criterion_of_rows, moved_weight, soft_label_divergence
from avalanche_magd.replay.mini_batches import MOST_REAL_WEIGHT, MiniBatches
from avalanche_magd.runtime.precision import PRECISION


@dataclass
class Replay:
    """What joins the solver's mini-batches in one experience, and how many rows of it.

    Fractions of rows are carried over to the next mini-batch, or small mini-batches would never be
    joined by any.

    Attributes:
        past: generated images of old classes.
        current: generated images of current classes; ``None`` to show none.
        current_classes: how many classes the experience has.
        mini_batches: how many rows, and in what parts.
        soft_labels: logits that the solver of the past gives each image of ``past``.
        soft_label_weight: of their loss.
        parts: in which a mini-batch is served.
        full: real rows of such a mini-batch; one with fewer is served in fewer parts.
        real_images: how many real ones the experience has.
        weighed: whether the strategy's loss is one in which rows can be weighed.
    """

    past: Pool
    current: Pool | None
    current_classes: int
    mini_batches: MiniBatches
    soft_labels: Float[Tensor, "n k"] | None = None
    soft_label_weight: float = 1.0
    parts: int = 1
    full: int = 1
    real_images: int = 1
    weighed: bool = True
    # How likely the solver last took each image of ``past`` for a current class.
    _confusion: Float[Tensor, " n"] = field(init=False)
    _owed: float = field(default=0.0, init=False)
    _owed_past: float = field(default=0.0, init=False)
    # Of the present part: its real rows, all its rows, their labels, and the slots of the past's.
    _real_rows: int = field(default=0, init=False)
    _rows: int = field(default=0, init=False)
    _labels: Tensor | None = field(default=None, init=False)
    _slots: Int[Tensor, " m"] | None = field(default=None, init=False)
    joined: int = field(default=0, init=False)
    """Rows that have joined mini-batches so far."""

    def __post_init__(self) -> None:
        labels = self.past.labels
        self._confusion = torch.full(labels.shape, 0.5, dtype=PRECISION, device=labels.device)

    def plan(self, real_rows: int, steps: int) -> None:
        """Decide in how many parts mini-batches of so many real rows are served.

        Those of an experience, served whole, are so many steps.
        """
        self.full = real_rows
        joining = sum(self._joining(real_rows))
        self.parts = self.mini_batches.parts(joining, real_rows, steps)

    def parts_of(self, real_rows: int) -> int:
        """In how many parts a mini-batch of so many real rows is served."""
        return min(real_rows, max(1, round(self.parts * min(1.0, real_rows / self.full))))

    def join(
        self, mbatch: list[Tensor], label_map: LabelMap, rng: torch.Generator
    ) -> Iterator[list[Tensor]]:
        """The parts of a mini-batch of two or three columns, rows appended, in its dtypes."""
        real_rows = len(mbatch[0])
        images, ids, slots = self.draw(real_rows, rng)
        columns = (images, *label_map.labels_of(ids))[: len(mbatch)]
        parts = self.parts_of(real_rows)
        for first in range(parts):
            part = slice(first, None, parts)
            self._real_rows, self._slots = len(mbatch[0][part]), slots[part]
            self._rows = self._real_rows + len(images[part])
            self.joined += len(images[part])
            served = [
                torch.cat([real[part], rows[part].to(real.device, real.dtype)])
                for real, rows in zip(mbatch, columns, strict=True)
            ]
            self._labels = served[1]
            yield served

    def leave(self, strategy: Any) -> None:
        """Trim mini-batch and output, however nested, back to the real rows.

        What a strategy has added in its turn, before them or behind, leaves too.
        """
        if self._rows > self._real_rows:
            real = self._places(strategy, slice(0, self._real_rows))
            strategy.mbatch = cut(strategy.mbatch, real)
            strategy.mb_output = cut(strategy.mb_output, real)
            self._rows = self._real_rows

    def _places(self, strategy: Any, rows: slice) -> dict[int, slice]:
        """Where rows of the part are in tensors of so many rows."""
        images, labels, *_ = strategy.mbatch
        longer = len(labels) - self._rows
        assert self._labels is not None
        first = longer if longer > 0 and torch.equal(labels[longer:], self._labels) else 0
        moved = slice(first + rows.start, first + rows.stop)
        return {len(images): moved, len(labels): moved, self._rows: rows}

    def draw(
        self, real_rows: int, rng: torch.Generator
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"], Int[Tensor, " m"]]:
        """Rows that join ``real_rows`` real ones, those of old classes first.

        Returns:
            Images, their classes as ids of the generator's label map, and the slots of those that
            come from ``past``.

        Raises:
            ValueError: the augmentation gives back something else than such an image.
        """
        old, now = self._joining(real_rows)
        self._owed += old + now
        self._owed_past += old
        count = int(self._owed)
        of_past = min(count, int(self._owed_past))
        self._owed -= count
        self._owed_past -= of_past
        slots = self.past.draw_slots(of_past, rng, self._priorities if self._prioritized else None)
        images, ids = self.past.images_of(slots), self.past.labels[slots]
        if self.current is not None:
            more = self.current.draw_slots(count - of_past, rng)
            images = torch.cat([images, self.current.images_of(more)])
            ids = torch.cat([ids, self.current.labels[more]])
        return self._augmented(images), ids, slots

    @property
    def _prioritized(self) -> bool:
        share = self.mini_batches.prioritized_share
        return share > 0 and self.weighed and self.current is not None

    @property
    def _priorities(self) -> Float[Tensor, " n"]:
        share = self.mini_batches.prioritized_share
        return 1 - share + share * self._confusion / self._confusion.mean().clamp_min(1e-6)

    def _augmented(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        augmentation = self.mini_batches.augmentation
        if augmentation is None or not len(images):
            return images
        changed = [augmentation(image) for image in images]
        shapes = {
            tuple(each.shape) if isinstance(each, Tensor) else type(each) for each in changed
        }
        if shapes != {tuple(images.shape[1:])}:
            raise ValueError(
                f"augmentation must give back tensors of the image's shape, "
                f"{tuple(images.shape[1:])}; it gave {', '.join(map(str, shapes))}."
            )
        return torch.stack(changed)

    def _joining(self, real_rows: int) -> tuple[float, float]:
        """How many rows of old and of current classes join so many real ones, on average."""
        ratio, both = len(self.past.classes) / self.current_classes, self.current is not None
        weight = self.real_weight
        return self.mini_batches.joining(real_rows, ratio, both=both, real_weight=weight)

    @property
    def real_weight(self) -> float:
        """Of a real row in the loss, where a generated one weighs 1."""
        if self.current is None or not self.weighed:
            return 1.0
        if self.mini_batches.real_weight is not None:
            return self.mini_batches.real_weight
        return min(MOST_REAL_WEIGHT, len(self.current.labels) / self.real_images)

    def join_loss(self, strategy: Any, label_map: LabelMap) -> None:
        """Soft labels join the strategy's loss, and weight moves from real rows to others.

        How the solver takes images of old classes is remembered, for the draws to come.

        Raises:
            ValueError: there are soft labels, and the output has no logit for each old class.
        """
        if self._rows > self._real_rows:
            if self._prioritized:
                self._remember(strategy, label_map)
            if self.real_weight != 1:
                strategy.loss = strategy.loss + self._moved_weight(strategy)
            if self.soft_labels is not None:
                strategy.loss = strategy.loss + self._soft_label_loss(strategy, label_map)

    def _remember(self, strategy: Any, label_map: LabelMap) -> None:
        slots = self._slots
        assert slots is not None
        assert self.current is not None
        output, ids = strategy.mb_output, self.past.labels[slots]
        now = torch.tensor(self.current.classes, device=slots.device)
        columns, heads_now = label_map.labels_of(now)
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] <= columns.max():
            return  # not a logit for each class: a plugin has given classes other labels
        rows = slice(self._real_rows, self._real_rows + len(slots))
        logits = cut(output.detach(), self._places(strategy, rows)).to(slots.device, PRECISION)
        _, heads = label_map.labels_of(ids)
        others = (heads[:, None] == heads_now) & (ids[:, None] != now)
        taken = (logits.softmax(1)[:, columns] * others).sum(1).nan_to_num(0.5)
        # A slot may come twice in a mini-batch.
        self._confusion.scatter_reduce_(0, slots, taken, "amax", include_self=False)

    def _moved_weight(self, strategy: Any) -> Float[Tensor, ""]:
        criterion = criterion_of_rows(strategy)
        real, others = (
            criterion(*cut((strategy.mb_output, strategy.mb_y), self._places(strategy, rows)))
            for rows in (slice(0, self._real_rows), slice(self._real_rows, self._rows))
        )
        count = self._real_rows, self._rows - self._real_rows
        return moved_weight(real, others, count, self.real_weight)

    def _soft_label_loss(self, strategy: Any, label_map: LabelMap) -> Float[Tensor, ""] | float:
        """The distance of the strategy's output from the soft labels, within each head."""
        slots = self._slots
        if self.soft_labels is None or slots is None or not len(slots):
            return 0.0
        output, ids = strategy.mb_output, torch.tensor(self.past.classes, device=slots.device)
        columns, heads = label_map.labels_of(ids)
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] <= columns.max():
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                "Soft labels need a solver that is trained on logits, one for each class; "
                f"{type(strategy).__name__}'s output is {shape}: set soft_label_weight=0."
            )
        of_rows = heads[torch.searchsorted(ids, self.past.labels[slots])]
        rows = slice(self._real_rows, self._real_rows + len(slots))
        divergence = soft_label_divergence(
            cut(output, self._places(strategy, rows))[:, columns.to(output.device)],
            self.soft_labels[slots].to(output.device),
            (of_rows[:, None] == heads).to(output.device),
        )
        return self.soft_label_weight * len(slots) / self._rows * divergence


def cut(content: Any, places: Mapping[int, slice]) -> Any:
    """Content with the tensors of so many rows, in whatever it holds, cut to those there."""
    if isinstance(content, Tensor):
        return (
            content[places[len(content)]] if content.ndim and len(content) in places else content
        )
    if isinstance(content, Mapping):
        same: Any = copy.copy(content)
        for key, value in content.items():
            same[key] = cut(value, places)
        return same
    if isinstance(content, (tuple, list)):
        parts = [cut(each, places) for each in content]
        if hasattr(content, "_make"):  # a named tuple
            return content._make(parts)
        return type(content)(parts)
    if is_dataclass(content) and not isinstance(content, type):
        names = [each.name for each in fields(content) if each.init]
        return replace(content, **{name: cut(getattr(content, name), places) for name in names})
    return content
