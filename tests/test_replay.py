"""Generated rows join a mini-batch at its end, in its dtypes, and leave it again."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_magd.replay import (
    append_replay,
    balanced_replay_size,
    trim_replay,
)


@pytest.mark.parametrize("columns", [2, 3])
def test_rows_are_appended_in_the_minibatchs_dtypes_and_trimmed(columns: int) -> None:
    real = [torch.rand(4, 1, 2, 2).double(), torch.arange(4).int(), torch.zeros(4).long()]
    mbatch = [column.clone() for column in real[:columns]]
    images = torch.rand(3, 1, 2, 2)
    append_replay(mbatch, images, torch.tensor([7, 8, 9]), torch.tensor([1, 1, 2]))
    assert [column.dtype for column in mbatch] == [torch.float64, torch.int32, torch.int64][
        :columns
    ]
    assert torch.equal(mbatch[0][4:], images.double())
    assert mbatch[1].tolist() == [0, 1, 2, 3, 7, 8, 9]
    assert columns == 2 or mbatch[2].tolist() == [0, 0, 0, 0, 1, 1, 2]
    strategy = SimpleNamespace(mbatch=mbatch, mb_output=torch.rand(7, 10))
    trim_replay(strategy, 4)
    for column, original in zip(strategy.mbatch, real, strict=False):
        assert torch.equal(column, original)
    assert strategy.mb_output.shape == (4, 10)


@given(rows=st.integers(1, 256), current=st.integers(1, 10), old=st.integers(1, 90))
def test_an_old_class_gets_as_many_rows_as_a_current_one(
    rows: int, current: int, old: int
) -> None:
    size = balanced_replay_size(rows, current, old)
    assert size / old == pytest.approx(rows / current)
