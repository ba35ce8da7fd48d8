"""One page about one or more runs: tables and pictures of what was learnt, forgotten and spent.

The page is UTF-8 on any machine. Names and settings, of runs that may come from anyone, are shown
as they are: none of them becomes Markdown, HTML or a link.
"""

import os
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from matplotlib.figure import Figure

from avalanche_magd.reporting.plotting import draw_curves, draw_losses, draw_matrix, save
from avalanche_magd.reporting.run_logger import Row, Run, read_runs
from avalanche_magd.runtime.markdown import escape, name_on_page, table

STREAM: Final = re.compile(r"(.+?)/eval_phase/(\w+?)_stream(?:/Task\d+)?", re.DOTALL)
EXPERIENCE: Final = re.compile(
    r"(.+?)_Exp/eval_phase/(\w+?)_stream(?:/Task\d+)?/Exp(\d{1,4})", re.DOTALL
)
ACCURACY: Final = "Top1_Acc"
CURVES: Final = {
    ACCURACY: "accuracy",
    "FrechetDistance": "Fréchet distance",
    "FID": "FID",
    "LabelAgreement": "label agreement",
}
COUNTS: Final = "LabelCount"
LOSS: Final = "GeneratorLoss/"
COST: Final = "GeneratorCost/"


def write_report(folder: str | Path) -> Path:
    """Write ``report.md``, and its pictures, into a folder of runs; gives the page's path.

    Runs of the same name are the same method under other seeds: tables give mean ± standard
    deviation, curves the same as a band. Sample pictures, accuracy matrices and cost are those of
    each method's first run.

    Args:
        folder: holds what :class:`~avalanche_magd.reporting.RunLogger` has written, in any depth.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a run's files are damaged, or not what RunLogger writes.
    """
    folder = Path(folder)
    methods: dict[str, list[Run]] = defaultdict(list)
    for run in read_runs(folder):
        methods[run.name].append(run)
    parts = [f"# {escape(name_on_page(folder.resolve().name))}", "## Results", _results(methods)]
    parts += _curves(methods, folder)
    for name, runs in methods.items():
        parts += [f"## {escape(name_on_page(name))}", *_of_method(runs[0], folder)]
    parts += ["## Settings", _facts(methods, _settings)]
    parts += ["## Environment", _facts(methods, lambda run: run.environment)]
    page = folder / "report.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def stream_values(row: Row) -> dict[str, float]:
    """What a row says of whole streams, under short names; the test stream's goes unnamed."""
    found = {}
    for name, value in row.values.items():
        if (match := STREAM.fullmatch(name)) and not name.startswith(COUNTS):
            short = match[1].removesuffix("_Stream").removeprefix("Stream")
            found[short if match[2] == "test" else f"{short} ({match[2]})"] = value
    return found


def experience_values(row: Row) -> dict[str, dict[int, float]]:
    """What a row says of each experience of the test stream, by short name and index."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for name, value in row.values.items():
        if (match := EXPERIENCE.fullmatch(name)) and match[2] == "test":
            found[match[1]][int(match[3])] = value
    return dict(found)


def accuracy_matrix(run: Run) -> dict[int, list[float | None]]:
    """By number of experiences learnt, a column for each experience tested."""
    of_row = {row.experiences: experience_values(row).get(ACCURACY, {}) for row in run.rows}
    columns = range(1 + max((index for each in of_row.values() for index in each), default=-1))
    return {row: [each.get(index) for index in columns] for row, each in of_row.items()}


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; the mean alone of a single value."""
    mean = figure(statistics.mean(values))
    return f"{mean} ± {figure(statistics.stdev(values))}" if len(values) > 1 else mean


