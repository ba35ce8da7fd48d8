"""Ablation: the method's parts, its rivals and its arguments, one switch at a time.

Every row trains the same solver and the same generator on the same class-incremental benchmark;
what differs is named by the row. Groups of rows: ``modes`` (what MAGD is compared with, as
published and pooled, and the bounds), ``parts``, ``samplers``, ``losses``, ``teachers``,
``predictions``, ``solver`` (how replay reaches the solver), ``budget``.

With ``--equal-seconds`` each mode gets as many training steps as fit into the seconds that MAGD
takes, by a calibration on this machine, which is kept in the output folder.

Each finished run is a line of JSON; an interrupted or extended study runs only what is missing.
The table gives mean ± standard error over the seeds, and a figure the same.

Needs no download for digits. A run takes about a minute on two CPU cores; a group several hours
with five seeds.

    python examples/ablation.py --groups modes --seeds 0 1 2
"""

import argparse
import json
import math
import statistics
import time
import typing
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.training import Cumulative, Naive
from study import (
    ACCURACY,
    FORGETTING,
    Solver,
    add_arguments,
    finish,
    key_of,
    load,
    mean_and_error,
    results_table,
    silent_evaluator,
)
from torch import Tensor, nn

from avalanche_magd import DiffusionGenerator, MAGDPlugin, MAGDTraining
from avalanche_magd.distillation import MAGD, Distillation, baselines
from avalanche_magd.metrics import class_kld, frechet_distance, label_agreement, moments
from avalanche_magd.samplers import DEFAULT_SAMPLER, SamplerName
from avalanche_magd.sampling import reverse_runs

JUDGED_IMAGES = 2000


@dataclass(frozen=True)
class Row:
    """One line of the table: what differs from the defaults."""

    distillation: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    generator: dict[str, Any] = field(default_factory=dict)
    plugin: dict[str, Any] = field(default_factory=dict)
    bound: str = ""
    """``joint``: one experience of all classes; ``cumulative``: all data so far, no generator."""


def mode(mode: Any, **distillation: Any) -> Row:
    """A mode of distillation."""
    return Row({"mode": mode, **distillation})


GROUPS: dict[str, dict[str, Row]] = {
    "modes": {
        "magd": Row(),
        "fine-tuning": mode(None),
        "dgr, published": mode(baselines.dgr, fresh=True),
        "dgr, pooled": mode(baselines.dgr),
        "generative distillation, published": mode(baselines.generative_distillation, fresh=True),
        "generative distillation, pooled": mode(baselines.generative_distillation),
        "partial generation, published": mode(baselines.partial_generation, fresh=True),
        "gaussian distillation, published": mode(baselines.gaussian_distillation, fresh=True),
        "gaussian distillation, pooled": mode(baselines.gaussian_distillation),
        "lwf distillation, published": mode(baselines.lwf_distillation, fresh=True),
        "lwf distillation, pooled": mode(baselines.lwf_distillation),
        "ddgr, published": mode(baselines.dgr, fresh=True, classifier_scale=1.0),
        "ddgr, pooled": mode(baselines.dgr, classifier_scale=1.0),
        "cumulative": Row(bound="cumulative"),
        "joint": Row(bound="joint"),
    },
    "parts": {
        "magd": Row(),
        "magd with SGGD": mode(MAGD(snr_band=(0.01, 30.0))),
        "SGGD below 0.01 only": mode(MAGD(snr_band=(0.01, math.inf))),
        "SGGD above 30 only": mode(MAGD(snr_band=(0.0, 30.0))),
        "SGGD, safe band": mode(MAGD(snr_band="safe")),
        "without NIGD": mode(MAGD(trajectory_share=0.0)),
        "without CGGD": Row({"conditional": False}),
        "SGGD alone": mode(MAGD(0.0, (0.01, 30.0)), conditional=False),
        "no part": mode(MAGD(0.0), conditional=False),
        "guidance 1.5": Row({"guidance_scale": 1.5}),
        "guidance 2": Row({"guidance_scale": 2.0}),
        "classifier guidance 0.5": Row({"classifier_scale": 0.5}),
        "classifier guidance 2": Row({"classifier_scale": 2.0}),
    },
    "samplers": {
        f"{name}, {steps} steps": Row({"sampler": name, "num_inference_steps": steps})
        for name in ("ddim", "dpmpp_2m", "unipc")
        for steps in (2, 5, 10, 20)
    }
    | {f"ddim, eta {eta}": Row({"sampler": "ddim", "eta": eta}) for eta in (0.5, 1.0)},
    "losses": {
        f"trajectory share {share}": mode(MAGD(trajectory_share=share)) for share in (0.75, 0.5)
    }
    | {
        f"replay weight {weight}": Row({}, {"replay_weight": weight})
        for weight in (0.25, 0.5, 2, 4)
    }
    | {f"current weight {weight}": Row({}, {"current_weight": weight}) for weight in (0.1, 0.5)},
    "teachers": {
        "raw snapshot": Row({}, {"ema_decay": 0.0}),
        "average 0.98": Row({}, {"ema_decay": 0.98}),
        "average 0.999": Row({}, {"ema_decay": 0.999}),
        "fresh, snapshot": Row({"fresh": True}),
        "fresh, online average": Row({"fresh": True}, {"online_teacher": True}),
    },
    "predictions": {
        f"{prediction}, {schedule}": Row(
            {}, {}, {"prediction_type": prediction, "beta_schedule": schedule}
        )
        for prediction in ("epsilon", "v_prediction", "sample")
        for schedule in ("linear", "squaredcos_cap_v2")
    }
    | {"bfloat16": Row({}, {}, {"dtype": torch.bfloat16})},
    "solver": {
        f"generated share {share}": Row(plugin={"generated_share": share})
        for share in (0.0, 0.33, 0.5, 0.75)
    }
    | {
        f"soft labels {weight}": Row(plugin={"soft_label_weight": weight})
        for weight in (0.5, 1, 2)
    }
    | {"selected by the solver": Row(plugin={"select": True})},
    "budget": {f"pool of {size}": Row({"pool_size": size}) for size in (250, 500, 1000, 4000)}
    | {f"{steps} iterations": Row({}, {"train_iterations": steps}) for steps in (100, 200, 800)},
}


