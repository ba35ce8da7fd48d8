"""Comparison: Avalanche's methods and this package's, with the same solver, epochs and seeds.

Any of the methods that ``methods.py`` names, on any of the benchmarks: Avalanche's with a buffer
or without, the field's ways of replay by diffusion, MAGD, and MAGD with one part or argument
changed.

Each finished run is a line of JSON in ``<output>/<benchmark>.jsonl``, ``folder-NAME.jsonl`` for a
folder of images called NAME; a study that is interrupted or extended runs only what is missing.
Table and figures are made from these lines: final accuracy, forgetting, bytes kept between
experiences, quality of what is generated, cost.

``--seconds`` gives each generator as many training steps per experience as fit, by a calibration
on this machine at the beginning of each run, pool included.

``--paper-scale`` gives everything the size of published studies on colour images: generators of
38 million parameters, batches of 64, a ResNet-18 as solver. It needs a GPU, and a budget of yours.

Needs no download for digits, where a run takes seconds to minutes on two CPU cores.

    python examples/compare.py --methods naive joint replay-100 magd --seeds 0 1 2
    python examples/compare.py --groups modes --seconds 6 --pool-size 500 --table modes

Several processes or GPUs share the work of each run under ``torchrun --nproc_per_node N``.
"""

import argparse
import copy
import statistics
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics
from matplotlib.figure import Figure
from methods import GROUPS, ROWS, build, known_of, method_name, recipe, with_magd
from study import (
    ACCURACY,
    FORGETTING,
    add_arguments,
    finish,
    key_of,
    load,
    mean_and_error,
    name_of,
    results_table,
    settings_of,
    silent_evaluator,
    use_own_gpu,
)

from avalanche_magd.distillation import Distillation
from avalanche_magd.metrics import (
    EvaluationClassifier,
    generation_metrics,
    train_evaluation_classifier,
)
from avalanche_magd.metrics.generation import METRICS
from avalanche_magd.reporting.plotting import DPI, draw_curves
from avalanche_magd.reporting.run_logger import environment
from avalanche_magd.runtime.distributed import Processes, is_main_process, process_count

DEFAULT = ["naive", "joint", "replay-200", "replay-500", "vae", "strong_vae", "magd"]
IGNORED = ("methods", "groups", "table", "old")
"""Arguments that do not change a run, or by a method's recipe."""
FORMS = {
    "accuracy": ".3f",
    "forgetting": ".3f",
    "kept MB": ".2f",
    "FrechetDistance": ".2f",
    "FrechetDistanceForgetting": ".2f",
    "LabelAgreement": ".3f",
    "teacher forwards": ",.0f",
    "generator steps": ",.0f",
    "generator seconds": ",.0f",
    "seconds": ",.0f",
}


def steps_within(name: str, seed: int, arguments: argparse.Namespace) -> int:
    """The generator's steps per experience that fit into ``--seconds``, pool included.

    Timed on this machine, on two small experiences with a past; the slower one counts. Time that
    a processor gives to other programs does not.
    """
    # Networks are recorded before a GPU's first step, which many steps make up for.
    on_cpu = arguments.device == "cpu"
    steps, images = (2, 20) if arguments.smoke else (20, 200) if on_cpu else (200, 1000)
    small = {"pool_size": images, "images_per_class": 100, "epochs": 1}
    small_arguments = argparse.Namespace(**{**vars(arguments), **small})
    benchmark = load(small_arguments, arguments.experiences, seed)
    known = known_of(benchmark, seed, small_arguments)
    known.common["evaluator"] = silent_evaluator()
    method = with_magd(name, known, seed, steps)
    assert method.plugin is not None
    timed = []
    for experience in benchmark.train_stream[:3]:
        before = copy.deepcopy(method.plugin.cost)
        clock, processor = time.perf_counter(), time.process_time()
        method.strategy.train(experience, eval_streams=[])
        clock, processor = time.perf_counter() - clock, time.process_time() - processor
        busy = min(1.0, processor / clock) if on_cpu else 1.0
        generation, replay, training = (
            getattr(method.plugin.cost, phase).seconds - getattr(before, phase).seconds
            for phase in ("generation", "replay", "training")
        )
        if ROWS[name].distillation.get("on_the_fly"):  # lessons are made within the steps
            timed.append((busy * replay / images, busy * (training + generation) / steps))
        else:
            timed.append((busy * (replay + generation) / images, busy * training / steps))
    per_image, per_step = (max(column) for column in zip(*timed[1:], strict=True))
    pool = arguments.pool_size or Distillation.pool_size
    steps = max(1, int((arguments.seconds - pool * per_image) / per_step))
    if process_count() > 1:  # the main process's clock counts
        shared = Processes().share({"steps": torch.tensor(steps)}, 0, torch.device("cpu"))
        steps = int(shared["steps"])
    return steps


