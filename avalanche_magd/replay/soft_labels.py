"""Soft labels: what the solver of the past says of generated images, which the present one keeps.

References:
    Hinton et al. 2015, *Distilling the knowledge in a neural network*.
"""

from typing import Final

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

TEMPERATURE: Final = 2.0
"""What softens the solver's old and new answers alike."""

OTHER_HEAD: Final = -1e4
"""A logit that leaves no probability, and is finite in half precision."""


def soft_label_divergence(
    logits: Float[Tensor, "n k"],
    soft_labels: Float[Tensor, "n k"],
    same_head: Bool[Tensor, "n k"],
) -> Float[Tensor, ""]:
    """``τ² KL(softmax(soft/τ) ‖ softmax(logits/τ))``, mean over rows, τ = :data:`TEMPERATURE`.

    Args:
        logits: the solver's, over the old classes alone.
        soft_labels: the logits that it gave before, in the same order.
        same_head: whether a class belongs to the row's head; others do not count.
    """
    target, prediction = (
        functional.log_softmax(each.masked_fill(~same_head, OTHER_HEAD) / TEMPERATURE, 1)
        for each in (soft_labels, logits)
    )
    divergence = functional.kl_div(prediction, target, reduction="batchmean", log_target=True)
    return TEMPERATURE**2 * divergence
