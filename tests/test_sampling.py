"""The reverse process against teachers whose answers are known in closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import PointMassTeacher, tiny_generator
from torch import Tensor

from avalanche_magd.diffusion.guidance import GuidedPrediction
from avalanche_magd.diffusion.samplers import DDIM, DPMSolver
from avalanche_magd.diffusion.sampling import (
    balanced_labels,
    draw_start,
    inference_batch_size,
    interval_widths,
    jittered_grid,
    reverse_runs,
    sample,
    steps_at,
)
from avalanche_magd.diffusion.schedule import NoiseSchedule


def test_the_point_mass_teacher_tells_a_wrong_timestep(rng: torch.Generator) -> None:
    schedule = NoiseSchedule()
    means = torch.rand(1, 1, 4, 4, generator=rng) * 2 - 1
    labels = torch.zeros(4, dtype=torch.long)
    noise = torch.randn(4, 1, 4, 4, generator=rng)
    grid = jittered_grid(5, 1000, 4, rng)
    teacher = PointMassTeacher(schedule, means)
    run = sample(teacher, schedule, noise, labels, grid, rng, sampler=DDIM())
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
        rng,
        sampler=DDIM(),
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


def test_a_coarse_run_of_a_gaussian_teacher_loses_the_known_variance(rng: torch.Generator) -> None:
    schedule = NoiseSchedule("epsilon", "linear")

    def teacher(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        signal, sigma = schedule.scales(t, x_t)
        x_0 = signal * 0.25 / (signal**2 * 0.25 + sigma**2) * x_t
        return schedule.prediction(x_0, x_t, t)

    noise = torch.randn(20_000, 1, 1, 1, generator=rng).double()
    grid = torch.arange(999, 0, -100)[:, None].expand(10, 20_000)
    labels = torch.zeros(20_000, dtype=torch.long)
    run = sample(teacher, schedule, noise, labels, grid, rng, sampler=DDIM(), clip=False)
    signal, sigma = schedule.scales(grid[-1, :1], noise[:1])
    marginal = (signal**2 * 0.25 + sigma**2).item()
    assert (run.states[-1].var() / marginal).item() == pytest.approx(0.80, abs=0.02)
    assert (run.images.var() / 0.25).item() == pytest.approx(0.55, abs=0.02)


def test_a_stored_output_equals_a_new_call_on_the_stored_state(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0, 1, 2)).eval()
    labels = balanced_labels(6, [0, 1, 2], rng)
    (run,) = reverse_runs(generator, labels, 4, rng)
    with torch.no_grad():
        for state, t, output in zip(run.states, run.timesteps, run.outputs, strict=True):
            assert torch.equal(generator(state, t, run.labels), output)


def test_a_run_follows_the_guided_prediction_and_keeps_the_raw_output(
    rng: torch.Generator,
) -> None:
    schedule = NoiseSchedule()
    noise, labels = torch.randn(2, 1, 4, 4, generator=rng), torch.zeros(2, dtype=torch.long)
    grid = jittered_grid(3, 1000, 2, rng)

    def guided(x_t: Tensor, t: Tensor, labels: Tensor) -> GuidedPrediction:
        return GuidedPrediction(0.5 * x_t, 0.5 * x_t + 0.1)

    def followed(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return 0.5 * x_t + 0.1

    run = sample(guided, schedule, noise, labels, grid, rng, sampler=DDIM())
    same_way = sample(followed, schedule, noise, labels, grid, rng, sampler=DDIM())
    assert torch.equal(run.states, same_way.states)
    assert torch.equal(run.images, same_way.images)
    assert torch.equal(run.outputs, 0.5 * run.states)


def test_a_run_keeps_the_predicted_images_within_the_range_unless_told_not_to(
    rng: torch.Generator,
) -> None:
    schedule = NoiseSchedule("sample")
    noise, labels = torch.randn(2, 1, 4, 4, generator=rng), torch.zeros(2, dtype=torch.long)
    grid = jittered_grid(3, 1000, 2, rng)

    def too_bright(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return torch.full_like(x_t, 3.0)

    clipped = sample(too_bright, schedule, noise, labels, grid, rng)
    assert (clipped.images == 1).all()
    assert (clipped.outputs == 3).all()
    assert (sample(too_bright, schedule, noise, labels, grid, rng, clip=False).images == 3).all()


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


@pytest.mark.parametrize("num_inference_steps", [0, 1001])
def test_fewer_steps_than_one_and_more_than_noise_levels_are_refused(
    num_inference_steps: int, rng: torch.Generator
) -> None:
    with pytest.raises(ValueError, match="num_inference_steps must be between 1 and 1000"):
        jittered_grid(num_inference_steps, 1000, 1, rng)


def test_widths_of_intervals_follow_the_trapezoidal_rule() -> None:
    timesteps = torch.tensor([[999, 9], [600, 4], [100, 0]])
    widths = interval_widths(timesteps)
    assert widths.tolist() == [[199.5, 2.5], [449.5, 4.5], [350.0, 2.0]]
    assert widths.sum(0).tolist() == [999, 9]


def test_a_position_is_in_the_interval_that_contains_it() -> None:
    widths = torch.tensor([[1.0, 2.0], [3.0, 1.0], [6.0, 1.0]])
    position = torch.tensor(
        [[0.0, 0.09, 0.11, 0.39, 0.41, 0.999], [0.0, 0.49, 0.51, 0.74, 0.76, 0.9]]
    )
    assert steps_at(widths, position).tolist() == [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]]
    # Rounding may put the largest position at the end of the last interval.
    assert steps_at(widths, torch.ones(2, 1)).tolist() == [[2], [2]]


@given(count=st.integers(1, 50), classes=st.sets(st.integers(0, 100), min_size=1, max_size=12))
def test_balanced_labels_differ_in_number_by_at_most_one(count: int, classes: set[int]) -> None:
    labels = balanced_labels(count, sorted(classes), torch.Generator().manual_seed(0))
    counts = [int((labels == label).sum()) for label in classes]
    assert sum(counts) == count
    assert max(counts) - min(counts) <= 1


def test_balanced_labels_are_first_of_the_classes_that_have_fewest(rng: torch.Generator) -> None:
    labels = balanced_labels(5, [1, 4, 7], rng, {1: 5, 4: 1, 9: 0})
    assert labels.sort().values.tolist() == [4, 4, 7, 7, 7]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", {8: 128, 28: 83, 32: 64, 64: 16, 256: 16}),
        ("cuda", {8: 4096, 28: 1337, 32: 1024, 64: 256, 256: 16}),
    ],
)
def test_large_images_go_through_the_network_few_at_once(
    device: str, expected: dict[int, int]
) -> None:
    sizes = {
        side: inference_batch_size((3, side, side), torch.device(device)) for side in expected
    }
    assert sizes == expected


def test_a_large_network_on_a_gpu_is_given_fewer_images_at_once() -> None:
    large = torch.nn.Linear(2**14, 2**14, device="meta")
    assert inference_batch_size((3, 32, 32), torch.device("cuda"), large) == 255


def test_reverse_runs_come_in_batches_of_what_the_network_is_given_at_once(
    rng: torch.Generator,
) -> None:
    generator = tiny_generator(classes=(0, 1))
    labels = torch.arange(150) % 2
    runs = list(reverse_runs(generator, labels, 2, rng))
    assert [len(run.labels) for run in runs] == [128, 22]
    assert torch.equal(torch.cat([run.labels for run in runs]), labels)
    runs = list(reverse_runs(generator, labels, 2, rng, batch_size=60))
    assert [len(run.labels) for run in runs] == [60, 60, 30]


def test_reverse_runs_are_runs_of_the_sampler_from_drawn_starts(rng: torch.Generator) -> None:
    schedule = NoiseSchedule()
    teacher = PointMassTeacher(schedule, torch.rand(2, 3, 4, 5, generator=rng))
    labels, state = torch.tensor([1, 0, 1]), rng.get_state()
    (run,) = reverse_runs(teacher, labels, 6, rng, sampler=DPMSolver())
    rng.set_state(state)
    noise, timesteps = draw_start(teacher, 3, 6, rng)
    assert noise.shape == (3, 3, 4, 5)
    assert timesteps.shape == (6, 3)
    by_hand = sample(teacher, schedule, noise, labels, timesteps, rng, sampler=DPMSolver())
    for ours, expected in zip(run, by_hand, strict=True):
        assert torch.equal(ours, expected)


def test_a_guide_is_called_in_the_generators_place(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0,))

    def guide(x_t: Tensor, t: Tensor, labels: Tensor) -> GuidedPrediction:
        return GuidedPrediction(torch.zeros_like(x_t), torch.ones_like(x_t))

    (run,) = reverse_runs(generator, torch.zeros(2, dtype=torch.long), 3, rng, guide=guide)
    assert generator.forwards == 0
    assert (run.outputs == 0).all()
