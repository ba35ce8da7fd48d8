"""SGGD, signal-guided generative distillation: where in t a generated image is not needed.

With almost no signal left (SNR below ``low``) all sources give nearly the same x_t; with almost no
noise (SNR above ``high``) denoising is local detail that classes share. There, outside ``snr_band
= (low, high)``, an image of the *current* experience, noised to t, serves as well: it is labelled
with an old class, and the teacher says what to answer.

References:
    MAGD's published abstract (an SNR analysis decides the source by timestep).
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from avalanche_magd.runtime.validation import check_number

SnrBand = tuple[float, float]


def outside_band(snr: Float[Tensor, " n"], snr_band: SnrBand | None) -> Bool[Tensor, " n"]:
    """Which lessons shall start from a current image.

    Args:
        snr: signal-to-noise ratio of each lesson.
        snr_band: inside it, ends included, trajectories serve; ``None`` means everywhere.
    """
    if snr_band is None:
        return torch.zeros_like(snr, dtype=torch.bool)
    low, high = snr_band
    return (snr < low) | (snr > high)


def check_snr_band(snr_band: Any) -> SnrBand | None:
    """A band ``0 ≤ low < high``, or ``None``.

    Raises:
        ValueError: the ends are missing, negative, not numbers, or not in order.
    """
    if snr_band is None:
        return None
    try:
        low, high = (check_number("snr_band", end, at_least=0) for end in snr_band)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not low < high:
        raise ValueError(
            "snr_band must be a pair of signal-to-noise ratios with 0 ≤ low < high, or None; got "
            f"{snr_band!r}."
        )
    return low, high
