"""Ablation: the method's parts, its rivals and its arguments, one switch at a time.

Every row trains the same solver and the same generator on the same class-incremental benchmark;
what differs is named by the row. Groups of rows: ``modes`` (what MAGD is compared with, as
published and pooled, and the bounds), ``parts``, ``samplers``, ``losses``, ``teachers``,
``predictions``, ``solver`` (how replay reaches the solver), ``budget``.

With ``--equal-seconds`` each mode gets as many training steps as fit into the seconds that MAGD
takes, by a calibration on this machine, which is kept in the output folder.

Each finished run is a JSON file; an interrupted or extended study runs only what is missing. The
table gives mean ± standard error over the seeds, and ``ablation.png`` the same as a figure.

Needs no download for digits. A run takes about a minute on two CPU cores; a group several hours
with five seeds.

    python examples/ablation.py --groups modes --seeds 0 1 2
"""

import argparse
import hashlib
import json
import math
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import dataclass, field, replace
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.logging import TextLogger
from avalanche.training import Cumulative, Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn

from avalanche_magd import DiffusionGenerator, MAGDPlugin, MAGDTraining
from avalanche_magd.benchmarks import split_digits, split_fashion_mnist, split_image_folder
from avalanche_magd.distillation import MAGD, Distillation, baselines
from avalanche_magd.metrics import class_kld, frechet_distance, label_agreement, moments

JUDGED_IMAGES = 2000
STREAM_ACCURACY = "Top1_Acc_Stream/eval_phase/test_stream/Task000"
STREAM_FORGETTING = "StreamForgetting/eval_phase/test_stream"


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
    | {f"ddim, eta {eta}": Row({"eta": eta}) for eta in (0.5, 1.0)},
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


class Classifier(nn.Module):
    """A small convolutional network: the solver, and the judge of what is generated."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 16, 128),
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(128, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.features(x))
        return logits


def load(arguments: argparse.Namespace, experiences: int, seed: int) -> Any:
    """The benchmark that was asked for."""
    if arguments.benchmark == "folder":
        size = arguments.image_size
        return split_image_folder(arguments.root, experiences, image_size=size, seed=seed)
    if arguments.benchmark == "fashion_mnist":
        per_class = arguments.images_per_class
        return split_fashion_mnist(
            experiences, root=arguments.root, images_per_class=per_class, seed=seed
        )
    return split_digits(experiences, seed=seed)


def tensors(stream: Any) -> tuple[Tensor, Tensor]:
    """All images and labels of a stream, without augmentation."""
    samples = [sample for exp in stream for sample in exp.dataset.eval()]
    images = torch.stack([image for image, *_ in samples])
    return images, torch.tensor([label for _, label, *_ in samples])


def train_judge(arguments: argparse.Namespace) -> Classifier:
    """A classifier that saw all real training images; the same for every row."""
    benchmark = load(arguments, 1, 0)
    images, labels = tensors(benchmark.train_stream)
    torch.manual_seed(12345)
    judge = Classifier(images.shape[1], benchmark.n_classes)
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
def judged(generator: DiffusionGenerator, judge: Classifier, benchmark: Any) -> dict[str, float]:
    """How good what the generator remembers at the end is, in the judge's eyes."""
    real, real_labels = tensors(benchmark.test_stream)
    if len(real) > JUDGED_IMAGES:
        chosen = torch.randperm(len(real), generator=torch.Generator().manual_seed(999))
        real, real_labels = (column[chosen[:JUDGED_IMAGES]] for column in (real, real_labels))
    rng = torch.Generator(generator.device).manual_seed(999)
    labels = real_labels.to(generator.device)
    generated = generator.generate(condition=labels, rng=rng).to(real)
    seen = judge(generated).argmax(1)
    features = (moments(judge.features(images)) for images in (real, generated))
    return {
        "frechet": frechet_distance(*features),
        "label agreement": label_agreement(real_labels, seen),
        "class KLD": class_kld(real_labels, seen),
    }


def evaluator() -> EvaluationPlugin:
    """Accuracy and forgetting, kept in memory."""
    logger = TextLogger(StringIO())
    return EvaluationPlugin(
        accuracy_metrics(stream=True), forgetting_metrics(stream=True), loggers=[logger]
    )


def build(row: Row, image_shape: Any, arguments: argparse.Namespace, seed: int) -> MAGDTraining:
    """The row's generator and its training."""
    torch.manual_seed(seed)
    generator = DiffusionGenerator(image_shape, **row.generator)
    settings = {"pool_size": arguments.pool_size, **row.distillation}
    return MAGDTraining(
        model=generator,
        optimizer=torch.optim.AdamW(generator.parameters(), lr=2e-3, fused=True),
        distillation=Distillation(**settings),
        **{"train_iterations": arguments.iterations, "seed": seed, **row.training},
        progress=False,
    )


