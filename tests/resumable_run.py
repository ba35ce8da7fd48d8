"""A run that other processes start, kill and start again."""

import hashlib
import json
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    LRSchedulerPlugin,
    ReplayPlugin,
)
from tiny import naive, tiny_generator, tiny_training

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.checkpoints import maybe_load_checkpoint, save_checkpoint
from avalanche_magd.distillation import Distillation

torch.set_num_threads(1)


def processes() -> Any:
    """Multiprocessing whose processes have this module imported already."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["resumable_run"])
    return context


def build(folder: Path | None, iterations: int, *, many_plugins: bool = False) -> Naive:
    """A strategy as a user's script would build it, the same each time."""
    torch.manual_seed(0)
    training = tiny_training(
        model=tiny_generator(),
        distillation=Distillation(pool_size=100, num_inference_steps=4),
        train_iterations=iterations,
        checkpoint_folder=folder,
    )
    training.checkpoint_every = 10
    evaluator = EvaluationPlugin(accuracy_metrics(epoch=True, stream=True), loggers=[])
    strategy = naive([MAGDPlugin(training, seed=0)], evaluator=evaluator, train_epochs=2)
    if many_plugins:
        scheduler = torch.optim.lr_scheduler.StepLR(strategy.optimizer, 1, gamma=0.9)
        strategy.plugins += [
            LRSchedulerPlugin(scheduler, reset_lr=False, reset_scheduler=False),
            EarlyStoppingPlugin(patience=1, val_stream_name="train_stream"),
            ReplayPlugin(mem_size=20),
        ]
    return strategy


def magd_of(strategy: Naive) -> MAGDPlugin:
    return next(plugin for plugin in strategy.plugins if isinstance(plugin, MAGDPlugin))


def result_of(strategy: Naive) -> dict[str, Any]:
    """Digests of both networks, and every metric."""
    digests = []
    for model in (strategy.model, magd_of(strategy).generator):
        assert model is not None
        parts = [value.numpy().tobytes() for value in model.state_dict().values()]
        digests.append(hashlib.sha256(b"".join(parts)).hexdigest())
    metrics = {name: str(value) for name, value in strategy.evaluator.get_last_metrics().items()}
    return {"solver": digests[0], "generator": digests[1], "metrics": metrics}


def experiences(online: bool) -> list[Any]:
    stream = split_digits(5, seed=0).train_stream[:3]
    return list(split_online_stream(stream, 100, seed=0)) if online else list(stream)


def run(
    output: Path,
    *,
    iterations: int,
    checkpoints: bool,
    stop_after: int | None = None,
    **kwargs: Any,
) -> None:
    """Train from wherever the last run was stopped, and write the result.

    Args:
        output: for checkpoints and ``result.json``.
        iterations: of the generator.
        checkpoints: whether any are written and read.
        stop_after: experiences after which to end, as if killed.
        **kwargs: ``online``, or arguments of :func:`build`.
    """
    warnings.simplefilter("ignore")
    stream = experiences(kwargs.pop("online", False))
    folder = output / "generator" if checkpoints else None
    strategy, first = build(folder, iterations, **kwargs), 0
    test_stream = split_digits(5, seed=0).test_stream
    if checkpoints:
        strategy, first = maybe_load_checkpoint(strategy, output / "strategy.pt")
    for index, experience in enumerate(stream[first:], first):
        if index == stop_after:
            return
        strategy.train(experience, eval_streams=[])
        strategy.eval(test_stream)
        if checkpoints:
            save_checkpoint(strategy, output / "strategy.pt")
    output.mkdir(parents=True, exist_ok=True)
    (output / "result.json").write_text(json.dumps(result_of(strategy)))


INTERRUPTED = 130
"""Exit status of a process that was interrupted, as a shell gives it."""


def interruptible(ready: Any, output: Path, **kwargs: Any) -> None:
    """:func:`run`, which ends silently when it is interrupted; ``ready`` is set at its start.

    Shells start what runs in the background with SIGINT ignored, and processes inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ready.set()
        run(output, **kwargs)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def start(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    process = processes().Process(target=function, args=args, kwargs=kwargs)
    process.start()
    return process


def finish(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    process = start(function, *args, **kwargs)
    process.join()
    assert process.exitcode == 0


def result(output: Path) -> Any:
    return json.loads((output / "result.json").read_text())
