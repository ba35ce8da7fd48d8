"""What MAGD is compared with: each mode's inputs, targets and price."""

import time
from typing import Any

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from tiny import filled_pool, tiny_generator, tiny_training
from torch import Tensor

from avalanche_magd import DiffusionGenerator
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.diffusion.label_map import NULL_LABEL
from avalanche_magd.diffusion.sampling import Trajectory, reverse_runs
from avalanche_magd.diffusion.schedule import NoiseSchedule
from avalanche_magd.distillation import CGGD, MAGD, Distillation, LessonBatch, Teacher, baselines
from avalanche_magd.distillation.generation import Generation
from avalanche_magd.distillation.lessons import InputSource

DISTILLING = [
    baselines.generative_distillation,
    baselines.partial_generation,
    baselines.gaussian_distillation,
    baselines.lwf_distillation,
]


def current_images(count: int, rng: torch.Generator | None = None) -> Tensor:
    """Images that no generator makes: bright below, dark above."""
    images = torch.full((count, 1, 8, 8), -1.0)
    images[:, :, 4:] = 1.0
    return images


def lessons_on_the_fly(
    mode: Any, count: int, generator: DiffusionGenerator, rng: torch.Generator, **kwargs: Any
) -> LessonBatch:
    """That many lessons, each from an image of its own."""
    distillation = Distillation(mode, on_the_fly=True, **kwargs)
    teacher = distillation.teacher(
        generator, generator.classes, rng, current_images=current_images
    )
    return Generation().lessons(count, distillation, teacher, None, rng)


def predictions(generator: DiffusionGenerator, lessons: LessonBatch) -> Tensor:
    with torch.no_grad():
        return generator.eval()(lessons.x_t, lessons.t, lessons.labels)


def noise_around(images: Tensor, lessons: LessonBatch, schedule: NoiseSchedule) -> Tensor:
    """What is left of the lessons' inputs after the images are taken away."""
    signal, sigma = schedule.scales(lessons.t, images)
    return (lessons.x_t - signal * images) / sigma


@pytest.mark.parametrize("mode", DISTILLING)
def test_distilled_targets_made_on_the_fly_are_the_teachers(
    mode: Any, rng: torch.Generator
) -> None:
    generator = tiny_generator(classes=(2, 5))
    lessons = lessons_on_the_fly(mode, 40, generator, rng, num_inference_steps=4)
    torch.testing.assert_close(
        lessons.target, predictions(generator, lessons), atol=1e-4, rtol=1e-4
    )
    assert lessons.labels.bincount()[[2, 5]].tolist() == [20, 20]


@pytest.mark.parametrize("mode", DISTILLING)
def test_distilled_targets_of_a_pool_are_the_teachers(mode: Any, rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(2, 5))
    distillation = Distillation(mode, pool_size=20, num_inference_steps=4)
    pool = filled_pool(distillation, generator, rng, current_images=current_images)
    lessons = pool.draw_lessons(40, rng)
    torch.testing.assert_close(lessons.target, predictions(generator, lessons), atol=0.02, rtol=0)
    assert lessons.labels.bincount()[[2, 5]].tolist() == pytest.approx([20, 20], abs=4)


@pytest.mark.parametrize("mode", [*DISTILLING, baselines.dgr])
def test_lessons_made_on_the_fly_spread_evenly_over_time(mode: Any, rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0,))
    lessons = lessons_on_the_fly(mode, 2000, generator, rng)
    shares = torch.histc(lessons.t.float(), bins=5, min=0, max=1000) / 2000
    torch.testing.assert_close(shares, torch.full((5,), 0.2), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("mode", "source"),
    [
        (MAGD(), InputSource.STATE),
        (baselines.dgr, InputSource.RENOISED),
        (baselines.generative_distillation, InputSource.RENOISED),
        (baselines.partial_generation, InputSource.STATE),
        (baselines.gaussian_distillation, InputSource.NOISE),
        (baselines.lwf_distillation, InputSource.CURRENT),
    ],
)
def test_a_mode_gives_named_columns_with_the_source_and_a_weight_of_each_lesson(
    mode: Any, source: InputSource, rng: torch.Generator
) -> None:
    generator = tiny_generator(classes=(0, 1))
    teacher = Teacher(generator, [0, 1], rng, num_inference_steps=3, current_images=current_images)
    with generator.frozen():
        lessons = mode(teacher, torch.tensor([1, 0]), 2)
    assert isinstance(lessons, LessonBatch)
    assert [len(column) for column in lessons] == [4] * 6
    assert lessons.labels.tolist() == [1, 1, 0, 0]
    assert (lessons.source == source).all()
    assert (lessons.weight > 0).all()


