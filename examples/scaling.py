"""Scaling: what MAGD costs as experiences, pool and images grow.

40 classes of real images, made of the digits, two in each experience, ``MAGDPlugin()`` and the
small solver of the other studies. One table, in three parts:

* 20 experiences: seconds and bytes of the 2nd, 5th, 10th and 20th;
* pools of 500 to 8,000 images: seconds and bytes of the second experience;
* sides of 8 to 64 pixels, digits resized, default network of each side: seconds of a training step
  of the generator and of a generated image, and what the defaults make of these per experience.

Seconds are ratios to the second experience with defaults at 8 × 8: only they carry over to another
machine. Bytes do not depend on it.

    python examples/scaling.py --output examples/results

Takes several times as long as the quick start, which has five experiences.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from avalanche.training import Naive
from study import Solver, forty_digits, silent_evaluator
from torch import nn

from avalanche_magd import MAGDPlugin
from avalanche_magd.distillation import Distillation
from avalanche_magd.runtime.markdown import table
from avalanche_magd.training.defaults import default_iterations

EXPERIENCES = 20


def run(
    experiences: int, side: int = 8, iterations: int | None = None, **settings: Any
) -> list[dict[str, float]]:
    """Train on some experiences; what each of them took."""
    benchmark = forty_digits(EXPERIENCES, side=side)
    plugin = MAGDPlugin(seed=0, generator_iterations=iterations, **settings)
    plugin.progress = False
    torch.manual_seed(0)
    model = Solver(1, benchmark.n_classes)
    strategy = Naive(
        model=model,
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=32,
        train_epochs=1,  # its time is not counted
        plugins=[plugin],
        evaluator=silent_evaluator(),
    )
    rows = []
    for experience in benchmark.train_stream[:experiences]:
        before = copy.deepcopy(plugin.cost)
        strategy.train(experience, eval_streams=[])
        now = plugin.cost
        generation = now.generation.seconds - before.generation.seconds
        replay = now.replay.seconds - before.replay.seconds
        rows.append(
            {
                "generation": generation + replay,
                "training": now.training.seconds - before.training.seconds,
                "seconds": now.seconds - before.seconds,
                "teacher forwards": now.generation.forwards
                + now.replay.forwards
                - before.generation.forwards
                - before.replay.forwards,
                "pool bytes": now.pool_bytes,
                "kept bytes": sum(each.nbytes for each in plugin.generator.parameters()),
            }
        )
    return rows


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny budgets, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("results/scaling"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    smoke = arguments.smoke
    budget = {"iterations": 2, "pool_size": 40} if smoke else {}
    last = 4 if smoke else EXPERIENCES
    stream = run(last, **budget)
    unit = stream[1]["seconds"]
    rows = [
        {"vary": "experience", "value": number, **stream[number - 1]}
        for number in sorted({2, min(5, last), min(10, last), last})
    ]
    for size in (20, 40) if smoke else (500, 1000, 2000, 4000, 8000):
        settings = {**budget, "pool_size": size}
        rows.append({"vary": "pool", "value": size, **run(2, **settings)[1]})
    # A few steps and images of each side tell the price of one.
    steps, images = (2, 40) if smoke else (20, 200)
    for side in (8, 16, 28, 32, 64):
        few = run(2, side, steps, pool_size=images)[1]
        training = few["training"] * default_iterations((1, side, side)) / steps
        # Images of old classes, and as many of the two new ones.
        generation = few["generation"] * Distillation.pool_size / images
        rows.append(
            {
                "vary": "side",
                "value": side,
                **few,
                "training": training,
                "generation": generation,
                "seconds": training + generation,
                "teacher forwards": few["teacher forwards"] * Distillation.pool_size / images,
                "pool bytes": few["pool bytes"] * Distillation.pool_size / images,
            }
        )
    (arguments.output / "scaling.json").write_text(
        json.dumps(rows, indent=1) + "\n", encoding="utf-8"
    )
    head = ["", "", "generation", "training", "both", "teacher forwards", "pool, MB", "kept, MB"]
    written = table(
        head,
        [
            [
                str(row["vary"]),
                f"{row['value']:,}",
                *(f"{row[part] / unit:.2f}" for part in ("generation", "training", "seconds")),
                f"{row['teacher forwards']:,.0f}",
                *(f"{row[part] / 1e6:.1f}" for part in ("pool bytes", "kept bytes")),
            ]
            for row in rows
        ],
    )
    (arguments.output / "scaling.md").write_text(written + "\n", encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
