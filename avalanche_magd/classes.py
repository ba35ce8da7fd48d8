"""Which class of the generator stands for which class, and task, of a benchmark.

The generator knows a class by one number. With one label space that number is the class index.
Multi-head benchmarks may count each task's classes from 0: there an index that comes again under
another task label is another class, and gets the smallest number above all that are taken.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

NULL_LABEL = -1
"""The number that means "no class"."""

LabelledClass = tuple[int, int]
"""A class as the benchmark names it: class index and task label."""


class ClassTable:
    """The classes seen so far, and the generator's number of each.

    Args:
        known: number, class index and task label of each, as :attr:`rows` gives them.
    """

    def __init__(self, known: Iterable[tuple[int, int, int]] = ()) -> None:
        self._number = {(label, task): number for number, label, task in known}

    @property
    def rows(self) -> list[tuple[int, int, int]]:
        """Number, class index and task label of each class, by number."""
        return sorted((number, label, task) for (label, task), number in self._number.items())

    @property
    def numbers(self) -> list[int]:
        """The numbers in use, ascending."""
        return sorted(self._number.values())

    @property
    def room(self) -> int:
        """Labels of a network that knows these classes, "no class" included."""
        return max(self.numbers, default=-1) + 2

    def add(self, classes: Iterable[LabelledClass]) -> None:
        """Give numbers to those classes that have none.

        Raises:
            ValueError: a negative class index.
        """
        for label, task in sorted(classes, key=lambda pair: (pair[1], pair[0])):
            if label < 0:
                raise ValueError(f"Class indices must not be negative, got {label}.")
            taken = self._number.values()
            if (label, task) not in self._number:
                self._number[label, task] = label if label not in taken else max(taken) + 1

    def known(self, classes: Iterable[LabelledClass]) -> set[int]:
        """The numbers of those classes that have one."""
        return {self._number[each] for each in classes if each in self._number}

    def numbers_of(
        self, labels: Int[Tensor, " n"], tasks: Int[Tensor, " n"] | None = None
    ) -> Int[Tensor, " n"]:
        """The number of each row's class; :data:`NULL_LABEL` for unknown classes.

        Args:
            labels: class indices.
            tasks: task labels; ``None`` means 0 for all.
        """
        of_row = [0] * len(labels) if tasks is None else tasks.tolist()
        pairs = zip(labels.tolist(), of_row, strict=True)
        numbers = [self._number.get((int(label), int(task)), NULL_LABEL) for label, task in pairs]
        return torch.tensor(numbers, dtype=torch.int64, device=labels.device)

    def labels_of(self, numbers: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Class index and task label of each number."""
        pair_of = {number: pair for pair, number in self._number.items()}
        pairs = torch.tensor([pair_of[number] for number in numbers.tolist()])
        labels, tasks = pairs.reshape(-1, 2).to(numbers.device).unbind(1)
        return labels, tasks


def classes_of(dataset: Any) -> set[LabelledClass]:
    """The classes of an Avalanche dataset; without task labels the task is 0."""
    labels = {int(label) for label in dataset.targets.uniques}
    if not hasattr(dataset, "targets_task_labels"):
        return {(label, 0) for label in labels}
    tasks = {int(task) for task in dataset.targets_task_labels.uniques}
    if len(tasks) == 1:
        return {(label, task) for label in labels for task in tasks}
    pairs = zip(dataset.targets, dataset.targets_task_labels, strict=True)
    return {(int(label), int(task)) for label, task in pairs}
