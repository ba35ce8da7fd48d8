"""What the solver receives as replay looks like what it receives as real data."""

import math
import warnings
from typing import Any

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from callbacks import ReplayRecorder
from hypothesis import given
from hypothesis import strategies as st
from tiny import naive, tiny_generator, tiny_plugin, tiny_training
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision import transforms

from avalanche_magd import MAGDPlugin, MAGDTraining
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.diffusion.image_values import NotFiniteError
from avalanche_magd.diffusion.normalization import PixelRange, extremes
from avalanche_magd.distillation import Distillation
from avalanche_magd.replay import MiniBatches

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


def experience_of(images: Tensor, classes: list[int]) -> Any:
    """An experience whose images are of some classes, in turns."""
    labels = [classes[row % len(classes)] for row in range(len(images))]
    dataset = AvalancheDataset(
        [TensorDataset(images, torch.tensor(labels))],
        data_attributes=[DataAttribute(labels, "targets")],
    )
    return benchmark_from_datasets(train=[dataset]).streams["train"][0]


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
    of_old_classes = MiniBatches(generated_share=0.0)
    plugin = MAGDPlugin(training, mini_batches=of_old_classes, seed=0)
    strategy = naive([recorder, plugin], input_size=real[0].numel())
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
        return experience_of(torch.rand(20, 1, 8, 8) * (high - low) + low, [label])

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


NOT_FINITE = [math.nan, math.inf, -math.inf]


def spoilt(images: Tensor, value: float, rows: Any = 7) -> Tensor:
    images = images.clone()
    images[rows, 0, 2, 3] = value
    return images


def state_of(plugin: MAGDPlugin, strategy: Any) -> list[Tensor]:
    generator = plugin.generator
    assert generator is not None
    return [*strategy.model.state_dict().values(), *generator.state_dict().values()]


@pytest.mark.parametrize("refused_at", [0, 1], ids=["first experience", "second experience"])
def test_images_that_are_not_finite_are_refused_by_row_and_leave_no_trace(refused_at: int) -> None:
    data = torch.rand(2, 60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    states = []
    for values in ([], NOT_FINITE):
        torch.manual_seed(0)
        plugin = tiny_plugin()
        strategy = naive([plugin])
        for step, images in enumerate(data):
            classes = [2 * step, 2 * step + 1]
            for value in values if step == refused_at else []:
                bad = experience_of(spoilt(images, value), classes)
                ends = None if plugin.generator is None else plugin.generator.pixel_range.ends
                message = rf"row 7 of the experience's dataset .*at \[0, 2, 3\], is {value}\. Mend"
                with pytest.raises(ValueError, match=message):
                    strategy.train(bad)
                assert plugin.generator is not None
                assert plugin.generator.pixel_range.ends == ends
                assert plugin.generator.classes == [0, 1][: 2 * step]
                assert plugin.replay is None
            strategy.train(experience_of(images, classes))
        states.append(state_of(plugin, strategy))
    assert all(map(torch.equal, *states))


@pytest.mark.parametrize("known", [False, True])
def test_a_row_from_which_no_range_is_inferred_is_refused_too(known: bool) -> None:
    generator = tiny_generator((1, 4, 4))
    if known:
        generator.pixel_range.set(0, 1)
    images = torch.rand(2100, 1, 4, 4)
    with pytest.raises(ValueError, match="row 2098 of the experience's dataset has values that"):
        generator.check_dataset(experience_of(spoilt(images, math.nan, 2098), [0]).dataset.eval())
    assert generator.pixel_range.known is known
    generator.check_dataset(experience_of(images, [0]).dataset.eval())
    assert generator.pixel_range.ends == [[0.0], [1.0]]


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_batch_that_is_not_finite_stops_the_training_before_the_weights_change(
    value: float,
) -> None:
    generator = tiny_generator((1, 4, 4), classes=(0, 1))
    generator.pixel_range.set(0, 1)
    training: MAGDTraining = tiny_training(model=generator)
    # Every second row is looked at, and every 21st.
    unseen = [row for row in range(1, 20_001, 2) if row % 21]
    images = spoilt(torch.rand(20_001, 1, 4, 4), value, unseen)
    before = nn.utils.parameters_to_vector(generator.parameters()).clone()
    with pytest.raises(NotFiniteError, match="A batch of images has values that are not finite"):
        training.train(experience_of(images, [0, 1]), eval_streams=[])
    assert torch.equal(nn.utils.parameters_to_vector(generator.parameters()), before)
    assert training.clock.train_iterations == 0


def test_numbers_that_single_precision_does_not_have_are_not_finite() -> None:
    images = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"Image 2 has .*, is 1e\+300"):
        PixelRange(1).fit(spoilt(images, 1e300, 2))


