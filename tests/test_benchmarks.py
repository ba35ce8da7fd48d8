"""Benchmarks load real images, in the order that was asked for, and refuse what is not theirs."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from tiny import naive, tiny_plugin
from torchvision.transforms.functional import to_pil_image

from avalanche_magd import benchmarks
from avalanche_magd.benchmarks import split_digits, split_fashion_mnist, split_image_folder


def classes_by_experience(benchmark: Any) -> list[set[int]]:
    return [set(exp.classes_in_this_experience) for exp in benchmark.train_stream]


def test_digits_are_all_there_and_split_by_class() -> None:
    benchmark = split_digits(5, seed=1)
    streams = (benchmark.train_stream, benchmark.test_stream)
    assert [sum(len(exp.dataset) for exp in stream) for stream in streams] == [1347, 450]
    images = torch.stack([image for image, *_ in benchmark.train_stream[0].dataset])
    assert images.shape[1:] == (1, 8, 8)
    assert (images.min(), images.max()) == (0, 1)
    assert all(len(classes) == 2 for classes in classes_by_experience(benchmark))
    assert set().union(*classes_by_experience(benchmark)) == set(range(10))


def test_class_order_follows_seed_or_argument() -> None:
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
    tasks = [exp.task_label for exp in split_digits(5, return_task_id=True).train_stream]
    assert tasks == [0, 1, 2, 3, 4]


def write_idx(file: Path, values: np.ndarray[Any, Any], packed: bool) -> bytes:
    content = struct.pack(">BBBB", 0, 0, 8, values.ndim)
    content += struct.pack(f">{values.ndim}i", *values.shape) + values.astype(np.uint8).tobytes()
    if packed:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(content))
    else:
        file.write_bytes(content)
    return content


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_and_checked(tmp_path: Path, packed: bool) -> None:
    import hashlib

    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    content = write_idx(tmp_path / "images", values, packed)
    digest = hashlib.sha256(content).hexdigest()
    images = benchmarks._read_idx(tmp_path, "images", digest)
    assert images.shape == (2, 1, 3, 4)
    assert images.flatten().tolist() == list(range(24))
    with pytest.raises(ValueError, match=r"images in .* is damaged or not Fashion-MNIST's"):
        benchmarks._read_idx(tmp_path, "images", "0" * 64)


def test_fashion_mnist_elsewhere_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds neither train-images-idx3-ubyte nor"):
        split_fashion_mnist(root=tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((1, 28, 28)), packed=False)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte in .* is damaged"):
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


def test_magd_replays_colour_images(photographs: Path) -> None:
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


def test_other_layouts_are_refused(photographs: Path, tmp_path: Path) -> None:
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
