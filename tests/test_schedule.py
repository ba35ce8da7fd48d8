"""Noise levels agree with the published table, and ε, v and x_0 with one another."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from avalanche_magd.diffusion.schedule import NoiseSchedule

PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]
BETA_SCHEDULES = ["linear", "squaredcos_cap_v2"]


@pytest.mark.parametrize(
    ("beta_schedule", "percent_below"),
    [
        (
            "linear",
            {
                0.001: 17.4,
                0.0033: 24.9,
                0.01: 32.6,
                0.1: 51.5,
                1: 74.1,
                10: 90.7,
                30: 94.7,
                100: 97.3,
            },
        ),
        (
            "squaredcos_cap_v2",
            {
                0.001: 2.1,
                0.0033: 3.7,
                0.01: 6.4,
                0.1: 19.7,
                1: 50.4,
                10: 81.2,
                30: 89.2,
                100: 94.4,
            },
        ),
    ],
)
def test_the_share_of_timesteps_below_an_snr_is_the_published_one(
    beta_schedule: str, percent_below: dict[float, float]
) -> None:
    snr = NoiseSchedule(beta_schedule=beta_schedule).snr(torch.arange(1000))
    percent = {bound: 100 * (snr < bound).double().mean().item() for bound in percent_below}
    assert percent == pytest.approx(percent_below, abs=0.051)


@given(
    t=st.integers(0, 999),
    prediction_type=st.sampled_from(PREDICTION_TYPES),
    beta_schedule=st.sampled_from(BETA_SCHEDULES),
)
def test_the_true_prediction_denoises_to_the_true_image(
    t: int, prediction_type: str, beta_schedule: str
) -> None:
    schedule = NoiseSchedule(prediction_type, beta_schedule)
    # In double precision: at the last timesteps ε tells x_0 only far behind the decimal point.
    x_0, noise = torch.rand(1, 1, 2, 2).double(), torch.randn(1, 1, 2, 2).double()
    timestep = torch.tensor([t])
    x_t = schedule.add_noise(x_0, noise, timestep)
    target = schedule.target(x_0, noise, timestep)
    torch.testing.assert_close(schedule.denoised(target, x_t, timestep), x_0, atol=1e-9, rtol=0)
    torch.testing.assert_close(schedule.prediction(x_0, x_t, timestep), target, atol=1e-9, rtol=0)


def test_a_schedule_with_ends_of_its_own_is_that_of_diffusers() -> None:
    ends = (0.00085, 0.012)
    theirs = DDPMScheduler(1000, *ends, "scaled_linear").alphas_cumprod
    ours = NoiseSchedule("epsilon", "scaled_linear", 1000, *ends).alphas_cumprod
    torch.testing.assert_close(ours.float(), theirs)


def test_the_table_keeps_double_precision_when_the_generator_is_cast() -> None:
    schedule = NoiseSchedule().half()
    assert schedule.alphas_cumprod.dtype == torch.float64
    assert schedule.alphas_cumprod[0] < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("velocity",), "prediction_type must be one of epsilon, v_prediction, sample"),
        (("epsilon", "cosine"), "beta_schedule must be one of linear"),
        (("epsilon", "linear", 1), "num_train_timesteps must be at least 2"),
        (("epsilon", "linear", 10**7), "num_train_timesteps must be a number from 2 to 100000"),
        (("epsilon", "linear", 1000, 0.02, 0.01), "beta_start and beta_end must rise"),
    ],
)
def test_unknown_schedules_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(*arguments)
