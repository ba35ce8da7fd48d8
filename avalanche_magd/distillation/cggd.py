"""CGGD, class-guided generative distillation: replay that holds each old class equally often.

The network is class-conditional and the labels are drawn balanced
(:func:`avalanche_magd.sampling.balanced_labels`), so nothing has to be steered for the balance. On
top, two kinds of guidance can sharpen the classes; they only decide which states a run visits, and
the lessons' targets stay unguided.

* *Classifier-free*: the prediction is pushed away from the one without a class, ``f + (s − 1)(f −
  f_null)`` with s = ``guidance_scale``; s = 1 changes nothing. It doubles the forwards of a run,
  and the network must know the null label: a tenth of all lessons are taught without a class.
* *By a classifier*, the solver of the past: the clean image x̂_0 is moved towards its class, by ``s
  σ² ∇ log p(y | x̂_0)`` with σ² = 1/SNR and s = ``classifier_scale``; s = 0 changes nothing. This
  is the guided ``ε̂ − s √(1−ᾱ) ∇ log p(y | x_t)``, whose gradient takes x̂_0 as ``(x_t − √(1−ᾱ) ε̂)
  / √ᾱ`` with ε̂ held fixed, so that the denoiser needs no backward. Where σ exceeds
  :data:`LARGEST_SIGMA`, x̂_0 says too little and is left alone.

References:
    MAGD's published abstract; Gao & Liu 2023, *DDGR* (classifier guidance for replay).
    Ho & Salimans 2022, *Classifier-free diffusion guidance*.
    Dhariwal & Nichol 2021, *Diffusion models beat GANs on image synthesis*, algorithm 2.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from avalanche_magd.classes import NULL_LABEL
from avalanche_magd.sampling import Denoiser
from avalanche_magd.schedule import NoiseSchedule

LABEL_DROPOUT = 0.1
LARGEST_SIGMA = 5.0

Classifier = Callable[[Float[Tensor, "b c h w"], list[int]], Float[Tensor, "b n"]]
"""Logits of images in [−1, 1] over the given classes, in their order."""


class ClassifierFreeGuidance:
    """Steers a run towards its class and away from "no class".

    Args:
        denoiser: asked for the prediction without a class.
        guidance_scale: s; 1 is no guidance, larger is sharper and less diverse.
    """

    def __init__(self, denoiser: Denoiser, guidance_scale: float) -> None:
        self.denoiser = denoiser
        self.guidance_scale = guidance_scale

    def __call__(
        self,
        prediction: Float[Tensor, "b c h w"],
        x_t: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        labels: Int[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """The guided prediction; one more forward per image."""
        null_prediction = self.denoiser(x_t, t, torch.full_like(labels, NULL_LABEL))
        return null_prediction + self.guidance_scale * (prediction - null_prediction)


class ClassifierGuidance:
    """Steers a run towards what a classifier takes for its class.

    Args:
        classifier: of clean images; differentiable.
        classes: the old classes, to which its answer is confined.
        schedule: noise levels, and what a prediction means.
        classifier_scale: s; 0 is no guidance.
    """

    def __init__(
        self,
        classifier: Classifier,
        classes: list[int],
        schedule: NoiseSchedule,
        classifier_scale: float,
    ) -> None:
        self.classifier = classifier
        self.classes = classes
        self.schedule = schedule
        self.classifier_scale = classifier_scale

    def __call__(
        self,
        prediction: Float[Tensor, "b c h w"],
        x_t: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        labels: Int[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """The guided prediction; one forward and one backward of the classifier per image."""
        variance = 1 / self.schedule.snr(t).view(-1, 1, 1, 1)
        step = self.classifier_scale * variance * (variance <= LARGEST_SIGMA**2)
        x_0 = self.schedule.denoised(prediction, x_t, t).clamp(-1, 1)
        column = torch.searchsorted(torch.tensor(self.classes, device=labels.device), labels)
        with torch.enable_grad():
            seen = x_0.detach().requires_grad_()
            loss = cross_entropy(self.classifier(seen, self.classes), column, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, seen)
        # Where nothing is moved the prediction stays what it is, bit by bit.
        guided = self.schedule.prediction(x_0 - step.to(x_0) * gradient, x_t, t)
        return torch.where(step > 0, guided, prediction)


def without_class(count: int, share: float, rng: torch.Generator) -> Bool[Tensor, " {count}"]:
    """Which lessons are taught with the null label: that share of them."""
    return torch.rand(count, generator=rng, device=rng.device) < share
