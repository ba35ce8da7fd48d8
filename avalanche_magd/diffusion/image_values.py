"""What values images have: which range they are from, and whether all can be learnt.

* **Ends.** The range of a channel goes from its smallest to its largest value.
* **Outliers.** Values in at most one image of twenty, beyond a gap of more than five times the
  range of all others, are no ends: a mark such as −9999 for "no data" would leave the rest no
  room. A tail that thins out has no such gap, and images that are blank but for a few pixels have
  no range without them: neither is cut.
* **Unit interval.** Values within [0, 1] are taken to be what ``ToTensor`` leaves, even if they
  do not reach both ends: where they span a quarter of it, or are multiples of 1/255, as 8-bit
  images are. Others keep the ends that were found.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Image = Float[Tensor, "c h w"]
Values = Float[Tensor, " c"]
"""A value of each channel."""

SAMPLES: Final = 1000
"""Images of an experience from which the pixels' range is inferred."""

CHECKED: Final = 20_000
"""Images of an experience that are looked at for pixels that are not finite."""

GAP: Final = 5.0
"""Ranges of all other values that lie between them and outliers."""

FEW: Final = 20
"""One image of so many may have outliers; fewer than half as many images have none."""

NARROW: Final = 0.25
"""Of the unit interval: what values span at least that are not multiples of 1/255."""

LEVELS: Final = 255
"""Steps from 0 to 1 of 8-bit images."""


