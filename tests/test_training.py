"""MAGDTraining teaches a generator by itself, counts what it spends, and disturbs nobody."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.evaluation.metrics import loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from tiny import tiny_generator, tiny_training
from torch import nn

from avalanche_magd import MAGDTraining
from avalanche_magd.distillation import MAGD, Distillation

SMALL = Distillation(pool_size=12, num_inference_steps=4)


class CallCounter:
    """Counts the images that pass through a network, apart from the generator's own count."""

    def __init__(self, network: nn.Module) -> None:
        self.images = 0
        network.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.images += len(arguments[0])


def test_a_generator_is_taught_continually_without_a_plugin(digits: Any) -> None:
    training = tiny_training(distillation=SMALL)
    for experience in digits.train_stream[:2]:
        training.train(experience, eval_streams=[])
    seen = {label for exp in digits.train_stream[:2] for label in exp.classes_in_this_experience}
    assert training.model.classes == sorted(seen)
    assert training.pool is None
    assert training.model.generate(4).shape == (4, 1, 8, 8)


def test_the_first_experience_asks_no_teacher(digits: Any) -> None:
    training = tiny_training(distillation=SMALL)
    counter = CallCounter(training.model.network)
    training.train(digits.train_stream[0], eval_streams=[])
    assert training.cost.generation.forwards == training.cost.lessons == 0
    assert training.cost.training.forwards == training.cost.training.backwards == 3 * 8
    assert counter.images == 3 * 8


