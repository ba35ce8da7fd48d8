"""Pictures of a run: functions from figures to a matplotlib ``Figure``, without global state."""

import io
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import torch
from avalanche.evaluation.metric_results import TensorImage
from cycler import cycler
from jaxtyping import UInt8
from matplotlib import color_sequences
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from avalanche_magd.runtime.markdown import name_on_page, one_line
from avalanche_magd.runtime.precision import PRECISION

DPI: Final = 110
LABEL_LENGTH: Final = 40
TITLE_LENGTH: Final = 16
"""Characters of a name in a legend, and beside the small images of a grid."""
SIDE: Final = 60
"""Experiences that a matrix gives room to: of more, the cells are smaller."""


def save(figure: Figure, file: Path | BinaryIO) -> None:
    """Write a figure as a PNG; a character that the font lacks is a box, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(Glyph .* missing from|Matplotlib .* not support)")
        figure.savefig(file, format="png", dpi=DPI)


def png_of(picture: TensorImage | Image.Image | Figure) -> bytes:
    """A picture of any kind that loggers are given, as the content of a PNG."""
    content = io.BytesIO()
    if isinstance(picture, Figure):
        save(picture, content)
    else:
        image = picture if isinstance(picture, Image.Image) else to_pil_image(picture.image)
        image.save(content, format="png")
    return content.getvalue()


def label(name: str, length: int = LABEL_LENGTH) -> str:
    """A name as matplotlib shall show it: on one line, not too long, without formulas.

    A ``_`` in front would hide a line from the legend.
    """
    text = one_line(name_on_page(name))
    if len(text) > length:
        half = length // 2
        text = f"{text[:half]}…{text[1 - half :]}"
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def to_image(figure: Figure) -> UInt8[Tensor, "3 h w"]:
    """A figure as pixels, for loggers."""
    stream = io.BytesIO()
    save(figure, stream)
    pixels = np.array(Image.open(stream).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def draw_grid(
    cells: Sequence[Sequence[Tensor | None]], rows: Sequence[str], columns: Sequence[str]
) -> Figure:
    """Images in rows and columns.

    Args:
        cells: images of one shape in [0, 1], channels first, with one or three channels; of other
            numbers of channels the first is shown. ``None`` leaves a cell empty.
        rows: name of each row.
        columns: title of each column.

    Raises:
        ValueError: there is no image.
    """
    images = [image for row in cells for image in row if image is not None]
    if not images:
        raise ValueError("draw_grid needs an image.")
    channels, height, width = images[0].shape
    gap = max(1, width // 16)
    shape = (len(rows) * (height + gap), len(columns) * (width + gap))
    canvas = torch.ones(channels if channels == 3 else 1, *shape, dtype=PRECISION)
    for row, of_row in enumerate(cells):
        for column, image in enumerate(of_row):
            if image is not None:
                top, left = row * (height + gap), column * (width + gap)
                shown = image.detach().cpu().clamp(0, 1)[: len(canvas)]
                canvas[:, top : top + height, left : left + width] = shown
    beside, above = ([label(name, TITLE_LENGTH) for name in names] for names in (rows, columns))
    margin = 0.6 + 0.1 * max([0, *(len(name) - 6 for name in beside)])
    size = (margin + 0.75 * len(columns), 0.3 + 0.75 * len(rows))
    figure = Figure(size, layout="constrained")
    axis = figure.subplots()
    axis.imshow(canvas.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1, aspect="auto")
    axis.set_yticks(np.arange(len(rows)) * (height + gap) + height / 2, beside, fontsize=9)
    axis.set_xticks(np.arange(len(columns)) * (width + gap) + width / 2, above, fontsize=8)
    axis.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    return figure


def draw_matrix(matrix: Mapping[int, Sequence[float | None]]) -> Figure:
    """Accuracies, a row for each experience learnt, a column for each experience tested.

    Args:
        matrix: accuracies in [0, 1] by number of experiences learnt; ``None`` where nothing was
            tested.
    """
    values = np.array([*matrix.values()], dtype=float)
    rows, columns = values.shape
    size = (1.8 + 0.5 * min(columns, SIDE), 1.2 + 0.45 * min(rows, SIDE))
    figure = Figure(size, layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(values, vmin=0, vmax=1, cmap="viridis")
    for (row, column), cell in np.ndenumerate(values):
        if columns <= 20 and not np.isnan(cell):
            color = "black" if cell > 0.6 else "white"
            axis.text(column, row, f"{cell:.2f}", color=color, size=8, ha="center", va="center")
    axis.set(xlabel="experience tested", ylabel="experiences learnt")
    for ticks, names in ((axis.set_xticks, range(1, columns + 1)), (axis.set_yticks, [*matrix])):
        at = range(0, len(names), 1 + len(names) // 20)
        ticks(at, [str(names[tick]) for tick in at])
    figure.colorbar(shown, shrink=0.8)
    return figure


def draw_curves(curves: Mapping[str, Sequence[Mapping[int, float]]], title: str) -> Figure:
    """A line for each method: mean over its runs, and their standard deviation as a band.

    The legend names them from the highest end to the lowest. The more there are, the paler their
    bands.

    Args:
        curves: for each method, for each of its runs, value by number of experiences learnt. A
            method with a single value, where others have more, is a bound: a line across.
        title: what is shown.
    """
    figure = Figure((7.6, 4), layout="constrained")
    axis = figure.subplots()
    looks = cycler(linestyle=["-", "--", "-."]) * cycler(color=color_sequences["tab10"])
    axis.set_prop_cycle(looks)
    longest = max(len(run) for runs in curves.values() for run in runs)
    ends: list[tuple[float, Line2D]] = []
    for name, runs in curves.items():
        at = sorted({learnt for run in runs for learnt in run})
        values = [[run[learnt] for run in runs if learnt in run] for learnt in at]
        means = np.array([statistics.mean(each) for each in values])
        if len(at) == 1 < longest:
            line = axis.axhline(means[0], linestyle=":", color="black", label=label(name))
        else:
            spread = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
            (line,) = axis.plot(at, means, marker="o", markersize=4, label=label(name))
            low, high, alpha = means - spread, means + spread, min(0.2, 1 / len(curves))
            axis.fill_between(at, low, high, color=line.get_color(), alpha=alpha, linewidth=0)
        ends.append((means[-1], line))
    axis.set(xlabel="experiences learnt", ylabel=title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    ends.sort(key=lambda end: -end[0])
    figure.legend(handles=[line for _, line in ends], loc="outside right upper", fontsize=8)
    return figure


def draw_losses(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Errors over the generator's training steps.

    Args:
        curves: for each name steps and values, both of the same length.
    """
    figure = Figure((6.4, 3.2), layout="constrained")
    axis = figure.subplots()
    for name, (steps, values) in curves.items():
        axis.plot(steps, values, linewidth=1, label=label(name))
    axis.set(xlabel="training steps of the generator", ylabel="squared error", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