class SampledImages:
    """Some images of a dataset in evaluation mode, spread evenly; read anew at each iteration.

    Of up to 20,000 rows all are looked at for pixels that are not finite, the others at the end of
    the first iteration; of more, 20,000 that are spread evenly. A training batch of the generator
    that has one of those not looked at is refused when it comes.

    Attributes:
        rows: of the dataset, of the images that are given.

    Raises:
        ValueError: when iterated over: a pixel is not finite.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.rows = _spread(len(dataset), SAMPLES)
        self._others = [row for row in _spread(len(dataset), CHECKED) if row not in self.rows]

    def __iter__(self) -> Iterator[Tensor]:
        for row in self.rows:
            yield self._read(row)
        for row in self._others:
            self._read(row)
        self._others = []

    def _read(self, row: int) -> Tensor:
        image: Tensor = self.dataset[row][0]
        check_finite(image, f"The image in row {row} of the experience's dataset")
        return image


def _spread(count: int, at_most: int) -> range:
    return range(0, count, -(-count // at_most) or 1)


def place(images: Iterable[Tensor], index: int) -> str:
    """Where one of several images comes from, in words."""
    if isinstance(images, SampledImages):
        return f"the image in row {images.rows[index]} of the experience's dataset"
    return f"image {index}"


class NotFiniteError(ValueError, FloatingPointError):
    """Images hold infinity or NaN; with 0.1 the training that they spoilt ended in the latter."""


def check_finite(values: Tensor, what: str, advice: str = "Mend or remove it") -> None:
    """Refuse values of which one is NaN or infinite in single precision.

    Raises:
        NotFiniteError: one is; names the first.
    """
    finite = values.float().isfinite()
    if not bool(finite.all()):
        position = (~finite).nonzero()[0].tolist()
        raise NotFiniteError(
            f"{what} has values that are not finite, {int((~finite).sum())} of {values.numel()}; "
            f"the first, at {position}, is {values[~finite][0].item()}. "
            f"{advice}, and train again: nothing was learnt from it."
        )


class ImageValues(NamedTuple):
    """What is known of the values of some images, channel by channel."""

    lows: Float[Tensor, "n c"]
    """The smallest value of each image."""
    highs: Float[Tensor, "n c"]
    """The largest of each."""
    on_grid: Bool[Tensor, " c"]
    """Whether those within [0, 1] are multiples of 1/255, and of no coarser step."""

    @classmethod
    def of(cls, images: Iterable[Image]) -> "ImageValues":
        """The values of images.

        Raises:
            ValueError: there are no images, or a pixel is not finite.
        """
        lows, highs, grid = [], [], _Grid()
        for index, image in enumerate(images):
            check_finite(image, place(images, index).capitalize())
            pixels = image.flatten(1)
            lows.append(pixels.amin(1).float())
            highs.append(pixels.amax(1).float())
            grid.add(pixels)
        if not lows:
            raise ValueError(
                "The first experience is empty: the pixels' range cannot be inferred."
            )
        return cls(torch.stack(lows), torch.stack(highs), grid.fits())

    @property
    def ends(self) -> tuple[Values, Values]:
        """Smallest and largest value of each channel, outliers apart."""
        lowest, highest = self.lows.amin(0), self.highs.amax(0)
        if len(self.lows) < FEW // 2:
            return lowest, highest
        few = max(1, len(self.lows) // FEW)
        low, high = self.lows.sort(0).values[few], self.highs.sort(0).values[-1 - few]
        blank = low == high
        while True:
            reach = GAP * (high - low)
            lower = self.lows.where(self.lows >= low - reach, low).amin(0)
            upper = self.highs.where(self.highs <= high + reach, high).amax(0)
            if torch.equal(lower, low) and torch.equal(upper, high):
                return torch.where(blank, lowest, low), torch.where(blank, highest, high)
            low, high = lower, upper

    def range(self, *, unit: bool) -> tuple[Values, Values, bool]:
        """The ends of each channel's range, and whether they are a guess.

        A constant channel has those of all channels.

        Args:
            unit: whether values within [0, 1] may be taken to have these ends.

        Raises:
            ValueError: all pixels are the same.
        """
        low, high = self.ends
        if not bool(low.min() < high.max()):
            raise ValueError(
                f"The first experience's pixels range from {low.min():g} to {high.max():g}: "
                "there is nothing to learn."
            )
        span = high - low
        if not (unit and low.min() >= 0 and high.max() <= 1):
            constant = span == 0
            return (
                torch.where(constant, low.min(), low),
                torch.where(constant, high.max(), high),
                False,
            )
        whole = self.on_grid | (span >= NARROW) | (span == 0)
        enough = 0.1 if bool(self.on_grid.all()) else 2 * NARROW
        guessed = not bool(whole.all()) or bool(span.max() < enough)
        return low.masked_fill(whole, 0), high.masked_fill(whole, 1), guessed

    def warn_of_outliers(self, low: Values, high: Values, what: str, setter: str) -> None:
        """Name the outliers that lie beyond a range."""
        ends = self.ends
        below, above = self.lows < low.minimum(ends[0]), self.highs > high.maximum(ends[1])
        rows = int((below | above).any(1).sum())
        if rows:
            values = sorted({*self.lows[below].tolist(), *self.highs[above].tolist()})
            named = ", ".join(f"{value:g}" for value in values[:5])
            warnings.warn(
                f"{what} of {rows} of {len(self.lows)} images are far from all others: {named}"
                f"{', …' * (len(values) > 5)}. They are taken for outliers and clipped; the range "
                f"goes from {low.min():g} to {high.max():g}. Mend them, or, if they are meant, "
                f"set the range before training, by `generator.{setter}(low, high)`.",
                stacklevel=3,
            )


class _Grid:
    """Whether the values within [0, 1] of each channel are multiples of 1/255."""

    def __init__(self) -> None:
        self._seen: Tensor | None = None
        self._fits: Tensor | None = None

    def add(self, pixels: Float[Tensor, "c p"]) -> None:
        """Look at an image."""
        scaled = pixels.float() * LEVELS
        levels = scaled.round()
        slack = 1e-3 + levels * torch.finfo(pixels.dtype).eps
        off = ((scaled - levels).abs() > slack) & (scaled >= 0) & (scaled <= LEVELS)
        if self._seen is None or self._fits is None:
            self._seen = torch.zeros(len(pixels), LEVELS + 1, dtype=torch.bool).to(pixels.device)
            self._fits = torch.ones_like(self._seen[:, 0])
        self._fits &= ~off.any(1)
        self._seen.scatter_(1, levels.clamp(0, LEVELS).long(), True)

    def fits(self) -> Bool[Tensor, " c"]:
        """Whether all were, and of no larger number: two levels may be any scale's."""
        assert self._seen is not None
        assert self._fits is not None
        finest = [math.gcd(*row.nonzero()[:, 0].tolist()) == 1 for row in self._seen]
        return self._fits & torch.tensor(finest, device=self._fits.device)
