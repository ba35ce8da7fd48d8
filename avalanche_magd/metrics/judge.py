"""The judge: a classifier that saw all real training images, and looks at generated ones.

It is trained once, before the experiences, and is no part of the continual learner. What it sees
in generated images, and how their features are spread, is compared with real test images.
"""

import hashlib
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, RandomSampler

from avalanche_magd.classes import ClassTable, classes_of
from avalanche_magd.files import read_file, write_file
from avalanche_magd.randomness import seeded

FEATURES: Final = 128
BATCH_SIZE: Final = 64
EPOCHS: Final = 15
MAX_ITERATIONS: Final = 3000


class Judge(nn.Module):
    """A small convolutional classifier for images of any side, in the user's range of pixels.

    Args:
        channels: of an image.
        classes: number, class index and task label of each, as ``ClassTable.rows`` gives them.
    """

    mean: Float[Tensor, "c 1 1"]
    spread: Float[Tensor, "c 1 1"]

    def __init__(self, channels: int, classes: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.class_table = ClassTable(classes)
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("spread", torch.ones(channels, 1, 1))
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 16, FEATURES),
        )
        self.head = nn.Linear(FEATURES, len(self.class_table.numbers))

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """What the last layer decides by."""
        features: Tensor = self.body((images - self.mean) / self.spread)
        return features.relu()

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits over the classes, in the order of their numbers."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def numbers_of(
        self, labels: Int[Tensor, " n"], tasks: Int[Tensor, " n"] | None = None
    ) -> Int[Tensor, " n"]:
        """The judge's number of each class; its logits are in the order of these.

        Raises:
            ValueError: a class that the judge was not trained on.
        """
        numbers = self.class_table.numbers_of(labels, tasks)
        if (numbers < 0).any():
            unknown = sorted(set(labels[numbers < 0].tolist()))
            raise ValueError(
                f"The judge was not trained on classes {unknown}: train it on the whole stream."
            )
        return numbers.cpu()


def train_judge(
    train_stream: Iterable[Any],
    *,
    file: str | Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Judge:
    """Train a judge on all experiences of a stream at once.

    15 passes over the images, and at most 3,000 steps. Torch's global random state is left as it
    was.

    Args:
        train_stream: an Avalanche stream; seen without augmentation.
        file: where the judge is kept, and taken from if it is of the same data.
        seed: of weights and order.
        device: where it is trained and stays.

    Raises:
        ValueError: the stream is empty.
    """
    parts = [experience.dataset.eval() for experience in train_stream]
    if not parts or not sum(len(part) for part in parts):
        raise ValueError("The judge's training stream is empty.")
    data: ConcatDataset[Any] = ConcatDataset(parts)
    table = ClassTable()
    for part in parts:
        table.add(classes_of(part))
    rows = range(0, len(data), -(-len(data) // 1000))
    some = torch.stack([data[row][0] for row in rows]).float()
    digest = hashlib.sha256(some.numpy().tobytes()).hexdigest()
    key = repr((len(data), table.rows, digest, seed))
    device = torch.device(device)
    with seeded(seed, device):
        judge = Judge(some.shape[1], table.rows).to(device)
        if file is not None and Path(file).exists() and _read(Path(file), judge, key):
            return judge.eval()
        judge.mean.copy_(some.mean((0, 2, 3)).view(-1, 1, 1))
        judge.spread.copy_(some.std((0, 2, 3)).clamp(min=1e-6).view(-1, 1, 1))
        _fit(judge, data, device)
    if file is not None:
        content = {"key": key, "weights": judge.state_dict()}
        write_file(Path(file), partial(torch.save, content))
    return judge.eval()


def _fit(judge: Judge, data: "ConcatDataset[Any]", device: torch.device) -> None:
    rows = min(EPOCHS * len(data), MAX_ITERATIONS * BATCH_SIZE)
    order = list(RandomSampler(data, num_samples=rows))
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
    places = torch.tensor(judge.class_table.numbers)
    judge.train()
    for images, labels, *tasks in DataLoader(data, BATCH_SIZE, sampler=order):
        numbers = judge.numbers_of(labels, tasks[0] if tasks else None)
        wanted = torch.searchsorted(places, numbers).to(device)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(judge(images.to(device).float()), wanted)
        torch.autograd.backward(loss)
        optimizer.step()


def _read(file: Path, judge: Judge, key: str) -> bool:
    """Take over the weights in a file; whether it is of the same data."""

    def load(stream: BinaryIO) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(stream, map_location="cpu", weights_only=True)
        return content

    content = read_file(file, load)
    if content is None or content["key"] != key:
        warnings.warn(f"{file} holds a judge of other data: a new one is trained.", stacklevel=3)
        return False
    judge.load_state_dict(content["weights"])
    return True
