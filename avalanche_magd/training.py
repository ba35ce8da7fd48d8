"""MAGDTraining: the Avalanche strategy that teaches a generator, experience after experience.

========================================  ====================================================
before an experience                      the teacher (the generator as it is) fills the pool
each step                                 a mini-batch of real images, as many lessons, one
                                          forward of both, clipped gradients, EMA
after the experience                      the averaged weights replace the student's: they are
                                          the next teacher; the pool is dropped
========================================  ====================================================

An experience is a number of steps, not of epochs, whatever its size: ``train_iterations``. A part
of an online stream gets a share of these, ``online_share``, and of the pool: student, average and
pool then stay from part to part, the oldest images make room, and each part costs the same.

Every class seen before is generated, those too that come again: what they looked like then is not
in the data of now. On an online stream those of the present part are left out, since the parts
that taught them are no older than the average.
Training images come without augmentation (the dataset's evaluation transforms). All randomness is
drawn from the strategy's own seed, and torch's global state is left as it was.

Several processes share the work, see :mod:`avalanche_magd.processes`; but lessons that are fresh
are made by each of them.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks.scenarios.online import OnlineCLExperience
from avalanche.benchmarks.utils.data_loader import collate_from_data_or_kwargs
from avalanche.models.dynamic_optimizers import update_optimizer
from avalanche.models.utils import avalanche_model_adaptation
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

from avalanche_magd.arguments import check_count, check_number
from avalanche_magd.classes import NULL_LABEL, classes_of
from avalanche_magd.cost import Cost
from avalanche_magd.distillation.batch import LessonBatch, noised_lessons
from avalanche_magd.distillation.cggd import Classifier, without_class
from avalanche_magd.distillation.distillation import Distillation
from avalanche_magd.distillation.loss import (
    LossCurves,
    current_share,
    squared_errors,
    total_loss,
)
from avalanche_magd.distillation.pool import Pool
from avalanche_magd.distillation.teacher import EmaTeacher
from avalanche_magd.generator import DiffusionGenerator
from avalanche_magd.processes import Processes, is_main_process, process_count
from avalanche_magd.randomness import SeededGenerator, seeded
from avalanche_magd.recording import RecordedGenerator
from avalanche_magd.rehearsal import Rehearsal
from avalanche_magd.resuming import TrainingCheckpoint, starting_point
from avalanche_magd.samples import check_dataset


class MAGDTraining(SupervisedTemplate):
    """Teaches a :class:`DiffusionGenerator` continually, without stored data.

    Args:
        model: the generator.
        optimizer: over the generator's parameters. Those with ``requires_grad`` off stay as they
            are, and are shared by student and teacher.
        distillation: how the past is taught.
        train_mb_size: real images of a step, in all processes together; as many lessons join them.
        train_iterations: steps per experience.
        gradient_accumulation_steps: parts in which a step's rows go through the network, one
            after another. Each part's gradients are added up before the next part: less memory,
            same gradients, dropout apart. ``mb_output`` passes none on then: what other plugins
            add to the loss by it teaches nothing.
        ema_decay: weight of the past in the averaged weights, in [0, 1); 0 switches averaging off.
        max_grad_norm: gradients are clipped to this norm.
        replay_weight: λ, weight of the lessons' loss; 1 is the joint objective.
        current_weight: w_new, weight of the current images' loss, in (0, 1]. Default: the current
            classes' share of all.
        online_teacher: whether fresh lessons come from the average as it is at each step, not as
            it was before the experience.
        online_share: share of an experience's steps and pool that a part of an online stream
            gets, in (0, 1].
        checkpoint_folder: where each experience's training is saved as it goes, so that a killed
            run, started again, goes on from there; what it had spent is not counted again. Parts
            of online streams are not saved, nor is the state of other plugins.
        checkpoint_every: steps between two savings; the last step is always saved.
        seed: of everything random here. Default: torch's initial seed.
        progress: show progress bars, if standard error is a terminal.
        **base_kwargs: further arguments of Avalanche's ``SupervisedTemplate``: ``device``,
            ``plugins``, ``evaluator`` (default: none, since accuracy is no metric of a generator),
            …

    Attributes:
        rehearsal: the past, for the student and for a solver.
        curves: squared errors by kind of lesson, as training went.

    Raises:
        TypeError: ``model`` is not a :class:`DiffusionGenerator`, or an argument of the wrong
            type.
        ValueError: an argument out of range.
    """

    optimized_param_id: Any  # Avalanche's: what the optimizer was given, by name

    def __init__(
        self,
        *,
        model: DiffusionGenerator,
        optimizer: torch.optim.Optimizer,
        distillation: Distillation | None = None,
        train_mb_size: int = 32,
        train_iterations: int = 1000,
        gradient_accumulation_steps: int = 1,
        ema_decay: float = 0.995,
        max_grad_norm: float = 1.0,
        replay_weight: float = 1.0,
        current_weight: float | None = None,
        online_teacher: bool = False,
        online_share: float = 1 / 40,
        checkpoint_folder: str | Path | None = None,
        checkpoint_every: int = 200,
        seed: int | None = None,
        progress: bool = True,
        **base_kwargs: Any,
    ) -> None:
        if not isinstance(model, DiffusionGenerator):
            raise TypeError(f"model must be a DiffusionGenerator, got {type(model).__name__}.")
        check_count("train_mb_size", train_mb_size, at_least=process_count())
        check_count("train_iterations", train_iterations)
        check_count("gradient_accumulation_steps", gradient_accumulation_steps)
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}.")
        check_number("max_grad_norm", max_grad_norm, at_least=1e-6)
        check_number("replay_weight", replay_weight, at_least=0, at_most=1e6)
        if current_weight is not None and not 0 < current_weight <= 1:
            raise ValueError(f"current_weight must be in (0, 1], got {current_weight}.")
        if not 0 < online_share <= 1:
            raise ValueError(f"online_share must be in (0, 1], got {online_share}.")
        check_count("checkpoint_every", checkpoint_every)
        distillation = Distillation() if distillation is None else distillation
        distillation.lessons_per_image(model)
        if online_teacher and not distillation.fresh:
            raise ValueError(
                "online_teacher=True needs Distillation(fresh=True): lessons that wait in a pool "
                "are those of the teacher before the experience."
            )
        if "train_epochs" in base_kwargs:
            raise TypeError("An experience is train_iterations steps long: give no train_epochs.")
        base_kwargs.setdefault("evaluator", _no_evaluator())
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=nn.MSELoss(),
            train_mb_size=train_mb_size,
            **base_kwargs,
        )
        self.train_iterations = train_iterations
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.ema_decay = ema_decay
        self.max_grad_norm = max_grad_norm
        self.replay_weight = replay_weight
        self.current_weight = current_weight
        self.online_teacher = online_teacher
        self.online_share = online_share
        self.checkpoint_folder = (
            None if checkpoint_folder is None else Path(checkpoint_folder).absolute()
        )
        self.checkpoint_every = checkpoint_every
        self.progress = progress
        self.rng = SeededGenerator(self.device, torch.initial_seed() if seed is None else seed)
        self.processes = Processes()
        self.rehearsal = Rehearsal(model, distillation, self.rng, self.processes, Cost(), progress)
        self._pool_dataset: Any = None
        self.curves = LossCurves()
        self.teacher: EmaTeacher | None = None
        self._lessons: LessonBatch | None = None
        self._recorded: RecordedGenerator | None = None
        self._w_new = 1.0
        self._checkpoint: TrainingCheckpoint | None = None
        self._loader_seed = 0
        self._rows: list[int] = []
        self._iteration = 0

    def fill_pool(
        self, experience: Any, classifier: Classifier | None = None, *, images: bool = True
    ) -> None:
        """Generate the past before an experience is trained on; nothing if there is no past yet.

        :meth:`train` does it by itself. Whoever needs the images calls it before. It is done once:
        an experience that was interrupted finds its pool again.

        Args:
            experience: the next experience.
            classifier: the solver of the past, needed where the distillation asks it.
            images: whether images are wanted even where no lessons are kept with them.

        Raises:
            TypeError: see :func:`~avalanche_magd.samples.check_dataset`.
            ValueError: likewise, or the distillation needs a classifier and there is none, or the
                network has no room for a class.
        """
        if experience.dataset is self._pool_dataset:
            return
        dataset = experience.dataset.eval()
        check_dataset(dataset, self.model.image_shape)
        self.model.check_classes(dataset)
        if self.model.to(self.device).pixel_range.known:
            self.model.check_range(dataset)
        self.model.infer_range(dataset)
        share = self._share(experience)
        key = ""
        if process_count() > 1 or self.checkpoint_folder is not None:
            key = starting_point(self, experience, classifier)
        start = "what the generator's training starts from"
        self.processes.check_same(key.encode(), start, self.device)
        self._checkpoint = None
        classes = set(self.model.classes)
        if is_part(experience):
            classes -= self.model.class_table.known(classes_of(dataset))
        else:
            self.rehearsal.pool = self.teacher = None
            if self.checkpoint_folder is not None:
                number = self.clock.train_exp_counter
                file = self.checkpoint_folder / f"experience-{number}.pt"
                self._checkpoint = TrainingCheckpoint(file, key)
        self.rehearsal.begin(classes, dataset, classifier, share=share, images=images)
        self._loader_seed = self._draw_seed()
        self._pool_dataset = experience.dataset

    @property
    def distillation(self) -> Distillation:
        """How the past is taught; another one holds from the next experience on."""
        return self.rehearsal.distillation

    @distillation.setter
    def distillation(self, distillation: Distillation) -> None:
        distillation.lessons_per_image(self.model)
        self.rehearsal.distillation = distillation

    @property
    def cost(self) -> Cost:
        """What was spent so far."""
        return self.rehearsal.cost

    @property
    def pool(self) -> Pool | None:
        """What the teacher generated; ``None`` if nothing, and between whole experiences."""
        return self.rehearsal.pool

    def _share(self, experience: Any) -> float:
        """Of the steps and of the pool: all for a whole experience, less for a part of one."""
        return self.online_share if is_part(experience) else 1.0

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """Avalanche's training loop, with torch's global random state untouched.

        However it ends, by an error or an interruption too, the averaged weights are left in the
        generator.
        """
        try:
            with seeded(self._draw_seed(), self.device):
                return super().train(experiences, eval_streams, **kwargs)
        except BaseException:
            self._settle()
            raise

    def _draw_seed(self) -> int:
        return int(torch.randint(2**62, (), generator=self.rng, device=self.device))

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        """Train on images as they are evaluated: without augmentation."""
        self.adapted_dataset = self.experience.dataset.eval()

    def _after_train_dataset_adaptation(self, **kwargs: Any) -> None:
        self.fill_pool(self.experience, images=False)
        super()._after_train_dataset_adaptation(**kwargs)

    def make_train_dataloader(
        self, num_workers: int = 0, pin_memory: bool | None = None, **kwargs: Any
    ) -> None:
        """As many mini-batches as there are iterations, from as many passes as that takes."""
        rng = torch.Generator().manual_seed(self._loader_seed)
        rows = self._iterations * self.train_mb_size
        self._rows = list(RandomSampler(self.adapted_dataset, num_samples=rows, generator=rng))
        arguments: dict[str, Any] = {}
        collate_from_data_or_kwargs(self.adapted_dataset, arguments)
        self.dataloader = DataLoader(
            self.adapted_dataset,
            batch_size=self.train_mb_size,
            sampler=self._rows,
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda" if pin_memory is None else pin_memory,
            generator=rng,
            **arguments,
        )

    def model_adaptation(self, model: nn.Module | None = None) -> Any:
        """Learn the classes that the experience has, and no more.

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

        The optimizer learns the parameters' names before a first adaptation replaces some, which
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

    @property
    def _iterations(self) -> int:
        return max(1, round(self._share(self.experience) * self.train_iterations))

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        if self.teacher is None:
            self.teacher = EmaTeacher(self.model.parameters(), self.ema_decay)
        self.rehearsal.keep_teacher()
        self.teacher.learn(self.model.parameters())
        self._recorded = RecordedGenerator(self.model)
        self._iteration = 0
        if self._checkpoint is not None:
            self._iteration = self._checkpoint.restore(self, self.teacher)
            step = self._iteration.to_bytes(8)
            self.processes.check_same(step, "how far their checkpoints are", self.device)
            del self._rows[: self._iteration * self.train_mb_size]
        new = len(classes_of(self.experience.dataset))
        w_new = current_share(new, len(self.rehearsal.classes))
        self._w_new = w_new if self.current_weight is None else self.current_weight

    def training_epoch(self, **kwargs: Any) -> None:
        """The template's loop over the mini-batches, measured and with a progress bar."""
        loader = self.dataloader
        hidden = None if self.progress and is_main_process() else True
        with (
            self.cost.training.measure(self.model),
            self.processes.counting(self.model),
            tqdm(
                loader,
                desc="training generator",
                disable=hidden,
                leave=False,
                initial=self._iteration,
                total=self._iterations,
            ) as self.dataloader,
        ):
            super().training_epoch(**kwargs)
        self.dataloader = loader

    def _before_eval_exp(self, **kwargs: Any) -> None:
        self._eval_rng = SeededGenerator(self.device, 0)
        super()._before_eval_exp(**kwargs)

    def forward(self) -> Float[Tensor, "n c h w"]:
        """The predictions for this step's lessons: noised real images first, then the pool's.

        Of several processes each predicts its own rows.
        An evaluation draws the same noise each time, and none of the training's.
        """
        rng = self.rng if self.is_training else self._eval_rng
        x_0 = self.model.pixel_range.to_model(self.mb_x.float())
        lessons = noised_lessons(self.model.schedule, x_0, self._labels(), rng)
        if self.is_training and self.rehearsal.classes:
            average = self.teacher.average if self.teacher and self.online_teacher else None
            lessons = LessonBatch.cat([lessons, self.rehearsal.lessons(len(x_0), average)])
        self._lessons = lessons
        predict = self.model
        if self.is_training:
            if self.gradient_accumulation_steps > 1:
                return self._forward_and_backward(lessons)
            lessons = lessons.rows(self.processes.mine())
            predict = self._recorded or predict
        return predict(lessons.x_t, lessons.t, lessons.labels)  # type: ignore[no-any-return]

    def _forward_and_backward(self, lessons: LessonBatch) -> Float[Tensor, "n c h w"]:
        """Predictions, part by part, with each part's gradients added up at once."""
        errors = torch.zeros(len(lessons.t), device=self.device, requires_grad=True)
        (weights,) = torch.autograd.grad(self._loss(errors), errors)  # it is linear in them
        mine, parts = self.processes.mine(), self.gradient_accumulation_steps
        predictions = []
        for each in torch.arange(len(errors), device=self.device)[mine].chunk(parts):
            part = lessons.rows(each)
            prediction = self.model(part.x_t, part.t, part.labels)
            loss: Any = weights[each] @ squared_errors(prediction, part.target)
            loss.backward()
            predictions.append(prediction.detach())
        return torch.cat(predictions).requires_grad_()

    def _labels(self) -> Tensor:
        """The rows' classes; "no class" for some if guided, and for classes not learnt."""
        tasks = self.mb_task_id if len(self.mbatch) > 2 else None
        labels: Tensor = self.model.class_table.numbers_of(self.mb_y, tasks)
        if self.is_training:
            if (labels == NULL_LABEL).any():
                unknown = self.mb_y[labels == NULL_LABEL].unique().tolist()
                raise ValueError(
                    f"The samples have labels {unknown} that the dataset's `targets` (and "
                    "`targets_task_labels`) do not name: give both the same, for example by "
                    "changing targets in place of a target_transform."
                )
            null = without_class(len(labels), self.distillation.null_share, self.rng)
            labels = labels.masked_fill(null, NULL_LABEL)
        return labels

    def criterion(self) -> Float[Tensor, ""]:
        """The loss of :mod:`avalanche_magd.distillation.loss`; in evaluation of real images."""
        assert self._lessons is not None
        target = self._lessons.target
        if self.is_training:
            mine = squared_errors(self.mb_output, target[self.processes.mine()])
            errors = self.processes.rows_of_all(mine, len(target))
            point = self.curves.add(errors.detach(), self._lessons.kind)
            if point is not None and isinstance(self.dataloader, tqdm):
                self.dataloader.set_postfix(point.errors, refresh=False)
        else:
            errors = squared_errors(self.mb_output, target)
        return self._loss(errors)

    def _loss(self, errors: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        real = len(self.mb_x)
        return total_loss(errors[:real], errors[real:], self._w_new, self.replay_weight)

    def optimizer_step(self) -> None:
        """Clip, step, average.

        Raises:
            FloatingPointError: the gradient is not finite.
        """
        assert self.teacher is not None
        assert self._lessons is not None
        self.processes.add_up_gradients(self.teacher.student)
        norm = nn.utils.clip_grad_norm_(self.teacher.student, self.max_grad_norm)
        if not norm.isfinite():
            raise FloatingPointError(
                f"The generator's gradient is {norm.item()} at iteration {self._iteration} of "
                "the experience: lower its optimizer's learning rate, or check the data for NaN. "
                "The generator keeps the average of the weights before."
            )
        self.cost.training.backwards += len(self._lessons.t)
        super().optimizer_step()
        self.teacher.update()
        self._iteration += 1
        at_end = self._iteration == self._iterations
        if self._checkpoint and (at_end or self._iteration % self.checkpoint_every == 0):
            self._checkpoint.save(self, self.teacher, self._iteration)

    def _after_training_exp(self, **kwargs: Any) -> None:
        self._settle()
        self._lessons = self._pool_dataset = None
        self.rehearsal.end(whole=not is_part(self.experience))
        super()._after_training_exp(**kwargs)

    def _settle(self) -> None:
        """The average stands in the generator; what a whole experience's student was is dropped.

        What the optimizer has averaged belongs to that student, and costs twice its weights.
        """
        self._recorded = None
        if self.teacher is not None:
            self.teacher.teach()
            if not is_part(self.experience):
                self.teacher = None
                self.optimizer.state.clear()


def is_part(experience: Any) -> bool:
    """Whether an experience is a few images of an online stream, and not a whole one."""
    return isinstance(experience, OnlineCLExperience)


def _no_evaluator() -> EvaluationPlugin:
    """An evaluator without metrics or loggers, which is meant and needs no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No loggers specified")
        return EvaluationPlugin()
