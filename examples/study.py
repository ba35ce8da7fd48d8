"""What the studies share: benchmarks, the solver, and runs that are kept as lines of JSON."""

import argparse
import hashlib
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import SplitCIFAR10, SplitCIFAR100, SplitMNIST, nc_benchmark
from avalanche.logging import TextLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from avalanche_magd.benchmarks import split_digits, split_fashion_mnist, split_image_folder
from avalanche_magd.runtime.distributed import is_main_process, process_count
from avalanche_magd.runtime.markdown import table

DOWNLOADED = {"mnist": SplitMNIST, "cifar10": SplitCIFAR10, "cifar100": SplitCIFAR100}
BENCHMARKS = ("digits", "forty_digits", "fashion_mnist", "folder", *DOWNLOADED)
ACCURACY = "Top1_Acc_Stream/eval_phase/test_stream/Task000"
FORGETTING = "StreamForgetting/eval_phase/test_stream"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a study lets vary: data, seeds, and how to run."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--benchmark", choices=BENCHMARKS, default="digits")
    parser.add_argument("--root", type=Path, help="where the images are")
    parser.add_argument("--image-size", type=int, default=32, help="side of a folder's images")
    parser.add_argument("--images-per-class", type=int, help="of Fashion-MNIST; default: all")
    parser.add_argument("--experiences", type=int, default=5)
    parser.add_argument("--solver", choices=["resnet18"], help="default: a small CNN")
    parser.add_argument(
        "--jobs", type=positive, default=1, help="runs at once, cores shared evenly"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny budgets, to see that it runs")


def positive(word: str) -> int:
    """A count, for ``argparse``."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def load(arguments: argparse.Namespace, experiences: int, seed: int) -> Any:
    """The benchmark that was asked for; the seed decides the order of classes."""
    name, root = arguments.benchmark, arguments.root
    try:
        if name == "folder":
            if root is None:
                raise SystemExit("--benchmark folder needs --root.")
            size = arguments.image_size
            return split_image_folder(root, experiences, image_size=size, seed=seed)
        if name == "fashion_mnist":
            each = arguments.images_per_class
            return split_fashion_mnist(experiences, root=root, images_per_class=each, seed=seed)
        if name == "digits":
            return split_digits(experiences, seed=seed)
        if name == "forty_digits":
            return forty_digits(experiences, seed=seed)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    try:
        return DOWNLOADED[name](experiences, seed=seed, dataset_root=root)
    except (OSError, RuntimeError) as error:
        raise SystemExit(
            f"{name} is not there, and torchvision could not download it ({error}). Download it "
            "where there is a network, and name its folder by --root; or use --benchmark "
            "digits, which needs nothing."
        ) from error


def forty_digits(experiences: int, *, side: int = 8, seed: int | None = None) -> Any:
    """40 classes of real images: the digits, turned by a quarter, and the negatives of both.

    The seed decides the order of classes; without one they come as they are numbered.
    """
    parts = []
    digits = split_digits(1, seed=0)
    for stream in (digits.train_stream, digits.test_stream):
        samples = [sample[:2] for sample in stream[0].dataset.eval()]
        upright = torch.stack([image for image, _ in samples])
        upright = nn.functional.interpolate(upright, side, mode="bilinear", antialias=True)
        positive = torch.cat([upright, upright.rot90(1, (2, 3))])
        labels = torch.tensor([label for _, label in samples])
        classes = torch.cat([labels + 10 * kind for kind in range(4)])
        parts.append(TensorDataset(torch.cat([positive, 1 - positive]), classes))
        parts[-1].targets = classes.tolist()  # where Avalanche looks for them
    shuffle = seed is not None
    return nc_benchmark(*parts, experiences, task_labels=False, shuffle=shuffle, seed=seed)


def name_of(arguments: argparse.Namespace) -> str:
    """The benchmark's name; for a folder of images with that of the folder."""
    name: str = arguments.benchmark
    return f"{name}-{arguments.root.resolve().name}" if name == "folder" else name


class Solver(nn.Module):
    """A small convolutional classifier for images of any side."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 16, 128),
        )
        self.head = nn.Linear(128, classes)

    def features(self, images: Tensor) -> Tensor:
        """What the last layer decides by."""
        return self.body(images).relu()

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.features(images))


def silent_evaluator(*metrics: Any) -> EvaluationPlugin:
    """An evaluator that prints nothing, not even that it has no loggers."""
    return EvaluationPlugin(*metrics, loggers=[TextLogger(StringIO())])


def settings_of(arguments: argparse.Namespace, ignored: Iterable[str] = ()) -> dict[str, Any]:
    """What was asked for: arguments that were given and can change a run."""
    ignored = {"output", "seeds", "jobs", "root", *ignored}
    return {key: value for key, value in vars(arguments).items() if value and key not in ignored}


def key_of(arguments: argparse.Namespace, ignored: Iterable[str], *what: str | int) -> str:
    """The key of a run: another one for other settings.

    Arguments that are not given do not count, so that runs keep their keys when a study gets new
    arguments.
    """
    settings = sorted(settings_of(arguments, ignored).items())
    return hashlib.sha256(repr((what, settings)).encode()).hexdigest()[:12]


def finish(
    file: Path, tasks: Mapping[str, tuple[Any, ...]], work: Callable[..., Any], jobs: int
) -> dict[str, dict[str, Any]]:
    """Run what has no line in the file yet, and give all lines back.

    Of several processes (``torchrun``) each runs everything, and the main one writes and prints.

    Args:
        file: a line of JSON for each run; written anew, as a whole, after each.
        tasks: arguments of ``work``, by key.
        work: a run, in a process of its own; what it gives back becomes the line.
        jobs: how many at once.
    """
    lines = _read(file)
    failures: list[str] = []
    missing = {key: task for key, task in tasks.items() if key not in lines}
    if jobs > 1 and process_count() > 1:
        raise SystemExit("Of several processes each runs one job at a time: leave out --jobs.")
    say = partial(print, flush=True) if is_main_process() else lambda said: None
    say(f"{len(tasks) - len(missing)} of {len(tasks)} runs are there.")
    file.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (jobs,)) as pool:
        futures = {pool.submit(work, *task): key for key, task in missing.items()}
        for done in as_completed(futures):
            if (error := done.exception()) is not None:
                failures.append(f"{missing[futures[done]][:2]}: {error!r}")
                say(f"failed: {failures[-1]}")
                continue
            line = {"key": futures[done], **done.result()}
            lines = lines | _read(file) | {futures[done]: line}  # another study may write there
            if is_main_process():
                unfinished = file.with_suffix(".partial")
                unfinished.write_text(
                    "".join(json.dumps(each) + "\n" for each in lines.values()), encoding="utf-8"
                )
                unfinished.replace(file)
            say(f"{line['name']}, seed {line['seed']}: {line['accuracy']:.3f}")
    if failures:
        raise SystemExit("\n".join([f"{len(failures)} runs failed:", *failures]))
    return {key: lines[key] for key in tasks}


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Lines by key; none if there is no file yet."""
    if not file.exists():
        return {}
    return {
        line["key"]: line
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines())
    }


def _begin(jobs: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    use_own_gpu()


def use_own_gpu() -> None:
    """Give each process that ``torchrun`` starts on this machine a GPU of its own, if it can."""
    if torch.cuda.is_available():
        number = int(os.environ.get("LOCAL_RANK", 0))
        torch.cuda.set_device(number % torch.cuda.device_count())


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.mean(values), error


def results_table(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], forms: Mapping[str, str]
) -> str:
    """Mean ± standard error over the seeds.

    Args:
        runs: lines of each row.
        forms: how each column is written.
    """
    rows = []
    for name, lines in runs.items():
        cells = [name, str(len(lines))]
        for column, form in forms.items():
            values = [line[column] for line in lines if line.get(column) is not None]
            if not values:
                cells.append("–")
                continue
            mean, error = mean_and_error(values)
            cells.append(f"{mean:{form}}" + (f" ± {error:{form}}" if error else ""))
        rows.append(cells)
    return table(["", "seeds", *forms], rows)
