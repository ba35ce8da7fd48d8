"""Guidance steers runs, by formulas that are known, and leaves a denoiser's own output alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_generator
from torch import Tensor

from avalanche_magd.diffusion.guidance import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    GuidedDenoiser,
    GuidedPrediction,
    as_guided,
)
from avalanche_magd.diffusion.label_map import NULL_LABEL
from avalanche_magd.diffusion.samplers import DDIM, DPMSolver, Sampler, UniPC
from avalanche_magd.diffusion.sampling import sample
from avalanche_magd.diffusion.schedule import NoiseSchedule
from avalanche_magd.distillation.cggd import CGGD
from avalanche_magd.distillation.nigd import trajectory_lessons

PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]


class TanhDenoiser:
    """One function of x_t and the label, told in any of the three predictions."""

    latent_shape = (1, 4, 4)

    def __init__(
        self, prediction_type: str = "v_prediction", beta_schedule: str = "linear"
    ) -> None:
        self.schedule = NoiseSchedule(prediction_type, beta_schedule)
        self.labels: list[list[int]] = []

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.labels.append(labels.tolist())
        gain = 0.3 + 0.2 * labels.view(-1, 1, 1, 1)
        return self.schedule.prediction(torch.tanh(gain * x_t), x_t, t)


def brightness_classifier(images: Tensor, classes: list[int]) -> Tensor:
    """Bright images are of the second of two classes."""
    brightness = images.mean((1, 2, 3))
    return torch.stack([-brightness, brightness], 1)


@pytest.fixture
def states(rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of a denoiser: x_t, t and labels."""
    x_t = torch.randn(4, 1, 4, 4, generator=rng).double()
    return x_t, torch.tensor([5, 300, 500, 999]), torch.tensor([0, 1, 1, 0])


def test_an_answer_without_guidance_is_raw_and_guided_alike() -> None:
    prediction = torch.rand(2, 1, 4, 4)
    raw, guided = as_guided(prediction)
    assert raw is guided is prediction
    answer = GuidedPrediction(prediction, prediction + 1)
    assert as_guided(answer) is answer


@pytest.mark.parametrize("guidance_scale", [1.5, 4.0])
def test_classifier_free_guidance_pushes_the_prediction_away_from_the_null_label(
    guidance_scale: float, states: tuple[Tensor, Tensor, Tensor]
) -> None:
    denoiser = TanhDenoiser()
    x_t, t, labels = states
    prediction = denoiser(x_t, t, labels)
    without_class = denoiser(x_t, t, torch.full_like(labels, NULL_LABEL))
    raw, guided = ClassifierFreeGuidance(denoiser, guidance_scale)(x_t, t, labels)
    assert torch.equal(raw, prediction)
    expected = guidance_scale * prediction + (1 - guidance_scale) * without_class
    torch.testing.assert_close(guided, expected)
    assert denoiser.labels[2:] == [labels.tolist(), [NULL_LABEL] * 4]


def test_classifier_free_guidance_of_scale_one_changes_nothing(
    states: tuple[Tensor, Tensor, Tensor],
) -> None:
    raw, guided = ClassifierFreeGuidance(TanhDenoiser(), 1.0)(*states)
    torch.testing.assert_close(guided, raw)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_classifier_guidance_moves_the_clean_image_up_the_gradient(
    prediction_type: str, rng: torch.Generator
) -> None:
    schedule = NoiseSchedule(prediction_type)

    def classifier(images: Tensor, classes: list[int]) -> Tensor:
        assert classes == [4, 9]
        return brightness_classifier(images, classes)

    x_t = torch.randn(4, 1, 4, 4, generator=rng).double()
    x_0 = torch.rand(4, 1, 4, 4, generator=rng).double() - 0.5
    t = torch.tensor([300, 300, 500, 999])
    labels = torch.tensor([4, 9, 9, 9])
    prediction = schedule.prediction(x_0, x_t, t)
    guidance = ClassifierGuidance(lambda *_: prediction, schedule, classifier, [4, 9], 2.0)
    raw, guided = guidance(x_t, t, labels)
    assert torch.equal(raw, prediction)
    moved = schedule.denoised(guided, x_t, t) - x_0
    # ∇ log p(y) = ±2 (1 − p(y)) / 16 in each pixel, times s σ².
    sign = torch.tensor([-1.0, 1.0, 1.0, 1.0])
    chance = torch.sigmoid(2 * sign * x_0.mean((1, 2, 3)))
    expected = 2.0 / schedule.snr(t) * sign * 2 * (1 - chance) / 16
    expected[3] = 0.0  # σ > 5: x̂_0 says too little
    torch.testing.assert_close(
        moved, expected.view(-1, 1, 1, 1).expand_as(moved), atol=1e-6, rtol=1e-6
    )
    assert torch.equal(guided[3], prediction[3])


