"""What joins the solver's loss: soft labels, and weight that moves from real to generated rows.

Soft labels are what the solver of the past says of generated images; the present one keeps it.

References:
    Hinton et al. 2015, *Distilling the knowledge in a neural network*.
"""

from typing import Any, Final

from avalanche.training.templates.problem_type import SupervisedProblem
from avalanche.training.templates.update_type import SGDUpdate
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

TEMPERATURE: Final = 2.0
"""What softens the solver's old and new answers alike."""

SOFT_LABEL_WEIGHT: Final = 1.0
"""By default."""

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


def moved_weight(
    real: Float[Tensor, ""],
    generated: Float[Tensor, ""],
    rows: tuple[int, int],
    real_weight: float,
) -> Float[Tensor, ""]:
    """What is to be added to the mean loss of all rows, so that real ones weigh less.

    ``m r (1 − w) / ((r + m) (w r + m)) · (generated − real)`` for r real and m generated rows:
    with it the loss is ``(w r · real + m · generated) / (w r + m)``.

    Args:
        real: mean loss of the real rows.
        generated: of the others.
        rows: how many there are of either.
        real_weight: w, where a generated row weighs 1.
    """
    r, m = rows
    return m * r * (1 - real_weight) / ((r + m) * (real_weight * r + m)) * (generated - real)


def criterion_of_rows(strategy: Any) -> Any:
    """A strategy's criterion, if its loss is the mean cross-entropy of its rows; else ``None``.

    A strategy with a training loop, loss or plugin of its own for it may mean something else by
    its rows and by the model's output.
    """
    criterion: Any = getattr(strategy, "_criterion", None)
    kind, plain = type(strategy), nn.CrossEntropyLoss
    if getattr(kind, "criterion", None) is not SupervisedProblem.criterion:
        return None
    if getattr(kind, "training_epoch", None) is not SGDUpdate.training_epoch:
        return None
    mean = isinstance(criterion, plain) and criterion.reduction == "mean"
    return criterion if mean and criterion.weight is None else None


def gives_logits(strategy: Any) -> bool:
    """Whether a strategy's model surely answers with logits, in training and evaluation alike."""
    # Avalanche's nearest-mean models train a layer and evaluate by another.
    return criterion_of_rows(strategy) is not None and not hasattr(
        strategy.model, "eval_classifier"
    )
