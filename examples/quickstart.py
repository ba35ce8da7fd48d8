"""Quick start: class-incremental digits, with and without replay, stored or generated.

Five experiences of two digits each, the same solver and optimizer for all methods: Naive, Replay
with 100 stored images, Avalanche's GenerativeReplay with its own VAE, Naive with ``MAGDPlugin()``,
and joint training on everything as the upper bound. Prints one table and writes a report:
``report.md``, with accuracies, what is forgotten and what MAGD's generator remembers after each
experience, how good its images are, and what it cost.

Needs no download. Takes a few minutes on two CPU cores.

    python examples/quickstart.py
"""

import argparse
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics
from avalanche.logging import TextLogger
from avalanche.models import MlpVAE, SimpleMLP
from avalanche.models.generator import VAE_loss
from avalanche.training import GenerativeReplay, JointTraining, Naive, Replay, VAETraining
from avalanche.training.plugins import EvaluationPlugin, GenerativeReplayPlugin
from matplotlib.figure import Figure
from torch import nn

from avalanche_magd import DiffusionGenerator, MAGDPlugin
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.metrics import generation_metrics, train_evaluation_classifier
from avalanche_magd.reporting import RunLogger, write_report
from avalanche_magd.reporting.report import stream_values
from avalanche_magd.reporting.run_logger import read_runs

STORED_IMAGES = 100
ACCURACY = "Top1_Acc_Stream/eval_phase/test_stream/Task000"
FORGETTING = "StreamForgetting/eval_phase/test_stream"


def solver(epochs: int, seed: int) -> dict[str, Any]:
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


def run(strategy: Any, benchmark: Any) -> dict[str, float]:
    """Train on the stream, experience by experience, and evaluate on the classes seen so far."""
    metrics: dict[str, float] = {}
    stream = benchmark.train_stream
    for step in [stream] if isinstance(strategy, JointTraining) else stream:
        strategy.train(step)
        seen = len(stream) if step is stream else step.current_experience + 1
        metrics = strategy.eval(benchmark.test_stream[:seen])
    return metrics


def draw_overview(output: Path, benchmark: Any, generator: DiffusionGenerator) -> Path:
    """What the plugin is for, in one picture: accuracy, and what is replayed at the end.

    Args:
        output: of the run; it holds the runs' folders, and gets the picture.
        benchmark: that was learnt.
        generator: after the last experience.
    """
    figure = Figure((9.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(5, 6))
    for each in read_runs(output):
        points = {row.experiences: stream_values(row)["Top1_Acc"] for row in each.rows}
        if len(points) == 1:
            left.axhline(*points.values(), color="black", linestyle=":", label=each.name)
        else:
            width = 2.5 if "MAGD" in each.name else 1.2
            left.plot(*zip(*points.items(), strict=True), ".-", linewidth=width, label=each.name)
    left.set(xlabel="experiences learnt", ylabel="accuracy on the classes seen so far")
    left.set_xticks(range(1, len(benchmark.train_stream) + 1))
    left.grid(alpha=0.3)
    left.legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.42))
    classes = [each.classes_in_this_experience for each in benchmark.train_stream]
    torch.manual_seed(0)
    rows = [
        generator.pixel_range.to_unit(generator.generate(12, label)).cpu()
        for of_experience in classes
        for label in of_experience
    ]
    height, width = rows[0].shape[-2:]
    tiles = [nn.functional.pad(row[:, 0], (0, 1, 0, 1), value=1).unbind() for row in rows]
    right.imshow(torch.cat([torch.cat(row, 1) for row in tiles]), cmap="gray", vmin=0, vmax=1)
    names = [f"experience {number}" for number in range(1, len(classes) + 1)]
    middles = [(2 * number + 1) * (height + 1) - 1 for number in range(len(classes))]
    right.set_yticks(middles, names, fontsize=8)
    right.set_xticks([])
    right.tick_params(length=0)
    right.spines[:].set_visible(False)
    right.set_title("MAGD's images after the last experience, nothing stored", fontsize=10)
    file = output / "overview.png"
    figure.savefig(file, dpi=110)
    return file


def main() -> None:
    """Run every method, print the table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="class order and all randomness")
    parser.add_argument("--output", type=Path, default=Path("results/quickstart"))
    parser.add_argument("--smoke", action="store_true", help="tiny budgets, to see that it runs")
    arguments = parser.parse_args()
    output, seed = arguments.output, arguments.seed
    benchmark = split_digits(n_experiences=5, seed=seed)
    epochs = 1 if arguments.smoke else 20
    budget = {"generator_iterations": 5, "pool_size": 40} if arguments.smoke else {}
    plugin = MAGDPlugin(**budget)
    start = time.perf_counter()
    classifier = train_evaluation_classifier(
        benchmark.train_stream, file=output / "evaluation_classifier.pt"
    )
    classifier_seconds = time.perf_counter() - start

    def settings(name: str, *metrics: Any) -> dict[str, Any]:
        folder = output / name
        loggers = [
            RunLogger(folder, seed=seed),
            TextLogger((folder / "log.txt").open("w", encoding="utf-8")),
        ]
        evaluator = EvaluationPlugin(
            accuracy_metrics(experience=True, stream=True),
            forgetting_metrics(stream=True),
            bwt_metrics(stream=True),
            *metrics,
            loggers=loggers,
        )
        return {**solver(epochs, seed), "evaluator": evaluator}

    vae = vae_strategy(epochs)
    strategies = {
        "Naive": Naive(**settings("Naive")),
        "Replay": Replay(mem_size=STORED_IMAGES, **settings("Replay")),
        "GenerativeReplay (VAE)": GenerativeReplay(
            generator_strategy=vae, **settings("GenerativeReplay (VAE)")
        ),
        "Naive + MAGDPlugin()": Naive(
            plugins=[plugin],
            **settings("Naive + MAGDPlugin()", generation_metrics(plugin, classifier)),
        ),
        "joint training": JointTraining(**settings("joint training")),
    }
    lines = [f"{'method':<28}{'final accuracy':>16}{'forgetting':>12}{'stored':>8}{'seconds':>9}"]
    for name, strategy in strategies.items():
        print(f"{name} …", flush=True)
        torch.manual_seed(seed)
        start = time.perf_counter()
        # Avalanche's ReplayPlugin warns that it uses a deprecated method.
        with warnings.catch_warnings(record=True) if name == "Replay" else nullcontext():
            metrics = run(strategy, benchmark)
        seconds = time.perf_counter() - start
        stored = {"Replay": str(STORED_IMAGES), "joint training": "all"}.get(name, "0")
        forgetting = "–" if name == "joint training" else f"{metrics[FORGETTING]:.3f}"
        lines.append(
            f"{name:<28}{metrics[ACCURACY]:>16.3f}{forgetting:>12}{stored:>8}{seconds:>9.1f}"
        )
        if "MAGD" in name:
            looking = classifier_seconds + plugin.cost.evaluation.seconds
            share = looking / (classifier_seconds + seconds)
    print("\n" + "\n".join(lines))
    cost = plugin.cost
    print(
        f"\nMAGD's generator: {cost.generation.seconds:.0f} s for {cost.lessons:,} lessons "
        f"({cost.teacher_forwards_per_lesson:.2f} network forwards each, pool of "
        f"{cost.pool_bytes / 1e6:.1f} MB), {cost.training.seconds:.0f} s of training.\n"
        f"Metrics and evaluation classifier took {share:.1%} of MAGD's seconds.\n"
        f"Picture: {draw_overview(output, benchmark, plugin.generator)}\n"
        f"Report: {write_report(output)}"
    )


if __name__ == "__main__":
    main()
