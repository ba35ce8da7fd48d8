"""Digits as an online stream: ten images at a time, and no second look.

Naive, Replay with 100 stored images, and Naive with ``MAGDPlugin()``, which stores none. Each part
of the stream is one ``train()`` call; its generator learns a few steps with each. Prints a table:
final accuracy, and the seconds that an early and a late part took, since each shall cost the same.

Needs no download. Takes two minutes on two CPU cores.

    python examples/online.py
"""

import argparse
import statistics
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TextLogger
from avalanche.models import SimpleMLP
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits

ACCURACY = "Top1_Acc_Stream/eval_phase/test_stream/Task000"
STORED_IMAGES = 100


def run(
    plugins: list[Any], benchmark: Any, arguments: argparse.Namespace, log: Path
) -> tuple[float, list[float]]:
    """Train on the stream, part by part; the final accuracy, and the seconds of each part."""
    torch.manual_seed(arguments.seed)
    model = SimpleMLP(num_classes=10, input_size=64)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=arguments.part_size,
        train_epochs=arguments.epochs,
        eval_mb_size=512,
        plugins=plugins,
        evaluator=EvaluationPlugin(
            accuracy_metrics(stream=True), loggers=[TextLogger(log.open("w", encoding="utf-8"))]
        ),
    )
    seconds = []
    stream = split_online_stream(benchmark.train_stream, arguments.part_size, seed=arguments.seed)
    for part in stream:
        start = time.perf_counter()
        strategy.train(part, eval_streams=[])
        seconds.append(time.perf_counter() - start)
    return strategy.eval(benchmark.test_stream)[ACCURACY], seconds


def main() -> None:
    """Run the three methods and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="class order and all randomness")
    parser.add_argument("--part-size", type=int, default=10, help="images per train() call")
    parser.add_argument("--epochs", type=int, default=5, help="passes over each part")
    parser.add_argument("--output", type=Path, default=Path("results/online"))
    parser.add_argument("--smoke", action="store_true", help="tiny budgets, to see that it runs")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.smoke:
        arguments.part_size, arguments.epochs = 100, 1
    benchmark = split_digits(n_experiences=5, seed=arguments.seed)
    print(f"{'method':<24}{'final accuracy':>16}{'stored':>8}{'early part':>13}{'late part':>12}")
    for name, plugins, stored in (
        ("Naive", [], 0),
        ("Replay", [ReplayPlugin(mem_size=STORED_IMAGES)], STORED_IMAGES),
        ("Naive + MAGDPlugin()", [MAGDPlugin()], 0),
    ):
        # Avalanche's ReplayPlugin warns at each part that it uses a deprecated method.
        with warnings.catch_warnings(record=True) if name == "Replay" else nullcontext():
            accuracy, seconds = run(
                plugins, benchmark, arguments, arguments.output / f"{name}.log"
            )
        # Parts of the second experience, the first with a past, and of the last.
        fifth = len(seconds) // 5
        early, late = (
            statistics.median(part) for part in (seconds[fifth : 2 * fifth], seconds[-fifth:])
        )
        print(f"{name:<24}{accuracy:>16.3f}{stored:>8}{early:>11.2f} s{late:>10.2f} s", flush=True)


if __name__ == "__main__":
    main()
