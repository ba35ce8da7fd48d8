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
from jaxtyping import Bool, Float
from torch import Tensor

from avalanche_magd.distillation.batch import LessonBatch
from avalanche_magd.sampling import Trajectory


def trajectory_lessons(
    trajectory: Trajectory, kept: int, rng: torch.Generator
) -> tuple[LessonBatch, Float[Tensor, " n"]]:
    """The states of a run as lessons, with their free targets, and the weight of each.

    Args:
        trajectory: of k states and b images.
        kept: lessons per image, at most k; fewer are a random choice.
        rng: source of that choice.

    Returns:
        b·kept lessons, those of an image next to one another, and weights that sum to T − 1 over
        the k states of each.
    """
    states, timesteps, outputs, labels, _ = trajectory
    t = timesteps.float()
    middle = (t[:-1] + t[1:]) / 2
    above = torch.cat([t[:1], middle])
    below = torch.cat([middle, torch.zeros_like(t[:1])])
    step = torch.arange(len(t), device=t.device).expand(len(labels), -1)
    if kept < len(t):
        jitter = torch.rand(step.shape, generator=rng, device=t.device)
        step = jitter.argsort(1)[:, :kept]
    index = (step, torch.arange(len(labels), device=t.device)[:, None])
    lessons = LessonBatch(
        states[index].flatten(0, 1),
        timesteps[index].flatten(),
        labels.repeat_interleave(step.shape[1]),
        outputs[index].flatten(0, 1),
    )
    return lessons, (above - below)[index].flatten()


def off_trajectory(
    count: int, trajectory_share: float, rng: torch.Generator
) -> Bool[Tensor, " {count}"]:
    """Which lessons shall start from a finished image, noised again, not from a state.

    Args:
        count: number of lessons.
        trajectory_share: expected share of lessons that keep their state; 1 keeps them all.
        rng: source of the choice.
    """
    return torch.rand(count, generator=rng, device=rng.device) >= trajectory_share
