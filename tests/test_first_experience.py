"""The first experience is the one of a run without the plugin, bit by bit, whatever the data are.

So are the random states after it, and with them all that comes later.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    class_incremental_benchmark,
    task_incremental_benchmark,
)
from avalanche.benchmarks.scenarios.deprecated.generators import create_lazy_generic_benchmark
from avalanche.benchmarks.scenarios.deprecated.generic_benchmark_creation import (
    LazyStreamDefinition,
)
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    DataAttribute,
    as_classification_dataset,
)
from avalanche.models import SimpleMLP, as_multitask
from avalanche.training import Naive
from diffusers import AutoencoderTiny
from PIL import Image
from tiny import Anew, tiny_generator, tiny_network, tiny_plugin, tiny_training
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms

from avalanche_magd import DiffusionGenerator, MAGDPlugin
from avalanche_magd.benchmarks import split_digits, split_image_folder
from avalanche_magd.distillation import Distillation
from avalanche_magd.replay import MiniBatches

DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand(())),
    "NumPy": lambda: float(np.random.rand()),  # noqa: NPY002
    "Python": random.random,
}
COUNT = 40
LABELS = torch.arange(COUNT) % 2


def images(*shape: int) -> Tensor:
    return torch.rand(COUNT, *shape, generator=torch.Generator().manual_seed(0))


def darker(image: Tensor) -> Tensor:
    """Augmentation that draws from every source."""
    for draw in DRAWS.values():
        image = image * (0.7 + 0.3 * draw())
    return image


class Augmented(Dataset[Any]):
    """A dataset with a transform inside, as torchvision's have it, and ``targets``."""

    def __init__(self, samples: Any, transform: Any, targets: Any = LABELS) -> None:
        self.samples, self.transform, self.targets = samples, transform, targets

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.transform(self.samples[row]), self.targets[row]


def plain(value: Any) -> Any:
    return value


def first_of(dataset: Any) -> list[Any]:
    return [benchmark_from_datasets(train=[dataset]).streams["train"][0]]


def tensors(
    x: Tensor | None = None, targets: Any = LABELS, known: Any = None, **kwargs: Any
) -> list[Any]:
    """An experience of tensors; ``targets`` are in the samples, ``known`` in the attribute."""
    dataset = Augmented(images(1, 8, 8) if x is None else x, plain, targets)
    known = LABELS.tolist() if known is None else known
    attributes = [DataAttribute(known, "targets")]
    return first_of(AvalancheDataset([dataset], data_attributes=attributes, **kwargs))


def digits(**kwargs: Any) -> list[Any]:
    return [split_digits(5, seed=0, **kwargs).train_stream[0]]


