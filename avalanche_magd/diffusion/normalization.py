"""Pixel values: from the range that the user's transforms leave to [−1, 1], and back.

Normalised data have another range in each channel. It is fitted to the extremes of real images,
channel by channel, once: a network that has learnt one range cannot be given another. Images
within [0, 1] are taken to be what ``ToTensor`` leaves, even if the first ones do not reach both
ends.
"""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avalanche_magd.diffusion.schedule import Images

Image = Float[Tensor, "c h w"]
Values = Float[Tensor, " c"]
"""A value of each channel."""

MIN_SIDE: Final = 4
SAMPLES: Final = 1000
"""Images of an experience from which the pixels' range is inferred."""


class PixelRange(nn.Module):
    """The values that become −1 and 1, channel by channel; saved and moved with the generator.

    Args:
        channels: of an image.

    Attributes:
        known: whether the range was set; until then it is [−1, 1] itself.
    """

    low: Float[Tensor, "c 1 1"]
    high: Float[Tensor, "c 1 1"]

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.known = False
        self.register_buffer("low", torch.full((channels, 1, 1), -1.0))
        self.register_buffer("high", torch.full((channels, 1, 1), 1.0))

    def set(self, low: Values, high: Values) -> None:
        """Set the range: the values of each channel that become −1 and 1.

        Raises:
            ValueError: a channel's ``low`` is not below its ``high``.
        """
        if not bool((low < high).all()):
            raise ValueError(
                f"Each channel needs low < high, got {low.tolist()} and {high.tolist()}."
            )
        self.low.copy_(low.view(-1, 1, 1))
        self.high.copy_(high.view(-1, 1, 1))
        self.known = True

    def fit(self, images: Iterable[Image], *, unit: bool = True) -> None:
        """Set the range to the :func:`extremes` of images, unless it is known.

        Raises:
            ValueError: there are no images, or all their pixels are the same.
        """
        if not self.known:
            self.set(*extremes(images, unit=unit))

    def check(
        self, images: Iterable[Image], what: str = "Pixels", setter: str = "pixel_range.set"
    ) -> None:
        """Warn if images leave the known range by more than a tenth of it.

        The warning says what they consist of, and what sets the range.
        """
        low, high = (end.to(self.low)[:, None, None] for end in channel_extremes(images))
        if max(self.normalize(end[None]).abs().max() for end in (low, high)) > 1.2:
            warnings.warn(
                f"{what} go from {low.min():g} to {high.max():g}, beyond the range that the first "
                "experience had: the generator will clip them. Set the range of all before it is "
                f"trained, by `generator.{setter}(low, high)`.",
                stacklevel=2,
            )

    def normalize(self, images: Images) -> Images:
        """Map images from the user's range to [−1, 1]."""
        return (images - self.low) * (2 / (self.high - self.low)) - 1

    def denormalize(self, x_0: Images) -> Images:
        """Map images from [−1, 1] to the user's range."""
        return (x_0 + 1) * ((self.high - self.low) / 2) + self.low

    def to_unit(self, images: Images) -> Images:
        """Map images from the user's range to [0, 1], as pictures want them, and clip others."""
        return (self.normalize(images) + 1).clamp(0, 2) / 2

    @property
    def ends(self) -> list[list[float]] | None:
        """Low and high ends by channel, as JSON has them; ``None`` while they are not known."""
        return [self.low.flatten().tolist(), self.high.flatten().tolist()] if self.known else None

    def restore(self, ends: list[list[float]] | None) -> None:
        """Take over what :attr:`ends` gave."""
        if ends is not None:
            self.set(*(torch.tensor(end) for end in ends))


def extremes(images: Iterable[Image], *, unit: bool = True) -> tuple[Values, Values]:
    """Smallest and largest value by channel; a constant channel takes those of all channels.

    Args:
        images: to look at.
        unit: whether values that all lie within [0, 1] are taken to have these ends.

    Raises:
        ValueError: there are no images, or all their pixels are the same.
    """
    low, high = channel_extremes(images)
    if not bool(low.min() < high.max()):
        raise ValueError(
            f"The first experience's pixels range from {low.min():g} to {high.max():g}: "
            "there is nothing to learn."
        )
    if unit and low.min() >= 0 and high.max() <= 1:
        return torch.zeros_like(low), torch.ones_like(high)
    constant = low == high
    return torch.where(constant, low.min(), low), torch.where(constant, high.max(), high)


def channel_extremes(images: Iterable[Image]) -> tuple[Values, Values]:
    """Smallest and largest value by channel, as they are."""
    low, high = None, None
    for image in images:
        pixels = image.flatten(1)
        low = pixels.amin(1) if low is None else low.minimum(pixels.amin(1))
        high = pixels.amax(1) if high is None else high.maximum(pixels.amax(1))
    if low is None or high is None:
        raise ValueError("The first experience is empty: the pixels' range cannot be inferred.")
    return low, high


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


class SampledImages:
    """Some images of a dataset in evaluation mode, spread evenly; read anew at each iteration."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Tensor]:
        stride = -(-len(self.dataset) // SAMPLES) or 1
        return (self.dataset[row][0] for row in range(0, len(self.dataset), stride))
