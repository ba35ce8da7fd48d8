"""Checks of arguments that many constructors share, so that a wrong one is refused at once."""

import math
import numbers


def check_count(name: str, value: int, *, at_least: int = 1) -> None:
    """Refuse anything but a whole number that is large enough.

    Args:
        name: the argument, as the caller wrote it.
        value: what was given.
        at_least: the smallest value that makes sense.

    Raises:
        TypeError: not an integer.
        ValueError: too small.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}.")


def check_number(name: str, value: float, *, at_least: float, at_most: float = math.inf) -> None:
    """Refuse a number outside the range [at_least, at_most], NaN included.

    Args:
        name: the argument, as the caller wrote it.
        value: what was given.
        at_least: the smallest value that makes sense.
        at_most: the largest one.

    Raises:
        ValueError: outside the range.
    """
    if not at_least <= value <= at_most:
        raise ValueError(f"{name} must be a number from {at_least:g} to {at_most:g}, got {value}.")
