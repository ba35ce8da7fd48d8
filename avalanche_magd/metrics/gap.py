"""The gap between NIGD's inputs and those of training on real images.

A denoiser is trained on images noised forward; NIGD's lessons are states of its own reverse runs.
Where the two differ, by bins of t:

* *spread*: standard deviation of the states over that of noised images; below 1 the run has lost
  variance;
* *output*: root mean square of the denoiser's predictions on states over that on noised images;
* *errors*: mean squared difference between a student and the denoiser, on both.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avalanche_magd.sampling import Denoiser, reverse_runs
from avalanche_magd.schedule import NoiseSchedule


class Gap(NamedTuple):
    """Figures by bin of t, the cleanest first; NaN where a bin holds no state."""

    t: Float[Tensor, " bins"]
    """Middle of each bin."""
    spread: Float[Tensor, " bins"]
    output: Float[Tensor, " bins"]
    error_on_states: Float[Tensor, " bins"]
    error_on_noised: Float[Tensor, " bins"]


@torch.no_grad()
def forward_backward_gap(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    num_inference_steps: int,
    rng: torch.Generator,
    *,
    student: Denoiser | None = None,
    bins: int = 10,
) -> Gap:
    """Compare the states of reverse runs with real images noised to the same timesteps.

    Args:
        denoiser: the teacher; called K times on each image for the runs, and as often again.
        schedule: its noise levels.
        images: real images in [−1, 1].
        labels: class of each; the runs generate the same classes.
        num_inference_steps: K.
        rng: source of noise and grids, on the images' device.
        student: compared with the denoiser; ``None`` for the denoiser itself, whose errors are 0.
        bins: of equal width over [0, T).
    """
    steps, sums = schedule.num_train_timesteps, torch.zeros(9, bins, dtype=torch.float64)
    start = 0
    shape = (images.shape[1], images.shape[2], images.shape[3])
    for run in reverse_runs(denoiser, schedule, shape, labels, num_inference_steps, rng):
        count = len(run.labels)
        for state, t, output in zip(run.states, run.timesteps, run.outputs, strict=True):
            noise = torch.randn(state.shape, generator=rng, device=rng.device)
            noised = schedule.add_noise(images[start : start + count], noise, t)
            answer = denoiser(noised, t, run.labels)
            on_states, on_noised = torch.zeros(count), torch.zeros(count)
            if student is not None:
                on_states = _mean_square(student(state, t, run.labels) - output)
                on_noised = _mean_square(student(noised, t, run.labels) - answer)
            figures = torch.stack(
                [
                    torch.ones(count),
                    *(each.flatten(1).mean(1).cpu() for each in (state, noised)),
                    *(_mean_square(each).cpu() for each in (state, noised, output, answer)),
                    on_states.cpu(),
                    on_noised.cpu(),
                ]
            )
            sums.index_add_(1, (t * bins // steps).cpu(), figures.double())
        start += count
    of_states, of_noised, state, noised, output, answer, on_states, on_noised = sums[1:] / sums[0]
    return Gap(
        t=((torch.arange(bins) + 0.5) * steps / bins).double(),
        spread=((state - of_states**2) / (noised - of_noised**2)).sqrt(),
        output=(output / answer).sqrt(),
        error_on_states=on_states,
        error_on_noised=on_noised,
    )


def _mean_square(images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    return images.square().flatten(1).mean(1)
