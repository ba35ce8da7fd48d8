"""Which class of the generator stands for which class, and task, of a benchmark.

The generator knows a class by one number, its *id*. With one label space that is the class index.
Multi-head benchmarks may count each task's classes from 0: there an index that comes again under
another task label is another class, and gets the smallest id above all that are taken.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

NULL_LABEL = -1
"""The id that means "no class"."""

LabelledClass = tuple[int, int]
"""A class as the benchmark names it: class index and task label."""


class LabelMap:
    """The classes seen so far, by id, class index and task label, as :attr:`rows` gives them."""

    def __init__(self, rows: Iterable[tuple[int, int, int]] = ()) -> None:
        self._id = {(label, task): number for number, label, task in rows}

    @property
    def rows(self) -> list[tuple[int, int, int]]:
        """Id, class index and task label of each class, by id."""
        return sorted((number, label, task) for (label, task), number in self._id.items())

    @property
    def ids(self) -> list[int]:
        """The ids in use, ascending."""
        return sorted(self._id.values())

    @property
    def num_class_embeds(self) -> int:
        """Labels that a network for these classes is called with, "no class" included."""
        return max(self.ids, default=-1) + 2

    def with_classes(self, classes: Iterable[LabelledClass]) -> "LabelMap":
        """This map, and an id for each of these classes that has none yet.

        Raises:
            ValueError: a class index is negative.
        """
        extended = LabelMap(self.rows)
        for label, task in sorted(classes, key=lambda pair: (pair[1], pair[0])):
            if label < 0:
                raise ValueError(f"Class indices must not be negative, got {label}.")
            taken = extended._id.values()
            if (label, task) not in extended._id:
                extended._id[label, task] = label if label not in taken else max(taken) + 1
        return extended

    def known(self, classes: Iterable[LabelledClass]) -> set[int]:
        """The ids of those classes that have one."""
        return {self._id[each] for each in classes if each in self._id}

    def ids_of(
        self, labels: Int[Tensor, " n"], tasks: Int[Tensor, " n"] | None = None
    ) -> Int[Tensor, " n"]:
        """The id of each row's class; :data:`NULL_LABEL` for unknown classes.

        Without task labels they are 0 for all.
        """
        of_row = [0] * len(labels) if tasks is None else tasks.tolist()
        pairs = zip(labels.tolist(), of_row, strict=True)
        ids = [self._id.get((int(label), int(task)), NULL_LABEL) for label, task in pairs]
        return torch.tensor(ids, dtype=torch.int64, device=labels.device)

    def known_ids_of(
        self, labels: Int[Tensor, " n"], tasks: Int[Tensor, " n"] | None = None
    ) -> Int[Tensor, " n"]:
        """The same, where unknown classes are refused.

        Raises:
            ValueError: a class is unknown.
        """
        ids = self.ids_of(labels, tasks)
        if (ids == NULL_LABEL).any():
            unknown = sorted(set(labels[ids == NULL_LABEL].tolist()))
            raise ValueError(
                f"The samples have labels {unknown} that the dataset's `targets` (and "
                "`targets_task_labels`) do not name: give both the same, for example by "
                "changing targets in place of a target_transform."
            )
        return ids

    def labels_of(self, ids: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Class index and task label of each id."""
        pair_of = {number: pair for pair, number in self._id.items()}
        pairs = torch.tensor([pair_of[number] for number in ids.tolist()])
        labels, tasks = pairs.reshape(-1, 2).to(ids.device).unbind(1)
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
