"""The solver of the past: what the strategy's model knew before an experience.

It is called while the experience has not begun: then the model is its own frozen copy.
"""

from typing import Any

import torch
from avalanche.models.utils import avalanche_forward
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.diffusion.networks import weights_dtype
from avalanche_magd.diffusion.sampling import inference_batch_size
from avalanche_magd.diffusion.schedule import Images
from avalanche_magd.distillation.cost import PhaseCost
from avalanche_magd.distillation.pool import Pool


class PastSolver:
    """Gives a model's logits of generated images; it has one head, or one for each task label.

    The generator's pixel range and label map are used, and calls counted by ``cost``.
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

    def __call__(self, images: Images, classes: list[int]) -> Float[Tensor, "b n"]:
        """Logits over the given classes, in their order; differentiable.

        Args:
            images: as the generator makes them, in [−1, 1].
            classes: ids of the generator's label map.

        Raises:
            TypeError: the model's output is not a tensor of logits.
        """
        return self._logits(self.generator.pixel_range.denormalize(images), classes)

    def _logits(self, images: Images, classes: list[int]) -> Float[Tensor, "b n"]:
        """The same of images in the user's range."""
        x = images.to(self.device, weights_dtype(self.model))
        ids = torch.tensor(classes, device=self.device)
        labels, tasks = self.generator.label_map.labels_of(ids)
        heads: dict[int, Any] = {}
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            for task in sorted(set(tasks.tolist())):
                of_task = torch.full((len(x),), task).to(x.device)
                heads[task] = avalanche_forward(self.model, x, of_task)
        finally:
            for module, training in modes.items():
                module.training = training
        self.cost.forwards += len(x) * len(heads)
        self.cost.backwards += len(x) * len(heads) * images.requires_grad
        wrong = [type(each).__name__ for each in heads.values() if not isinstance(each, Tensor)]
        if wrong:
            raise TypeError(
                f"The solver's output is a {wrong[0]}, not a tensor of logits: guidance and soft "
                "labels cannot use it."
            )
        named = zip(labels.tolist(), tasks.tolist(), strict=True)
        return torch.stack([heads[task][:, label] for label, task in named], 1).to(images.device)

    @torch.no_grad()
    def logits_of_pool(self, pool: Pool) -> Float[Tensor, "n k"]:
        """Logits of a pool's images over its classes, slot by slot."""
        batch_size = inference_batch_size(self.generator.image_shape, self.device, self.model)
        batches = torch.split(pool.images, batch_size)
        logits = torch.cat([self._logits(images, pool.classes) for images in batches])
        return logits.to(pool.labels.device)
