"""NIGD: every state of a reverse run is a lesson, and lessons spread evenly over time."""

import pytest
import torch
from tiny import tiny_generator

from avalanche_magd import DiffusionGenerator
from avalanche_magd.diffusion.sampling import Trajectory, reverse_runs
from avalanche_magd.distillation.lessons import InputSource
from avalanche_magd.distillation.loss import squared_errors
from avalanche_magd.distillation.nigd import lessons_at, trajectory_lessons
from avalanche_magd.distillation.pool import stratified_draw


def run_of(
    generator: DiffusionGenerator, labels: torch.Tensor, rng: torch.Generator
) -> Trajectory:
    """Reverse runs of five steps."""
    (run,) = reverse_runs(generator.eval(), labels, 5, rng, batch_size=len(labels))
    return run


def test_every_state_is_a_lesson_with_its_own_timestep_label_and_output(
    rng: torch.Generator,
) -> None:
    labels = torch.tensor([3, 7, 7])
    run = run_of(tiny_generator(classes=(3, 7)), labels, rng)
    lessons = trajectory_lessons(run, 5, rng)
    assert len(lessons.t) == 15
    for step in range(5):
        for row in range(3):
            index = row * 5 + step
            assert torch.equal(lessons.x_t[index], run.states[step, row])
            assert torch.equal(lessons.target[index], run.outputs[step, row])
            assert lessons.t[index] == run.timesteps[step, row]
            assert lessons.labels[index] == labels[row]
    assert (lessons.source == InputSource.STATE).all()


@pytest.mark.parametrize("lessons_per_image", [1, 3, 5])
def test_the_weights_of_an_images_lessons_sum_to_the_length_of_the_run(
    lessons_per_image: int, rng: torch.Generator
) -> None:
    run = run_of(tiny_generator(classes=(0,)), torch.zeros(4, dtype=torch.long), rng)
    weight = trajectory_lessons(run, lessons_per_image, rng).weight
    torch.testing.assert_close(weight.view(4, -1).sum(1), torch.full((4,), 999.0))


@pytest.mark.parametrize("lessons_per_image", [2, 5])
def test_lessons_drawn_by_weight_spread_evenly_over_time(
    lessons_per_image: int, rng: torch.Generator
) -> None:
    run = run_of(tiny_generator(classes=(0,)), torch.zeros(512, dtype=torch.long), rng)
    lessons = trajectory_lessons(run, lessons_per_image, rng)
    drawn = lessons.t[stratified_draw(lessons.weight.double().cumsum(0), 20_000, rng)]
    shares = torch.histc(drawn.float(), bins=5, min=0, max=1000) / len(drawn)
    torch.testing.assert_close(shares, torch.full((5,), 0.2), atol=0.06, rtol=0)


def test_fewer_lessons_than_states_are_a_choice_of_the_states(rng: torch.Generator) -> None:
    run = run_of(tiny_generator(classes=(3, 7)), torch.tensor([3, 7]), rng)
    lessons = trajectory_lessons(run, 3, rng)
    assert lessons.labels.tolist() == [3, 3, 3, 7, 7, 7]
    for index, t in enumerate(lessons.t):
        step = int((run.timesteps[:, index // 3] == t).nonzero())
        assert torch.equal(lessons.x_t[index], run.states[step, index // 3])
        assert torch.equal(lessons.target[index], run.outputs[step, index // 3])


def test_lessons_at_chosen_steps_have_equal_weights(rng: torch.Generator) -> None:
    run = run_of(tiny_generator(classes=(3, 7)), torch.tensor([3, 7]), rng)
    lessons = lessons_at(run, torch.tensor([[4, 0], [2, 2]]))
    assert lessons.t.tolist() == run.timesteps[[4, 0, 2, 2], [0, 0, 1, 1]].tolist()
    assert lessons.weight.tolist() == [1.0] * 4


def test_a_copy_of_the_teacher_has_nothing_to_learn(rng: torch.Generator) -> None:
    teacher = tiny_generator(classes=(0, 1))
    lessons = trajectory_lessons(run_of(teacher, torch.tensor([0, 1, 0]), rng), 5, rng)
    student = tiny_generator(classes=(0, 1)).eval()
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        prediction = student(lessons.x_t, lessons.t, lessons.labels)
    assert squared_errors(prediction, lessons.target).max() < 1e-12
