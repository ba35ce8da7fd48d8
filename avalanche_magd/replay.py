"""Generated images join the solver's mini-batch, and leave it after the step.

They are appended, so that the real rows stay first, and trimmed afterwards, so that metrics and
other plugins see real rows only.
"""

import numbers
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def balanced_replay_size(current_rows: int, current_classes: int, old_classes: int) -> float:
    """How many generated rows give an old class as many as a current class can expect.

    Not rounded: whoever appends whole rows carries the rest to the next mini-batch, or small
    mini-batches would never be joined by any.
    """
    return current_rows * old_classes / current_classes


def append_replay(
    mbatch: list[Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    task_labels: Int[Tensor, " n"],
) -> None:
    """Append generated rows to a mini-batch of two or three columns, in its dtypes, in place."""
    for column, replay in enumerate((images, labels, task_labels)[: len(mbatch)]):
        real = mbatch[column]
        mbatch[column] = torch.cat([real, replay.to(real.device, real.dtype)])


def trim_replay(strategy: Any, real_rows: int) -> None:
    """Cut mini-batch and output back to the real rows."""
    strategy.mbatch = [column[:real_rows] for column in strategy.mbatch]
    if isinstance(strategy.mb_output, Tensor):
        strategy.mb_output = strategy.mb_output[:real_rows]


def check_sample(sample: Any) -> tuple[int, int, int]:
    """Refuse a dataset that cannot be replayed, by its first sample.

    Args:
        sample: image, class and, in task-aware benchmarks, task label.

    Returns:
        The image's shape.

    Raises:
        TypeError: columns of the wrong kind.
        ValueError: another number of columns, or an image of another shape than channels first.
    """
    if not isinstance(sample, (tuple, list)):
        raise TypeError(
            "MAGD needs samples (image, class) or (image, class, task label), "
            f"got a {type(sample).__name__}."
        )
    if len(sample) not in (2, 3):
        raise ValueError(
            "MAGD needs samples (image, class) or (image, class, task label), "
            f"got {len(sample)} columns."
        )
    image, label = sample[0], sample[1]
    if not isinstance(image, Tensor) or not image.is_floating_point():
        kind = f"{image.dtype} tensor" if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(
            f"Images must be floating-point tensors, got a {kind}: "
            "add ToTensor() to the evaluation transform."
        )
    if not _is_index(label):
        raise TypeError(f"Targets must be integer class indices, got {sample[1]!r}.")
    if len(sample) == 3 and not _is_index(sample[2]):
        raise TypeError(
            "A third column must be an integer task label: remove other columns from the "
            "dataset's data attributes."
        )
    if image.ndim != 3:
        raise ValueError(
            f"Images must be channels × height × width, got shape {tuple(image.shape)}."
        )
    return (image.shape[0], image.shape[1], image.shape[2])


def _is_index(value: Any) -> bool:
    """Whether it is one whole number, as Python, NumPy or torch has it."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point()
    return isinstance(value, numbers.Integral)


def check_minibatch(mbatch: Any) -> None:
    """Refuse a mini-batch that replay cannot join.

    Raises:
        TypeError: not a list of tensors.
        ValueError: another number of columns than two or three.
    """
    if not isinstance(mbatch, list) or not all(isinstance(column, Tensor) for column in mbatch):
        raise TypeError(
            "MAGD needs mini-batches that are lists of tensors (images, classes and maybe task "
            f"labels), got a {type(mbatch).__name__}: use Avalanche's default collate function."
        )
    if len(mbatch) not in (2, 3):
        raise ValueError(
            f"MAGD needs mini-batches of two or three columns, got {len(mbatch)}: remove the "
            "others from the dataset's data attributes."
        )
