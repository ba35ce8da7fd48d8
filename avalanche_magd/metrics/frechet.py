"""Fréchet distance between two sets of features.

Both are taken for samples of Gaussians N(μ, Σ): ``‖μ_x − μ_y‖² + tr Σ_x + tr Σ_y − 2 tr (Σ_x
Σ_y)^½``. With centred features as rows, divided by √(n − 1), Σ = RᵀR for a factor R of at most as
many rows as there are features. The non-zero eigenvalues of Σ_x Σ_y are the squared singular
values of R_x R_yᵀ, so their sum is the last trace: no root of a matrix is taken, and covariances
without full rank lose no digits.

It is called FID only with the features of torch-fidelity's Inception network. Fewer samples than
features bias it upwards.

References:
    Dowson & Landau 1982, *The Fréchet distance between multivariate normal distributions*.
    Heusel et al. 2017, *GANs trained by a two time-scale update rule* (FID).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Moments(NamedTuple):
    """Mean and spread of a set of features, in double precision."""

    mean: Float[Tensor, " d"]
    factor: Float[Tensor, "r d"]
    """R, with Σ = RᵀR."""


def moments(features: Float[Tensor, "n d"]) -> Moments:
    """What the distance needs to know of a set.

    Raises:
        ValueError: fewer than two samples.
    """
    if len(features) < 2:
        raise ValueError(
            f"A Fréchet distance needs two samples of each kind, got {len(features)}."
        )
    features = features.double()
    mean = features.mean(0)
    centred = (features - mean) / (len(features) - 1) ** 0.5
    return Moments(mean, torch.linalg.qr(centred, mode="r").R)


def frechet_distance(real: Moments, generated: Moments) -> float:
    """The distance, squared as is the custom; 0 if both have the same moments.

    Args:
        real: of one set.
        generated: of the other.
    """
    means = (real.mean - generated.mean).square().sum()
    spreads = real.factor.square().sum() + generated.factor.square().sum()
    shared = torch.linalg.svdvals(real.factor @ generated.factor.T).sum()
    return float((means + spreads - 2 * shared).clamp(min=0))
