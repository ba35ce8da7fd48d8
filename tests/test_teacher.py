"""What a teacher can be asked, and what each answer costs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny_generator
from torch import Tensor
from torch.utils.data import TensorDataset

from avalanche_magd import DiffusionGenerator
from avalanche_magd.diffusion.label_map import NULL_LABEL
from avalanche_magd.diffusion.samplers import DDIM
from avalanche_magd.diffusion.sampling import reverse_runs
from avalanche_magd.distillation import CGGD, MAGD, Distillation, LessonBatch, Teacher
from avalanche_magd.distillation.lessons import InputSource, noised_lessons
from avalanche_magd.distillation.teacher import drawn_from


def teacher_of(generator: DiffusionGenerator, rng: torch.Generator, **kwargs: Any) -> Teacher:
    return Teacher(generator, generator.classes, rng, num_inference_steps=3, **kwargs)


def some_lessons(generator: DiffusionGenerator, count: int, rng: torch.Generator) -> LessonBatch:
    """Lessons of classes 0 and 1, whose targets are the noise's own."""
    images = torch.rand(count, *generator.latent_shape, generator=rng)
    labels = torch.arange(count) % 2
    return noised_lessons(generator.schedule, images, labels, rng)


def answers(generator: DiffusionGenerator, lessons: LessonBatch) -> Tensor:
    with generator.frozen():
        return generator(lessons.x_t, lessons.t, lessons.labels)


def test_trajectories_are_runs_of_the_labels_as_one_batch(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0, 1))
    labels, state = torch.arange(150) % 2, rng.get_state()
    teacher = teacher_of(generator, rng, sampler=DDIM(eta=0.5))
    with generator.frozen():
        run = teacher.trajectories(labels)
        rng.set_state(state)
        (expected,) = reverse_runs(
            generator, labels, 3, rng, sampler=DDIM(eta=0.5), batch_size=150
        )
    for ours, by_hand in zip(run, expected, strict=True):
        assert torch.equal(ours, by_hand)
    assert generator.forwards == 2 * 150 * 3


def test_a_run_that_was_made_is_not_made_again(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0, 1))
    teacher = teacher_of(generator, rng)
    run = teacher.trajectories(torch.tensor([0, 1]))
    assert replace(teacher, run=run).trajectories(torch.tensor([1, 1])) is run
    assert generator.forwards == 2 * 3


def test_guidance_steers_trajectories_but_not_their_outputs(rng: torch.Generator) -> None:
    generator, labels = tiny_generator(classes=(0, 1)), torch.tensor([0, 1])
    state = rng.get_state()
    with generator.frozen():
        free = teacher_of(generator, rng).trajectories(labels)
        rng.set_state(state)
        guided = teacher_of(generator, rng, guidance=CGGD(guidance_scale=5.0)).trajectories(labels)
        assert not torch.equal(guided.states[1], free.states[1])
        assert torch.equal(
            guided.outputs[1], generator(guided.states[1], guided.timesteps[1], labels)
        )


def test_images_are_of_the_users_range_and_the_generator_stays_as_it_was(
    rng: torch.Generator,
) -> None:
    generator = tiny_generator(classes=(0, 1))
    generator.pixel_range.set(torch.tensor([10.0]), torch.tensor([30.0]))
    images = teacher_of(generator, rng).images(torch.arange(150) % 2)
    assert images.shape == (150, 1, 8, 8)
    assert 10 <= images.min() < 15 < 25 < images.max() <= 30
    assert not images.requires_grad
    assert generator.forwards == 150 * 3
    assert generator.training


def test_an_unconditional_teacher_gives_the_network_no_classes(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(3, 8))
    given: list[Tensor] = []
    generator.register_forward_pre_hook(lambda _, arguments: given.append(arguments[2]))
    teacher_of(generator, rng, guidance=CGGD(conditional=False)).images(torch.tensor([3, 8, 8]))
    assert (torch.cat(given) == NULL_LABEL).all()


def test_images_are_classified_as_the_classes_that_the_teacher_has(rng: torch.Generator) -> None:
    def classifier(images: Tensor, classes: list[int]) -> Tensor:
        assert classes == [3, 8]
        brightness = images.mean((1, 2, 3))
        return torch.stack([-brightness, brightness], 1)

    teacher = teacher_of(tiny_generator(classes=(3, 8)), rng, classifier=classifier)
    images = torch.tensor([0.5, -0.5, 0.1]).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    assert teacher.classify(images).tolist() == [8, 3, 8]


