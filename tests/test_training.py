"""MAGDTraining teaches a generator without a plugin, counts its cost, and is reproducible."""

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.evaluation.metrics import loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from callbacks import Terminal, at, stop_after
from compatibility import reachable_tensors
from tiny import tiny_generator, tiny_training
from torch import Tensor, nn

from avalanche_magd import MAGDTraining
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.distillation import MAGD, Distillation
from avalanche_magd.distillation.loss import STEPS_PER_POINT

SMALL = Distillation(pool_size=12, num_inference_steps=4)


def optimizer_steps(training: MAGDTraining) -> int:
    """Steps that the optimizer has counted for the present student."""
    return int(next(iter(training.optimizer.state.values()))["step"])


class CallCounter:
    """Counts the images that pass through a network, independently of the generator's count."""

    def __init__(self, network: nn.Module) -> None:
        self.images = 0
        network.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.images += len(arguments[0])


class ReferenceAverage:
    """The average of the weights by its formula, one parameter and one step at a time."""

    def __init__(self, ema_decay: float) -> None:
        self.ema_decay = ema_decay
        self.steps = 0
        self.average: list[Tensor] = []

    def begin(self, training: MAGDTraining) -> None:
        self.average = self.average or [
            each.detach().clone() for each in training.model.parameters()
        ]

    def update(self, training: MAGDTraining) -> None:
        decay = min(self.ema_decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for average, parameter in zip(self.average, training.model.parameters(), strict=True):
            average.mul_(decay).add_(parameter.detach(), alpha=1 - decay)

    @property
    def plugins(self) -> list[Any]:
        return [at("before_training_exp", self.begin), at("after_update", self.update)]


def test_a_generator_learns_continually_without_a_plugin(digits: Any) -> None:
    training = tiny_training(distillation=SMALL)
    for experience in digits.train_stream[:2]:
        training.train(experience, eval_streams=[])
    seen = {label for exp in digits.train_stream[:2] for label in exp.classes_in_this_experience}
    assert training.model.classes == sorted(seen)
    assert training.pool is None
    assert training.model.generate(4).shape == (4, 1, 8, 8)


def test_the_first_experience_has_no_lessons(digits: Any) -> None:
    training = tiny_training(distillation=SMALL)
    counter = CallCounter(training.model.network)
    training.train(digits.train_stream[0], eval_streams=[])
    assert training.cost.generation.forwards == training.cost.lessons == 0
    assert training.cost.training.forwards == training.cost.training.backwards == 3 * 8
    assert counter.images == 3 * 8


@pytest.mark.parametrize(
    ("snr_band", "fewest_calls", "most_calls"), [(None, 1.0, 1.0), ((0.01, 30.0), 1.1, 1.9)]
)
def test_cost_counts_the_calls_of_the_network(
    digits: Any, snr_band: tuple[float, float] | None, fewest_calls: float, most_calls: float
) -> None:
    training = tiny_training(
        distillation=Distillation(MAGD(snr_band=snr_band), pool_size=12, num_inference_steps=10)
    )
    training.train(digits.train_stream[0], eval_streams=[])
    first = copy.deepcopy(training.cost)
    counter = CallCounter(training.model.network)
    training.fill_pool(digits.train_stream[1])
    cost = training.cost
    assert cost.generation.forwards == counter.images
    assert cost.lessons == 120
    assert cost.teacher_forwards_per_lesson == counter.images / 120
    assert fewest_calls <= cost.teacher_forwards_per_lesson <= most_calls
    assert training.pool is not None
    assert cost.pool_bytes == training.pool.nbytes
    training.train(digits.train_stream[1], eval_streams=[])
    assert (
        cost.generation.forwards + cost.training.forwards - first.training.forwards
        == counter.images
    )
    # Each step sees as many lessons as real images, in one forward.
    assert cost.training.backwards - first.training.backwards == 3 * (8 + 8)
    assert cost.generation.seconds > 0
    assert cost.training.seconds > first.training.seconds


@pytest.mark.parametrize(("experiences", "share"), [((0, 1), 2 / 4), ((0, 1, 1), 2 / 6)])
def test_current_images_have_the_weight_of_their_share_of_the_classes(
    digits: Any, experiences: tuple[int, ...], share: float
) -> None:
    losses: list[float] = []
    training = tiny_training(
        distillation=Distillation(pool_size=12, num_inference_steps=4, replay_weight=0.0),
        train_iterations=STEPS_PER_POINT,
        plugins=[at("before_backward", lambda strategy: losses.append(strategy.loss.item()))],
    )
    for index in experiences:
        training.train(digits.train_stream[index], eval_streams=[])
    of_real_images = training.curves.points[-1].errors["real"]
    assert sum(losses[-STEPS_PER_POINT:]) / STEPS_PER_POINT == pytest.approx(
        share * of_real_images, rel=1e-4
    )


def test_the_average_of_the_weights_becomes_the_generator(digits: Any) -> None:
    reference = ReferenceAverage(ema_decay=0.2)
    training = tiny_training(ema_decay=0.2, train_iterations=5, plugins=reference.plugins)
    training.train(digits.train_stream[0], eval_streams=[])
    assert reference.steps == 5
    for average, parameter in zip(reference.average, training.model.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), average)


