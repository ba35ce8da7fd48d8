"""What the loss of a step weighs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_magd.distillation.loss import current_share, squared_errors, total_loss


def test_the_error_of_a_row_is_its_mean_square() -> None:
    prediction = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 4.0]]]])
    target = torch.tensor([[[[1.0, 0.0]]], [[[3.0, 0.0]]]])
    assert squared_errors(prediction, target).tolist() == [2.0, 12.5]


@given(
    current=st.integers(1, 10),
    old=st.integers(1, 90),
    replay_weight=st.floats(0, 4),
    errors=st.tuples(st.floats(0, 10), st.floats(0, 10)),
)
def test_current_and_replayed_rows_weigh_as_their_classes(
    current: int, old: int, replay_weight: float, errors: tuple[float, float]
) -> None:
    w_new = current_share(current, old)
    assert w_new == pytest.approx(current / (current + old))
    now, past = (torch.full((4,), error, dtype=torch.float64) for error in errors)
    loss = total_loss(now, past, w_new, replay_weight).item()
    expected = w_new * errors[0] + (1 - w_new) * replay_weight * errors[1]
    assert loss == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_without_replay_the_loss_is_that_of_the_current_images() -> None:
    current = torch.tensor([1.0, 3.0])
    assert total_loss(current, current[:0], w_new=0.25, replay_weight=2.0).item() == 2.0
