"""What solvers make of the same generated images: mini-batches, epochs, soft labels.

A generator does not depend on the solver that it serves. So each is trained once, its images are
kept in ``<output>/pools``, and any number of solvers is trained on them, each just as
``MAGDPlugin`` would have trained it. Methods are those of ``compare.py``.

Each finished run is a line of JSON in ``<output>/solvers-<benchmark>.jsonl``; only what is missing
is run. The table counts the solver's steps in the last experience, rows in its largest step, rows
of all experiences, and its own seconds, without the generator's.

    python examples/solvers.py --groups mini_batches --epochs 1 2 4
    python examples/solvers.py --benchmark fashion_mnist --methods magd joint --epochs 1 2 4 8
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.training import Naive
from filelock import FileLock
from methods import (
    GROUPS,
    ROWS,
    Known,
    build,
    generator_words,
    known_of,
    method_name,
    mini_batches_of,
    recipe,
    with_magd,
)
from study import (
    ACCURACY,
    FORGETTING,
    add_arguments,
    finish,
    key_of,
    load,
    name_of,
    results_table,
    settings_of,
    silent_evaluator,
)

from avalanche_magd import DiffusionGenerator, MAGDPlugin
from avalanche_magd.distillation import Distillation
from avalanche_magd.distillation.cost import PhaseCost
from avalanche_magd.distillation.solver import PastSolver
from avalanche_magd.replay import MiniBatches
from avalanche_magd.reporting.run_logger import environment

IGNORED = ("methods", "groups", "table", "epochs")
"""Arguments that do not change a generator."""
FORMS = {
    "accuracy": ".3f",
    "forgetting": ".3f",
    "steps": ",.0f",
    "largest step": ",.0f",
    "rows": ",.0f",
    "seconds": ",.0f",
}


class Recording(SupervisedPlugin):
    """After a MAGD plugin: saves what it replays in each experience."""

    def __init__(self, plugin: MAGDPlugin, folder: Path) -> None:
        super().__init__()
        self.plugin, self.folder = plugin, folder

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Save generator and pools."""
        replay = self.plugin.replay
        pools = None if replay is None else (replay.past, replay.current)
        number = strategy.experience.current_experience
        torch.save((self.plugin.generator, pools), self.folder / f"{number}.pt")


