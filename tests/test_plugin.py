"""MAGDPlugin inside real Avalanche strategies: what reaches the solver, and what does not."""

import copy
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.core import SupervisedPlugin
from avalanche.evaluation import PluginMetric
from avalanche.models import SimpleMLP
from avalanche.training import Cumulative, JointTraining, VAETraining
from avalanche.training.plugins import EvaluationPlugin
from callbacks import Terminal, at
from compatibility import scr_strategy, two_columns
from tiny import naive, tiny_generator, tiny_plugin, tiny_training
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.distillation import CGGD, Distillation
from avalanche_magd.distillation.cost import Cost
from avalanche_magd.replay import MiniBatches
from avalanche_magd.training.defaults import default_training


class Recorder(SupervisedPlugin):
    """Remembers the mini-batches of the solver's forward passes, and those that metrics see."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[list[Tensor]] = []
        self.left: list[list[Tensor]] = []

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.shown.append([column.clone() for column in strategy.mbatch])

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.left.append([*(column.clone() for column in strategy.mbatch), strategy.mb_output])


@pytest.mark.parametrize("columns", [2, 3])
def test_generated_rows_of_old_classes_join_each_forward_and_leave_before_metrics(
    columns: int, digits: Any
) -> None:
    benchmark = digits if columns == 3 else two_columns(digits)
    recorder = Recorder()
    plugin = tiny_plugin(mini_batches=MiniBatches(math.inf, generated_share=0.0))
    strategy = naive([plugin, recorder])
    first, second, third = benchmark.train_stream[:3]
    strategy.train(first)
    assert all(len(shown[1]) <= 32 for shown in recorder.shown)
    strategy.train(second)
    recorder.shown.clear()
    recorder.left.clear()
    strategy.train(third)
    old = {*first.classes_in_this_experience, *second.classes_in_this_experience}
    current = set(third.classes_in_this_experience)
    for shown, left in zip(recorder.shown, recorder.left, strict=True):
        real = len(left[0])
        assert len(shown) == columns
        assert [column.dtype for column in shown[1:]] == [torch.int64] * (columns - 1)
        assert len(shown[0]) == real + 2 * real  # four old classes, two current ones
        assert set(shown[1][:real].tolist()) <= current
        counts = shown[1][real:].bincount(minlength=10)[sorted(old)]
        assert counts.sum() == 2 * real
        assert counts.max() - counts.min() <= 2
        assert 0 <= shown[0].min() <= shown[0].max() <= 1
        assert all(len(column) == real for column in left)
    assert strategy.train_mb_size == 32
    assert plugin.generator_strategy is not None
    assert plugin.generator_strategy.pool is None


def test_a_share_of_the_rows_of_current_classes_is_generated(digits: Any) -> None:
    recorder = Recorder()
    rows_of = MiniBatches(generated_share=0.5, real_weight=1.0)
    plugin = tiny_plugin(mini_batches=rows_of)
    strategy = naive([plugin, recorder])
    first, second = digits.train_stream[:2]
    strategy.train(first)
    assert all(len(shown[1]) <= 32 for shown in recorder.shown)
    recorder.shown.clear()
    recorder.left.clear()
    strategy.train(second)
    current = set(second.classes_in_this_experience)
    real = generated = old = 0
    for shown, left in zip(recorder.shown, recorder.left, strict=True):
        rows = len(left[0])
        is_current = [label in current for label in shown[1].tolist()]
        assert all(is_current[:rows])
        real += rows
        generated += sum(is_current[rows:])
        old += len(is_current) - sum(is_current)
    assert generated == real
    assert old == pytest.approx(2 * real, abs=1)  # as many classes of each kind
    # No lesson comes of them, and their cost is counted apart.
    assert plugin.cost.lessons == plugin.cost.generation.forwards == 20 * 3
    assert plugin.cost.replay.forwards == 10 * 3


@pytest.mark.parametrize(
    ("guidance", "solver_forwards", "replay_forwards"),
    [(CGGD(classifier_scale=1.0), 8 * 2, 4 * 2), (CGGD(conditional=False), 8, 0)],
)
def test_the_solver_does_not_guide_images_of_classes_that_it_has_not_learnt(
    digits: Any, guidance: CGGD, solver_forwards: int, replay_forwards: int
) -> None:
    distillation = Distillation(pool_size=8, num_inference_steps=2, guidance=guidance)
    without_soft_labels = MiniBatches(soft_label_weight=0.0)
    training = tiny_training(distillation=distillation)
    plugin = MAGDPlugin(training, mini_batches=without_soft_labels)
    strategy = naive([plugin])
    strategy.train(digits.train_stream[0])
    assert plugin.cost.solver.forwards == 0
    strategy.train(digits.train_stream[1])
    assert plugin.cost.solver.forwards == solver_forwards
    assert plugin.cost.replay.forwards == replay_forwards


def test_the_solver_is_trained_beside_a_pool_of_images_without_lessons(digits: Any) -> None:
    plugin, bytes_of_pools = tiny_plugin(pool_size=50), []

    def look(strategy: Any) -> None:
        bytes_of_pools.append(plugin.replay.past.nbytes if plugin.replay else 0)

    strategy = naive([plugin, at("before_training_epoch", look)])
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    assert plugin.cost.pool_bytes > 50 * 64 * (4 + 3 * 4)
    assert bytes_of_pools[0] == 0
    assert 50 * 64 * 4 < bytes_of_pools[1] < 50 * (64 * 4 + 40)


def test_the_generator_learns_an_experience_before_the_solver(digits: Any) -> None:
    plugin = tiny_plugin()
    classes: list[list[int]] = []
    looker = at("before_training_iteration", lambda _: classes.append(plugin.generator.classes))
    naive([plugin, looker]).train(digits.train_stream[0])
    present = sorted(digits.train_stream[0].classes_in_this_experience)
    assert classes == [present] * len(classes) != []


def test_an_interrupted_experience_is_generated_and_learnt_once(digits: Any) -> None:
    def stop(strategy: Any) -> None:
        raise InterruptedError

    plugin, interruption = (
        tiny_plugin(mini_batches=MiniBatches(generated_share=0.5)),
        at("after_training_iteration", stop),
    )
    strategy = naive([plugin])
    strategy.train(digits.train_stream[0])
    strategy.plugins.append(interruption)
    with pytest.raises(InterruptedError):
        strategy.train(digits.train_stream[1])
    strategy.plugins.remove(interruption)
    spent, replay = copy.deepcopy(plugin.cost), plugin.replay
    assert replay is not None
    assert set(replay.past.classes) == set(digits.train_stream[0].classes_in_this_experience)
    seen: list[Any] = []
    strategy.plugins.append(at("before_training_iteration", lambda _: seen.append(plugin.replay)))
    strategy.train(digits.train_stream[1])
    assert plugin.cost.forwards == spent.forwards
    assert seen
    assert all(each is replay for each in seen)
    assert plugin.replay is None


def test_an_interruption_of_the_pass_of_current_classes_repeats_no_training(digits: Any) -> None:
    trained = False

    def interrupt(network: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Stop the first call in evaluation mode that follows the training of the generator."""
        nonlocal trained
        trained = trained or network.training
        if trained and not network.training:
            raise KeyboardInterrupt

    plugin = tiny_plugin()
    strategy = naive([plugin])
    strategy.train(digits.train_stream[0])
    assert plugin.generator is not None
    hook = plugin.generator.network.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(digits.train_stream[1])
    hook.remove()
    steps = plugin.cost.training.backwards
    strategy.train(digits.train_stream[1])
    assert plugin.cost.training.backwards == steps
    assert plugin.cost.replay.forwards > 0


