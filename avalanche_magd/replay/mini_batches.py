"""What the solver is shown: how many generated rows, in mini-batches of what size, how weighed.

The more classes there are, the more rows join a mini-batch, and the solver takes no more steps by
them. So a mini-batch is served in *parts*: each has its share of the real rows and of the rows
that join, spread evenly over the classes, and is a step of its own. An epoch is still one pass
over the real rows, and has the same rows in all.

Real images are all of current classes. A solver that goes by this calls real images of old classes
current ones, too: so there are generated images of current classes as well, and real rows weigh
less than generated ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from avalanche_magd.runtime.validation import (
    check_count,
    check_number,
    check_share,
    optional_count,
)

STEPS: Final = 2000
"""Of an experience that a solver is given by default, if mini-batches allow it."""
FEWEST_ROWS: Final = 16
MOST_ROWS: Final = 256
"""Bounds of the rows of a part."""
MOST_REAL_WEIGHT: Final = 1 / 3


@dataclass(frozen=True)
class MiniBatches:
    """How generated images join the solver's mini-batches; for ``MAGDPlugin(mini_batches=…)``.

    Args:
        size: rows of a mini-batch, real and generated: each of the strategy's is served in parts
            of about so many; with a real and a generated row at least. ``math.inf``: whole,
            however many rows join. Default: as many rows as make 2000 steps of an experience, from
            16 to 256.
        replay_size: generated rows that join a mini-batch of the strategy's; 0 switches replay
            off. Default: as many as give each old class the weight of a current one; 13 times the
            real rows in the tenth experience, if each brings as many classes.
        generated_share: share of the current classes' rows that are generated, in [0, 1), and by
            which the rows of old classes grow too. Without them (0) a solver can tell old classes
            from current ones by telling generated images from real ones. Not on online streams,
            nor from a generator that is given no classes.
        real_weight: weight of a real row's loss, in [0, 1], where a generated one weighs 1: the
            less, the less a solver learns to tell old classes from current ones by telling
            generated images from real ones. With 0 it learns from generated ones alone. Classes
            stay in balance. Default: the number of generated images for each real one of the
            current classes, and at most a third. It is 1 where no current classes are generated,
            and where a strategy's loss is not the mean cross-entropy of its rows, or computed in a
            training loop of its own.
        soft_label_weight: weight of a loss that draws the solver's answers on generated images of
            old classes towards those that it gave before the experience, within each head: their
            mean divergence, times the share of such rows; 0 switches it off. Default: 1, and 0 on
            online streams, for strategies in which ``real_weight`` is 1 by the above, and for
            models with another classifier in evaluation. A given weight needs logits.
        prioritized_share: how much it counts in draws of old classes' rows how likely the solver
            took an image for another, current class when it was last shown it, in [0, 1): an image
            is drawn by ``1 − share + share · p / mean p``, where p is 0.5 until it is shown, and
            classes stay in balance. 0 where no current classes are generated, and where
            ``real_weight`` is 1 by the above.
        augmentation: what the benchmark's training transform does to a real image, done to each
            generated one as it joins: a tensor c × h × w in the range of the user's images, to one
            of the same shape. The generator itself learns from images without augmentation. What
            it draws comes from torch's global random state.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: an argument is out of range.
    """

    size: int | float | None = None
    replay_size: int | None = None
    generated_share: float = 0.5
    real_weight: float | None = None
    soft_label_weight: float | None = None
    prioritized_share: float = 0.5
    augmentation: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "size": self.size,
            "replay_size": optional_count("replay_size", self.replay_size, at_least=0),
        }
        for name in ("generated_share", "prioritized_share"):
            checked[name] = check_share(name, getattr(self, name), excluded=1)
        for name, most in (("real_weight", 1), ("soft_label_weight", 1e6)):
            if (weight := getattr(self, name)) is not None:
                checked[name] = check_number(name, weight, at_least=0, at_most=most)
        if self.size is not None and self.size != math.inf:
            checked["size"] = check_count("size", self.size)
        if self.augmentation is not None and not callable(self.augmentation):
            raise TypeError(f"augmentation must be a function of an image: {self.augmentation!r}.")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def joining(
        self, real_rows: int, old_per_current: float, *, both: bool, real_weight: float
    ) -> tuple[float, float]:
        """How many rows of old and of current classes join so many real ones, on average.

        Args:
            real_rows: of a mini-batch.
            old_per_current: old classes for each current one.
            both: whether there are generated images of current classes too.
            real_weight: of a real row, where a generated one weighs 1.
        """
        now = real_rows * self.generated_share / (1 - self.generated_share) if both else 0.0
        old = (real_weight * real_rows + now) * old_per_current
        scale = 1.0 if self.replay_size is None else self.replay_size / (old + now)
        return scale * old, scale * now

    def parts(self, joining: float, real_rows: int, steps: int) -> int:
        """In how many parts a mini-batch is served: each has a real and a generated row.

        Args:
            joining: generated rows of a mini-batch.
            real_rows: of it.
            steps: of an experience whose mini-batches are served whole.
        """
        rows = real_rows + joining
        if self.size is not None:
            parts = round(rows / self.size)
        else:
            parts = min(round(STEPS / steps), int(rows / FEWEST_ROWS))
            parts = max(parts, math.ceil(rows / MOST_ROWS))
        return max(1, min(parts, real_rows, int(joining)))


AS_IN_0_1: Final = MiniBatches(
    math.inf, real_weight=1.0, soft_label_weight=0.0, prioritized_share=0.0
)
"""How rows joined in version 0.1."""