def tensors(stream: Any) -> tuple[Tensor, Tensor]:
    """All images and labels of a stream, without augmentation."""
    samples = [sample for exp in stream for sample in exp.dataset.eval()]
    images = torch.stack([image for image, *_ in samples])
    return images, torch.tensor([label for _, label, *_ in samples])


def train_judge(arguments: argparse.Namespace) -> Solver:
    """A classifier that saw all real training images; the same for every row."""
    benchmark = load(arguments, 1, 0)
    images, labels = tensors(benchmark.train_stream)
    torch.manual_seed(12345)
    judge = Solver(images.shape[1], benchmark.n_classes)
    file = arguments.output / "judge.pt"
    if file.exists():
        judge.load_state_dict(torch.load(file, weights_only=True))
        return judge.eval()
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
    for _ in range(2 if arguments.smoke else 15):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(judge(images[rows]), labels[rows]).backward()
            optimizer.step()
    test_images, test_labels = tensors(benchmark.test_stream)
    with torch.no_grad():
        right = (judge(test_images).argmax(1) == test_labels).float().mean()
    print(f"The judge is right on {right:.3f} of the test images.", flush=True)
    torch.save(judge.state_dict(), file)
    return judge.eval()


@torch.no_grad()
def judged(
    generator: DiffusionGenerator, judge: Solver, benchmark: Any, sampler: SamplerName
) -> dict[str, float]:
    """How good what the generator remembers at the end is, in the judge's eyes."""
    real, real_labels = tensors(benchmark.test_stream)
    if len(real) > JUDGED_IMAGES:
        chosen = torch.randperm(len(real), generator=torch.Generator().manual_seed(999))
        real, real_labels = (column[chosen[:JUDGED_IMAGES]] for column in (real, real_labels))
    rng = torch.Generator(generator.device).manual_seed(999)
    labels = real_labels.to(generator.device)
    steps, shape = generator.num_inference_steps, generator.image_shape
    with generator.frozen():
        runs = reverse_runs(
            generator, generator.schedule, shape, labels, steps, rng, sampler=sampler
        )
        images = torch.cat([run.images for run in runs])
    generated = generator.pixel_range.to_data(images).to(real)
    seen = judge(generated).argmax(1)
    features = (moments(judge.body(images)) for images in (real, generated))
    return {
        "frechet": frechet_distance(*features),
        "label agreement": label_agreement(real_labels, seen),
        "class KLD": class_kld(real_labels, seen),
    }


