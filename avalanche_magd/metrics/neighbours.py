"""What nearest neighbours among features tell: precision, recall, and whether images are copies.

References:
    Kynkäänniemi et al. 2019, *Improved precision and recall metric for assessing generative
    models*.
    Meehan et al. 2020, *A non-parametric test to detect data-copying in generative models* (the
    comparison with held-out data).
"""

from collections.abc import Iterator
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

SAME: Final = 1e-5
"""Features of an image differ by less, relative to their length, from one batch to another."""

ROWS_AT_ONCE: Final = 64


def precision_recall(
    real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], k: int = 3
) -> tuple[float, float]:
    """How much of the generated set looks real, and how much of the real one is generated.

    A sample lies within a set if it is as near to one of its members as that one's k-th neighbour
    there.

    Args:
        real: features of real images.
        generated: features of generated ones.
        k: neighbours; at most one less than there are samples of each kind.

    Returns:
        Precision and recall, both in [0, 1]; 1 is best.

    Raises:
        ValueError: too few samples.
    """
    if not 1 <= k < min(len(real), len(generated)):
        raise ValueError(
            f"precision_recall needs more than k={k} samples of each kind and k of at least 1, "
            f"got {len(real)} and {len(generated)}."
        )
    real, generated = real.double(), generated.double()
    precision = _within(generated, real, _reach(real, k))
    recall = _within(real, generated, _reach(generated, k))
    return precision, recall


def novelty(
    training: Float[Tensor, "t d"], real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"]
) -> float:
    """How far generated images are from training images, in units of how far new real ones are.

    The ratio of the median distances to the nearest training image: about 1 if generated images
    are as new as real ones, 0 if they are copies.

    Args:
        training: features of training images.
        real: features of real images that were not trained on.
        generated: features of generated images.

    Raises:
        ValueError: a set is empty, or the real images are copies of training images themselves.
    """
    if not (len(training) and len(real) and len(generated)):
        raise ValueError("novelty needs images of each kind.")
    training = training.double()
    of_real, of_generated = (
        _nearest(each.double(), training).median() for each in (real, generated)
    )
    if of_real <= SAME * training.norm(dim=1).median():
        raise ValueError("At least half of the real images are in the training set.")
    return float(of_generated / of_real)


def _reach(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Distance of each to its k-th neighbour; the nearest is itself."""
    return torch.cat([rows.kthvalue(k + 1).values for rows in _distances(x, x)])


def _within(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], reach: Float[Tensor, " m"]) -> float:
    """Share of those that lie within the reach of one of ``y``."""
    found = torch.cat([(rows <= reach).any(1) for rows in _distances(x, y)])
    return float(found.double().mean())


def _nearest(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, " n"]:
    """Distance of each to the nearest of ``y``."""
    return torch.cat([rows.amin(1) for rows in _distances(x, y)])


def _distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Iterator[Float[Tensor, "b m"]]:
    """Euclidean, some rows at a time, since there may be many of both.

    Without the shortcut that gives an image a distance to itself.
    """
    for rows in torch.split(x, ROWS_AT_ONCE):
        yield torch.cdist(rows, y, compute_mode="donot_use_mm_for_euclid_dist")
