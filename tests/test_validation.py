"""Arguments and data that cannot be used are refused with an error that says why."""

from typing import Any

import pytest
import torch
from avalanche.benchmarks.utils import make_avalanche_dataset
from torch.utils.data import TensorDataset

from avalanche_magd.runtime.validation import check_dataset, check_minibatch, check_sample

IMAGE = torch.zeros(1, 8, 8)


@pytest.mark.parametrize(
    ("sample", "error", "message"),
    [
        ({"x": IMAGE}, TypeError, r"samples \(image, class\).* got a dict"),
        ((IMAGE, 1, 0, 0), ValueError, "got 4 columns"),
        ((IMAGE, 1, 0.5), TypeError, "third column must be an integer task label"),
        ((IMAGE, 1, torch.rand(10)), TypeError, "third column must be an integer task label"),
        ((IMAGE, "cat"), TypeError, "integer class indices, got 'cat'"),
        ((IMAGE,), ValueError, "got 1 columns"),
        ((IMAGE, 1.5), TypeError, "integer class indices, got 1.5"),
        ((IMAGE, torch.tensor([1, 0])), TypeError, "integer class indices"),
        ((IMAGE.byte(), 1), TypeError, r"got a torch.uint8 tensor: add ToTensor"),
        (("image.png", 1), TypeError, "floating-point tensors, got a str"),
        ((IMAGE[0], 1), ValueError, r"channels × height × width, got shape \(8, 8\)"),
    ],
)
def test_samples_that_cannot_be_replayed_are_refused(
    sample: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_sample(sample)


def test_a_dataset_that_does_not_name_its_classes_is_refused() -> None:
    dataset = TensorDataset(IMAGE[None], torch.tensor([3]))
    with pytest.raises(TypeError, match="as_classification_dataset"):
        check_dataset(make_avalanche_dataset(dataset))


@pytest.mark.parametrize("label", [1, torch.tensor(1)])
def test_check_sample_gives_the_shape_of_an_image(label: Any) -> None:
    assert check_sample((IMAGE, label)) == check_sample([IMAGE, label, 0]) == (1, 8, 8)


@pytest.mark.parametrize(
    ("mbatch", "error", "message"),
    [
        ({"x": IMAGE}, TypeError, "lists of tensors .* got a dict"),
        ([IMAGE, "label"], TypeError, "lists of tensors"),
        ([IMAGE] * 4, ValueError, "two or three columns, got 4"),
    ],
)
def test_mini_batches_that_replay_cannot_join_are_refused(
    mbatch: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_minibatch(mbatch)
