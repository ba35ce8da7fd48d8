"""Quick start: class-incremental digits, with and without replay, stored or generated.

Five experiences of two digits each, the same solver and optimizer for all methods: Naive, Replay
with 100 stored images, Avalanche's GenerativeReplay with its own VAE, Naive with ``MAGDPlugin()``,
and joint training on everything as the upper bound. Prints one table and writes one picture: the
digits that MAGD's generator remembers after each experience, and the accuracy of every method.

Needs no download. Takes a few minutes on two CPU cores.

    python examples/quickstart.py
"""

import argparse
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.logging import TextLogger
from avalanche.models import MlpVAE, SimpleMLP
from avalanche.models.generator import VAE_loss
from avalanche.training import GenerativeReplay, JointTraining, Naive, Replay, VAETraining
from avalanche.training.plugins import EvaluationPlugin, GenerativeReplayPlugin
from torch import Tensor

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits

STORED_IMAGES = 100


class Outcome(NamedTuple):
    """What one method reached."""

    accuracies: list[float]
    """On all classes seen, after each experience."""
    forgetting: float
    seconds: float
    remembered: list[Tensor]
    """After each experience, generated digits of the classes seen, one per class."""


def evaluator(log: Path) -> EvaluationPlugin:
    """Avalanche's metrics, written to a log file."""
    logger = TextLogger(log.open("w"))
    return EvaluationPlugin(
        accuracy_metrics(stream=True), forgetting_metrics(stream=True), loggers=[logger]
    )


def solver(log: Path, epochs: int, seed: int) -> dict[str, Any]:
    """The same model, optimizer and settings for each method."""
    torch.manual_seed(seed)
    model = SimpleMLP(num_classes=10, input_size=64, hidden_size=256)
    return {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-3),
        "criterion": torch.nn.CrossEntropyLoss(),
        "train_mb_size": 32,
        "eval_mb_size": 512,
        "train_epochs": epochs,
        "evaluator": evaluator(log),
    }


def vae_strategy(epochs: int) -> VAETraining:
    """The generator that GenerativeReplay builds by default, for 8 × 8 images, not 28 × 28."""
    vae = MlpVAE((1, 8, 8), nhid=2)
    return VAETraining(
        model=vae,
        optimizer=torch.optim.Adam(vae.parameters(), lr=0.01, weight_decay=1e-4),
        criterion=VAE_loss,
        train_mb_size=32,
        train_epochs=epochs,
        plugins=[GenerativeReplayPlugin()],
        evaluator=None,
    )


def run(strategy: Any, benchmark: Any, plugin: MAGDPlugin | None = None) -> Outcome:
    """Train on the stream, experience by experience, and evaluate on the classes seen so far."""
    accuracies, remembered, metrics = [], [], {}
    start = time.perf_counter()
    stream = benchmark.train_stream
    for step in [stream] if isinstance(strategy, JointTraining) else stream:
        strategy.train(step)
        seen = len(stream) if step is stream else step.current_experience + 1
        metrics = strategy.eval(benchmark.test_stream[:seen])
        accuracies.append(metrics["Top1_Acc_Stream/eval_phase/test_stream/Task000"])
        if plugin is not None and plugin.generator is not None:
            order = [label for exp in stream[:seen] for label in exp.classes_in_this_experience]
            remembered.append(plugin.generator.generate(condition=torch.tensor(order)))
    forgetting = metrics.get("StreamForgetting/eval_phase/test_stream", 0.0)
    return Outcome(accuracies, forgetting, time.perf_counter() - start, remembered)


def print_table(outcomes: dict[str, Outcome]) -> None:
    """One row per method."""
    print(f"\n{'method':<28}{'final accuracy':>16}{'forgetting':>12}{'stored':>8}{'seconds':>9}")
    for name, outcome in outcomes.items():
        stored = {"Replay": str(STORED_IMAGES), "joint training": "all"}.get(name, "0")
        forgetting = "–" if name == "joint training" else f"{outcome.forgetting:.3f}"
        print(
            f"{name:<28}{outcome.accuracies[-1]:>16.3f}{forgetting:>12}{stored:>8}"
            f"{outcome.seconds:>9.1f}"
        )


