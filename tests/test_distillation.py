"""What each technique chooses, what a pool holds, and what a loss weighs."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_generator
from torch import Tensor

from avalanche_magd import DiffusionGenerator
from avalanche_magd.classes import NULL_LABEL
from avalanche_magd.distillation import MAGD, Distillation, LessonBatch
from avalanche_magd.distillation.batch import noised_lessons
from avalanche_magd.distillation.cggd import ClassifierFreeGuidance
from avalanche_magd.distillation.distillation import _batches
from avalanche_magd.distillation.loss import current_share, squared_errors, total_loss
from avalanche_magd.distillation.nigd import trajectory_lessons
from avalanche_magd.distillation.past import Past
from avalanche_magd.distillation.pool import Pool, stratified_draw
from avalanche_magd.distillation.sggd import outside_band
from avalanche_magd.distillation.teacher import EmaTeacher
from avalanche_magd.sampling import reverse_runs
from avalanche_magd.schedule import NoiseSchedule


def gray_images(count: int, rng: torch.Generator) -> Tensor:
    """Current images that no generator makes: exactly zero everywhere."""
    return torch.zeros(count, 1, 8, 8)


def filled(
    distillation: Distillation,
    teacher: DiffusionGenerator,
    rng: torch.Generator,
    *current_images: Any,
) -> Pool:
    pool = distillation.empty_pool(teacher)
    past = Past(teacher, teacher.classes, rng, *current_images)
    distillation.fill(pool, distillation.pool_size, past)
    return pool


def test_every_state_is_a_lesson_with_its_own_timestep_label_and_answer(
    rng: torch.Generator,
) -> None:
    teacher = tiny_generator(classes=(3, 7)).eval()
    labels = torch.tensor([3, 7, 7])
    (run,) = reverse_runs(teacher, teacher.schedule, (1, 8, 8), labels, 5, rng)
    lessons, weights = trajectory_lessons(run, 5, rng)
    assert len(weights) == 15
    for step in range(5):
        for row in range(3):
            index = row * 5 + step
            assert torch.equal(lessons.x_t[index], run.states[step, row])
            assert torch.equal(lessons.target[index], run.outputs[step, row])
            assert lessons.t[index] == run.timesteps[step, row]
            assert lessons.labels[index] == labels[row]
    torch.testing.assert_close(weights.view(3, 5).sum(1), torch.full((3,), 999.0))


def test_weights_spread_lessons_evenly_over_time(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(0,)).eval()
    labels = torch.zeros(256, dtype=torch.long)
    (run,) = reverse_runs(teacher, teacher.schedule, (1, 8, 8), labels, 10, rng, batch_size=256)
    lessons, weights = trajectory_lessons(run, 10, rng)
    drawn = lessons.t[stratified_draw(weights.double().cumsum(0), 20_000, rng)]
    shares = torch.histc(drawn.float(), bins=5, min=0, max=1000) / len(drawn)
    assert shares.min() > 0.15
    assert shares.max() < 0.25


def test_a_pool_costs_one_forward_per_lesson_and_is_balanced(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(2, 5, 9))
    teacher.pixel_range.set(torch.zeros(1), torch.ones(1))
    pool = filled(Distillation(pool_size=31, num_inference_steps=4), teacher, rng)
    assert teacher.forwards == 31 * 4 == len(pool.weights)
    assert pool.images.shape == (31, 1, 8, 8)
    assert 0 <= pool.images.min() < pool.images.max() <= 1
    assert sorted((pool.labels == label).sum().item() for label in (2, 5, 9)) == [10, 10, 11]
    assert pool.lessons.x_t.dtype == pool.lessons.target.dtype == torch.float16
    assert pool.classes == [2, 5, 9]


def test_the_teacher_is_asked_for_lessons_in_evaluation_mode_and_left_as_it_was(
    rng: torch.Generator,
) -> None:
    teacher = tiny_generator(classes=(0,))
    modes: list[bool] = []
    teacher.network.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    filled(Distillation(pool_size=2, num_inference_steps=2), teacher, rng)
    assert modes == [False, False]
    assert teacher.training


def test_a_pool_stays_within_its_bytes_and_keeps_every_image(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(0, 1))
    distillation = Distillation(pool_size=40, num_inference_steps=6, max_pool_bytes=40 * 1200)
    pool = filled(distillation, teacher, rng)
    assert pool.nbytes <= 40 * 1200
    assert len(pool.labels) == 40
    assert len(pool.weights) == 40 * distillation.lessons_per_image(teacher) == 40 * 3
    # They are a choice of the run's that is spread evenly over t, and so all weigh the same.
    thirds = torch.histc(pool.lessons.t.float(), bins=3, min=0, max=1000) / 120
    torch.testing.assert_close(thirds, torch.full((3,), 1 / 3), atol=0.1, rtol=0)
    assert (pool.weights == 999 / 3).all()
    with pytest.raises(ValueError, match="num_inference_steps must be at most 1000"):
        Distillation(num_inference_steps=1001).lessons_per_image(teacher)
    with pytest.raises(ValueError, match="does not hold pool_size=40 images"):
        Distillation(pool_size=40, max_pool_bytes=1000).lessons_per_image(teacher)


@pytest.mark.parametrize("snr_band", [(0.05, 20.0), (0.0, 20.0), (0.05, math.inf)])
def test_current_images_serve_outside_the_band_and_states_inside(
    snr_band: tuple[float, float], rng: torch.Generator
) -> None:
    teacher = tiny_generator(classes=(1, 4))
    asked: list[int] = []

    def current(count: int, rng: torch.Generator) -> Tensor:
        asked.append(count)
        return gray_images(count, rng)

    distillation = Distillation(MAGD(snr_band=snr_band), pool_size=60, num_inference_steps=5)
    pool = filled(distillation, teacher, rng, current)
    lessons = pool.lessons.cast(torch.float32)
    outside = outside_band(teacher.schedule.snr(lessons.t), snr_band)
    assert 0 < outside.sum() == sum(asked) < len(outside)
    assert teacher.forwards == 60 * 5 + outside.sum()
    # A gray image noised to t has no signal: its state is √(1−ᾱ) z, with the spread of that noise.
    _, sigma = teacher.schedule.scales(lessons.t, lessons.x_t)
    spread = (lessons.x_t / sigma)[outside].std()
    assert spread.item() == pytest.approx(1, abs=0.05)
    assert set(lessons.labels[outside].tolist()) == {1, 4}
    with torch.no_grad():
        answers = teacher.eval()(lessons.x_t, lessons.t, lessons.labels)
    torch.testing.assert_close(lessons.target, answers, atol=0.02, rtol=0)


def test_a_pool_without_an_image_for_each_class_is_refused(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="leaves some of the 3 classes without an image"):
        filled(Distillation(pool_size=2), tiny_generator(classes=(0, 1, 2)), rng)


def test_without_a_band_no_current_image_is_looked_at(rng: torch.Generator) -> None:
    filled(Distillation(pool_size=4, num_inference_steps=2), tiny_generator(classes=(0,)), rng)


def test_trajectory_share_zero_noises_finished_images_again(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(0,))
    mode = MAGD(trajectory_share=0.0)
    pool = filled(Distillation(mode, pool_size=30, num_inference_steps=3), teacher, rng)
    assert teacher.forwards == 30 * 3 + 30 * 3
    # Each is its image, noised: what is left after taking that away is standard normal.
    lessons = pool.lessons.cast(torch.float32)
    signal, sigma = teacher.schedule.scales(lessons.t, lessons.x_t)
    images = teacher.pixel_range.to_model(pool.images).repeat_interleave(3, 0)
    noise = (lessons.x_t - signal * images) / sigma
    assert noise[lessons.t > 50].std().item() == pytest.approx(1, abs=0.03)
    assert (pool.weights == 999 / 3).all()
    assert len(lessons.t.unique()) > 60


def test_guided_pools_teach_a_tenth_of_their_lessons_without_a_class(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(0, 1))
    distillation = Distillation(pool_size=200, num_inference_steps=4, guidance_scale=2.0)
    pool = filled(distillation, teacher, rng)
    null = pool.lessons.labels == NULL_LABEL
    assert null.double().mean().item() == pytest.approx(0.1, abs=0.03)
    assert teacher.forwards == 2 * 200 * 4 + null.sum()
    lessons = pool.lessons.cast(torch.float32)
    with torch.no_grad():
        answers = teacher.eval()(lessons.x_t, lessons.t, lessons.labels)
    torch.testing.assert_close(lessons.target, answers, atol=0.02, rtol=0)


def test_guidance_of_scale_one_changes_nothing(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(0,)).eval()
    x_t, t = torch.randn(3, 1, 8, 8, generator=rng), torch.tensor([5, 500, 999])
    labels = torch.zeros(3, dtype=torch.long)
    with torch.no_grad():
        prediction = teacher(x_t, t, labels)
        guided = ClassifierFreeGuidance(teacher, 1.0)(prediction, x_t, t, labels)
    torch.testing.assert_close(guided, prediction)


@given(low=st.floats(0.001, 1), high=st.floats(2, 100))
def test_a_lesson_is_outside_the_band_exactly_if_its_snr_is(low: float, high: float) -> None:
    snr = NoiseSchedule().snr(torch.arange(1000))
    expected = [not low <= ratio <= high for ratio in snr.tolist()]
    assert outside_band(snr, (low, high)).tolist() == expected
    assert not outside_band(snr, None).any()


def test_draws_follow_the_weights_and_spread_over_them(rng: torch.Generator) -> None:
    cumulative = torch.tensor([1.0, 1.0, 3.0, 6.0], dtype=torch.float64).cumsum(0)
    drawn = stratified_draw(cumulative, 11, rng)
    assert drawn.bincount(minlength=4).tolist() == [1, 1, 3, 6]


def test_images_are_drawn_evenly_over_the_classes(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(2, 5, 9))
    pool = filled(Distillation(pool_size=30, num_inference_steps=2), teacher, rng)
    for _ in range(5):
        labels = pool.labels[pool.draw_slots(12, rng)]
        assert labels.bincount()[[2, 5, 9]].tolist() == [4, 4, 4]
    assert len(pool.draw_slots(100, rng)) == 100


def test_real_images_are_noised_evenly_over_time_with_the_true_answer(
    rng: torch.Generator,
) -> None:
    schedule = NoiseSchedule("epsilon", "linear")
    x_0 = torch.rand(10, 1, 4, 4, generator=rng)
    lessons = noised_lessons(schedule, x_0, torch.arange(10), rng)
    assert (lessons.t // 100).sort().values.tolist() == list(range(10))
    x_t = schedule.add_noise(x_0, lessons.target, lessons.t)
    torch.testing.assert_close(x_t, lessons.x_t)


def test_a_copy_of_the_teacher_has_nothing_to_learn(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(0, 1)).eval()
    labels = torch.tensor([0, 1, 0])
    (run,) = reverse_runs(teacher, teacher.schedule, (1, 8, 8), labels, 4, rng)
    lessons, _ = trajectory_lessons(run, 4, rng)
    student = tiny_generator(classes=(0, 1)).eval()
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        prediction = student(lessons.x_t, lessons.t, lessons.labels)
    assert squared_errors(prediction, lessons.target).max() < 1e-12


@given(
    current=st.integers(1, 10),
    old=st.integers(1, 90),
    replay_weight=st.floats(0, 4),
    errors=st.tuples(st.floats(0, 10), st.floats(0, 10)),
)
def test_current_and_replay_weigh_what_they_should(
    current: int, old: int, replay_weight: float, errors: tuple[float, float]
) -> None:
    w_new = current_share(current, old)
    assert w_new == pytest.approx(current / (current + old))
    now, past = (torch.full((4,), error, dtype=torch.float64) for error in errors)
    loss = total_loss(now, past, w_new, replay_weight).item()
    expected = w_new * errors[0] + (1 - w_new) * replay_weight * errors[1]
    assert loss == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert total_loss(now, past[:0], w_new).item() == pytest.approx(errors[0])


def test_the_average_forgets_its_start_and_has_its_half_life() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    teacher = EmaTeacher([parameter], decay=0.9)
    parameter.data.fill_(1.0)
    teacher.update()
    assert teacher.average[0].item() == pytest.approx(0.9)  # early on, decay is (1 + n) / (10 + n)
    teacher.steps = 10_000
    teacher.average[0].fill_(0.0)
    half_life = math.log(0.5) / math.log(0.9)
    for _ in range(round(10 * half_life)):
        teacher.update()
    assert 1 - teacher.average[0].item() == pytest.approx(0.5**10, rel=0.1)


def test_average_and_student_change_places_without_a_copy() -> None:
    network = torch.nn.Embedding(2, 3)
    teacher = EmaTeacher(network.parameters(), decay=0.9)
    network.weight.data.fill_(1.0)
    student, average = network.weight.data, teacher.average[0]
    teacher.teach()
    teacher.teach()
    assert network.weight.data is average or network.weight.data_ptr() == average.data_ptr()
    # A class arrives while the average stands in the network.
    network.weight = torch.nn.Parameter(torch.cat([network.weight.data, torch.full((1, 3), 7.0)]))
    teacher.learn(network.parameters())
    assert network.weight.tolist() == [[1.0] * 3, [1.0] * 3, [7.0] * 3]
    assert torch.equal(network.weight[:2], student)
    assert torch.equal(teacher.average[0][:2], average)
    teacher.update()
    assert teacher.average[0][2].tolist() == [7.0] * 3


def test_a_small_pass_renews_the_oldest_and_restores_the_balance(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(0, 1))
    distillation = Distillation(pool_size=12, num_inference_steps=2)
    pool = distillation.empty_pool(teacher)

    def fill(count: int, classes: list[int]) -> None:
        distillation.fill(pool, count, Past(teacher, classes, rng))

    fill(4, [0, 1])
    assert pool.counts == {0: 2, 1: 2}
    assert len(pool.draw_lessons(20, rng).t) == 20
    first = pool.images[:4].clone()
    fill(8, [0, 1])
    assert pool.counts == {0: 6, 1: 6}
    assert torch.equal(pool.images[:4], first)
    teacher.add_classes([2])
    fill(3, [0, 1, 2])
    assert sorted(pool.counts.values()) == [3, 4, 5]
    assert pool.counts[2] == 3
    gone = [bool((pool.images[slot] != first[slot]).any()) for slot in range(4)]
    assert sum(gone) == 3
    # However many images a class has, its lessons are drawn as often.
    drawn = pool.draw_lessons(3000, rng).labels.bincount() / 3000
    torch.testing.assert_close(drawn, torch.full((3,), 1 / 3), atol=0.03, rtol=0)
    fill(2, [0, 1, 2])
    assert pool.counts == {0: 4, 1: 4, 2: 4}
    lessons, weights = pool.lessons, pool.weights.view(12, 2)
    assert torch.equal(lessons.labels.view(12, 2), pool.labels[:, None].expand(12, 2))
    torch.testing.assert_close(weights.sum(1), torch.full((12,), 999.0))


def test_each_pass_makes_room_by_age(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(0,))
    distillation = Distillation(pool_size=4, num_inference_steps=2)
    pool = distillation.empty_pool(teacher)
    renewed = []
    for _ in range(5):
        before = pool.images.clone()
        distillation.fill(pool, 2, Past(teacher, [0], rng))
        renewed.append((pool.images != before).flatten(1).any(1).nonzero()[:, 0].tolist())
    assert renewed == [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pool_size": 0}, ValueError, "pool_size must be at least 1, got 0"),
        ({"pool_size": 2.5}, TypeError, "pool_size must be an integer, got 2.5"),
        ({"num_inference_steps": -1}, ValueError, "num_inference_steps must be at least 1"),
        ({"snr_band": (1.0, 0.1)}, ValueError, "0 ≤ low < high, 'safe', or None; got"),
        ({"snr_band": (-1.0, 0.1)}, ValueError, "0 ≤ low < high"),
        ({"guidance_scale": 0.5}, ValueError, "guidance_scale must be a number from 1 to 100"),
        ({"guidance_scale": math.nan}, ValueError, "guidance_scale must be a number"),
        (
            {"trajectory_share": 1.1},
            ValueError,
            "trajectory_share must be a number from 0 to 1, got 1.1",
        ),
        ({"max_pool_bytes": 0}, ValueError, "max_pool_bytes must be at least 1"),
    ],
)
def test_absurd_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    of_mode = {"snr_band", "trajectory_share"} & set(arguments)
    with pytest.raises(error, match=message):
        MAGD(**arguments) if of_mode else Distillation(**arguments)


def test_lessons_are_joined_and_chosen_row_by_row() -> None:
    t = torch.arange(3)
    images = torch.arange(3.0).view(3, 1, 1, 1)
    lessons = LessonBatch(images, t, t, images, t)
    both = LessonBatch.cat([lessons, lessons]).rows(torch.tensor([5, 0]))
    assert [tensor.flatten().tolist() for tensor in both] == [[2, 0]] * 5


def test_processes_get_as_many_batches_each() -> None:
    sizes = {
        count: [len(batch) for batch in _batches(torch.zeros(count), 83)]
        for count in (20, 127, 128, 500, 4000)
    }
    assert sizes[20] == [20]
    assert sizes[127] == [64, 63]
    assert sizes[128] == [16] * 8
    assert sizes[500] == [63] * 4 + [62] * 4
    assert len(sizes[4000]) == 56
    assert max(sizes[4000]) - min(sizes[4000]) == 1