def levels(low: int, high: int) -> Tensor:
    """8-bit images, as ``ToTensor`` leaves them."""
    return torch.randint(low, high + 1, (60, 3, 8, 8)) / 255


def channels(*highs: float) -> Tensor:
    return torch.rand(60, 3, 8, 8) * torch.tensor(highs)[:, None, None]


def fitted(images: Tensor, **kwargs: Any) -> tuple[list[float], list[float]]:
    pixel_range = PixelRange(images.shape[1])
    pixel_range.fit(images, **kwargs)
    return pixel_range.low.flatten().tolist(), pixel_range.high.flatten().tolist()


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(levels(0, 255), id="8 bit"),
        pytest.param(levels(0, 204), id="8 bit up to 0.8"),
        pytest.param(levels(0, 40), id="8 bit, dark"),
        pytest.param(levels(220, 255), id="8 bit, bright"),
        pytest.param(levels(0, 40).half(), id="8 bit, dark, in half precision"),
        pytest.param((levels(0, 1) * 255).round(), id="black and white"),
        pytest.param(channels(1, 1, 1), id="resized"),
        pytest.param(channels(0.7, 0.7, 0.3), id="resized, one channel dark"),
        pytest.param(channels(1, 0, 1), id="one channel blank"),
    ],
)
def test_images_of_the_unit_interval_have_its_ends_although_they_do_not_reach_them(
    images: Tensor,
) -> None:
    assert fitted(images) == ([0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize(
    ("images", "high"),
    [
        pytest.param(levels(0, 12), [1, 1, 1], id="8 bit, very dark"),
        pytest.param(channels(0.4, 0.4, 0.4), [1, 1, 1], id="resized, dark"),
        pytest.param(levels(0, 255) * 0.01, [0.01] * 3, id="8 bit, scaled"),
        pytest.param(channels(1, 1, 0.01), [1, 1, 0.01], id="one channel scaled"),
        pytest.param(0.2 * levels(0, 255).round(), [0.2] * 3, id="two levels, scaled"),
    ],
)
def test_a_range_that_is_a_guess_is_named_in_a_warning(images: Tensor, high: list[float]) -> None:
    with pytest.warns(
        UserWarning, match=r"taken to go from 0.* to .*`generator\.pixel_range\.set"
    ):
        low, found = fitted(images)
    assert low == pytest.approx([0] * 3, abs=1e-3)
    assert found == pytest.approx(high, rel=0.01)


def test_a_narrow_range_away_from_zero_is_found() -> None:
    with pytest.warns(UserWarning, match="Pixels of the first experience go from 0.5 to 0.51, a"):
        ends = fitted(0.5 + 0.01 * (torch.rand(60, 1, 8, 8) * 16).round() / 16)
    assert [end for (end,) in ends] == pytest.approx([0.5, 0.51])


def sparse(share: float) -> Tensor:
    return torch.where(torch.rand(200, 1, 8, 8) < share, 5.0, -0.4)


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(torch.randn(500, 3, 8, 8), id="normal"),
        pytest.param(torch.randn(500, 3, 8, 8).exp(), id="log-normal"),
        pytest.param(255 * levels(0, 255), id="0 to 255"),
        pytest.param(2 * levels(0, 255) - 1, id="-1 to 1"),
        pytest.param((levels(0, 255) - 0.45) / 0.25, id="mean and spread"),
        pytest.param(sparse(0.05), id="a few bright pixels in each image"),
        pytest.param(sparse(0.0005), id="bright pixels in a few images"),
        pytest.param(-0.4 + spoilt(torch.zeros(40, 1, 8, 8), 3), id="one bright pixel"),
        pytest.param(1 + 3 * spoilt((levels(0, 1) * 255).round(), 0.5), id="one grey pixel"),
        pytest.param(spoilt(torch.rand(60, 1, 8, 8), 4), id="one pixel four times as bright"),
        pytest.param(spoilt(torch.rand(4, 1, 8, 8), 999, 0), id="too few images to judge"),
    ],
)
def test_tails_are_not_cut(images: Tensor) -> None:
    ends = images.amin((0, 2, 3)).tolist(), images.amax((0, 2, 3)).tolist()
    assert fitted(images) == fitted(images, unit=False) == ends