def test_dgr_teaches_generated_images_as_if_they_were_real(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0, 1), prediction_type="epsilon")
    distillation = Distillation(baselines.dgr, pool_size=30, num_inference_steps=3)
    pool = filled_pool(distillation, generator, rng)
    assert generator.forwards == 30 * 3
    lessons = pool.lessons.cast(torch.float32)
    images = generator.pixel_range.normalize(pool.images).repeat_interleave(3, 0)
    noise = noise_around(images, lessons, generator.schedule)
    clear = lessons.t > 100
    torch.testing.assert_close(noise[clear], lessons.target[clear], atol=0.02, rtol=0)
    assert (lessons.target - predictions(generator, lessons)).abs().mean() > 0.1


def test_lwf_teaches_current_images_under_the_labels_of_old_classes(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(3, 4))
    lessons = lessons_on_the_fly(baselines.lwf_distillation, 200, generator, rng)
    assert generator.forwards == 200
    noise = noise_around(current_images(200), lessons, generator.schedule)
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    assert lessons.labels.bincount().tolist() == [0, 0, 0, 100, 100]


def test_gaussian_distillation_teaches_pure_noise_at_every_t(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(3, 4))
    lessons = lessons_on_the_fly(baselines.gaussian_distillation, 200, generator, rng)
    assert generator.forwards == 200
    for part in (lessons.t < 300, lessons.t > 700):
        assert lessons.x_t[part].std().item() == pytest.approx(1, abs=0.05)
        assert lessons.x_t[part].mean().item() == pytest.approx(0, abs=0.05)


def partial_lessons(
    guidance: CGGD, count: int, generator: DiffusionGenerator, rng: torch.Generator
) -> tuple[LessonBatch, Trajectory]:
    """Lessons of runs that stop, and the same runs to their end; the first are made first."""
    teacher = Teacher(generator, [0], rng, num_inference_steps=6, guidance=guidance)
    labels, state = torch.zeros(count, dtype=torch.long), rng.get_state()
    with generator.frozen():
        lessons = baselines.partial_generation(teacher, labels, 1)
        rng.set_state(state)
        torch.rand(count, 1, generator=rng)  # where the runs stop
        (whole,) = reverse_runs(generator, labels, 6, rng, guide=teacher.guide, batch_size=count)
    return lessons, whole


def test_a_partial_run_costs_no_step_beyond_its_state(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0,))
    sizes: list[int] = []
    generator.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    lessons, whole = partial_lessons(CGGD(), 300, generator, rng)
    step = (whole.timesteps == lessons.t).int().argmax(0)
    assert set(step.tolist()) == set(range(6))
    # Each state is evaluated for those runs alone that have not stopped before.
    assert sizes == [int((step >= node).sum()) for node in range(6)] + [300] * 6
    rows = torch.arange(300)
    torch.testing.assert_close(lessons.x_t, whole.states[step, rows], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(lessons.target, whole.outputs[step, rows], atol=1e-4, rtol=1e-3)


def test_a_guided_partial_run_stops_both_forwards_of_a_state(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0,))
    lessons, whole = partial_lessons(CGGD(guidance_scale=3.0), 300, generator, rng)
    step = (whole.timesteps == lessons.t).int().argmax(0)
    without_class = int((lessons.labels == NULL_LABEL).sum())
    assert 10 < without_class < 60
    stopped = generator.forwards - 2 * 300 * 6
    assert stopped == 2 * int((step + 1).sum()) + without_class
    torch.testing.assert_close(
        lessons.x_t, whole.states[step, torch.arange(300)], atol=1e-3, rtol=1e-3
    )
    torch.testing.assert_close(
        lessons.target, predictions(generator, lessons), atol=1e-4, rtol=1e-4
    )


def test_a_stopped_run_of_a_pool_is_the_run_that_was_made(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0,))
    distillation = Distillation(baselines.partial_generation, pool_size=20, num_inference_steps=4)
    filled_pool(distillation, generator, rng)
    assert generator.forwards == 20 * 4


