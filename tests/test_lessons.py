"""Batches of lessons: their rows, and lessons of noised images."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_magd.diffusion.schedule import NoiseSchedule
from avalanche_magd.distillation import LessonBatch
from avalanche_magd.distillation.lessons import InputSource, noised_lessons, renoise


def numbered(count: int, start: float = 0.0) -> LessonBatch:
    """Lessons whose row i is i + start in each column."""
    numbers = torch.arange(count) + start
    images, indices = numbers.float().view(count, 1, 1, 1), numbers.long()
    return LessonBatch(images, indices, indices, images, indices.to(torch.int8), numbers.float())


def values(lessons: LessonBatch) -> list[list[float]]:
    return [column.flatten().tolist() for column in lessons]


def test_batches_are_joined_and_chosen_row_by_row() -> None:
    both = LessonBatch.cat([numbered(3), numbered(3)])
    assert values(both.rows(torch.tensor([5, 0]))) == [[2, 0]] * 6
    assert values(both.rows(slice(1, None, 2))) == [[1, 0, 2]] * 6


def test_rows_are_replaced_in_the_places_of_a_mask() -> None:
    lessons = numbered(4)
    mask = torch.tensor([False, True, False, True])
    mixed = lessons.with_rows(mask, numbered(2, start=10))
    assert values(mixed) == [[0, 10, 2, 11]] * 6
    assert values(lessons) == [[0, 1, 2, 3]] * 6  # the batch itself stays as it is
    assert [column.dtype for column in mixed] == [column.dtype for column in lessons]


def test_a_cast_changes_the_precision_of_inputs_and_targets_alone() -> None:
    half = numbered(3).cast(torch.float16)
    assert half.x_t.dtype == half.target.dtype == torch.float16
    assert half.weight.dtype == torch.float32
    assert values(half) == [[0, 1, 2]] * 6


def test_the_bytes_of_a_batch_are_those_of_its_columns() -> None:
    # Two images of one float, two indices, a source of one byte, a weight.
    assert numbered(5).nbytes == 5 * (2 * 4 + 2 * 8 + 1 + 4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_images_are_noised_evenly_over_time_with_the_target_of_their_noise(
    prediction_type: str, rng: torch.Generator
) -> None:
    schedule = NoiseSchedule(prediction_type, "linear")
    x_0 = torch.rand(10, 1, 4, 4, generator=rng).double()
    lessons = noised_lessons(schedule, x_0, torch.arange(10), rng, InputSource.RENOISED)
    assert (lessons.t // 100).sort().values.tolist() == list(range(10))
    assert lessons.labels.tolist() == list(range(10))
    assert (lessons.source == InputSource.RENOISED).all()
    assert (lessons.weight == 1).all()
    told = schedule.denoised(lessons.target, lessons.x_t, lessons.t)
    torch.testing.assert_close(told, x_0, atol=1e-6, rtol=0)


@given(count=st.integers(1, 30), num_train_timesteps=st.sampled_from([2, 7, 1000]))
def test_timesteps_of_noised_images_are_one_in_each_stratum(
    count: int, num_train_timesteps: int
) -> None:
    schedule = NoiseSchedule(num_train_timesteps=num_train_timesteps)
    rng = torch.Generator().manual_seed(0)
    labels = torch.zeros(count, dtype=torch.long)
    t = noised_lessons(schedule, torch.zeros(count, 1, 2, 2), labels, rng).t.sort().values
    edges = torch.arange(count + 1) * num_train_timesteps / count
    assert (t >= edges[:-1].floor()).all()
    assert (t <= edges[1:].ceil()).all()
    assert t.max() < num_train_timesteps


def test_renoised_lessons_start_from_the_given_images_at_their_own_timesteps(
    rng: torch.Generator,
) -> None:
    schedule = NoiseSchedule()
    t, labels = torch.tensor([900, 1, 2, 500]), torch.tensor([3, 3, 4, 4])
    images = torch.zeros(4, 1, 8, 8)
    source = torch.full((4,), InputSource.STATE, dtype=torch.int8)
    lessons = LessonBatch(images, t, labels, images, source, torch.ones(4))
    mask, x_0 = torch.tensor([False, True, True, False]), torch.full((2, 1, 8, 8), 0.5)
    x_0[1] = -0.5
    again = renoise(lessons, mask, x_0, schedule, rng)
    # Hardly any noise at these timesteps: the images are seen.
    torch.testing.assert_close(again.x_t[mask], x_0, atol=0.1, rtol=0)
    assert not torch.equal(again.x_t[mask], x_0)
    assert torch.equal(again.x_t[~mask], lessons.x_t[~mask])
    assert again.source.tolist() == [
        InputSource.STATE,
        InputSource.CURRENT,
        InputSource.CURRENT,
        InputSource.STATE,
    ]
    for column in ("t", "labels", "target", "weight"):
        assert torch.equal(getattr(again, column), getattr(lessons, column))
