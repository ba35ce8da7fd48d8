"""Who is asked about the past, and about which of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from avalanche_magd.distillation.cggd import Classifier
from avalanche_magd.generator import DiffusionGenerator
from avalanche_magd.processes import Processes
from avalanche_magd.samplers import Images, Indices


def _no_images(count: int, rng: torch.Generator) -> Images:
    raise RuntimeError("There is no current experience to take images from.")


@dataclass(frozen=True)
class Past:
    """Who is asked about the past.

    Attributes:
        teacher: the generator as it was taught so far.
        classes: that it shall generate, ascending.
        rng: source of randomness, on the teacher's device.
        current_images: that many images of the current experience, in [−1, 1], drawn at random.
        classifier: the solver of the past, where the distillation asks it.
        processes: among which generation is dealt out.
    """

    teacher: DiffusionGenerator
    classes: list[int]
    rng: torch.Generator
    current_images: Callable[[int, torch.Generator], Images] = _no_images
    classifier: Classifier | None = None
    processes: Processes = field(default_factory=Processes)

    def recognised(self, images: Images) -> Indices:
        """The class that the solver of the past sees in each image, in [−1, 1]."""
        assert self.classifier is not None
        best = self.classifier(images, self.classes).argmax(1)
        return torch.tensor(self.classes, device=best.device)[best]
