"""Class-incremental benchmarks: one without a download, Fashion-MNIST, any folder of images.

Each returns what Avalanche's own ``Split…`` constructors return, with ``train_stream`` and
``test_stream``, by its ``nc_benchmark``. What they share:

* ``n_experiences``: a divisor of the number of classes;
* ``return_task_id``: give each experience a task label of its own;
* ``**benchmark_kwargs``: passed to ``nc_benchmark``: ``seed`` of the class order, or
  ``fixed_class_order``, without which the order is random; ``train_transform``, applied to
  training images; ``eval_transform``, applied to test images, and to training images in
  evaluation; and what else it takes.
"""

import gzip
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import nc_benchmark
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets, transforms
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

from avalanche_magd.runtime.validation import check_count

FASHION_MNIST_FILES = {
    # SHA-256 of the decompressed files: packagers compress them anew.
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
WHITE_IS_ZERO = 0
"""A value of TIFF's photometric interpretation, which Pillow leaves to us above 8 bits."""
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def split_digits(
    n_experiences: int = 5, *, return_task_id: bool = False, **benchmark_kwargs: Any
) -> Any:
    """Handwritten digits, 1 × 8 × 8, ten classes; comes with scikit-learn, needs no download.

    1,347 training and 450 test images, the same for every seed; values in [0, 1]. For the
    arguments see :mod:`avalanche_magd.benchmarks`.
    """
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    rows = train_test_split(np.arange(len(labels)), test_size=450, random_state=0, stratify=labels)
    train, test = (_LabelledImages(images[each], labels[each]) for each in rows)
    return nc_benchmark(train, test, n_experiences, return_task_id, **benchmark_kwargs)


def split_fashion_mnist(
    n_experiences: int = 5,
    *,
    root: str | Path | None = None,
    images_per_class: int | None = None,
    return_task_id: bool = False,
    **benchmark_kwargs: Any,
) -> Any:
    """Fashion-MNIST, 1 × 28 × 28, ten classes, 6,000 training and 1,000 test images of each.

    Values are in [0, 1]. The files are looked for in ``root`` (the four IDX files, compressed by
    gzip or not), then where Debian's package ``dataset-fashion-mnist`` puts them, and are then
    downloaded by torchvision into ``~/.avalanche/data``.

    Args:
        n_experiences: see :mod:`avalanche_magd.benchmarks`, as for ``return_task_id``.
        root: folder that holds the files.
        images_per_class: training images to keep of each class, the first ones. Default: all.
        return_task_id: whether experiences have task labels.
        **benchmark_kwargs: of Avalanche's ``nc_benchmark``.

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
    train = _LabelledImages(train_images, train_labels)
    test = _LabelledImages(test_images, test_labels)
    return nc_benchmark(train, test, n_experiences, return_task_id, **benchmark_kwargs)


def split_image_folder(
    root: str | Path,
    n_experiences: int,
    *,
    image_size: int,
    return_task_id: bool = False,
    **benchmark_kwargs: Any,
) -> Any:
    """Any images in the layout ``root/{train,test}/<class>/<image>``, read as they are needed.

    Images become RGB of 8 bits, as a viewer shows them: grey images of more bits are scaled by
    the largest value that their file can hold, those of floating-point numbers from [0, 1];
    what is transparent stands on white. One image of each class is read at once.

    Args:
        root: the folder.
        n_experiences: see :mod:`avalanche_magd.benchmarks`, as for ``return_task_id``.
        image_size: side in pixels; images are resized and cropped at the centre to a square.
        return_task_id: whether experiences have task labels.
        **benchmark_kwargs: of Avalanche's ``nc_benchmark``; transforms are given RGB PIL images,
            and give tensors. Default of both: resize, crop, ``ToTensor``.

    Raises:
        FileNotFoundError: the layout is another.
        ValueError: the two streams have different classes, or the range of an image's values is
            not known, as with integers of 32 bits; also when such an image is met later.
    """
    root = Path(root)
    check_count("image_size", image_size, at_least=4)
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise FileNotFoundError(
                f"{root / part} is not a folder: expected {root}/{{train,test}}/<class>/<image>."
            )
    square = [transforms.Resize(image_size, antialias=True), transforms.CenterCrop(image_size)]
    to_tensor = transforms.Compose([*square, transforms.ToTensor()])
    train, test = (
        datasets.ImageFolder(str(root / part), loader=_read_image) for part in ("train", "test")
    )
    for dataset in (train, test):
        for row in np.unique(dataset.targets, return_index=True)[1]:
            dataset[row]
    if train.classes != test.classes:
        raise ValueError(
            f"train and test in {root} have different classes: {train.classes}, {test.classes}."
        )
    for transform in ("train_transform", "eval_transform"):
        benchmark_kwargs[transform] = benchmark_kwargs.get(transform) or to_tensor
    return nc_benchmark(train, test, n_experiences, return_task_id, **benchmark_kwargs)


class _LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images in memory, with the ``targets`` that Avalanche looks for."""

    def __init__(self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]) -> None:
        self.images = images
        self.targets: list[int] = labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.images[row], self.targets[row]


def _read_image(path: str | Path) -> Image.Image:
    """An image file as RGB, transparent parts on white."""
    with open(path, "rb") as stream, Image.open(stream) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return Image.fromarray(_grey_bytes(image, path)).convert("RGB")
        if not image.has_transparency_data:
            return image.convert("RGB")
        shown = image.convert("RGBA")
    white = Image.new("RGBA", shown.size, "white")
    return Image.alpha_composite(white, shown).convert("RGB")


def _grey_bytes(image: Image.Image, path: str | Path) -> NDArray[np.uint8]:
    """Grey values that Pillow gives as they are in the file, as bytes.

    Raises:
        ValueError: their range is not known.
    """
    tags: Any = getattr(image, "tag_v2", {})  # of TIFF files
    values = np.array(image)
    if image.mode == "F" and values.min() >= 0 and values.max() <= 1:
        highest = 1
    elif image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        highest = 2 ** tags.get(BITSPERSAMPLE, (16,))[0] - 1
    else:
        raise ValueError(
            f"{path} has grey values from {values.min():g} to {values.max():g}, in Pillow's mode "
            f"{image.mode}: which of them is white is not known. Save it with unsigned integers "
            "of 8 or 16 bits, or with floating-point numbers in [0, 1]."
        )
    scaled = (values / highest * 255).round()
    if tags.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
        scaled = 255 - scaled
    scaled[values == image.info.get("transparency", np.nan)] = 255
    return scaled.astype(np.uint8)


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
    """An IDX file, compressed by gzip or not, as a tensor; images get a channel dimension."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.is_file():
        content = plain.read_bytes()
    elif packed.is_file():
        content = gzip.decompress(packed.read_bytes())
    else:
        raise FileNotFoundError(f"{folder} holds neither {name} nor {name}.gz.")
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{name} in {folder} is damaged or not Fashion-MNIST's: fetch it again.")
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / name
        file.write_bytes(content)
        tensor: Tensor = read_sn3_pascalvincent_tensor(str(file))
    return tensor if tensor.ndim == 1 else tensor[:, None]