def run(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on the stream, experience by experience, and evaluate on the classes seen so far."""
    iterations = arguments.iterations
    if arguments.seconds is not None and name in ROWS:
        iterations = steps_within(name, seed, arguments)
    benchmark = load(arguments, arguments.experiences, seed)
    known = known_of(benchmark, seed, arguments)
    metrics: list[Any] = [
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(stream=True),
        bwt_metrics(stream=True),
    ]
    known.common["evaluator"] = evaluator = silent_evaluator(*metrics)
    method = build(name, known, seed, iterations)
    if method.plugin is not None:
        evaluator.metrics += generation_metrics(
            method.plugin,
            evaluation_classifier(arguments),
            metrics=METRICS.keys() - {"samples"},
            images=20 if arguments.smoke else 500,
        )
    start, evaluating, accuracies = time.perf_counter(), 0.0, []
    stream = benchmark.train_stream
    for step in [stream] if name == "joint" else stream:
        with warnings.catch_warnings(record=True):  # Avalanche's, of its own deprecated calls
            method.strategy.train(step, eval_streams=[])
        seen = len(stream) if step is stream else step.current_experience + 1
        began = time.perf_counter()
        values = method.strategy.eval(benchmark.test_stream[:seen])
        evaluating += time.perf_counter() - began
        accuracies.append(values[ACCURACY])
    line = {
        "name": name,
        "seed": seed,
        "accuracy": accuracies[-1],
        "accuracies": accuracies,
        "forgetting": values[FORGETTING] if len(accuracies) > 1 else None,
        "seconds": time.perf_counter() - start - evaluating,
        "kept MB": method.kept() / 1e6,
        "values": {name: float(value) for name, value in values.items()},
        "settings": settings_of(arguments, IGNORED),
        "environment": environment(arguments.device),
    }
    if method.plugin is not None:
        cost, training = method.plugin.cost, method.plugin.generator_strategy
        assert training is not None
        line |= {
            "mini-batches": asdict(method.plugin.mini_batches),
            "teacher forwards": cost.generation.forwards + cost.replay.forwards,
            "generator steps": training.train_iterations,
            "generator seconds": cost.seconds,
        }
        found = {key.split("_Stream/")[0]: value for key, value in values.items()}
        line |= {key: found[key] for key in FORMS if key in found}
    return line


def evaluation_classifier(arguments: argparse.Namespace) -> EvaluationClassifier:
    """Trained on all real images; kept in the output folder."""
    benchmark = load(arguments, 1, 0)
    file = arguments.output / f"classifier-{name_of(arguments)}.pt"
    return train_evaluation_classifier(benchmark.train_stream, file=file, device=arguments.device)


def draw(runs: dict[str, list[dict[str, Any]]], folder: Path, title: str) -> list[Path]:
    """Accuracy after each experience; final accuracy by what is kept, and by seconds."""
    curves = {
        name: [dict(enumerate(line["accuracies"], 1)) for line in lines]
        for name, lines in runs.items()
    }
    figures = {
        "accuracy": draw_curves(curves, "accuracy"),
        "kept": draw_points(runs, "kept MB", "megabytes kept"),
        "seconds": draw_points(runs, "seconds", "seconds of training"),
    }
    files = [folder / f"{title}-{name}.png" for name in figures]
    for figure, file in zip(figures.values(), files, strict=True):
        figure.savefig(file, dpi=DPI)
    return files


def draw_points(runs: dict[str, list[dict[str, Any]]], column: str, label: str) -> Figure:
    """Final accuracy by another column; names beside, best first, each tied to its point."""
    figure = Figure((6.4, max(4.0, 0.18 * len(runs))), layout="constrained")
    axis = figure.subplots()
    points = [
        (
            *mean_and_error([line["accuracy"] for line in lines]),
            lines[0]["name"],
            statistics.mean(line[column] for line in lines),
        )
        for lines in runs.values()
    ]
    for place, (accuracy, error, name, where) in enumerate(sorted(points, reverse=True)):
        (dot, *_) = axis.errorbar(where, accuracy, yerr=error, fmt="o", markersize=4)
        axis.annotate(
            name,
            (where, accuracy),
            (1.06, 1 - (place + 0.5) / len(points)),
            textcoords="axes fraction",
            size=7,
            va="center",
            color=dot.get_color(),
            arrowprops={
                "arrowstyle": "-",
                "color": dot.get_color(),
                "alpha": 0.3,
                "relpos": (0, 0.5),
            },
        )
    axis.set(xlabel=label, ylabel="final accuracy")
    axis.set_xscale("symlog", linthresh=0.01) if column == "kept MB" else axis.set_xscale("log")
    axis.grid(alpha=0.3)
    return figure


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """What a user may vary; ``methods`` are those of the groups too."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument(
        "--methods", nargs="+", type=method_name, help="default: some of each kind"
    )
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=[], help="of methods")
    parser.add_argument("--epochs", type=int, help="of the solver; default: 20 for digits, else 2")
    parser.add_argument("--pool-size", type=int, help="default: the plugin's")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--iterations", type=int, help="of the generator; default: the plugin's")
    budget.add_argument("--seconds", type=float, help="of a generator, per experience")
    parser.add_argument("--paper-scale", action="store_true", help="large networks; for a GPU")
    parser.add_argument(
        "--old-defaults", action="store_true", dest="old", help="MAGD as in version 0.1"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("results/compare"))
    parser.add_argument("--table", help="name of table and figures; default: the benchmark's")
    arguments = parser.parse_args(words)
    if arguments.images_per_class and arguments.benchmark != "fashion_mnist":
        parser.error("--images-per-class is for --benchmark fashion_mnist")
    if arguments.smoke:
        arguments.epochs, arguments.iterations, arguments.pool_size = 1, 3, 40
        arguments.seeds = arguments.seeds[:1]
    elif arguments.epochs is None:
        arguments.epochs = 20 if "digits" in arguments.benchmark else 2
    methods = [
        *(arguments.methods or []),
        *(name for each in arguments.groups for name in GROUPS[each]),
    ]
    arguments.methods = list(dict.fromkeys(methods)) or DEFAULT
    return arguments


