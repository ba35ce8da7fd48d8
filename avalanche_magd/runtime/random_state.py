"""Random numbers of one's own, apart from torch's global state."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


class SeededGenerator(torch.Generator):
    """A source of random numbers that can be unpickled on another kind of device.

    Torch's own pickling refuses that, and a strategy that was saved on a GPU could not be opened
    without one. On another kind of device the sequence is another one, since each kind has its
    own; it is then seeded by the state that was saved.
    """

    def __new__(cls, device: torch.device, seed: int) -> Self:
        """A source on a device, seeded."""
        rng = super().__new__(cls, device)  # type: ignore[call-arg]
        rng.manual_seed(seed)
        return rng

    def __reduce__(self) -> Any:
        return _restored, (self.device, self.device.type, self.get_state())

    def draw_seed(self) -> int:
        """A seed for another source of random numbers, drawn from this one."""
        return int(torch.randint(2**62, (), generator=self, device=self.device))


def _restored(device: torch.device, kind: str, state: Tensor) -> SeededGenerator:
    rng = SeededGenerator(device, int(state.cpu().long().sum()))
    if device.type == kind:
        rng.set_state(state.cpu())
    return rng


def global_states(device: torch.device) -> list[Tensor]:
    """Torch's own random states, of the CPU and, if it is another, of a device."""
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def set_global_states(states: list[Tensor], device: torch.device) -> None:
    """Go on from what :func:`global_states` gave."""
    torch.set_rng_state(states[0].cpu())
    for state in states[1:]:
        torch.cuda.set_rng_state(state.cpu(), device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch on the CPU and on ``device`` alone, NumPy and Python, for a block of code.

    ``torch.manual_seed`` would seed every accelerator, those too whose state is not put back.
    """
    with random_states_kept(device):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield


@contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """Put the global random states of torch, NumPy and Python back after a block of code.

    Datasets may draw from any of them when an image is read.
    """
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)
