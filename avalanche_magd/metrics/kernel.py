"""Kernel distance between two sets of features: unbiased, so that few samples will do.

The squared maximum mean discrepancy under ``k(x, y) = (xᵀy / d + 1)³``, estimated without the
diagonals. It may come out slightly negative for sets of the same law.

References:
    Bińkowski et al. 2018, *Demystifying MMD GANs* (KID, if the features are Inception's).
"""

from jaxtyping import Float
from torch import Tensor


def kernel_distance(real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"]) -> float:
    """The distance over all pairs of samples.

    Args:
        real: features of one set.
        generated: features of the other.

    Raises:
        ValueError: fewer than two samples.
    """
    if min(len(real), len(generated)) < 2:
        raise ValueError(
            "A kernel distance needs two samples of each kind, "
            f"got {len(real)} and {len(generated)}."
        )
    real, generated = real.double(), generated.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        values = kernel(x, x)
        return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))

    return float(within(real) + within(generated) - 2 * kernel(real, generated).mean())