def test_relabelled_lessons_have_the_teachers_predictions_as_targets(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0, 1))
    lessons = some_lessons(generator, 150, rng)
    mask = torch.arange(150) % 3 > 0
    with generator.frozen():
        relabelled = teacher_of(generator, rng).relabel(lessons, mask)
    assert generator.forwards == 100
    expected = answers(generator, lessons)
    torch.testing.assert_close(relabelled.target[mask], expected[mask], atol=1e-5, rtol=1e-4)
    assert torch.equal(relabelled.target[~mask], lessons.target[~mask])
    for column in ("x_t", "t", "labels", "source", "weight"):
        assert torch.equal(getattr(relabelled, column), getattr(lessons, column))


def test_lessons_that_keep_their_targets_cost_no_forward(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0, 1))
    lessons = some_lessons(generator, 10, rng)
    nothing = torch.zeros(10, dtype=torch.bool)
    relabelled = teacher_of(generator, rng).relabel(lessons, nothing)
    assert relabelled.target is lessons.target
    assert generator.forwards == 0


def test_lessons_whose_label_is_dropped_are_relabelled_without_a_class(
    rng: torch.Generator,
) -> None:
    generator = tiny_generator(classes=(0, 1))
    lessons = some_lessons(generator, 400, rng)
    teacher = teacher_of(generator, rng, guidance=CGGD(guidance_scale=2.0))
    with generator.frozen():
        relabelled = teacher.relabel(lessons, torch.zeros(400, dtype=torch.bool))
    dropped = relabelled.labels == NULL_LABEL
    assert generator.forwards == dropped.sum()
    assert dropped.double().mean().item() == pytest.approx(0.1, abs=0.04)
    expected = answers(generator, relabelled)
    torch.testing.assert_close(relabelled.target[dropped], expected[dropped], atol=1e-5, rtol=1e-4)
    assert torch.equal(relabelled.target[~dropped], lessons.target[~dropped])
    assert torch.equal(relabelled.labels[~dropped], lessons.labels[~dropped])


@pytest.mark.parametrize(
    ("guidance", "share"),
    [
        (CGGD(), 0.0),
        (CGGD(classifier_scale=1.0), 0.0),
        (CGGD(guidance_scale=2.0), 0.1),
        (CGGD(conditional=False), 1.0),
    ],
)
def test_the_share_of_dropped_labels_is_what_the_guidance_needs(
    guidance: CGGD, share: float, rng: torch.Generator
) -> None:
    generator = tiny_generator(classes=(0, 1))
    lessons = some_lessons(generator, 1000, rng)
    changed, dropped = teacher_of(generator, rng, guidance=guidance).drop_labels(lessons)
    assert dropped.double().mean().item() == pytest.approx(share, abs=0.03)
    assert torch.equal(changed.labels == NULL_LABEL, dropped)
    assert torch.equal(changed.labels[~dropped], lessons.labels[~dropped])
    assert generator.forwards == 0


def test_a_lesson_without_a_class_has_no_label_to_drop(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0, 1))
    lessons = some_lessons(generator, 20, rng)
    lessons = lessons._replace(labels=torch.full((20,), NULL_LABEL))
    teacher = teacher_of(generator, rng, guidance=CGGD(conditional=False))
    _, dropped = teacher.drop_labels(lessons)
    assert not dropped.any()
    assert teacher.relabel(lessons, dropped).target is lessons.target
    assert generator.forwards == 0


def test_the_outcome_of_a_run_is_images_classes_and_lessons_in_half_precision(
    rng: torch.Generator,
) -> None:
    generator, labels = tiny_generator(classes=(0, 1)), torch.tensor([0, 1, 1])
    generator.pixel_range.set(torch.tensor([10.0]), torch.tensor([30.0]))
    teacher = teacher_of(generator, rng)
    with generator.frozen():
        run = teacher.trajectories(labels)
        outcome = replace(teacher, run=run).outcome(labels, MAGD(), 2)
    assert list(outcome) == ["images", "classes", *LessonBatch._fields]
    torch.testing.assert_close(outcome["images"], 20 + 10 * run.images)
    assert torch.equal(outcome["classes"], labels)
    assert outcome["labels"].tolist() == [0, 0, 1, 1, 1, 1]
    assert outcome["x_t"].dtype == outcome["target"].dtype == torch.float16
    assert (outcome["source"] == InputSource.STATE).all()
    assert generator.forwards == 3 * 3


@pytest.mark.parametrize(("mode", "lessons_per_image"), [(None, 2), (MAGD(), 0)])
def test_an_outcome_without_lessons_has_none_of_their_columns(
    mode: Any, lessons_per_image: int, rng: torch.Generator
) -> None:
    generator, labels = tiny_generator(classes=(0, 1)), torch.tensor([0, 1])
    teacher = teacher_of(generator, rng)
    teacher = replace(teacher, run=teacher.trajectories(labels))
    assert list(teacher.outcome(labels, mode, lessons_per_image)) == ["images", "classes"]


