"""Experiences may bring any classes, in any numbers, under any indices and task labels."""

from typing import Any

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.models import MTSimpleMLP
from avalanche.training import Naive
from callbacks import LossRecorder, ReplayRecorder
from tiny import naive, tiny_generator, tiny_plugin, tiny_training
from torch.utils.data import TensorDataset

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.diffusion.label_map import classes_of
from avalanche_magd.distillation import Distillation
from avalanche_magd.replay import MiniBatches


def stream_of(*experiences: dict[int, int]) -> list[Any]:
    """Experiences of images of noise: for each class, so many."""
    datasets = []
    for counts in experiences:
        targets = [label for label, count in counts.items() for _ in range(count)]
        data = TensorDataset(torch.rand(len(targets), 1, 8, 8), torch.tensor(targets))
        attributes = [DataAttribute(targets, "targets")]
        datasets.append(AvalancheDataset([data], data_attributes=attributes))
    return list(benchmark_from_datasets(train=datasets).streams["train"])


def replayed_labels(stream: list[Any], **kwargs: Any) -> tuple[list[int], Any]:
    recorder, plugin = ReplayRecorder(), tiny_plugin(**kwargs)
    strategy = naive([recorder, plugin])
    strategy.model.classifier = torch.nn.Linear(64, 200)
    for experience in stream:
        strategy.train(experience)
    return recorder.labels, plugin


@pytest.mark.parametrize(
    ("experiences", "old"),
    [
        ([{0: 40, 1: 3}, {2: 1, 3: 60, 4: 5}, {5: 64}], [0, 1, 2, 3, 4]),  # uneven
        ([{0: 20}, {1: 20}, {2: 64}], [0, 1]),  # one class at a time
        ([dict.fromkeys(range(12), 6), {12: 32, 13: 32}], list(range(12))),  # many at first
        ([{7: 20, 150: 20}, {3: 20, 42: 44}], [7, 150]),  # with gaps
        ([{0: 20, 1: 20}, {1: 40, 2: 24}], [0, 1]),  # one comes again
        ([{0: 20, 1: 20}, {0: 32, 1: 32}], [0, 1]),  # all come again
    ],
)
def test_replay_is_balanced_over_every_class_seen_before(
    experiences: list[dict[int, int]], old: list[int]
) -> None:
    labels, plugin = replayed_labels(
        stream_of(*experiences), mini_batches=MiniBatches(generated_share=0.0)
    )
    counts = torch.tensor(labels).bincount(minlength=200)
    assert sorted(set(labels)) == old
    assert counts[old].max() - counts[old].min() <= 3  # a mini-batch may differ by one
    # As many of an old class as of a present one.
    expected = sum(experiences[-1].values()) * len(old) / len(experiences[-1])
    assert len(labels) == pytest.approx(expected, abs=1)
    assert plugin.generator.classes == sorted({label for each in experiences for label in each})


def test_a_hundred_classes_in_ten_experiences_stay_within_the_bounds_that_were_set() -> None:
    stream = stream_of(*(dict.fromkeys(range(10 * k, 10 * k + 10), 2) for k in range(10)))
    recorder = ReplayRecorder()
    bounded = Distillation(pool_size=200, num_inference_steps=3, max_pool_bytes=200 * 1500)
    plugin = MAGDPlugin(
        generator_iterations=3,
        distillation=bounded,
        mini_batches=MiniBatches(generated_share=0.0),
        seed=0,
    )
    strategy = naive([recorder, plugin])
    strategy.model.classifier = torch.nn.Linear(64, 100)
    spent = []
    for experience in stream:
        before = plugin.cost.generation.forwards, plugin.cost.training.backwards
        strategy.train(experience)
        after = plugin.cost.generation.forwards, plugin.cost.training.backwards
        spent.append((after[0] - before[0], after[1] - before[1]))
    assert spent == [(0, 3 * 32)] + 9 * [(200 * 3, 3 * 64)]
    assert plugin.cost.pool_bytes <= 200 * 1500
    counts = torch.tensor(recorder.labels).bincount(minlength=100)[:90]
    assert len(recorder.labels) == 20 * 9
    assert counts.min() >= 1
    assert counts.max() <= 3


def heads_of_digits(from_zero: bool) -> Any:
    """Digits in five tasks of two classes, whose indices begin with 0 in each task or do not."""
    samples = [sample for exp in split_digits(5, seed=0).train_stream for sample in exp.dataset]
    images = torch.stack([image for image, *_ in samples])
    labels = [label for _, label, _ in samples]
    data = TensorDataset(images, torch.tensor(labels))
    dataset = AvalancheDataset([data], data_attributes=[DataAttribute(labels, "targets")])
    return nc_benchmark(
        dataset, dataset, 5, task_labels=True, seed=0, class_ids_from_zero_in_each_exp=from_zero
    )


