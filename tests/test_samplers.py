"""Samplers against exact teachers, and against diffusers' on grids that both know."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from tiny import PointMassTeacher
from torch import Tensor

from avalanche_magd.samplers import check_sampler, make_sampler
from avalanche_magd.sampling import jittered_grid, sample
from avalanche_magd.schedule import NoiseSchedule

SCHEDULES = [
    (prediction_type, beta_schedule)
    for prediction_type in ("epsilon", "v_prediction", "sample")
    for beta_schedule in ("linear", "squaredcos_cap_v2")
]
SAMPLERS = ["ddim", "dpmpp_2m", "unipc"]
STEPS = [2, 3, 7, 20, 100]


@pytest.mark.parametrize(("prediction_type", "beta_schedule"), SCHEDULES)
@pytest.mark.parametrize("num_inference_steps", [1, *STEPS])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_state_lies_at_its_labelled_noise_level(
    sampler: str,
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
    steps = make_sampler(sampler, schedule, 0.0, rng)
    run = sample(
        PointMassTeacher(schedule, means), schedule, noise, labels, grid, steps, clip=False
    )
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
    steps = make_sampler("ddim", schedule, eta, rng)
    run = sample(teacher, schedule, noise, labels, grid, steps, clip=False)
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
    return torch.stack([*states, x_t])


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers, numpy 2
@pytest.mark.parametrize(("prediction_type", "beta_schedule"), SCHEDULES)
@pytest.mark.parametrize("num_inference_steps", [2, 5, 10])
@pytest.mark.parametrize(
    ("sampler", "scheduler", "settings"),
    [
        ("ddim", DDIMScheduler, {"clip_sample": False}),
        ("dpmpp_2m", DPMSolverMultistepScheduler, {"solver_order": 2}),
        ("unipc", UniPCMultistepScheduler, {"solver_order": 2, "solver_type": "bh2"}),
    ],
)
def test_states_are_those_of_diffusers(
    sampler: str,
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
        signal, sigma = schedule.scales(t, x_t)
        x_0 = torch.tanh(0.3 + signal * x_t * labels.view(-1, 1, 1, 1))
        return schedule.target(x_0, (x_t - signal * x_0) / sigma, t)

    noise = torch.randn(4, 1, 4, 4, generator=rng).double()
    labels = torch.tensor([1, 2, 3, 4])
    grid = theirs.timesteps[:, None].expand(-1, 4)
    steps = make_sampler(sampler, schedule, 0.0, rng)
    run = sample(denoiser, schedule, noise, labels, grid, steps, clip=False)
    expected = diffusers_states(theirs, denoiser, noise, labels)
    # diffusers keeps its tables in single precision.
    torch.testing.assert_close(run.states, expected[:-1], atol=2e-3, rtol=2e-3)


def test_samplers_converge_at_their_order(rng: torch.Generator) -> None:
    schedule = NoiseSchedule()

    def gaussian(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Images with mean 0.2 and variance 0.25."""
        signal, sigma = schedule.scales(t, x_t)
        gain = signal * 0.25 / (signal**2 * 0.25 + sigma**2)
        x_0 = 0.2 + gain * (x_t - signal * 0.2)
        return schedule.target(x_0, (x_t - signal * x_0) / sigma, t)

    noise = torch.randn(64, 1, 2, 2, generator=rng).double()
    labels = torch.zeros(64, dtype=torch.long)

    def last_states(sampler: str, count: int) -> Tensor:
        grid = torch.linspace(999, 50, count).long()[:, None].expand(-1, 64)
        steps = make_sampler(sampler, schedule, 0.0, rng)
        run = sample(gaussian, schedule, noise, labels, grid, steps, clip=False)
        return run.states[-1]

    limit = last_states("ddim", 900)
    for name, order in {"ddim": 1, "dpmpp_2m": 2, "unipc": 2}.items():
        coarse, fine = ((last_states(name, k) - limit).abs().mean().item() for k in (20, 40))
        # Twice the steps: half the error at order 1, about a quarter at order 2.
        assert (fine < coarse / 2.8) == (order == 2)
        assert fine < (0.012 if order == 1 else 0.002)


@pytest.mark.parametrize(
    ("name", "eta", "message"),
    [
        ("ddpm", 0.0, "sampler must be one of ddim, dpmpp_2m, unipc; got 'ddpm'"),
        ("ddim", 1.5, "eta must be between 0 and 1, got 1.5"),
        ("unipc", 0.5, "eta=0.5 needs sampler='ddim': 'unipc' is deterministic"),
    ],
)
def test_unknown_samplers_are_refused(name: str, eta: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sampler(name, eta)