def keys_of(
    arguments: argparse.Namespace, image_shape: tuple[int, int, int]
) -> dict[tuple[str, int], str]:
    """The key of each run that is asked for, by method and seed."""
    return {
        (name, seed): key_of(
            arguments, IGNORED, name, seed, recipe(name, image_shape, arguments.old)
        )
        for name in arguments.methods
        for seed in arguments.seeds
    }


def file_of(arguments: argparse.Namespace) -> Path:
    """Where the lines are."""
    folder: Path = arguments.output
    return folder / f"{name_of(arguments)}.jsonl"


def main() -> None:
    """Run what is missing, print the table, draw the figures."""
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    use_own_gpu()
    evaluation_classifier(arguments)
    image, *_ = load(arguments, 1, 0).train_stream[0].dataset[0]
    keys = keys_of(arguments, tuple(image.shape))
    lines = finish(
        file_of(arguments),
        {key: (name, seed, arguments) for (name, seed), key in keys.items()},
        run,
        arguments.jobs,
    )
    runs = {
        name: [lines[keys[name, seed]] for seed in arguments.seeds] for name in arguments.methods
    }
    if not is_main_process():
        return
    written = results_table(runs, FORMS)
    title = arguments.table or name_of(arguments)
    (arguments.output / f"{title}.md").write_text(written + "\n", encoding="utf-8")
    figures = draw(runs, arguments.output, title)
    print(f"\n{written}\n\nFigures: {', '.join(map(str, figures))}")


if __name__ == "__main__":
    main()