def pictures(folder: Path) -> None:
    """Files of grey and of coloured pictures, of two sizes."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(4):
            (folder / part / str(label)).mkdir(parents=True)
            for row in range(10):
                shape = (12, 10 + row % 2, 3) if row % 3 else (12, 10)
                picture = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
                picture.save(folder / part / str(label) / f"{row}.png")


AUGMENTATION = transforms.Compose(
    [transforms.RandomCrop(8, padding=2), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
)


def image_folder(folder: Path, **kwargs: Any) -> list[Any]:
    pictures(folder)
    return [split_image_folder(folder, 2, image_size=8, seed=0, **kwargs).train_stream[0]]


def stack(samples: list[Any]) -> list[Tensor]:
    """A collate function that draws: every row of a mini-batch is shifted by the same pixels."""
    shift = int(torch.randint(3, ())) + random.randrange(3) + np.random.randint(3)  # noqa: NPY002
    images, labels = zip(*samples, strict=True)
    return [torch.stack(images).roll(shift, dims=-1), torch.stack(labels)]


def two_columns() -> Any:
    dataset = as_classification_dataset(Augmented(images(1, 8, 8), darker))
    streams = {"train": dataset, "test": dataset}
    return class_incremental_benchmark(streams, num_experiences=1, seed=0)


def lazily_split() -> list[Any]:
    """An experience whose dataset is made when it is asked for, and split then."""
    dataset = as_classification_dataset(Augmented(images(1, 8, 8), darker))
    benchmark = create_lazy_generic_benchmark(
        train_generator=LazyStreamDefinition((each for each in [dataset]), 1, [0]),
        test_generator=LazyStreamDefinition((each for each in [dataset]), 1, [0]),
    )
    return [benchmark.train_stream[0]]


def online(**kwargs: Any) -> Iterable[Any]:
    """Parts of an experience, as they are asked for."""
    yield from split_online_stream(digits(train_transform=darker), 60, seed=0, **kwargs)


def with_generator() -> MAGDPlugin:
    with torch.random.fork_rng():  # a generator of the user's own draws its weights
        return MAGDPlugin(tiny_training(model=tiny_generator()))


def with_autoencoder() -> MAGDPlugin:
    with torch.random.fork_rng():
        coder = AutoencoderTiny(
            latent_channels=4,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
        generator = DiffusionGenerator((3, 16, 16), tiny_network(4), coder)
        return MAGDPlugin(tiny_training(model=generator))


@dataclass
class Kind:
    """Data, and how they are trained on."""

    experiences: Callable[..., Iterable[Any]]
    plugin: Callable[..., MAGDPlugin] = tiny_plugin
    options: dict[str, Any] = field(default_factory=dict)
    """Of ``strategy.train``."""
    pixels: int = 64
    multi_head: bool = False
    dtype: torch.dtype = torch.float32


KINDS: dict[str, Kind] = {
    "digits": Kind(digits),
    "tensors": Kind(tensors),
    "colour, not square": Kind(lambda: tensors(images(3, 8, 12)), pixels=288),
    "double precision": Kind(lambda: tensors(images(1, 8, 8).double()), dtype=torch.float64),
    "targets of NumPy": Kind(lambda: tensors(targets=LABELS.numpy(), known=LABELS.numpy())),
    "targets of torch": Kind(lambda: tensors(known=LABELS)),
    "two columns": Kind(lambda: [two_columns().streams["train"][0]]),
    "torchvision's pictures": Kind(
        lambda: first_of(
            as_classification_dataset(
                Augmented(
                    [Image.fromarray((255 * each).byte().numpy()) for each in images(12, 12)],
                    AUGMENTATION,
                )
            )
        )
    ),
    **{
        f"transform inside that draws from {name}": Kind(
            lambda draw=draw: first_of(
                as_classification_dataset(
                    Augmented(images(1, 8, 8), lambda each: each * (0.5 + draw()))
                )
            )
        )
        for name, draw in DRAWS.items()
    },
    **{
        f"transforms of a benchmark that draw from {name}": Kind(
            lambda draw=draw: digits(
                train_transform=lambda each: each * (0.5 + draw()),
                eval_transform=lambda each: each * (0.5 + draw()),
            )
        )
        for name, draw in DRAWS.items()
    },
    "augmentation in training only": Kind(lambda: digits(train_transform=darker)),
    "image folder": Kind(image_folder, pixels=192),
    "image folder, augmented": Kind(
        lambda folder: image_folder(folder, train_transform=AUGMENTATION), pixels=192
    ),
    "made anew each time": Kind(lambda: [Anew(digits(train_transform=darker)[0])]),
    "split lazily": Kind(lazily_split),
    "online": Kind(online),
    "online, with boundaries": Kind(lambda: online(access_task_boundaries=True)),
    "task labels": Kind(lambda: digits(return_task_id=True), multi_head=True),
    "task-incremental": Kind(
        lambda: [task_incremental_benchmark(two_columns()).streams["train"][0]]
    ),
    "collate function": Kind(lambda: tensors(collate_fn=stack)),
    "two workers": Kind(lambda: digits(train_transform=darker), options={"num_workers": 2}),
    "not shuffled": Kind(lambda: digits(train_transform=darker), options={"shuffle": False}),
    "last mini-batch left out": Kind(digits, options={"drop_last": True}),
    "an autoencoder's latents": Kind(
        lambda: tensors(images(3, 16, 16)), with_autoencoder, pixels=768
    ),
    "a given generator": Kind(digits, with_generator),
    "soft labels": Kind(
        digits, lambda: tiny_plugin(mini_batches=MiniBatches(soft_label_weight=1.0))
    ),
    "no replay": Kind(digits, lambda: tiny_plugin(mini_batches=MiniBatches(replay_size=0))),
    "no generated rows of current classes": Kind(
        digits, lambda: tiny_plugin(mini_batches=MiniBatches(generated_share=0))
    ),
    "seed of torch": Kind(digits, lambda: tiny_plugin(seed=None)),
    "lessons on the fly": Kind(
        digits,
        lambda: tiny_plugin(
            distillation=Distillation(on_the_fly=True), pool_size=None, num_inference_steps=None
        ),
    ),
    "checkpoint folder": Kind(
        lambda folder: digits(train_transform=darker),
        lambda folder: tiny_plugin(checkpoint_folder=folder),
    ),
}


def solver(kind: Kind) -> Any:
    model = SimpleMLP(num_classes=10, input_size=kind.pixels, hidden_size=16)
    if kind.multi_head:
        model = as_multitask(model, "classifier")
    return model.to(kind.dtype)


def call(function: Callable[..., Any], folder: Path) -> Any:
    return function(folder) if "folder" in function.__code__.co_varnames else function()


def train(kind: Kind, folder: Path, *, with_plugin: bool) -> tuple[dict[str, Tensor], list[float]]:
    """The solver's tensors after the first experience, and what is drawn next."""
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    torch.manual_seed(3)
    model = solver(kind)
    plugins = [call(kind.plugin, folder)] if with_plugin else []
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=16,
        train_epochs=2,
        plugins=plugins,
        evaluator=None,
    )
    for experience in call(kind.experiences, folder):
        strategy.train(experience, **kind.options)
    return strategy.model.state_dict(), [draw() for draw in DRAWS.values()]


@pytest.mark.parametrize("name", KINDS)
def test_the_first_experience_is_bit_identical_to_a_run_without_the_plugin(
    name: str, tmp_path: Path
) -> None:
    alone, drawn = train(KINDS[name], tmp_path / "alone", with_plugin=False)
    beside, drawn_beside = train(KINDS[name], tmp_path / "beside", with_plugin=True)
    assert alone.keys() == beside.keys()
    assert all(torch.equal(alone[each], beside[each]) for each in alone)
    assert drawn == drawn_beside
