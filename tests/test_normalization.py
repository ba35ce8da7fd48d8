"""What the solver receives as replay looks like what it receives as real data."""

from typing import Any

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from callbacks import ReplayRecorder
from hypothesis import given
from hypothesis import strategies as st
from tiny import naive, tiny_generator, tiny_plugin, tiny_training
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision import transforms

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.diffusion.normalization import PixelRange, extremes
from avalanche_magd.distillation import Distillation

TINT = torch.tensor([1, 0.5, 0.2])[:, None, None]
COLOURS = transforms.Compose(
    [
        transforms.Lambda(lambda image: image * TINT),
        transforms.Normalize((0.49, 0.24, 0.1), (0.3, 0.2, 0.05)),
    ]
)
AUGMENTED = transforms.Compose(
    [transforms.RandomCrop(8, padding=1), transforms.RandomHorizontalFlip()]
)


@pytest.mark.parametrize(
    ("train_transform", "eval_transform"),
    [
        pytest.param(None, None, id="ToTensor alone"),
        pytest.param(*[transforms.Normalize((0.3,), (0.15,))] * 2, id="one channel"),
        pytest.param(COLOURS, COLOURS, id="three channels"),
        pytest.param(AUGMENTED, None, id="crops and flips in training"),
        pytest.param(*[lambda image: 2 * image - 1] * 2, id="in [-1, 1]"),
        pytest.param(*[lambda image: (255 * image).round()] * 2, id="0 to 255"),
    ],
)
def test_replay_has_the_mean_and_the_spread_of_real_data(
    train_transform: Any, eval_transform: Any
) -> None:
    benchmark = split_digits(
        5, seed=0, train_transform=train_transform, eval_transform=eval_transform
    )
    first, second = benchmark.train_stream[:2]
    real = torch.stack([image for image, *_ in first.dataset.eval()])
    training = tiny_training(
        model=tiny_generator(tuple(real.shape[1:])),
        train_iterations=300,
        train_mb_size=16,
        distillation=Distillation(pool_size=60),
    )
    recorder = ReplayRecorder()
    strategy = naive([recorder, MAGDPlugin(training, seed=0)], input_size=real[0].numel())
    strategy.train(first)
    training.train_iterations = 1
    strategy.train(second)
    replay = torch.stack(recorder.images)
    for channel in range(real.shape[1]):
        now, past = replay[:, channel], real[:, channel]
        assert now.mean().item() == pytest.approx(past.mean().item(), abs=0.2 * past.std().item())
        assert now.std().item() == pytest.approx(past.std().item(), rel=0.2)
        # Normalised ranges come back to the last bit or nearly so, and are never left.
        slack = 1e-5 * float(past.max() - past.min())
        assert past.min() - slack <= now.min()
        assert now.max() <= past.max() + slack


ranges = st.tuples(st.floats(-300, 300), st.floats(1e-2, 600))


@given(st.lists(ranges, min_size=1, max_size=4))
def test_images_come_back_from_the_models_range_as_they_were(
    bounds: list[tuple[float, float]],
) -> None:
    low = torch.tensor([start for start, _ in bounds])
    high = low + torch.tensor([width for _, width in bounds])
    pixel_range = PixelRange(len(bounds))
    pixel_range.set(low, high)
    images = low.view(-1, 1, 1) + torch.rand(5, len(bounds), 4, 4) * (high - low).view(-1, 1, 1)
    x_0 = pixel_range.normalize(images)
    assert x_0.abs().max() <= 1 + 1e-3
    error = (pixel_range.denormalize(x_0) - images).abs() / images.abs().clamp(min=1)
    assert error.max() < 1e-4


def test_a_training_transform_of_another_size_is_refused_before_any_step() -> None:
    def cropped(image: Tensor) -> Tensor:
        return image[:, :6, :6]

    benchmark = split_digits(5, seed=0, train_transform=cropped)
    strategy = naive([tiny_plugin()], input_size=36)
    with pytest.raises(ValueError, match=r"shape \(1, 6, 6\), the evaluation transform of shape"):
        strategy.train(benchmark.train_stream[0])
    assert strategy.clock.train_iterations == 0


def test_images_beyond_the_range_of_the_first_experience_cause_a_warning() -> None:
    def experience(low: float, high: float, label: int) -> Any:
        images = torch.rand(20, 1, 8, 8) * (high - low) + low
        dataset = AvalancheDataset(
            [TensorDataset(images, torch.full((20,), label))],
            data_attributes=[DataAttribute([label] * 20, "targets")],
        )
        return benchmark_from_datasets(train=[dataset]).streams["train"][0]

    training = tiny_training()
    training.train(experience(-1, 2, 0), eval_streams=[])
    training.train(experience(-1.1, 2.1, 1), eval_streams=[])
    with pytest.warns(UserWarning, match=r"Pixels go from 0\.\d+ to 3\.9\d+, beyond the range"):
        training.train(experience(0, 4, 2), eval_streams=[])


@pytest.mark.parametrize(
    "image", [torch.full((1, 8, 8), 0.3), 0.2 + 0.2 * torch.rand(1, 8, 8)], ids=["blank", "narrow"]
)
def test_images_within_a_range_that_the_user_has_set_cause_no_warning(image: Tensor) -> None:
    pixel_range = PixelRange(1)
    pixel_range.set(torch.tensor([0.2]), torch.tensor([0.4]))
    pixel_range.check([image])


def test_a_range_that_was_set_is_not_fitted_again() -> None:
    pixel_range = PixelRange(1)
    pixel_range.set(torch.tensor([0.2]), torch.tensor([0.4]))
    pixel_range.fit([torch.rand(1, 8, 8)])
    assert [pixel_range.low.item(), pixel_range.high.item()] == pytest.approx([0.2, 0.4])


def test_images_within_zero_and_one_have_the_range_from_zero_to_one() -> None:
    dark = torch.rand(10, 1, 8, 8) * 0.3
    assert [end.tolist() for end in extremes(dark)] == [[0.0], [1.0]]
    assert [end.tolist() for end in extremes(dark - 0.4)] != [[0.0], [1.0]]
