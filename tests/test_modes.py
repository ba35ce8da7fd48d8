"""What MAGD is compared with: each mode's inputs, answers and price."""

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_generator, tiny_training
from torch import Tensor

from avalanche_magd import DiffusionGenerator
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.classes import NULL_LABEL
from avalanche_magd.distillation import MAGD, Distillation, LessonBatch, Pool, baselines
from avalanche_magd.distillation.cggd import ClassifierFreeGuidance, ClassifierGuidance
from avalanche_magd.distillation.nigd import trajectory_lessons
from avalanche_magd.distillation.past import Past
from avalanche_magd.distillation.sggd import safe_band
from avalanche_magd.samplers import make_sampler
from avalanche_magd.sampling import reverse_runs, sample
from avalanche_magd.schedule import NoiseSchedule


def current_images(count: int, rng: torch.Generator | None = None) -> Tensor:
    """Images that no generator makes: bright below, dark above."""
    images = torch.full((count, 1, 8, 8), -1.0)
    images[:, :, 4:] = 1.0
    return images


def past_of(teacher: DiffusionGenerator, rng: torch.Generator, **kwargs: Any) -> Past:
    return Past(teacher, teacher.classes, rng, current_images, **kwargs)


def is_answered(lessons: LessonBatch, teacher: DiffusionGenerator) -> bool:
    with torch.no_grad():
        answers = teacher.eval()(lessons.x_t.float(), lessons.t, lessons.labels)
    return torch.allclose(lessons.target.float(), answers, atol=0.02)


def noise_around(images: Tensor, lessons: LessonBatch, schedule: NoiseSchedule) -> Tensor:
    """What is left of the lessons' inputs after the images are taken away."""
    signal, sigma = schedule.scales(lessons.t, images)
    return (lessons.x_t.float() - signal * images) / sigma


DISTILLING = {
    "generative": baselines.generative_distillation,
    "partial": baselines.partial_generation,
    "gaussian": baselines.gaussian_distillation,
    "lwf": baselines.lwf_distillation,
}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", DISTILLING)
def test_distilled_answers_are_the_teachers(name: str, fresh: bool, rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(2, 5))
    distillation = Distillation(DISTILLING[name], pool_size=20, num_inference_steps=4, fresh=fresh)
    past = past_of(teacher, rng)
    if fresh:
        lessons = distillation.fresh_lessons(40, past)
    else:
        pool = distillation.empty_pool(teacher)
        distillation.fill(pool, 20, past)
        lessons = pool.draw_lessons(40, rng)
    assert is_answered(lessons, teacher)
    assert lessons.labels.bincount()[[2, 5]].tolist() == pytest.approx([20, 20], abs=4)


@pytest.mark.parametrize("mode", [*DISTILLING.values(), baselines.dgr])
def test_fresh_lessons_spread_evenly_over_time(mode: Any, rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(0,))
    lessons = Distillation(mode, num_inference_steps=10, fresh=True).fresh_lessons(
        2000, past_of(teacher, rng)
    )
    shares = torch.histc(lessons.t.float(), bins=5, min=0, max=1000) / 2000
    assert 0.15 < shares.min() <= shares.max() < 0.25


def test_dgr_teaches_generated_images_as_if_they_were_real(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(0, 1), prediction_type="epsilon")
    distillation = Distillation(baselines.dgr, pool_size=30, num_inference_steps=3)
    pool = distillation.empty_pool(teacher)
    distillation.fill(pool, 30, past_of(teacher, rng))
    lessons = pool.lessons.cast(torch.float32)
    images = teacher.pixel_range.to_model(pool.images).repeat_interleave(3, 0)
    noise = noise_around(images, lessons, teacher.schedule)
    clear = lessons.t > 100
    torch.testing.assert_close(noise[clear], lessons.target[clear], atol=0.02, rtol=0)
    assert teacher.forwards == 30 * 3
    assert not is_answered(lessons, teacher)


