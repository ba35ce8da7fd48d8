"""The evaluation classifier: trained on all real images, it says what generated ones show.

It is trained once, before the experiences, and is no part of the continual learner. Which classes
it sees in generated images, and how their features are spread, is compared with real test images.
"""

import hashlib
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, RandomSampler
from torchmetrics.functional import kl_divergence

from avalanche_magd.diffusion.label_map import NULL_LABEL, LabelMap, classes_of
from avalanche_magd.diffusion.schedule import Images, Indices
from avalanche_magd.runtime.atomic_files import read_file, write_file
from avalanche_magd.runtime.precision import PRECISION
from avalanche_magd.runtime.random_state import random_states_kept, seeded
from avalanche_magd.runtime.validation import check_seed

FEATURES: Final = 128
BATCH_SIZE: Final = 64
EPOCHS: Final = 15
MAX_ITERATIONS: Final = 3000
SMOOTHING: Final = 1e-8
"""Added to each frequency, so that a missing class gives a large number, not infinity."""


class EvaluationClassifier(nn.Module):
    """A small convolutional classifier for images of any side, in the user's range of pixels.

    Its arguments are an image's channels, and the classes as ``LabelMap.rows`` gives them.
    """

    mean: Float[Tensor, "c 1 1"]
    spread: Float[Tensor, "c 1 1"]

    def __init__(self, channels: int, classes: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.label_map = LabelMap(classes)
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("spread", torch.ones(channels, 1, 1))
        narrow, wide = (nn.Conv2d(*width, 3, padding=1) for width in ((channels, 32), (32, 64)))
        pooled = [nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64 * 16, FEATURES)]
        self.body = nn.Sequential(narrow, nn.ReLU(), nn.MaxPool2d(2), wide, *pooled)
        self.head = nn.Linear(FEATURES, len(self.label_map.ids))
        self.to(PRECISION)

    def features(self, images: Images) -> Float[Tensor, "b f"]:
        """Inputs of the last layer."""
        features: Tensor = self.body((images - self.mean) / self.spread)
        return features.relu()

    def forward(self, images: Images) -> Float[Tensor, "b k"]:
        """Logits over the classes, in the order of their ids."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def ids_of(self, labels: Indices, tasks: Indices | None = None) -> Indices:
        """The id of each row's class.

        Raises:
            ValueError: the classifier was not trained on a class.
        """
        ids = self.label_map.ids_of(labels, tasks)
        if unknown := set(labels[ids == NULL_LABEL].tolist()):
            raise ValueError(
                f"The evaluation classifier was not trained on classes {sorted(unknown)}: "
                "train it on the whole stream."
            )
        return ids.cpu()


def train_evaluation_classifier(
    train_stream: Iterable[Any],
    *,
    file: str | Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> EvaluationClassifier:
    """Train a classifier on all experiences of a stream at once.

    15 passes over the images, and at most 3,000 steps; torch's global random state stays as it is.

    Args:
        train_stream: an Avalanche stream; seen without augmentation.
        file: where the classifier is kept, and taken from if it is of the same data.
        seed: of weights and order.
        device: where it is trained and stays.

    Raises:
        ValueError: the stream is empty.
    """
    parts = [experience.dataset.eval() for experience in train_stream]
    if not sum(len(part) for part in parts):
        raise ValueError("The evaluation classifier's training stream is empty.")
    data: ConcatDataset[Any] = ConcatDataset(parts)
    classes = LabelMap()
    for part in parts:
        classes = classes.with_classes(classes_of(part))
    rows = range(0, len(data), -(-len(data) // 1000))
    device, seed = torch.device(device), check_seed("seed", seed) or 0
    with random_states_kept(device):
        some = torch.stack([data[row][0] for row in rows]).float()
    digest = hashlib.sha256(some.numpy().tobytes()).hexdigest()
    key = repr((len(data), classes.rows, digest, seed))
    with seeded(seed, device):
        classifier = EvaluationClassifier(some.shape[1], classes.rows).to(device)
        if file is not None and Path(file).exists() and _read(Path(file), classifier, key):
            return classifier.eval()
        classifier.mean.copy_(some.mean((0, 2, 3)).view(-1, 1, 1))
        classifier.spread.copy_(some.std((0, 2, 3)).clamp(min=1e-6).view(-1, 1, 1))
        _fit(classifier, data, device)
    if file is not None:
        content = {"key": key, "weights": classifier.state_dict()}
        write_file(Path(file), partial(torch.save, content))
    return classifier.eval()


def _fit(classifier: EvaluationClassifier, data: ConcatDataset[Any], device: torch.device) -> None:
    count = min(EPOCHS * len(data), MAX_ITERATIONS * BATCH_SIZE)
    order = list(RandomSampler(data, num_samples=count))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    all_ids = torch.tensor(classifier.label_map.ids)
    classifier.train()
    for images, labels, *tasks in DataLoader(data, BATCH_SIZE, sampler=order):
        ids = classifier.ids_of(labels, tasks[0] if tasks else None)
        columns = torch.searchsorted(all_ids, ids).to(device)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(classifier(images.to(device).float()), columns)
        torch.autograd.backward(loss)
        optimizer.step()


def _read(file: Path, classifier: EvaluationClassifier, key: str) -> bool:
    """Take over the weights in a file; whether they are of the same data."""
    content = read_file(file, partial(torch.load, map_location="cpu", weights_only=True))
    if content is None or content["key"] != key:
        warnings.warn(
            f"{file} is no classifier of these data: a new one is trained.", stacklevel=3
        )
        return False
    classifier.load_state_dict(content["weights"])
    return True


def class_kld(wanted: Indices, seen: Indices) -> float:
    """``KL(wanted ‖ seen)`` of class frequencies, in nats; 0 if both are the same.

    ``wanted`` is the class of each real image, ``seen`` the one that the classifier sees in each
    generated image. One of ten even classes missing gives about 1.6.

    Raises:
        ValueError: there are no images.
    """
    if not (len(wanted) and len(seen)):
        raise ValueError("class_kld needs images of each kind.")
    classes = int(max(wanted.max(), seen.max())) + 1
    p, q = (x.bincount(minlength=classes)[None].double() / len(x) for x in (wanted, seen))
    return float(kl_divergence(p + SMOOTHING, q + SMOOTHING))


def label_agreement(asked: Indices, seen: Indices) -> float:
    """The share of generated images in which the classifier sees the class asked for.

    Raises:
        ValueError: there are no images.
    """
    if not len(asked):
        raise ValueError("label_agreement needs images.")
    return float((asked == seen).double().mean())
