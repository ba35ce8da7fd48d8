"""A run's folder: what was set, what was measured after each experience, and pictures.

``run.json`` holds name, seed, settings and environment; ``rows.json`` one row for each number of
experiences learnt; pictures are PNGs. :func:`~avalanche_magd.reporting.write_report` makes a page
of one or more such folders.
"""

import contextlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metric_results import AlternativeValues, TensorImage
from avalanche.logging import BaseLogger
from matplotlib.figure import Figure
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from avalanche_magd.reporting.plotting import DPI
from avalanche_magd.runtime.distributed import is_main_process

PACKAGES = ("avalanche-magd", "avalanche-lib", "torch", "torchvision", "diffusers", "torchmetrics")


@dataclass
class Row:
    """What is known of a run after some experiences; seconds are sums since the start."""

    experiences: int
    """How many have been learnt."""
    train_seconds: float
    """Spent in ``strategy.train``, the generator's training included."""
    eval_seconds: float
    values: dict[str, float] = field(default_factory=dict)
    """The newest value of each metric."""
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """``(x, value)`` of those metrics that gave several values since the row before."""


@dataclass
class Run:
    """A run, as its folder tells it."""

    folder: Path
    name: str
    seed: int | None
    settings: dict[str, Any]
    environment: dict[str, str]
    rows: list[Row]


class RunLogger(BaseLogger, SupervisedPlugin):
    """Writes a run's folder, for ``EvaluationPlugin(…, loggers=[RunLogger(…)])``.

    A run that :mod:`avalanche_magd.checkpoints` resumes goes on in its folder. Each file is whole
    at any moment.

    Args:
        folder: of this run alone.
        name: of the method; runs of the same name are the same method under other seeds. Default:
            the folder's.
        seed: of the run, for the report.
        settings: anything else that the report should tell, in types that JSON knows.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        seed: int | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.name = self.folder.name if name is None else name
        self.seed = seed
        self.settings = settings or {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rows: dict[int, Row] = {}
        self._news: dict[str, list[tuple[float, float]]] = {}
        self._seconds = {"train": 0.0, "eval": 0.0}
        self._since: dict[str, float] = {}

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Keep a number for the next row; write a picture."""
        if isinstance(value, AlternativeValues):
            value = value.best_supported_value(TensorImage, Image.Image, Figure, float, int)
        file = self.folder / (name.replace("/", "_") + ".png")
        if not is_main_process():
            return
        if isinstance(value, int | float):
            self._news.setdefault(name, []).append((float(x_plot), float(value)))
        elif isinstance(value, TensorImage):
            to_pil_image(value.image).save(file)
        elif isinstance(value, Image.Image):
            value.save(file)
        elif isinstance(value, Figure):
            value.savefig(file, dpi=DPI)

    def before_training(self, strategy: Any, metric_values: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._since["train"] = time.perf_counter()

    def after_training(self, strategy: Any, metric_values: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self._seconds["train"] += time.perf_counter() - self._since.pop("train")

    def before_eval(self, strategy: Any, metric_values: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._since["eval"] = time.perf_counter()

    def after_eval(self, strategy: Any, metric_values: Any, **kwargs: Any) -> None:
        """Write what is set, and the row; not for evaluations within an experience."""
        if "train" in self._since:
            return
        self._seconds["eval"] += time.perf_counter() - self._since.pop("eval")
        if not is_main_process():
            return
        learnt = strategy.clock.train_exp_counter
        row = self._rows.setdefault(learnt, Row(learnt, 0.0, 0.0))
        row.train_seconds, row.eval_seconds = self._seconds["train"], self._seconds["eval"]
        row.values |= {name: points[-1][1] for name, points in self._news.items()}
        row.curves |= {name: points for name, points in self._news.items() if len(points) > 1}
        self._news = {}
        settings, host = _settings(strategy) | self.settings, environment(strategy.device)
        about = {"name": self.name, "seed": self.seed, "settings": settings, "environment": host}
        rows = [asdict(row) for row in self._rows.values()]
        for name, content in (("run.json", about), ("rows.json", rows)):
            partial = self.folder / f"{name}.partial"
            partial.write_text(json.dumps(content, indent=1, default=str))
            partial.replace(self.folder / name)


def read_runs(folder: str | Path) -> list[Run]:
    """All runs in a folder and those below it, by name and seed.

    Raises:
        FileNotFoundError: there is none.
    """
    runs = []
    for file in sorted(Path(folder).rglob("run.json")):
        if (rows := file.with_name("rows.json")).exists():
            known = [Row(**row) for row in json.loads(rows.read_text())]
            runs.append(Run(file.parent, **json.loads(file.read_text()), rows=known))
    if not runs:
        raise FileNotFoundError(
            f"{folder} holds no run that was evaluated: give RunLogger(folder) to the "
            "EvaluationPlugin as one of its loggers, and call strategy.eval()."
        )
    return runs


def environment(device: torch.device | str = "cpu") -> dict[str, str]:
    """Machine and versions."""
    device = torch.device(device)
    known = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
    }
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            known[package] = version(package)
    return known


def _settings(strategy: Any) -> dict[str, Any]:
    """What Avalanche's strategies and this package's plugin are set to."""
    optimizer = strategy.optimizer  # some of Avalanche's strategies need none
    rate = optimizer.param_groups[0]["lr"] if optimizer else 0.0
    found = {
        "strategy": type(strategy).__name__,
        "model": type(strategy.model).__name__,
        "parameters": sum(each.numel() for each in strategy.model.parameters()),
        "optimizer": optimizer and f"{type(optimizer).__name__}, lr {rate:g}",
        "epochs": getattr(strategy, "train_epochs", None),
        "mini-batch": strategy.train_mb_size,
    }
    for plugin in strategy.plugins:
        training: Any = getattr(plugin, "generator_strategy", None)
        if hasattr(training, "distillation"):
            network = training.model.network
            found |= {
                "generator's parameters": sum(each.numel() for each in network.parameters()),
                "generator's steps": training.train_iterations,
                "distillation": repr(training.distillation),
            }
    return {name: value for name, value in found.items() if value is not None}
