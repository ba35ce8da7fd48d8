"""Noise levels agree with the published table, and ε, v and x_0 with one another."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from avalanche_magd.schedule import NoiseSchedule

PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]
SCHEDULES = ["linear", "squaredcos_cap_v2"]


@pytest.mark.parametrize(
    ("schedule", "below", "shares"),
    [
        ("linear", True, {0.001: 17.4, 0.0033: 24.9, 0.01: 32.6, 0.1: 51.5, 1: 74.1}),
        ("linear", False, {1: 25.9, 10: 9.3, 30: 5.3, 100: 2.7}),
        ("squaredcos_cap_v2", True, {0.001: 2.1, 0.0033: 3.7, 0.01: 6.4, 0.1: 19.7, 1: 50.4}),
        ("squaredcos_cap_v2", False, {1: 49.6, 10: 18.8, 30: 10.8, 100: 5.6}),
    ],
)
def test_shares_of_timesteps_by_snr_are_the_known_ones(
    schedule: str, below: bool, shares: dict[float, float]
) -> None:
    snr = NoiseSchedule(beta_schedule=schedule).snr(torch.arange(1000))
    for bound, percent in shares.items():
        share = (snr < bound if below else snr > bound).double().mean().item()
        assert 100 * share == pytest.approx(percent, abs=0.051)


@given(
    t=st.integers(0, 999),
    prediction_type=st.sampled_from(PREDICTION_TYPES),
    beta_schedule=st.sampled_from(SCHEDULES),
)
def test_the_true_prediction_denoises_to_the_true_image(
    t: int, prediction_type: str, beta_schedule: str
) -> None:
    schedule = NoiseSchedule(prediction_type, beta_schedule)
    x_0, noise = torch.rand(1, 1, 2, 2), torch.randn(1, 1, 2, 2)
    timestep = torch.tensor([t])
    x_t = schedule.add_noise(x_0, noise, timestep)
    x_0_again = schedule.denoised(schedule.target(x_0, noise, timestep), x_t, timestep)
    # ε tells x_0 only as far as the signal stands above float32's resolution.
    tolerance = (
        1e-6 / schedule.scales(timestep, x_0)[0].item() if prediction_type == "epsilon" else 1e-5
    )
    torch.testing.assert_close(x_0_again, x_0, atol=max(tolerance, 1e-5), rtol=0)


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
        (("epsilon", "linear", 1000, 0.02, 0.01), "beta_start and beta_end must rise"),
    ],
)
def test_unknown_schedules_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(*arguments)
