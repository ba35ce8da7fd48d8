"""The generator maps ranges, pads sides, grows classes, and keeps Avalanche's contract."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.models.generator import Generator
from diffusers import UNet2DModel
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import tiny_generator, tiny_network
from torch import Tensor, nn

from avalanche_magd import DiffusionGenerator
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.diffusion.label_map import NULL_LABEL, LabelMap
from avalanche_magd.diffusion.networks import default_network, is_plain_unet
from avalanche_magd.diffusion.normalization import extremes


def test_the_generator_has_the_calls_of_avalanches_generators() -> None:
    generator = tiny_generator(classes=(0, 1))
    assert isinstance(generator, Generator)
    assert generator.generate().shape == (1, 8, 8)
    assert generator.generate(3).shape == (3, 1, 8, 8)
    assert generator.generate(condition=1).shape == (1, 8, 8)
    assert generator.generate(4, 1).shape == (4, 1, 8, 8)
    assert generator.generate(condition=torch.tensor([0, 1, 1])).shape == (3, 1, 8, 8)
    assert generator.generate(condition=[0, 1, 1]).shape == (3, 1, 8, 8)
    assert generator.get_features(torch.zeros(2, 1, 8, 8)).shape == (2, 8)


class Recorder(nn.Module):
    """A network that predicts zero and records how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.labels: list[int] = []

    def forward(self, x_t: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        self.shapes.append(tuple(x_t.shape))
        self.labels += class_labels.tolist()
        return torch.zeros_like(x_t)


def test_generation_is_balanced_over_the_seen_classes_and_any_module_can_be_the_network() -> None:
    network = Recorder()
    generator = DiffusionGenerator((3, 5, 7), network, num_inference_steps=1)
    generator.add_classes([4, 1])
    assert generator.generate(5).shape == (5, 3, 5, 7)
    assert sorted(network.labels) in ([2, 2, 2, 5, 5], [2, 2, 5, 5, 5])  # called with label + 1
    assert generator.forwards == 5


def test_the_same_rng_generates_the_same_and_no_state_is_left_behind() -> None:
    generator = tiny_generator(classes=(0, 1)).train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    images = [generator.generate(4, rng=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*images)
    assert generator.training
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())


@pytest.mark.parametrize(
    "image_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 30, 45), (2, 5, 4)]
)
def test_any_side_length_goes_through_the_default_network(
    image_shape: tuple[int, int, int],
) -> None:
    generator = DiffusionGenerator(image_shape, num_inference_steps=1)
    generator.add_classes([0])
    assert generator.generate(2).shape == (2, *image_shape)


@pytest.mark.slow
def test_images_of_64_pixels_go_through_the_default_network() -> None:
    generator = DiffusionGenerator((3, 64, 64), num_inference_steps=1)
    generator.add_classes([0])
    assert generator.generate(1).shape == (1, 3, 64, 64)


def test_new_classes_leave_the_known_ones_as_they_were() -> None:
    generator = tiny_generator(classes=(0, 1)).eval()
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 900])
    labels = torch.tensor([1, NULL_LABEL])
    with torch.no_grad():
        before = generator(x_t, t, labels)
        generator.add_classes([50, 1])
        assert torch.equal(generator(x_t, t, labels), before)
    assert generator.classes == [0, 1, 50]
    assert generator.generate(condition=50).shape == (1, 8, 8)


@settings(max_examples=30, deadline=None)
@given(
    low=st.lists(st.floats(-300, 100), min_size=3, max_size=3),
    span=st.lists(st.floats(0.5, 300), min_size=3, max_size=3),
)
def test_images_of_any_range_go_to_the_models_range_and_back(
    low: list[float], span: list[float]
) -> None:
    generator = tiny_generator((3, 4, 4))
    lows, spans = torch.tensor(low), torch.tensor(span)
    images = lows.view(3, 1, 1) + torch.rand(6, 3, 4, 4) * spans.view(3, 1, 1)
    assume(images.min() < 0 or images.max() > 1)
    generator.pixel_range.set(*extremes(images))
    x_0 = generator.pixel_range.normalize(images)
    assert x_0.min().item() == pytest.approx(-1, abs=1e-4)
    assert x_0.max().item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(
        generator.pixel_range.denormalize(x_0), images, atol=1e-3, rtol=1e-4
    )


