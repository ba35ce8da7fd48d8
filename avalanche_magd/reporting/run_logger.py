"""A run's folder: what was set, what was measured after each experience, and pictures.

``run.json`` holds name, seed, settings and environment; ``rows.json`` one row for each number of
experiences learnt; both are JSON in UTF-8 on any machine. Pictures are PNGs.
:func:`~avalanche_magd.reporting.write_report` makes a page of one or more such folders.
"""

import hashlib
import inspect
import json
import numbers
import operator
import re
import time
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metric_results import AlternativeValues, TensorImage
from avalanche.logging import BaseLogger
from matplotlib.figure import Figure
from PIL import Image

from avalanche_magd.reporting.environment import environment, settings_of
from avalanche_magd.reporting.plotting import png_of
from avalanche_magd.runtime.distributed import is_main_process
from avalanche_magd.runtime.folder_lock import FolderLock

PICTURES_OF_REPORTS: Final = (
    *("accuracy-matrix", "losses"),
    *("Top1_Acc", "FrechetDistance", "FID", "LabelAgreement"),
)
"""Files that ``write_report`` makes, without ``.png``: no metric's picture is called so."""


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
    at any moment; one that cannot be written, since the disk is full, stays as it was, with a
    warning, and training goes on. If ``strategy.train`` was interrupted, by Ctrl-C or an error,
    the next evaluation makes a row for the experiences that were learnt; of what was interrupted,
    the time until its last callback counts.

    Pictures are called as their metric, with ``_`` for ``/``. A metric whose name cannot be a
    file's, or whose file would be another's (upper and lower case are the same to some systems),
    gets a name with a digest.

    Args:
        folder: of this run alone.
        name: of the method; runs of the same name are the same method under other seeds. Default:
            the folder's.
        seed: of the run, for the report.
        settings: anything else that the report should tell, by name, in types that JSON knows;
            others are written as ``str`` gives them.

    Raises:
        TypeError: ``name`` or a setting's name is not a string, ``seed`` is not an integer.
        ValueError: ``settings`` cannot be written as JSON.
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
        self.name = self.folder.resolve().name if name is None else name
        self.settings = dict(settings or {})
        for each in (self.name, *self.settings):
            if not isinstance(each, str):
                raise TypeError(f"The names of a run and its settings must be str, got {each!r}.")
        try:
            self.seed = None if seed is None else operator.index(seed)
        except TypeError as error:
            raise TypeError(f"seed must be an integer or None, got {seed!r}.") from error
        try:
            json.dumps(self.settings, default=str)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"settings cannot be written as JSON: {error}. Give strings instead."
            ) from error
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rows: dict[int, Row] = {}
        self._news: dict[str, list[tuple[float, float]]] = {}
        self._seconds = {"train": 0.0, "eval": 0.0}
        self._since: dict[str, float] = {}
        self._callbacks = (0.0, 0.0)
        self._files: dict[str, str] = {}
        self._warned = False
        self._lock = FolderLock()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's state; earlier versions knew less."""
        new = {"_callbacks": (0.0, 0.0), "_files": {}, "_warned": False, "_lock": FolderLock()}
        self.__dict__.update({**new, **state})

    def log_metrics(self, metric_values: Any) -> None:
        """Note when the newest callback, and the one before, were; log what is new.

        The evaluator calls this at each callback, before the callback itself.
        """
        self._callbacks = (self._callbacks[1], time.perf_counter())
        super().log_metrics(metric_values)

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Keep a number for the next row; write a picture."""
        if isinstance(value, AlternativeValues):
            value = value.best_supported_value(TensorImage, Image.Image, Figure, float, int)
        if not is_main_process():
            return
        if isinstance(value, numbers.Real):
            self._news.setdefault(name, []).append((float(x_plot), float(value)))
        elif isinstance(value, (TensorImage, Image.Image, Figure)):
            self._write(self._picture(name), png_of(value))

    def _picture(self, metric: str) -> Path:
        """The file of a metric's pictures, in the run's folder and of this metric alone."""
        plain = metric.replace("/", "_")
        is_plain = re.fullmatch(r"[A-Za-z0-9_-]{1,120}", plain) is not None
        if plain.lower() in map(str.lower, PICTURES_OF_REPORTS):
            is_plain = False
        if not is_plain or self._files.setdefault(plain.lower(), metric) != metric:
            digest = hashlib.sha256(metric.encode("utf-8", "surrogatepass")).hexdigest()
            plain = f"{re.sub('[^A-Za-z0-9_-]', '_', plain)[:120]}-{digest[:12]}"
        return self.folder / f"{plain}.png"

    def before_training(self, strategy: Any, metric_values: Any, **kwargs: Any) -> None:
        """Start the clock.

        Raises:
            RuntimeError: another run writes to the folder.
        """
        self._lock.hold(self.folder, "the RunLogger's folder")
        self._stop_interrupted()
        self._since["train"] = time.perf_counter()

    def after_training(self, strategy: Any, metric_values: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self._seconds["train"] += time.perf_counter() - self._since.pop("train")

    def before_eval(self, strategy: Any, metric_values: Any, **kwargs: Any) -> None:
        """Start the clock; not for evaluations within an experience, whose time is training's."""
        if "train" in self._since and _is_running("train", strategy):
            return
        self._stop_interrupted()
        self._since["eval"] = time.perf_counter()

    def after_eval(self, strategy: Any, metric_values: Any, **kwargs: Any) -> None:
        """Write what is set, and the row; not for evaluations within an experience."""
        if "eval" not in self._since:
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
        settings, host = settings_of(strategy) | self.settings, environment(strategy.device)
        about = {"name": self.name, "seed": self.seed, "settings": settings, "environment": host}
        rows = [asdict(row) for row in self._rows.values()]
        written = [
            self._write(self.folder / name, json.dumps(content, indent=1, default=str).encode())
            for name, content in (("run.json", about), ("rows.json", rows))
        ]
        self._warned &= not all(written)

    def _write(self, file: Path, content: bytes) -> bool:
        """Whether a file was written, as a whole; warn at the first of those that were not."""
        beside = file.with_name(f"{file.name}.partial")
        try:
            beside.write_bytes(content)
            beside.replace(file)
        except OSError as error:
            if not self._warned:
                warnings.warn(
                    f"{file} is not written: {error}. What it held before stays, and training "
                    "goes on. If the disk is full, free some of it: the next evaluation writes "
                    "all rows.",
                    stacklevel=2,
                )
            self._warned = True
            return False
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
        return True

    def _stop_interrupted(self) -> None:
        """Stop the clock of what was interrupted, at the last callback before the present one."""
        for what in list(self._since):
            self._seconds[what] += max(0.0, self._callbacks[0] - self._since.pop(what))