def test_training_uses_evaluation_transforms() -> None:
    def refuse(image: Tensor) -> Tensor:
        raise AssertionError("the training transform was applied")

    benchmark = split_digits(5, seed=0, train_transform=refuse)
    tiny_training().train(benchmark.train_stream[0], eval_streams=[])


def test_the_seed_decides_the_weights_and_torchs_random_state_stays(digits: Any) -> None:
    weights = []
    for disturbance in (1, 2):
        torch.manual_seed(0)
        training = tiny_training(
            distillation=Distillation(
                MAGD(snr_band=(0.1, 9.0)), pool_size=8, num_inference_steps=2
            )
        )
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        for experience in digits.train_stream[:2]:
            training.train(experience, eval_streams=[])
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(nn.utils.parameters_to_vector(training.model.parameters()))
    assert torch.equal(*weights)


def test_lessons_keep_the_student_close_to_its_teacher(digits: Any) -> None:
    torch.manual_seed(0)
    taught = tiny_training(train_mb_size=32, train_iterations=60, model=tiny_generator())
    taught.train(digits.train_stream[0], eval_streams=[])
    x_t, t = torch.randn(64, 1, 8, 8), torch.randint(600, 1000, (64,))
    labels = torch.tensor(taught.model.classes).repeat(32)
    with taught.model.frozen() as teacher:
        answers = teacher(x_t, t, labels)
    distance = {}
    for replay_weight in (0.0, 1.0):
        student = tiny_training(
            model=copy.deepcopy(taught.model),
            train_mb_size=32,
            train_iterations=60,
            distillation=Distillation(pool_size=100, replay_weight=replay_weight),
        )
        student.train(digits.train_stream[1], eval_streams=[])
        with student.model.frozen() as model:
            distance[replay_weight] = (model(x_t, t, labels) - answers).square().mean().item()
    assert distance[1.0] < 0.7 * distance[0.0]


def test_an_evaluation_gives_the_denoising_loss_and_changes_nothing(digits: Any) -> None:
    evaluator = EvaluationPlugin(loss_metrics(stream=True, epoch=True), loggers=[])
    training = tiny_training(evaluator=evaluator, eval_mb_size=64)
    training.train(digits.train_stream[0], eval_streams=[])
    classes = list(training.model.classes)
    metrics = training.eval(digits.test_stream[:2])
    assert 0 < metrics["Loss_Stream/eval_phase/test_stream/Task000"] < 10
    assert training.model.classes == classes
    before = training.rng.get_state()
    assert training.eval(digits.test_stream[:2]) == metrics
    assert torch.equal(training.rng.get_state(), before)