def draw(outcomes: dict[str, Outcome], benchmark: Any, file: Path) -> None:
    """Generated digits after each experience, and accuracy over time."""
    remembered = outcomes["Naive + MAGDPlugin()"].remembered
    figure = plt.figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))
    classes = len(remembered[-1])
    cells = left.subplots(classes, len(remembered), squeeze=False)
    labels = [y for exp in benchmark.train_stream for y in exp.classes_in_this_experience]
    for column, images in enumerate(remembered):
        cells[0, column].set_title(f"after {column + 1}", fontsize=9)
        for row in range(classes):
            cell = cells[row, column]
            cell.set(xticks=[], yticks=[])
            cell.axis("on" if column == 0 else "off")
            for spine in cell.spines.values():
                spine.set_visible(False)
            if column == 0:
                cell.set_ylabel(labels[row], rotation=0, fontsize=9, labelpad=8, va="center")
            if row < len(images):
                cell.imshow(images[row, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    left.suptitle("what the generator remembers")
    axes = right.subplots()
    for name, outcome in outcomes.items():
        if len(outcome.accuracies) == 1:
            axes.axhline(outcome.accuracies[0], color="gray", linestyle=":", label=name)
        else:
            experiences = range(1, len(outcome.accuracies) + 1)
            axes.plot(experiences, outcome.accuracies, marker="o", label=name)
    axes.set(xlabel="experiences", ylabel="accuracy on all classes seen", ylim=(0, 1.02))
    axes.set_xticks(range(1, len(remembered) + 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Run every method, print the table, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="class order and all randomness")
    parser.add_argument("--output", type=Path, default=Path("results/quickstart"))
    parser.add_argument("--smoke", action="store_true", help="tiny budgets, to see that it runs")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    benchmark = split_digits(n_experiences=5, seed=arguments.seed)
    epochs = 1 if arguments.smoke else 20
    budget = {"generator_iterations": 5, "pool_size": 40} if arguments.smoke else {}
    plugin = MAGDPlugin(**budget)

    def settings(name: str) -> dict[str, Any]:
        return solver(arguments.output / f"{name}.log", epochs, arguments.seed)

    outcomes: dict[str, Outcome] = {}
    for name, strategy in (
        ("Naive", Naive(**settings("naive"))),
        ("Replay", Replay(mem_size=STORED_IMAGES, **settings("replay"))),
        (
            "GenerativeReplay (VAE)",
            GenerativeReplay(generator_strategy=vae_strategy(epochs), **settings("vae")),
        ),
        ("Naive + MAGDPlugin()", Naive(plugins=[plugin], **settings("magd"))),
        ("joint training", JointTraining(**settings("joint"))),
    ):
        print(f"{name} …", flush=True)
        torch.manual_seed(arguments.seed)
        # Avalanche's ReplayPlugin warns that it uses a deprecated method.
        with warnings.catch_warnings(record=True) if name == "Replay" else nullcontext():
            outcomes[name] = run(strategy, benchmark, plugin if "MAGD" in name else None)
    print_table(outcomes)
    cost = plugin.cost
    print(
        f"\nMAGD's generator: {cost.generation.seconds:.0f} s for {cost.lessons:,} lessons "
        f"({cost.teacher_forwards_per_lesson:.2f} network forwards each, pool of "
        f"{cost.pool_bytes / 1e6:.1f} MB), {cost.training.seconds:.0f} s of training."
    )
    picture = arguments.output / "quickstart.png"
    draw(outcomes, benchmark, picture)
    print(f"Picture: {picture}")


if __name__ == "__main__":
    main()
