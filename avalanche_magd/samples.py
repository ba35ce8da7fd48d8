"""What an experience must hold to be learnt and replayed: images, classes, maybe task labels."""

import numbers
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate


def check_dataset(dataset: Any, expected_shape: tuple[int, int, int] | None = None) -> Any:
    """Refuse a dataset that cannot be learnt or replayed, by its first sample.

    Args:
        dataset: of an experience, in evaluation mode.
        expected_shape: of an image, if it is decided already.

    Returns:
        The shape of an image.

    Raises:
        TypeError: see :func:`check_sample` and :func:`check_minibatch`.
        ValueError: likewise, or another shape than the expected one.
    """
    sample = dataset[0]
    image_shape = check_sample(sample)
    if not hasattr(dataset, "targets"):
        raise TypeError(
            "MAGD needs to know the dataset's classes without reading it, from its `targets`: "
            "wrap it by Avalanche's as_classification_dataset."
        )
    mbatch = getattr(dataset, "collate_fn", default_collate)([sample])
    check_minibatch(list(mbatch) if isinstance(mbatch, tuple) else mbatch)
    if expected_shape is not None and image_shape != expected_shape:
        raise ValueError(
            f"The generator makes images of shape {expected_shape}, "
            f"the experience has {image_shape}."
        )
    return image_shape


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


def check_minibatch(mbatch: Any, image_shape: tuple[int, int, int] | None = None) -> None:
    """Refuse a mini-batch that replay cannot join.

    Args:
        mbatch: as the data loader gives it.
        image_shape: of the generated images, if they are to join it.

    Raises:
        TypeError: not a list of tensors.
        ValueError: another number of columns than two or three, or images of another shape.
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
    if image_shape is not None and mbatch[0].shape[1:] != image_shape:
        raise ValueError(
            f"The training transform makes images of shape {tuple(mbatch[0].shape[1:])}, the "
            f"evaluation transform of shape {image_shape}, which is what is generated: make both "
            "the same size."
        )
