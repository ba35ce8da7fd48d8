"""Pixel values: from the range that the user's transforms leave to [−1, 1], and back.

Normalised data have another range in each channel. It is read off the extremes of real images,
channel by channel, once: a network that has learnt one range cannot be told another. Only images
within [0, 1] are taken to be what ``ToTensor`` leaves, whatever the first ones happen to show.
"""

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

    def to_model(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Map images from the user's range to [−1, 1]."""
        return (images - self.low) * (2 / (self.high - self.low)) - 1

    def to_data(self, x_0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Map images from [−1, 1] to the user's range."""
        return (x_0 + 1) * ((self.high - self.low) / 2) + self.low


def extremes(
    images: Iterable[Float[Tensor, "c h w"]],
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Smallest and largest value by channel; a constant channel takes those of all channels.

    If all lie within [0, 1], these are the ends.

    Raises:
        ValueError: there are no images, or all their pixels are the same.
    """
    low, high = None, None
    for image in images:
        pixels = image.flatten(1)
        low = pixels.amin(1) if low is None else low.minimum(pixels.amin(1))
        high = pixels.amax(1) if high is None else high.maximum(pixels.amax(1))
    if low is None or high is None:
        raise ValueError("The first experience is empty: the pixels' range cannot be inferred.")
    if not bool(low.min() < high.max()):
        raise ValueError(
            f"The first experience's pixels range from {low.min():g} to {high.max():g}: "
            "there is nothing to learn."
        )
    if low.min() >= 0 and high.max() <= 1:
        return torch.zeros_like(low), torch.ones_like(high)
    constant = low == high
    return torch.where(constant, low.min(), low), torch.where(constant, high.max(), high)


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
