"""Generated rows join where mini-batches are loaded, so that a strategy treats all rows alike."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import SimpleMLP
from avalanche.training import DER, ER_ACE, Naive
from avalanche.training.plugins import EvaluationPlugin
from callbacks import LossRecorder, ReplayRecorder, at
from tiny import naive, tiny_plugin
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from avalanche_magd.replay import MiniBatches, ReplayLoader, unwrapped
from avalanche_magd.replay.losses import criterion_of_rows

NEW_LABELS = torch.tensor([5, 8, 2, 7, 0, 9, 4, 1, 6, 3])


def strategy_of(cls: type[Naive], plugins: list[Any], **kwargs: Any) -> Naive:
    model = kwargs.pop("model", None) or SimpleMLP(10, input_size=64, hidden_size=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return cls(
        model=model,
        optimizer=optimizer,
        train_mb_size=32,
        plugins=plugins,
        evaluator=None,
        **kwargs,
    )


class ChangesOnTheDevice(Naive):  # type: ignore[misc]
    """Images are inverted and labels are renamed once a mini-batch is on the device."""

    def _unpack_minibatch(self) -> None:
        super()._unpack_minibatch()
        self.mbatch[0] = 10 - self.mbatch[0]
        self.mbatch[1] = NEW_LABELS[self.mbatch[1]]


def test_what_a_strategy_changes_on_the_device_reaches_generated_rows(digits: Any) -> None:
    recorder = ReplayRecorder()
    strategy = strategy_of(ChangesOnTheDevice, [tiny_plugin(), recorder])
    first, second = digits.train_stream[:2]
    for experience in (first, second):
        strategy.train(experience)
    known = [*first.classes_in_this_experience, *second.classes_in_this_experience]
    assert set(recorder.labels) == set(NEW_LABELS[known].tolist())
    assert torch.stack(recorder.images).min() >= 8.5


def test_rows_of_a_memory_that_stand_before_the_real_ones_leave(digits: Any) -> None:
    labels: set[int] = set()
    look = at("after_training_iteration", lambda strategy: labels.update(strategy.mb_y.tolist()))
    plugins = [tiny_plugin(mini_batches=MiniBatches(soft_label_weight=1.0, real_weight=0.5)), look]
    strategy = strategy_of(DER, plugins, mem_size=20, batch_size_mem=5)
    for experience in digits.train_stream[:2]:
        labels.clear()
        strategy.train(experience)
    assert labels == set(experience.classes_in_this_experience)


def test_rows_are_weighed_in_a_mean_cross_entropy_only() -> None:
    def criterion(cls: Any = Naive, given: Any = None, **kwargs: Any) -> Any:
        strategy = strategy_of(cls, [], **kwargs)
        strategy._criterion = strategy._criterion if given is None else given
        return criterion_of_rows(strategy)

    assert isinstance(criterion(), nn.CrossEntropyLoss)
    assert criterion(given=nn.CrossEntropyLoss(label_smoothing=0.1)) is not None
    assert criterion(given=nn.CrossEntropyLoss(reduction="sum")) is None
    assert criterion(given=nn.CrossEntropyLoss(torch.ones(10))) is None
    assert criterion(given=nn.MSELoss()) is None
    assert criterion(Tripled) is None
    assert criterion(DER, mem_size=20, batch_size_mem=5) is None
    assert criterion(ER_ACE, mem_size=20, batch_size_mem=5) is None


class Tripled(Naive):  # type: ignore[misc]
    """A loss that is not the criterion's, of each row by itself."""

    def criterion(self) -> Tensor:
        return 3 * super().criterion()


@pytest.mark.parametrize(("cls", "old_rows"), [(Naive, 4 / 3), (Tripled, 2)])
def test_real_rows_are_weighed_if_the_loss_is_of_each_row(
    cls: type[Naive], old_rows: float, digits: Any
) -> None:
    early, late, steps = LossRecorder(), LossRecorder(), Steps()
    rows = MiniBatches(math.inf, real_weight=1 / 3, soft_label_weight=0)
    plugins = [early, tiny_plugin(mini_batches=rows), late, steps]
    strategy = strategy_of(cls, plugins)
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    assert steps.rows[0] == int((2 + old_rows) * 32)
    assert (early.losses == late.losses) is (cls is Tripled)


