"""Generated rows join a mini-batch at its end, in its dtypes, and leave it again."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import naive
from torch import Tensor
from torch.nn.functional import cross_entropy

from avalanche_magd.diffusion.label_map import LabelMap
from avalanche_magd.distillation import Pool
from avalanche_magd.replay import MiniBatches, Replay
from avalanche_magd.replay.losses import soft_label_divergence


def pool_of(classes: list[int], size: int = 20) -> Pool:
    """A pool that one pass has filled with as many random images of each class."""
    pool = Pool(size, 0, (1, 2, 2), torch.device("cpu"))
    labels = torch.tensor(classes).repeat(size // len(classes) + 1)[:size]
    images = torch.rand(size, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    pool.write(pool.slots_for(labels), images, labels)
    pool.end_pass()
    return pool


@pytest.mark.parametrize("columns", [2, 3])
def test_rows_join_in_the_dtypes_of_the_mini_batch_and_leave(
    columns: int, rng: torch.Generator
) -> None:
    label_map = LabelMap().with_classes([(4, 0), (7, 1)])
    ids = label_map.ids
    replay = Replay(pool_of(ids), None, 1, MiniBatches(replay_size=3))
    real = [torch.rand(4, 1, 2, 2).double(), torch.arange(4).int(), torch.zeros(4).long()]
    (mbatch,) = replay.join(real[:columns], label_map, rng)
    dtypes = [torch.float64, torch.int32, torch.int64]
    assert [column.dtype for column in mbatch] == dtypes[:columns]
    assert [len(column) for column in mbatch] == [7] * columns
    generated = {image.numpy().tobytes() for image in replay.past.images}
    assert all(image.float().numpy().tobytes() in generated for image in mbatch[0][4:])
    task_of = {4: 0, 7: 1}
    labels = mbatch[1].tolist()
    assert labels[:4] == [0, 1, 2, 3]
    assert set(labels[4:]) == {4, 7}
    for tasks in mbatch[2:]:
        assert tasks.tolist() == [0, 0, 0, 0, *(task_of[label] for label in labels[4:])]
    strategy = SimpleNamespace(mbatch=mbatch, mb_output=torch.rand(7, 10))
    replay.leave(strategy)
    for column, original in zip(strategy.mbatch, real[:columns], strict=True):
        assert torch.equal(column, original)
    assert strategy.mb_output.shape == (4, 10)


class TwoOutputs(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclass
class ManyOutputs:
    logits: Tensor
    loss: float
    hidden: list[Tensor]


LOGITS = torch.rand(7, 10)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (LOGITS, LOGITS[:4]),
        ((LOGITS, [LOGITS, "kept"]), (LOGITS[:4], [LOGITS[:4], "kept"])),
        ({"logits": LOGITS, "scale": LOGITS[:5]}, {"logits": LOGITS[:4], "scale": LOGITS[:5]}),
        (OrderedDict(logits=LOGITS), OrderedDict(logits=LOGITS[:4])),
        (TwoOutputs(LOGITS, LOGITS), TwoOutputs(LOGITS[:4], LOGITS[:4])),
        (ManyOutputs(LOGITS, 0.5, [LOGITS]), ManyOutputs(LOGITS[:4], 0.5, [LOGITS[:4]])),
        (torch.tensor(3.0), torch.tensor(3.0)),
        (None, None),
    ],
)
def test_rows_leave_an_output_however_it_is_nested(
    output: Any, expected: Any, rng: torch.Generator
) -> None:
    replay, label_map = (
        Replay(pool_of([0]), None, 1, MiniBatches(replay_size=3)),
        LabelMap().with_classes([(0, 0)]),
    )
    (mbatch,) = replay.join([torch.rand(4, 1, 2, 2), torch.zeros(4)], label_map, rng)
    strategy = SimpleNamespace(mbatch=mbatch, mb_output=output)
    for _ in range(2):  # as after the update and after the iteration
        replay.leave(strategy)
        assert type(strategy.mb_output) is type(output)
        assert repr(strategy.mb_output) == repr(expected)
        assert [len(column) for column in strategy.mbatch] == [4, 4]


@pytest.mark.parametrize("before", [False, True])
def test_rows_that_a_strategy_adds_leave_too(before: bool, rng: torch.Generator) -> None:
    replay, label_map = (
        Replay(pool_of([0]), None, 1, MiniBatches(replay_size=3)),
        LabelMap().with_classes([(0, 0)]),
    )
    real = [torch.rand(4, 1, 2, 2), torch.tensor([5.0, 6, 7, 8])]
    (mbatch,) = replay.join(real, label_map, rng)
    own = [torch.rand(2, 1, 2, 2), torch.full((2,), 9.0)]
    longer = [
        torch.cat([rows, column] if before else [column, rows])
        for column, rows in zip(mbatch, own, strict=True)
    ]
    strategy = SimpleNamespace(mbatch=longer, mb_output=longer[1].clone())
    for _ in range(2):  # as after the update and after the iteration
        replay.leave(strategy)
        left = [*strategy.mbatch, strategy.mb_output]
        assert all(map(torch.equal, left, [*real, real[1]]))


@settings(max_examples=30, deadline=None)
@example(rows=1, current=3, old=1, share=0.25, weight=1.0)
@given(
    rows=st.integers(1, 40),
    current=st.integers(1, 4),
    old=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.25, 0.5]),
    weight=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_each_class_has_the_same_weight_over_an_experience(
    rows: int, current: int, old: int, share: float, weight: float
) -> None:
    past = pool_of(list(range(old)))
    now = pool_of(list(range(50, 50 + current))) if share else None
    rows_of = MiniBatches(generated_share=share, real_weight=weight)
    replay = Replay(past, now, current, rows_of)
    rng = torch.Generator().manual_seed(0)
    ids = torch.cat([replay.draw(rows, rng)[1] for _ in range(30)])
    generated = 30 * rows * share / (1 - share)
    of_current = generated + 30 * rows * (weight if share else 1)
    # What is left of a row at the end of a mini-batch is carried over to the next.
    assert len(ids[ids >= 50]) == pytest.approx(generated, abs=1.01)
    assert len(ids[ids < 50]) == pytest.approx(of_current * old / current, abs=1.01)


def test_a_given_replay_size_is_divided_in_the_default_proportions() -> None:
    # By default 4 real rows would be joined by 4 of their class and 8 of each of two old ones.
    replay = Replay(pool_of([0, 1]), pool_of([5]), 1, MiniBatches(replay_size=5, real_weight=1.0))
    rng = torch.Generator().manual_seed(0)
    draws = [replay.draw(4, rng) for _ in range(40)]
    for images, ids, slots in draws:
        assert len(images) == 5
        assert torch.equal(images[: len(slots)], replay.past.images[slots])
        assert torch.equal(ids[: len(slots)], replay.past.labels[slots])
    counts = torch.cat([ids for _, ids, _ in draws]).bincount(minlength=6)
    assert counts[5].item() == pytest.approx(40, abs=1)


@settings(max_examples=50, deadline=None)
@example(rows=1, parts=4, old=3, share=0.5)
@example(rows=32, parts=20, old=40, share=0.0)
@given(
    rows=st.integers(1, 40),
    parts=st.integers(1, 40),
    old=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.5]),
)
def test_a_mini_batch_served_in_parts_has_the_rows_of_a_whole_one(
    rows: int, parts: int, old: int, share: float
) -> None:
    label_map = LabelMap().with_classes((label, 0) for label in range(60))
    now = pool_of([50, 51]) if share else None
    mbatch = [torch.arange(rows).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2), torch.zeros(rows)]
    served, slots = {}, {}
    for count in (1, parts):
        replay = Replay(
            pool_of(list(range(old))), now, 2, MiniBatches(generated_share=share), parts=count
        )
        draws = replay.join(mbatch, label_map, torch.Generator().manual_seed(0))
        served[count], slots[count] = [], []
        for part in draws:
            of_past = len(replay._slots)
            real_rows = replay._real_rows
            assert torch.equal(replay.past.images[replay._slots], part[0][real_rows:][:of_past])
            served[count].append((part[0][:real_rows], part[1][real_rows:]))
    ((real, generated),) = served[1]
    assert len(served[parts]) == min(rows, parts)
    assert sorted(torch.cat([each for each, _ in served[parts]])[:, 0, 0, 0]) == sorted(
        real[:, 0, 0, 0]
    )
    joined = [labels for _, labels in served[parts]]
    assert sorted(torch.cat(joined).tolist()) == sorted(generated.tolist())
    for sizes in ([len(each) for each, _ in served[parts]], [len(each) for each in joined]):
        assert max(sizes) - min(sizes) <= 1
    for label in set(generated.tolist()):
        counts = [(each == label).sum().item() for each in joined]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("size", "rows", "steps", "parts"),
    [
        (None, 320, 125, 16),  # 2000 steps
        (None, 320, 750, 3),
        (None, 320, 5000, 2),  # at most 256 rows
        (None, 320, 2, 20),  # at least 16 rows
        (None, 64, 1, 4),
        (None, 2560, 5000, 10),
        (None, 25_600, 1, 32),  # one real row each
        (64, 320, 125, 5),
        (64, 320, 5000, 5),
        (1000, 320, 125, 1),
        (math.inf, 25_600, 125, 1),
    ],
)
def test_the_number_of_parts_follows_from_rows_and_steps(
    size: int | float | None, rows: int, steps: int, parts: int
) -> None:
    replay = Replay(pool_of([0]), None, 1, MiniBatches(size, replay_size=rows - 32))
    replay.plan(32, steps)
    assert replay.parts == replay.parts_of(32) == parts
    assert replay.parts_of(16) == pytest.approx(parts / 2, abs=0.6)
    assert replay.parts_of(1) == 1


@pytest.mark.parametrize("classes", [4, 40, 400])
def test_a_step_has_256_rows_or_those_of_one_real_row(classes: int, rng: torch.Generator) -> None:
    old, now = list(range(classes - 2)), [classes - 2, classes - 1]
    replay = Replay(pool_of(old, len(old)), pool_of(now), 2, MiniBatches())
    replay.plan(32, 10_000)  # steps enough without parts
    label_map = LabelMap().with_classes((label, 0) for label in range(classes))
    rows = [
        len(labels)
        for _ in range(3)
        for _, labels in replay.join([torch.rand(32, 1, 2, 2), torch.zeros(32)], label_map, rng)
    ]
    assert max(rows) <= max(256, 2 + 2 * len(old) / 2) + 2
    assert sum(rows) == pytest.approx(3 * 32 * (2 + 4 / 3 * len(old) / 2), abs=3)


@pytest.mark.parametrize(
    ("given", "real_images", "expected"), [(None, 20, 1 / 3), (None, 200, 0.1), (0.7, 200, 0.7)]
)
def test_real_rows_weigh_less_the_more_images_they_are_of(
    given: float | None, real_images: int, expected: float
) -> None:
    rows = MiniBatches(real_weight=given)
    replay = Replay(pool_of([0]), pool_of([1], 20), 1, rows, real_images=real_images)
    assert replay.real_weight == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"size": 32.5}, TypeError, r"size must be an integer, got 32\.5"),
        ({"size": -math.inf}, TypeError, "size must be an integer, got -inf"),
        ({"size": math.nan}, TypeError, "size must be an integer, got nan"),
        ({"replay_size": -1}, ValueError, "replay_size must be at least 0"),
        ({"replay_size": 0.5}, TypeError, "replay_size must be an integer"),
        ({"generated_share": 1.0}, ValueError, r"generated_share must be in \[0, 1\), got 1.0"),
        ({"prioritized_share": 1}, ValueError, r"prioritized_share must be in \[0, 1\), got 1"),
        ({"real_weight": 1.5}, ValueError, "real_weight must be a number from 0 to 1, got 1.5"),
        ({"real_weight": "0"}, TypeError, "real_weight must be a number, got '0'"),
        ({"soft_label_weight": -1.0}, ValueError, "soft_label_weight must be a number from 0"),
    ],
)
def test_mini_batches_that_cannot_be_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MiniBatches(**arguments)


def labelled(soft_labels: Tensor) -> tuple[Replay, LabelMap]:
    """A replay of one head with one image of each class, and soft labels."""
    label_map = LabelMap().with_classes((label, 0) for label in range(soft_labels.shape[1]))
    pool = pool_of(label_map.ids, size=len(soft_labels))
    replay = Replay(pool, None, 1, MiniBatches(replay_size=6), soft_labels, soft_label_weight=3.0)
    return replay, label_map


def test_soft_labels_are_compared_with_the_output_of_generated_rows_of_old_classes(
    rng: torch.Generator,
) -> None:
    soft_labels = torch.randn(3, 3, generator=rng)
    replay, label_map = labelled(soft_labels)
    mbatch = [torch.rand(4, 1, 2, 2), torch.full((4,), 3)]
    (mbatch,) = replay.join(mbatch, label_map, rng)
    answers = {
        image.numpy().tobytes(): row
        for image, row in zip(replay.past.images, soft_labels, strict=True)
    }
    rows = torch.stack([answers[image.numpy().tobytes()] for image in mbatch[0][4:]])
    output = torch.cat(
        [torch.randn(4, 5, generator=rng), torch.randn(len(rows), 5, generator=rng)]
    )
    output[4:, :3] = rows
    strategy = SimpleNamespace(mbatch=mbatch, mb_output=output, loss=torch.tensor(5.0))
    replay.join_loss(strategy, label_map)
    assert strategy.loss.item() == pytest.approx(5, abs=1e-6)
    output[4:, 0] += 1
    replay.join_loss(strategy, label_map)
    one_head = torch.ones_like(rows, dtype=torch.bool)
    divergence = soft_label_divergence(output[4:, :3], rows, one_head)
    share_of_rows = 6 / 10
    assert strategy.loss.item() == pytest.approx(5 + 3 * share_of_rows * divergence.item())
    assert divergence.item() > 0.01


def test_the_divergence_from_soft_labels_is_the_scaled_kullback_leibler_divergence() -> None:
    soft = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]])
    one_head = torch.ones(2, 3, dtype=torch.bool)
    assert soft_label_divergence(soft + 7, soft, one_head).item() == pytest.approx(0, abs=1e-6)
    logits = torch.zeros(2, 3)
    target = (soft / 2).softmax(1)
    by_hand = 4 * (target * (target.log() - torch.tensor(1 / 3).log())).sum(1).mean()
    divergence = soft_label_divergence(logits, soft, one_head)
    assert divergence.item() == pytest.approx(by_hand.item())


def test_the_divergence_from_soft_labels_compares_within_each_head() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], requires_grad=True)
    soft = torch.tensor([[0.3, 1.0, 9.0], [-8.0, 7.0, 1.0]])
    same_head = torch.tensor([[True, True, False], [False, False, True]])
    divergence = soft_label_divergence(logits, soft, same_head)
    alone = soft_label_divergence(logits[:1, :2], soft[:1, :2], same_head[:1, :2])
    # The second row's head has one class, and so one answer only.
    assert divergence.item() == pytest.approx(alone.item() / 2)
    torch.autograd.backward(divergence)
    assert logits.grad is not None
    assert logits.grad[~same_head].eq(0).all()


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("own_rows", [0, 3])
def test_real_rows_have_their_weight_in_the_loss(
    weight: float, own_rows: int, rng: torch.Generator
) -> None:
    label_map = LabelMap().with_classes([(0, 0), (1, 0)])
    replay = Replay(pool_of([0]), pool_of([1]), 1, MiniBatches(real_weight=weight))
    real = [torch.rand(4, 1, 2, 2), torch.ones(4, dtype=torch.int64)]
    (mbatch,) = replay.join(real, label_map, rng)
    own = [torch.rand(own_rows, 1, 2, 2), torch.full((own_rows,), 2)]
    strategy = naive([])
    strategy.mbatch = [torch.cat(columns) for columns in zip(own, mbatch, strict=True)]
    strategy.mbatch.append(torch.zeros(len(strategy.mbatch[0])))
    strategy.mb_output = torch.randn(len(strategy.mbatch[0]), 3, generator=rng)
    loaded = slice(own_rows, None)
    output, labels = strategy.mb_output[loaded], strategy.mb_y[loaded]
    strategy.loss = cross_entropy(output, labels)
    replay.join_loss(strategy, label_map)
    weights = torch.tensor([weight] * 4 + [1.0] * (len(labels) - 4))
    by_hand = (weights * cross_entropy(output, labels, reduction="none")).sum() / weights.sum()
    assert strategy.loss.item() == pytest.approx(by_hand.item())


def confused_share(
    rng: torch.Generator,
    *,
    head: int = 0,
    current: Pool | None = None,
    columns: int = 3,
    logit: float = 0.0,
    **rows_of: Any,
) -> tuple[float, float]:
    """Of rows of two old classes: those taken for current ones, and those of the first class.

    Two images of each class's ten are taken so, for sure.
    """
    label_map = LabelMap().with_classes([(0, 0), (1, 0), (2, head)])
    past = pool_of([0, 1])
    rows = MiniBatches(math.inf, real_weight=1.0, soft_label_weight=0.0, **rows_of)
    replay = Replay(past, current, 1, rows)
    confusing = {image.numpy().tobytes() for image in past.images[:4]}
    drawn, firsts = list[bool](), list[bool]()
    for step in range(60):
        real = [torch.rand(20, 1, 2, 2), torch.full((20,), 2), torch.full((20,), head)]
        (mbatch,) = replay.join(real, label_map, rng)
        taken = [image.numpy().tobytes() in confusing for image in mbatch[0]]
        output = torch.full((len(taken), 3), -100.0)
        output[torch.arange(len(taken)), 2 * torch.tensor(taken)] = logit
        strategy = naive([])
        strategy.mbatch, strategy.mb_output = mbatch, output[:, :columns]
        strategy.loss = torch.tensor(0.0)
        replay.join_loss(strategy, label_map)
        old = mbatch[1] < 2
        old[:20] = False
        if step >= 20:  # each has been seen
            drawn += [each for each, is_old in zip(taken, old.tolist(), strict=True) if is_old]
            firsts += (mbatch[1][old] == 0).tolist()
    return sum(drawn) / len(drawn), sum(firsts) / len(firsts)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_images_that_are_taken_for_current_classes_are_drawn_more_often(
    share: float, rng: torch.Generator
) -> None:
    confused, first = confused_share(rng, current=pool_of([2]), prioritized_share=share)
    assert confused == pytest.approx((1 - share) * 4 / 20 + share, abs=0.02)
    assert first == pytest.approx(0.5, abs=0.02)


def test_images_are_drawn_evenly_where_there_is_nothing_to_confuse_them_with(
    rng: torch.Generator,
) -> None:
    now: dict[str, Any] = {"current": pool_of([2])}
    for arguments in (
        {"current": None},
        now | {"head": 1},
        now | {"columns": 2},  # classes that a plugin has given other labels
        now | {"logit": math.nan},
    ):
        confused, _ = confused_share(rng, **arguments)
        assert confused == pytest.approx(4 / 20, abs=0.02)


def test_an_image_of_a_class_that_comes_again_is_not_confused_with_its_own(
    rng: torch.Generator,
) -> None:
    label_map = LabelMap().with_classes([(0, 0), (1, 0), (2, 0)])
    rows = MiniBatches(math.inf, real_weight=1.0, soft_label_weight=0.0)
    replay = Replay(pool_of([0]), pool_of([0, 2]), 2, rows)
    recognised = {image.numpy().tobytes() for image in replay.past.images[:10]}
    drawn = list[bool]()
    for step in range(60):
        (mbatch,) = replay.join([torch.rand(20, 1, 2, 2), torch.full((20,), 2)], label_map, rng)
        right = [image.numpy().tobytes() in recognised for image in mbatch[0]]
        output = torch.full((len(right), 3), -100.0)
        output[torch.arange(len(right)), 1 - torch.tensor(right).long()] = 0.0
        strategy = naive([])
        strategy.mbatch, strategy.mb_output = mbatch, output
        strategy.loss = torch.tensor(0.0)
        replay.join_loss(strategy, label_map)
        if step >= 20:  # each has been seen; those of old classes come first
            drawn += right[20:40]
    assert sum(drawn) / len(drawn) == pytest.approx(0.5, abs=0.1)
