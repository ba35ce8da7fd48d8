"""Checks of arguments that many constructors share, so that a wrong one is refused at once."""

import math


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
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}.")


def check_number(
    name: str, value: float, *, above: float = -math.inf, up_to: float = math.inf
) -> None:
    """Refuse a number outside the half-open range (above, up_to], NaN included.

    Args:
        name: the argument, as the caller wrote it.
        value: what was given.
        above: exclusive lower bound.
        up_to: inclusive upper bound.

    Raises:
        ValueError: outside the range.
    """
    if not above < value <= up_to:
        raise ValueError(f"{name} must be above {above:g} and at most {up_to:g}, got {value}.")