def test_lwf_looks_at_current_images_under_old_names(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(3, 4))
    distillation = Distillation(baselines.lwf_distillation, fresh=True)
    lessons = distillation.fresh_lessons(200, past_of(teacher, rng))
    noise = noise_around(current_images(200), lessons, teacher.schedule)
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    assert teacher.forwards == 200


def test_gaussian_distillation_sees_pure_noise_at_every_t(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(3, 4))
    distillation = Distillation(baselines.gaussian_distillation, fresh=True)
    lessons = distillation.fresh_lessons(200, past_of(teacher, rng))
    for part in (lessons.t < 300, lessons.t > 700):
        assert lessons.x_t[part].std().item() == pytest.approx(1, abs=0.05)
        assert lessons.x_t[part].mean().item() == pytest.approx(0, abs=0.05)
    assert teacher.forwards == 200


def test_a_partial_run_costs_no_step_beyond_its_state(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(0,)).eval()
    schedule, labels = teacher.schedule, torch.zeros(400, dtype=torch.long)
    rng.manual_seed(5)
    (whole,) = reverse_runs(teacher, schedule, (1, 8, 8), labels, 6, rng, batch_size=400)
    before = teacher.forwards
    rng.manual_seed(5)
    position = torch.linspace(0, 0.999, 400)
    (part,) = reverse_runs(
        teacher, schedule, (1, 8, 8), labels, 6, rng, position=position, batch_size=400
    )
    steps = (part.outputs.abs().flatten(2).sum(2) > 0).sum(0)
    assert steps[0] == 1
    assert steps[-1] == 6
    assert (steps[1:] >= steps[:-1] - 5).all()
    assert teacher.forwards - before == steps.sum()
    for row in range(0, 400, 37):
        last = int(steps[row]) - 1
        torch.testing.assert_close(part.states[last, row], whole.states[last, row])
        torch.testing.assert_close(
            part.outputs[last, row], whole.outputs[last, row], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("num_inference_steps", [2, 10, 20])
@pytest.mark.parametrize(
    ("mode", "settings", "price"),
    [
        (MAGD(), {}, lambda k: 1),
        (MAGD(0.5), {}, lambda k: 1.5),
        (MAGD(), {"guidance_scale": 2.0}, lambda k: 2.1),
        (baselines.dgr, {"fresh": True}, lambda k: k),
        (baselines.generative_distillation, {"fresh": True}, lambda k: k + 1),
        (baselines.partial_generation, {"fresh": True}, lambda k: (k + 1) / 2),
        (baselines.dgr, {}, lambda k: 1),
        (baselines.generative_distillation, {}, lambda k: 2),
        (baselines.gaussian_distillation, {"fresh": True}, lambda k: 1),
        (baselines.lwf_distillation, {"fresh": True}, lambda k: 1),
    ],
)
def test_a_lesson_costs_what_the_table_says(
    mode: Any, settings: dict[str, Any], price: Any, num_inference_steps: int, digits: Any
) -> None:
    settings = {"pool_size": 40, "num_inference_steps": num_inference_steps, **settings}
    training = tiny_training(distillation=Distillation(mode, **settings), train_iterations=20)
    calls: list[int] = []
    training.model.network.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    training.train(digits.train_stream[0], eval_streams=[])
    learnt, before, start = sum(calls), training.cost.seconds, time.perf_counter()
    training.train(digits.train_stream[1], eval_streams=[])
    cost = training.cost
    assert cost.seconds - before < time.perf_counter() - start  # no second counts twice
    exact = not (isinstance(mode, MAGD) and mode.trajectory_share == 0.5) and price(1) != 2.1
    partial = mode is baselines.partial_generation
    assert cost.teacher_forwards_per_lesson == pytest.approx(
        price(num_inference_steps), rel=0.35 if partial else 1e-12 if exact else 0.15
    )
    assert cost.lessons == (160 if "fresh" in settings else 40 * num_inference_steps)
    # What the network itself has counted; a fresh teacher is a copy, and so is its hook.
    assert sum(calls) - learnt == cost.forwards - 20 * 8


def test_ddgr_asks_the_solver_once_forward_and_once_backward_per_steered_step(
    rng: torch.Generator,
) -> None:
    teacher = tiny_generator(classes=(0, 1))
    asked: list[int] = []

    def classifier(images: Tensor, classes: list[int]) -> Tensor:
        asked.append(len(images))
        return images.flatten(1)[:, : len(classes)]

    distillation = Distillation(
        baselines.dgr, num_inference_steps=7, fresh=True, classifier_scale=1.0
    )
    past = past_of(teacher, rng, classifier=classifier)
    distillation.fresh_lessons(10, past)
    assert teacher.forwards == 70
    assert sum(asked) == 70


def test_fine_tuning_has_no_lessons(digits: Any) -> None:
    training = tiny_training(distillation=Distillation(None, pool_size=8))
    training.train(digits.train_stream[0], eval_streams=[])
    training.fill_pool(digits.train_stream[1])
    training.train(digits.train_stream[1], eval_streams=[])
    assert training.cost.lessons == training.cost.generation.forwards == 0
    assert training.cost.training.forwards == 2 * 3 * 8
    assert training.cost.replay.forwards == 8 * 10  # images for a solver, all the same


@pytest.mark.parametrize("changes", [{"mode": None}, {"fresh": True}])
def test_images_that_nobody_asked_for_are_not_generated(
    digits: Any, changes: dict[str, Any]
) -> None:
    training = tiny_training(distillation=Distillation(pool_size=8, **changes))
    for experience in digits.train_stream[:2]:
        training.train(experience, eval_streams=[])
    assert training.cost.replay.forwards == training.cost.pool_bytes == 0
    assert (training.cost.lessons > 0) == ("fresh" in changes)


def test_fresh_lessons_come_from_a_snapshot_or_the_average_of_now(digits: Any) -> None:
    outputs = []
    for online in (False, True):
        training = tiny_training(
            distillation=Distillation(pool_size=8, num_inference_steps=2, fresh=True),
            online_teacher=online,
            train_iterations=6,
        )
        training.train(digits.train_stream[0], eval_streams=[])
        taught = [parameter.detach().clone() for parameter in training.model.parameters()]
        seen: list[bool] = []
        original = training.criterion

        def watch(
            training: Any = training,
            taught: Any = taught,
            seen: Any = seen,
            original: Any = original,
        ) -> Any:
            teacher = list(training.rehearsal.past.teacher.parameters())
            same = all(
                torch.equal(now[: len(then)], then)
                for now, then in zip(teacher, taught, strict=True)
            )
            seen.append(same)
            return original()

        training.criterion = watch
        training.train(digits.train_stream[1], eval_streams=[])
        outputs.append(seen)
    assert all(outputs[0])
    assert outputs[1] == [True] + [False] * 5


def test_an_interruption_leaves_fresh_lessons_their_teacher(digits: Any) -> None:
    training = tiny_training(distillation=Distillation(pool_size=8, fresh=True))
    training.train(digits.train_stream[0], eval_streams=[])
    taught = [parameter.detach().clone() for parameter in training.model.network.parameters()]
    original, steps = training.optimizer_step, []

    def interrupted() -> None:
        original()
        steps.append(training.rehearsal.past.teacher)
        if len(steps) == 2:
            raise KeyboardInterrupt

    training.optimizer_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        training.train(digits.train_stream[1], eval_streams=[])
    training.train(digits.train_stream[1], eval_streams=[])
    for before, after in zip(taught, steps[-1].network.parameters(), strict=True):
        assert torch.equal(before, after[: len(before)])


def test_fresh_lessons_where_a_part_of_a_stream_leaves_nothing_to_ask(digits: Any) -> None:
    training = tiny_training(distillation=Distillation(pool_size=40, fresh=True))

    def lessons(stream: Any) -> int:
        """Of its first part."""
        before = training.cost.lessons
        part = next(iter(split_online_stream(stream, 200, seed=0)))
        training.fill_pool(part)
        training.train(part, eval_streams=[])
        return training.cost.lessons - before

    assert lessons(digits.train_stream[:1]) == 0
    assert lessons(digits.train_stream[1:2]) == 8
    assert training.pool is not None
    assert lessons(split_digits(1, seed=0).train_stream) == 0  # all classes are of now


def test_an_online_teacher_needs_fresh_lessons() -> None:
    with pytest.raises(ValueError, match="online_teacher=True needs Distillation\\(fresh=True\\)"):
        tiny_training(online_teacher=True)


def test_without_classes_the_solver_says_what_was_generated(
    rng: torch.Generator,
) -> None:
    teacher = tiny_generator(classes=(3, 8))
    told: list[Tensor] = []
    teacher.register_forward_pre_hook(lambda _, args: told.append(args[2]))

    def classifier(images: Tensor, classes: list[int]) -> Tensor:
        bright = images.flatten(1).mean(1) > images.mean()
        return torch.stack([~bright, bright], 1).float()

    distillation = Distillation(pool_size=20, num_inference_steps=3, conditional=False)
    pool = distillation.empty_pool(teacher)
    distillation.fill(pool, 20, past_of(teacher, rng, classifier=classifier))
    assert all((labels == NULL_LABEL).all() for labels in told)
    assert teacher.forwards == 20 * 3
    assert (pool.lessons.labels == NULL_LABEL).all()
    bright = pool.images.flatten(1).mean(1) > pool.images.mean()
    assert torch.equal(pool.labels, torch.where(bright, 8, 3))
    with pytest.raises(ValueError, match="conditional=False leaves none to steer"):
        Distillation(conditional=False, guidance_scale=2.0)


PREDICTIONS = ["epsilon", "v_prediction", "sample"]


class SameTeacher:
    """One function of x_t, told in any of the three predictions."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        gain = 0.3 + 0.2 * labels.view(-1, 1, 1, 1)
        return self.schedule.prediction(torch.tanh(gain * x_t), x_t, t)


@settings(max_examples=25, deadline=None)
@given(
    beta_schedule=st.sampled_from(["linear", "squaredcos_cap_v2"]),
    sampler=st.sampled_from(["ddim", "dpmpp_2m", "unipc"]),
    guidance_scale=st.sampled_from([1.0, 2.5]),
    classifier_scale=st.sampled_from([0.0, 1.5]),
    seed=st.integers(0, 1000),
)
def test_predictions_agree_in_runs_lessons_and_guidance(
    beta_schedule: str, sampler: str, guidance_scale: float, classifier_scale: float, seed: int
) -> None:
    def classifier(images: Tensor, classes: list[int]) -> Tensor:
        return images.flatten(1)[:, : len(classes)]

    runs = []
    for prediction_type in PREDICTIONS:
        rng = torch.Generator().manual_seed(seed)
        schedule = NoiseSchedule(prediction_type, beta_schedule)
        teacher = SameTeacher(schedule)
        free = ClassifierFreeGuidance(teacher, guidance_scale)
        steered = ClassifierGuidance(classifier, [0, 1], schedule, classifier_scale)

        def guidance(
            p: Tensor, x: Tensor, t: Tensor, y: Tensor, free: Any = free, steered: Any = steered
        ) -> Tensor:
            return steered(free(p, x, t, y), x, t, y)  # type: ignore[no-any-return]

        noise = torch.randn(3, 1, 4, 4, generator=rng).double()
        # Below T: at √ᾱ = 5e-5 rounding alone would differ.
        grid = torch.randint(0, 900, (5, 3), generator=rng).unique(dim=0)
        grid = grid.sort(0, descending=True).values + torch.arange(len(grid)).flip(0)[:, None]
        steps = make_sampler(sampler, schedule, 0.0, rng)
        labels = torch.tensor([0, 1, 1])
        run = sample(teacher, schedule, noise, labels, grid, steps, guidance=guidance, clip=True)
        lessons, _ = trajectory_lessons(run, len(grid), rng)
        runs.append(
            (run.states, run.images, schedule.denoised(lessons.target, lessons.x_t, lessons.t))
        )
    for other in runs[1:]:
        for ours, theirs in zip(runs[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-6)


def test_a_coarse_run_of_a_gaussian_teacher_loses_the_known_variance(rng: torch.Generator) -> None:
    schedule = NoiseSchedule("epsilon", "linear")

    def teacher(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        signal, sigma = schedule.scales(t, x_t)
        x_0 = signal * 0.25 / (signal**2 * 0.25 + sigma**2) * x_t
        return schedule.prediction(x_0, x_t, t)

    noise = torch.randn(20_000, 1, 1, 1, generator=rng).double()
    grid = torch.arange(999, 0, -100)[:, None].expand(10, 20_000)
    steps = make_sampler("ddim", schedule, 0.0, rng)
    labels = torch.zeros(20_000, dtype=torch.long)
    run = sample(teacher, schedule, noise, labels, grid, steps, clip=False)
    signal, sigma = schedule.scales(grid[-1, :1], noise[:1])
    marginal = (signal**2 * 0.25 + sigma**2).item()
    assert (run.states[-1].var() / marginal).item() == pytest.approx(0.80, abs=0.02)
    assert (run.images.var() / 0.25).item() == pytest.approx(0.55, abs=0.02)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_classifier_guidance_moves_the_clean_image_up_the_gradient(
    prediction_type: str, rng: torch.Generator
) -> None:
    schedule = NoiseSchedule(prediction_type)

    def classifier(images: Tensor, classes: list[int]) -> Tensor:
        assert classes == [4, 9]
        brightness = images.mean((1, 2, 3))
        return torch.stack([-brightness, brightness], 1)

    x_t = torch.randn(4, 1, 4, 4, generator=rng).double()
    x_0 = torch.rand(4, 1, 4, 4, generator=rng).double() - 0.5
    t = torch.tensor([300, 300, 500, 999])
    labels = torch.tensor([4, 9, 9, 9])
    prediction = schedule.prediction(x_0, x_t, t)
    neutral = ClassifierGuidance(classifier, [4, 9], schedule, 0.0)
    assert torch.equal(neutral(prediction, x_t, t, labels), prediction)
    guided = ClassifierGuidance(classifier, [4, 9], schedule, 2.0)(prediction, x_t, t, labels)
    moved = schedule.denoised(guided, x_t, t) - x_0
    # ∇ log p(y) = ±2 (1 − p(y)) / 16 in each pixel, times s σ².
    sign = torch.tensor([-1.0, 1.0, 1.0, 1.0])
    chance = torch.sigmoid(2 * sign * x_0.mean((1, 2, 3)))
    expected = 2.0 / schedule.snr(t) * sign * 2 * (1 - chance) / 16
    expected[3] = 0.0  # σ > 5: x̂_0 says too little
    torch.testing.assert_close(
        moved, expected.view(-1, 1, 1, 1).expand_as(moved), atol=1e-6, rtol=1e-6
    )


def test_the_safe_band_follows_the_largest_variance(rng: torch.Generator) -> None:
    direction = torch.zeros(1, 8, 8)
    direction[0, :, 0] = 1 / 8**0.5
    scale = 3 * torch.randn(4000, 1, 1, 1, generator=rng)
    images = 0.5 + scale * direction + 0.1 * torch.randn(4000, 1, 8, 8, generator=rng)
    low, high = safe_band(images)
    assert low == pytest.approx(0.25 / 9, rel=0.1)
    assert high == float("inf")
    teacher = tiny_generator(classes=(0,))
    pool = Pool(30, 4, (1, 8, 8), teacher.device)
    distillation = Distillation(MAGD(snr_band="safe"), pool_size=30, num_inference_steps=4)
    asked: list[int] = []

    def counted(count: int, rng: torch.Generator) -> Tensor:
        asked.append(count)
        return current_images(count)

    past = replace(past_of(teacher, rng), current_images=counted)
    distillation.fill(pool, 30, past)
    assert teacher.forwards == 120 + sum(asked)
    assert is_answered(pool.lessons, teacher)
