"""Checks of users' arguments and data, so that what is wrong is refused early and by name.

Arguments are checked by their name, as the caller wrote it, and the value that was given.
"""

import math
import numbers
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate


def check_count(name: str, value: int, *, at_least: int = 1) -> None:
    """Refuse anything but a whole number that is large enough.

    Raises:
        TypeError: ``value`` is not an integer.
        ValueError: ``value`` is below ``at_least``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}.")


def check_number(name: str, value: float, *, at_least: float, at_most: float = math.inf) -> None:
    """Refuse a number outside the range [at_least, at_most], NaN included.

    Raises:
        ValueError: ``value`` is outside the range.
    """
    if not at_least <= value <= at_most:
        raise ValueError(f"{name} must be a number from {at_least:g} to {at_most:g}, got {value}.")


def check_share(name: str, value: float, *, excluded: float) -> None:
    """Refuse a number outside the unit interval, of which one end, 0 or 1, is excluded.

    Raises:
        ValueError: ``value`` is outside the interval, or its excluded end.
    """
    if not 0 <= value <= 1 or value == excluded:
        interval = "(0, 1]" if excluded == 0 else "[0, 1)"
        raise ValueError(f"{name} must be in {interval}, got {value!r}.")


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is not among those known.

    Raises:
        ValueError: ``value`` is not one of them.
    """
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}.")


def check_dataset(dataset: Any, expected_shape: tuple[int, int, int] | None = None) -> Any:
    """The shape of a dataset's images; refuse what cannot be learnt, by the first sample.

    Raises:
        TypeError: the dataset has no ``targets``, or its samples are not images with a class.
        ValueError: another number of columns, or images of another shape than the expected one.
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
    """The shape of a sample's image; refuse what is not image, class and maybe task label.

    Raises:
        TypeError: the image is not a floating-point tensor, or a label is not an integer.
        ValueError: another number of columns than two or three, or an image that is not channels ×
            height × width.
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
    """Whether a value is one whole number, as Python, NumPy or torch has it."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point()
    return isinstance(value, numbers.Integral)


def check_minibatch(mbatch: Any, image_shape: tuple[int, int, int] | None = None) -> None:
    """Refuse a mini-batch that generated images of this shape cannot join.

    Raises:
        TypeError: the mini-batch is not a list of tensors.
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
