"""An Avalanche strategy whose experience is a number of steps, as a generator's training needs it.

Nothing here knows how a generator is taught. Avalanche's template is made to

* train for a number of steps, from as many passes over the data as that takes;
* read images as they are evaluated, without augmentation;
* adapt model and optimizer to each experience, and to each part of an online stream;
* draw all randomness from a seed of its own, and leave torch's global state as it was;
* show a progress bar.

So :class:`~avalanche_magd.MAGDTraining` reads as the method, not as its host's hooks.
"""

import hashlib
import warnings
from typing import Any

import torch
from avalanche.benchmarks.scenarios.online import OnlineCLExperience
from avalanche.benchmarks.utils.data_loader import collate_from_data_or_kwargs
from avalanche.models.dynamic_optimizers import update_optimizer
from avalanche.models.utils import avalanche_model_adaptation
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.diffusion.label_map import classes_of
from avalanche_magd.runtime.distributed import is_main_process
from avalanche_magd.runtime.random_state import SeededGenerator, seeded
from avalanche_magd.runtime.validation import check_count, check_seed


class IterationsTemplate(SupervisedTemplate):
    """Avalanche's supervised template, with steps in place of epochs.

    Attributes:
        rng: source of all randomness.
        eval_rng: source of an evaluation's randomness, which is the same each time.
        progress: whether to show a progress bar, if standard error is a terminal.
        progress_bar: of the present experience.
        iteration: steps done in the present experience.
        loader_seed: decides the order of the present experience's images.
    """

    optimized_param_id: Any  # Avalanche's: what the optimizer was given, by name

    def __init__(self, *, train_iterations: int, seed: int | None, **base_kwargs: Any) -> None:
        if "train_epochs" in base_kwargs:
            raise TypeError("An experience is train_iterations steps long: give no train_epochs.")
        base_kwargs.setdefault("evaluator", _no_evaluator())
        super().__init__(**base_kwargs)
        self.train_iterations = check_count("train_iterations", train_iterations)
        seed = check_seed("seed", seed)
        self.rng = SeededGenerator(self.device, torch.initial_seed() if seed is None else seed)
        self.eval_rng = SeededGenerator(self.device, 0)
        self.progress = True
        self.progress_bar: tqdm[Any] | None = None
        self.iteration = 0
        self.loader_seed = 0
        self._order: list[int] = []

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """Avalanche's training loop, with torch's global random state untouched.

        It ends with :meth:`settle`, if an error or an interruption ends it too.
        """
        try:
            with seeded(self.rng.draw_seed(), self.device):
                return super().train(experiences, eval_streams, **kwargs)
        except BaseException:
            self.settle(learnt=False)
            raise

    def settle(self, *, learnt: bool) -> None:
        """Leave the model as it shall be used, whether the experience was learnt to its end."""
        self.progress_bar = None

    def _after_training_exp(self, **kwargs: Any) -> None:
        self.settle(learnt=True)
        super()._after_training_exp(**kwargs)

    def iterations_of(self, experience: Any) -> int:
        """How many steps an experience is trained on."""
        return self.train_iterations

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        """Train on images as they are evaluated: without augmentation."""
        self.adapted_dataset = self.experience.dataset.eval()

    def make_train_dataloader(
        self, num_workers: int = 0, pin_memory: bool | None = None, **kwargs: Any
    ) -> None:
        """As many mini-batches as there are steps left, from as many passes as that takes."""
        rng = torch.Generator().manual_seed(self.loader_seed)
        rows = self.iterations_of(self.experience) * self.train_mb_size
        self._order = list(RandomSampler(self.adapted_dataset, num_samples=rows, generator=rng))
        arguments: dict[str, Any] = {}
        collate_from_data_or_kwargs(self.adapted_dataset, arguments)
        self.dataloader = DataLoader(
            self.adapted_dataset,
            batch_size=self.train_mb_size,
            sampler=self._order,
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda" if pin_memory is None else pin_memory,
            generator=rng,
            **arguments,
        )

    def skip_iterations(self, count: int) -> None:
        """Go on after so many steps of the present experience, which were done already."""
        self.iteration = count
        del self._order[: count * self.train_mb_size]

    def model_adaptation(self, model: nn.Module | None = None) -> Any:
        """Add the classes that the experience has, and no more.

        Avalanche would give the first part of an online stream with known boundaries the classes
        of all its parts, which then counted as taught.
        """
        model = self.model if model is None else model
        avalanche_model_adaptation(model, self.experience)
        return model.to(self.device)

    def check_model_and_optimizer(
        self, reset_optimizer_state: bool = False, **kwargs: Any
    ) -> None:
        """Adapt to each experience, and to each part of one.

        The optimizer is given the parameters' names before a first adaptation replaces some, which
        it would not find in its groups otherwise.
        """
        if self.optimized_param_id is None:
            self.make_optimizer(reset_optimizer_state=True)
        self.model = self.model_adaptation()
        self.make_optimizer(reset_optimizer_state=reset_optimizer_state, **kwargs)

    def make_optimizer(self, reset_optimizer_state: bool = False, **kwargs: Any) -> None:
        """Avalanche's, which adds the model's parameters to the optimizer, but no frozen ones."""
        self.optimized_param_id = update_optimizer(
            self.optimizer,
            {name: each for name, each in self.model.named_parameters() if each.requires_grad},
            self.optimized_param_id,
            reset_state=reset_optimizer_state,
        )

    def _before_training_exp(self, **kwargs: Any) -> None:
        self.iteration = 0
        super()._before_training_exp(**kwargs)

    def training_epoch(self, **kwargs: Any) -> None:
        """The template's loop over the mini-batches, with a progress bar."""
        with tqdm(
            desc="training generator",
            disable=None if self.progress and is_main_process() else True,
            leave=False,
            initial=self.iteration,
            total=self.iterations_of(self.experience),
        ) as self.progress_bar:
            super().training_epoch(**kwargs)

    def optimizer_step(self) -> None:
        """The template's step, counted."""
        super().optimizer_step()
        self.iteration += 1
        if self.progress_bar is not None:
            self.progress_bar.update()

    def _before_eval_exp(self, **kwargs: Any) -> None:
        self.eval_rng = SeededGenerator(self.device, 0)
        super()._before_eval_exp(**kwargs)


def old_classes(generator: DiffusionGenerator, experience: Any) -> list[int]:
    """The classes to generate for an experience, ascending: see :mod:`.strategy`."""
    classes = set(generator.classes)
    if is_online_subexperience(experience):
        classes -= generator.label_map.known(classes_of(experience.dataset))
    return sorted(classes)


def identity_of(experience: Any) -> tuple[Any, ...]:
    """What tells an experience from others, although the host may make its dataset anew."""
    stream = getattr(getattr(experience, "origin_stream", None), "name", None)
    index = getattr(experience, "current_experience", None)
    targets = torch.tensor([int(label) for label in experience.dataset.targets])
    return stream, index, len(targets), hashlib.sha256(targets.numpy().tobytes()).hexdigest()


def share_of(experience: Any, online_share: float) -> float:
    """Of the steps and of the pool: all for a whole experience, less for a part of one."""
    return online_share if is_online_subexperience(experience) else 1.0


def is_online_subexperience(experience: Any) -> bool:
    """Whether an experience is a few images of an online stream, and not a whole one."""
    return isinstance(experience, OnlineCLExperience)


def _no_evaluator() -> EvaluationPlugin:
    """An evaluator without metrics or loggers, which is meant and needs no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No loggers specified")
        return EvaluationPlugin()
