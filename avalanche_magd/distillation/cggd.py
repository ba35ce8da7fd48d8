"""CGGD, class-guided generative distillation: each old class is generated equally often.

The network is class-conditional and the labels are drawn balanced
(:func:`~avalanche_magd.diffusion.sampling.balanced_labels`), so the balance needs no guidance. On
top, two kinds of guidance (:mod:`avalanche_magd.diffusion.guidance`) can sharpen the classes. For
classifier-free guidance the network must know the null label: a tenth of all lessons are taught
without a class.

References:
    MAGD's published abstract. Gao & Liu 2023, *DDGR: continual learning with deep diffusion-based
    generative replay*, ICML (classifier guidance for replay).
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.diffusion.guidance import (
    Classifier,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    GuidedDenoiser,
)
from avalanche_magd.diffusion.label_map import NULL_LABEL
from avalanche_magd.runtime.precision import uniform
from avalanche_magd.runtime.validation import check_flag, check_number

LABEL_DROPOUT: Final = 0.1
"""Share of lessons without a class, where classifier-free guidance needs them."""


@dataclass(frozen=True)
class CGGD:
    """What a generator is conditioned on when it generates old classes.

    Args:
        conditional: whether the network is given classes. If not, the solver of the past
            classifies what was generated.
        guidance_scale: strength of classifier-free guidance; 1 is none.
        classifier_scale: strength of guidance by the solver of the past; 0 is none.

    Raises:
        ValueError: a scale is out of range, or there is guidance without classes.
    """

    conditional: bool = True
    guidance_scale: float = 1.0
    classifier_scale: float = 0.0

    def __post_init__(self) -> None:
        checked: dict[str, float] = {"conditional": check_flag("conditional", self.conditional)}
        for name, at_least in (("guidance_scale", 1), ("classifier_scale", 0)):
            value = getattr(self, name)
            checked[name] = check_number(name, value, at_least=at_least, at_most=100)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if not self.conditional and (self.guidance_scale > 1 or self.classifier_scale):
            raise ValueError(
                "Guidance is towards a class: conditional=False leaves none to steer to."
            )

    @property
    def needs_solver(self) -> bool:
        """Whether the solver of the past is called."""
        return self.classifier_scale > 0 or not self.conditional

    @property
    def null_share(self) -> float:
        """The share of lessons that are taught without a class."""
        if not self.conditional:
            return 1.0
        return LABEL_DROPOUT if self.guidance_scale > 1 else 0.0

    def network_labels(self, labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The labels that the network is given for images of these classes."""
        return labels if self.conditional else torch.full_like(labels, NULL_LABEL)

    def guide(
        self, generator: DiffusionGenerator, classes: list[int], classifier: Classifier | None
    ) -> GuidedDenoiser | None:
        """The generator with guidance around it, towards these classes; ``None`` without."""
        free = ClassifierFreeGuidance(generator, self.guidance_scale)
        if not self.classifier_scale:
            return None if self.guidance_scale == 1 else free
        assert classifier is not None
        inner = generator if self.guidance_scale == 1 else free
        scale = self.classifier_scale
        return ClassifierGuidance(inner, generator.schedule, classifier, classes, scale)


def null_mask(count: int, share: float, rng: torch.Generator) -> Bool[Tensor, " {count}"]:
    """Which of so many lessons are taught without a class: that share of them."""
    return uniform((count,), rng) < share
