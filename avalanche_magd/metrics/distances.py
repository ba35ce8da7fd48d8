"""Distances between sets of features, and how they grow as a generator forgets.

The *Fréchet distance* takes both sets for samples of Gaussians N(μ, Σ): ``‖μ_x − μ_y‖² + tr Σ_x +
tr Σ_y − 2 tr (Σ_x Σ_y)^½``. With centred features as rows, divided by √(n − 1), Σ = RᵀR for a
factor R of at most as many rows as there are features. The non-zero eigenvalues of Σ_x Σ_y are the
squared singular values of R_x R_yᵀ, so their sum is the last trace: no root of a matrix is taken,
and covariances without full rank lose no digits. On 20 samples of 64 features it errs by 1e-14, on
500 of 1280 by 1e-12, where torchmetrics' form, by the eigenvalues of Σ_x Σ_y, errs by 3e-6 and
1e-4 in double precision too. It is called FID only with the features of torch-fidelity's Inception
network. Fewer samples than features bias it upwards.

The *kernel distance*, KID with Inception's features, is the squared maximum mean discrepancy under
``k(x, y) = (xᵀy / d + 1)³``, estimated without the diagonals: unbiased, so that few samples will
do, and slightly negative now and then for sets of the same distribution.

A distance over all classes hides forgetting: it stays small while the newest classes are drawn
well. So distances are also taken by experience. What it measures, *precision* and *recall* tell
apart, by neighbourhoods; *novelty* tells whether images are copies.

References:
    Dowson & Landau 1982, *The Fréchet distance between multivariate normal distributions*.
    Heusel et al. 2017, *GANs trained by a two time-scale update rule* (FID).
    Bińkowski et al. 2018, *Demystifying MMD GANs* (KID).
    Masip et al. 2023, *Continual learning of diffusion models with generative distillation*,
    arXiv 2311.14028 (distances averaged over experiences).
    Kynkäänniemi et al. 2019, *Improved precision and recall metric for assessing generative
    models*.
    Meehan et al. 2020, *A non-parametric test to detect data-copying in generative models* (the
    comparison with held-out data).
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

Features = Float[Tensor, "n d"]
SAME: Final = 1e-5
"""Features of an image differ by less, relative to their length, from one batch to another."""
ROWS_AT_ONCE: Final = 64


class Moments(NamedTuple):
    """Mean and spread of a set of features, in double precision."""

    mean: Float[Tensor, " d"]
    factor: Float[Tensor, "r d"]
    """R, with Σ = RᵀR."""


def moments(features: Features) -> Moments:
    """What the Fréchet distance needs to know of a set.

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
    """The Fréchet distance, squared as is the custom; 0 if both sets have the same moments."""
    means = (real.mean - generated.mean).square().sum()
    spreads = real.factor.square().sum() + generated.factor.square().sum()
    shared = torch.linalg.svdvals(real.factor @ generated.factor.T).sum()
    return float((means + spreads - 2 * shared).clamp(min=0))


def kernel_distance(real: Features, generated: Features) -> float:
    """The kernel distance over all pairs of samples.

    Raises:
        ValueError: fewer than two samples, or sets of different sizes.
    """
    if len(real) < 2 or len(real) != len(generated):
        raise ValueError(
            "A kernel distance needs two samples of each kind or more, and equally many of both; "
            f"got {len(real)} and {len(generated)}."
        )
    return float(poly_mmd(real.double(), generated.double()))


def average_distance(now: Mapping[Any, float]) -> float:
    """Mean of each experience's distance; AFID, if the distance is FID.

    Raises:
        ValueError: there is no experience.
    """
    if not now:
        raise ValueError("average_distance needs an experience.")
    return sum(now.values()) / len(now)


def generative_forgetting(when_learnt: Mapping[Any, float], now: Mapping[Any, float]) -> float:
    """By how much distances have grown since their experiences were learnt, on average.

    Args:
        when_learnt: distance of each earlier experience's images when it had just been learnt;
            leave out the newest, which had no time to be forgotten.
        now: distances at present.

    Raises:
        ValueError: no experience is in both.
    """
    both = when_learnt.keys() & now.keys()
    if not both:
        raise ValueError("generative_forgetting needs an earlier experience.")
    return sum(now[each] - when_learnt[each] for each in both) / len(both)


def precision_recall(real: Features, generated: Features, k: int = 3) -> tuple[float, float]:
    """How much of the generated set looks real, and how much of the real one is generated.

    A sample lies within a set if it is as near to one of its members as that member's k-th
    neighbour there. Both shares are in [0, 1]; 1 is best.

    Args:
        real: features of real images.
        generated: features of generated ones.
        k: neighbours; at most one less than there are samples of each kind.

    Raises:
        ValueError: there are too few samples for k, or k is below 1.
    """
    if not 1 <= k < min(len(real), len(generated)):
        raise ValueError(
            f"precision_recall needs more than k={k} samples of each kind and k of at least 1, "
            f"got {len(real)} and {len(generated)}."
        )
    real, generated = real.double(), generated.double()
    return _share_within(generated, real, k), _share_within(real, generated, k)


def novelty(training: Features, real: Features, generated: Features) -> float:
    """How far generated images are from training images, in units of how far new real ones are.

    The ratio of the median distances to the nearest training image, from features of all three:
    about 1 if generated images are as new as real ones, 0 if they are copies.

    Raises:
        ValueError: a set is empty, or the real images are copies of training images themselves.
    """
    if not (len(training) and len(real) and len(generated)):
        raise ValueError("novelty needs images of each kind.")
    training = training.double()
    of_real, of_generated = (
        torch.cat([rows.amin(1) for rows in _distances(each.double(), training)]).median()
        for each in (real, generated)
    )
    if of_real <= SAME * training.norm(dim=1).median():
        raise ValueError("At least half of the real images are in the training set.")
    return float(of_generated / of_real)


def _share_within(x: Features, y: Features, k: int) -> float:
    # The nearest of all is the member itself.
    reach = torch.cat([rows.kthvalue(k + 1).values for rows in _distances(y, y)])
    within = torch.cat([(rows <= reach).any(1) for rows in _distances(x, y)])
    return float(within.double().mean())


def _distances(x: Features, y: Features) -> Iterator[Float[Tensor, "b m"]]:
    """Euclidean, some rows at a time, since there may be many of both."""
    for rows in torch.split(x, ROWS_AT_ONCE):
        # The faster mode gives an image a distance to itself.
        yield torch.cdist(rows, y, compute_mode="donot_use_mm_for_euclid_dist")