class Recorded(MAGDPlugin):
    """Replays what was saved."""

    def __init__(self, folder: Path, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.folder = folder
        self.recorded: DiffusionGenerator | None = None

    @property
    def generator(self) -> DiffusionGenerator | None:
        """The one that was saved."""
        return self.recorded

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Load what was saved for the experience."""
        file = self.folder / f"{strategy.experience.current_experience}.pt"
        self.recorded, pools = torch.load(file, strategy.device, weights_only=False)
        self.replay = None
        if pools is not None:
            past, current = pools
            solver = PastSolver(strategy.model, self.recorded, strategy.device, PhaseCost())
            self.replay = self._make_replay(past, solver, strategy)
            self.replay.current = current if self.mini_batches.generated_share else None

    def _replay_rng(self) -> torch.Generator:
        return torch.Generator(self.recorded.device).manual_seed(self.seed)


class Counter(SupervisedPlugin):
    """Counts the solver's steps and rows."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = self.rows = self.largest = 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """An experience's steps alone are shown."""
        self.steps = self.largest = 0

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """A step."""
        rows = len(strategy.mbatch[0])
        self.steps += 1
        self.rows += rows
        self.largest = max(self.largest, rows)


def pools_of(name: str, known: Known, benchmark: Any, seed: int) -> Path:
    """The folder of a method's generated images, which are made if they are not there."""
    arguments = known.arguments
    if Distillation(**ROWS[name].distillation).guidance.classifier_scale:
        raise ValueError(f"{name}'s generator is guided by the solver: use compare.py.")
    words = json.dumps(generator_words(ROWS[name], known.image_shape, old=False), sort_keys=True)
    key = key_of(arguments, (*IGNORED, "solver"), "pools", seed, words)
    folder: Path = arguments.output / "pools" / f"{name_of(arguments)}-{seed}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "done"
    with FileLock(folder / ".lock"):
        if not done.exists():
            common = {**known.common, "train_epochs": 0, "evaluator": silent_evaluator()}
            changed = known._replace(common=common)
            method = with_magd(name, changed, seed, arguments.iterations)
            # With current classes, for all solvers; and no solver is asked for soft labels.
            method.plugin.mini_batches = MiniBatches(soft_label_weight=0.0)
            method.strategy.plugins.append(Recording(method.plugin, folder))
            for experience in benchmark.train_stream:
                method.strategy.train(experience, eval_streams=[])
            done.touch()
    return folder


def run(name: str, seed: int, epochs: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one solver on the stream, and evaluate it on the classes seen so far."""
    arguments = argparse.Namespace(**{**vars(arguments), "epochs": epochs})
    benchmark = load(arguments, arguments.experiences, seed)
    known = known_of(benchmark, seed, arguments)
    metrics = accuracy_metrics(experience=True, stream=True), forgetting_metrics(stream=True)
    known.common["evaluator"] = silent_evaluator(*metrics)
    if name in ROWS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no solver is trained on them there
            folder = pools_of(name, known, benchmark, seed)
        known = known_of(benchmark, seed, arguments)
        known.common["evaluator"] = silent_evaluator(*metrics)
        mini_batches = mini_batches_of(name, arguments.old)
        plugin = Recorded(folder, mini_batches=mini_batches, seed=seed)
        strategy = Naive(plugins=[plugin], **known.common)
    else:
        strategy = build(name, known, seed, None).strategy
    counter = Counter()
    strategy.plugins.append(counter)
    seconds, accuracies = 0.0, []
    stream = benchmark.train_stream
    for step in [stream] if name == "joint" else stream:
        began = time.perf_counter()
        with warnings.catch_warnings(record=True):  # Avalanche's, of its own deprecated calls
            strategy.train(step, eval_streams=[])
        seconds += time.perf_counter() - began
        seen = len(stream) if step is stream else step.current_experience + 1
        values = strategy.eval(benchmark.test_stream[:seen])
        accuracies.append(values[ACCURACY])
    return {
        "name": name,
        "seed": seed,
        "epochs": epochs,
        "accuracy": accuracies[-1],
        "accuracies": accuracies,
        "forgetting": values[FORGETTING] if len(accuracies) > 1 else None,
        "steps": counter.steps,
        "largest step": counter.largest,
        "rows": counter.rows,
        "seconds": seconds,
        "settings": settings_of(arguments, IGNORED),
        "environment": environment(arguments.device),
    }


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """What a user may vary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--methods", nargs="+", type=method_name, default=[])
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=[], help="of methods")
    parser.add_argument("--epochs", type=int, nargs="+", default=[2], help="of the solvers")
    parser.add_argument("--pool-size", type=int, help="default: the plugin's")
    parser.add_argument("--iterations", type=int, help="of the generator; default: the plugin's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("results/solvers"))
    parser.add_argument("--table", help="name of the table; default: the benchmark's")
    arguments = parser.parse_args(words)
    arguments.paper_scale = arguments.old = False
    if arguments.smoke:
        arguments.epochs, arguments.iterations, arguments.pool_size = [1], 3, 40
        arguments.seeds = arguments.seeds[:1]
    names = [*arguments.methods, *(name for each in arguments.groups for name in GROUPS[each])]
    arguments.methods = list(dict.fromkeys(names)) or ["magd", "replay-500", "joint"]
    return arguments


def keys_of(
    arguments: argparse.Namespace, image_shape: tuple[int, int, int]
) -> dict[tuple[str, int, int], str]:
    """The key of each run that is asked for, by method, seed and epochs."""
    return {
        (name, seed, epochs): key_of(
            arguments, IGNORED, name, seed, epochs, recipe(name, image_shape, arguments.old)
        )
        for epochs in arguments.epochs
        for name in arguments.methods
        for seed in arguments.seeds
    }


def file_of(arguments: argparse.Namespace) -> Path:
    """Where the lines are."""
    folder: Path = arguments.output
    return folder / f"solvers-{name_of(arguments)}.jsonl"


def main() -> None:
    """Run what is missing, and print the table."""
    arguments = parse_arguments()
    image, *_ = load(arguments, 1, 0).train_stream[0].dataset[0]
    keys = keys_of(arguments, tuple(image.shape))
    title = arguments.table or f"solvers-{name_of(arguments)}"
    lines = finish(
        file_of(arguments),
        {key: (*what, arguments) for what, key in keys.items()},
        run,
        arguments.jobs,
    )
    runs: dict[str, list[dict[str, Any]]] = {}
    for (name, _, epochs), key in keys.items():
        runs.setdefault(f"{name}, {epochs} epochs", []).append(lines[key])
    written = results_table(runs, FORMS)
    (arguments.output / f"{title}.md").write_text(written + "\n", encoding="utf-8")
    print(f"\n{written}")


if __name__ == "__main__":
    main()