def test_soft_labels_keep_the_solvers_answers_on_images_of_old_classes(digits: Any) -> None:
    change = {}
    for weight in (0.0, 50.0):
        torch.manual_seed(0)
        plugin = tiny_plugin(mini_batches=MiniBatches(soft_label_weight=weight))
        strategy = naive([plugin], train_epochs=3)
        images = torch.stack([row[0] for row in digits.train_stream[0].dataset])
        old = sorted(digits.train_stream[0].classes_in_this_experience)
        answers = []
        for experience in digits.train_stream[:2]:
            strategy.train(experience)
            answers.append(strategy.model.eval()(images)[:, old].softmax(1))
        change[weight] = (answers[1] - answers[0]).abs().mean().item()
    assert change[50.0] < change[0.0] / 2


def test_soft_labels_refuse_a_solver_without_a_logit_for_each_class(digits: Any) -> None:
    model = SimpleMLP(num_classes=10, input_size=64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    plugin = tiny_plugin(mini_batches=MiniBatches(soft_label_weight=0.5))
    strategy = scr_strategy(
        model,
        optimizer=optimizer,
        train_mb_size=32,
        criterion=None,
        plugins=[plugin],
        evaluator=None,
    )
    strategy.train(digits.train_stream[0])
    with pytest.raises(ValueError, match=r"one for each class; SCR's output is .*: set soft"):
        strategy.train(digits.train_stream[1])


def test_parts_of_an_online_stream_have_no_generated_current_classes() -> None:
    plugin = tiny_plugin(mini_batches=MiniBatches(generated_share=0.5))
    strategy = naive([plugin])
    whole = split_digits(2, seed=0)
    strategy.train(whole.train_stream[0])
    for part in list(split_online_stream(whole.train_stream[1:], experience_size=20))[:2]:
        strategy.train(part)
    assert plugin.cost.lessons > 0
    assert plugin.cost.replay.forwards == 0


def test_metrics_count_real_rows_only(digits: Any) -> None:
    class Rows(PluginMetric[int]):
        """Counts what an evaluator counts."""

        rows = 0

        def after_training_iteration(self, strategy: Any) -> None:
            self.rows += len(strategy.mb_y)
            assert len(strategy.mb_output) == len(strategy.mb_y)

        def reset(self) -> None:
            self.rows = 0

        def result(self) -> int:
            return self.rows

    metric = Rows()
    strategy = naive([tiny_plugin()], evaluator=EvaluationPlugin(metric, loggers=[]))
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    assert metric.result() == sum(len(exp.dataset) for exp in digits.train_stream[:2])


@pytest.mark.parametrize(
    ("strategy_class", "experiences"),
    [(Cumulative, list), (JointTraining, lambda stream: [stream])],
)
def test_a_strategy_with_all_real_data_is_warned_and_trained_as_without_the_plugin(
    digits: Any, strategy_class: Any, experiences: Any
) -> None:
    def train(plugins: list[Any]) -> Tensor:
        torch.manual_seed(0)
        model = SimpleMLP(num_classes=10, input_size=64)
        strategy = strategy_class(
            model=model,
            optimizer=torch.optim.Adam(model.parameters()),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=32,
            plugins=plugins,
            evaluator=None,
        )
        for each in experiences(digits.train_stream[:2]):
            strategy.train(each)
        return nn.utils.parameters_to_vector(model.parameters())

    expected = train([])
    built, given = tiny_plugin(), MAGDPlugin(tiny_training())
    for plugin in (built, given):
        with pytest.warns(UserWarning, match="trains on all real data: there is nothing"):
            assert torch.equal(train([plugin]), expected)
        assert plugin.cost == Cost()
    assert built.generator is None
    assert given.generator is not None
    assert not given.generator.pixel_range.known


@pytest.mark.parametrize("seed", [None, 11])
def test_two_runs_with_the_same_seeds_are_bit_identical(digits: Any, seed: int | None) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        plugin = tiny_plugin(seed=seed)
        strategy = naive([plugin])
        for experience in digits.train_stream[:3]:
            strategy.train(experience)
        assert plugin.generator is not None
        models = (strategy.model, plugin.generator)
        runs.append([nn.utils.parameters_to_vector(m.parameters()) for m in models])
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


def test_different_seeds_make_different_generators(digits: Any) -> None:
    images = []
    for seed in (1, 2):
        plugin = tiny_plugin(seed=seed)
        naive([plugin]).train(digits.train_stream[0])
        assert plugin.generator is not None
        images.append(plugin.generator.generate(2, rng=torch.Generator().manual_seed(0)))
    assert not torch.equal(*images)


def test_the_generator_and_its_cost_appear_with_the_first_experience(digits: Any) -> None:
    plugin = tiny_plugin()
    assert plugin.generator is None
    assert plugin.cost == Cost()
    strategy = naive([plugin])
    strategy.train(digits.train_stream[0])
    assert plugin.generator is not None
    assert plugin.generator.image_shape == (1, 8, 8)
    assert plugin.cost.lessons == 0
    strategy.train(digits.train_stream[1])
    assert plugin.cost.lessons == plugin.cost.generation.forwards == 20 * 3
    assert plugin.cost.training.backwards == 3 * 32 + 3 * 64


@pytest.mark.parametrize(("replay_size", "rows"), [(0, 32), (5, 37), (None, 32 + 96)])
def test_replay_size_is_the_number_of_generated_rows(
    digits: Any, replay_size: int | None, rows: int
) -> None:
    recorder = Recorder()
    rows_of = MiniBatches(math.inf, replay_size=replay_size, real_weight=1.0)
    strategy = naive([tiny_plugin(mini_batches=rows_of), recorder])
    strategy.train(digits.train_stream[0])
    recorder.shown.clear()
    strategy.train(digits.train_stream[1])
    assert len(recorder.shown[0][0]) == rows


@pytest.mark.parametrize(("replay_size", "same"), [(0, True), (5, False)])
def test_replay_size_zero_trains_the_solver_as_without_the_plugin(
    digits: Any, replay_size: int, same: bool
) -> None:
    weights = []
    for plugins in ([], [tiny_plugin(mini_batches=MiniBatches(replay_size=replay_size))]):
        torch.manual_seed(0)
        strategy = naive(plugins)
        for experience in digits.train_stream[:2]:
            strategy.train(experience)
        weights.append(nn.utils.parameters_to_vector(strategy.model.parameters()))
    assert torch.equal(*weights) == same


def test_mini_batches_of_one_row_are_joined_by_the_same_share_of_rows_over_an_experience() -> None:
    two_classes = split_digits(5, fixed_class_order=range(10)).train_stream[0]
    five_classes = split_digits(2, fixed_class_order=range(10)).train_stream[1]
    recorder = Recorder()
    strategy = naive([tiny_plugin(mini_batches=MiniBatches(generated_share=0.0)), recorder])
    strategy.train(two_classes)
    recorder.shown.clear()
    strategy.train_mb_size = 1
    strategy.train(five_classes)
    real = len(five_classes.dataset)
    assert sum(len(shown[0]) for shown in recorder.shown) - real == pytest.approx(
        0.4 * real, abs=1
    )


def test_replayed_rows_carry_the_task_label_of_their_class() -> None:
    benchmark = split_digits(5, seed=0, return_task_id=True)
    recorder = Recorder()
    strategy = naive([tiny_plugin(), recorder])
    task_of_class = {}
    for experience in benchmark.train_stream[:3]:
        task_of_class.update(dict.fromkeys(experience.dataset.targets, experience.task_label))
        strategy.train(experience)
    _, labels, tasks = recorder.shown[-1]
    assert tasks.tolist() == [task_of_class[label] for label in labels.tolist()]
    assert len(set(tasks.tolist())) == 3


@pytest.mark.parametrize(
    ("image_shape", "iterations"), [((1, 8, 8), 360), ((1, 28, 28), 1260), ((3, 32, 64), 2880)]
)
def test_the_default_number_of_steps_grows_with_the_longer_side_of_an_image(
    image_shape: tuple[int, int, int], iterations: int
) -> None:
    training = default_training(image_shape, Distillation(), torch.device("cpu"), seed=0)
    assert training.train_iterations == iterations


def test_the_plugin_gives_its_arguments_to_the_training_that_it_builds(
    digits: Any, tmp_path: Path
) -> None:
    plugin = tiny_plugin(checkpoint_folder=tmp_path)
    naive([plugin]).train(digits.train_stream[0])
    training = plugin.generator_strategy
    assert training is not None
    assert training.train_iterations == 3
    assert training.distillation == Distillation(pool_size=20, num_inference_steps=3)
    assert training.checkpoint_folder == tmp_path
    assert (tmp_path / "experience-0.pt").exists()


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bars_can_be_switched_off(
    digits: Any, monkeypatch: pytest.MonkeyPatch, progress: bool
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    plugin = tiny_plugin()
    plugin.progress = progress
    strategy = naive([plugin])
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    assert ("training generator" in terminal.getvalue()) == progress
    assert ("generating" in terminal.getvalue()) == progress


def test_a_given_generator_strategy_is_used(digits: Any) -> None:
    training = tiny_training(distillation=Distillation(pool_size=10, num_inference_steps=2))
    plugin = MAGDPlugin(training)
    assert plugin.generator is training.model
    strategy = naive([plugin])
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    assert plugin.cost is training.cost
    assert training.cost.lessons == 20


def test_the_plugin_can_be_pickled_between_experiences(digits: Any) -> None:
    plugin = tiny_plugin()
    naive([plugin]).train(digits.train_stream[0])
    again = pickle.loads(pickle.dumps(plugin))
    assert plugin.generator is not None
    assert again.generator.classes == plugin.generator.classes


def test_data_that_cannot_be_replayed_are_refused_before_any_training() -> None:
    def strategy_on(*columns: Tensor) -> None:
        dataset = AvalancheDataset(
            [TensorDataset(*columns)],
            data_attributes=[DataAttribute(columns[1].tolist(), "targets")],
        )
        recorder = Recorder()
        strategy = naive([tiny_plugin(), recorder])
        try:
            strategy.train(benchmark_from_datasets(train=[dataset]).streams["train"][0])
        finally:
            assert recorder.shown == []

    labels = torch.arange(6) % 2
    with pytest.raises(ValueError, match="got 4 columns"):
        strategy_on(torch.rand(6, 1, 8, 8), labels, labels, labels)
    with pytest.raises(TypeError, match="Targets must be integer class indices"):
        strategy_on(torch.rand(6, 1, 8, 8), labels.float())
    with pytest.raises(ValueError, match="sides must be at least 4 pixels, got 3×3"):
        strategy_on(torch.rand(6, 1, 3, 3), labels)
    with pytest.raises(ValueError, match="channels × height × width"):
        strategy_on(torch.rand(6, 8, 8), labels)
    with pytest.raises(ValueError, match="pixels range from 0 to 0: there is nothing to learn"):
        strategy_on(torch.zeros(6, 1, 8, 8), labels)


def test_a_dictionary_minibatch_is_refused_before_any_training() -> None:
    def to_dictionary(samples: list[Any]) -> dict[str, Tensor]:
        images, labels = zip(*samples, strict=True)
        return {"x": torch.stack(images), "y": torch.stack(labels)}

    labels = torch.arange(6) % 2
    dataset = AvalancheDataset(
        [TensorDataset(torch.rand(6, 1, 8, 8), labels)],
        data_attributes=[DataAttribute(labels.tolist(), "targets")],
        collate_fn=to_dictionary,
    )
    recorder = Recorder()
    with pytest.raises(TypeError, match=r"lists of tensors .* got a dict"):
        naive([tiny_plugin(), recorder]).train(
            benchmark_from_datasets(train=[dataset]).streams["train"][0]
        )
    assert recorder.shown == []


def test_a_generator_of_another_shape_is_refused(digits: Any) -> None:
    training = tiny_training(model=tiny_generator((3, 16, 16)))
    with pytest.raises(ValueError, match=r"shape \(3, 16, 16\), the experience has \(1, 8, 8\)"):
        naive([MAGDPlugin(training)]).train(digits.train_stream[0])


@pytest.mark.parametrize(
    ("distillation", "message"),
    [
        (
            Distillation(pool_size=20, num_inference_steps=3, max_pool_bytes=100),
            "max_pool_bytes=100 does not hold pool_size=20",
        ),
        (Distillation(num_inference_steps=1001), "num_inference_steps must be at most 1000"),
    ],
)
def test_a_pool_that_cannot_be_made_is_refused_before_any_training(
    digits: Any, distillation: Distillation, message: str
) -> None:
    recorder, plugin = Recorder(), MAGDPlugin(distillation=distillation)
    with pytest.raises(ValueError, match=message):
        naive([plugin, recorder]).train(digits.train_stream[0])
    assert recorder.shown == []


def test_two_plugins_in_one_strategy_are_refused(digits: Any) -> None:
    with pytest.raises(ValueError, match="two MAGDPlugins"):
        naive([tiny_plugin(), tiny_plugin()]).train(digits.train_stream[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"generator_iterations": 0}, ValueError, "generator_iterations must be at least 1"),
        ({"pool_size": -3}, ValueError, "pool_size must be at least 1, got -3"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps must be at least 1"),
        ({"images": 5}, TypeError, "unexpected keyword argument 'images'"),
    ],
)
def test_arguments_out_of_range_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MAGDPlugin(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool_size": 10}, "Give pool_size to the Distillation, not to the plugin"),
        ({"pool_size": 4000}, "Give pool_size to the Distillation"),
        ({"num_inference_steps": 10}, "Give num_inference_steps to the Distillation"),
        (
            {"pool_size": 4000, "num_inference_steps": 10},
            "Give pool_size and num_inference_steps to the Distillation",
        ),
    ],
)
def test_pool_size_and_number_of_steps_are_refused_beside_a_distillation(
    arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MAGDPlugin(distillation=Distillation(), **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"generator_iterations": 400},
        {"pool_size": 7},
        {"pool_size": 4000},
        {"num_inference_steps": 10},
        {"distillation": Distillation()},
        {"checkpoint_folder": "folder"},
    ],
    ids=str,
)
def test_arguments_of_the_training_are_refused_beside_a_generator_strategy(
    arguments: dict[str, Any],
) -> None:
    with pytest.raises(ValueError, match="brings its own training and distillation: give"):
        MAGDPlugin(tiny_training(), **arguments)


