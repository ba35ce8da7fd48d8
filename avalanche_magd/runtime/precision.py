"""Everything around a network is in single precision, whatever its weights or torch's default are.

States, lessons, images and what is drawn have one type. A network is given them in its own, and
its answers are brought back.
"""

from collections.abc import Sequence
from typing import Any, Final, Self

import torch
from torch import Tensor, nn

PRECISION: Final = torch.float32


class FixedPrecision(nn.Module):
    """A module whose own buffers follow the device that it is moved to, and keep their type."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        kept = {name: each for name, each in self._buffers.items() if each is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            self._buffers[name] = buffer.to(getattr(self, name).device)
        return self


def uniform(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Numbers drawn evenly from [0, 1), on the device of ``rng``."""
    return torch.rand(shape, generator=rng, device=rng.device, dtype=PRECISION)


def normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Numbers drawn from N(0, 1), on the device of ``rng``."""
    return torch.randn(shape, generator=rng, device=rng.device, dtype=PRECISION)
