"""MAGDPlugin: which callback of Avalanche does what.

==============================  =================================================================
callback                        what happens
==============================  =================================================================
before_training                 refuse a second MAGD plugin
after_train_dataset_adaptation  check the data; build the generator; fill the pool with the past
before_training_iteration       generated images join the mini-batch
after_training_iteration        they leave it
after_training_exp              the generator learns the experience
==============================  =================================================================
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Cumulative, JointTraining

from avalanche_magd.arguments import check_count
from avalanche_magd.classes import classes_of
from avalanche_magd.cost import Cost
from avalanche_magd.distillation.magd import MAGD
from avalanche_magd.distillation.sggd import SnrBand
from avalanche_magd.generator import DiffusionGenerator
from avalanche_magd.randomness import SeededGenerator, seeded
from avalanche_magd.replay import (
    append_replay,
    balanced_replay_size,
    trim_replay,
)
from avalanche_magd.samples import check_dataset, check_minibatch
from avalanche_magd.training import MAGDTraining

ITERATIONS_PER_PIXEL = 30
MIN_ITERATIONS = 400

REAL_PAST = (Cumulative, JointTraining)
"""Strategies that keep all real data, and so have nothing to replay."""


class MAGDPlugin(SupervisedPlugin):
    """Replays the past to any supervised Avalanche strategy, and stores no data.

    ``plugins=[MAGDPlugin()]`` is all that a strategy needs. From its second experience on, each
    mini-batch is joined by generated images of the classes that came before.

    Args:
        generator_strategy: trains the generator. Default: one that is built when the first
            experience shows what images look like, from the arguments below.
        generator_iterations: training steps of the generator per experience. Default: 30 for each
            pixel of the longer image side, and at least 400.
        pool_size: images generated per experience, over all old classes. Their memory is bounded
            by ``max_pool_bytes``.
        num_inference_steps: network calls per generated image.
        replay_size: generated rows per mini-batch; 0 switches replay off. Default: as many as give
            each old class the weight of a current one.
        snr_band: SGGD's band, see :class:`~avalanche_magd.distillation.MAGD`.
        guidance_scale: CGGD's classifier-free guidance; 1 is none.
        max_pool_bytes: bound on the size of the pool in memory.
        checkpoint_folder: where the generator's training is saved as it goes, see
            :class:`MAGDTraining`.
        seed: of everything random here but a given ``generator_strategy``, which has its own.
            Default: torch's initial seed. The strategy's own randomness is never touched.
        progress: show progress bars, if standard error is a terminal.

    Attributes:
        generator_strategy: the strategy in use; ``None`` until the first experience if it was not
            given.

    Raises:
        TypeError: ``generator_strategy`` is not a :class:`MAGDTraining`, or a count is no integer.
        ValueError: an argument out of range, or one that ``generator_strategy`` decides.
    """

    def __init__(
        self,
        generator_strategy: MAGDTraining | None = None,
        *,
        generator_iterations: int | None = None,
        pool_size: int = MAGD.pool_size,
        num_inference_steps: int = MAGD.num_inference_steps,
        replay_size: int | None = None,
        snr_band: SnrBand | None = MAGD.snr_band,
        guidance_scale: float = MAGD.guidance_scale,
        max_pool_bytes: int = MAGD.max_pool_bytes,
        checkpoint_folder: str | Path | None = None,
        seed: int | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if generator_iterations is not None:
            check_count("generator_iterations", generator_iterations)
        if replay_size is not None:
            check_count("replay_size", replay_size, at_least=0)
        distillation = MAGD(
            pool_size=pool_size,
            num_inference_steps=num_inference_steps,
            snr_band=snr_band,
            guidance_scale=guidance_scale,
            max_pool_bytes=max_pool_bytes,
        )
        if generator_strategy is not None:
            if not isinstance(generator_strategy, MAGDTraining):
                raise TypeError(
                    "generator_strategy must be a MAGDTraining, "
                    f"got {type(generator_strategy).__name__}."
                )
            if (
                distillation != MAGD()
                or generator_iterations is not None
                or checkpoint_folder is not None
            ):
                raise ValueError(
                    "generator_strategy brings its own training and distillation: give "
                    "train_iterations, checkpoint_folder and distillation=MAGD(...) to it, "
                    "not to the plugin."
                )
        self.generator_strategy = generator_strategy
        self.generator_iterations = generator_iterations
        self.distillation = distillation
        self.replay_size = replay_size
        self.checkpoint_folder = checkpoint_folder
        self.seed = seed
        self.progress = progress
        self._current_classes = 0
        self._owed = 0.0
        self._real_rows: int | None = None
        self._rng: SeededGenerator | None = None

    @property
    def generator(self) -> DiffusionGenerator | None:
        """The generator; ``None`` until the first experience has been seen."""
        return None if self.generator_strategy is None else self.generator_strategy.model

    @property
    def cost(self) -> Cost:
        """What the generator has cost so far."""
        return Cost() if self.generator_strategy is None else self.generator_strategy.cost

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse a second MAGD plugin; warn a strategy that has no use for one.

        Raises:
            ValueError: the strategy has two.
        """
        if isinstance(strategy, REAL_PAST):
            warnings.warn(
                f"{type(strategy).__name__} trains on all real data: there is nothing to replay, "
                "and MAGDPlugin does nothing.",
                stacklevel=2,
            )
        if sum(isinstance(plugin, MAGDPlugin) for plugin in strategy.plugins) > 1:
            raise ValueError("The strategy has two MAGDPlugins: each would replay; keep one.")

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Check the data; build the generator; fill the pool with the past.

        Raises:
            TypeError: see :func:`~avalanche_magd.samples.check_dataset`.
            ValueError: likewise.
        """
        if isinstance(strategy, REAL_PAST):
            return
        dataset = strategy.experience.dataset.eval()
        if self.generator_strategy is None:
            self.generator_strategy = self._default_strategy(
                check_dataset(dataset), strategy.device
            )
        self._current_classes = len(classes_of(dataset))
        self._owed = 0.0
        self.generator_strategy.fill_pool(strategy.experience)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Generated images join the mini-batch.

        Raises:
            TypeError: see :func:`~avalanche_magd.samples.check_minibatch`.
            ValueError: likewise.
        """
        self._real_rows = None
        if self.generator_strategy is None:
            return
        check_minibatch(strategy.mbatch, self.generator_strategy.model.image_shape)
        pool = self.generator_strategy.pool
        if pool is None or self.replay_size == 0:
            return
        real_rows = len(strategy.mbatch[0])
        size = self.replay_size
        if size is None:
            old_classes = len(pool.classes)
            self._owed += balanced_replay_size(real_rows, self._current_classes, old_classes)
            size = int(self._owed)
            self._owed -= size
        if not size:
            return
        images, numbers = pool.draw_images(size, self._replay_rng())
        labels, tasks = self.generator_strategy.model.class_table.labels_of(numbers)
        append_replay(strategy.mbatch, images, labels, tasks)
        self._real_rows = real_rows

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Generated images leave the mini-batch."""
        if self._real_rows is not None:
            trim_replay(strategy, self._real_rows)

    def after_training_exp(self, strategy: Any, num_workers: int = 0, **kwargs: Any) -> None:
        """The generator learns the experience."""
        if self.generator_strategy is None or isinstance(strategy, REAL_PAST):
            return
        self.generator_strategy.train(
            strategy.experience, eval_streams=[], num_workers=num_workers
        )

    def _default_strategy(
        self, image_shape: tuple[int, int, int], device: torch.device
    ) -> MAGDTraining:
        seed = torch.initial_seed() if self.seed is None else self.seed
        with seeded(seed, device):
            generator = DiffusionGenerator(
                image_shape, num_inference_steps=self.distillation.num_inference_steps
            ).to(device)
        return MAGDTraining(
            model=generator,
            optimizer=torch.optim.AdamW(generator.parameters(), lr=2e-3, fused=True),
            distillation=self.distillation,
            train_iterations=self.generator_iterations
            or max(MIN_ITERATIONS, ITERATIONS_PER_PIXEL * max(image_shape[1:])),
            checkpoint_folder=self.checkpoint_folder,
            device=device,
            seed=seed,
            progress=self.progress,
        )

    def _replay_rng(self) -> torch.Generator:
        """Draws from the pool, on the pool's device."""
        if self._rng is None:
            assert self.generator_strategy is not None
            seed = torch.initial_seed() if self.seed is None else self.seed
            self._rng = SeededGenerator(self.generator_strategy.device, seed)
        return self._rng
