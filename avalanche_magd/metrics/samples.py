"""Pictures of what is generated, for Avalanche's loggers.

The noise of a class is the same after each experience, and so are the timesteps of its run: what
changes is the generator. There are none of a generator that is told no classes.
"""

from typing import Any, Final

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue, TensorImage
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor

from avalanche_magd.distillation.distillation import Distillation
from avalanche_magd.distillation.past import Past
from avalanche_magd.generator import DiffusionGenerator
from avalanche_magd.pictures import draw_grid, to_image
from avalanche_magd.samplers import make_sampler
from avalanche_magd.sampling import Trajectory, jittered_grid, sample
from avalanche_magd.solver import past_as_it_is

MAX_ROWS: Final = 20
"""Classes in a picture: those with the smallest numbers."""


class Picture(TensorImage):
    """An image that tells its size, not its pixels, when results are printed."""

    def __repr__(self) -> str:
        _, height, width = self.image.shape
        return f"Picture({width} × {height})"


def fixed_runs(
    distillation: Distillation, past: Past, classes: list[int], seed: int
) -> Trajectory:
    """One reverse run for each class, from noise and a grid that only class and seed decide."""
    generator = past.teacher
    steps, levels = distillation.num_inference_steps, generator.schedule.num_train_timesteps
    noise, grids = [], []
    for label in classes:
        # On the CPU, one class at a time: neither the device nor the other classes matter.
        rng = torch.Generator().manual_seed((seed << 32) + label)
        noise.append(torch.randn(generator.latent_shape, generator=rng))
        grids.append(jittered_grid(steps, levels, 1, rng))
    with generator.frozen():
        return sample(
            generator,
            generator.schedule,
            torch.stack(noise).to(generator.device),
            torch.tensor(classes, device=generator.device),
            torch.cat(grids, 1).to(generator.device),
            make_sampler(distillation.sampler, generator.schedule, distillation.eta, past.rng),
            guidance=distillation.guidance(past),
        )


@torch.no_grad()
def _visible(generator: DiffusionGenerator, x: Tensor) -> Tensor:
    """What the model makes, as pixels in [0, 1]."""
    pixel_range = generator.pixel_range
    return pixel_range.to_unit(pixel_range.to_data(x)).cpu()


class SamplePictures(PluginMetric[TensorImage | None]):
    """A generated image of each class after each experience, and how it came out of noise.

    ``SampleGrid``: rows are classes, columns experiences, one more at each evaluation if the
    generator has learnt in between; what is forgotten, fades. ``TrajectoryStrip``: the states of
    one reverse run of each class.

    Args:
        plugin: the strategy's plugin.
        seed: of the noise.
    """

    def __init__(self, plugin: Any, *, seed: int = 0) -> None:
        super().__init__()
        self.plugin = plugin
        self.seed = seed
        self._columns: dict[int, dict[int, Tensor]] = {}

    def result(self) -> TensorImage | None:
        """The grid so far; ``None`` if there is nothing to see."""
        if not self._columns:
            return None
        rows = sorted({label for column in self._columns.values() for label in column})
        cells = [[column.get(label) for column in self._columns.values()] for label in rows]
        titles = [f"after {learnt}" for learnt in self._columns]
        return Picture(to_image(draw_grid(cells, [str(label) for label in rows], titles)))

    def reset(self) -> None:
        """Begin anew."""
        self._columns = {}

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Both pictures."""
        past = past_as_it_is(self.plugin, strategy, self.seed)
        if past is None:
            return []
        generator, training = past.teacher, self.plugin.generator_strategy
        classes = generator.classes[:MAX_ROWS]
        with self.plugin.cost.evaluation.measure(generator):
            run = fixed_runs(training.distillation, past, classes, self.seed)
            images = dict(zip(classes, _visible(generator, run.images), strict=True))
            self._columns[training.clock.train_exp_counter] = images
            states = [[*_visible(generator, row)] for row in run.states.transpose(0, 1)]
            cells = [[*row, images[label]] for label, row in zip(classes, states, strict=True)]
            titles = [*(f"t ≈ {t:.0f}" for t in run.timesteps.float().mean(1).tolist()), "image"]
            strip = to_image(draw_grid(cells, [str(label) for label in classes], titles))
            pictures = {"SampleGrid": self.result(), "TrajectoryStrip": Picture(strip)}
        return [
            MetricValue(
                self,
                get_metric_name(name, strategy, add_task=False),
                picture,
                strategy.clock.train_iterations,
            )
            for name, picture in pictures.items()
        ]

    def __str__(self) -> str:
        return "SamplePictures"
