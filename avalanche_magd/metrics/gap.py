"""The gap between NIGD's inputs and those of training on real images.

A denoiser is trained on images noised forward; NIGD's lessons are states of its own reverse runs.
Where the two differ, by bins of t:

* *spread*: standard deviation of the states over that of noised images; below 1 the run has lost
  variance;
* *output*: root mean square of the denoiser's predictions on states over that on noised images;
* *errors*: mean squared difference between a student and the denoiser, on both.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from avalanche_magd.diffusion.guidance import Denoiser
from avalanche_magd.diffusion.sampling import reverse_runs
from avalanche_magd.diffusion.schedule import Images, Indices
from avalanche_magd.runtime.precision import normal

Bins = Float[Tensor, " bins"]


class Gap(NamedTuple):
    """Figures by bin of t, the cleanest first; NaN where a bin holds no state."""

    t: Bins
    """Middle of each bin."""
    spread: Bins
    output: Bins
    error_on_states: Bins
    error_on_noised: Bins


@torch.no_grad()
def forward_backward_gap(
    generator: Any,
    images: Images,
    labels: Indices,
    num_inference_steps: int,
    rng: torch.Generator,
    *,
    student: Denoiser | None = None,
    bins: int = 10,
) -> Gap:
    """Compare the states of reverse runs with real images noised to the same timesteps.

    Args:
        generator: the teacher; called K times on each image for the runs, and as often again.
        images: real images in [−1, 1].
        labels: class of each; the runs generate the same classes.
        num_inference_steps: K.
        rng: source of noise and grids, on the images' device.
        student: compared with the teacher; ``None`` for the teacher itself, whose errors are 0.
        bins: of equal width over [0, T).
    """
    schedule, start = generator.schedule, 0
    steps, sums = schedule.num_train_timesteps, torch.zeros(9, bins, dtype=torch.float64)
    for run in reverse_runs(generator, labels, num_inference_steps, rng):
        count = len(run.labels)
        for state, t, output in zip(run.states, run.timesteps, run.outputs, strict=True):
            noise = normal(state.shape, rng)
            noised = schedule.add_noise(images[start : start + count], noise, t)
            answer = generator(noised, t, run.labels)
            of_student = (output, answer)
            if student is not None:
                of_student = (student(state, t, run.labels), student(noised, t, run.labels))
            errors = (of_student[0] - output, of_student[1] - answer)
            each = (state, noised, *(x.square() for x in (state, noised, output, answer, *errors)))
            means = torch.stack([x.flatten(1).mean(1) for x in (torch.ones_like(state), *each)])
            sums.index_add_(1, (t * bins // steps).cpu(), means.double().cpu())
        start += count
    of_states, of_noised, state, noised, output, answer, on_states, on_noised = sums[1:] / sums[0]
    middle = ((torch.arange(bins) + 0.5) * steps / bins).double()
    spread = ((state - of_states**2) / (noised - of_noised**2)).sqrt()
    return Gap(middle, spread, (output / answer).sqrt(), on_states, on_noised)