def test_classifier_guidance_of_scale_zero_changes_nothing(
    states: tuple[Tensor, Tensor, Tensor],
) -> None:
    denoiser = TanhDenoiser()
    guidance = ClassifierGuidance(
        denoiser, denoiser.schedule, brightness_classifier, [0, 1], classifier_scale=0.0
    )
    raw, guided = guidance(*states)
    assert torch.equal(guided, raw)
    assert torch.equal(raw, denoiser(*states))


def test_a_wrapper_steers_what_another_wrapper_has_guided(
    states: tuple[Tensor, Tensor, Tensor],
) -> None:
    denoiser = TanhDenoiser()
    inner = ClassifierFreeGuidance(denoiser, 3.0)
    x_t, t, labels = states
    raw, guided = ClassifierGuidance(
        inner, denoiser.schedule, brightness_classifier, [0, 1], classifier_scale=1.5
    )(x_t, t, labels)
    assert torch.equal(raw, denoiser(x_t, t, labels))

    def already_guided(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return inner(x_t, t, labels).guided

    alone = ClassifierGuidance(
        already_guided, denoiser.schedule, brightness_classifier, [0, 1], classifier_scale=1.5
    )(x_t, t, labels)
    assert torch.equal(guided, alone.guided)
    assert not torch.equal(guided, inner(x_t, t, labels).guided)


@pytest.mark.parametrize(
    ("guidance", "forwards", "classified"),
    [
        (CGGD(guidance_scale=2.0), 2, 0),
        (CGGD(classifier_scale=1.0), 1, 1),
        (CGGD(guidance_scale=2.0, classifier_scale=1.0), 2, 1),
    ],
)
def test_a_guided_state_costs_the_forwards_of_its_wrappers(
    guidance: CGGD, forwards: int, classified: int
) -> None:
    generator, seen = tiny_generator(classes=(0, 1)), 0

    def classifier(images: Tensor, classes: list[int]) -> Tensor:
        nonlocal seen
        seen += len(images)
        return brightness_classifier(images, classes)

    guide = guidance.guide(generator, [0, 1], classifier)
    assert guide is not None
    x_t, t, labels = torch.randn(3, 1, 8, 8), torch.tensor([5, 500, 900]), torch.tensor([0, 1, 0])
    with generator.frozen():
        raw, guided = guide(x_t, t, labels)
        assert generator.forwards == 3 * forwards
        assert seen == 3 * classified
        assert torch.equal(raw, generator(x_t, t, labels))
    assert not torch.equal(raw, guided)


@pytest.mark.parametrize("guidance", [CGGD(), CGGD(conditional=False)])
def test_without_guidance_nothing_is_wrapped(guidance: CGGD) -> None:
    assert guidance.guide(tiny_generator(classes=(0, 1)), [0, 1], brightness_classifier) is None


def guided_run(
    denoiser: TanhDenoiser, guide: GuidedDenoiser, sampler: Sampler, seed: int
) -> list[Tensor]:
    """States and images of a run, and what its lessons' targets say of the clean image."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, 1, 4, 4, generator=rng).double()
    # Below T: at √ᾱ = 5e-5 rounding alone would differ.
    grid = torch.randint(0, 900, (5, 3), generator=rng).sort(0, descending=True).values
    grid = grid + torch.arange(5).flip(0)[:, None]
    schedule, labels = denoiser.schedule, torch.tensor([0, 1, 1])
    run = sample(guide, schedule, noise, labels, grid, rng, sampler=sampler)
    lessons = trajectory_lessons(run, 5, rng)
    told = schedule.denoised(lessons.target, lessons.x_t, lessons.t)
    return [run.states, run.images, told]


@settings(max_examples=25, deadline=None)
@given(
    beta_schedule=st.sampled_from(["linear", "squaredcos_cap_v2"]),
    sampler=st.sampled_from([DDIM(), DPMSolver(), UniPC()]),
    guidance_scale=st.sampled_from([1.0, 2.5]),
    classifier_scale=st.sampled_from([0.0, 1.5]),
    seed=st.integers(0, 1000),
)
def test_predictions_agree_in_runs_lessons_and_guidance(
    beta_schedule: str, sampler: Any, guidance_scale: float, classifier_scale: float, seed: int
) -> None:
    def classifier(images: Tensor, classes: list[int]) -> Tensor:
        return images.flatten(1)[:, : len(classes)]

    runs = []
    for prediction_type in PREDICTION_TYPES:
        denoiser = TanhDenoiser(prediction_type, beta_schedule)
        free = ClassifierFreeGuidance(denoiser, guidance_scale)
        guide = ClassifierGuidance(free, denoiser.schedule, classifier, [0, 1], classifier_scale)
        runs.append(guided_run(denoiser, guide, sampler, seed))
    for other in runs[1:]:
        torch.testing.assert_close(runs[0], other, atol=1e-8, rtol=1e-6)
