"""NIGD, noisy intermediate generative distillation: every state of a reverse run is a lesson.

Distillation matches functions: whatever the law of its inputs, the student's optimum is the
teacher's output there. So each noisy state that a teacher passed through, with its own timestep
and label, is a valid input, and the target, the teacher's raw output, was computed by the run
itself: one network forward per lesson. Noising finished images again and asking the teacher costs
K + 1 forwards.

The states must never be regressed on drawn noise: they are not samples of the forward process.

Grid nodes crowd near t = 0. A lesson's weight is the length of the stretch of t that it stands for
(trapezoidal rule), so that drawing lessons by weight spreads them evenly over t, as training on
real images is.

References:
    MAGD's published abstract. Masip et al. 2023, *Continual learning of diffusion models with
    generative distillation*, arXiv 2311.14028 (the form that noises finished images again).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avalanche_magd.distillation.batch import Input, LessonBatch
from avalanche_magd.sampling import Trajectory, steps_at, stretches


def trajectory_lessons(
    trajectory: Trajectory, kept: int, rng: torch.Generator
) -> tuple[LessonBatch, Float[Tensor, " n"]]:
    """The states of a run as lessons, with their free targets, and the weight of each.

    Args:
        trajectory: of k states and b images.
        kept: lessons per image, at most k. Fewer are drawn, each state in proportion to the
            stretch of t that it stands for; then all weigh the same.
        rng: source of that choice.

    Returns:
        b·kept lessons, those of an image next to one another, and weights that sum to T − 1 over
        those of each.
    """
    length, count = stretches(trajectory.timesteps), len(trajectory.labels)
    device = length.device
    if kept == len(length):
        step = torch.arange(kept, device=device).expand(count, -1)
        weights = length.T
    else:
        jitter = torch.rand(count, kept, generator=rng, device=device)
        step = steps_at(length, (torch.arange(kept, device=device) + jitter) / kept)
        weights = (length.sum(0) / kept)[:, None].expand(-1, kept)
    return lessons_at(trajectory, step), weights.flatten()


def lessons_at(trajectory: Trajectory, step: Int[Tensor, "b n"]) -> LessonBatch:
    """The states of b runs at n steps each, those of a run next to one another."""
    index = (step, torch.arange(len(step), device=step.device)[:, None])
    t = trajectory.timesteps[index].flatten()
    return LessonBatch(
        trajectory.states[index].flatten(0, 1),
        t,
        trajectory.labels.repeat_interleave(step.shape[1]),
        trajectory.outputs[index].flatten(0, 1),
        torch.full_like(t, Input.STATE, dtype=torch.int8),
    )
