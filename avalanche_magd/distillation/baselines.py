"""What MAGD is compared with: other modes of distillation, in the same form.

=======================  ==================================  ======================
mode                     input                               target
=======================  ==================================  ======================
``None``: fine-tuning    –                                   –
DGR                      finished image, noised              the noise drawn
generative distillation  finished image, noised              the teacher's
partial generation       state at which a run was stopped    the teacher's
Gaussian distillation    pure noise at every t               the teacher's
LwF distillation         current image, noised, old label    the teacher's
=======================  ==================================  ======================

DDGR is DGR whose runs are guided by the solver: ``Distillation(dgr,
guidance=CGGD(classifier_scale=1.0))``.

As published, all of them make each lesson's input anew in each training step:
``Distillation(mode, on_the_fly=True)``. Otherwise their lessons wait in a pool, as MAGD's do, many
from one image.

References:
    Shin et al. 2017, *Continual learning with deep generative replay* (DGR).
    Masip et al. 2023, *Continual learning of diffusion models with generative distillation*,
    arXiv 2311.14028 (generative, partial, Gaussian and LwF distillation).
    Gao & Liu 2023, *DDGR: continual learning with deep diffusion-based generative replay*, ICML.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from avalanche_magd.diffusion.guidance import GuidedPrediction, as_guided
from avalanche_magd.diffusion.sampling import (
    Trajectory,
    draw_start,
    interval_widths,
    sample,
    steps_at,
)
from avalanche_magd.diffusion.schedule import Images, Indices
from avalanche_magd.distillation.lessons import InputSource, LessonBatch, noised_lessons
from avalanche_magd.distillation.magd import MAGD
from avalanche_magd.distillation.nigd import lessons_at
from avalanche_magd.distillation.teacher import Teacher
from avalanche_magd.runtime.precision import normal, uniform

generative_distillation = MAGD(trajectory_share=0.0)


def dgr(teacher: Teacher, labels: Indices, per_image: int) -> LessonBatch:
    """Generated images are taught as if they were real."""
    images = teacher.trajectories(labels).images.repeat_interleave(per_image, 0)
    labels = labels.repeat_interleave(per_image)
    schedule = teacher.generator.schedule
    lessons = noised_lessons(schedule, images, labels, teacher.rng, InputSource.RENOISED)
    return teacher.drop_labels(lessons)[0]


def partial_generation(teacher: Teacher, labels: Indices, per_image: int) -> LessonBatch:
    """Runs that stop at a state drawn evenly over t; the teacher's output there is the target."""
    rng = teacher.rng
    position = uniform((len(labels), per_image), rng)
    if teacher.run is None:
        run = _stopped_run(teacher, labels, position.max(1).values)
    else:
        run = teacher.run
    lessons = lessons_at(run, steps_at(interval_widths(run.timesteps), position))
    return teacher.relabel(lessons, torch.zeros_like(lessons.labels, dtype=torch.bool))


def gaussian_distillation(teacher: Teacher, labels: Indices, per_image: int) -> LessonBatch:
    """Pure noise, whatever t says; no image is needed."""
    lessons = _current_lessons(teacher, labels, per_image)
    source = torch.full_like(lessons.source, InputSource.NOISE)
    lessons = lessons._replace(x_t=normal(lessons.x_t.shape, teacher.rng), source=source)
    return teacher.relabel(lessons, torch.ones_like(lessons.labels, dtype=torch.bool))


def lwf_distillation(teacher: Teacher, labels: Indices, per_image: int) -> LessonBatch:
    """Current images under the labels of old classes; nothing is generated."""
    lessons = _current_lessons(teacher, labels, per_image)
    return teacher.relabel(lessons, torch.ones_like(lessons.labels, dtype=torch.bool))


def _current_lessons(teacher: Teacher, labels: Indices, per_image: int) -> LessonBatch:
    """Noised current images under these labels; their targets are to be replaced."""
    labels = labels.repeat_interleave(per_image)
    images = teacher.images_for(len(labels))
    schedule = teacher.generator.schedule
    return noised_lessons(schedule, images, labels, teacher.rng, InputSource.CURRENT)


def _stopped_run(teacher: Teacher, labels: Indices, position: Float[Tensor, " b"]) -> Trajectory:
    """Reverse runs in which the generator is not called beyond each run's last state.

    What the trajectory holds there is void. Positions of the last states are in [0, 1) from the
    noisy end.
    """
    generator, rng = teacher.generator, teacher.rng
    noise, timesteps = draw_start(generator, len(labels), teacher.num_inference_steps, rng)
    node = steps_at(interval_widths(timesteps), position[:, None])
    last_t = timesteps.gather(0, node.T)[0]
    denoiser = teacher.guide or generator

    def stopping(x_t: Images, t: Indices, labels: Indices) -> GuidedPrediction:
        raw, guided = torch.zeros_like(x_t), torch.zeros_like(x_t)
        running = t >= last_t
        if running.any():
            answer = as_guided(denoiser(x_t[running], t[running], labels[running]))
            raw[running], guided[running] = answer
        return GuidedPrediction(raw, guided)

    schedule, sampler = generator.schedule, teacher.sampler
    return sample(stopping, schedule, noise, labels, timesteps, rng, sampler=sampler)