@pytest.mark.parametrize("num_inference_steps", [2, 10, 20])
@pytest.mark.parametrize(
    ("mode", "guidance", "price", "tolerance"),
    [
        (MAGD(), CGGD(), 1.0, 1e-12),
        (MAGD(0.5), CGGD(), 1.5, 0.15),
        (MAGD(), CGGD(guidance_scale=2.0), 2.1, 0.15),
        (baselines.dgr, CGGD(), 1.0, 1e-12),
        (baselines.generative_distillation, CGGD(), 2.0, 1e-12),
        (baselines.partial_generation, CGGD(), 1.0, 1e-12),
    ],
)
def test_a_lesson_of_a_pool_costs_what_the_table_says(
    mode: Any,
    guidance: CGGD,
    price: float,
    tolerance: float,
    num_inference_steps: int,
    rng: torch.Generator,
) -> None:
    generator, generation = tiny_generator(classes=(0, 1)), Generation()
    distillation = Distillation(
        mode, guidance, pool_size=40, num_inference_steps=num_inference_steps
    )
    teacher = distillation.teacher(generator, [0, 1], rng)
    generation.fill(distillation.empty_pool(generator), 40, teacher, mode)
    assert generation.cost.lessons == 40 * num_inference_steps
    assert generation.cost.teacher_forwards_per_lesson == pytest.approx(price, rel=tolerance)


@pytest.mark.parametrize("num_inference_steps", [2, 10, 20])
@pytest.mark.parametrize(
    ("mode", "per_step", "more", "tolerance"),
    [
        (baselines.dgr, 1.0, 0.0, 1e-12),
        (MAGD(), 1.0, 0.0, 1e-12),
        (baselines.generative_distillation, 1.0, 1.0, 1e-12),
        (baselines.partial_generation, 0.5, 0.5, 0.35),
        (baselines.gaussian_distillation, 0.0, 1.0, 1e-12),
        (baselines.lwf_distillation, 0.0, 1.0, 1e-12),
    ],
)
def test_a_lesson_made_on_the_fly_costs_what_the_table_says(
    mode: Any,
    per_step: float,
    more: float,
    tolerance: float,
    num_inference_steps: int,
    rng: torch.Generator,
) -> None:
    generator, steps = tiny_generator(classes=(0, 1)), num_inference_steps
    lessons = lessons_on_the_fly(mode, 160, generator, rng, num_inference_steps=steps)
    assert len(lessons.t) == 160
    assert generator.forwards / 160 == pytest.approx(per_step * steps + more, rel=tolerance)


@pytest.mark.parametrize(
    ("distillation", "lessons"),
    [
        (Distillation(pool_size=40, num_inference_steps=5), 40 * 5),
        (Distillation(baselines.dgr, num_inference_steps=5, on_the_fly=True), 20 * 8),
    ],
    ids=["pool", "on the fly"],
)
def test_the_costs_of_a_training_are_those_of_its_network_and_of_the_clock(
    distillation: Distillation, lessons: int, digits: Any
) -> None:
    training = tiny_training(distillation=distillation, train_iterations=20)
    calls: list[int] = []
    training.model.network.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    training.train(digits.train_stream[0], eval_streams=[])
    before, start = training.cost.seconds, time.perf_counter()
    training.train(digits.train_stream[1], eval_streams=[])
    assert training.cost.seconds - before < time.perf_counter() - start  # no second counts twice
    assert training.cost.lessons == lessons
    # What the network itself has counted; a snapshot of it has the same hook.
    assert sum(calls) == training.cost.forwards
    assert training.cost.training.forwards == 20 * 8 + 20 * 16


def test_ddgr_calls_the_solver_forward_and_backward_once_per_steered_step(
    rng: torch.Generator,
) -> None:
    generator = tiny_generator(classes=(0, 1))
    forwards: list[int] = []
    backwards: list[int] = []

    def classifier(images: Tensor, classes: list[int]) -> Tensor:
        forwards.append(len(images))
        images.register_hook(lambda gradient: backwards.append(len(gradient)))
        return images.flatten(1)[:, : len(classes)]

    distillation = Distillation(
        baselines.dgr, CGGD(classifier_scale=1.0), num_inference_steps=7, on_the_fly=True
    )
    teacher = distillation.teacher(generator, [0, 1], rng, classifier=classifier)
    Generation().lessons(10, distillation, teacher, None, rng)
    assert generator.forwards == 70
    assert forwards == backwards == [10] * 7


