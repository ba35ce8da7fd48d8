"""MAGDPlugin: which callback of Avalanche does what.

==============================  =================================================================
callback                        what happens
==============================  =================================================================
before_training                 refuse a second MAGD plugin; warn who has no use for one
after_train_dataset_adaptation  check the data; build the generator; fill the pool with the past;
                                the generator learns the experience, and generates it if asked to
before_training_iteration       generated images join the mini-batch
before_backward                 soft labels join the loss
after_training_iteration        generated images leave the mini-batch
after_training_exp              the pools are dropped
==============================  =================================================================

The generator learns an experience before the solver does. So the solver is still the one of the
past while it can be asked about it, and the classes of now can be replayed too: a solver that sees
real images of new classes only, and generated ones of old classes only, learns to tell real from
generated instead.
"""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Cumulative, JointTraining
from torch import Tensor

from avalanche_magd.arguments import check_count, check_number
from avalanche_magd.classes import classes_of
from avalanche_magd.cost import Cost
from avalanche_magd.distillation import MAGD, Distillation, Pool
from avalanche_magd.distillation.sggd import SnrBand
from avalanche_magd.generator import DiffusionGenerator
from avalanche_magd.processes import solver_rank
from avalanche_magd.randomness import SeededGenerator, seeded
from avalanche_magd.replay import Replay, append_replay, trim_replay
from avalanche_magd.samples import check_dataset, check_minibatch
from avalanche_magd.solver import PastSolver
from avalanche_magd.training import MAGDTraining, is_part

ITERATIONS_PER_PIXEL = 30
MIN_ITERATIONS = 400

REAL_PAST = (Cumulative, JointTraining)
"""Strategies that keep all real data, and so have nothing to replay."""


class MAGDPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Replays the past to any supervised Avalanche strategy, and stores no data.

    ``plugins=[MAGDPlugin()]`` is all that a strategy needs. From its second experience on, each
    mini-batch is joined by generated images of the classes that came before, and of current ones.

    Args:
        generator_strategy: trains the generator. Default: one that is built when the first
            experience shows what images look like, from the arguments below.
        generator_iterations: training steps of the generator per experience. Default: 30 for each
            pixel of the longer image side, and at least 400.
        pool_size: images generated per experience, over all old classes; those of current classes
            are fewer than as many again.
        num_inference_steps: network calls per generated image.
        replay_size: generated rows per mini-batch; 0 switches replay off. Default: as many as give
            each old class the weight of a current one, so that they grow with the number of old
            classes over that of current ones: 19 times the real rows in the tenth experience, if
            each brings one class.
        generated_share: share of the current classes' rows that are generated, in [0, 1): they
            join the real ones from the second experience on, and the rows of old classes grow in
            proportion. Without them (0) a solver can tell old classes from current ones by telling
            generated images from real ones. Not on online streams, nor from a generator that is
            told no classes.
        soft_label_weight: weight of a loss that draws the solver's answers on generated images of
            old classes towards those that it gave before the experience, within each head; 0
            switches it off. The solver has to be trained on logits.
        select: whether to replay only those generated images in which the solver of the past sees
            their class.
        snr_band: SGGD's band, see :class:`~avalanche_magd.distillation.MAGD`.
        guidance_scale: CGGD's classifier-free guidance; 1 is none.
        max_pool_bytes: bound on the memory of the pool of the past; lessons leave it before images
            of current classes come.
        checkpoint_folder: where the generator's training is saved as it goes, see
            :class:`MAGDTraining`.
        seed: of everything random here but a given ``generator_strategy``, which has its own.
            Default: torch's initial seed. The strategy's own randomness is never touched.
        progress: show progress bars, if standard error is a terminal; a given
            ``generator_strategy`` has a word of its own in this.

    Attributes:
        generator_strategy: the strategy in use; ``None`` until the first experience if it was not
            given.
        replay: what joins the mini-batches of the present experience; ``None`` in the first, and
            between experiences.

    Raises:
        TypeError: ``generator_strategy`` is not a :class:`MAGDTraining`, or a count is no integer.
        ValueError: an argument out of range, or one that ``generator_strategy`` decides.
    """

    def __init__(
        self,
        generator_strategy: MAGDTraining | None = None,
        *,
        generator_iterations: int | None = None,
        pool_size: int = Distillation.pool_size,
        num_inference_steps: int = Distillation.num_inference_steps,
        replay_size: int | None = None,
        generated_share: float = 0.5,
        soft_label_weight: float = 0.0,
        select: bool = False,
        snr_band: SnrBand | Literal["safe"] | None = MAGD.snr_band,
        guidance_scale: float = Distillation.guidance_scale,
        max_pool_bytes: int = Distillation.max_pool_bytes,
        checkpoint_folder: str | Path | None = None,
        seed: int | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if generator_iterations is not None:
            check_count("generator_iterations", generator_iterations)
        if replay_size is not None:
            check_count("replay_size", replay_size, at_least=0)
        if not 0 <= generated_share < 1:
            raise ValueError(f"generated_share must be in [0, 1), got {generated_share!r}.")
        check_number("soft_label_weight", soft_label_weight, at_least=0, at_most=1e6)
        distillation = Distillation(
            MAGD(snr_band=snr_band),
            pool_size=pool_size,
            num_inference_steps=num_inference_steps,
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
                distillation != Distillation()
                or generator_iterations is not None
                or checkpoint_folder is not None
            ):
                raise ValueError(
                    "generator_strategy brings its own training and distillation: give "
                    "train_iterations, checkpoint_folder and distillation=Distillation(...) to "
                    "it, not to the plugin."
                )
        self.generator_strategy = generator_strategy
        self.generator_iterations = generator_iterations
        self.distillation = distillation
        self.replay_size = replay_size
        self.generated_share = generated_share
        self.soft_label_weight = soft_label_weight
        self.select = select
        self.checkpoint_folder = checkpoint_folder
        self.seed = seed
        self.progress = progress
        self.replay: Replay | None = None
        self._learnt: Any = None
        self._real_rows: int | None = None
        self._slots: Tensor | None = None
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

    def after_train_dataset_adaptation(
        self, strategy: Any, num_workers: int = 0, **kwargs: Any
    ) -> None:
        """The generator fills the pool, then learns the experience; it is built at the first.

        Raises:
            TypeError: see :func:`~avalanche_magd.samples.check_dataset`.
            ValueError: likewise.
        """
        if isinstance(strategy, REAL_PAST):
            return
        if strategy.experience.dataset is not self._learnt:
            self._learn(strategy, num_workers)
        # Else the experience was interrupted: what the generator learnt and made is there.
        if self.replay is not None and self.generated_share and self.replay.current is None:
            self.replay.current = self._generate_current(strategy.experience, self.replay)

    def _learn(self, strategy: Any, num_workers: int) -> None:
        dataset = strategy.experience.dataset.eval()
        if self.generator_strategy is None:
            self.generator_strategy = self._default_strategy(
                check_dataset(dataset), strategy.device
            )
        training = self.generator_strategy
        solver = PastSolver(strategy.model, training.model, strategy.device, training.cost.solver)
        wanted = self.replay_size != 0
        training.fill_pool(strategy.experience, solver, images=wanted)
        pool = training.pool
        self.replay = None
        if pool is not None and wanted:
            self.replay = self._make_replay(pool, solver, len(classes_of(dataset)))
        training.train(strategy.experience, eval_streams=[], num_workers=num_workers)
        self._learnt = strategy.experience.dataset

    def _make_replay(self, pool: Pool, solver: PastSolver, current_classes: int) -> Replay:
        replay = Replay(pool, None, current_classes, self.replay_size, self.generated_share)
        if self.select or self.soft_label_weight:
            logits = solver.of_pool(pool)
            if self.soft_label_weight:
                replay.soft_labels = logits
            if self.select:
                seen = torch.tensor(pool.classes, device=logits.device)[logits.argmax(1)]
                pool.select(seen == pool.labels)
        return replay

    def _generate_current(self, experience: Any, replay: Replay) -> Pool | None:
        """Images of the classes of now: as many of each as if they shared the pool of the past."""
        assert self.generator_strategy is not None
        if is_part(experience) or not self.generator_strategy.distillation.conditional:
            return None
        table = self.generator_strategy.model.class_table
        classes = sorted(table.known(classes_of(experience.dataset)))
        share = len(classes) / (len(classes) + len(replay.past.classes))
        count = max(len(classes), round(share * len(replay.past.labels)))
        return self.generator_strategy.rehearsal.images_of(classes, count)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Generated images join the mini-batch.

        Raises:
            TypeError: see :func:`~avalanche_magd.samples.check_minibatch`.
            ValueError: likewise.
        """
        self._real_rows = None
        if self.generator_strategy is None:
            return
        generator = self.generator_strategy.model
        check_minibatch(strategy.mbatch, generator.image_shape)
        if self.replay is None:
            return
        real_rows = len(strategy.mbatch[0])
        images, numbers, self._slots = self.replay.draw(real_rows, self._replay_rng())
        if not len(images):
            return
        labels, tasks = generator.class_table.labels_of(numbers)
        append_replay(strategy.mbatch, images, labels, tasks)
        self._real_rows = real_rows

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Soft labels join the loss.

        Raises:
            ValueError: the solver's output has no logit for each old class.
        """
        if self._real_rows is None or self.replay is None or self.replay.soft_labels is None:
            return
        assert self._slots is not None
        if not len(self._slots):
            return
        assert self.generator is not None
        rows = slice(self._real_rows, self._real_rows + len(self._slots))
        table = self.generator.class_table
        drift = self.replay.drift(strategy, rows, self._slots, table)
        strategy.loss = strategy.loss + self.soft_label_weight * drift

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Generated images leave the mini-batch."""
        if self._real_rows is not None:
            trim_replay(strategy, self._real_rows)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """The pools are dropped."""
        self.replay = self._learnt = self._slots = None

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
            self._rng = SeededGenerator(self.generator_strategy.device, seed + solver_rank())
        return self._rng
