"""The reverse process against teachers whose answers are known in closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import PointMassTeacher, tiny_generator
from torch import Tensor

from avalanche_magd.samplers import make_sampler
from avalanche_magd.sampling import (
    balanced_labels,
    images_at_once,
    jittered_grid,
    reverse_runs,
    sample,
)
from avalanche_magd.schedule import NoiseSchedule


def test_a_wrong_timestep_is_seen_by_the_point_mass_teacher(rng: torch.Generator) -> None:
    schedule = NoiseSchedule()
    means = torch.rand(1, 1, 4, 4, generator=rng) * 2 - 1
    labels = torch.zeros(4, dtype=torch.long)
    noise = torch.randn(4, 1, 4, 4, generator=rng)
    grid = jittered_grid(5, 1000, 4, rng)
    steps = make_sampler("ddim", schedule, 0.0, rng)
    run = sample(PointMassTeacher(schedule, means), schedule, noise, labels, grid, steps)
    t, other_t = run.timesteps[2], run.timesteps[2] - 20
    signal, sigma = schedule.scales(run.timesteps[0], noise)
    z = (noise - signal * means) / sigma
    x_0 = means.expand(4, -1, -1, -1)
    error = (run.states[2] - schedule.add_noise(x_0, z, other_t)).abs().max()
    right = (run.states[2] - schedule.add_noise(x_0, z, t)).abs().max()
    assert error > 0.01 > 1e-5 > right


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
def test_a_state_is_the_finished_image_plus_the_weighted_predictions_before_it(
    beta_schedule: str, rng: torch.Generator
) -> None:
    # x_{t_i} = √ᾱ_i x_0 + √(1−ᾱ_i) Σ_{j≤i} (σ_j−σ_{j−1})/σ_i · ε_j, counted from the clean end.
    schedule = NoiseSchedule("epsilon", beta_schedule)
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    grid = jittered_grid(8, 700, 2, rng)  # below T: √ᾱ_{T−1} of the cosine is 5e-5

    def random_network(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return torch.tanh(network(x_t) + t.view(-1, 1, 1, 1) / 1000)

    run = sample(
        random_network,
        schedule,
        torch.randn(2, 1, 6, 6, generator=rng),
        torch.zeros(2, dtype=torch.long),
        grid,
        make_sampler("ddim", schedule, 0.0, rng),
        clip=False,
    )
    states, timesteps, outputs = run.states.flip(0), run.timesteps.flip(0), run.outputs.flip(0)
    sigmas = schedule.snr(timesteps).rsqrt().float()
    weighted, before = torch.zeros_like(run.images), torch.zeros_like(sigmas[0])
    for state, t, output, sigma in zip(states, timesteps, outputs, sigmas, strict=True):
        weighted = weighted + (sigma - before).view(-1, 1, 1, 1) * output
        before = sigma
        noise = weighted / sigma.view(-1, 1, 1, 1)
        error = (state - schedule.add_noise(run.images, noise, t)).abs().max()
        assert error < 1e-5


def test_a_stored_output_equals_a_fresh_call_on_the_stored_state(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0, 1, 2)).eval()
    labels = balanced_labels(6, [0, 1, 2], rng)
    (run,) = reverse_runs(generator, generator.schedule, (1, 8, 8), labels, 4, rng)
    with torch.no_grad():
        for state, t, output in zip(run.states, run.timesteps, run.outputs, strict=True):
            assert torch.equal(generator(state, t, run.labels), output)


@settings(max_examples=60, deadline=None)
@given(
    num_train_timesteps=st.sampled_from([2, 10, 100, 1000]),
    share=st.floats(0, 1),
    seed=st.integers(0, 10_000),
)
def test_a_grid_falls_strictly_from_the_last_timestep(
    num_train_timesteps: int, share: float, seed: int
) -> None:
    steps = max(1, round(share * num_train_timesteps))
    grid = jittered_grid(steps, num_train_timesteps, 3, torch.Generator().manual_seed(seed))
    assert grid.shape == (steps, 3)
    assert (grid[0] == num_train_timesteps - 1).all()
    assert (grid[1:] < grid[:-1]).all()
    assert grid.min() >= 0


def test_many_grids_cover_every_timestep(rng: torch.Generator) -> None:
    grid = jittered_grid(10, 1000, 5000, rng)
    assert len(grid.unique()) == 1000


def test_fewer_than_one_step_is_refused(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="num_inference_steps must be between 1 and 1000"):
        jittered_grid(1001, 1000, 1, rng)


@given(count=st.integers(1, 50), classes=st.sets(st.integers(0, 100), min_size=1, max_size=12))
def test_balanced_labels_differ_in_number_by_at_most_one(count: int, classes: set[int]) -> None:
    labels = balanced_labels(count, sorted(classes), torch.Generator().manual_seed(0))
    counts = [int((labels == label).sum()) for label in classes]
    assert sum(counts) == count
    assert max(counts) - min(counts) <= 1


def test_guidance_steers_the_run_but_not_its_outputs(rng: torch.Generator) -> None:
    schedule = NoiseSchedule()
    noise, labels = torch.randn(2, 1, 4, 4, generator=rng), torch.zeros(2, dtype=torch.long)
    grid = jittered_grid(3, 1000, 2, rng)

    def denoiser(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return 0.5 * x_t

    def guidance(prediction: Tensor, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return prediction + 0.1

    steps = make_sampler("ddim", schedule, 0.0, rng)
    free = sample(denoiser, schedule, noise, labels, grid, steps)
    guided = sample(denoiser, schedule, noise, labels, grid, steps, guidance=guidance)
    assert not torch.equal(free.states[1], guided.states[1])
    assert torch.equal(guided.outputs, 0.5 * guided.states)


def test_large_images_are_generated_few_at_once() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    sides = (8, 28, 32, 64, 256)
    assert [images_at_once((3, side, side), cpu) for side in sides] == [128, 83, 64, 16, 16]
    assert [images_at_once((3, side, side), gpu) for side in sides] == [4096, 1337, 1024, 256, 16]
    large = torch.nn.Linear(2**14, 2**14, device="meta")
    assert images_at_once((3, 32, 32), gpu, large) == 255
    generator = tiny_generator(classes=(0, 1))
    rng = torch.Generator().manual_seed(0)
    labels = torch.zeros(150, dtype=torch.long)
    runs = reverse_runs(generator, generator.schedule, (1, 8, 8), labels, 2, rng)
    assert [len(run.labels) for run in runs] == [128, 22]