def test_generated_rows_are_augmented_image_by_image(digits: Any) -> None:
    shapes, recorder, real = set(), ReplayRecorder(), list[float]()

    def augmentation(image: Tensor) -> Tensor:
        shapes.add(tuple(image.shape))
        return image + 100

    look = at("after_training_iteration", lambda strategy: real.append(strategy.mb_x.max()))
    rows = MiniBatches(augmentation=augmentation)
    strategy = strategy_of(Naive, [tiny_plugin(mini_batches=rows), recorder, look])
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    assert shapes == {(1, 8, 8)}
    assert torch.stack(recorder.images).min() > 90 > max(real)


def test_an_augmentation_has_to_give_an_image_back(digits: Any) -> None:
    first, second = digits.train_stream[:2]
    strategy = naive([tiny_plugin(mini_batches=MiniBatches(augmentation=Tensor.flatten))])
    strategy.train(first)
    with pytest.raises(ValueError, match=r"the image's shape, \(1, 8, 8\); it gave \(64,\)"):
        strategy.train(second)


@pytest.mark.parametrize("appended", [False, True])
def test_metrics_see_real_rows_only_wherever_the_plugin_stands(
    appended: bool, digits: Any
) -> None:
    plugin, rows = tiny_plugin(), []
    evaluator = EvaluationPlugin(accuracy_metrics(epoch=True), loggers=[])
    strategy = naive([] if appended else [plugin], evaluator=evaluator)
    if appended:
        strategy.plugins.append(plugin)
    accuracy = evaluator.metrics[0]
    update = accuracy.update
    accuracy.update = lambda each: (rows.append(len(each.mb_y)), update(each))
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    assert sum(rows) == sum(len(each.dataset) for each in digits.train_stream[:2])


class MixUp(SupervisedPlugin):  # type: ignore[misc]
    """Mixes each row of a mini-batch with another one, and its label too."""

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        other = torch.randperm(len(strategy.mb_x))
        labels = one_hot(strategy.mb_y, 10).float()
        strategy.mbatch[0] = 0.7 * strategy.mb_x + 0.3 * strategy.mb_x[other]
        strategy.mbatch[1] = 0.7 * labels + 0.3 * labels[other]


@pytest.mark.parametrize("first", [False, True])
def test_a_plugin_that_mixes_rows_may_stand_before_or_after(first: bool, digits: Any) -> None:
    plugins = [MixUp(), tiny_plugin()] if first else [tiny_plugin(), MixUp()]
    recorder = ReplayRecorder()
    strategy = naive([*plugins, recorder])
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    assert len(recorder.images) > 0
    assert {len(labels) for labels in recorder.labels} == {10}


class TwoHeads(nn.Module):
    """A network whose output is logits and features."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images.flatten(1))
        return self.head(features), features


class RowCounter(SupervisedPlugin):  # type: ignore[misc]
    """Keeps the numbers of rows of labels and outputs after each iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: set[tuple[int, ...]] = set()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        outputs = [len(each) for each in strategy.mb_output]
        self.rows.add((len(strategy.mb_y), *outputs))


def test_a_network_may_have_several_outputs(digits: Any) -> None:
    counter = RowCounter()
    strategy = strategy_of(
        Naive,
        [counter, tiny_plugin()],
        model=TwoHeads(),
        criterion=lambda output, labels: cross_entropy(output[0], labels),
    )
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    assert all(len(set(rows)) == 1 for rows in counter.rows)


class OwnLoop(Naive):  # type: ignore[misc]
    """A training loop without the callbacks of an iteration."""

    def training_epoch(self, **kwargs: Any) -> None:
        self.seen: set[int] = set()
        for self.mbatch in self.dataloader:  # noqa: B020
            self._unpack_minibatch()
            self.optimizer.zero_grad()
            self.mb_output = self.forward()
            self.loss = self.criterion()
            self.backward()
            self.optimizer_step()
            self.seen |= set(self.mb_y.tolist())


def test_a_loop_of_ones_own_is_replayed_to(digits: Any) -> None:
    strategy = strategy_of(OwnLoop, [tiny_plugin()])
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    classes = [each.classes_in_this_experience for each in digits.train_stream[:2]]
    assert strategy.seen == {label for each in classes for label in each}


