"""Timing: what a training step of the generator costs, mode by mode, side by side.

For each mode and K (network calls per image) one step teaches 32 real images and 32 lessons about
the past, and pays for the generation of these lessons: in the step itself, as the baselines are
published, or as its share of a pool's pass. Real MAGDTraining runs are timed, in rounds that
visit every mode, and medians taken. Figures are ratios to generative distillation as published at
K = 20; only they carry over to another machine.

``overhead`` is what a step costs beyond its network: beyond a bare loop of forward, backward,
gradient clipping and optimizer on as many rows, from the same data loader. It is the price of
MAGDTraining and of Avalanche's callbacks, generation left out; of both the fastest round counts,
which other work on the machine touches least. On a GPU the bare loop launches one by one the
kernels that MAGDTraining records.

DDGR is timed at 1000 steps too, on few images, and counted per image.

    python examples/timing.py --json timing.json

Takes about ten minutes on two CPU cores with digits, a minute with ``--smoke``.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from avalanche.models import SimpleMLP
from torch import nn
from torch.utils.data import DataLoader

from avalanche_magd import DiffusionGenerator, MAGDTraining
from avalanche_magd.benchmarks import split_digits, split_fashion_mnist
from avalanche_magd.distillation import CGGD, MAGD, Distillation, baselines
from avalanche_magd.distillation.cost import Cost
from avalanche_magd.distillation.solver import PastSolver

ROWS = 32
MODES: dict[str, dict[str, Any]] = {
    "magd": {},
    "magd, half renoised": {"mode": MAGD(trajectory_share=0.5)},
    "generative_distillation, pooled": {"mode": baselines.generative_distillation},
    "generative_distillation": {"mode": baselines.generative_distillation, "on_the_fly": True},
    "partial_generation": {"mode": baselines.partial_generation, "on_the_fly": True},
    "gaussian_distillation": {"mode": baselines.gaussian_distillation, "on_the_fly": True},
    "lwf_distillation": {"mode": baselines.lwf_distillation, "on_the_fly": True},
    "dgr": {"mode": baselines.dgr, "on_the_fly": True},
    "ddgr": {"mode": baselines.dgr, "on_the_fly": True, "guidance": CGGD(classifier_scale=1.0)},
}
REFERENCE = ("generative_distillation", 20)
MAGD_AT_20 = ("magd", 20)


class Timed:
    """A generator in training, one mode at one K."""

    def __init__(self, mode: str, steps: int, arguments: argparse.Namespace) -> None:
        self.mode = mode
        self.num_inference_steps = steps
        self.benchmark = load(arguments)
        image, *_ = self.benchmark.train_stream[0].dataset[0]
        torch.manual_seed(0)
        generator = DiffusionGenerator(tuple(image.shape)).to(arguments.device)
        # A pool of two batches: generation costs the same per image in a larger one.
        pool = ROWS if arguments.smoke else 512
        self.training = MAGDTraining(
            model=generator,
            optimizer=torch.optim.AdamW(generator.parameters(), lr=2e-3, fused=True),
            distillation=Distillation(
                **{"num_inference_steps": steps, "pool_size": pool, **MODES[mode]}
            ),
            train_mb_size=ROWS,
            train_iterations=1,
            device=arguments.device,
            seed=0,
        )
        self.training.progress = False
        self.training.train(self.benchmark.train_stream[0], eval_streams=[])
        solver = SimpleMLP(num_classes=10, input_size=image.numel()).to(arguments.device)
        cost = self.training.cost.solver
        self.solver = PastSolver(solver, generator, self.training.device, cost)
        self.steps_seconds: list[float] = []
        self.lesson_seconds: list[float] = []
        self.forwards = 0.0

    def measure(self, iterations: int) -> None:
        """Teach the second experience for some steps."""
        training = self.training
        training.train_iterations = iterations
        training.generation.cost = Cost()
        experience = self.benchmark.train_stream[1]
        training.fill_pool(experience, self.solver)
        training.train(experience, eval_streams=[])
        cost = training.cost
        self.steps_seconds.append(cost.training.seconds / iterations)
        self.lesson_seconds.append(cost.generation.seconds / cost.lessons)
        self.forwards = cost.teacher_forwards_per_lesson

    @property
    def step(self) -> float:
        """Seconds of a step with the generation of its lessons."""
        return statistics.median(self.steps_seconds) + ROWS * self.per_lesson

    @property
    def per_lesson(self) -> float:
        """Seconds that the teacher spends on a lesson."""
        return statistics.median(self.lesson_seconds)


def load(arguments: argparse.Namespace) -> Any:
    """The images to train on."""
    if arguments.benchmark == "fashion_mnist":
        return split_fashion_mnist(5, root=arguments.root, images_per_class=200, seed=0)
    return split_digits(5, seed=0)


def bare_loop(timed: Timed, iterations: int) -> tuple[float, float]:
    """Seconds of a step that does the network's work alone, without and with its data."""
    generator, optimizer = timed.training.model, timed.training.optimizer
    schedule = generator.schedule
    dataset = timed.benchmark.train_stream[1].dataset.eval()
    loader = iter(
        DataLoader(
            dataset,
            batch_size=ROWS,
            sampler=torch.randint(len(dataset), (ROWS * iterations,)).tolist(),
            collate_fn=dataset.collate_fn,
        )
    )
    generator.train()
    device = generator.device
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    of_network, of_data = 0.0, 0.0
    for _ in range(iterations):
        start = time.perf_counter()
        images, *_ = next(loader)
        images = images.to(device)
        of_data += time.perf_counter() - start
        x_t = torch.cat([images, images])
        t = torch.randint(schedule.num_train_timesteps, (len(x_t),), device=device)
        labels = torch.full((len(x_t),), generator.classes[0], device=device)
        wait()
        start = time.perf_counter()
        optimizer.zero_grad()
        (generator(x_t, t, labels) - x_t).square().mean().backward()
        nn.utils.clip_grad_norm_(list(generator.parameters()), 1.0)
        optimizer.step()
        wait()
        of_network += time.perf_counter() - start
    return of_network / iterations, (of_network + of_data) / iterations


