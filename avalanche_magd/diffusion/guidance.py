"""Guidance: wrappers of a denoiser that steer reverse runs towards a class.

A guided denoiser is called as the denoiser is and answers with a :class:`GuidedPrediction`: the
denoiser's own output, which lessons teach, and the one that the run follows. So guidance decides
which states a run visits, and never enters a lesson's target. Wrappers can wrap one another.

* *Classifier-free*: the prediction is pushed away from the one without a class, ``f + (s − 1)(f −
  f_null)`` with s = ``guidance_scale``; s = 1 changes nothing. It doubles the forwards of a run,
  and the network must know the null label.
* *By a classifier*: the clean image x̂_0 is moved towards its class, by ``s σ² ∇ log p(y | x̂_0)``
  with σ² = 1/SNR and s = ``classifier_scale``; s = 0 changes nothing. This is the guided ``ε̂ − s
  √(1−ᾱ) ∇ log p(y | x_t)``, whose gradient takes x̂_0 as ``(x_t − √(1−ᾱ) ε̂) / √ᾱ`` with ε̂ held
  fixed, so that the denoiser needs no backward. Where σ exceeds :data:`LARGEST_SIGMA`, x̂_0 says
  too little and is left alone.

References:
    Ho & Salimans 2022, *Classifier-free diffusion guidance*.
    Dhariwal & Nichol 2021, *Diffusion models beat GANs on image synthesis*, algorithm 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from avalanche_magd.diffusion.label_map import NULL_LABEL
from avalanche_magd.diffusion.schedule import Images, Indices, NoiseSchedule

LARGEST_SIGMA = 5.0

Classifier = Callable[[Images, list[int]], Float[Tensor, "b n"]]
"""Logits of images in [−1, 1] over the given classes, in their order."""


Denoiser = Callable[[Images, Indices, Indices], Images]
"""``(x_t, t, labels) → prediction``: the generator, or a teacher that is known in closed form."""


class GuidedPrediction(NamedTuple):
    """A denoiser's answer to one state."""

    raw: Images
    """The denoiser's own output."""
    guided: Images
    """What the run follows."""


GuidedDenoiser = Callable[[Images, Indices, Indices], GuidedPrediction]
"""``(x_t, t, labels) → GuidedPrediction``."""

AnyDenoiser = Callable[[Images, Indices, Indices], Images | GuidedPrediction]
"""Guided or not."""


class ClassifierFreeGuidance:
    """Steers runs towards their class and away from "no class".

    Args:
        denoiser: what is steered.
        guidance_scale: s; 1 is no guidance, larger is sharper and less diverse.
    """

    def __init__(self, denoiser: Denoiser, guidance_scale: float) -> None:
        self.denoiser = denoiser
        self.guidance_scale = guidance_scale

    def __call__(self, x_t: Images, t: Indices, labels: Indices) -> GuidedPrediction:
        """The prediction, raw and guided; two forwards per image."""
        raw = self.denoiser(x_t, t, labels)
        null_prediction = self.denoiser(x_t, t, torch.full_like(labels, NULL_LABEL))
        guided = null_prediction + self.guidance_scale * (raw - null_prediction)
        return GuidedPrediction(raw, guided)


class ClassifierGuidance:
    """Steers runs towards what a classifier takes for their class.

    Args:
        denoiser: what is steered; guided already, or not.
        schedule: noise levels, and what a prediction means.
        classifier: of clean images; differentiable.
        classes: to which the classifier's answer is confined, ascending.
        classifier_scale: s; 0 is no guidance.
    """

    def __init__(
        self,
        denoiser: AnyDenoiser,
        schedule: NoiseSchedule,
        classifier: Classifier,
        classes: list[int],
        classifier_scale: float,
    ) -> None:
        self.denoiser = denoiser
        self.schedule = schedule
        self.classifier = classifier
        self.classes = classes
        self.classifier_scale = classifier_scale

    def __call__(self, x_t: Images, t: Indices, labels: Indices) -> GuidedPrediction:
        """The prediction, raw and guided; one forward and one backward of the classifier."""
        raw, prediction = as_guided(self.denoiser(x_t, t, labels))
        variance = 1 / self.schedule.snr(t).view(-1, 1, 1, 1)
        step = self.classifier_scale * variance * (variance <= LARGEST_SIGMA**2)
        x_0 = self.schedule.denoised(prediction, x_t, t).clamp(-1, 1)
        column = torch.searchsorted(torch.tensor(self.classes, device=labels.device), labels)
        with torch.enable_grad():
            seen = x_0.detach().requires_grad_()
            loss = cross_entropy(self.classifier(seen, self.classes), column, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, seen)
        # Where nothing is moved the prediction stays what it is, bit by bit.
        moved = self.schedule.prediction(x_0 - step.to(x_0) * gradient, x_t, t)
        return GuidedPrediction(raw, torch.where(step > 0, moved, prediction))


def as_guided(answer: Images | GuidedPrediction) -> GuidedPrediction:
    """A denoiser's answer as that of one whose guidance changes nothing."""
    return answer if isinstance(answer, GuidedPrediction) else GuidedPrediction(answer, answer)
