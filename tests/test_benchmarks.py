"""Benchmarks load real images, in the order that was asked for, and refuse what is not theirs."""

import gzip
import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from tiny import naive, tiny_plugin
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from avalanche_magd import benchmarks
from avalanche_magd.benchmarks import split_digits, split_fashion_mnist, split_image_folder


def classes_by_experience(benchmark: Any) -> list[set[int]]:
    return [set(exp.classes_in_this_experience) for exp in benchmark.train_stream]


def test_every_digit_is_in_one_experience() -> None:
    benchmark = split_digits(5, seed=1)
    streams = (benchmark.train_stream, benchmark.test_stream)
    assert [sum(len(exp.dataset) for exp in stream) for stream in streams] == [1347, 450]
    images = torch.stack([image for image, *_ in benchmark.train_stream[0].dataset])
    assert images.shape[1:] == (1, 8, 8)
    assert (images.min(), images.max()) == (0, 1)
    assert all(len(classes) == 2 for classes in classes_by_experience(benchmark))
    assert set().union(*classes_by_experience(benchmark)) == set(range(10))


def test_the_class_order_follows_the_seed_or_the_fixed_order() -> None:
    assert classes_by_experience(split_digits(5, seed=1)) == classes_by_experience(
        split_digits(5, seed=1)
    )
    assert classes_by_experience(split_digits(5, seed=1)) != classes_by_experience(
        split_digits(5, seed=2)
    )
    order = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert classes_by_experience(split_digits(2, fixed_class_order=order)) == [
        {9, 8, 7, 6, 5},
        {4, 3, 2, 1, 0},
    ]


def test_each_experience_has_a_task_label_if_asked_for() -> None:
    tasks = [exp.task_label for exp in split_digits(5, return_task_id=True).train_stream]
    assert tasks == [0, 1, 2, 3, 4]


def test_what_avalanche_takes_beyond_the_documented_arguments_is_passed_on() -> None:
    def twice(image: Tensor) -> Tensor:
        return 2 * image

    options = {"seed": 0, "train_transform": twice, "class_ids_from_zero_from_first_exp": True}
    first, *_ = split_digits(5, **options).train_stream
    assert set(first.classes_in_this_experience) == {0, 1}
    assert max(image.max() for image, *_ in first.dataset) == 2
    assert max(image.max() for image, *_ in first.dataset.eval()) == 1
    with pytest.raises(TypeError, match="unexpected keyword argument 'sead'"):
        split_digits(5, sead=0)


def write_idx(file: Path, values: np.ndarray[Any, Any], packed: bool = False) -> str:
    """Write unsigned bytes as an IDX file; gives the digest of the plain content."""
    content = struct.pack(">BBBB", 0, 0, 8, values.ndim)
    content += struct.pack(f">{values.ndim}i", *values.shape) + values.astype(np.uint8).tobytes()
    if packed:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(content))
    else:
        file.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_whether_compressed_or_not(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.arange(10 * 3 * 4).reshape(10, 3, 4)
    for name in benchmarks.FASHION_MNIST_FILES:
        values = images if "images" in name else np.arange(10)
        digest = write_idx(tmp_path / name, values, packed)
        monkeypatch.setitem(benchmarks.FASHION_MNIST_FILES, name, digest)
    benchmark = split_fashion_mnist(2, root=tmp_path, fixed_class_order=range(10), shuffle=False)
    for stream in (benchmark.train_stream, benchmark.test_stream):
        samples = [sample for experience in stream for sample in experience.dataset]
        assert [label for _, label, *_ in samples] == list(range(10))
        read = torch.stack([image for image, *_ in samples])
        assert read.shape == (10, 1, 3, 4)
        torch.testing.assert_close(read.flatten(), torch.arange(120) / 255, rtol=0, atol=1e-7)


def test_a_folder_without_fashion_mnist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds neither train-images-idx3-ubyte nor"):
        split_fashion_mnist(root=tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_file_is_refused(tmp_path: Path, packed: bool) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((1, 28, 28)), packed)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte in .* is damaged or not"):
        split_fashion_mnist(root=tmp_path)


@pytest.mark.skipif(
    not benchmarks.DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_is_genuine() -> None:
    benchmark = split_fashion_mnist(5, images_per_class=100, seed=0)
    experience = benchmark.train_stream[0]
    assert len(experience.dataset) == 200
    assert sum(len(exp.dataset) for exp in benchmark.test_stream) == 10_000
    test_images = torch.stack([image for image, *_ in benchmark.test_stream[0].dataset])
    assert test_images.shape == (2000, 1, 28, 28)
    assert (test_images.min(), test_images.max()) == (0, 1)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of two colour photographs: sky, roof, petals, leaves."""
    root = tmp_path_factory.mktemp("photographs")
    china, flower = (torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images)
    corners = {"sky": (china, 0, 0), "roof": (china, 160, 200)}
    corners |= {"petals": (flower, 150, 250), "leaves": (flower, 0, 0)}
    for part, count in (("train", 12), ("test", 4)):
        for name, (photo, top, left) in corners.items():
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                x = left + 6 * index + (3 if part == "test" else 0)
                to_pil_image(photo[:, top : top + 40, x : x + 48]).save(folder / f"{index}.png")
    return root


def test_an_image_folder_is_resized_to_squares_in_colour(photographs: Path) -> None:
    benchmark = split_image_folder(photographs, 2, image_size=32, seed=0)
    image, label, _ = benchmark.train_stream[0].dataset[0]
    assert image.shape == (3, 32, 32)
    assert 0 <= image.min() < image.max() <= 1
    assert label in benchmark.train_stream[0].classes_in_this_experience
    assert [len(exp.dataset) for exp in benchmark.train_stream] == [24, 24]
    assert [len(exp.dataset) for exp in benchmark.test_stream] == [8, 8]


def test_generated_colour_images_have_the_mean_colour_of_real_ones(photographs: Path) -> None:
    benchmark = split_image_folder(photographs, 2, image_size=32, seed=0)
    plugin = tiny_plugin(generator_iterations=120, num_inference_steps=5)
    strategy = naive([plugin], input_size=3 * 32 * 32)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert plugin.generator is not None
    images = plugin.generator.generate(8)
    assert images.shape == (8, 3, 32, 32)
    assert -1e-4 <= images.min() < images.max() <= 1 + 1e-4
    samples = [sample for exp in benchmark.train_stream for sample in exp.dataset]
    real = torch.stack([image for image, *_ in samples]).mean((0, 2, 3))
    generated = plugin.generator.generate(64).mean((0, 2, 3))
    # Red is not blue, neither in the photographs nor in what was generated from them.
    assert (real[0] - real[2]).abs() > 0.05
    torch.testing.assert_close(generated, real, atol=0.15, rtol=0)


def test_folders_of_another_layout_are_refused(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train is not a folder: expected .*<class>"):
        split_image_folder(tmp_path, 2, image_size=32)
    (tmp_path / "train").symlink_to(photographs / "train")
    for name in ("sky", "sea"):
        (tmp_path / "test" / name).mkdir(parents=True)
        to_pil_image(torch.rand(3, 8, 8)).save(tmp_path / "test" / name / "0.png")
    with pytest.raises(ValueError, match="have different classes"):
        split_image_folder(tmp_path, 2, image_size=32)
    with pytest.raises(ValueError, match="image_size must be at least 4"):
        split_image_folder(photographs, 2, image_size=1)
