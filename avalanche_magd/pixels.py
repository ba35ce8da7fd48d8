"""Pixel values: from the range that the user's transforms leave to [−1, 1], and back.

Normalised data have another range in each channel. It is read off the extremes of real images,
channel by channel, once: a network that has learnt one range cannot be told another. Only images
within [0, 1] are taken to be what ``ToTensor`` leaves, whatever the first ones happen to show.
"""

import warnings
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

MIN_SIDE = 4


class PixelRange(nn.Module):
    """What the data's −1 and 1 are, channel by channel; saved and moved with the generator.

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

    def set(self, low: Float[Tensor, " c"], high: Float[Tensor, " c"]) -> None:
        """Tell the range.

        Raises:
            ValueError: a low end that is not below its high end.
        """
        if not bool((low < high).all()):
            raise ValueError(
                f"Each channel needs low < high, got {low.tolist()} and {high.tolist()}."
            )
        self.low.copy_(low.view(-1, 1, 1))
        self.high.copy_(high.view(-1, 1, 1))
        self.known = True

    def read(self, images: Iterable[Float[Tensor, "c h w"]], *, unit: bool = True) -> None:
        """Take the range from images, unless it is known.

        Args:
            images: of the first experience, in the user's range.
            unit: see :func:`extremes`.

        Raises:
            ValueError: there are no images, or all their pixels are the same.
        """
        if not self.known:
            self.set(*extremes(images, unit=unit))

    def check(
        self,
        images: Iterable[Float[Tensor, "c h w"]],
        what: str = "Pixels",
        setter: str = "generator.pixel_range.set",
    ) -> None:
        """Warn if images leave the known range by more than a tenth of it.

        Args:
            images: in the user's range.
            what: they consist of.
            setter: what tells the range.
        """
        low, high = (end.to(self.low)[:, None, None] for end in channel_extremes(images))
        if max(self.to_model(end[None]).abs().max() for end in (low, high)) > 1.2:
            warnings.warn(
                f"{what} go from {low.min():g} to {high.max():g}, beyond the range that the first "
                "experience had: the generator will clip them. Tell it the range of all before it "
                f"is trained, by `{setter}(low, high)`.",
                stacklevel=2,
            )

    def to_model(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Map images from the user's range to [−1, 1]."""
        return (images - self.low) * (2 / (self.high - self.low)) - 1

    def to_data(self, x_0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Map images from [−1, 1] to the user's range."""
        return (x_0 + 1) * ((self.high - self.low) / 2) + self.low

    def to_unit(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Map images from the user's range to [0, 1], as pictures want them, and clip others."""
        return (self.to_model(images) + 1).clamp(0, 2) / 2

    @property
    def ends(self) -> list[list[float]] | None:
        """Low and high ends by channel, as JSON has them; ``None`` while they are not known."""
        return [self.low.flatten().tolist(), self.high.flatten().tolist()] if self.known else None

    def restore(self, ends: list[list[float]] | None) -> None:
        """Take over what :attr:`ends` gave."""
        if ends is not None:
            self.set(*(torch.tensor(end) for end in ends))


def extremes(
    images: Iterable[Float[Tensor, "c h w"]], *, unit: bool = True
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
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


def channel_extremes(
    images: Iterable[Float[Tensor, "c h w"]],
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Smallest and largest value by channel, as they are.

    Raises:
        ValueError: there are no images.
    """
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