@pytest.mark.parametrize("snr_band", [None, (0.01, 30.0)])
def test_the_costs_are_what_a_wrapped_network_counts(
    digits: Any, snr_band: tuple[float, float] | None
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
    assert (cost.teacher_forwards_per_lesson == 1.0) == (snr_band is None)
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


def test_a_step_weighs_current_images_by_their_classes(digits: Any) -> None:
    training = tiny_training(distillation=SMALL, replay_weight=0.0, train_iterations=1)
    training.train(digits.train_stream[0], eval_streams=[])
    losses: list[float] = []
    original = training.criterion

    def spied() -> Any:
        loss = original()
        errors = (training.mb_output - training._lessons.target).square().flatten(1).mean(1)
        losses.extend([loss.item(), errors[:8].mean().item()])
        return loss

    training.criterion = spied
    training.train(digits.train_stream[1], eval_streams=[])
    loss, current = losses
    assert loss == pytest.approx(current * 2 / 4)  # two classes of the four seen, λ = 0


def test_the_average_becomes_the_generator(digits: Any) -> None:
    training = tiny_training(ema_decay=0.9)
    averages: list[torch.Tensor] = []
    original = training._after_training_exp

    def spied(**kwargs: Any) -> None:
        averages.extend(average.clone() for average in training.teacher.average)
        original(**kwargs)

    training._after_training_exp = spied
    training.train(digits.train_stream[0], eval_streams=[])
    for average, parameter in zip(averages, training.model.parameters(), strict=True):
        assert torch.equal(average, parameter)


def test_training_uses_evaluation_transforms() -> None:
    from avalanche_magd.benchmarks import split_digits

    def refuse(image: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the training transform was applied")

    benchmark = split_digits(5, seed=0, train_transform=refuse)
    tiny_training().train(benchmark.train_stream[0], eval_streams=[])


def test_a_seed_decides_everything_and_the_global_state_stays(digits: Any) -> None:
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


def test_lessons_teach_the_student_what_the_teacher_knew(digits: Any) -> None:
    # Fine-tuning on other classes drifts from the teacher; with lessons the drift is smaller.
    torch.manual_seed(0)
    taught = tiny_training(train_mb_size=32, train_iterations=60, model=tiny_generator())
    taught.train(digits.train_stream[0], eval_streams=[])
    x_t, t = torch.randn(64, 1, 8, 8), torch.randint(600, 1000, (64,))
    labels = torch.tensor(taught.model.classes).repeat(32)
    with taught.model.frozen() as teacher:
        answers = teacher(x_t, t, labels)
    drift = {}
    for replay_weight in (0.0, 1.0):
        student = tiny_training(
            model=copy.deepcopy(taught.model),
            train_mb_size=32,
            train_iterations=60,
            replay_weight=replay_weight,
            distillation=Distillation(pool_size=100, num_inference_steps=10),
        )
        student.train(digits.train_stream[1], eval_streams=[])
        with student.model.frozen() as model:
            drift[replay_weight] = (model(x_t, t, labels) - answers).square().mean().item()
    assert drift[1.0] < 0.7 * drift[0.0]


def test_avalanche_evaluates_the_denoising_loss_and_learns_nothing_from_it(digits: Any) -> None:
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


def test_an_evaluation_sees_other_noise_in_each_mini_batch(digits: Any) -> None:
    training = tiny_training()
    training.train(digits.train_stream[0], eval_streams=[])
    timesteps: list[int] = []
    original = training.criterion
    training.criterion = lambda: timesteps.extend(training._lessons.t.tolist()) or original()
    training.eval(digits.test_stream[0])  # by Avalanche's default one image at a time
    assert len(set(timesteps)) > 50


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training_and_good_weights_stay(
    digits: Any, tmp_path: Path, value: float
) -> None:
    def train(bad_iteration: int | None) -> MAGDTraining:
        torch.manual_seed(0)
        training = tiny_training(
            model=tiny_generator(), train_iterations=8, checkpoint_folder=tmp_path / "c"
        )
        training.checkpoint_every = 3
        original, done = training.criterion, 0

        def criterion() -> Any:
            nonlocal done
            done += 1
            return original() * (value if done - 1 == bad_iteration else 1)

        training.criterion = criterion
        if bad_iteration is not None:
            with pytest.raises(FloatingPointError, match=r"gradient is (nan|inf) at iteration 5"):
                training.train(digits.train_stream[0], eval_streams=[])
        else:
            training.train(digits.train_stream[0], eval_streams=[])
        return training

    stopped = train(5)
    assert all(bool(parameter.isfinite().all()) for parameter in stopped.model.parameters())
    assert stopped.model.generate(2).isfinite().all()
    assert stopped.teacher is None
    # Started again, it goes on from the last step saved, the third.
    assert train(None).cost.training.backwards == 5 * 8


def test_what_the_optimizer_averaged_goes_with_the_student(digits: Any) -> None:
    training = tiny_training()
    training.train(digits.train_stream[0], eval_streams=[])
    assert training.teacher is None
    assert not training.optimizer.state


def test_parts_of_an_online_stream_cost_the_same_and_go_on_with_one_student(digits: Any) -> None:
    training = tiny_training(
        distillation=Distillation(pool_size=40, num_inference_steps=2),
        train_iterations=100,
        online_share=0.1,
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
        assert training.teacher is not None
        assert training.teacher.steps == 10 * len(spent)
        assert next(iter(training.optimizer.state.values()))["step"] == 10 * len(spent)
    # Nothing to replay in the first experience; then four images of two calls, and lessons.
    assert spent == [(0, 80)] * 6 + [(8, 160)] * (len(spent) - 6)
    assert len(spent) == 20
    assert training.cost.pool_bytes == training.pool.nbytes
    # The average and the student take turns in the same memory: nothing is copied.
    assert len(storages) <= 2


@pytest.mark.parametrize("known_boundaries", [True, False])
def test_parts_of_an_online_stream_bring_their_own_classes(
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


def test_a_part_may_be_taught_as_long_as_a_whole_experience(digits: Any) -> None:
    training = tiny_training(distillation=SMALL, online_share=1.0)
    for part in split_online_stream(digits.train_stream[:1], 150, seed=0):
        training.train(part, eval_streams=[])
        assert training.teacher is not None
    assert training.teacher.steps == 2 * 3
    assert training.pool is None  # its classes are all of now


def test_an_interrupted_part_leaves_the_average_and_goes_on(digits: Any) -> None:
    parts = list(split_online_stream(digits.train_stream[:1], 45, seed=0))
    training = tiny_training(train_iterations=100, online_share=0.1)
    training.train(parts[0], eval_streams=[])
    original = training.criterion

    def interrupt() -> Any:
        raise KeyboardInterrupt

    training.criterion = interrupt
    kept = [parameter.clone() for parameter in training.model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        training.train(parts[1], eval_streams=[])
    for before, after in zip(kept, training.model.parameters(), strict=True):
        assert torch.equal(before, after)
    training.criterion = original
    training.train(parts[1], eval_streams=[])
    assert training.teacher.steps == 20


def test_gradients_accumulated_in_parts_are_those_of_the_whole(digits: Any) -> None:
    weights, curves, spent = [], [], []
    for parts, most in ((1, 16), (3, 6)):
        torch.manual_seed(0)
        training = tiny_training(
            gradient_accumulation_steps=parts,
            train_iterations=20,
            current_weight=0.9,
            distillation=Distillation(pool_size=20, num_inference_steps=3),
        )
        seen = []
        training.model.network.conv_in.register_forward_hook(
            lambda module, inputs, _, seen=seen: seen.append(len(inputs[0]) * module.training)
        )
        for experience in digits.train_stream[:2]:
            training.train(experience, eval_streams=[])
        assert max(seen) == most
        weights.append(nn.utils.parameters_to_vector(training.model.parameters()))
        curves.append([list(point.errors.values()) for point in training.curves.points])
        spent.append((training.cost.training.forwards, training.cost.training.backwards))
    torch.testing.assert_close(*weights, atol=2e-4, rtol=1e-3)
    assert curves[1] == [pytest.approx(errors, rel=1e-4) for errors in curves[0]]
    assert spent[0] == spent[1] == (20 * 8 + 20 * 16,) * 2


def test_a_network_may_compute_in_half_precision(digits: Any) -> None:
    pools = {}
    for dtype in (None, torch.bfloat16):
        torch.manual_seed(0)
        training = tiny_training(
            model=tiny_generator(classes=(0, 1), dtype=dtype),
            distillation=Distillation(pool_size=10, num_inference_steps=3),
        )
        kinds = set()
        training.model.network.conv_in.register_forward_hook(
            lambda module, _, output, kinds=kinds: kinds.add(output.dtype)
        )
        training.fill_pool(digits.train_stream[1])
        pools[dtype] = training.pool.lessons
        training.train(digits.train_stream[1], eval_streams=[])
        assert kinds == {dtype or torch.float32}
        assert {parameter.dtype for parameter in training.model.parameters()} == {torch.float32}
    precise, coarse = pools[None], pools[torch.bfloat16]
    assert torch.equal(precise.t, coarse.t)
    assert not torch.equal(precise.target, coarse.target)
    torch.testing.assert_close(precise.target, coarse.target, atol=0.1, rtol=0.1)


def test_the_optimizers_groups_keep_their_parameters(digits: Any) -> None:
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
        progress=False,
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


def test_a_pool_of_an_interrupted_experience_is_not_used_for_the_next(digits: Any) -> None:
    training = tiny_training(distillation=SMALL)
    training.train(digits.train_stream[0], eval_streams=[])
    training.fill_pool(digits.train_stream[1])  # and then the solver was interrupted
    stale = training.pool
    assert stale is not None
    used: list[Any] = []
    training.training_epoch = lambda **_: used.append(training.pool)
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
        ({"online_share": 0.0}, ValueError, r"online_share must be in \(0, 1\]"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
        ({"replay_weight": -1.0}, ValueError, "replay_weight must be a number from 0 to 1e\\+06"),
    ],
)
def test_absurd_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tiny_training(**arguments)


def test_only_a_diffusion_generator_is_taught() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="must be a DiffusionGenerator, got Linear"):
        MAGDTraining(model=model, optimizer=optimizer)  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "expected"), [(None, 0.5), (0.2, 0.2)])
def test_current_images_weigh_their_classes_share_or_what_is_given(
    digits: Any, given: float | None, expected: float
) -> None:
    training = tiny_training(distillation=SMALL, current_weight=given)
    for experience in digits.train_stream[:2]:
        training.train(experience, eval_streams=[])
    # The last loss, put together again from the errors of its rows.
    training.train(digits.train_stream[1], eval_streams=[])
    assert training._w_new == pytest.approx(expected if given else 2 / 6)
    with pytest.raises(ValueError, match=r"current_weight must be in \(0, 1\], got 1.5"):
        tiny_training(current_weight=1.5)
