"""Generated rows join a mini-batch at its end, in its dtypes, and leave it again."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import tiny_generator

from avalanche_magd.distillation import Distillation, Pool
from avalanche_magd.distillation.past import Past
from avalanche_magd.replay import Replay, append_replay, soft_label_loss, trim_replay


def pool_of(classes: list[int], size: int = 20) -> Pool:
    generator = tiny_generator(classes=tuple(classes))
    pool = Pool(size, 0, (1, 8, 8), generator.device)
    rng = torch.Generator().manual_seed(0)

    past = Past(generator, classes, rng)
    Distillation(pool_size=size, num_inference_steps=1).fill(pool, size, past)
    return pool


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


@settings(max_examples=30, deadline=None)
@example(rows=1, current=3, old=1, share=0.25)
@given(
    rows=st.integers(1, 40),
    current=st.integers(1, 4),
    old=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.25, 0.5]),
)
def test_every_class_gets_as_many_rows(rows: int, current: int, old: int, share: float) -> None:
    past, now = pool_of(list(range(old))), pool_of(list(range(50, 50 + current)))
    replay = Replay(past, now if share else None, current, None, share)
    rng = torch.Generator().manual_seed(0)
    seen = torch.cat([replay.draw(rows, rng)[1] for _ in range(30)])
    generated = int((seen >= 50).sum())
    # Rounded down over the whole, not in each mini-batch; none is lost.
    now = 30 * rows * share / (1 - share)
    assert generated == pytest.approx(now, abs=1.01)
    assert len(seen) == pytest.approx(now + (30 * rows + now) * old / current, abs=1.01)
    assert len(seen) - generated == pytest.approx(
        (30 * rows + generated) * old / current, abs=1 + old / current + 1e-9
    )


def test_a_fixed_replay_size_is_shared_as_it_would_be_by_default() -> None:
    # By default 4 real rows would be joined by 4 of their class and 8 of each of two old ones.
    replay = Replay(pool_of([0, 1]), pool_of([5]), 1, 5, 0.5)
    rng = torch.Generator().manual_seed(0)
    draws = [replay.draw(4, rng) for _ in range(40)]
    for images, numbers, slots in draws:
        assert len(images) == 5
        assert torch.equal(images[: len(slots)], replay.past.images[slots])
        assert torch.equal(numbers[: len(slots)], replay.past.labels[slots])
    counts = torch.cat([numbers for _, numbers, _ in draws]).bincount(minlength=6)
    assert counts[5].item() == pytest.approx(40, abs=1)


def test_selected_images_alone_are_drawn_but_no_class_is_lost() -> None:
    pool = pool_of([0, 1, 2], size=30)
    chosen = torch.zeros(30, dtype=torch.bool)
    chosen[(pool.labels == 1).nonzero()[0]] = True
    chosen[(pool.labels == 2).nonzero()[:5, 0]] = True
    pool.select(chosen)
    drawn = pool.draw_slots(300, torch.Generator().manual_seed(0))
    assert pool.labels[drawn].bincount().tolist() == [100, 100, 100]
    assert len(drawn[pool.labels[drawn] == 0].unique()) == 10  # none was chosen: all stay
    assert chosen[drawn[pool.labels[drawn] > 0]].all()


def test_soft_labels_are_matched_exactly_by_the_same_answer() -> None:
    soft = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]])
    one_head = torch.ones(2, 3, dtype=torch.bool)
    assert soft_label_loss(soft + 7, soft, one_head).item() == pytest.approx(0, abs=1e-6)
    logits = torch.zeros(2, 3)
    target = (soft / 2).softmax(1)
    by_hand = 4 * (target * (target.log() - torch.tensor(1 / 3).log())).sum(1).mean()
    assert soft_label_loss(logits, soft, one_head).item() == pytest.approx(by_hand.item())


def test_soft_labels_are_matched_within_each_head() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], requires_grad=True)
    soft = torch.tensor([[0.3, 1.0, 9.0], [-8.0, 7.0, 1.0]])
    same_head = torch.tensor([[True, True, False], [False, False, True]])
    loss = soft_label_loss(logits, soft, same_head)
    alone = soft_label_loss(logits[:1, :2], soft[:1, :2], same_head[:1, :2])
    assert loss.item() == pytest.approx(alone.item() / 2)  # a head of one class has one answer
    torch.autograd.backward(loss)
    assert logits.grad is not None
    assert logits.grad[~same_head].eq(0).all()
