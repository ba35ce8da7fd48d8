"""The solver of the past: what the strategy's model knew before an experience.

It is asked while the experience has not begun: then the model is its own frozen copy.
"""

from typing import Any

import torch
from avalanche.models.utils import avalanche_forward
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from avalanche_magd.cost import PhaseCost
from avalanche_magd.distillation import Pool
from avalanche_magd.distillation.past import Past
from avalanche_magd.generator import DiffusionGenerator
from avalanche_magd.networks import weights_dtype
from avalanche_magd.sampling import images_at_once


class PastSolver:
    """Asks a model about generated images.

    Args:
        model: the solver; one head, or a head for each task label.
        generator: knows the pixels' range, and what the benchmark calls its classes.
        device: where the model is.
        cost: where its calls are counted.
    """

    def __init__(
        self,
        model: nn.Module,
        generator: DiffusionGenerator,
        device: torch.device,
        cost: PhaseCost,
    ) -> None:
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.generator = generator
        self.device = device
        self.cost = cost

    def __call__(
        self, images: Float[Tensor, "b c h w"], classes: list[int]
    ) -> Float[Tensor, "b n"]:
        """Logits over the given classes, in their order; differentiable.

        Args:
            images: as the generator makes them, in [−1, 1].
            classes: by the generator's numbers.

        Raises:
            TypeError: the model's output is not a tensor of logits.
        """
        return self._logits(self.generator.pixel_range.to_data(images), classes)

    def _logits(
        self, images: Float[Tensor, "b c h w"], classes: list[int]
    ) -> Float[Tensor, "b n"]:
        """The same of images in the user's range."""
        x = images.to(self.device, weights_dtype(self.model))
        numbers = torch.tensor(classes, device=self.device)
        labels, tasks = self.generator.class_table.labels_of(numbers)
        heads: dict[int, Any] = {}
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            for task in sorted(set(tasks.tolist())):
                heads[task] = avalanche_forward(
                    self.model, x, torch.full((len(x),), task).to(x.device)
                )
        finally:
            for module, training in modes.items():
                module.training = training
        self.cost.forwards += len(x) * len(heads)
        self.cost.backwards += len(x) * len(heads) * images.requires_grad
        strange = [type(each).__name__ for each in heads.values() if not isinstance(each, Tensor)]
        if strange:
            raise TypeError(
                f"The solver's output is a {strange[0]}, not a tensor of logits: guidance, soft "
                "labels and selection cannot ask it."
            )
        columns = [
            heads[task][:, label]
            for label, task in zip(labels.tolist(), tasks.tolist(), strict=True)
        ]
        return torch.stack(columns, 1).to(images.device)

    @torch.no_grad()
    def of_pool(self, pool: Pool) -> Float[Tensor, "n k"]:
        """Logits of a pool's images over its classes, slot by slot."""
        together = images_at_once(self.generator.image_shape, self.device, self.model)
        batches = torch.split(pool.images, together)
        logits = torch.cat([self._logits(images, pool.classes) for images in batches])
        return logits.to(pool.labels.device)


def past_as_it_is(plugin: Any, strategy: Any, seed: int) -> Past | None:
    """Who would be asked now for images to replay; ``None`` if classes cannot be asked for.

    Args:
        plugin: the strategy's plugin.
        strategy: whose model may steer generation.
        seed: of the noise.
    """
    training = plugin.generator_strategy
    if training is None or not training.model.classes or not training.distillation.conditional:
        return None
    generator = training.model
    solver = PastSolver(strategy.model, generator, strategy.device, PhaseCost())
    rng = torch.Generator(generator.device).manual_seed(seed)
    return Past(generator, generator.classes, rng, classifier=solver)
