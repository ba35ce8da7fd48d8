"""MAGDPlugin inside real Avalanche strategies: what reaches the solver, and what does not."""

import copy
import pickle
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
from compatibility import scr_strategy, two_columns
from tiny import naive, tiny_generator, tiny_plugin, tiny_training
from torch import Tensor
from torch.utils.data import TensorDataset

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.cost import Cost
from avalanche_magd.distillation import Distillation


class Recorder(SupervisedPlugin):
    """Remembers what the solver was shown, and what was left for metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[list[Tensor]] = []
        self.left: list[list[Tensor]] = []

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.shown.append([column.clone() for column in strategy.mbatch])

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.left.append([*(column.clone() for column in strategy.mbatch), strategy.mb_output])


@pytest.mark.parametrize("columns", [2, 3])
def test_generated_rows_of_old_classes_reach_the_solver_and_leave(
    columns: int, digits: Any
) -> None:
    benchmark = digits if columns == 3 else two_columns(digits)
    recorder, plugin = Recorder(), tiny_plugin(generated_share=0.0)
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


def test_a_share_of_the_current_classes_is_generated_too(digits: Any) -> None:
    recorder, plugin = Recorder(), tiny_plugin(generated_share=0.5)
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
    # Its cost is its own: no lesson came of it.
    assert plugin.cost.lessons == plugin.cost.generation.forwards == 20 * 3
    assert plugin.cost.replay.forwards == 10 * 3


@pytest.mark.parametrize(
    ("settings", "current"), [({"classifier_scale": 1.0}, 4), ({"conditional": False}, 0)]
)
def test_current_images_do_not_ask_a_solver_that_does_not_know_them(
    digits: Any, settings: dict[str, Any], current: int
) -> None:
    distillation = Distillation(pool_size=8, num_inference_steps=2, **settings)
    plugin = MAGDPlugin(tiny_training(distillation=distillation))
    strategy = naive([plugin])
    strategy.train(digits.train_stream[0])
    assert plugin.cost.solver.forwards == 0
    strategy.train(digits.train_stream[1])
    assert plugin.cost.solver.forwards == (16 if distillation.conditional else 8)
    assert plugin.cost.replay.forwards == current * 2


def test_a_pool_without_its_lessons_waits_for_the_solver(digits: Any) -> None:
    plugin, bytes_of_pools = tiny_plugin(pool_size=50), []

    class Looker(SupervisedPlugin):
        def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            bytes_of_pools.append(plugin.replay.past.nbytes if plugin.replay else 0)

    strategy = naive([plugin, Looker()])
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    assert plugin.cost.pool_bytes > 50 * 64 * (4 + 3 * 4)
    assert bytes_of_pools[0] == 0
    assert 50 * 64 * 4 < bytes_of_pools[1] < 50 * (64 * 4 + 40)


def test_the_generator_learns_an_experience_before_the_solver(digits: Any) -> None:
    classes: list[list[int]] = []

    class Looker(SupervisedPlugin):
        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            generator = plugin.generator
            assert generator is not None
            classes.append(generator.classes)

    plugin = tiny_plugin()
    naive([plugin, Looker()]).train(digits.train_stream[0])
    present = sorted(digits.train_stream[0].classes_in_this_experience)
    assert classes == [present] * len(classes) != []


def test_an_interrupted_experience_is_generated_and_learnt_once(digits: Any) -> None:
    class Stop(SupervisedPlugin):
        armed = False

        def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            if self.armed:
                raise InterruptedError

    plugin, stop = tiny_plugin(generated_share=0.5), Stop()
    strategy = naive([plugin, stop])
    strategy.train(digits.train_stream[0])
    stop.armed = True
    with pytest.raises(InterruptedError):
        strategy.train(digits.train_stream[1])
    stop.armed = False
    spent, replay = copy.deepcopy(plugin.cost), plugin.replay
    assert replay is not None
    assert set(replay.past.classes) == set(digits.train_stream[0].classes_in_this_experience)
    seen = []
    original = plugin.before_training_iteration
    plugin.before_training_iteration = lambda *a, **k: (
        seen.append(plugin.replay) or original(*a, **k)
    )
    strategy.train(digits.train_stream[1])
    assert plugin.cost.forwards == spent.forwards
    assert all(each is replay for each in seen)
    assert plugin.replay is None


def test_an_interruption_while_current_images_are_generated_teaches_nothing_twice(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tiny_plugin()
    strategy = naive([plugin])
    strategy.train(digits.train_stream[0])
    with monkeypatch.context() as patch:

        def interrupt(*arguments: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(plugin.generator_strategy.rehearsal, "images_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            strategy.train(digits.train_stream[1])
    steps = plugin.cost.training.backwards
    strategy.train(digits.train_stream[1])
    assert plugin.cost.training.backwards == steps
    assert plugin.cost.replay.forwards > 0


def test_soft_labels_draw_the_solver_towards_its_old_answers(digits: Any) -> None:
    drift = {}
    for weight in (0.0, 50.0):
        torch.manual_seed(0)
        plugin = tiny_plugin(soft_label_weight=weight)
        strategy = naive([plugin], train_epochs=3)
        images = torch.stack([row[0] for row in digits.train_stream[0].dataset])
        old = sorted(digits.train_stream[0].classes_in_this_experience)
        answers = []
        for experience in digits.train_stream[:2]:
            strategy.train(experience)
            answers.append(strategy.model.eval()(images)[:, old].softmax(1))
        drift[weight] = (answers[1] - answers[0]).abs().mean().item()
    assert drift[50.0] < drift[0.0] / 2


def test_soft_labels_refuse_a_solver_that_is_trained_on_something_else(digits: Any) -> None:
    model = SimpleMLP(num_classes=10, input_size=64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    plugin = tiny_plugin(soft_label_weight=0.5)
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


def test_the_solver_of_the_past_selects_what_is_replayed(digits: Any) -> None:
    recorder, plugin = Recorder(), tiny_plugin(select=True, pool_size=60, generator_iterations=60)
    strategy = naive([plugin, recorder], train_epochs=3)
    strategy.train(digits.train_stream[0])
    solver = copy.deepcopy(strategy.model).eval()
    old = sorted(digits.train_stream[0].classes_in_this_experience)
    pools: list[Any] = []
    recorder.before_training_exp = lambda strategy, **_: pools.append(plugin.replay.past)
    recorder.shown.clear()
    strategy.train(digits.train_stream[1])

    def seen(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.tensor(old)[solver(images)[:, old].argmax(1)]

    (pool,) = pools
    right = seen(pool.images) == pool.labels
    assert 0 < right.sum() < 60
    images, labels = (torch.cat(column) for column in list(zip(*recorder.shown, strict=True))[:2])
    generated = torch.isin(labels, torch.tensor(old))
    agrees = seen(images[generated]) == labels[generated]
    for label in old:
        # A class in which it recognises no image keeps them all.
        assert agrees[labels[generated] == label].all() == right[pool.labels == label].any()


def test_parts_of_an_online_stream_have_no_generated_current_classes() -> None:
    plugin = tiny_plugin(generated_share=0.5)
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


def test_the_first_experience_is_bit_identical_to_a_run_without_the_plugin(digits: Any) -> None:
    weights, states = [], []
    for seed in ("none", None, 3):
        torch.manual_seed(5)
        plugins = [] if seed == "none" else [tiny_plugin(seed=seed)]
        strategy = naive(plugins, train_epochs=2)
        strategy.train(digits.train_stream[0])
        weights.append(torch.nn.utils.parameters_to_vector(strategy.model.parameters()))
        states.append(torch.get_rng_state())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


@pytest.mark.parametrize("strategy_class", [Cumulative, JointTraining])
def test_a_strategy_with_all_real_data_is_warned_and_left_alone(
    digits: Any, strategy_class: Any
) -> None:
    weights = []
    for plugins in ([], [tiny_plugin()], [MAGDPlugin(tiny_training())]):
        torch.manual_seed(0)
        model = SimpleMLP(num_classes=10, input_size=64)
        optimizer = torch.optim.Adam(model.parameters())
        strategy = strategy_class(
            model=model,
            optimizer=optimizer,
            criterion=torch.nn.CrossEntropyLoss(),
            train_mb_size=32,
            plugins=plugins,
            evaluator=None,
        )
        stream = digits.train_stream[:2]
        for experiences in [stream] if strategy_class is JointTraining else stream:
            if plugins:
                with pytest.warns(UserWarning, match="trains on all real data: there is nothing"):
                    strategy.train(experiences)
                assert plugins[0].cost == Cost()
                assert plugins[0].generator is None or not plugins[0].generator.pixel_range.known
            else:
                strategy.train(experiences)
        weights.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("seed", [None, 11])
def test_a_run_repeats_bit_by_bit(digits: Any, seed: int | None) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        plugin = tiny_plugin(seed=seed)
        strategy = naive([plugin])
        for experience in digits.train_stream[:3]:
            strategy.train(experience)
        assert plugin.generator is not None
        models = (strategy.model, plugin.generator)
        runs.append([torch.nn.utils.parameters_to_vector(m.parameters()) for m in models])
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


def test_replay_size_zero_switches_replay_off_and_a_number_sets_it(digits: Any) -> None:
    weights = []
    for replay_size, expected in [(None, 32), (0, 32), (5, 37)]:
        torch.manual_seed(0)
        recorder = Recorder()
        plugins = [] if replay_size is None else [tiny_plugin(replay_size=replay_size)]
        strategy = naive([*plugins, recorder])
        strategy.train(digits.train_stream[0])
        recorder.shown.clear()
        strategy.train(digits.train_stream[1])
        assert len(recorder.shown[0][0]) == expected
        weights.append(torch.nn.utils.parameters_to_vector(strategy.model.parameters()))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_mini_batches_of_one_row_are_joined_by_their_share_in_the_long_run() -> None:
    two_classes = split_digits(5, fixed_class_order=range(10)).train_stream[0]
    five_classes = split_digits(2, fixed_class_order=range(10)).train_stream[1]
    recorder = Recorder()
    strategy = naive([tiny_plugin(generated_share=0.0), recorder])
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


def test_the_default_budget_grows_with_the_image_side() -> None:
    cpu = torch.device("cpu")
    for image_shape, iterations in [((1, 8, 8), 400), ((1, 28, 28), 840), ((3, 32, 64), 1920)]:
        assert MAGDPlugin()._default_strategy(image_shape, cpu).train_iterations == iterations


def test_a_generator_strategy_of_the_users_own_is_used(digits: Any) -> None:
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


def test_data_that_cannot_be_replayed_is_refused_before_any_training() -> None:
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
    ("arguments", "message"),
    [
        ({"max_pool_bytes": 100}, "max_pool_bytes=100 does not hold pool_size=20"),
        ({"num_inference_steps": 1001}, "num_inference_steps must be at most 1000"),
    ],
)
def test_a_pool_that_cannot_be_made_is_refused_before_any_training(
    digits: Any, arguments: dict[str, int], message: str
) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match=message):
        naive([tiny_plugin(**arguments), recorder]).train(digits.train_stream[0])
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
        ({"replay_size": -1}, ValueError, "replay_size must be at least 0"),
        ({"replay_size": 0.5}, TypeError, "replay_size must be an integer"),
        ({"snr_band": (3.0, 1.0)}, ValueError, "snr_band must be a pair"),
        ({"guidance_scale": -1.0}, ValueError, "guidance_scale must be a number from 1"),
        ({"max_pool_bytes": 0}, ValueError, "max_pool_bytes must be at least 1"),
    ],
)
def test_absurd_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MAGDPlugin(**arguments)


def test_a_generator_strategy_decides_alone_and_must_be_magds() -> None:
    with pytest.raises(ValueError, match="brings its own training and distillation"):
        MAGDPlugin(tiny_training(), pool_size=7)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    vae = VAETraining(model=model, optimizer=optimizer, evaluator=None)
    with pytest.raises(TypeError, match="must be a MAGDTraining, got VAETraining"):
        MAGDPlugin(vae)