def test_only_experiences_that_are_trained_on_bring_classes_and_only_the_first_a_range() -> None:
    benchmark = split_digits(
        5, fixed_class_order=range(10), eval_transform=lambda image: (image - 0.3) / 0.2
    )
    generator = tiny_generator()
    generator.eval()
    generator.adaptation(benchmark.test_stream[4])
    assert generator.classes == []
    assert not generator.pixel_range.known
    generator.train()
    generator.adaptation(benchmark.train_stream[0])
    generator.adaptation(benchmark.train_stream[1])
    assert generator.classes == [0, 1, 2, 3]
    assert generator.pixel_range.low.item() == pytest.approx(-1.5)
    assert generator.pixel_range.high.item() == pytest.approx(3.5)


def test_a_frozen_generator_is_in_evaluation_mode_without_gradients_for_a_while() -> None:
    generator = tiny_generator(classes=(0,))
    with generator.frozen() as teacher:
        assert teacher is generator
        assert not generator.network.training
        assert not torch.is_grad_enabled()
    assert generator.network.training
    assert torch.is_grad_enabled()


def test_a_check_of_a_dataset_fits_the_range_and_adds_no_class(digits: Any) -> None:
    generator = tiny_generator()
    generator.check_dataset(digits.train_stream[0].dataset.eval())
    assert generator.pixel_range.known
    assert generator.classes == []
    assert generator.network.config.num_class_embeds == 1


def test_a_dataset_of_another_shape_is_refused(digits: Any) -> None:
    generator = tiny_generator((1, 5, 5))
    with pytest.raises(
        ValueError, match=r"images of shape \(1, 5, 5\), the experience has \(1, 8"
    ):
        generator.check_dataset(digits.train_stream[0].dataset.eval())
    assert not generator.pixel_range.known


def test_a_dataset_beyond_a_known_range_causes_a_warning(digits: Any) -> None:
    generator = tiny_generator()
    generator.pixel_range.set(torch.zeros(1), torch.full((1,), 0.1))
    with pytest.warns(UserWarning, match="Pixels go from 0 to 1, beyond the range that the first"):
        generator.check_dataset(digits.train_stream[0].dataset.eval())


def test_a_network_with_a_resize_method_is_given_the_number_of_labels(digits: Any) -> None:
    class Resizable(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.numbers: list[int] = []

        def resize_class_embedding(self, num_class_embeds: int) -> None:
            if num_class_embeds > 11:
                raise ValueError("Eleven labels are all that fit.")
            self.numbers.append(num_class_embeds)

    network = Resizable()
    generator = DiffusionGenerator((1, 8, 8), network)
    dataset = digits.train_stream[0].dataset.eval()
    generator.check_dataset(dataset)  # before old classes are generated
    generator.adaptation(digits.train_stream[0])  # before the new ones are learnt
    assert network.numbers == [max(generator.classes) + 2] * 2
    with pytest.raises(ValueError, match="Eleven labels are all"):
        generator.add_classes([10])
    assert generator.classes == sorted(digits.train_stream[0].classes_in_this_experience)


def test_a_constant_channel_does_not_divide_by_zero() -> None:
    images = torch.rand(5, 2, 4, 4)
    images[:, 1] = 0.5
    generator = tiny_generator((2, 4, 4))
    generator.pixel_range.set(*extremes(images))
    assert generator.pixel_range.normalize(images).abs().max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("prediction_type", "beta_schedule"),
    [("v_prediction", "squaredcos_cap_v2"), ("epsilon", "linear")],
)
def test_a_saved_generator_is_the_same_generator(
    tmp_path: Path, prediction_type: Any, beta_schedule: Any
) -> None:
    generator = tiny_generator(
        (1, 8, 8),
        (3, 11),
        prediction_type=prediction_type,
        beta_schedule=beta_schedule,
        beta_end=0.012,
        num_inference_steps=3,
    )
    generator.pixel_range.set(torch.tensor([-0.4242]), torch.tensor([2.8]))
    generator.save_pretrained(tmp_path / "generator")
    again = DiffusionGenerator.from_pretrained(tmp_path / "generator")
    images = [
        each.generate(6, rng=torch.Generator().manual_seed(1)) for each in (generator, again)
    ]
    assert torch.equal(*images)
    assert again.classes == [3, 11]
    assert again.schedule.settings == generator.schedule.settings
    again.add_classes([20])
    again.save_pretrained(tmp_path / "grown")
    assert DiffusionGenerator.from_pretrained(tmp_path / "grown").classes == [3, 11, 20]
    names = {file.name for file in (tmp_path / "generator").rglob("*") if file.is_file()}
    weights = "diffusion_pytorch_model.safetensors"
    assert names == {"README.md", "generator.json", "config.json", weights}
    settings = json.loads((tmp_path / "generator" / "generator.json").read_text())
    assert settings["classes"] == [[3, 3, 0], [11, 11, 0]]


