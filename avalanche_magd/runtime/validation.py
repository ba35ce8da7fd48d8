"""Checks of users' arguments and data, so that what is wrong is refused early and by name.

Arguments are checked by their name, as the caller wrote it, and the value that was given; what
passes comes back as Python has it, so that it can be compared, printed and saved.
"""

import math
import numbers
import operator
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate


def check_count(name: str, value: Any, *, at_least: int = 1) -> int:
    """A whole number that is large enough, of Python, NumPy or torch.

    Raises:
        TypeError: ``value`` is not an integer.
        ValueError: ``value`` is below ``at_least``.
    """
    number = _as_index(name, value)
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value!r}.")
    return number


def optional_count(name: str, value: Any, *, at_least: int = 1) -> int | None:
    """:func:`check_count`, or ``None``."""
    return None if value is None else check_count(name, value, at_least=at_least)


def check_seed(name: str, value: Any) -> int | None:
    """A seed that torch takes, or ``None``.

    Raises:
        TypeError: ``value`` is not an integer.
        ValueError: ``value`` does not fit into 64 bits.
    """
    if value is None:
        return None
    number = _as_index(name, value)
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"{name} must be from -2**63 to 2**64 - 1, got {value!r}.")
    return number


def _as_index(name: str, value: Any) -> int:
    is_bool = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    try:
        number = None if is_bool else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    return number


def check_number(name: str, value: Any, *, at_least: float, at_most: float = math.inf) -> float:
    """A number in the range [at_least, at_most], of Python, NumPy or torch.

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: ``value`` is outside the range, or not a number in the sense of IEEE 754.
    """
    number = _as_real(name, value)
    if not at_least <= number <= at_most:
        raise ValueError(
            f"{name} must be a number from {at_least:g} to {at_most:g}, got {value!r}."
        )
    return number


def check_share(name: str, value: Any, *, excluded: float) -> float:
    """A number in the unit interval, of which one end, 0 or 1, is excluded.

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: ``value`` is outside the interval, or its excluded end.
    """
    number = _as_real(name, value)
    if not 0 <= number <= 1 or number == excluded:
        interval = "(0, 1]" if excluded == 0 else "[0, 1)"
        raise ValueError(f"{name} must be in {interval}, got {value!r}.")
    return number


def _as_real(name: str, value: Any) -> float:
    scalar = isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex()
    if isinstance(value, bool) or not (scalar or isinstance(value, numbers.Real)):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    return value if isinstance(value, int) else float(value)


def check_flag(name: str, value: Any) -> bool:
    """A truth value, of Python or NumPy.

    Raises:
        TypeError: ``value`` is neither true nor false.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def check_choice(name: str, value: Any, known: tuple[str, ...]) -> str:
    """A word among those known.

    Raises:
        TypeError: ``value`` is not a word.
        ValueError: ``value`` is another word.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(known)}; got {value!r}.")
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}.")
    return value


def check_instance(name: str, value: Any, kind: type) -> None:
    """Refuse what is of another kind.

    Raises:
        TypeError: ``value`` is not an instance of ``kind``.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}.")


def check_path(name: str, value: Any) -> Path | None:
    """A path, absolute, or ``None``.

    Raises:
        TypeError: ``value`` is neither a string nor a path.
    """
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {value!r}.")
    return None if value is None else Path(value).absolute()


def check_folder(name: str, value: Any) -> Path | None:
    """The absolute path of a folder that can be written to, or made, or ``None``.

    Raises:
        TypeError: ``value`` is neither a string nor a path.
        OSError: what is there is not a folder, or must not be written to.
    """
    path = check_path(name, value)
    if path is not None:
        there = next(each for each in (path, *path.parents) if each.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise OSError(f"{name}={str(value)!r} cannot be written: see {str(there)!r}.")
    return path


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
    if not isinstance(image, Tensor):
        raise TypeError(
            f"Images must be floating-point tensors, got a {type(image).__name__}: convert them "
            "in the evaluation transform, by ToTensor() for pictures and arrays whose channels "
            "come last, by torch.as_tensor for arrays whose channels come first."
        )
    if not image.is_floating_point():
        raise TypeError(
            f"Images must be floating-point tensors, got a {image.dtype} tensor: convert them in "
            "the evaluation transform, for example by torchvision.transforms.ConvertImageDtype("
            "torch.float32)."
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
    if image.shape[2] <= 4 < min(image.shape[:2]):
        raise ValueError(
            f"Images must be channels × height × width, got shape {tuple(image.shape)}, whose "
            "channels seem to come last: add x.permute(2, 0, 1) to the transforms."
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
        columns = [type(column).__name__ for column in mbatch] if isinstance(mbatch, list) else ()
        raise TypeError(
            "MAGD needs mini-batches that are lists of tensors (images, classes and maybe task "
            f"labels), got a {type(mbatch).__name__}{' of ' * bool(columns)}{', '.join(columns)}: "
            "use samples (image, class) and Avalanche's default collate function."
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
