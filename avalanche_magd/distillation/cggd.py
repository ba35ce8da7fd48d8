"""CGGD, class-guided generative distillation: replay that holds each old class equally often.

The network is class-conditional and the labels are drawn balanced
(:func:`avalanche_magd.sampling.balanced_labels`), so nothing has to be steered for the balance. On
top, classifier-free guidance can sharpen the classes: the prediction is pushed away from the one
without a class, ``f + (s − 1)(f − f_null)`` with s = ``guidance_scale``; s = 1 changes nothing. It
doubles the forwards of a run, and the network must know the null label: a tenth of all lessons are
taught without a class.

Guidance only decides which states a run visits. The lessons' targets stay unguided.

References:
    MAGD's published abstract; Gao & Liu 2023, *DDGR* (classifier guidance for replay).
    Ho & Salimans 2022, *Classifier-free diffusion guidance*.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avalanche_magd.classes import NULL_LABEL
from avalanche_magd.sampling import Denoiser

LABEL_DROPOUT = 0.1


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


def without_class(
    count: int, guidance_scale: float, rng: torch.Generator
) -> Bool[Tensor, " {count}"]:
    """Which lessons are taught with the null label: a tenth of them if guidance will need it."""
    share = 0.0 if guidance_scale == 1 else LABEL_DROPOUT
    return torch.rand(count, generator=rng, device=rng.device) < share
