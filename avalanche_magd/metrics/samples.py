"""Pictures of what is generated, for Avalanche's loggers.

The noise and the timesteps of a class are the same after each experience: what changes is the
generator. There are no pictures of a generator that is given no classes.
"""

from typing import Any, Final

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue, TensorImage
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor

from avalanche_magd.diffusion.sampling import Trajectory, jittered_grid, sample
from avalanche_magd.distillation.teacher import Teacher
from avalanche_magd.reporting.plotting import draw_grid, to_image
from avalanche_magd.runtime.precision import normal
from avalanche_magd.runtime.validation import check_seed

MAX_ROWS: Final = 20
"""Classes in a picture: those with the smallest ids."""


class Picture(TensorImage):
    """An image that tells its size, not its pixels, when results are printed."""

    def __repr__(self) -> str:
        _, height, width = self.image.shape
        return f"Picture({width} × {height})"


def fixed_runs(teacher: Teacher, classes: list[int], seed: int) -> Trajectory:
    """One reverse run for each class, from noise and a grid that only class and seed decide."""
    generator, noise, grids = teacher.generator, [], []
    steps, levels = teacher.num_inference_steps, generator.schedule.num_train_timesteps
    for label in classes:
        # On the CPU, one class at a time: neither the device nor the other classes matter.
        rng = torch.Generator().manual_seed(((seed << 32) + label) % 2**63)
        noise.append(normal(generator.latent_shape, rng))
        grids.append(jittered_grid(steps, levels, 1, rng))
    with generator.frozen():
        return sample(
            teacher.guide or generator,
            generator.schedule,
            torch.stack(noise).to(generator.device),
            torch.tensor(classes, device=generator.device),
            torch.cat(grids, 1).to(generator.device),
            teacher.rng,
            sampler=teacher.sampler,
        )


class SamplePictures(PluginMetric[TensorImage | None]):
    """A generated image of each class after each experience, and how it came out of noise.

    ``SampleGrid``: rows are classes, columns experiences, one more at each evaluation if the
    generator has learnt in between; what is forgotten, fades. ``TrajectoryStrip``: the states of
    one reverse run of each class.

    Its arguments are the strategy's plugin, and the seed of the noise.
    """

    def __init__(self, plugin: Any, *, seed: int = 0) -> None:
        self.plugin = plugin
        self.seed = check_seed("seed", seed) or 0
        self._columns: dict[int, dict[int, Tensor]] = {}

    def result(self) -> TensorImage | None:
        """The grid so far; ``None`` if there is nothing to see."""
        if not self._columns:
            return None
        rows = sorted({label for column in self._columns.values() for label in column})
        cells = [[column.get(label) for column in self._columns.values()] for label in rows]
        titles = [f"after {learnt}" for learnt in self._columns]
        return Picture(to_image(draw_grid(cells, [*map(str, rows)], titles)))

    def reset(self) -> None:
        """Begin anew."""
        self._columns = {}

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Both pictures."""
        teacher = self.plugin.present_teacher(strategy, self.seed)
        if teacher is None:
            return []
        generator, learnt = teacher.generator, self.plugin.generator_strategy.clock
        classes = generator.classes[:MAX_ROWS]
        with self.plugin.cost.measure(self.plugin.cost.evaluation, generator):
            run, pixel_range = fixed_runs(teacher, classes, self.seed), generator.pixel_range
            with torch.no_grad():
                rows = [*run.states, run.images]
                shown = [pixel_range.to_unit(pixel_range.denormalize(row)).cpu() for row in rows]
            self._columns[learnt.train_exp_counter] = dict(zip(classes, shown[-1], strict=True))
            cells = [*zip(*shown, strict=True)]
            titles = [*(f"t ≈ {t:.0f}" for t in run.timesteps.float().mean(1).tolist()), "image"]
            strip = Picture(to_image(draw_grid(cells, [*map(str, classes)], titles)))
            pictures = {"SampleGrid": self.result(), "TrajectoryStrip": strip}
        step = strategy.clock.train_iterations
        return [
            MetricValue(self, get_metric_name(name, strategy, add_task=False), picture, step)
            for name, picture in pictures.items()
        ]

    def __str__(self) -> str:
        return "SamplePictures"