def test_a_pool_smaller_than_the_first_experiences_classes_is_refused_in_it(digits: Any) -> None:
    plugin = tiny_plugin(pool_size=1)
    with pytest.raises(ValueError, match="pool_size=1 leaves some of the 2 classes"):
        naive([plugin]).train(digits.train_stream[0])
    assert plugin.cost.training.forwards == 0


def test_a_generator_strategy_that_is_no_magd_training_is_refused() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    vae = VAETraining(model=model, optimizer=optimizer, evaluator=None)
    with pytest.raises(TypeError, match="must be a MAGDTraining, got VAETraining"):
        MAGDPlugin(vae)


def test_present_teacher_generates_the_classes_seen_so_far(digits: Any) -> None:
    plugin = tiny_plugin()
    strategy = naive([plugin])
    assert plugin.present_teacher(strategy, seed=0) is None
    strategy.train(digits.train_stream[0])
    classes = sorted(digits.train_stream[0].classes_in_this_experience)
    images = []
    for seed in (1, 1, 2):
        teacher = plugin.present_teacher(strategy, seed)
        assert teacher is not None
        assert teacher.classes == classes
        images.append(teacher.images(torch.tensor(classes)))
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_a_generator_without_class_labels_has_no_present_teacher(digits: Any) -> None:
    distillation = Distillation(pool_size=8, guidance=CGGD(conditional=False))
    plugin = MAGDPlugin(tiny_training(distillation=distillation))
    strategy = naive([plugin])
    strategy.train(digits.train_stream[0])
    assert plugin.present_teacher(strategy, seed=0) is None