def build(row: Row, image_shape: Any, arguments: argparse.Namespace, seed: int) -> MAGDTraining:
    """The row's generator and its training."""
    torch.manual_seed(seed)
    generator = DiffusionGenerator(image_shape, **row.generator)
    settings = {
        "pool_size": arguments.pool_size,
        "sampler": arguments.sampler,
        **row.distillation,
    }
    return MAGDTraining(
        model=generator,
        optimizer=torch.optim.AdamW(generator.parameters(), lr=2e-3, fused=True),
        distillation=Distillation(**settings),
        **{"train_iterations": arguments.iterations, "seed": seed, **row.training},
        progress=False,
    )


def run(name: str, row: Row, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train solver and generator on all experiences, and judge them."""
    benchmark = load(arguments, 1 if row.bound == "joint" else arguments.experiences, seed)
    image, *_ = benchmark.train_stream[0].dataset[0]
    plugins: list[Any] = []
    if row.bound != "cumulative":
        training = build(row, tuple(image.shape), arguments, seed)
        if row.bound == "joint":
            training.train_iterations *= arguments.experiences
        plugins.append(MAGDPlugin(training, **row.plugin, seed=seed))
    torch.manual_seed(seed)
    model = Solver(len(image), benchmark.n_classes)
    strategy = (Cumulative if row.bound == "cumulative" else Naive)(
        model=model,
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=32,
        eval_mb_size=512,
        train_epochs=arguments.epochs,
        plugins=plugins,
        evaluator=silent_evaluator(accuracy_metrics(stream=True), forgetting_metrics(stream=True)),
    )
    start = time.perf_counter()
    for experience in benchmark.train_stream:
        strategy.train(experience)
        metrics = strategy.eval(benchmark.test_stream[: experience.current_experience + 1])
    result = {
        "name": name,
        "seed": seed,
        "accuracy": metrics[ACCURACY],
        "seconds": time.perf_counter() - start,
    }
    if len(benchmark.train_stream) > 1:
        result["forgetting"] = metrics[FORGETTING]
    if plugins:
        cost = training.cost
        result |= {
            "generator seconds": cost.seconds,
            "teacher forwards": cost.generation.forwards + cost.replay.forwards,
            "forwards": cost.forwards,
            "backwards": cost.training.backwards,
            "per lesson": cost.teacher_forwards_per_lesson,
            "iterations": training.train_iterations,
        } | judged(training.model, train_judge(arguments), benchmark, arguments.sampler)
    return result


def calibrate(rows: dict[str, Row], arguments: argparse.Namespace) -> dict[str, int]:
    """Training steps of each row that take the seconds of MAGD's, generation included.

    All rows are timed side by side, in three rounds; medians count.
    """
    file = arguments.output / "calibration.json"
    if not file.exists():
        named = {"magd": GROUPS["modes"]["magd"], **rows}
        timed = {name: Stopwatch(row, arguments) for name, row in named.items() if not row.bound}
        rounds = [{name: each.round() for name, each in timed.items()} for _ in range(3)]
        medians = {
            name: [
                statistics.median(column)
                for column in zip(*(one[name] for one in rounds), strict=True)
            ]
            for name in timed
        }
        write(file, medians)
    known: dict[str, tuple[float, float]] = json.loads(file.read_text())
    if unknown := {name for name, row in rows.items() if not row.bound} - set(known):
        raise SystemExit(f"{file} does not know {sorted(unknown)}: remove it, or their results.")
    per_image, per_step = known["magd"]
    budget = per_image * arguments.pool_size + per_step * arguments.iterations
    return {
        name: max(1, int((budget - per_image * arguments.pool_size) / per_step))
        for name, (per_image, per_step) in known.items()
        if name in rows
    }


class Stopwatch:
    """Times a row's pool, per image, and its training, per step."""

    def __init__(self, row: Row, arguments: argparse.Namespace) -> None:
        self.steps, self.images = (2, 20) if arguments.smoke else (20, 200)
        benchmark = load(arguments, 5, 0)
        self.experiences = iter(benchmark.train_stream)
        image, *_ = benchmark.train_stream[0].dataset[0]
        settings = {**row.distillation, "pool_size": self.images}
        row = replace(
            row, distillation=settings, training={**row.training, "train_iterations": self.steps}
        )
        self.training = build(row, tuple(image.shape), arguments, 0)
        model = Solver(len(image), benchmark.n_classes)
        self.strategy = Naive(
            model=model,
            optimizer=torch.optim.Adam(model.parameters()),
            plugins=[MAGDPlugin(self.training, **row.plugin, seed=0)],
            evaluator=silent_evaluator(),
        )
        self.strategy.train(next(self.experiences))

    def round(self) -> tuple[float, float]:
        """Seconds per image of the pool and per step, on one experience."""
        before = deepcopy(self.training.cost)
        self.strategy.train(next(self.experiences))
        generation, replay, steps = (
            getattr(self.training.cost, phase).seconds - getattr(before, phase).seconds
            for phase in ("generation", "replay", "training")
        )
        if self.training.distillation.fresh:
            return replay / self.images, (steps + generation) / self.steps
        return (generation + replay) / self.images, steps / self.steps


def write(file: Path, content: Any) -> None:
    """A JSON file that is whole or not there."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1))
    partial.replace(file)


COLUMNS = {
    "accuracy": ".3f",
    "forgetting": ".3f",
    "frechet": ".2f",
    "label agreement": ".3f",
    "class KLD": ".4f",
    "teacher forwards": ",.0f",
    "per lesson": ".2f",
    "iterations": ".0f",
    "seconds": ".1f",
}


def draw(results: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Accuracy and Fréchet distance of each row, with their errors."""
    names = list(results)[::-1]
    size = (10, 1.2 + 0.3 * len(names))
    figure, axes = plt.subplots(1, 2, sharey=True, figsize=size, layout="constrained")
    for axis, column in zip(axes, ("accuracy", "frechet"), strict=True):
        for place, name in enumerate(names):
            values = [run[column] for run in results[name] if column in run]
            if values:
                mean, error = mean_and_error(values)
                axis.errorbar(mean, place, xerr=error, fmt="o", color="C0")
        axis.set_xlabel({"accuracy": "final accuracy", "frechet": "Fréchet distance"}[column])
        axis.grid(alpha=0.3)
    axes[1].set_xscale("log")
    axes[0].set_yticks(range(len(names)), names)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run what is missing, print the table, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=["modes"])
    parser.add_argument("--rows", nargs="+", help="only these rows of the groups")
    parser.add_argument("--epochs", type=int, default=20, help="of the solver, per experience")
    parser.add_argument("--iterations", type=int, default=400, help="of the generator")
    parser.add_argument("--pool-size", type=int, default=2000)
    samplers = typing.get_args(SamplerName)
    parser.add_argument("--sampler", choices=samplers, default=DEFAULT_SAMPLER)
    parser.add_argument("--equal-seconds", action="store_true", help="see above")
    parser.add_argument("--output", type=Path, default=Path("results/ablation"))
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.epochs, arguments.iterations, arguments.pool_size = 1, 3, 20
        arguments.seeds = arguments.seeds[:1]
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = {name: row for group in arguments.groups for name, row in GROUPS[group].items()}
    if unknown := set(arguments.rows or []) - set(rows):
        raise SystemExit(f"No such rows: {sorted(unknown)}. There are: {', '.join(rows)}.")
    rows = {name: row for name, row in rows.items() if name in (arguments.rows or rows)}
    train_judge(arguments)
    if arguments.equal_seconds:
        for name, iterations in calibrate(rows, arguments).items():
            training = {**rows[name].training, "train_iterations": iterations}
            rows[name] = replace(rows[name], training=training)
    ignored = ("groups", "rows", "equal_seconds")
    keys = {
        (name, seed): key_of(arguments, ignored, row, seed)
        for name, row in rows.items()
        for seed in arguments.seeds
    }
    tasks = {key: (name, rows[name], seed, arguments) for (name, seed), key in keys.items()}
    lines = finish(arguments.output / "runs.jsonl", tasks, run, arguments.jobs)
    results = {name: [lines[keys[name, seed]] for seed in arguments.seeds] for name in rows}
    title = "-".join(arguments.groups)
    written = results_table(results, COLUMNS)
    (arguments.output / f"{title}.md").write_text(written + "\n")
    draw(results, arguments.output / f"{title}.png")
    print(f"\n{written}\n\nFigure: {arguments.output / title}.png")


if __name__ == "__main__":
    main()
