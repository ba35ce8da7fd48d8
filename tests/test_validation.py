"""Arguments and data that cannot be used are refused with an error that says why."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import make_avalanche_dataset
from tiny import tiny_generator, tiny_network, tiny_training
from torch.utils.data import TensorDataset

from avalanche_magd import DiffusionGenerator, MAGDPlugin, MAGDTraining
from avalanche_magd.diffusion.samplers import DDIM
from avalanche_magd.distillation import CGGD, MAGD, Distillation
from avalanche_magd.replay import MiniBatches
from avalanche_magd.runtime.validation import (
    check_choice,
    check_count,
    check_dataset,
    check_flag,
    check_folder,
    check_minibatch,
    check_number,
    check_path,
    check_sample,
    check_seed,
    check_share,
)

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
        ((IMAGE.byte(), 1), TypeError, "got a torch.uint8 tensor: .*ConvertImageDtype"),
        ((IMAGE.numpy(), 1), TypeError, "got a ndarray: .* torch.as_tensor"),
        ((torch.zeros(8, 8, 3), 1), ValueError, r"last: add x.permute\(2, 0, 1\)"),
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
        ([IMAGE, "label"], TypeError, "lists of tensors .* got a list of Tensor, str: use"),
        ([{"x": IMAGE}, IMAGE], TypeError, "lists of tensors .* got a list of dict, Tensor: use"),
        ([IMAGE] * 4, ValueError, "two or three columns, got 4"),
    ],
)
def test_mini_batches_that_replay_cannot_join_are_refused(
    mbatch: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_minibatch(mbatch)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)])
def test_whole_numbers_of_numpy_and_torch_come_back_as_pythons(value: Any) -> None:
    for number in (check_count("n", value), check_seed("n", value)):
        assert type(number) is int
        assert number == 3


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), torch.tensor(0.5)])
def test_real_numbers_of_numpy_and_torch_come_back_as_pythons(value: Any) -> None:
    for number in (check_number("n", value, at_least=0), check_share("n", value, excluded=1)):
        assert type(number) is float
        assert number == 0.5


def test_what_passes_keeps_its_kind() -> None:
    assert type(check_number("n", 2, at_least=0)) is int
    assert check_flag("n", np.bool_(True)) is True
    assert check_seed("n", None) is check_path("n", None) is None
    path = check_path("n", "here")
    assert path is not None
    assert path.is_absolute()


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (lambda: check_count("n", True), TypeError, "n must be an integer, got True"),
        (lambda: check_count("n", np.bool_(True)), TypeError, "n must be an integer"),
        (lambda: check_count("n", torch.tensor(True)), TypeError, "n must be an integer"),
        (lambda: check_count("n", 3.0), TypeError, "n must be an integer, got 3.0"),
        (lambda: check_count("n", "3"), TypeError, "n must be an integer, got '3'"),
        (lambda: check_count("n", 0), ValueError, "n must be at least 1, got 0"),
        (lambda: check_seed("n", 2**64), ValueError, "n must be from"),
        (lambda: check_seed("n", 0.5), TypeError, "n must be an integer"),
        (lambda: check_number("n", "1", at_least=0), TypeError, "n must be a number, got '1'"),
        (lambda: check_number("n", None, at_least=0), TypeError, "n must be a number, got None"),
        (lambda: check_number("n", [1.0], at_least=0), TypeError, "n must be a number"),
        (lambda: check_number("n", float("nan"), at_least=0), ValueError, "got nan"),
        (lambda: check_share("n", True, excluded=0), TypeError, "n must be a number, got True"),
        (lambda: check_flag("n", 1), TypeError, "n must be True or False, got 1"),
        (lambda: check_choice("n", None, ("a", "b")), TypeError, "one of a, b; got None"),
        (lambda: check_choice("n", "c", ("a", "b")), ValueError, "one of a, b; got 'c'"),
        (lambda: check_path("n", 3), TypeError, "n must be a path, got 3"),
    ],
)
def test_values_of_another_kind_are_refused_by_name(
    check: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check()


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: MAGDPlugin(seed="0"), "seed"),  # type: ignore[arg-type]
        (lambda: MAGDPlugin(checkpoint_folder=3), "checkpoint_folder"),  # type: ignore[arg-type]
        (lambda: MAGDPlugin(mini_batches=MiniBatches(soft_label_weight="1")), "soft_label_weight"),  # type: ignore[arg-type]
        (lambda: MAGDPlugin(mini_batches=MiniBatches(augmentation="flip")), "augmentation"),  # type: ignore[arg-type]
        (lambda: MAGDPlugin(generator_strategy=3), "generator_strategy"),  # type: ignore[arg-type]
        (lambda: Distillation(mode="magd"), "mode"),  # type: ignore[arg-type]
        (lambda: Distillation(mode=MAGD), "mode"),  # type: ignore[arg-type]
        (lambda: Distillation(guidance=3), "guidance"),  # type: ignore[arg-type]
        (lambda: Distillation(on_the_fly="no"), "on_the_fly"),  # type: ignore[arg-type]
        (lambda: CGGD(guidance_scale="3"), "guidance_scale"),  # type: ignore[arg-type]
        (lambda: MAGD(trajectory_share="all"), "trajectory_share"),  # type: ignore[arg-type]
        (lambda: DDIM(eta="0"), "eta"),  # type: ignore[arg-type]
        (lambda: tiny_generator(dtype="bfloat16"), "dtype"),
    ],
)
def test_settings_of_another_kind_are_refused_where_they_are_given(build: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be"):
        build()


def test_a_checkpoint_folder_that_cannot_be_is_refused_where_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for build in (MAGDPlugin, tiny_training):
        with pytest.raises(OSError, match=r"checkpoint_folder=.* cannot be written: see .*file"):
            build(checkpoint_folder=tmp_path / "file" / "below")
    assert check_folder("n", tmp_path / "not" / "yet") == tmp_path / "not" / "yet"
    assert not (tmp_path / "not").exists()


def test_settings_are_kept_as_pythons_numbers() -> None:
    plugin = MAGDPlugin(
        seed=np.int64(3),  # type: ignore[arg-type]
        generator_iterations=np.int64(3),  # type: ignore[arg-type]
        pool_size=torch.tensor(20),  # type: ignore[arg-type]
        mini_batches=MiniBatches(
            size=np.int64(64),  # type: ignore[arg-type]
            generated_share=np.float32(0.25),  # type: ignore[arg-type]
            soft_label_weight=np.float64(1),
        ),
    )
    rows = plugin.mini_batches
    generator = DiffusionGenerator((1, 8, 8), tiny_network(), num_inference_steps=np.int64(7))  # type: ignore[arg-type]
    training = MAGDTraining(
        model=generator,
        optimizer=torch.optim.AdamW(generator.parameters()),
        train_iterations=np.int32(3),  # type: ignore[arg-type]
        ema_decay=np.float64(0.5),
        seed=np.int64(3),  # type: ignore[arg-type]
    )
    values = [
        *(plugin.seed, plugin.generator_iterations, plugin.distillation.pool_size),
        *(rows.size, rows.generated_share, rows.soft_label_weight),
        *(generator.num_inference_steps, training.train_iterations, training.ema_decay),
    ]
    assert values == [3, 3, 20, 64, 0.25, 1.0, 7, 3, 0.5]
    assert [type(value) for value in values] == [*(int,) * 4, float, float, int, int, float]