def test_a_folder_from_anywhere_runs_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    tiny_generator((1, 8, 8), (0,)).save_pretrained(tmp_path)
    network = tmp_path / "network"
    (network / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(Trap(), network / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        DiffusionGenerator.from_pretrained(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_generator_of_several_tasks_is_saved_with_its_label_map(tmp_path: Path) -> None:
    generator = tiny_generator((1, 8, 8))
    generator.label_map = LabelMap().with_classes([(0, 0), (1, 0), (0, 1)])
    generator.add_classes([])  # the network has to have embeddings for them
    generator.save_pretrained(tmp_path)
    again = DiffusionGenerator.from_pretrained(tmp_path)
    assert again.label_map.rows == [(0, 0, 0), (1, 1, 0), (2, 0, 1)]
    assert again.generate(3).shape == (3, 1, 8, 8)


def test_what_cannot_be_saved_or_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match="UNet2DModel, or a PromptConditioned, as network, this one is a Recorder"
    ):
        DiffusionGenerator((1, 8, 8), Recorder()).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no generator\.json"):
        DiffusionGenerator.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="a network with a `mid_block`"):
        DiffusionGenerator((1, 8, 8), Recorder()).get_features(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("image_shape", "message"),
    [
        ((1, 3, 8), "sides must be at least 4 pixels, got 3×8"),
        ((8, 8), "channels × height × width"),
    ],
)
def test_images_that_are_too_small_are_refused(image_shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionGenerator(image_shape)


def test_a_plain_unet_consists_of_the_libraries_own_modules_alone() -> None:
    class Silent(nn.Identity):
        pass

    class Child(UNet2DModel):
        pass

    sides = {"block_out_channels": (32, 32), "up_block_types": ("UpBlock2D", "SkipUpBlock2D")}
    skips = UNet2DModel(down_block_types=("SkipDownBlock2D", "DownBlock2D"), **sides)
    assert is_plain_unet(tiny_network())
    for other in (skips, Child(), nn.Identity()):
        assert not is_plain_unet(other)
    changed = tiny_network()
    changed.conv_act = Silent()
    assert not is_plain_unet(changed)


def test_networks_for_other_images_or_without_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="Images have 3 channels, the network takes 1"):
        DiffusionGenerator((3, 8, 8), tiny_network(1))
    unconditional = UNet2DModel.from_config({**tiny_network().config, "num_class_embeds": None})
    with pytest.raises(ValueError, match=r"takes no class labels: build it with UNet2DModel"):
        DiffusionGenerator((1, 8, 8), unconditional)


def test_wrong_requests_are_refused() -> None:
    generator = tiny_generator()
    with pytest.raises(RuntimeError, match="seen no class yet: train it first"):
        generator.generate(2)
    generator.add_classes([0, 1])
    with pytest.raises(ValueError, match=r"classes \[7\] that the generator has not seen"):
        generator.generate(1, 7)
    with pytest.raises(ValueError, match="batch_size is 3, but condition has 2 labels"):
        generator.generate(3, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        generator.generate(0)
    with pytest.raises(ValueError, match="must not be negative"):
        generator.add_classes([-2])
    with pytest.raises(ValueError, match="Each channel needs low < high"):
        generator.pixel_range.set(torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="pixels range from 0 to 0"):
        extremes(torch.zeros(3, 1, 4, 4))
    with pytest.raises(ValueError, match="The first experience is empty"):
        extremes([])


def test_weights_in_half_precision_generate(rng: torch.Generator) -> None:
    precise = tiny_generator(classes=(0, 1))
    coarse = copy.deepcopy(precise)
    coarse.network.to(torch.bfloat16)
    expected = precise.generate(4, rng=torch.Generator().manual_seed(0))
    images = coarse.generate(4, rng=torch.Generator().manual_seed(0))
    assert images.dtype == expected.dtype
    torch.testing.assert_close(images, expected, atol=0.1, rtol=0.1)


def test_the_default_network_is_small() -> None:
    for image_shape in [(1, 8, 8), (1, 28, 28), (3, 64, 64)]:
        network = default_network(image_shape)
        assert sum(parameter.numel() for parameter in network.parameters()) < 2e6
    assert tiny_network().config.num_class_embeds == 1
