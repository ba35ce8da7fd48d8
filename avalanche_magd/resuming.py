"""Going on inside an experience: what the generator's training saves, and when it may use it.

A run that is started again does what the first run did, step by step, since all randomness is
seeded. When it comes to an experience that the first run has trained the generator on, partly or
to the end, it takes the weights, averages, optimizer and random states from the file, and the pool
and the order of the data from itself. So the result is the one of a run that was never stopped.

A file belongs to a run by its key: a digest of everything that the training starts from. It is
read with ``weights_only=True``, which runs no code.
"""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch

from avalanche_magd.classes import classes_of
from avalanche_magd.distillation.cggd import Classifier
from avalanche_magd.distillation.teacher import EmaTeacher
from avalanche_magd.files import read_file, write_file
from avalanche_magd.randomness import global_states, set_global_states
from avalanche_magd.solver import PastSolver

FORMAT: Final = 2
"""Of the file: what was written in another is another run's."""


class TrainingCheckpoint:
    """The file of one experience.

    Args:
        file: where.
        key: :func:`starting_point` of the training.
    """

    def __init__(self, file: Path, key: str) -> None:
        self.file = file
        self.key = key

    def save(self, training: Any, teacher: EmaTeacher, iteration: int) -> None:
        """Save a step."""
        content = {
            "key": self.key,
            "iteration": iteration,
            "student": [parameter.detach() for parameter in teacher.student],
            "average": teacher.average,
            "buffers": list(training.model.buffers()),
            "steps": teacher.steps,
            "curves": training.curves.state_dict(),
            "optimizer": _plain(training.optimizer.state_dict()),
            "rng": training.rng.get_state(),
            "global_rng": global_states(training.device),
        }
        write_file(self.file, partial(torch.save, content))

    def restore(self, training: Any, teacher: EmaTeacher) -> int:
        """Take over the last step saved.

        Returns:
            How many iterations are done; 0 if no file can be used.
        """

        def load(stream: BinaryIO) -> dict[str, Any]:
            content = torch.load(stream, map_location=training.device, weights_only=True)
            if content["key"] != self.key:
                raise ValueError("it is of another run: its weights, data or settings differ")
            return content  # type: ignore[no-any-return]

        content = read_file(self.file, load)
        if content is None:
            return 0
        with torch.no_grad():
            for parameter, saved in zip(teacher.student, content["student"], strict=True):
                parameter.copy_(saved)
            for buffer, saved in zip(training.model.buffers(), content["buffers"], strict=True):
                buffer.copy_(saved)
        teacher.average = content["average"]
        teacher.steps = content["steps"]
        training.curves.load_state_dict(content["curves"])
        training.optimizer.load_state_dict(content["optimizer"])
        training.rng.set_state(content["rng"].cpu())
        set_global_states(content["global_rng"], training.device)
        return int(content["iteration"])


def starting_point(training: Any, experience: Any, classifier: Classifier | None) -> str:
    """A digest of everything that a :class:`MAGDTraining` is about to learn an experience from.

    A classifier that is no :class:`~avalanche_magd.solver.PastSolver` is taken to be the same. So
    is one on a GPU, where a solver that is trained again ends with other weights.
    """
    digest = hashlib.sha256()
    mode = training.distillation.mode
    settings = (
        replace(training.distillation, mode=None),
        getattr(mode, "__qualname__", mode),  # a function's repr is its address
        training.model.schedule.settings,
        training.model.dtype,
        type(training.optimizer).__name__,
        [
            sorted((name, value) for name, value in group.items() if name != "params")
            for group in training.optimizer.param_groups
        ],
        training.train_mb_size,
        training.train_iterations,
        training.ema_decay,
        training.max_grad_norm,
        training.replay_weight,
        training.current_weight,
        training.online_teacher,
        sorted(classes_of(experience.dataset)),
        list(experience.dataset.targets),
    )
    digest.update(repr((FORMAT, settings)).encode())
    dataset = experience.dataset.eval()
    images = [dataset[row][0] for row in range(0, len(dataset), 1 + len(dataset) // 1000)]
    tensors = [training.rng.get_state(), *training.model.state_dict().values(), *images]
    asked = training.distillation.asks_solver and training.device.type == "cpu"
    if asked and isinstance(classifier, PastSolver):
        tensors += [*classifier.model.parameters(), *classifier.model.buffers()]
    for tensor in tensors:
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state without NumPy's numbers, which would not be read back."""
    groups = [
        {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in group.items()
        }
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}
