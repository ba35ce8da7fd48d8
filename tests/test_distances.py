"""Distances between sets of images: against references, closed forms and planted faults."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import entropy
from torch import Tensor, nn
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import KernelInceptionDistance

from avalanche_magd.benchmarks import split_digits
from avalanche_magd.metrics import (
    average_distance,
    class_kld,
    frechet_distance,
    generative_forgetting,
    kernel_distance,
    label_agreement,
    moments,
    novelty,
    precision_recall,
)


def distance(real: Tensor, generated: Tensor) -> float:
    return frechet_distance(moments(real), moments(generated))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), width=st.integers(1, 40), count=st.integers(50, 200))
def test_the_frechet_distance_is_that_of_scipys_square_root(
    seed: int, width: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    real = rng.normal(size=(count, width)) @ rng.normal(size=(width, width))
    generated = rng.normal(size=(count + 7, width)) @ rng.normal(size=(width, width)) + 0.3
    covariances = [np.atleast_2d(np.cov(each, rowvar=False)) for each in (real, generated)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((real.mean(0) - generated.mean(0)) ** 2).sum() + sum(
        np.trace(each) for each in covariances
    )
    expected -= 2 * np.trace(root)
    found = distance(torch.from_numpy(real), torch.from_numpy(generated))
    assert found == pytest.approx(expected, rel=1e-6)


def test_fewer_images_than_features_lose_no_digits(rng: torch.Generator) -> None:
    features = torch.randn(20, 64, generator=rng)
    assert distance(features, features) < 1e-10
    shifted = features + 0.5
    assert distance(features, shifted) == pytest.approx(64 * 0.25, rel=1e-6)
    assert distance(features, 2 * features - features.mean(0)) == pytest.approx(
        float(features.var(0).sum()), rel=1e-5
    )


def test_the_frechet_distance_is_more_exact_than_torchmetrics(rng: torch.Generator) -> None:
    features = torch.randn(20, 64, generator=rng).double()
    twice_as_far = 2 * features - features.mean(0)
    expected = features.var(0).sum().item()
    reference = _compute_fid(
        features.mean(0), torch.cov(features.T), twice_as_far.mean(0), torch.cov(twice_as_far.T)
    )
    assert distance(features, twice_as_far) == pytest.approx(expected, abs=1e-12)
    assert abs(reference.item() - expected) > 1e-9


class Features(nn.Module):
    """Returns its argument."""

    num_features = 6

    def forward(self, features: Tensor) -> Tensor:
        return features


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_the_kernel_distance_is_that_of_torchmetrics_metric(rng: torch.Generator) -> None:
    real = torch.randn(80, 6, generator=rng)
    generated = 0.3 + torch.randn(80, 6, generator=rng)
    reference = KernelInceptionDistance(Features(), subsets=1, subset_size=80)
    reference.update(real, real=True)
    reference.update(generated, real=False)
    expected = reference.compute()[0].item()
    assert kernel_distance(real, generated) == pytest.approx(expected, rel=1e-4)


def test_the_kernel_distance_is_the_closed_form(rng: torch.Generator) -> None:
    real, generated = torch.randn(2, 30, 6, generator=rng).double().unbind(0)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return ((x[:, None] * y[None]).sum(2) / 6 + 1) ** 3

    pairs = ~torch.eye(30, dtype=torch.bool)
    within = [kernel(x, x)[pairs].mean() for x in (real, generated)]
    expected = sum(within) - 2 * kernel(real, generated).mean()
    assert kernel_distance(real, generated) == pytest.approx(float(expected), rel=1e-9)


def test_the_kernel_distance_of_sets_of_different_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="equally many of both; got 5 and 4"):
        kernel_distance(torch.zeros(5, 3), torch.zeros(4, 3))


def test_the_kernel_distance_is_unbiased(rng: torch.Generator) -> None:
    values = [
        kernel_distance(*torch.randn(2, 10, 4, generator=rng).unbind(0)) for _ in range(2000)
    ]
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values)) < 4 * error
    assert min(values) < 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=9), st.integers(0, 99))
def test_class_kld_is_the_entropy_of_scipy(counts: list[int], seed: int) -> None:
    wanted = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    rng = torch.Generator().manual_seed(seed)
    seen = torch.randint(len(counts), (60,), generator=rng)
    p, q = (np.bincount(each, minlength=len(counts)) / len(each) for each in (wanted, seen))
    assert class_kld(wanted, seen) == pytest.approx(entropy(p + 1e-8, q + 1e-8), abs=1e-9)


def test_one_of_ten_classes_missing_is_about_one_point_six_nats() -> None:
    wanted = torch.arange(10).repeat(100)
    assert class_kld(wanted, wanted) == 0
    assert class_kld(wanted, wanted[wanted != 3]) == pytest.approx(1.6, abs=0.1)


def test_label_agreement_is_the_share_of_equal_labels() -> None:
    assert label_agreement(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0])) == 0.75


def test_precision_and_recall_of_one_of_two_clusters(rng: torch.Generator) -> None:
    clusters = [torch.randn(200, 2, generator=rng) + shift for shift in (0.0, 100.0)]
    half = torch.randn(200, 2, generator=rng)
    precision, recall = precision_recall(torch.cat(clusters), half)
    assert precision > 0.9
    assert 0.4 < recall < 0.5
    assert precision_recall(half, half) == (1, 1)
    assert precision_recall(half, half + 1000) == (0, 0)


def test_neighbourhoods_reach_to_the_kth_other_sample() -> None:
    real = torch.tensor([[0.0], [1.0], [3.0]])  # reach 1, 1, 2
    generated = torch.tensor([[-0.9], [-1.1], [4.9], [5.1]])  # reach 0.2 each
    assert precision_recall(real, generated, 1) == (0.5, 0)
    assert precision_recall(generated, real, 1) == (0, 0.5)


def test_copies_of_training_images_have_no_novelty(rng: torch.Generator) -> None:
    training, real, new = torch.randn(3, 300, 5, generator=rng).unbind(0)
    assert novelty(training, real, training[:50]) == 0
    assert novelty(training, real, training[:50] + 1e-4) < 0.01
    assert novelty(training, real, new) == pytest.approx(1, abs=0.15)
    with pytest.raises(ValueError, match="At least half"):
        novelty(training, training[:50] + 1e-7, new)  # as other batches round them


def test_distances_are_computed_a_hundred_rows_at_once_at_most(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, original = [], torch.cdist

    def recorded(x: torch.Tensor, y: torch.Tensor, **kwargs: str) -> torch.Tensor:
        held.append(len(x))
        return original(x, y, **kwargs)

    monkeypatch.setattr(torch, "cdist", recorded)
    training, real, generated = torch.randn(3, 1000, 5, generator=rng).unbind(0)
    precision_recall(real, generated)
    novelty(training, real, generated)
    assert sum(held) == 6 * 1000
    assert max(held) <= 100


def test_forgetting_is_the_growth_of_distances_since_their_experiences_were_learnt() -> None:
    assert average_distance({0: 4.0, 1: 2.0}) == 3
    assert generative_forgetting({0: 1.0, 1: 2.0}, {0: 4.0, 1: 2.0, 2: 9.0}) == 1.5


def test_planted_faults_change_the_figures_that_are_meant_for_them() -> None:
    benchmark = split_digits(1, seed=0)
    (train,) = benchmark.train_stream
    (test,) = benchmark.test_stream
    real, labels = (torch.stack([torch.as_tensor(row[i]) for row in test.dataset]) for i in (0, 1))
    training = torch.stack([row[0] for row in train.dataset.eval()]).flatten(1)
    good, faulty = real[::2].flatten(1), real[1::2]
    rng = torch.Generator().manual_seed(0)
    blurred = nn.functional.avg_pool2d(faulty, 3, 1, 1).flatten(1)
    noisy = (faulty + 0.3 * torch.randn(faulty.shape, generator=rng)).flatten(1)
    faulty = faulty.flatten(1)
    without = faulty[labels[1::2] != 3]
    plain = distance(good, faulty)
    assert distance(good, blurred) > 3 * plain
    assert distance(good, noisy) > 3 * plain
    assert distance(good, without) > plain
    assert kernel_distance(good, blurred) > 5 * abs(kernel_distance(good, faulty))
    precision, recall = precision_recall(good, faulty)
    assert precision_recall(good, noisy)[0] < 0.5 * precision
    assert precision_recall(good, without)[1] < recall
    assert novelty(training, good, faulty) == pytest.approx(1, abs=0.1)
    assert novelty(training, good, training[::9]) == 0


@pytest.mark.parametrize("measure", [distance, kernel_distance, precision_recall])
def test_too_few_images_are_refused(measure: object) -> None:
    with pytest.raises(ValueError, match="of each kind"):
        measure(torch.zeros(1, 3), torch.zeros(1, 3))  # type: ignore[operator]


def test_sets_without_images_are_refused() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    for call in (
        lambda: class_kld(nothing, nothing),
        lambda: label_agreement(nothing, nothing),
        lambda: average_distance({}),
        lambda: generative_forgetting({0: 1.0}, {1: 1.0}),
        lambda: novelty(torch.zeros(0, 2), torch.zeros(1, 2), torch.zeros(1, 2)),
        lambda: novelty(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2)),
    ):
        with pytest.raises(ValueError, match=r"needs|At least half"):
            call()
