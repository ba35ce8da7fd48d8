"""The training that ``MAGDPlugin()`` builds by itself, once it knows what images look like."""

from pathlib import Path
from typing import Final

import torch

from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.distillation import Distillation
from avalanche_magd.runtime.random_state import seeded
from avalanche_magd.training.optimizers import default_dtype, teaching
from avalanche_magd.training.strategy import MAGDTraining

ITERATIONS_PER_PIXEL: Final = 45
MIN_ITERATIONS: Final = 320


def default_iterations(image_shape: tuple[int, int, int]) -> int:
    """Training steps per experience: so many for each pixel of the longer side."""
    return max(MIN_ITERATIONS, ITERATIONS_PER_PIXEL * max(image_shape[1:]))


def default_training(
    image_shape: tuple[int, int, int],
    distillation: Distillation,
    device: torch.device,
    seed: int,
    *,
    train_iterations: int | None = None,
    checkpoint_folder: str | Path | None = None,
) -> MAGDTraining:
    """A new generator of the default size, seeded, and its training.

    The arguments are those of :class:`MAGDTraining`; by default an experience is
    :func:`default_iterations` long.
    """
    with seeded(seed, device):
        generator = DiffusionGenerator(
            image_shape,
            num_inference_steps=distillation.num_inference_steps,
            dtype=default_dtype(device),
        ).to(device)
    return MAGDTraining(
        model=generator,
        **teaching(generator, device),
        distillation=distillation,
        train_iterations=train_iterations or default_iterations(image_shape),
        checkpoint_folder=checkpoint_folder,
        device=device,
        seed=seed,
    )
