"""Going on inside an experience: the file that the generator's training saves as it goes.

A run that is started again does what the first run did, step by step, since all randomness is
seeded. When it comes to an experience that the first run has trained the generator on, partly or
to the end, it takes the weights, averages, optimizer and random states from the file, and
generates the pool and draws the order of the data anew. So the result is the one of a run that was
never stopped.

A file belongs to a run by its key: a digest of everything that the training starts from. It is
read with ``weights_only=True``, which runs no code.
"""

import hashlib
import warnings
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
import torch

from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.diffusion.guidance import Classifier
from avalanche_magd.diffusion.label_map import classes_of
from avalanche_magd.diffusion.samplers import DDIM, DPMSolver, UniPC
from avalanche_magd.distillation.distillation import Distillation
from avalanche_magd.distillation.ema import WeightAverage
from avalanche_magd.distillation.loss import LossCurves
from avalanche_magd.distillation.solver import PastSolver
from avalanche_magd.runtime.atomic_files import read_file, write_file
from avalanche_magd.runtime.precision import PRECISION
from avalanche_magd.runtime.random_state import global_states, set_global_states
from avalanche_magd.runtime.validation import check_count

FORMAT: Final = 2
"""Of the file; files of another format are refused."""

SHOWN: Final = 100
"""Images by whose answers a classifier is known again."""


class TrainingState(NamedTuple):
    """What a training starts from, and changes step by step."""

    generator: DiffusionGenerator
    optimizer: torch.optim.Optimizer
    curves: LossCurves
    rng: torch.Generator


class TrainingCheckpoint:
    """The file of one experience, whose key is :func:`key_of` the training."""

    def __init__(self, file: Path, key: str, every: int) -> None:
        self.file, self.key, self.every = file, key, check_count("checkpoint_every", every)

    def save_if_due(
        self, iteration: int, last: int, state: TrainingState, average: WeightAverage
    ) -> None:
        """Save state and average of the weights, at every so many iterations and at the last.

        A file that cannot be written is a warning: the training goes on.
        """
        if iteration != last and iteration % self.every:
            return
        content = {
            "key": self.key,
            "iteration": iteration,
            "student": [parameter.detach() for parameter in average.parameters],
            "average": average.average,
            "buffers": list(state.generator.buffers()),
            "steps": average.steps,
            "curves": state.curves.state_dict(),
            "optimizer": _plain(state.optimizer.state_dict()),
            "rng": state.rng.get_state(),
            "global_rng": global_states(state.generator.device),
        }
        try:
            write_file(self.file, partial(torch.save, content))
        except OSError as error:
            after = "The generator's training goes on; if it is stopped, more steps are lost."
            warnings.warn(f"{error.strerror}. {after}", stacklevel=2)

    def restore(self, state: TrainingState, average: WeightAverage) -> int:
        """Take over the last state saved; gives its iterations, 0 if no file can be used."""
        device = state.generator.device

        def load(stream: BinaryIO) -> dict[str, Any]:
            content: dict[str, Any] = torch.load(stream, map_location=device, weights_only=True)
            if content["key"] != self.key:
                raise ValueError("it is of another run: its weights, data or settings differ")
            return content

        content = read_file(self.file, load)
        if content is None:
            return 0
        with torch.no_grad():
            torch._foreach_copy_(average.parameters, content["student"])
            for buffer, saved in zip(state.generator.buffers(), content["buffers"], strict=True):
                buffer.copy_(saved)
        average.average = content["average"]
        average.steps = content["steps"]
        state.curves.load_state_dict(content["curves"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.rng.set_state(content["rng"].cpu())
        set_global_states(content["global_rng"], device)
        return int(content["iteration"])


def key_of(
    experience: Any,
    state: TrainingState,
    distillation: Distillation,
    classifier: Classifier | None,
    *settings: Any,
) -> str:
    """A digest of everything that a training starts from.

    The classifier, the solver of the past, counts where generation depends on it, by its weights
    or, if it is any other function, by what it answers to the images. On a GPU it does not, where
    a solver that is trained again ends with other weights.
    """
    digest = hashlib.sha256()
    groups = [
        sorted((name, value) for name, value in group.items() if name != "params")
        for group in state.optimizer.param_groups
    ]
    said = (
        state.generator.schedule.settings,
        state.generator.dtype,
        type(state.optimizer).__name__,
        groups,
        *settings,
        *(distillation.replay_weight, None, False),  # as 0.1 ordered and named them
        sorted(classes_of(experience.dataset)),
        list(experience.dataset.targets),
    )
    digest.update(f"({FORMAT}, ({', '.join([_words(distillation), *map(repr, said)])}))".encode())
    dataset = experience.dataset.eval()
    images = [dataset[row][0] for row in range(0, len(dataset), 1 + len(dataset) // 1000)]
    tensors = [state.rng.get_state(), *state.generator.state_dict().values(), *images]
    used = distillation.guidance.needs_solver and state.generator.device.type == "cpu"
    if used and isinstance(classifier, PastSolver):
        tensors += [*classifier.model.parameters(), *classifier.model.buffers()]
    elif used and classifier is not None and state.generator.classes:
        x_0 = state.generator.pixel_range.normalize(torch.stack(images[:SHOWN]).to(PRECISION))
        with torch.no_grad():
            tensors.append(classifier(x_0, state.generator.classes))
    for tensor in tensors:
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _words(distillation: Distillation) -> str:
    """A distillation's settings as version 0.1 wrote them, so that its files can be used."""
    each, guidance = distillation, distillation.guidance
    eta = each.sampler.eta if isinstance(each.sampler, DDIM) else 0.0
    sampler = {DDIM: "ddim", DPMSolver: "dpmpp_2m", UniPC: "unipc"}.get(type(each.sampler))
    mode = getattr(each.mode, "__qualname__", each.mode)  # a function's repr is its address
    return (
        f"Distillation(mode=None, pool_size={each.pool_size}, "
        f"num_inference_steps={each.num_inference_steps}, "
        f"sampler={sampler or each.sampler!r}, eta={eta}, "
        f"guidance_scale={guidance.guidance_scale}, "
        f"classifier_scale={guidance.classifier_scale}, conditional={guidance.conditional}, "
        f"fresh={each.on_the_fly}, max_pool_bytes={each.max_pool_bytes}), {mode!r}"
    )


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