@pytest.mark.parametrize("marks", [[-9999.0], [1e6], [-9999.0, 1e6, -32768.0], [5000.0, 1e30]])
@pytest.mark.parametrize("scale", [1.0, 0.01, 200.0])
def test_outliers_are_no_ends_of_the_range_and_named_in_a_warning(
    marks: list[float], scale: float
) -> None:
    images = scale * (torch.rand(100, 2, 8, 8) * 16).round() / 16
    for row, mark in enumerate(marks):
        images[row] = spoilt(images[row][None], mark, 0)[0]
    first = f"{min(marks):g}".replace("+", r"\+")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Pixels of the first experience go from")
        with pytest.warns(
            UserWarning,
            match=rf"Pixels of {len(marks)} of 100 images are far .*: {first}.* clipped",
        ):
            low, high = fitted(images)
    assert low == [0.0] * 2
    assert high == pytest.approx([scale] * 2)


def test_outliers_of_a_later_experience_are_named_and_clipped() -> None:
    pixel_range = PixelRange(1)
    pixel_range.set(0, 1)
    images = spoilt(torch.rand(60, 1, 8, 8), -9999)
    with pytest.warns(
        UserWarning, match="Pixels of 1 of 60 images are far from all others: -9999"
    ):
        pixel_range.check(images)
    x_0 = pixel_range.normalize(images)
    assert x_0[7, 0, 2, 3].item() == pytest.approx(-1.2)
    assert torch.equal(x_0[8:], images[8:] * 2 - 1)


def test_a_range_is_found_anew_until_a_class_is_known_but_never_one_that_was_set() -> None:
    generator = tiny_generator()
    bright, normalised = (
        experience_of(torch.rand(20, 1, 8, 8) * width - offset, [0]).dataset.eval()
        for width, offset in ((255, 0), (2, 1))
    )
    for dataset, end in ((bright, 255), (normalised, 1)):
        generator.check_dataset(dataset)
        assert generator.pixel_range.high.item() == pytest.approx(end, rel=0.05)
    with pytest.raises(ValueError, match="row 0 of"):
        generator.check_dataset(
            experience_of(torch.full((5, 1, 8, 8), math.nan), [0]).dataset.eval()
        )
    assert generator.pixel_range.high.item() == pytest.approx(1, rel=0.05)
    generator.add_classes([0])
    with pytest.warns(UserWarning, match="beyond the range that the first"):
        generator.check_dataset(bright)
    generator = tiny_generator()
    generator.pixel_range.set(-1, 1)
    with pytest.warns(UserWarning, match="beyond the range that the first"):
        generator.check_dataset(bright)
    assert generator.pixel_range.ends == [[-1.0], [1.0]]


def test_a_range_is_set_by_numbers_lists_or_tensors() -> None:
    pixel_range = PixelRange(2)
    pixel_range.set(0, [1, 2])
    assert pixel_range.ends == [[0.0, 0.0], [1.0, 2.0]]
    pixel_range.set(torch.tensor([3.0, 4.0], dtype=torch.float64), 5.0)
    assert pixel_range.ends == [[3.0, 4.0], [5.0, 5.0]]


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0, math.inf, r"both finite, got \[0\.0\] and \[inf\]"),
        (-math.inf, 0, "both finite"),
        (math.nan, 1, "both finite"),
        (-3e38, 3e38, "both finite"),
        (0, 1e-42, "both finite"),
        (1, 0, "Each channel needs low < high"),
        ([0, 0, 0], 1, "Images have 2 channels, low has 3 values and high 1: give one for each"),
    ],
)
def test_a_range_that_is_none_is_refused(low: Any, high: Any, message: str) -> None:
    pixel_range = PixelRange(2)
    with pytest.raises(ValueError, match=message):
        pixel_range.set(low, high)
    assert not pixel_range.known
