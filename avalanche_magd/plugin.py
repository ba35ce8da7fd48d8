"""MAGDPlugin: which callback of Avalanche does what.

==============================  =================================================================
callback                        what happens
==============================  =================================================================
before_training                 a second MAGD plugin is refused
after_train_dataset_adaptation  the data are checked; the generator is built, fills the pool with
                                old classes, learns the experience, and generates its classes
before_training_epoch           the data loader is wrapped: generated images join each mini-batch
before_backward                 soft labels join the loss, and weights of its rows
after_update                    generated images leave the mini-batch; after_training_iteration,
                                where strategies have no after_update
after_training_epoch            the data loader is unwrapped
after_training_exp              the pools are dropped
==============================  =================================================================

The generator learns an experience before the solver does. So the solver is still the one of the
past while the teacher calls it, and the current classes can be replayed too: a solver that sees
real images of new classes only, and generated ones of old classes only, learns to tell real from
generated instead.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Cumulative, JointTraining

from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.diffusion.label_map import classes_of
from avalanche_magd.distillation import Distillation, Pool, Teacher
from avalanche_magd.distillation.cost import Cost, PhaseCost
from avalanche_magd.distillation.solver import PastSolver
from avalanche_magd.replay import MiniBatches, Replay, ReplayLoader, unwrapped
from avalanche_magd.replay.losses import SOFT_LABEL_WEIGHT, gives_logits
from avalanche_magd.runtime.deprecation import OLD_PLUGIN_ARGUMENTS, old_arguments
from avalanche_magd.runtime.distributed import solver_rank
from avalanche_magd.runtime.random_state import SeededGenerator, random_states_kept
from avalanche_magd.runtime.validation import (
    check_dataset,
    check_folder,
    check_instance,
    check_seed,
    optional_count,
)
from avalanche_magd.training import MAGDTraining
from avalanche_magd.training.defaults import default_training
from avalanche_magd.training.template import identity_of, is_online_subexperience

REAL_PAST = (Cumulative, JointTraining)
"""Strategies that keep all real data, and so have nothing to replay."""


@old_arguments(OLD_PLUGIN_ARGUMENTS, distillation=Distillation(), mini_batches=MiniBatches())
class MAGDPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Replays old classes to any supervised Avalanche strategy, and stores no data.

    ``plugins=[MAGDPlugin()]`` is all that a strategy needs. From its second experience on, each
    mini-batch is joined by generated images of the classes that came before, and of current ones.

    Args:
        generator_strategy: trains the generator. Default: one that is built when the first
            experience shows what images look like, from the arguments below.
        generator_iterations: training steps of the generator per experience. Default: 45 for each
            pixel of the longer image side, and at least 320.
        pool_size: images generated per experience, over all old classes; those of current classes
            are fewer than as many again. Default: 4000.
        num_inference_steps: network calls per generated image. Default: 10.
        distillation: everything else about how old classes are generated and taught. Default:
            MAGD's way.
        mini_batches: how many generated images join the solver's mini-batches, in mini-batches of
            what size, with soft labels or without. Default: ``MiniBatches()``.
        checkpoint_folder: where the generator's training is saved as it goes, see
            :class:`~avalanche_magd.MAGDTraining`.
        seed: of everything random here but a given ``generator_strategy``, which has its own.
            Default: torch's initial seed. The strategy's own randomness is never touched.

    Attributes:
        generator_strategy: the strategy in use; ``None`` until the first experience if it was not
            given.
        replay: what joins the mini-batches of the present experience; ``None`` in the first, and
            between experiences.
        progress: whether to show progress bars, if standard error is a terminal: to be set before
            training; a given ``generator_strategy`` has an attribute of its own for this.

    Raises:
        TypeError: ``generator_strategy`` is not a ``MAGDTraining``, or a count is no integer.
        ValueError: an argument is out of range, or ``generator_strategy`` or ``distillation``
            decides it already.
    """

    def __init__(
        self,
        generator_strategy: MAGDTraining | None = None,
        *,
        generator_iterations: int | None = None,
        pool_size: int | None = None,
        num_inference_steps: int | None = None,
        distillation: Distillation | None = None,
        mini_batches: MiniBatches | None = None,
        checkpoint_folder: str | Path | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        generation = {"pool_size": pool_size, "num_inference_steps": num_inference_steps}
        given: Any = {name: value for name, value in generation.items() if value is not None}
        if distillation is not None and given:
            raise ValueError(f"Give {' and '.join(given)} to the Distillation, not to the plugin.")
        if generator_strategy is not None:
            check_instance("generator_strategy", generator_strategy, MAGDTraining)
            decided = (generator_iterations, distillation, checkpoint_folder, *given.values())
            if any(each is not None for each in decided):
                raise ValueError(
                    "generator_strategy brings its own training and distillation: give "
                    "train_iterations, checkpoint_folder and distillation=Distillation(...) to "
                    "it, not to the plugin."
                )
        self.generator_strategy = generator_strategy
        self.generator_iterations = optional_count("generator_iterations", generator_iterations)
        self.distillation = replace(distillation or Distillation(), **given)
        self.mini_batches = MiniBatches() if mini_batches is None else mini_batches
        check_instance("mini_batches", self.mini_batches, MiniBatches)
        self.checkpoint_folder = check_folder("checkpoint_folder", checkpoint_folder)
        self.seed = check_seed("seed", seed)
        self.progress = True
        self.replay: Replay | None = None
        self._learnt: tuple[Any, ...] | None = None
        self._rng: SeededGenerator | None = None

    @property
    def generator(self) -> DiffusionGenerator | None:
        """The generator; ``None`` until the first experience has been seen."""
        return None if self.generator_strategy is None else self.generator_strategy.model

    @property
    def cost(self) -> Cost:
        """What the generator has cost so far."""
        return Cost() if self.generator_strategy is None else self.generator_strategy.cost

    def present_teacher(self, strategy: Any, seed: int) -> Teacher | None:
        """What would generate now, with noise of this seed; ``None`` if there are no classes.

        The strategy's model may guide it.
        """
        training, generator = self.generator_strategy, self.generator
        if training is None or generator is None or not generator.classes:
            return None
        if not training.distillation.guidance.conditional:
            return None
        rng = torch.Generator(generator.device).manual_seed(seed)
        solver = PastSolver(strategy.model, generator, strategy.device, PhaseCost())
        return training.distillation.teacher(generator, generator.classes, rng, classifier=solver)

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

    def after_train_dataset_adaptation(
        self, strategy: Any, num_workers: int = 0, **kwargs: Any
    ) -> None:
        """The generator fills the pool, then learns the experience; it is built at the first.

        Raises:
            TypeError: the dataset's samples are not images with a class.
            ValueError: the images are of another shape than those of earlier experiences.
        """
        if isinstance(strategy, REAL_PAST):
            return
        experience = strategy.experience
        with random_states_kept(strategy.device):  # which reading images may draw from
            training = self.generator_strategy or self._build(strategy)
            training.generation.processes.check_same_solver(strategy, self.mini_batches)
            if identity_of(experience) != self._learnt:  # else replay is still as it was left
                device, cost = strategy.device, training.cost.solver
                solver = PastSolver(strategy.model, training.model, device, cost)
                training.fill_pool(experience, solver, images=self.mini_batches.replay_size != 0)
                pool = training.pool if self.mini_batches.replay_size != 0 else None
                self.replay = None if pool is None else self._make_replay(pool, solver, strategy)
                training.train(experience, eval_streams=[], num_workers=num_workers)
                self._learnt = identity_of(experience)
            if self.replay is not None and self.replay.current is None:
                classes, count = self._current_images(experience, self.replay)
                if count:
                    self.replay.current = training.generation.images(
                        classes, count, training.distillation, training.model, training.rng
                    )

    def _make_replay(self, pool: Pool, solver: PastSolver, strategy: Any) -> Replay:
        data = strategy.experience.dataset
        replay = Replay(
            pool, None, len(classes_of(data)), self.mini_batches, real_images=len(data)
        )
        weight = self.mini_batches.soft_label_weight
        if weight is None:
            online = is_online_subexperience(strategy.experience)
            weight = 0 if online or not gives_logits(strategy) else SOFT_LABEL_WEIGHT
        if weight:
            replay.soft_labels, replay.soft_label_weight = solver.logits_of_pool(pool), weight
        return replay

    def _current_images(self, experience: Any, replay: Replay) -> tuple[list[int], int]:
        """Current classes to generate, and how many images: as if they shared the pool."""
        training = self.generator_strategy
        assert training is not None
        wanted = self.mini_batches.generated_share and not is_online_subexperience(experience)
        if not wanted or not training.distillation.guidance.conditional:
            return [], 0
        classes = sorted(training.model.label_map.known(classes_of(experience.dataset)))
        share = len(classes) / (len(classes) + len(replay.past.classes))
        return classes, max(len(classes), round(share * len(replay.past.labels)))

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Wrap the data loader: generated images join its mini-batches.

        A mini-batch that they cannot join raises a ``TypeError`` or ``ValueError``.
        """
        if self.generator is not None:
            rng = self._rng = self._rng or self._replay_rng()
            images = self.replay, self.generator.image_shape, self.generator.label_map
            strategy.dataloader = ReplayLoader(strategy, *images, rng)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Unwrap the data loader."""
        self.after_update(strategy)
        strategy.dataloader = unwrapped(strategy.dataloader)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Soft labels join the loss, and weights of its rows.

        Raises:
            ValueError: the solver's output has no logit for each old class.
        """
        if self.replay is not None:
            assert self.generator is not None
            self.replay.join_loss(strategy, self.generator.label_map)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Generated images leave the mini-batch."""
        if self.replay is not None:
            self.replay.leave(strategy)

    after_training_iteration = after_update

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """The pools are dropped; warn if no generated image was asked for."""
        whole = not is_online_subexperience(strategy.experience)
        if whole and self.replay is not None and not self.replay.joined:
            warnings.warn(
                f"No generated image has joined a mini-batch: {type(strategy).__name__} does not "
                "iterate over strategy.dataloader, which MAGDPlugin wraps at each epoch.",
                stacklevel=2,
            )
        self.replay = self._learnt = None

    def _build(self, strategy: Any) -> MAGDTraining:
        """The default generator and its training, for images as the experience shows them."""
        self.generator_strategy = default_training(
            check_dataset(strategy.experience.dataset.eval()),
            self.distillation,
            strategy.device,
            self._seed,
            train_iterations=self.generator_iterations,
            checkpoint_folder=self.checkpoint_folder,
        )
        self.generator_strategy.progress = self.progress
        return self.generator_strategy

    @property
    def _seed(self) -> int:
        return torch.initial_seed() if self.seed is None else self.seed

    def _replay_rng(self) -> SeededGenerator:
        """Draws from the pool, on the pool's device."""
        assert self.generator_strategy is not None
        return SeededGenerator(self.generator_strategy.device, self._seed + solver_rank())