@pytest.mark.parametrize(
    ("from_zero", "ids"), [(False, [1, 3, 4, 5, 7, 9]), (True, [0, 1, 2, 3, 4, 5])]
)
def test_heads_get_the_classes_of_their_own_task(from_zero: bool, ids: list[int]) -> None:
    benchmark = heads_of_digits(from_zero)
    recorder, plugin = ReplayRecorder(), tiny_plugin()
    model = MTSimpleMLP(input_size=64, hidden_size=16)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=32,
        plugins=[recorder, plugin],
        evaluator=None,
    )
    pairs = set()
    for experience in benchmark.train_stream[:3]:
        strategy.train(experience)
        pairs |= classes_of(experience.dataset)
    # The last experience's own classes are generated too.
    assert set(zip(recorder.labels, recorder.tasks, strict=True)) == pairs
    assert {task for _, task in pairs} == {0, 1, 2}
    assert plugin.generator.classes == ids


@pytest.mark.parametrize("from_zero", [False, True])
def test_soft_labels_are_what_each_head_answered_before(from_zero: bool) -> None:
    model = MTSimpleMLP(input_size=64, hidden_size=16)
    model.features[-1].p = 0.0  # dropout
    before, after = LossRecorder(), LossRecorder()
    rows = MiniBatches(real_weight=1.0, soft_label_weight=1.0)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=32,
        plugins=[before, tiny_plugin(mini_batches=rows), after],
        evaluator=None,
    )
    first, second, third = heads_of_digits(from_zero).train_stream[:3]
    strategy.train([first, second])
    before.losses.clear()
    after.losses.clear()
    strategy.train(third)  # of two heads, which at its first step are those of the past
    added = [late - early for early, late in zip(before.losses, after.losses, strict=True)]
    assert added[0] == pytest.approx(0, abs=1e-6)
    assert added[-1] > 1e-5


def test_classes_of_two_tasks_with_one_index_are_taught_apart() -> None:
    # Task 0's class 0 is black, task 1's is white: a generator of one class would mix them.
    training = tiny_training(
        model=tiny_generator(num_inference_steps=5), train_iterations=150, train_mb_size=32
    )
    datasets = []
    for task in (0, 1):
        images = task * 0.8 + 0.2 * torch.rand(32, 1, 8, 8)
        labels, tasks = [0] * 32, [task] * 32
        data = TensorDataset(images, torch.tensor(labels), torch.tensor(tasks))
        attributes = [
            DataAttribute(labels, "targets"),
            DataAttribute(tasks, "targets_task_labels"),
        ]
        datasets.append(AvalancheDataset([data], data_attributes=attributes))
    training.model.pixel_range.set(torch.zeros(1), torch.ones(1))
    for experience in benchmark_from_datasets(train=datasets).streams["train"]:
        training.train(experience, eval_streams=[])
    assert training.model.label_map.rows == [(0, 0, 0), (1, 0, 1)]
    dark, light = (training.model.generate(20, condition=id_).mean() for id_ in (0, 1))
    assert dark < 0.35
    assert light > 0.65


def test_present_classes_of_an_online_part_are_not_generated() -> None:
    parts = list(split_online_stream(split_digits(5, seed=0).train_stream[:2], 90, seed=0))
    training = tiny_training(distillation=Distillation(pool_size=40, num_inference_steps=2))
    for part in parts:
        training.fill_pool(part)
        old = set(training.pool.classes) if training.pool else set()
        assert not old & {label for label, _ in classes_of(part.dataset)}
        training.train(part, eval_streams=[])
    assert old == {1, 4}


def test_samples_whose_labels_the_targets_do_not_name_are_refused() -> None:
    images = torch.rand(20, 1, 8, 8)
    dataset = AvalancheDataset(
        [TensorDataset(images, torch.tensor([5, 6] * 10))],
        data_attributes=[DataAttribute([0, 1] * 10, "targets")],
    )
    strategy = naive([tiny_plugin()])
    with pytest.raises(ValueError, match=r"The samples have labels \[.*6.*\] that the dataset"):
        strategy.train(benchmark_from_datasets(train=[dataset]).streams["train"][0])


def test_online_parts_replay_every_class_of_a_whole_experience_before() -> None:
    benchmark = split_digits(2, seed=0)
    training = tiny_training(distillation=Distillation(pool_size=40, num_inference_steps=2))
    training.train(benchmark.train_stream[0], eval_streams=[])
    parts = split_online_stream(benchmark.train_stream[1:], experience_size=10)
    training.fill_pool(next(iter(parts)))
    assert training.pool is not None
    assert training.pool.classes == sorted(benchmark.train_stream[0].classes_in_this_experience)
