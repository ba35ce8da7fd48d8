"""What MAGD is compared with: other modes, in the same form.

=======================  ==================================  ======================
mode                     input                               answer
=======================  ==================================  ======================
``None``: fine-tuning    –                                   –
DGR                      finished image, noised              the noise drawn
generative distillation  finished image, noised              the teacher's
partial generation       state at which a run was stopped    the teacher's
Gaussian distillation    pure noise at every t               the teacher's
LwF distillation         current image, noised, old label    the teacher's
=======================  ==================================  ======================

DDGR is DGR whose runs are steered by the solver: ``Distillation(dgr, classifier_scale=1.0)``.

As published, all of them make each lesson's input anew in each training step: ``Distillation(mode,
fresh=True)``. Otherwise their lessons wait in a pool, as MAGD's do, many from one image.

References:
    Shin et al. 2017, *Continual learning with deep generative replay* (DGR).
    Masip et al. 2023, *Continual learning of diffusion models with generative distillation*,
    arXiv 2311.14028 (generative, partial, Gaussian and LwF distillation).
    Gao & Liu 2023, *DDGR: continual learning with deep diffusion-based generative replay*, ICML.
"""

import torch

from avalanche_magd.distillation.batch import Input, noised_lessons
from avalanche_magd.distillation.draft import Draft, Source
from avalanche_magd.distillation.magd import MAGD
from avalanche_magd.distillation.nigd import lessons_at
from avalanche_magd.sampling import steps_at, stretches

generative_distillation = MAGD(trajectory_share=0.0)


def dgr(source: Source, kept: int) -> Draft:
    """Generated images are taught as if they were real."""
    images = source.run(None).images.repeat_interleave(kept, 0)
    labels = source.labels.repeat_interleave(kept)
    lessons = noised_lessons(source.schedule, images, labels, source.rng, Input.RENOISED)
    return Draft(lessons, torch.ones_like(lessons.t, dtype=torch.float32), None)


def partial_generation(source: Source, kept: int) -> Draft:
    """Runs that stop at a state drawn evenly over t; the teacher's output there is the answer."""
    rng = source.rng
    position = torch.rand(len(source.labels), kept, generator=rng, device=rng.device)
    run = source.run(position.max(1).values)
    lessons = lessons_at(run, steps_at(stretches(run.timesteps), position))
    weights = torch.ones_like(lessons.t, dtype=torch.float32)
    return Draft(lessons, weights, torch.zeros_like(weights, dtype=torch.bool))


def gaussian_distillation(source: Source, kept: int) -> Draft:
    """Pure noise, whatever t says; no image is needed."""
    draft = lwf_distillation(source, kept)
    noise = torch.randn(draft.lessons.x_t.shape, generator=source.rng, device=source.rng.device)
    kind = torch.full_like(draft.lessons.kind, Input.NOISE)
    return draft._replace(lessons=draft.lessons._replace(x_t=noise, kind=kind))


def lwf_distillation(source: Source, kept: int) -> Draft:
    """Current images under the names of old classes; nothing is generated."""
    labels = source.labels.repeat_interleave(kept)
    images = source.current_images(len(labels))
    lessons = noised_lessons(source.schedule, images, labels, source.rng, Input.CURRENT)
    weights = torch.ones_like(lessons.t, dtype=torch.float32)
    return Draft(lessons, weights, torch.ones_like(weights, dtype=torch.bool))