class OwnLoader(Naive):  # type: ignore[misc]
    """A training loop that looks at the dataset by itself."""

    def training_epoch(self, **kwargs: Any) -> None:
        image, label, task = self.adapted_dataset[0]
        self.mbatch = [image[None], torch.tensor([label]), torch.tensor([task])]


def test_a_loop_that_no_rows_reach_is_told_so(digits: Any) -> None:
    strategy = strategy_of(OwnLoader, [tiny_plugin()])
    strategy.train(digits.train_stream[0])
    with pytest.warns(UserWarning, match=r"OwnLoader does not iterate over strategy\.dataloader"):
        strategy.train(digits.train_stream[1])


def test_the_loader_is_wrapped_for_an_epoch_only_and_looks_like_the_wrapped_one(
    digits: Any,
) -> None:
    loaders = []

    class Look(SupervisedPlugin):  # type: ignore[misc]
        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            loaders.append(strategy.dataloader)

        def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
            loaders.append(strategy.dataloader)

    plugin = tiny_plugin(mini_batches=MiniBatches(math.inf))
    strategy = naive([plugin, Look()], train_epochs=2)
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    *during, after = loaders
    real = unwrapped(during[-1])
    assert isinstance(during[-1], ReplayLoader)
    assert not isinstance(real, ReplayLoader)
    assert not isinstance(after, ReplayLoader)
    assert len(during[-1]) == len(real)
    name = next(iter(vars(real)))
    assert getattr(during[-1], name) is getattr(real, name)


class OneByOne:
    """A loader that does not know how many mini-batches it has."""

    def __init__(self, loader: Any) -> None:
        self.mini_batches = loader

    def __iter__(self) -> Iterator[Any]:
        yield from self.mini_batches


@pytest.mark.parametrize("size", [math.inf, None])
def test_a_loader_of_the_users_need_not_know_its_length(digits: Any, size: float | None) -> None:
    class Own(Naive):  # type: ignore[misc]
        def make_train_dataloader(self, **kwargs: Any) -> None:
            super().make_train_dataloader(**kwargs)
            self.dataloader = OneByOne(self.dataloader)

    recorder = ReplayRecorder()
    strategy = strategy_of(Own, [tiny_plugin(mini_batches=MiniBatches(size)), recorder])
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    assert set(digits.train_stream[0].classes_in_this_experience) <= set(recorder.labels)


class Steps(SupervisedPlugin):  # type: ignore[misc]
    """Keeps the rows of each step of the last epoch, the real ones, and the loader's length."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.real: list[bytes] = []
        self.length = 0

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.rows, self.real = [], []

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.length = len(strategy.dataloader)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.rows.append(len(strategy.mb_x))

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.real += [image.numpy().tobytes() for image in strategy.mb_x]


PARTS: dict[str, tuple[float | None, int, int]] = {
    "by default": (None, 32, 16),
    "of 64 rows": (64, 32, 64),
    "of fewer rows than are served with one real one": (1, 8, 6),
    "whole": (math.inf, 32, 192),
}
"""Size that is wanted, the strategy's, and rows of a step with four old and two new classes."""


@pytest.mark.parametrize("name", PARTS)
def test_an_epoch_is_one_pass_over_the_real_rows_in_however_many_steps(
    digits: Any, name: str
) -> None:
    wanted, train_mb_size, largest = PARTS[name]
    counted, rows = {}, {}
    for size in (wanted, math.inf):
        steps = Steps()
        rows_of = MiniBatches(size, real_weight=1.0)
        strategy = naive([tiny_plugin(mini_batches=rows_of), steps], train_epochs=2)
        strategy.train_mb_size = train_mb_size
        for experience in digits.train_stream[:3]:
            strategy.train(experience)
        counted[size], rows[size] = steps, sum(steps.rows)
    seen = counted[wanted]
    images = [image.numpy().tobytes() for image, *_ in digits.train_stream[2].dataset]
    assert sorted(seen.real) == sorted(images)
    assert seen.length == len(seen.rows)
    assert rows[wanted] == rows[math.inf]
    assert max(seen.rows) <= largest + 2
    assert min(seen.rows) >= min(5, largest)
