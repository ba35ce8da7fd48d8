"""SGGD, signal-guided generative distillation: where in t a generated image is not needed.

With almost no signal left (SNR below ``low``) all sources give nearly the same x_t; with almost no
noise (SNR above ``high``) denoising is local detail that classes share. There, outside ``snr_band
= (low, high)``, an image of the *current* experience, noised to t, serves as well: it is labelled
with an old class, and the teacher says what to answer.

References:
    MAGD's published abstract (an SNR analysis decides the source by timestep).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

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


def check_snr_band(snr_band: SnrBand | None) -> None:
    """Refuse a band that is not ``0 ≤ low < high``.

    Raises:
        ValueError: the ends are missing, negative, not numbers, or not in order.
    """
    if snr_band is None:
        return
    pair = isinstance(snr_band, (tuple, list)) and len(snr_band) == 2
    if not pair or not 0 <= snr_band[0] < snr_band[1]:
        raise ValueError(
            "snr_band must be a pair of signal-to-noise ratios with 0 ≤ low < high, or None; got "
            f"{snr_band!r}."
        )