def test_an_evaluation_draws_new_timesteps_for_each_mini_batch(digits: Any) -> None:
    training = tiny_training()
    training.train(digits.train_stream[0], eval_streams=[])
    timesteps: list[int] = []
    training.model.network.register_forward_pre_hook(
        lambda network, arguments: timesteps.extend(arguments[1].tolist())
    )
    training.eval(digits.test_stream[0])  # by Avalanche's default one image at a time
    assert len(set(timesteps)) > 50


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_training_stops_at_a_gradient_that_is_not_finite(
    digits: Any, tmp_path: Path, value: float
) -> None:
    def build(factors: list[float]) -> MAGDTraining:
        """A training whose loss is multiplied by these factors, one in each step."""

        def multiply(strategy: Any) -> None:
            strategy.loss = strategy.loss * factors[strategy.iteration]

        torch.manual_seed(0)
        training = tiny_training(
            model=tiny_generator(),
            train_iterations=8,
            checkpoint_folder=tmp_path,
            plugins=[at("before_backward", multiply)],
        )
        training.checkpoint_every = 3
        return training

    stopped = build([1.0, 1.0, 1.0, 1.0, 1.0, value, 1.0, 1.0])
    with pytest.raises(FloatingPointError, match=r"gradient is (nan|inf) at iteration 5"):
        stopped.train(digits.train_stream[0], eval_streams=[])
    assert all(bool(parameter.isfinite().all()) for parameter in stopped.model.parameters())
    assert stopped.model.classes == []
    stopped.model.add_classes(digits.train_stream[0].classes_in_this_experience)
    assert stopped.model.generate(2).isfinite().all()
    # The next run goes on from the last step saved, the third.
    again = build([1.0] * 8)
    again.train(digits.train_stream[0], eval_streams=[])
    assert again.cost.training.backwards == 5 * 8


