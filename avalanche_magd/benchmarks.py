"""Class-incremental benchmarks: one without a download, Fashion-MNIST, any folder of images.

Each returns what Avalanche's own ``Split…`` constructors return, by its ``nc_benchmark``, and
takes the same arguments: ``n_experiences``, ``seed``, ``fixed_class_order``, ``return_task_id``
and transforms.
"""

import gzip
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import nc_benchmark
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets, transforms

from avalanche_magd.arguments import check_count

FASHION_MNIST_FILES = {
    # SHA-256 of the decompressed files: packagers compress them anew.
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

Transform = Callable[[Any], Any]


def split_digits(
    n_experiences: int = 5,
    *,
    return_task_id: bool = False,
    seed: int | None = None,
    fixed_class_order: Sequence[int] | None = None,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
) -> Any:
    """Handwritten digits, 1 × 8 × 8, ten classes; comes with scikit-learn, needs no download.

    1,347 training and 450 test images, the same for every seed; values in [0, 1].

    Args:
        n_experiences: a divisor of ten.
        return_task_id: give each experience a task label of its own.
        seed: of the class order; without it and ``fixed_class_order`` the order is random.
        fixed_class_order: the class order, instead of a random one.
        train_transform: applied to training images.
        eval_transform: applied to test images, and to training images in evaluation.

    Returns:
        An Avalanche benchmark with ``train_stream`` and ``test_stream``.
    """
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    split = train_test_split(
        np.arange(len(labels)), test_size=450, random_state=0, stratify=labels
    )
    train, test = (torch.from_numpy(rows) for rows in split)
    return nc_benchmark(
        _LabelledImages(images[train], labels[train]),
        _LabelledImages(images[test], labels[test]),
        n_experiences,
        task_labels=return_task_id,
        seed=seed,
        fixed_class_order=fixed_class_order,
        train_transform=train_transform,
        eval_transform=eval_transform,
    )


def split_fashion_mnist(
    n_experiences: int = 5,
    *,
    root: str | Path | None = None,
    images_per_class: int | None = None,
    return_task_id: bool = False,
    seed: int | None = None,
    fixed_class_order: Sequence[int] | None = None,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
) -> Any:
    """Fashion-MNIST, 1 × 28 × 28, ten classes, 6,000 training and 1,000 test images of each.

    Values are in [0, 1]. The files are looked for in ``root`` (the four IDX files, compressed by
    gzip or not), then where Debian's package ``dataset-fashion-mnist`` puts them, and are then
    downloaded by torchvision into ``~/.avalanche/data``.

    Args:
        n_experiences: a divisor of ten.
        root: folder that holds the files.
        images_per_class: training images to keep of each class, the first ones. Default: all.
        return_task_id: give each experience a task label of its own.
        seed: of the class order; without it and ``fixed_class_order`` the order is random.
        fixed_class_order: the class order, instead of a random one.
        train_transform: applied to training images.
        eval_transform: applied to test images, and to training images in evaluation.

    Returns:
        An Avalanche benchmark with ``train_stream`` and ``test_stream``.

    Raises:
        FileNotFoundError: the files are nowhere and could not be downloaded, or not in ``root``.
        ValueError: a file is not Fashion-MNIST's.
    """
    train_images, train_labels, test_images, test_labels = _fashion_mnist(root)
    if images_per_class is not None:
        check_count("images_per_class", images_per_class)
        rows = [(train_labels == label).nonzero()[:images_per_class, 0] for label in range(10)]
        kept = torch.cat(rows).sort().values
        train_images, train_labels = train_images[kept], train_labels[kept]
    return nc_benchmark(
        _LabelledImages(train_images, train_labels),
        _LabelledImages(test_images, test_labels),
        n_experiences,
        task_labels=return_task_id,
        seed=seed,
        fixed_class_order=fixed_class_order,
        train_transform=train_transform,
        eval_transform=eval_transform,
    )


def split_image_folder(
    root: str | Path,
    n_experiences: int,
    *,
    image_size: int,
    return_task_id: bool = False,
    seed: int | None = None,
    fixed_class_order: Sequence[int] | None = None,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
) -> Any:
    """Any images in the layout ``root/{train,test}/<class>/<image>``, read as they are needed.

    Args:
        root: the folder.
        n_experiences: a divisor of the number of classes.
        image_size: side in pixels; images are resized and cropped at the centre to a square.
        return_task_id: give each experience a task label of its own.
        seed: of the class order; without it and ``fixed_class_order`` the order is random.
        fixed_class_order: the class order, instead of a random one.
        train_transform: from an RGB PIL image to a tensor. Default: resize, crop, ``ToTensor``.
        eval_transform: likewise, for test images and for training images in evaluation.

    Returns:
        An Avalanche benchmark with ``train_stream`` and ``test_stream``.

    Raises:
        FileNotFoundError: the layout is another.
        ValueError: the two streams have different classes.
    """
    root = Path(root)
    check_count("image_size", image_size, at_least=4)
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise FileNotFoundError(
                f"{root / part} is not a folder: expected {root}/{{train,test}}/<class>/<image>."
            )
    to_tensor = transforms.Compose(
        [
            transforms.Resize(image_size, antialias=True),
            transforms.CenterCrop(image_size),
            transforms.ToTensor(),
        ]
    )
    train, test = (datasets.ImageFolder(str(root / part)) for part in ("train", "test"))
    if train.classes != test.classes:
        raise ValueError(
            f"{root}/train and {root}/test have different classes: "
            f"{train.classes}, {test.classes}."
        )
    return nc_benchmark(
        train,
        test,
        n_experiences,
        task_labels=return_task_id,
        seed=seed,
        fixed_class_order=fixed_class_order,
        train_transform=train_transform or to_tensor,
        eval_transform=eval_transform or to_tensor,
    )


class _LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images in memory, with the ``targets`` that Avalanche looks for."""

    def __init__(self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]) -> None:
        self.images = images
        self.targets: list[int] = labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.images[row], self.targets[row]


def _fashion_mnist(root: str | Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, their labels, test images, their labels."""
    folder = DEBIAN_FASHION_MNIST if root is None else Path(root)
    if root is None and not folder.is_dir():
        downloads = Path.home() / ".avalanche" / "data"
        try:
            datasets.FashionMNIST(str(downloads), download=True)
        except (RuntimeError, OSError) as error:
            raise FileNotFoundError(
                "Fashion-MNIST is not on this machine and could not be downloaded. Install "
                "Debian's package dataset-fashion-mnist, or put the four IDX files into a folder "
                "and name it as root."
            ) from error
        folder = downloads / "FashionMNIST" / "raw"
    parts = [_read_idx(folder, name, digest) for name, digest in FASHION_MNIST_FILES.items()]
    train_images, train_labels, test_images, test_labels = parts
    return train_images / 255, train_labels.long(), test_images / 255, test_labels.long()


def _read_idx(folder: Path, name: str, digest: str) -> Tensor:
    """An IDX file of unsigned bytes as a tensor; images get a channel dimension."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.is_file():
        content = plain.read_bytes()
    elif packed.is_file():
        content = gzip.decompress(packed.read_bytes())
    else:
        raise FileNotFoundError(f"{folder} holds neither {name} nor {name}.gz.")
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{name} in {folder} is damaged or not Fashion-MNIST's: fetch it again.")
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4).tolist()
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    tensor = torch.from_numpy(values.copy())
    return tensor if dimensions == 1 else tensor[:, None]
