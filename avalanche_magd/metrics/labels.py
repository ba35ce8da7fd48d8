"""What a judge sees in generated images: which classes, and whether those asked for."""

from jaxtyping import Int
from torch import Tensor

SMOOTHING = 1e-8
"""Added to each frequency, so that a class that is missing gives a large number, not infinity."""


def class_kld(wanted: Int[Tensor, " n"], seen: Int[Tensor, " m"]) -> float:
    """``KL(wanted ‖ seen)`` of class frequencies, in nats; 0 if both are the same.

    One of ten even classes missing gives about 1.6.

    Args:
        wanted: class of each real image.
        seen: class that the judge sees in each generated image.

    Raises:
        ValueError: no images.
    """
    if not (len(wanted) and len(seen)):
        raise ValueError("class_kld needs images of each kind.")
    classes = int(max(wanted.max(), seen.max())) + 1
    p, q = (
        each.bincount(minlength=classes).double() / len(each) + SMOOTHING
        for each in (wanted, seen)
    )
    p, q = p / p.sum(), q / q.sum()
    return float((p * (p / q).log()).sum())


def label_agreement(asked: Int[Tensor, " n"], seen: Int[Tensor, " n"]) -> float:
    """The share of generated images in which the judge sees the class that was asked for.

    Raises:
        ValueError: no images.
    """
    if not len(asked):
        raise ValueError("label_agreement needs images.")
    return float((asked == seen).double().mean())
