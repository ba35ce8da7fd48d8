"""The pool: what generation passes left for the student and for the solver.

The finished images are the solver's replay; the states, timesteps, labels and raw outputs on the
way are the student's lessons. Training loops only draw from it.

A pool has a fixed number of slots, one for each image and its lessons. A pass that fills a few
takes empty ones first, and after that the oldest of the class that has most, so that the pool
stays balanced and young.

Each class weighs the same, however many images it has. Draws are stratified: the unit interval is
cut into as many strata as there are rows to draw, and each draws one row by the rows' cumulative
weight. Lessons lie in the order of their timesteps, images in that of their classes, so that each
draw is spread evenly over both.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avalanche_magd.distillation.lessons import LessonBatch, rows_of
from avalanche_magd.runtime.memmap import allocate
from avalanche_magd.runtime.precision import PRECISION


class Pool:
    """Generated images with their classes, and their lessons.

    Args:
        size: number of slots.
        lessons_per_image: lessons of each slot; may be 0.
        image_shape: channels, height and width.
        device: where the pool is.
        latent_shape: of a lesson's x_t and target. Default: that of an image.
        folder: where images and lessons are kept instead, in unlinked temporary files; what is
            drawn still comes to the device. Default: none.

    Attributes:
        images: finished images in the user's range, by slot.
        labels: class of each.
        classes: those that can be drawn, ascending.
        lessons: those of slot i at rows i·k to (i+1)·k; ``x_t`` and ``target`` in half precision.
    """

    def __init__(
        self,
        size: int,
        lessons_per_image: int,
        image_shape: tuple[int, int, int],
        device: torch.device,
        latent_shape: tuple[int, int, int] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        rows, latent_shape = size * lessons_per_image, latent_shape or image_shape
        self.folder = folder
        self.images = allocate((size, *image_shape), PRECISION, device, folder)
        self.labels = torch.zeros(size, dtype=torch.int64, device=device)
        self.lessons = LessonBatch(
            x_t=allocate((rows, *latent_shape), torch.float16, device, folder),
            t=torch.zeros(rows, dtype=torch.int64, device=device),
            labels=torch.zeros(rows, dtype=torch.int64, device=device),
            target=allocate((rows, *latent_shape), torch.float16, device, folder),
            source=torch.zeros(rows, dtype=torch.int8, device=device),
            weight=torch.zeros(rows, dtype=PRECISION, device=device),
        )
        # The pass that filled a slot; 0 while it is empty, −1 until its pass has ended.
        self._pass = torch.zeros(size, dtype=torch.int64, device=device)
        self.end_pass()

    @property
    def counts(self) -> Counter[int]:
        """How many images there are of each class."""
        return Counter(self.labels[self._pass != 0].tolist())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, empty slots included."""
        return self.lessons.nbytes + sum(
            tensor.nbytes for tensor in vars(self).values() if isinstance(tensor, Tensor)
        )

    @property
    def lessons_per_image(self) -> int:
        """How many lessons each slot has."""
        return len(self.lessons.t) // len(self.labels)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A pool that was saved is put on disk again, if it was there."""
        vars(self).update(state)
        if self.folder is not None:
            self.images = _on_disk(self.images, self.folder)
            self.lessons = self.lessons._replace(
                x_t=_on_disk(self.lessons.x_t, self.folder),
                target=_on_disk(self.lessons.target, self.folder),
            )

    def slots_for(self, labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Where new images of these classes go: at most as many as the pool has slots."""
        passes = self._pass.tolist()
        slots = deque(slot for slot, number in enumerate(passes) if number == 0)
        counts = self.counts + Counter(labels.tolist())
        oldest: dict[int, deque[int]] = defaultdict(deque)
        by_age = sorted(enumerate(self.labels.tolist()), key=lambda row: passes[row[0]])
        for slot, label in by_age:
            if passes[slot] > 0:
                oldest[label].append(slot)
        while len(slots) < len(labels):
            largest = max((label for label in oldest if oldest[label]), key=counts.__getitem__)
            slots.append(oldest[largest].popleft())
            counts[largest] -= 1
        return torch.tensor(list(slots)[: len(labels)], device=labels.device)

    def write(
        self,
        slots: Int[Tensor, " n"],
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        lessons: LessonBatch | None = None,
    ) -> None:
        """Fill slots; :meth:`end_pass` follows once all slots of a pass are filled.

        Lessons are as many of each image as a slot has, those of an image next to one another.
        """
        self._pass[slots] = -1
        self.images[slots.to(self.images.device)] = images.to(self.images)
        self.labels[slots] = labels
        if lessons is None:
            return
        each = self.lessons_per_image
        rows = (slots[:, None] * each + torch.arange(each, device=slots.device)).flatten()
        for column, values in zip(self.lessons, lessons, strict=True):
            column[rows.to(column.device)] = values.to(column)

    def end_pass(self) -> None:
        """Make what the pass wrote available to draws."""
        self._pass[self._pass < 0] = self._pass.max().clamp(min=0) + 1
        filled = (self._pass > 0).nonzero()[:, 0]
        classes, class_index, counts = torch.unique(
            self.labels[filled], return_inverse=True, return_counts=True
        )
        self.classes: list[int] = classes.tolist()
        by_label = class_index.argsort(stable=True)
        self._by_label = filled[by_label]
        self._cumulative_images = (1 / counts.double())[class_index[by_label]].cumsum(0)
        share = torch.zeros(len(self.labels), dtype=torch.float64, device=self.labels.device)
        share[filled] = 1 / counts.double()[class_index]
        weight = self.lessons.weight * share.repeat_interleave(self.lessons_per_image)
        written = weight.nonzero()[:, 0]
        self._by_t = written[self.lessons.t[written].argsort(stable=True)]
        self._cumulative_lessons = weight[self._by_t].cumsum(0)

    @contextmanager
    def filling(self) -> Iterator[None]:
        """A pass: it ends with the block; after an error the slots that it wrote are empty."""
        try:
            yield
        except BaseException:
            self._pass[self._pass < 0] = 0
            raise
        finally:
            self.end_pass()

    def draw_lessons(self, count: int, rng: torch.Generator) -> LessonBatch:
        """Lessons spread evenly over t and classes, in single precision."""
        index = stratified_draw(self._cumulative_lessons, count, rng)
        return self.lessons.rows(self._by_t[index]).cast(PRECISION)

    def images_of(self, slots: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """Images in these slots, on the slots' device."""
        return rows_of(self.images, slots)

    def draw_slots(
        self, count: int, rng: torch.Generator, weights: Float[Tensor, " n"] | None = None
    ) -> Int[Tensor, " {count}"]:
        """Slots of images, spread evenly over the classes.

        Args:
            count: how many.
            rng: on the pool's device.
            weights: of all slots, positive: how often each is drawn beside others of its class.
        """
        cumulative = self._cumulative_images if weights is None else self._cumulative(weights)
        return self._by_label[stratified_draw(cumulative, count, rng)]

    def _cumulative(self, weights: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """The running sum of weights by label, scaled so that each class has 1 in all."""
        labels = self.labels[self._by_label]
        classes = torch.tensor(self.classes, device=labels.device)
        running = weights[self._by_label].double().cumsum(0)
        last = running[torch.searchsorted(labels, classes, right=True) - 1]
        before = torch.cat([last.new_zeros(1), last])
        index = torch.searchsorted(classes, labels)
        return index + (running - before[index]) / before.diff()[index]

    def drop_lessons(self) -> None:
        """Keep the images alone."""
        self.lessons = self.lessons.rows(self._by_t[:0])
        self._by_t = self._by_t[:0].clone()
        self._cumulative_lessons = self._cumulative_lessons[:0].clone()


def _on_disk(tensor: Tensor, folder: str | Path) -> Tensor:
    return allocate(tuple(tensor.shape), tensor.dtype, tensor.device, folder).copy_(tensor)


def stratified_draw(
    cumulative: Float[Tensor, " m"], count: int, rng: torch.Generator
) -> Int[Tensor, " {count}"]:
    """Rows drawn in proportion to their weight, one per stratum of the unit interval.

    A row can come more than once. ``cumulative`` is the running sum of positive weights.
    """
    strata = torch.arange(count, device=cumulative.device)
    jitter = torch.rand(count, generator=rng, device=cumulative.device, dtype=torch.float64)
    position = (strata + jitter) / count * cumulative[-1]
    return torch.searchsorted(cumulative, position, right=True).clamp(max=len(cumulative) - 1)


def check_pool_size(pool_size: int, classes: int) -> None:
    """Refuse a pool in which a class would have no image.

    Raises:
        ValueError: there are more classes than images.
    """
    if pool_size < classes:
        raise ValueError(
            f"pool_size={pool_size} leaves some of the {classes} classes without an image: make "
            "it several times larger."
        )


def image_bytes(pixels: int) -> int:
    """Bytes of one image of a pool: single precision, three integers and a weight."""
    return 4 * pixels + 3 * 8 + 8


def lesson_bytes(pixels: int) -> int:
    """Bytes of one lesson: state and target in half precision, four integers, two weights."""
    return 2 * (2 * pixels) + (3 * 8 + 1) + (4 + 8)
