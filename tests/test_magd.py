"""MAGD: which inputs its lessons have, and that all targets are the teacher's."""

import math

import pytest
import torch
from tiny import filled_pool, tiny_generator
from torch import Tensor

from avalanche_magd import DiffusionGenerator
from avalanche_magd.diffusion.label_map import NULL_LABEL
from avalanche_magd.distillation import CGGD, MAGD, Distillation, LessonBatch, Pool
from avalanche_magd.distillation.lessons import InputSource
from avalanche_magd.distillation.sggd import outside_band


class GrayImages:
    """Current images that no generator makes: zero everywhere; counts those drawn."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, count: int, rng: torch.Generator) -> Tensor:
        self.count += count
        return torch.zeros(count, 1, 8, 8)


def assert_taught_by(generator: DiffusionGenerator, pool: Pool) -> LessonBatch:
    """All targets are the generator's own predictions, up to the pool's half precision."""
    lessons = pool.lessons.cast(torch.float32)
    with torch.no_grad():
        predictions = generator.eval()(lessons.x_t, lessons.t, lessons.labels)
    torch.testing.assert_close(lessons.target, predictions, atol=0.02, rtol=0)
    return lessons


@pytest.mark.parametrize("snr_band", [(0.05, 20.0), (0.0, 20.0), (0.05, math.inf)])
def test_current_images_serve_outside_the_band_and_states_inside(
    snr_band: tuple[float, float], rng: torch.Generator
) -> None:
    generator, current = tiny_generator(classes=(1, 4)), GrayImages()
    distillation = Distillation(MAGD(snr_band=snr_band), pool_size=60, num_inference_steps=5)
    pool = filled_pool(distillation, generator, rng, current_images=current)
    assert generator.forwards == 60 * 5 + current.count
    lessons = assert_taught_by(generator, pool)
    outside = outside_band(generator.schedule.snr(lessons.t), snr_band)
    assert torch.equal(lessons.source == InputSource.CURRENT, outside)
    assert 0 < outside.sum() == current.count < len(outside)
    assert (lessons.source[~outside] == InputSource.STATE).all()
    # A gray image noised to t has no signal: its state is √(1−ᾱ) z, with the spread of that noise.
    _, sigma = generator.schedule.scales(lessons.t, lessons.x_t)
    spread = (lessons.x_t / sigma)[outside].std()
    assert spread.item() == pytest.approx(1, abs=0.05)
    assert set(lessons.labels[outside].tolist()) == {1, 4}


def test_without_a_band_no_current_image_is_drawn(rng: torch.Generator) -> None:
    generator, current = tiny_generator(classes=(0,)), GrayImages()
    distillation = Distillation(pool_size=4, num_inference_steps=2)
    filled_pool(distillation, generator, rng, current_images=current)
    assert current.count == 0


def test_a_trajectory_share_of_zero_noises_finished_images_again(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0,))
    mode = MAGD(trajectory_share=0.0)
    pool = filled_pool(Distillation(mode, pool_size=30, num_inference_steps=3), generator, rng)
    assert generator.forwards == 30 * 3 + 30 * 3
    # Each input is its image, noised: what is left after taking that away is standard normal.
    lessons = assert_taught_by(generator, pool)
    signal, sigma = generator.schedule.scales(lessons.t, lessons.x_t)
    images = generator.pixel_range.normalize(pool.images).repeat_interleave(3, 0)
    noise = (lessons.x_t - signal * images) / sigma
    assert noise[lessons.t > 50].std().item() == pytest.approx(1, abs=0.03)
    assert (lessons.weight == 999 / 3).all()
    assert (lessons.source == InputSource.RENOISED).all()
    assert len(lessons.t.unique()) > 60


def test_a_trajectory_share_mixes_states_and_renoised_images(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0, 1))
    distillation = Distillation(MAGD(0.75), pool_size=100, num_inference_steps=4)
    pool = filled_pool(distillation, generator, rng)
    renoised = pool.lessons.source == InputSource.RENOISED
    assert generator.forwards == 100 * 4 + renoised.sum()
    assert renoised.double().mean().item() == pytest.approx(0.25, abs=0.06)
    assert (pool.lessons.source[~renoised] == InputSource.STATE).all()
    assert_taught_by(generator, pool)


def test_guided_pools_teach_a_tenth_of_their_lessons_without_a_class(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0, 1))
    guidance = CGGD(guidance_scale=2.0)
    distillation = Distillation(guidance=guidance, pool_size=200, num_inference_steps=4)
    pool = filled_pool(distillation, generator, rng)
    without_class = pool.lessons.labels == NULL_LABEL
    assert without_class.double().mean().item() == pytest.approx(0.1, abs=0.03)
    assert generator.forwards == 2 * 200 * 4 + without_class.sum()
    assert_taught_by(generator, pool)


def test_without_classes_the_solver_says_what_was_generated(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(3, 8))
    given: list[Tensor] = []
    generator.register_forward_pre_hook(lambda _, arguments: given.append(arguments[2]))

    def classifier(images: Tensor, classes: list[int]) -> Tensor:
        bright = images.flatten(1).mean(1) > images.mean()
        return torch.stack([~bright, bright], 1).float()

    distillation = Distillation(
        guidance=CGGD(conditional=False), pool_size=20, num_inference_steps=3
    )
    pool = filled_pool(distillation, generator, rng, classifier=classifier)
    assert (torch.cat(given) == NULL_LABEL).all()
    assert generator.forwards == 20 * 3
    assert (pool.lessons.labels == NULL_LABEL).all()
    bright = pool.images.flatten(1).mean(1) > pool.images.mean()
    assert torch.equal(pool.labels, torch.where(bright, 8, 3))
