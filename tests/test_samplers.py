"""Samplers against exact teachers, and against diffusers' on grids that both know."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from tiny import PointMassTeacher
from torch import Tensor

from avalanche_magd.diffusion.samplers import DDIM, DPMSolver, Sampler, UniPC, check_sampler
from avalanche_magd.diffusion.sampling import jittered_grid, sample
from avalanche_magd.diffusion.schedule import NoiseSchedule

SCHEDULES = [
    (prediction_type, beta_schedule)
    for prediction_type in ("epsilon", "v_prediction", "sample")
    for beta_schedule in ("linear", "squaredcos_cap_v2")
]
SAMPLERS = [DDIM(), DPMSolver(), UniPC()]


@pytest.mark.parametrize(("prediction_type", "beta_schedule"), SCHEDULES)
@pytest.mark.parametrize("num_inference_steps", [1, 2, 3, 7, 20, 100])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_every_state_lies_at_its_labelled_noise_level(
    sampler: Sampler,
    prediction_type: str,
    beta_schedule: str,
    num_inference_steps: int,
    rng: torch.Generator,
) -> None:
    schedule = NoiseSchedule(prediction_type, beta_schedule)
    means = torch.rand(3, 1, 4, 4, generator=rng).double() * 2 - 1
    labels = torch.tensor([0, 1, 2, 1])
    noise = torch.randn(4, 1, 4, 4, generator=rng).double()
    grid = jittered_grid(num_inference_steps, 1000, 4, rng)
    teacher = PointMassTeacher(schedule, means)
    run = sample(teacher, schedule, noise, labels, grid, rng, sampler=sampler, clip=False)
    signal, sigma = schedule.scales(grid[0], noise)
    z = (noise - signal * means[labels]) / sigma
    for state, t in zip(run.states, run.timesteps, strict=True):
        assert (state - schedule.add_noise(means[labels], z, t)).abs().max() < 1e-6
    torch.testing.assert_close(run.images, means[labels], atol=1e-6, rtol=0)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_new_noise_keeps_every_state_at_its_noise_level(eta: float, rng: torch.Generator) -> None:
    schedule = NoiseSchedule()
    mean = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    labels = torch.zeros(4000, dtype=torch.long)
    noise = torch.randn(4000, 1, 1, 1, generator=rng).double()
    grid = jittered_grid(6, 1000, 1, rng).expand(6, 4000)
    teacher = PointMassTeacher(schedule, mean)
    run = sample(teacher, schedule, noise, labels, grid, rng, sampler=DDIM(eta), clip=False)
    before, last_t = noise, grid[0]
    for state, t in zip(run.states[1:], run.timesteps[1:], strict=True):
        signal, sigma = schedule.scales(t, state)
        z = (state - signal * mean) / sigma
        assert z.std().item() == pytest.approx(1, abs=0.05)
        # The variance of the new noise, as DDIM's eq. 16 gives it.
        a, next_a = schedule.alphas_cumprod[last_t[0]], schedule.alphas_cumprod[t[0]]
        new = eta**2 * (1 - next_a) / (1 - a) * (1 - a / next_a)
        kept = torch.corrcoef(torch.stack([z.flatten(), before.flatten()]))[0, 1].item()
        assert kept**2 == pytest.approx(1 - new.item() / (1 - next_a).item(), abs=0.05)
        before, last_t = z, t
    torch.testing.assert_close(run.images, mean.expand(4000, 1, 1, 1), atol=1e-6, rtol=0)


def diffusers_states(scheduler: Any, denoiser: Any, noise: Tensor, labels: Tensor) -> Tensor:
    states, x_t = [], noise
    for t in scheduler.timesteps:
        states.append(x_t)
        x_t = scheduler.step(denoiser(x_t, t.expand(len(x_t)), labels), t, x_t).prev_sample
    return torch.stack(states)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers, numpy 2
@pytest.mark.parametrize(("prediction_type", "beta_schedule"), SCHEDULES)
@pytest.mark.parametrize("num_inference_steps", [2, 5, 10])
@pytest.mark.parametrize(
    ("sampler", "scheduler", "settings"),
    [
        (DDIM(), DDIMScheduler, {"clip_sample": False}),
        (DPMSolver(), DPMSolverMultistepScheduler, {"solver_order": 2}),
        (UniPC(), UniPCMultistepScheduler, {"solver_order": 2, "solver_type": "bh2"}),
    ],
    ids=repr,
)
def test_states_are_those_of_diffusers(
    sampler: Sampler,
    scheduler: Any,
    settings: dict[str, Any],
    prediction_type: str,
    beta_schedule: str,
    num_inference_steps: int,
    rng: torch.Generator,
) -> None:
    schedule = NoiseSchedule(prediction_type, beta_schedule)
    theirs = scheduler(
        1000,
        prediction_type=prediction_type,
        beta_schedule=beta_schedule,
        timestep_spacing="trailing",
        **settings,
    )
    theirs.set_timesteps(num_inference_steps)

    def denoiser(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        signal, _ = schedule.scales(t, x_t)
        x_0 = torch.tanh(0.3 + signal * x_t * labels.view(-1, 1, 1, 1))
        return schedule.prediction(x_0, x_t, t)

    noise = torch.randn(4, 1, 4, 4, generator=rng).double()
    labels = torch.tensor([1, 2, 3, 4])
    grid = theirs.timesteps[:, None].expand(-1, 4)
    run = sample(denoiser, schedule, noise, labels, grid, rng, sampler=sampler, clip=False)
    # diffusers keeps its tables in single precision.
    expected = diffusers_states(theirs, denoiser, noise, labels)
    torch.testing.assert_close(run.states, expected, atol=2e-3, rtol=2e-3)


def gaussian_end(sampler: Sampler, count: int) -> Tensor:
    """The last of so many states, where images have mean 0.2 and variance 0.25."""
    schedule = NoiseSchedule()
    rng = torch.Generator().manual_seed(0)

    def denoiser(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        signal, sigma = schedule.scales(t, x_t)
        gain = signal * 0.25 / (signal**2 * 0.25 + sigma**2)
        return schedule.prediction(0.2 + gain * (x_t - signal * 0.2), x_t, t)

    noise = torch.randn(64, 1, 2, 2, generator=rng).double()
    labels = torch.zeros(64, dtype=torch.long)
    grid = torch.linspace(999, 50, count).long()[:, None].expand(-1, 64)
    run = sample(denoiser, schedule, noise, labels, grid, rng, sampler=sampler, clip=False)
    return run.states[-1]


@pytest.mark.parametrize(
    ("sampler", "least_gain", "most_gain", "error"),
    [(DDIM(), 1.8, 2.4, 0.012), (DPMSolver(), 2.8, 5.0, 0.002), (UniPC(), 2.8, 5.0, 0.002)],
    ids=repr,
)
def test_twice_the_steps_divide_the_error_by_two_to_the_samplers_order(
    sampler: Sampler, least_gain: float, most_gain: float, error: float
) -> None:
    limit = gaussian_end(DDIM(), 900)
    coarse, fine = (
        (gaussian_end(sampler, count) - limit).abs().mean().item() for count in (20, 40)
    )
    assert least_gain < coarse / fine < most_gain
    assert fine < error


@pytest.mark.parametrize("sampler", [*SAMPLERS, DDIM(eta=0.5)], ids=repr)
def test_a_sampler_starts_each_run_anew(sampler: Sampler) -> None:
    first, second = gaussian_end(sampler, 5), gaussian_end(sampler, 5)
    assert torch.equal(first, second)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_two_runs_of_one_sampler_may_take_turns(sampler: Sampler, rng: torch.Generator) -> None:
    schedule = NoiseSchedule()
    grid = torch.tensor([999, 700, 400, 100])[:, None]
    states = torch.randn(2, 1, 1, 2, 2, generator=rng)

    def predicted(x_t: Tensor) -> Tensor:
        return torch.tanh(x_t)

    alone = []
    for x_t in states:
        step = sampler.begin(schedule, rng)
        for t, next_t in pairwise(grid):
            x_t = step(predicted(x_t), x_t, t, next_t)
        alone.append(x_t)
    steps = [sampler.begin(schedule, rng) for _ in states]
    together = list(states)
    for t, next_t in pairwise(grid):
        together = [
            step(predicted(x_t), x_t, t, next_t) for step, x_t in zip(steps, together, strict=True)
        ]
    torch.testing.assert_close(together, alone, atol=0, rtol=0)


def test_samplers_say_what_they_are_and_equal_those_with_the_same_settings() -> None:
    assert list(map(repr, [DDIM(eta=0.3), DPMSolver(), UniPC()])) == [
        "DDIM(eta=0.3)",
        "DPMSolver()",
        "UniPC()",
    ]
    assert DDIM() == DDIM(eta=0.0) != DDIM(eta=0.3)
    assert UniPC() == UniPC() != DPMSolver()
    assert len({UniPC(), UniPC(), DPMSolver(), DDIM(), DDIM(0.0)}) == 3


@pytest.mark.parametrize("eta", [-0.1, 1.5, math.nan])
def test_an_eta_outside_its_range_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match=f"eta must be a number from 0 to 1, got {eta}"):
        DDIM(eta)


@pytest.mark.parametrize("sampler", ["ddim", None, UniPC], ids=repr)
def test_what_is_no_sampler_is_refused(sampler: Any) -> None:
    with pytest.raises(TypeError, match=r"such as UniPC\(\), DPMSolver\(\) or DDIM\(eta=0.0\), "):
        check_sampler(sampler)
