"""Pixel values: from the range that the user's transforms leave to [−1, 1], and back.

Normalised data have another range in each channel. It is found from the extremes of real images,
channel by channel, once: a network that has learnt one range cannot be given another
(:mod:`avalanche_magd.diffusion.image_values` says how, and what it makes of dark images and of
outliers). Training images are clipped a tenth of the range beyond its ends, and refused if they
are not finite.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from avalanche_magd.diffusion.image_values import Image, ImageValues, Values, check_finite
from avalanche_magd.diffusion.schedule import Images
from avalanche_magd.runtime.precision import PRECISION, FixedPrecision

MIN_SIDE: Final = 4
BEYOND: Final = 1.2
"""How far images may go where their range ends at −1 and 1: further is clipped."""


class PixelRange(FixedPrecision):
    """The values that become −1 and 1, channel by channel; saved and moved with the generator.

    Args:
        channels: of an image.

    Attributes:
        known: whether the range was set; until then it is [−1, 1] itself.
        fitted: whether it was found from images, and not set by a user.
    """

    low: Float[Tensor, "c 1 1"]
    high: Float[Tensor, "c 1 1"]
    fitted = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.known = False
        self.register_buffer("low", torch.full((channels, 1, 1), -1.0, dtype=PRECISION))
        self.register_buffer("high", torch.full((channels, 1, 1), 1.0, dtype=PRECISION))

    def set(
        self, low: Values | Sequence[float] | float, high: Values | Sequence[float] | float
    ) -> None:
        """Set the range: the values that become −1 and 1, of each channel or of all.

        Raises:
            ValueError: there are values for another number of channels; or a channel's ``low`` is
                not below its ``high``, or one of them, or one over their difference, is not finite
                in single precision.
        """
        device, channels = self.low.device, len(self.low)
        low, high = (
            torch.as_tensor(end, dtype=PRECISION, device=device).flatten() for end in (low, high)
        )
        if {len(low), len(high)} - {1, channels}:
            raise ValueError(
                f"Images have {channels} channels, low has {len(low)} values and high "
                f"{len(high)}: give one for each channel, or one for all."
            )
        span = high - low
        if not bool(((span > 0) & span.isfinite() & (2 / span).isfinite()).all()):
            raise ValueError(
                "Each channel needs low < high, both finite, "
                f"got {low.tolist()} and {high.tolist()}."
            )
        self.low.copy_(low.view(-1, 1, 1))
        self.high.copy_(high.view(-1, 1, 1))
        self.known, self.fitted = True, False

    def fit(
        self,
        images: Iterable[Image],
        *,
        unit: bool = True,
        anew: bool = False,
        what: str = "Pixels",
        setter: str = "pixel_range.set",
    ) -> None:
        """Set the range to that of images, unless it is known; warn where it is a guess.

        Args:
            images: to look at.
            unit: whether values within [0, 1] may be taken to have these ends.
            anew: whether a range that was found before is found again.
            what: images consist of, for warnings.
            setter: what sets this range, for warnings.

        Raises:
            ValueError: there are no images, a pixel is not finite, or all are the same.
        """
        if self.known and not (anew and self.fitted):
            return
        values = ImageValues.of(images)
        low, high, guessed = values.range(unit=unit)
        values.warn_of_outliers(low, high, what, setter)
        if guessed:
            warnings.warn(_guess(values.ends, (low, high), what, setter), stacklevel=2)
        self.set(low, high)
        self.fitted = True

    def fit_or_check(self, images: Iterable[Image], *, anew: bool) -> None:
        """:meth:`fit` to images if the range is not known, else :meth:`check` them.

        Args:
            images: to look at.
            anew: whether a range that was found before is found again.

        Raises:
            ValueError: there are no images, a pixel is not finite, or there is no range to find.
        """
        if self.known and not (anew and self.fitted):
            self.check(images)
        else:
            self.fit(images, anew=anew)

    def check(
        self, images: Iterable[Image], what: str = "Pixels", setter: str = "pixel_range.set"
    ) -> None:
        """Warn if images leave the known range by more than a tenth of it, or have outliers.

        The warning says what they consist of, and what sets the range.

        Raises:
            ValueError: there are no images, or a pixel is not finite.
        """
        values = ImageValues.of(images)
        low, high = (end.to(self.low)[:, None, None] for end in values.ends)
        slack = (self.high - self.low) * ((BEYOND - 1) / 2)
        lowest, highest = (self.low - slack).flatten(), (self.high + slack).flatten()
        values.warn_of_outliers(lowest.to(values.lows), highest.to(values.lows), what, setter)
        if max(self._scale(end[None]).abs().max() for end in (low, high)) > BEYOND:
            warnings.warn(
                f"{what} go from {low.min():g} to {high.max():g}, beyond the range that the first "
                "experience had: the generator will clip them. Set the range of all before it is "
                f"trained, by `generator.{setter}(low, high)`.",
                stacklevel=2,
            )

    def normalize(self, images: Images) -> Images:
        """Map images from the user's range to [−1, 1], and clip others at −1.2 and 1.2.

        Raises:
            ValueError: an image has a pixel that is not finite.
        """
        check_finite(images, "A batch of images")
        return self._scale(images).clamp(-BEYOND, BEYOND)

    def _scale(self, images: Images) -> Images:
        return (images - self.low) * (2 / (self.high - self.low)) - 1

    def denormalize(self, x_0: Images) -> Images:
        """Map images from [−1, 1] to the user's range."""
        return (x_0 + 1) * ((self.high - self.low) / 2) + self.low

    def to_unit(self, images: Images) -> Images:
        """Map images from the user's range to [0, 1], as pictures want them, and clip others."""
        return (self._scale(images) + 1).clamp(0, 2) / 2

    @property
    def ends(self) -> list[list[float]] | None:
        """Low and high ends by channel, as JSON has them; ``None`` while they are not known."""
        return [self.low.flatten().tolist(), self.high.flatten().tolist()] if self.known else None

    def restore(self, ends: list[list[float]] | None) -> None:
        """Take over what :attr:`ends` gave."""
        if ends is not None:
            self.set(*(torch.tensor(end) for end in ends))