def figure(value: float | None) -> str:
    """A number for a table: whole if it is large, else with three digits behind the point."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"


def _results(methods: dict[str, list[Run]]) -> str:
    """The last row of each run."""
    found = {name: [stream_values(run.rows[-1]) for run in runs] for name, runs in methods.items()}
    columns = list(dict.fromkeys(each for runs in found.values() for run in runs for each in run))
    rows = []
    for name, runs in methods.items():
        values = [[run[column] for run in found[name] if column in run] for column in columns]
        seconds = [run.rows[-1].train_seconds for run in runs]
        cells = [mean_and_spread(each) if each else "–" for each in [*values, seconds]]
        rows.append([name_on_page(name), str(len(runs)), *cells])
    return _table(["method", "seeds", *columns, "training seconds"], rows)


def _curves(methods: dict[str, list[Run]], folder: Path) -> list[str]:
    """A picture of each metric that was measured, with a line for each method."""
    parts = []
    for metric, title in CURVES.items():
        found: dict[str, list[Mapping[int, float]]] = defaultdict(list)
        for name, runs in methods.items():
            for run in runs:
                points = ((row.experiences, stream_values(row).get(metric)) for row in run.rows)
                if values := {learnt: value for learnt, value in points if value is not None}:
                    found[name].append(values)
        if found:
            parts.append(
                _picture(title, folder / f"{metric}.png", folder, draw_curves(found, title))
            )
    return parts


def _of_method(run: Run, folder: Path) -> list[str]:
    """Of one run: what the others cannot be averaged with."""
    parts = [f"Seed {escape(str(run.seed))}."] if run.seed is not None else []
    if any((matrix := accuracy_matrix(run)).values()):
        file = run.folder / "accuracy-matrix.png"
        parts.append(_picture("accuracy by experience", file, folder, draw_matrix(matrix)))
    pictures = sorted(run.folder.glob("*_eval_phase_*.png"))
    parts += [_picture(picture.name.split("_")[0], picture, folder) for picture in pictures]
    if losses := _losses(run):
        title, file = "the generator's errors by source of lessons", run.folder / "losses.png"
        parts.append(_picture(title, file, folder, draw_losses(losses)))
    if len(found := experience_values(run.rows[-1])) > 1:
        indices = sorted({index for values in found.values() for index in values})
        rows = [[name, *(figure(x.get(index)) for index in indices)] for name, x in found.items()]
        parts.append(_table(["experience", *(str(index + 1) for index in indices)], rows))
    last = run.rows[-1].values
    if counts := {name: f"{value:.0f}" for name, value in last.items() if COUNTS in name}:
        names = [name.removeprefix(COUNTS).split("_")[0] for name in counts]
        head = ["class seen by the classifier", *names]
        parts.append(_table(head, [["generated images", *counts.values()]]))
    if cost := {name.removeprefix(COST): value for name, value in last.items() if COST in name}:
        rows = [[name, f"{value:,.1f}".removesuffix(".0")] for name, value in cost.items()]
        rows.append(["seconds of strategy.eval", f"{run.rows[-1].eval_seconds:,.1f}"])
        parts.append(_table(["cost", "sum"], rows))
    return parts


def _losses(run: Run) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values, by source of lessons."""
    curves: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for name, points in (curve for row in run.rows for curve in row.curves.items()):
        if name.startswith(LOSS):
            steps, values = curves[name.removeprefix(LOSS)]
            steps += [step for step, _ in points]
            values += [value for _, value in points]
    return curves


def _settings(run: Run) -> dict[str, str]:
    facts = {key: str(value) for key, value in run.settings.items()}
    return facts if run.seed is None else {"seed": str(run.seed), **facts}


def _facts(methods: dict[str, list[Run]], facts: Callable[[Run], dict[str, str]]) -> str:
    """What all runs share, once; what differs, by method."""
    found = {name: [facts(run) for run in runs] for name, runs in methods.items()}
    keys = dict.fromkeys(key for runs in found.values() for run in runs for key in run)
    rows = []
    for key in keys:
        of: dict[str, list[str]] = defaultdict(list)
        for name, runs in found.items():
            of[", ".join(sorted({run.get(key, "–") for run in runs}))].append(name_on_page(name))
        for value, names in of.items():
            if value != "–":
                rows.append([key, value, "all" if len(of) == 1 else ", ".join(names)])
    return _table(["", "", "of"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in which each cell is text."""
    escaped = [[escape(cell) for cell in cells] for cells in (head, *rows)]
    return table(escaped[0], escaped[1:])


def _picture(title: str, file: Path, folder: Path, drawn: Figure | None = None) -> str:
    if drawn is not None:
        save(drawn, file)
    # As bytes: a file's name need not be text in the locale.
    path = os.fsencode(file.relative_to(folder).as_posix())
    return f"![{escape(title)}]({quote(path)})"