def run(row: Row, arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """Train solver and generator on all experiences, and judge them."""
    torch.set_num_threads(max(1, torch.get_num_threads() // arguments.jobs))
    benchmark = load(arguments, 1 if row.bound == "joint" else arguments.experiences, seed)
    image, *_ = benchmark.train_stream[0].dataset[0]
    plugins: list[Any] = []
    if row.bound != "cumulative":
        training = build(row, tuple(image.shape), arguments, seed)
        if row.bound == "joint":
            training.train_iterations *= arguments.experiences
        plugins.append(MAGDPlugin(training, **row.plugin, seed=seed))
    torch.manual_seed(seed)
    model = Classifier(len(image), benchmark.n_classes)
    strategy = (Cumulative if row.bound == "cumulative" else Naive)(
        model=model,
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=32,
        eval_mb_size=512,
        train_epochs=arguments.epochs,
        plugins=plugins,
        evaluator=evaluator(),
    )
    start = time.perf_counter()
    for experience in benchmark.train_stream:
        strategy.train(experience)
        metrics = strategy.eval(benchmark.test_stream[: experience.current_experience + 1])
    result = {"accuracy": metrics[STREAM_ACCURACY], "seconds": time.perf_counter() - start}
    if len(benchmark.train_stream) > 1:
        result["forgetting"] = metrics[STREAM_FORGETTING]
    if plugins:
        cost = training.cost
        result |= {
            "generator seconds": cost.seconds,
            "teacher forwards": cost.generation.forwards + cost.replay.forwards,
            "forwards": cost.forwards,
            "backwards": cost.training.backwards,
            "per lesson": cost.teacher_forwards_per_lesson,
            "iterations": training.train_iterations,
        } | judged(training.model, train_judge(arguments), benchmark)
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
        model = Classifier(len(image), benchmark.n_classes)
        self.strategy = Naive(
            model=model,
            optimizer=torch.optim.Adam(model.parameters()),
            plugins=[MAGDPlugin(self.training, **row.plugin, seed=0)],
            evaluator=evaluator(),
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


def cached(row: Row, seed: int, arguments: argparse.Namespace) -> Path:
    """Where a run's result is kept: another file for other settings."""
    ignored = {"output", "seeds", "groups", "rows", "jobs", "equal_seconds", "root"}
    settings = {key: value for key, value in vars(arguments).items() if key not in ignored}
    said = re.sub(" at 0x[0-9a-f]+", "", repr((row, sorted(settings.items())))).encode()
    return arguments.output / f"{hashlib.sha256(said).hexdigest()[:12]}-{seed}.json"


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


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean, and its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.mean(values), error


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table: mean ± standard error over the seeds."""
    lines = [f"| row | seeds | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    for name, runs in results.items():
        cells = []
        for column, form in COLUMNS.items():
            values = [run[column] for run in runs if column in run]
            if not values:
                cells.append("–")
                continue
            mean, error = mean_and_error(values)
            spread = f" ± {error:{form}}" if error and column != "iterations" else ""
            cells.append(f"{mean:{form}}{spread}")
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


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


def work(row: Row, seed: int, arguments: argparse.Namespace, file: Path) -> None:
    """One run, in a process of its own."""
    write(file, run(row, arguments, seed))


def main() -> None:
    """Run what is missing, print the table, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=["modes"])
    parser.add_argument("--rows", nargs="+", help="only these rows of the groups")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    names = ("digits", "fashion_mnist", "folder")
    parser.add_argument("--benchmark", choices=names, default="digits")
    parser.add_argument("--root", type=Path, help="where the images are")
    parser.add_argument("--image-size", type=int, default=32, help="side of a folder's images")
    parser.add_argument("--images-per-class", type=int, help="of Fashion-MNIST; default: all")
    parser.add_argument("--experiences", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20, help="of the solver, per experience")
    parser.add_argument("--iterations", type=int, default=400, help="of the generator")
    parser.add_argument("--pool-size", type=int, default=2000)
    parser.add_argument("--equal-seconds", action="store_true", help="see above")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, cores shared evenly")
    parser.add_argument("--output", type=Path, default=Path("results/ablation"))
    parser.add_argument("--smoke", action="store_true", help="tiny budgets, to see that it runs")
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
    files = {
        (name, seed): cached(row, seed, arguments)
        for seed in arguments.seeds
        for name, row in rows.items()
    }
    missing = [key for key, file in files.items() if not file.exists()]
    print(f"{len(files) - len(missing)} of {len(files)} runs are there.", flush=True)
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        futures = {
            pool.submit(work, rows[name], seed, arguments, files[name, seed]): (name, seed)
            for name, seed in missing
        }
        for done in as_completed(futures):
            done.result()
            name, seed = futures[done]
            result = json.loads(files[name, seed].read_text())
            print(f"{name}, seed {seed}: accuracy {result['accuracy']:.3f}", flush=True)
    results = {
        name: [json.loads(files[name, seed].read_text()) for seed in arguments.seeds]
        for name in rows
    }
    title = "-".join(arguments.groups)
    written = table(results)
    (arguments.output / f"{title}.md").write_text(written + "\n")
    draw(results, arguments.output / f"{title}.png")
    print(f"\n{written}\n\nFigure: {arguments.output / title}.png")


if __name__ == "__main__":
    main()