def extremes(images: Iterable[Image], *, unit: bool = True) -> tuple[Values, Values]:
    """The ends of each channel's range; a constant channel takes those of all channels.

    Args:
        images: to look at.
        unit: whether values within [0, 1] may be taken to have these ends.

    Raises:
        ValueError: there are no images, a pixel is not finite, or all are the same.
    """
    low, high, _ = ImageValues.of(images).range(unit=unit)
    return low, high


def _guess(
    found: tuple[Values, Values], taken: tuple[Values, Values], what: str, setter: str
) -> str:
    """What a warning says of a range that is not certain."""
    # One value where all channels have the same.
    named = [[f"{value:g}" for value in end.tolist()] for end in taken]
    ends = [", ".join(end if len(set(end)) > 1 else end[:1]) for end in named]
    return (
        f"{what} of the first experience go from {found[0].min():g} to {found[1].max():g}, a part "
        f"of [0, 1]. Their range is taken to go from {ends[0]} to {ends[1]}. If that of all "
        "experiences is another, set it before the generator is trained, by "
        f"`generator.{setter}(low, high)`."
    )


def check_image_shape(image_shape: tuple[int, ...]) -> None:
    """Refuse what is not an image of channels × height × width, or is too small.

    Raises:
        ValueError: another number of dimensions, or a side below 4 pixels.
    """
    if len(image_shape) != 3:
        raise ValueError(
            f"Images must be channels × height × width, got shape {tuple(image_shape)}."
        )
    if min(image_shape[1:]) < MIN_SIDE:
        raise ValueError(
            f"Image sides must be at least {MIN_SIDE} pixels, got "
            f"{image_shape[1]}×{image_shape[2]}: resize the images in the benchmark's transform."
        )
