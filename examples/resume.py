"""A benchmark that may be stopped at any moment, started again, and goes on where it was.

Stop it (Ctrl-C, kill -9) and start it again with the same command, as often as you
like: accuracies and weights are those of a run that was never stopped, as ``--undisturbed`` shows.
Two things make it so:

* ``save_checkpoint`` after each experience, ``maybe_load_checkpoint`` at the start: solver,
  plugins and metrics;
* ``MAGDPlugin(checkpoint_folder=…)``: the generator's training inside an experience.

Needs: nothing to download. Takes: two minutes on two CPU cores; ``--smoke``, seconds.
"""

import argparse
import hashlib
from pathlib import Path

import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.models import SimpleMLP
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.checkpoints import maybe_load_checkpoint, save_checkpoint

ACCURACY = "Top1_Acc_Stream/eval_phase/test_stream/Task000"
FORGETTING = "StreamForgetting/eval_phase/test_stream"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """What a user may vary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("results/resume"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--undisturbed", action="store_true", help="write and read no checkpoint")
    parser.add_argument("--smoke", action="store_true", help="end within seconds")
    return parser.parse_args(words)


def build_strategy(arguments: argparse.Namespace) -> Naive:
    """The same each time: what it has learnt comes from the checkpoint."""
    torch.manual_seed(arguments.seed)
    model = SimpleMLP(num_classes=10, input_size=64)
    small = {"generator_iterations": 40, "pool_size": 40} if arguments.smoke else {}
    folder = None if arguments.undisturbed else arguments.output / "generator"
    return Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=32,
        train_epochs=2 if arguments.smoke else 20,
        eval_mb_size=512,
        device=arguments.device,
        plugins=[MAGDPlugin(seed=arguments.seed, checkpoint_folder=folder, **small)],
        evaluator=EvaluationPlugin(
            accuracy_metrics(stream=True), forgetting_metrics(stream=True), loggers=[]
        ),
    )


def run(arguments: argparse.Namespace) -> tuple[float, float, str]:
    """Train to the end, from wherever the last run was stopped.

    Returns:
        Accuracy, forgetting, and a digest of the weights of solver and generator.
    """
    benchmark = split_digits(2 if arguments.smoke else 5, seed=arguments.seed)
    file = arguments.output / "strategy.pt"
    strategy, first = build_strategy(arguments), 0
    if not arguments.undisturbed:
        strategy, first = maybe_load_checkpoint(strategy, file)
        print(f"Going on with experience {first}." if first else "Starting.")
    for experience in benchmark.train_stream[first:]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        if not arguments.undisturbed:
            save_checkpoint(strategy, file)
    metrics = strategy.evaluator.get_last_metrics()
    # Not the plugin that was built above: loading has put another one in its place.
    magd = next(plugin for plugin in strategy.plugins if isinstance(plugin, MAGDPlugin))
    digest = hashlib.sha256()
    for model in (strategy.model, magd.generator):
        for parameter in model.parameters():
            digest.update(parameter.detach().cpu().numpy().tobytes())
    return metrics[ACCURACY], metrics[FORGETTING], digest.hexdigest()[:16]


def main() -> None:
    """Run and print."""
    accuracy, forgetting, digest = run(parse_arguments())
    print(f"final accuracy {accuracy:.4f}, forgetting {forgetting:.4f}, weights {digest}")


if __name__ == "__main__":
    main()
