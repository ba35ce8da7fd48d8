"""How far NIGD's inputs are from those of training on real images.

A generator learns two experiences of digits. Its states on reverse runs of the first one's classes
are compared, by timestep and for several K, with real digits noised forward: their spread, what
the network answers there, and how well the student of the second experience has learnt the
teacher of the first, on both. Writes one picture and one table.

Needs no download. Takes two minutes on two CPU cores.

    python examples/gap.py
"""

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from avalanche_magd import DiffusionGenerator, MAGDTraining
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.distillation import Distillation
from avalanche_magd.metrics import forward_backward_gap
from avalanche_magd.reporting.plotting import DPI


def draw_gaps(gaps: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """How far the states of reverse runs are from noised images, in three panels.

    Args:
        gaps: for each name the columns of a :class:`~avalanche_magd.metrics.Gap`.
    """
    figure = Figure((13, 3.8), layout="constrained")
    titles = {
        "spread": "spread of states ÷ of noised images",
        "output": "predictions on states ÷ on noised images",
        "error_on_states": "student − teacher, squared (dotted: on noised images)",
    }
    for axis, (column, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for name, gap in gaps.items():
            (line,) = axis.plot(gap["t"], gap[column], marker=".", label=name)
            if column == "error_on_states":
                axis.plot(gap["t"], gap["error_on_noised"], ":", color=line.get_color())
                axis.set_yscale("log")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("t (0 is clean)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure


def main() -> None:
    """Teach, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 5, 10, 20, 100], help="K")
    parser.add_argument("--iterations", type=int, default=400, help="of the generator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/gap"))
    parser.add_argument("--smoke", action="store_true", help="tiny budgets, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.iterations, arguments.steps = 5, [2, 5]
    arguments.output.mkdir(parents=True, exist_ok=True)
    benchmark = split_digits(2, seed=arguments.seed)
    torch.manual_seed(arguments.seed)
    generator = DiffusionGenerator((1, 8, 8))
    training = MAGDTraining(
        model=generator,
        optimizer=torch.optim.AdamW(generator.parameters(), lr=2e-3, fused=True),
        distillation=Distillation(pool_size=100 if arguments.smoke else 2000),
        train_iterations=arguments.iterations,
        seed=arguments.seed,
    )
    first, second = benchmark.train_stream
    training.train(first, eval_streams=[])
    teacher = copy.deepcopy(generator)
    training.train(second, eval_streams=[])
    samples = list(first.dataset.eval())
    images = teacher.pixel_range.normalize(torch.stack([image for image, *_ in samples]))
    labels = torch.tensor([label for _, label, *_ in samples])
    gaps = {}
    with teacher.frozen(), generator.frozen():
        for steps in arguments.steps:
            rng = torch.Generator().manual_seed(arguments.seed)
            gaps[steps] = forward_backward_gap(
                teacher, images, labels, steps, rng, student=generator
            )
    print(f"{'K':>5}{'spread, cleanest tenth':>24}{'error on states':>17}{'on noised images':>18}")
    for steps, gap in gaps.items():
        errors = [column.nanmean().item() for column in (gap.error_on_states, gap.error_on_noised)]
        print(f"{steps:>5}{gap.spread[0].item():>24.3f}{errors[0]:>17.5f}{errors[1]:>18.5f}")
    rows = {
        f"K = {steps}": {name: column.tolist() for name, column in gap._asdict().items()}
        for steps, gap in gaps.items()
    }
    (arguments.output / "gap.json").write_text(json.dumps(rows), encoding="utf-8")
    draw_gaps(rows).savefig(arguments.output / "gap.png", dpi=DPI)
    print(f"Picture: {arguments.output / 'gap.png'}")


if __name__ == "__main__":
    main()
