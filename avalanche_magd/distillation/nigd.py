"""NIGD, noisy intermediate generative distillation: every state of a reverse run is a lesson.

Distillation matches functions: whatever the law of its inputs, the student's optimum is the
teacher's output there. So each noisy state that a teacher passed through, with its own timestep
and label, is a valid input, and the target, the teacher's raw output, was computed by the run
itself: one network forward per lesson. Noising finished images again and calling the teacher on
them costs K + 1 forwards.

The states must never be regressed on drawn noise: they are not samples of the forward process.

Grid nodes crowd near t = 0. A lesson's weight is the width of the interval of t that it stands for
(trapezoidal rule), so that drawing lessons by weight spreads them evenly over t, as training on
real images is.

References:
    MAGD's published abstract. Masip et al. 2023, *Continual learning of diffusion models with
    generative distillation*, arXiv 2311.14028 (the form that noises finished images again).
"""

import torch
from jaxtyping import Int
from torch import Tensor

from avalanche_magd.diffusion.sampling import Trajectory, interval_widths, steps_at
from avalanche_magd.distillation.lessons import InputSource, LessonBatch
from avalanche_magd.runtime.precision import PRECISION, uniform


def trajectory_lessons(
    trajectory: Trajectory, lessons_per_image: int, rng: torch.Generator
) -> LessonBatch:
    """The states of a run as lessons, with the targets that the run computed.

    Where fewer lessons per image are wanted than there are states, they are drawn, each state in
    proportion to the width of its interval of t; then all weigh the same.

    Returns:
        The lessons, those of an image next to one another, with weights that sum to T − 1.
    """
    widths, count = interval_widths(trajectory.timesteps), len(trajectory.labels)
    device = widths.device
    if lessons_per_image == len(widths):
        step = torch.arange(lessons_per_image, device=device).expand(count, -1)
        weight = widths.T
    else:
        jitter = uniform((count, lessons_per_image), rng)
        stratum = torch.arange(lessons_per_image, device=device)
        step = steps_at(widths, (stratum + jitter) / lessons_per_image)
        weight = (widths.sum(0) / lessons_per_image)[:, None].expand(-1, lessons_per_image)
    return lessons_at(trajectory, step)._replace(weight=weight.flatten())


def lessons_at(trajectory: Trajectory, step: Int[Tensor, "b n"]) -> LessonBatch:
    """The states of b runs at n steps each, those of a run next to one another; equal weights."""
    index = (step, torch.arange(len(step), device=step.device)[:, None])
    t = trajectory.timesteps[index].flatten()
    return LessonBatch(
        trajectory.states[index].flatten(0, 1),
        t,
        trajectory.labels.repeat_interleave(step.shape[1]),
        trajectory.outputs[index].flatten(0, 1),
        torch.full_like(t, InputSource.STATE, dtype=torch.int8),
        torch.ones_like(t, dtype=PRECISION),
    )
