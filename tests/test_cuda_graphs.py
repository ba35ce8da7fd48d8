"""Gradients of recorded steps, whatever the optimizer's ``zero_grad`` leaves.

The graphs are functions that write where a recording's do: recording itself needs a GPU, see
``test_cuda.py``.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from avalanche_magd.distillation.cuda_graphs import _Replay


def graph(replay: Any) -> Any:
    return SimpleNamespace(replay=replay)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_replays_gradients_replace_those_before_or_are_added_to_them(set_to_none: bool) -> None:
    layer = nn.Linear(3, 2, bias=False)
    unused = nn.Parameter(torch.zeros(2))
    x = torch.rand(5, 3)
    recording: Any = SimpleNamespace(parameters=[layer.weight, unused], output=torch.zeros(5, 2))
    recording.gradient = torch.zeros(5, 2)
    recording.gradients = [torch.zeros(2, 3), None]
    recording.forward = graph(lambda: recording.output.copy_(x @ layer.weight.detach().T))
    recording.backward = graph(lambda: recording.gradients[0].copy_(recording.gradient.T @ x))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for backwards in (1, 1, 2):
        optimizer.zero_grad(set_to_none=set_to_none)
        for _ in range(backwards):
            output: Any = _Replay.apply(recording, *recording.parameters)
            output.square().sum().backward()
        (wanted,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
        torch.testing.assert_close(layer.weight.grad, backwards * wanted)
        optimizer.step()
