"""Networks and strategies that are small enough for tests of seconds."""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import SimpleMLP
from avalanche.training import Naive
from diffusers import UNet2DModel
from torch import Tensor

from avalanche_magd import DiffusionGenerator, MAGDPlugin, MAGDTraining
from avalanche_magd.diffusion.schedule import NoiseSchedule
from avalanche_magd.distillation import Distillation, Pool
from avalanche_magd.distillation.generation import Generation


def tiny_network(channels: int = 1, levels: int = 2, dropout: float = 0.0) -> UNet2DModel:
    return UNet2DModel(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8,) * levels,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=1,
        add_attention=False,
        dropout=dropout,
    )


def tiny_generator(
    image_shape: tuple[int, int, int] = (1, 8, 8),
    classes: tuple[int, ...] = (),
    dropout: float = 0.0,
    **kwargs: Any,
) -> DiffusionGenerator:
    network = tiny_network(image_shape[0], dropout=dropout)
    generator = DiffusionGenerator(image_shape, network, **kwargs)
    generator.add_classes(classes)
    return generator


def tiny_training(**kwargs: Any) -> MAGDTraining:
    generator = kwargs.pop("model", None) or tiny_generator()
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-3)
    arguments = {"train_mb_size": 8, "train_iterations": 3, "seed": 0}
    return MAGDTraining(model=generator, optimizer=optimizer, **{**arguments, **kwargs})


def naive(
    plugins: list[SupervisedPlugin], input_size: int = 64, hidden_size: int = 64, **kwargs: Any
) -> Naive:
    model = SimpleMLP(num_classes=10, input_size=input_size, hidden_size=hidden_size)
    kwargs.setdefault("evaluator", None)
    return Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=32,
        eval_mb_size=512,
        plugins=plugins,
        **kwargs,
    )


def tiny_plugin(**kwargs: Any) -> MAGDPlugin:
    arguments: dict[str, Any] = {
        "generator_iterations": 3,
        "pool_size": 20,
        "num_inference_steps": 3,
        "seed": 0,
    }
    return MAGDPlugin(**{**arguments, **kwargs})


class Anew:
    """An experience whose dataset is made anew each time, as a lazy benchmark makes it."""

    def __init__(self, experience: Any) -> None:
        self._experience = experience

    def __getattr__(self, name: str) -> Any:
        return getattr(self._experience, name)

    @property
    def dataset(self) -> Any:
        return self._experience.dataset.train()


class PointMassTeacher:
    """Every image of class y is ``means[y]``: the exact prediction is a line of algebra."""

    def __init__(self, schedule: NoiseSchedule, means: Tensor) -> None:
        self.schedule, self.means = schedule, means
        self.latent_shape = tuple(means.shape[1:])

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        signal, sigma = self.schedule.scales(t, x_t)
        x_0 = self.means[labels]
        return self.schedule.target(x_0, (x_t - signal * x_0) / sigma, t)


def filled_pool(
    distillation: Distillation, generator: DiffusionGenerator, rng: torch.Generator, **kwargs: Any
) -> Pool:
    """A pool of the generator's classes, full."""
    pool = distillation.empty_pool(generator)
    teacher = distillation.teacher(generator, generator.classes, rng, **kwargs)
    Generation().fill(pool, distillation.pool_size, teacher, distillation.mode)
    return pool
