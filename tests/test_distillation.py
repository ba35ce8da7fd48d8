"""The settings of a distillation: what they bound, and which are refused."""

import math
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_generator

from avalanche_magd.diffusion.samplers import DDIM, UniPC
from avalanche_magd.distillation import CGGD, MAGD, Distillation
from avalanche_magd.distillation.baselines import dgr
from avalanche_magd.distillation.generation import Generation


def test_the_defaults_are_those_of_magd() -> None:
    distillation = Distillation()
    assert distillation.mode == MAGD(trajectory_share=1.0, snr_band=None)
    assert distillation.guidance == CGGD()
    assert distillation.sampler == UniPC()


@pytest.mark.parametrize(
    ("distillation", "keeps_lessons", "lessons_per_image"),
    [
        (Distillation(), True, 10),
        (Distillation(num_inference_steps=3), True, 3),
        (Distillation(pool_size=40, max_pool_bytes=40 * 1200, num_inference_steps=6), True, 3),
        (Distillation(on_the_fly=True), False, 0),
        (Distillation(None), False, 0),
    ],
)
def test_a_pool_keeps_a_lesson_of_each_state_as_far_as_its_bytes_allow(
    distillation: Distillation, keeps_lessons: bool, lessons_per_image: int
) -> None:
    generator = tiny_generator()
    assert distillation.keeps_lessons == keeps_lessons
    assert distillation.lessons_per_image(generator) == lessons_per_image
    pool = distillation.empty_pool(generator)
    assert pool.lessons_per_image == lessons_per_image
    assert pool.nbytes <= distillation.max_pool_bytes


def test_more_steps_than_noise_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="num_inference_steps must be at most 1000"):
        Distillation(num_inference_steps=1001).lessons_per_image(tiny_generator())


@pytest.mark.parametrize(
    ("distillation", "message"),
    [
        (Distillation(pool_size=40, max_pool_bytes=1000), "with a lesson each: that takes 2"),
        (
            Distillation(None, pool_size=40, max_pool_bytes=1000),
            r"shape \(1, 8, 8\): that takes 11,520 bytes",
        ),
    ],
)
def test_bytes_that_do_not_hold_a_pool_are_refused_with_those_that_do(
    distillation: Distillation, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        distillation.lessons_per_image(tiny_generator())


@pytest.mark.parametrize(("share", "images"), [(1.0, 40), (0.25, 10), (0.001, 2)])
def test_a_pass_is_a_share_of_the_pool_but_an_image_of_each_missing_class(
    share: float, images: int, rng: Any
) -> None:
    generator = tiny_generator(classes=(0, 1))
    distillation = Distillation(pool_size=40, num_inference_steps=1)
    pool, teacher = (
        distillation.empty_pool(generator),
        distillation.teacher(generator, [0, 1], rng),
    )
    assert distillation.images_in_a_pass(teacher, pool, share) == images
    Generation().fill(pool, 2, teacher, distillation.mode)
    assert distillation.images_in_a_pass(teacher, pool, 0.001) == 1


def test_a_pools_folder_is_not_part_of_what_a_distillation_says_of_itself(tmp_path: Path) -> None:
    # It changes no result: the same run may go on with another folder.
    assert repr(Distillation(pool_folder=tmp_path)) == repr(Distillation())
    assert "DDIM(eta=0.3)" in repr(Distillation(sampler=DDIM(eta=0.3)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pool_size": 0}, ValueError, "pool_size must be at least 1, got 0"),
        ({"pool_size": 2.5}, TypeError, "pool_size must be an integer, got 2.5"),
        ({"num_inference_steps": -1}, ValueError, "num_inference_steps must be at least 1"),
        ({"max_pool_bytes": 0}, ValueError, "max_pool_bytes must be at least 1"),
        ({"replay_weight": -1.0}, ValueError, "replay_weight must be a number from 0 to 1e"),
        ({"online_share": 0.0}, ValueError, r"online_share must be in \(0, 1\], got 0.0"),
        ({"online_share": 1.5}, ValueError, r"online_share must be in \(0, 1\], got 1.5"),
        (
            {"sampler": "ddim"},
            TypeError,
            r"sampler must be a sampler such as UniPC\(\), DPMSolver\(\) or DDIM\(eta=0.0\), "
            "got 'ddim'",
        ),
        ({"sampler": DDIM}, TypeError, "sampler must be a sampler such as .*, got <class"),
        ({"pool_folder": "nowhere"}, FileNotFoundError, "pool_folder='nowhere' is not a folder"),
    ],
)
def test_absurd_settings_of_a_distillation_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Distillation(dgr, **arguments)


@pytest.mark.parametrize("trajectory_share", [-0.1, 1.1, math.nan])
def test_a_trajectory_share_that_is_no_share_is_refused(trajectory_share: float) -> None:
    with pytest.raises(ValueError, match="trajectory_share must be a number from 0 to 1, got"):
        MAGD(trajectory_share)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_scale": 0.5}, "guidance_scale must be a number from 1 to 100, got 0.5"),
        ({"guidance_scale": math.nan}, "guidance_scale must be a number from 1 to 100"),
        ({"classifier_scale": -1.0}, "classifier_scale must be a number from 0 to 100"),
        ({"conditional": False, "guidance_scale": 2.0}, "conditional=False leaves none to steer"),
        ({"conditional": False, "classifier_scale": 1.0}, "conditional=False leaves none to"),
    ],
)
def test_absurd_settings_of_guidance_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CGGD(**arguments)