def main() -> None:
    """Measure, print a table of ratios, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmark", choices=("digits", "fashion_mnist"), default="digits")
    parser.add_argument("--root", type=Path, help="where Fashion-MNIST is")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 10, 20, 100], help="K")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--smoke", action="store_true", help="few rounds, to see that it runs")
    arguments = parser.parse_args()
    rounds = 1 if arguments.smoke else 5
    iterations = 2 if arguments.smoke else 20 if arguments.device == "cpu" else 200
    wanted = [(mode, steps) for steps in arguments.steps for mode in arguments.modes]
    wanted += [each for each in (REFERENCE, MAGD_AT_20) if each not in wanted]
    timed = [Timed(mode, steps, arguments) for mode, steps in wanted]
    thousand = Timed("ddgr", 1000, arguments)
    bare: list[tuple[float, float]] = []
    for number in range(rounds):
        for each in timed:
            # A step of many network calls needs no repetition.
            few = each.num_inference_steps >= 100 and MODES[each.mode].get("on_the_fly")
            each.measure(max(1, iterations // 20) if few else iterations)
        if number < 2:
            thousand.measure(1)
        bare.append(bare_loop(timed[0], iterations))
        print(f"round {number + 1} of {rounds}", flush=True)
    network, network_and_data = (min(column) for column in zip(*bare, strict=True))
    reference, magd = (
        next(each for each in timed if (each.mode, each.num_inference_steps) == those)
        for those in (REFERENCE, MAGD_AT_20)
    )
    rows = [
        {
            "mode": each.mode,
            "num_inference_steps": each.num_inference_steps,
            "teacher_forwards_per_lesson": each.forwards,
            "seconds": each.step,
            "ratio": each.step / reference.step,
            "overhead": min(each.steps_seconds) / network_and_data - 1,
        }
        for each in [*timed, thousand]
    ]
    print(f"\n{'mode':<34}{'K':>6}{'forwards per lesson':>21}{'step':>8}{'overhead':>10}")
    for row in rows:
        print(
            f"{row['mode']:<34}{row['num_inference_steps']:>6}"
            f"{row['teacher_forwards_per_lesson']:>21.2f}{row['ratio']:>8.3f}{row['overhead']:>10.3f}"
        )
    print(
        f"\nSteps are relative to {REFERENCE[0]} at K = {REFERENCE[1]}. MAGD at K = 20 takes "
        f"{magd.step / reference.step:.3f} of its seconds, "
        f"{magd.forwards / reference.forwards:.3f} of its teacher forwards.\n"
        "A replayed image costs MAGD at K = 20 "
        f"{magd.per_lesson * 20 / thousand.per_lesson:.4f} of what DDGR with 1000 steps pays.\n"
        f"Of a bare step the data take {1 - network / network_and_data:.3f}."
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
