"""MAGDTraining: the Avalanche strategy that teaches a generator, experience after experience.

=====================  ========================================================================
before an experience   the generator, as the teacher, fills the pool
each step              a mini-batch of real images, as many lessons, one forward of both, clipped
                       gradients, average of the weights
after the experience   the averaged weights replace the student's: they are the next teacher; the
                       pool is dropped
=====================  ========================================================================

A part of an online stream gets a share of an experience's steps, and of the pool. Student and
pool stay from part to part, new images take the places of the oldest: each part costs the same.

Every class seen before is generated, those too that come again: what they looked like then is not
in the current data. On an online stream those of the present part are left out, since the parts
that taught them are no older than the average.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avalanche_magd.checkpoints.training import TrainingCheckpoint, TrainingState, key_of
from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.diffusion.guidance import Classifier
from avalanche_magd.diffusion.label_map import classes_of
from avalanche_magd.distillation import Distillation, LessonBatch, Pool, Teacher
from avalanche_magd.distillation.cost import Cost
from avalanche_magd.distillation.generation import Generation, lesson_classes
from avalanche_magd.distillation.loss import LossCurves, current_share, squared_errors, total_loss
from avalanche_magd.distillation.pool import check_pool_size
from avalanche_magd.distillation.student import Student, real_lessons
from avalanche_magd.distillation.teacher import drawn_from
from avalanche_magd.runtime.deprecation import OLD_TRAINING_ARGUMENTS, old_arguments
from avalanche_magd.runtime.distributed import process_count
from avalanche_magd.runtime.folder_lock import FolderLock
from avalanche_magd.runtime.validation import check_count, check_folder, check_number, check_share
from avalanche_magd.training.template import (
    IterationsTemplate,
    identity_of,
    is_online_subexperience,
    old_classes,
    share_of,
)


@old_arguments(OLD_TRAINING_ARGUMENTS, distillation=Distillation())
class MAGDTraining(IterationsTemplate):
    """Teaches a :class:`DiffusionGenerator` continually, without stored data.

    Args:
        model: the generator.
        optimizer: over the generator's parameters, or those that shall learn.
        distillation: how old classes are taught. Default: MAGD's way.
        train_mb_size: real images of a step, in all processes together; as many lessons join them.
        train_iterations: steps per experience, whatever its size.
        gradient_accumulation_steps: parts in which a step's rows go through the network, one
            after another: less memory, same gradients, dropout apart. ``mb_output`` passes none on
            then: what other plugins add to the loss by it teaches nothing.
        ema_decay: weight of the past in the averaged weights, in [0, 1); 0 switches averaging off.
        max_grad_norm: gradients are clipped to this norm.
        checkpoint_folder: where each experience's training is saved as it goes, so that a killed
            run, started again, goes on from there; what it had spent is not counted again. Parts
            of online streams are not saved, nor is the state of other plugins. Of one run alone.
        seed: of everything random here. Default: torch's initial seed.
        **base_kwargs: of Avalanche's ``SupervisedTemplate``; there is no ``evaluator`` by default.

    Attributes:
        checkpoint_every: steps between two savings, 200; the last step is always saved.
        generation: generates for the student and for a solver.
        teacher: of the present experience; ``None`` if there are no old classes.
        pool: what the teacher generated; ``None`` if nothing, and between whole experiences.
        curves: squared errors by source of the lessons, as training went.

    Raises:
        TypeError: ``model`` is not a :class:`DiffusionGenerator`, or a count is no integer.
        ValueError: an argument is out of range.
        OSError: ``checkpoint_folder`` cannot be written to.
    """

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
        checkpoint_folder: str | Path | None = None,
        seed: int | None = None,
        **base_kwargs: Any,
    ) -> None:
        if not isinstance(model, DiffusionGenerator):
            raise TypeError(f"model must be a DiffusionGenerator, got {type(model).__name__}.")
        size = check_count("train_mb_size", train_mb_size, at_least=process_count())
        parts = check_count("gradient_accumulation_steps", gradient_accumulation_steps)
        self.distillation = Distillation() if distillation is None else distillation
        self.distillation.lessons_per_image(model)
        base_kwargs |= {"model": model, "optimizer": optimizer, "criterion": nn.MSELoss()}
        base_kwargs |= {"train_mb_size": size, "train_iterations": train_iterations}
        super().__init__(seed=seed, **base_kwargs)
        self.gradient_accumulation_steps = parts
        self.ema_decay = check_share("ema_decay", ema_decay, excluded=1)
        self.max_grad_norm = check_number("max_grad_norm", max_grad_norm, at_least=1e-6)
        self.checkpoint_folder = check_folder("checkpoint_folder", checkpoint_folder)
        self.checkpoint_every = 200
        self.generation = Generation()
        self.curves = LossCurves()
        self.teacher: Teacher | None = None
        self.pool: Pool | None = None
        self._student: Student | None = None
        self._lessons: LessonBatch | None = None
        self._checkpoint: TrainingCheckpoint | None = None
        self._folder_lock = FolderLock()
        self._w_new = 1.0
        self._known = model.label_map
        self._filled_for: tuple[Any, ...] | None = None

    @property
    def cost(self) -> Cost:
        """What was spent so far."""
        return self.generation.cost

    def fill_pool(
        self, experience: Any, classifier: Classifier | None = None, *, images: bool = True
    ) -> None:
        """Generate old classes, if there are any, before an experience is trained on.

        :meth:`train` does it by itself; who needs the images, even where no lessons are kept with
        them, calls it before. It is done once: an experience that was interrupted finds its pool
        again. The classifier is the solver of the past, needed where the guidance calls it.

        Raises:
            TypeError: the dataset's samples are not images with a class.
            ValueError: the images are of another shape, the guidance needs a classifier and there
                is none, or the network cannot have so many classes.
        """
        if identity_of(experience) == self._filled_for:
            if self.teacher is not None:  # its images may have been mended meanwhile
                images_now = drawn_from(experience.dataset.eval(), self.model)
                self.teacher = replace(self.teacher, current_images=images_now)
            return
        self._choose_teacher(experience, classifier)
        if self.teacher is not None and (images or self.distillation.keeps_lessons):
            self.pool = self.pool or self.distillation.empty_pool(self.model)
            share = share_of(experience, self.distillation.online_share)
            count = self.distillation.images_in_a_pass(self.teacher, self.pool, share)
            self.generation.progress = self.progress
            self.generation.fill(self.pool, count, self.teacher, self.distillation.mode)
            self.cost.pool_bytes = max(self.cost.pool_bytes, self.pool.nbytes)
        self.loader_seed = self.rng.draw_seed()
        self._filled_for = identity_of(experience)

    def _choose_teacher(self, experience: Any, classifier: Classifier | None) -> None:
        """Who teaches which old classes, and from where the training may go on."""
        dataset = experience.dataset.eval()
        self.model.to(self.device).check_dataset(dataset)
        key = self._key(experience, classifier)
        start = "what the generator's training starts from"
        self.generation.processes.check_same(key.encode(), start, self.device)
        classes = old_classes(self.model, experience)
        check_pool_size(self.distillation.pool_size, len(classes or classes_of(dataset)))
        self._checkpoint = self.teacher = None
        if not is_online_subexperience(experience):
            self.pool = self._student = None
            if self.checkpoint_folder is not None:
                self._folder_lock.hold(self.checkpoint_folder, "checkpoint_folder")
                file = self.checkpoint_folder / f"experience-{self.clock.train_exp_counter}.pt"
                self._checkpoint = TrainingCheckpoint(file, key, self.checkpoint_every)
        if classes:
            images_now = drawn_from(dataset, self.model)
            more: Any = {"classifier": classifier, "current_images": images_now}
            self.teacher = self.distillation.teacher(self.model, classes, self.rng, **more)

    def _key(self, experience: Any, classifier: Classifier | None) -> str:
        """Of the checkpoint; nothing if there is none and no other process to compare with."""
        if process_count() == 1 and self.checkpoint_folder is None:
            return ""
        settings = self.train_mb_size, self.train_iterations, self.ema_decay, self.max_grad_norm
        return key_of(experience, self._state, self.distillation, classifier, *settings)

    @property
    def _state(self) -> TrainingState:
        return TrainingState(self.model, self.optimizer, self.curves, self.rng)

    def iterations_of(self, experience: Any) -> int:
        """How many steps an experience is trained on."""
        share = share_of(experience, self.distillation.online_share)
        return max(1, round(share * self.train_iterations))

    def _after_train_dataset_adaptation(self, **kwargs: Any) -> None:
        self._known = self.model.label_map
        self.fill_pool(self.experience, images=False)
        super()._after_train_dataset_adaptation(**kwargs)

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        if self.teacher is not None and self.distillation.on_the_fly:
            self.teacher = self.teacher.apart_from(self.model)
        if self._student is None:
            processes, parts = self.generation.processes, self.gradient_accumulation_steps
            self._student = Student(self.model, self.ema_decay, processes, parts)
        self._student.begin()
        average, file = self._student.average, self._checkpoint
        done = 0 if file is None else file.restore(self._state, average)
        what = "how far their checkpoints are"
        self.generation.processes.check_same(done.to_bytes(8), what, self.device)
        self.skip_iterations(done)
        old = lesson_classes(self.distillation, self.teacher, self.pool)
        self._w_new = current_share(len(classes_of(self.experience.dataset)), len(old))

    def training_epoch(self, **kwargs: Any) -> None:
        """The template's loop over the mini-batches, measured."""
        measured = self.cost.measure(self.cost.training, self.model)
        with measured, self.generation.processes.counting(self.model):
            super().training_epoch(**kwargs)

    def forward(self) -> Float[Tensor, "n c h w"]:
        """Predictions for this step's lessons: noised real images, then the teacher's lessons.

        Of several processes each predicts its own rows.
        """
        tasks = self.mb_task_id if len(self.mbatch) > 2 else None
        null_share = self.distillation.guidance.null_share if self.is_training else None
        rng = self.rng if self.is_training else self.eval_rng
        lessons = real_lessons(self.model, self.mb_x, self.mb_y, tasks, null_share, rng)
        if not self.is_training:
            self._lessons = lessons
            return self.model(lessons.x_t, lessons.t, lessons.labels)  # type: ignore[no-any-return]
        if lesson_classes(self.distillation, self.teacher, self.pool):
            sources = self.distillation, self.teacher, self.pool
            old = self.generation.lessons(len(lessons.t), *sources, self.rng)
            lessons = LessonBatch.cat([lessons, old])
        self._lessons = lessons
        assert self._student is not None
        return self._student(lessons, self._loss)

    def criterion(self) -> Float[Tensor, ""]:
        """The loss of :mod:`avalanche_magd.distillation.loss`; in evaluation of real images."""
        assert self._lessons is not None
        if not self.is_training:
            return self._loss(squared_errors(self.mb_output, self._lessons.target))
        assert self._student is not None
        errors = self._student.squared_errors(self.mb_output, self._lessons)
        point = self.curves.add(errors.detach(), self._lessons.source)
        if point is not None and self.progress_bar is not None:
            self.progress_bar.set_postfix(point.errors, refresh=False)
        return self._loss(errors)

    def _loss(self, errors: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        real, weight = len(self.mb_x), self.distillation.replay_weight
        return total_loss(errors[:real], errors[real:], self._w_new, weight)

    def optimizer_step(self) -> None:
        """Clip, step, average.

        Raises:
            FloatingPointError: the gradient is not finite.
        """
        assert self._student is not None
        assert self._lessons is not None
        norm = self._student.clip_gradients(self.max_grad_norm)
        if not norm.isfinite():
            raise FloatingPointError(
                f"The generator's gradient is {norm.item()} at iteration {self.iteration} of "
                "the experience: lower its optimizer's learning rate, or check the data for NaN. "
                "The generator keeps the average of the weights before."
            )
        self.cost.training.backwards += len(self._lessons.t)
        super().optimizer_step()
        self._student.average.update()
        if self._checkpoint is not None:
            last, average = self.iterations_of(self.experience), self._student.average
            self._checkpoint.save_if_due(self.iteration, last, self._state, average)

    def _after_training_exp(self, **kwargs: Any) -> None:
        self._lessons = self._filled_for = self.teacher = None
        if not is_online_subexperience(self.experience) and self.pool is not None:
            self.pool.drop_lessons()  # the solver may still need the images
            self.pool = None
        super()._after_training_exp(**kwargs)

    def settle(self, *, learnt: bool) -> None:
        """The average stands in the generator; classes that were not learnt are not known."""
        super().settle(learnt=learnt)
        if not learnt:
            self.model.label_map = self._known
        if self._student is not None:
            self._student.end()
            if not is_online_subexperience(self.experience):
                self._student = None
                self.optimizer.state.clear()