def test_fine_tuning_has_no_lessons(digits: Any) -> None:
    training = tiny_training(distillation=Distillation(None, pool_size=8))
    training.train(digits.train_stream[0], eval_streams=[])
    training.fill_pool(digits.train_stream[1])
    training.train(digits.train_stream[1], eval_streams=[])
    assert training.cost.lessons == training.cost.generation.forwards == 0
    assert training.cost.training.forwards == 2 * 3 * 8
    assert training.cost.replay.forwards == 8 * 10  # images for a solver, all the same


@pytest.mark.parametrize(
    ("distillation", "lessons"),
    [
        (Distillation(None, pool_size=8), 0),
        (Distillation(pool_size=8, on_the_fly=True), 3 * 8),
    ],
)
def test_images_that_nobody_needs_are_not_generated(
    distillation: Distillation, lessons: int, digits: Any
) -> None:
    training = tiny_training(distillation=distillation)
    for experience in digits.train_stream[:2]:
        training.train(experience, eval_streams=[])
    assert training.cost.replay.forwards == training.cost.pool_bytes == 0
    assert training.cost.lessons == lessons


class RecordingMode:
    """MAGD, which records its teacher at each call, and may be interrupted at one."""

    def __init__(self, interrupted_at: int | None = None) -> None:
        self.generators: list[DiffusionGenerator] = []
        self.weights: list[list[Tensor]] = []
        self.interrupted_at = interrupted_at

    def __call__(self, teacher: Teacher, labels: Tensor, lessons_per_image: int) -> LessonBatch:
        self.generators.append(teacher.generator)
        self.weights.append([each.detach().clone() for each in teacher.generator.parameters()])
        if len(self.generators) == self.interrupted_at:
            raise KeyboardInterrupt
        return MAGD()(teacher, labels, lessons_per_image)


def assert_known_weights_are(before: list[Tensor], now: list[Tensor]) -> None:
    """Embeddings of classes that came later apart, parameters are what they were."""
    for then, parameter in zip(before, now, strict=True):
        assert torch.equal(then, parameter[: len(then)])


def test_lessons_made_on_the_fly_come_from_a_snapshot(digits: Any) -> None:
    mode = RecordingMode()
    distillation = Distillation(mode, num_inference_steps=2, on_the_fly=True)
    training = tiny_training(distillation=distillation, train_iterations=6)
    training.train(digits.train_stream[0], eval_streams=[])
    taught = [parameter.detach().clone() for parameter in training.model.parameters()]
    training.train(digits.train_stream[1], eval_streams=[])
    assert len(mode.weights) == 6
    assert training.model not in mode.generators
    for weights in mode.weights:
        assert_known_weights_are(taught, weights)


def test_an_interruption_leaves_lessons_made_on_the_fly_their_teacher(digits: Any) -> None:
    mode = RecordingMode(interrupted_at=3)
    distillation = Distillation(mode, num_inference_steps=2, on_the_fly=True)
    training = tiny_training(distillation=distillation)
    training.train(digits.train_stream[0], eval_streams=[])
    taught = [parameter.detach().clone() for parameter in training.model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        training.train(digits.train_stream[1], eval_streams=[])
    training.train(digits.train_stream[1], eval_streams=[])
    assert len(mode.weights) == 3 + 3
    for weights in mode.weights:
        assert_known_weights_are(taught, weights)


def test_a_part_of_a_stream_whose_classes_are_all_current_has_no_lessons(digits: Any) -> None:
    distillation = Distillation(pool_size=40, num_inference_steps=2, on_the_fly=True)
    training = tiny_training(distillation=distillation)

    def lessons_of_first_part(stream: Any) -> int:
        before = training.cost.lessons
        part = next(iter(split_online_stream(stream, 200, seed=0)))
        training.fill_pool(part)
        training.train(part, eval_streams=[])
        return training.cost.lessons - before

    assert lessons_of_first_part(digits.train_stream[:1]) == 0
    assert lessons_of_first_part(digits.train_stream[1:2]) == 8
    assert training.pool is not None
    assert lessons_of_first_part(split_digits(1, seed=0).train_stream) == 0