def _is_running(method: str, strategy: Any) -> bool:
    """Whether a method of this strategy has called us.

    Its attributes do not tell: those of an interrupted method stay as they were.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == method and frame.f_locals.get("self") is strategy:
            return True
        frame = frame.f_back
    return False


def read_runs(folder: str | Path) -> list[Run]:
    """All runs in a folder and those below it that were evaluated, by folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a run's files are damaged, or not what RunLogger writes.
    """
    files = sorted(Path(folder).rglob("run.json"))
    found = [_read_run(file) for file in files if file.with_name("rows.json").exists()]
    runs = [run for run in found if run.rows]
    if not runs:
        raise FileNotFoundError(
            f"{folder} holds no run that was evaluated: give RunLogger(folder) to the "
            "EvaluationPlugin as one of its loggers, and call strategy.eval()."
        )
    return runs


def _read_run(file: Path) -> Run:
    """The run of a ``run.json`` and the ``rows.json`` beside it; unknown entries are left out."""
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        rows = json.loads(file.with_name("rows.json").read_text(encoding="utf-8"))
        return Run(
            folder=file.parent,
            name=str(about["name"]),
            seed=about["seed"],
            settings=dict(about["settings"]),
            environment={name: str(value) for name, value in about["environment"].items()},
            rows=[_read_row(row) for row in rows],
        )
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"run.json or rows.json in {file.parent} is damaged, or not what RunLogger writes "
            f"({type(error).__name__}: {error}): remove this folder, or run it again."
        ) from error


def _read_row(row: Any) -> Row:
    return Row(
        experiences=int(row["experiences"]),
        train_seconds=float(row["train_seconds"]),
        eval_seconds=float(row["eval_seconds"]),
        values={name: float(value) for name, value in row["values"].items()},
        curves={
            name: [(float(x), float(y)) for x, y in points]
            for name, points in row["curves"].items()
        },
    )
