"""What ``generator.json`` says of a generator: its entries, and what each of them may be.

All of them are checked before anything is built by them, since a folder may come from anywhere: a
number of timesteps or an image shape could ask for more time or memory than there is.
"""

import json
import math
import reprlib
import typing
from collections.abc import Callable
from typing import Any, Final

from avalanche_magd.diffusion.normalization import MIN_SIDE
from avalanche_magd.diffusion.schedule import MAX_TIMESTEPS, BetaSchedule, PredictionType

MAX_VALUES: Final = 2**26
"""Values of one image, of all channels: 4,729 × 4,729 pixels in three channels."""
INT64: Final = 2**63
FLOAT32: Final = 3.4e38

Expectation = tuple[str, Callable[[Any], bool]]
"""What an entry must be, in words, and whether a value is that."""


def plain_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them, once numbers of NumPy and torch have become Python's.

    Raises:
        TypeError: an entry is nothing that JSON has.
    """
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=plain_number))
    return plain


def plain_number(value: Any) -> Any:
    """A number, or an array of them, of NumPy or torch, as Python has it.

    Raises:
        TypeError: it is none.
    """
    if not hasattr(value, "tolist"):
        raise TypeError(f"generator.json holds numbers, names and lists, got {value!r}.")
    return value.tolist()


def check_settings(settings: dict[str, Any], *, with_autoencoder: bool) -> None:
    """Refuse entries of ``generator.json`` that are missing, unknown, or not what they must be.

    Raises:
        ValueError: an entry is.
    """
    expected = ENTRIES | {"pixel_range": _pixel_range(settings, with_autoencoder)}
    for what, names in {
        "lacks": expected.keys() - settings.keys(),
        "has unknown entries": settings.keys() - expected.keys(),
    }.items():
        if names:
            raise ValueError(
                f"generator.json {what}: {', '.join(map(repr, sorted(names)))}. Expected are "
                f"{', '.join(expected)}, as DiffusionGenerator.save_pretrained writes them."
            )
    for name, (words, holds) in expected.items():
        if not holds(settings[name]):
            raise ValueError(
                f"{name} of generator.json must be {words}; got {reprlib.repr(settings[name])}."
            )
    if not settings["beta_start"] < settings["beta_end"]:
        raise ValueError(
            "beta_start of generator.json must be below beta_end; got "
            f"{settings['beta_start']} and {settings['beta_end']}."
        )


def _is_integer(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_number(value: Any, limit: float = FLOAT32) -> bool:
    return type(value) in (int, float) and -limit <= value <= limit


def _integer(low: int, high: int) -> Expectation:
    return f"an integer from {low:,} to {high:,}", lambda value: _is_integer(value, low, high)


def _choice(literal: Any) -> Expectation:
    known = typing.get_args(literal)
    return f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 < value < 1


def _is_image_shape(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    integers = all(_is_integer(each, 1, MAX_VALUES) for each in value)
    return integers and min(value[1:]) >= MIN_SIDE and math.prod(value) <= MAX_VALUES


def _are_classes(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    for row in value:
        if not isinstance(row, list) or len(row) != 3:
            return False
        if not all(_is_integer(each, 0, INT64 - 1) for each in row[:2]):
            return False
        if not _is_integer(row[2], -INT64, INT64 - 1):
            return False
    ids = {row[0] for row in value}
    labels = {tuple(row[1:]) for row in value}
    return len(ids) == len(labels) == len(value)


def _is_range(value: Any, channels: int | None) -> bool:
    """Whether a value is low and high ends by channel, of so many channels; or not known yet."""
    if value is None:
        return True
    if not isinstance(value, list) or len(value) != 2:
        return False
    low, high = value
    if not isinstance(low, list) or not isinstance(high, list) or len(low) != len(high):
        return False
    if channels not in (None, len(low)) or not all(map(_is_number, low + high)):
        return False
    return bool(low) and all(a < b for a, b in zip(low, high, strict=True))


def _pixel_range(settings: dict[str, Any], with_autoencoder: bool) -> Expectation:
    shape = settings.get("image_shape")
    channels = shape[0] if isinstance(shape, list) and shape else None
    ends = (
        "null, or the low and the high ends: two lists of a finite number for each channel of an "
        "image, each low below its high"
    )
    if not with_autoencoder:
        return ends, lambda value: _is_range(value, channels)
    words = f"of the form {{pixels: …, latents: …}}, since there is an autoencoder, each {ends}"

    def holds(value: Any) -> bool:
        if not isinstance(value, dict) or value.keys() != {"pixels", "latents"}:
            return False
        return _is_range(value["pixels"], channels) and _is_range(value["latents"], None)

    return words, holds


_SHARE: Final = ("a number between 0 and 1", _is_share)
ENTRIES: Final[dict[str, Expectation]] = {
    "image_shape": (
        f"channels, height and width: three integers, sides of at least {MIN_SIDE} pixels, and "
        f"at most {MAX_VALUES:,} values in all",
        _is_image_shape,
    ),
    "prediction_type": _choice(PredictionType),
    "beta_schedule": _choice(BetaSchedule),
    "num_train_timesteps": _integer(2, MAX_TIMESTEPS),
    "beta_start": _SHARE,
    "beta_end": _SHARE,
    "num_inference_steps": _integer(1, MAX_TIMESTEPS),
    "classes": (
        "a list of triples of integers (id, class index, task label), none negative but for task "
        "labels, and no id or class twice",
        _are_classes,
    ),
}
"""The entries but for ``pixel_range``, which depends on ``image_shape`` and the autoencoder."""
