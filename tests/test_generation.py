"""Generation passes: batches, modes of the network, costs, and images for a solver."""

import pytest
import torch
from tiny import filled_pool, tiny_generator
from torch import Tensor, nn

from avalanche_magd import DiffusionGenerator
from avalanche_magd.distillation import CGGD, MAGD, Distillation
from avalanche_magd.distillation.generation import Generation, lesson_classes


class BatchRecorder(nn.Module):
    """A network that predicts zero and records how many images it is given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x_t: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        self.sizes.append(len(x_t))
        return torch.zeros_like(x_t)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (20, [20]),
        (127, [64, 63]),
        (128, [16] * 8),
        (500, [63] * 4 + [62] * 4),
        (4000, [72] * 24 + [71] * 32),
    ],
)
def test_a_pass_is_cut_into_as_many_batches_for_each_of_eight_processes_unless_they_are_small(
    count: int, sizes: list[int], rng: torch.Generator
) -> None:
    network = BatchRecorder()
    generator = DiffusionGenerator((1, 28, 28), network)  # 83 images at once, at most
    generator.add_classes([0, 1])
    filled_pool(Distillation(None, pool_size=count, num_inference_steps=1), generator, rng)
    assert network.sizes == sizes


def test_the_teacher_generates_in_evaluation_mode_and_is_left_as_it_was(
    rng: torch.Generator,
) -> None:
    generator = tiny_generator(classes=(0,))
    modes: list[bool] = []
    generator.network.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    filled_pool(Distillation(pool_size=2, num_inference_steps=2), generator, rng)
    assert modes == [False, False]
    assert generator.training


def test_a_pass_is_counted_as_generation_where_the_pool_has_lessons_and_as_replay_elsewhere(
    rng: torch.Generator,
) -> None:
    generator, generation = tiny_generator(classes=(0, 1)), Generation()
    distillation = Distillation(pool_size=6, num_inference_steps=3)
    teacher = distillation.teacher(generator, [0, 1], rng)
    generation.fill(distillation.empty_pool(generator), 6, teacher, distillation.mode)
    generation.images([0, 1], 4, distillation, generator, rng)
    cost = generation.cost
    assert (cost.generation.forwards, cost.replay.forwards) == (6 * 3, 4 * 3)
    assert cost.lessons == 6 * 3
    assert cost.generation.seconds > 0
    assert cost.replay.seconds > 0


def test_images_for_a_solver_are_balanced_without_lessons_and_without_its_guidance(
    rng: torch.Generator,
) -> None:
    generator = tiny_generator(classes=(0, 4, 7))
    distillation = Distillation(
        guidance=CGGD(guidance_scale=2.0, classifier_scale=1.0), num_inference_steps=3
    )
    pool = Generation().images([4, 7], 10, distillation, generator, rng)
    assert pool.counts == {4: 5, 7: 5}
    assert pool.lessons_per_image == 0
    assert generator.forwards == 2 * 10 * 3


def test_lessons_of_a_pool_are_drawn_and_cost_nothing(rng: torch.Generator) -> None:
    generator, generation = tiny_generator(classes=(0, 1)), Generation()
    distillation = Distillation(pool_size=6, num_inference_steps=3)
    pool = filled_pool(distillation, generator, rng)
    state, forwards = rng.get_state(), generator.forwards
    lessons = generation.lessons(8, distillation, None, pool, rng)
    rng.set_state(state)
    for ours, drawn in zip(lessons, pool.draw_lessons(8, rng), strict=True):
        assert torch.equal(ours, drawn)
    assert generator.forwards == forwards
    assert generation.cost.lessons == 0


def test_lessons_on_the_fly_are_made_anew_one_from_each_image(rng: torch.Generator) -> None:
    generator, generation = tiny_generator(classes=(0, 1)), Generation()
    distillation = Distillation(num_inference_steps=3, on_the_fly=True)
    teacher = distillation.teacher(generator, [0, 1], rng)
    first, second = (generation.lessons(8, distillation, teacher, None, rng) for _ in range(2))
    assert first.labels.bincount().tolist() == [4, 4]
    assert not torch.equal(first.x_t, second.x_t)
    assert generation.cost.lessons == 16
    assert generation.cost.generation.forwards == generator.forwards == 2 * 8 * 3
    assert generator.training


def test_lessons_are_of_the_pools_classes_or_on_the_fly_of_the_teachers(
    rng: torch.Generator,
) -> None:
    generator = tiny_generator(classes=(0, 1, 2))
    kept = Distillation(pool_size=6, num_inference_steps=2)
    on_the_fly = Distillation(on_the_fly=True)
    pool = filled_pool(kept, generator, rng)
    teacher = kept.teacher(generator, [0, 1], rng)
    assert lesson_classes(kept, teacher, pool) == [0, 1, 2]
    assert lesson_classes(on_the_fly, teacher, None) == [0, 1]
    assert lesson_classes(kept, teacher, None) == []
    assert lesson_classes(Distillation(None), teacher, pool) == []


def test_a_seed_decides_a_pass(rng: torch.Generator) -> None:
    generator, state = tiny_generator(classes=(0, 1)), rng.get_state()
    distillation = Distillation(MAGD(0.5), pool_size=140, num_inference_steps=2)
    first = filled_pool(distillation, generator, rng)
    rng.set_state(state)
    again = filled_pool(distillation, generator, rng)
    assert torch.equal(first.images, again.images)
    for column, other in zip(first.lessons, again.lessons, strict=True):
        assert torch.equal(column, other)
