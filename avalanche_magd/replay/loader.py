"""Generated images join the solver's mini-batch where it is loaded, and leave it after the update.

They are appended by the data loader, so that whatever a strategy or a plugin does to a mini-batch
(normalise, relabel, mix) it does to real and generated rows alike, and own training loops see them
too. The real rows stay first. After the update the others are trimmed off mini-batch and output,
so that metrics and other plugins see real rows only. The strategy's loss is that of all rows, as
it is minimised.
"""

from collections.abc import Iterator
from operator import length_hint
from typing import Any

import torch

from avalanche_magd.diffusion.label_map import LabelMap
from avalanche_magd.replay.losses import criterion_of_rows
from avalanche_magd.replay.rows import Replay
from avalanche_magd.runtime.validation import check_minibatch


class ReplayLoader:
    """A data loader whose mini-batches generated rows join as they are loaded.

    Args:
        strategy: whose loader of real mini-batches is wrapped; everything else is asked of that.
        replay: what joins; ``None`` for nothing.
        image_shape: of what joins: mini-batches of other images are refused.
        label_map: of the classes that join.
        rng: source of the choice of rows.
    """

    def __init__(
        self,
        strategy: Any,
        replay: Replay | None,
        image_shape: tuple[int, int, int],
        label_map: LabelMap,
        rng: torch.Generator,
    ) -> None:
        self.loader: Any = unwrapped(strategy.dataloader)
        self.replay = replay
        self.image_shape = image_shape
        self.label_map = label_map
        self.device = strategy.device  # where Avalanche moves mini-batches
        self.rng = rng
        real_rows = strategy.train_mb_size
        # Of the last mini-batch, as far as is known.
        self._last_rows = (len(strategy.adapted_dataset) - 1) % real_rows + 1
        if replay is not None:
            replay.weighed = criterion_of_rows(strategy) is not None
            steps = length_hint(self.loader) * getattr(strategy, "train_epochs", 1)
            replay.plan(real_rows, max(1, steps))

    def __len__(self) -> int:
        if self.replay is None:
            return len(self.loader)
        last = self.replay.parts_of(self._last_rows)
        return int(self.replay.parts * (len(self.loader) - 1) + last)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # a copy that is being made has none yet
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        for mbatch in self.loader:
            columns = list(mbatch) if isinstance(mbatch, tuple) else mbatch
            check_minibatch(columns, self.image_shape)
            if self.replay is None:
                yield mbatch
                continue
            there = [column.to(self.device, non_blocking=True) for column in columns]
            yield from self.replay.join(there, self.label_map, self.rng)


def unwrapped(loader: Any) -> Any:
    """The loader of real mini-batches, whether it is wrapped or not."""
    return loader.loader if isinstance(loader, ReplayLoader) else loader