def test_only_the_average_of_the_weights_is_kept_between_experiences(digits: Any) -> None:
    training = tiny_training()
    training.train(digits.train_stream[0], eval_streams=[])
    shape = training.model.network.conv_out.weight.shape
    kept = {each.data_ptr() for each in reachable_tensors(training, ()) if each.shape == shape}
    assert kept == {training.model.network.conv_out.weight.data_ptr()}
    assert not training.optimizer.state


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bars_can_be_switched_off(
    digits: Any, monkeypatch: pytest.MonkeyPatch, progress: bool
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    training = tiny_training(distillation=SMALL)
    training.progress = progress
    for experience in digits.train_stream[:2]:
        training.train(experience, eval_streams=[])
    assert ("training generator" in terminal.getvalue()) == progress
    assert ("generating" in terminal.getvalue()) == progress


def test_progress_bars_are_shown_on_terminals_only(
    digits: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_training(distillation=SMALL).train(digits.train_stream[0], eval_streams=[])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("checkpoint_every", "saved"), [(1, 5), (2, 4), (4, 4), (200, 0)])
def test_checkpoint_every_is_the_number_of_steps_between_two_checkpoints(
    digits: Any, tmp_path: Path, checkpoint_every: int, saved: int
) -> None:
    def build() -> MAGDTraining:
        torch.manual_seed(0)
        training = tiny_training(
            model=tiny_generator(), train_iterations=7, checkpoint_folder=tmp_path
        )
        training.checkpoint_every = checkpoint_every
        return training

    assert tiny_training().checkpoint_every == 200
    stopped = build()
    stopped.plugins.append(stop_after(5, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stopped.train(digits.train_stream[0], eval_streams=[])
    again = build()
    again.train(digits.train_stream[0], eval_streams=[])
    assert again.cost.training.backwards == (7 - saved) * 8


def test_parts_of_an_online_stream_cost_the_same_and_share_one_student(digits: Any) -> None:
    training = tiny_training(
        distillation=Distillation(pool_size=40, num_inference_steps=2, online_share=0.1),
        train_iterations=100,
    )
    spent, storages = [], set()
    for part in split_online_stream(digits.train_stream[:3], 45, seed=0):
        before = copy.deepcopy(training.cost)
        training.train(part, eval_streams=[])
        cost = training.cost
        spent.append(
            (
                cost.generation.forwards - before.generation.forwards,
                cost.training.backwards - before.training.backwards,
            )
        )
        storages.add(training.model.network.conv_in.weight.data_ptr())
        assert optimizer_steps(training) == 10 * len(spent)
    # There are no old classes in the first experience; then four images of two calls, and lessons.
    assert spent == [(0, 80)] * 6 + [(8, 160)] * (len(spent) - 6)
    assert len(spent) == 20
    assert training.cost.pool_bytes == training.pool.nbytes
    # The average and the student take turns in the same memory: no weights are copied.
    assert len(storages) <= 2


def test_the_average_of_the_weights_goes_on_from_part_to_part_of_an_online_stream(
    digits: Any,
) -> None:
    reference = ReferenceAverage(ema_decay=0.5)
    training = tiny_training(
        distillation=Distillation(pool_size=12, num_inference_steps=4, online_share=0.1),
        train_iterations=40,
        ema_decay=0.5,
        plugins=reference.plugins,
    )
    for part in split_online_stream(digits.train_stream[:1], 45, seed=0):
        training.train(part, eval_streams=[])
        for average, parameter in zip(reference.average, training.model.parameters(), strict=True):
            torch.testing.assert_close(parameter.detach(), average)
    assert reference.steps == 4 * 7


@pytest.mark.parametrize("known_boundaries", [True, False])
def test_a_part_of_an_online_stream_adds_the_classes_of_its_own_images(
    digits: Any, known_boundaries: bool
) -> None:
    training, seen = tiny_training(distillation=SMALL), set()
    parts = split_online_stream(
        digits.train_stream[:1], 1, seed=0, access_task_boundaries=known_boundaries
    )
    for part in list(parts)[:4]:
        training.train(part, eval_streams=[])
        seen |= set(part.dataset.targets)
        assert training.model.classes == sorted(seen)


def test_a_part_of_an_online_stream_may_get_all_steps_of_an_experience(digits: Any) -> None:
    training = tiny_training(
        distillation=Distillation(pool_size=12, num_inference_steps=4, online_share=1.0)
    )
    for part in split_online_stream(digits.train_stream[:1], 150, seed=0):
        training.train(part, eval_streams=[])
    assert optimizer_steps(training) == 2 * 3
    assert training.pool is None  # all of its classes are current ones


def test_an_interrupted_part_of_an_online_stream_leaves_the_average_and_is_trained_again(
    digits: Any,
) -> None:
    parts = list(split_online_stream(digits.train_stream[:1], 45, seed=0))
    training = tiny_training(
        train_iterations=100, distillation=Distillation(online_share=0.1, pool_size=12)
    )
    training.train(parts[0], eval_streams=[])
    before = [parameter.clone() for parameter in training.model.parameters()]
    interruption = stop_after(0, KeyboardInterrupt)
    training.plugins.append(interruption)
    with pytest.raises(KeyboardInterrupt):
        training.train(parts[1], eval_streams=[])
    for parameter, expected in zip(training.model.parameters(), before, strict=True):
        assert torch.equal(parameter, expected)
    training.plugins.remove(interruption)
    training.train(parts[1], eval_streams=[])
    assert optimizer_steps(training) == 20


def test_accumulated_gradients_equal_those_of_one_pass(digits: Any) -> None:
    weights, curves, spent = [], [], []
    for parts, largest_batch in ((1, 16), (3, 6)):
        torch.manual_seed(0)
        training = tiny_training(
            gradient_accumulation_steps=parts,
            train_iterations=20,
            distillation=Distillation(pool_size=20, num_inference_steps=3),
        )
        seen = []
        training.model.network.conv_in.register_forward_hook(
            lambda module, inputs, _, seen=seen: seen.append(len(inputs[0]) * module.training)
        )
        for experience in digits.train_stream[:2]:
            training.train(experience, eval_streams=[])
        assert max(seen) == largest_batch
        weights.append(nn.utils.parameters_to_vector(training.model.parameters()))
        curves.append([list(point.errors.values()) for point in training.curves.points])
        spent.append((training.cost.training.forwards, training.cost.training.backwards))
    torch.testing.assert_close(*weights, atol=2e-4, rtol=1e-3)
    assert curves[1] == [pytest.approx(errors, rel=1e-4) for errors in curves[0]]
    assert spent[0] == spent[1] == (20 * 8 + 20 * 16,) * 2


def test_the_network_computes_in_the_generators_dtype_and_keeps_its_weights(digits: Any) -> None:
    pools = {}
    for dtype in (None, torch.bfloat16):
        torch.manual_seed(0)
        training = tiny_training(
            model=tiny_generator(classes=(0, 1), dtype=dtype),
            distillation=Distillation(pool_size=10, num_inference_steps=3),
        )
        dtypes = set()
        training.model.network.conv_in.register_forward_hook(
            lambda module, _, output, dtypes=dtypes: dtypes.add(output.dtype)
        )
        training.fill_pool(digits.train_stream[1])
        pools[dtype] = training.pool.lessons
        training.train(digits.train_stream[1], eval_streams=[])
        assert dtypes == {dtype or torch.float32}
        assert {parameter.dtype for parameter in training.model.parameters()} == {torch.float32}
    precise, coarse = pools[None], pools[torch.bfloat16]
    assert torch.equal(precise.t, coarse.t)
    assert not torch.equal(precise.target, coarse.target)
    torch.testing.assert_close(precise.target, coarse.target, atol=0.1, rtol=0.1)


def test_new_classes_leave_parameters_in_the_optimizers_groups(digits: Any) -> None:
    generator = tiny_generator()
    embedding = generator.network.class_embedding
    of_classes = {id(parameter) for parameter in embedding.parameters()}
    others = [each for each in generator.parameters() if id(each) not in of_classes]
    optimizer = torch.optim.SGD(
        [{"params": others}, {"params": list(embedding.parameters()), "lr": 0.0}], lr=0.1
    )
    training = MAGDTraining(
        model=generator,
        optimizer=optimizer,
        train_iterations=2,
        distillation=Distillation(pool_size=10, num_inference_steps=2),
    )
    for experience in digits.train_stream[:2]:
        training.train(experience, eval_streams=[])
        of_group = [{id(each) for each in group["params"]} for group in optimizer.param_groups]
        assert of_group[1] == {id(generator.network.class_embedding.weight)}
        assert of_group[0] | of_group[1] == {id(each) for each in generator.parameters()}


def test_images_of_another_shape_are_refused(digits: Any) -> None:
    training = tiny_training(model=tiny_generator((1, 16, 16)))
    with pytest.raises(ValueError, match=r"shape \(1, 16, 16\), the experience has \(1, 8, 8\)"):
        training.train(digits.train_stream[0], eval_streams=[])


def test_the_pool_of_an_interrupted_experience_is_not_used_in_the_next(digits: Any) -> None:
    training = tiny_training(distillation=SMALL)
    training.train(digits.train_stream[0], eval_streams=[])
    training.fill_pool(digits.train_stream[1])  # and then the solver was interrupted
    stale = training.pool
    assert stale is not None
    used: list[Any] = []
    training.plugins.append(at("before_training_epoch", lambda _: used.append(training.pool)))
    training.train(digits.train_stream[2], eval_streams=[])
    assert used[0] is not None
    assert used[0] is not stale


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train_iterations": 0}, ValueError, "train_iterations must be at least 1"),
        (
            {"gradient_accumulation_steps": 0},
            ValueError,
            "gradient_accumulation_steps must be at least 1",
        ),
        ({"train_epochs": 2}, TypeError, "give no train_epochs"),
        ({"train_mb_size": 1.5}, TypeError, "train_mb_size must be an integer"),
        ({"ema_decay": 1.0}, ValueError, r"ema_decay must be in \[0, 1\)"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be a number from 1e-06 to inf"),
        ({"seeds": 1}, TypeError, "unexpected keyword argument: seeds"),
    ],
)
def test_arguments_out_of_range_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tiny_training(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"online_share": 0.0}, r"online_share must be in \(0, 1\], got 0.0"),
        ({"replay_weight": -1.0}, r"replay_weight must be a number from 0 to 1e\+06, got -1.0"),
    ],
)
def test_weights_and_shares_of_lessons_out_of_range_are_refused(
    arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(**arguments)


def test_only_a_diffusion_generator_is_taught() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="must be a DiffusionGenerator, got Linear"):
        MAGDTraining(model=model, optimizer=optimizer)  # type: ignore[arg-type]
