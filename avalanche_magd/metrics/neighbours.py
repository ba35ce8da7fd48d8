"""What nearest neighbours among features tell: precision, recall, and whether images are copies.

References:
    Kynkäänniemi et al. 2019, *Improved precision and recall metric for assessing generative
    models*.
    Meehan et al. 2020, *A non-parametric test to detect data-copying in generative models* (the
    comparison with held-out data).
"""

import torch
from jaxtyping import Float
from torch import Tensor


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
    across = _distances(real, generated)
    of_real = _distances(real, real).kthvalue(k + 1).values  # the nearest is the sample itself
    of_generated = _distances(generated, generated).kthvalue(k + 1).values
    precision = (across <= of_real[:, None]).any(0)
    recall = (across <= of_generated).any(1)
    return float(precision.double().mean()), float(recall.double().mean())


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
        _distances(each.double(), training).amin(1).median() for each in (real, generated)
    )
    if not of_real > 0:
        raise ValueError("At least half of the real images are in the training set.")
    return float(of_generated / of_real)


def _distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Euclidean, without the shortcut that gives an image a distance to itself."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