def test_the_classes_of_an_unconditional_outcome_are_those_that_the_solver_sees(
    rng: torch.Generator,
) -> None:
    def second(images: Tensor, classes: list[int]) -> Tensor:
        return torch.tensor([0.0, 1.0]).expand(len(images), 2)

    generator, labels = tiny_generator(classes=(3, 8)), torch.tensor([3, 3, 3])
    guidance = CGGD(conditional=False)
    teacher = teacher_of(generator, rng, guidance=guidance, classifier=second)
    run = teacher.trajectories(guidance.network_labels(labels))
    outcome = replace(teacher, run=run).outcome(labels, None, 0)
    assert outcome["classes"].tolist() == [8, 8, 8]


def test_current_images_are_drawn_from_the_teachers_own_randomness(rng: torch.Generator) -> None:
    def draw(count: int, rng: torch.Generator) -> Tensor:
        return torch.rand(count, 1, 8, 8, generator=rng)

    generator, state = tiny_generator(classes=(0,)), rng.get_state()
    images = teacher_of(generator, rng, current_images=draw).images_for(5)
    rng.set_state(state)
    assert torch.equal(images, draw(5, rng))


def test_a_teacher_without_a_current_experience_has_no_current_images(
    rng: torch.Generator,
) -> None:
    with pytest.raises(RuntimeError, match="There is no current experience to take images from"):
        teacher_of(tiny_generator(classes=(0,)), rng).images_for(1)


def test_images_drawn_from_a_dataset_are_seen_as_the_generator_sees_them(
    rng: torch.Generator,
) -> None:
    generator = tiny_generator(classes=(0,))
    generator.pixel_range.set(torch.tensor([0.0]), torch.tensor([4.0]))
    pixels = torch.tensor([0.0, 1.0, 4.0]).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    dataset = TensorDataset(pixels.double(), torch.zeros(3))
    images = drawn_from(dataset, generator)(200, rng)
    assert images.shape == (200, 1, 8, 8)
    assert images.dtype == torch.float32
    assert images.unique().tolist() == [-1.0, -0.5, 1.0]


def test_a_teacher_apart_from_its_student_stays_as_it_is(rng: torch.Generator) -> None:
    student = tiny_generator(classes=(0, 1))
    student.network.conv_in.requires_grad_(False)
    before = [each.clone() for each in student.parameters()]
    teacher = teacher_of(student, rng).apart_from(student)
    shared = {
        name
        for (name, parameter), mine in zip(
            teacher.generator.named_parameters(), student.parameters(), strict=True
        )
        if parameter is mine
    }
    assert shared == {"network.conv_in.weight", "network.conv_in.bias"}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += parameter.requires_grad
    for then, parameter in zip(before, teacher.generator.parameters(), strict=True):
        assert torch.equal(then, parameter)
    assert teacher.rng is rng


def test_a_teacher_that_is_not_the_student_is_not_copied(rng: torch.Generator) -> None:
    teacher = teacher_of(tiny_generator(classes=(0,)), rng)
    assert teacher.apart_from(tiny_generator(classes=(0,))) is teacher


def test_a_teacher_is_made_by_the_settings_of_a_distillation(rng: torch.Generator) -> None:
    generator, guidance = tiny_generator(classes=(0, 1)), CGGD(classifier_scale=2.0)
    distillation = Distillation(guidance=guidance, num_inference_steps=7, sampler=DDIM(0.1))

    def classifier(images: Tensor, classes: list[int]) -> Tensor:
        return images.flatten(1)[:, : len(classes)]

    def draw(count: int, rng: torch.Generator) -> Tensor:
        return torch.zeros(count, 1, 8, 8)

    teacher = distillation.teacher(generator, [0], rng, classifier=classifier, current_images=draw)
    assert teacher == Teacher(generator, [0], rng, 7, DDIM(0.1), guidance, classifier, draw)


@pytest.mark.parametrize("guidance", [CGGD(classifier_scale=1.0), CGGD(conditional=False)])
def test_guidance_that_needs_the_solver_is_refused_without_one(
    guidance: CGGD, rng: torch.Generator
) -> None:
    with pytest.raises(ValueError, match="pass it as classifier, or train by MAGDPlugin"):
        Distillation(guidance=guidance).teacher(tiny_generator(classes=(0, 1)), [0, 1], rng)
