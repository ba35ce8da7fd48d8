"""Runs that are killed, or interrupted by Ctrl-C, at random moments go on afterwards."""

import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import avalanche
import pytest
import torch
from callbacks import ReplayRecorder
from resumable_run import (
    INTERRUPTED,
    experiences,
    finish,
    interruptible,
    processes,
    result,
    run,
    start,
)
from tiny import naive, tiny_generator, tiny_training

import avalanche_magd
from avalanche_magd import MAGDPlugin
from avalanche_magd.distillation import Distillation
from avalanche_magd.replay import MiniBatches

STOPS = 30
KILLED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: INTERRUPTED}
"""Exit status of a process by the signal that stops it."""


@pytest.mark.slow
@pytest.mark.parametrize("how", KILLED, ids=lambda how: how.name)
def test_a_run_that_is_stopped_at_random_moments_ends_as_one_that_was_never_stopped(
    tmp_path: Path, how: signal.Signals
) -> None:
    moments = random.Random(0)
    finish(run, tmp_path / "undisturbed", iterations=100, checkpoints=False)
    expected = result(tmp_path / "undisturbed")
    stops = runs = 0
    while stops < STOPS:
        runs += 1
        assert runs < 20 * STOPS, "signals do not stop the run"
        output = tmp_path / f"run-{runs}"
        while not (output / "result.json").exists():
            ready = processes().Event()
            process = start(interruptible, ready, output, iterations=100, checkpoints=True)
            assert ready.wait(60)
            process.join(moments.uniform(0, 1.5) if stops < STOPS else None)
            if process.is_alive():
                os.kill(process.pid, how)
                process.join()
                stops += process.exitcode != 0
                assert process.exitcode in (KILLED[how], 0)  # it may have ended meanwhile
            else:
                assert process.exitcode == 0
        assert result(output) == expected


LINES_OF = tuple(str(Path(each.__file__).parent) for each in (avalanche, avalanche_magd))


@contextmanager
def interrupted_at(line: int | None) -> Iterator[list[Any]]:
    """Ctrl-C once so many lines of Avalanche and of this package were run; gives those lines."""
    lines: list[Any] = []

    def in_function(frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            lines.append((frame.f_code, frame.f_lineno))
            if len(lines) == line:
                raise KeyboardInterrupt
        return in_function

    def at_call(frame: Any, event: str, argument: Any) -> Any:
        return in_function if frame.f_code.co_filename.startswith(LINES_OF) else None

    before = sys.gettrace()
    sys.settrace(at_call)
    try:
        yield lines
    finally:
        sys.settrace(before)


def random_moments(lines: list[Any], count: int) -> list[int]:
    """Moments at random: each line of code as likely as any other, however often it is run."""
    moments: dict[Any, list[int]] = {}
    for number, place in enumerate(lines, 1):
        moments.setdefault(place, []).append(number)
    rng = random.Random(0)
    return [rng.choice(each) for each in rng.sample(list(moments.values()), count)]


def in_use(pool: Any) -> int:
    """Slots of a pool whose images can be drawn."""
    if not pool.classes:
        return 0
    draws = pool.draw_slots(40 * len(pool.labels), torch.Generator().manual_seed(0))
    return len(set(draws.tolist()))


def notebook(online: bool) -> tuple[Any, MAGDPlugin, ReplayRecorder]:
    torch.manual_seed(0)
    distillation = Distillation(pool_size=30, num_inference_steps=2)
    training = tiny_training(model=tiny_generator(), distillation=distillation, train_iterations=4)
    plugin, recorder = (
        MAGDPlugin(training, mini_batches=MiniBatches(soft_label_weight=0.0 if online else 0.5)),
        ReplayRecorder(),
    )
    return naive([plugin, recorder]), plugin, recorder


@pytest.mark.slow
@pytest.mark.parametrize("online", [False, True])
def test_training_that_was_interrupted_at_a_random_moment_goes_on_in_the_same_process(
    online: bool,
) -> None:
    stream = experiences(online)
    stream = stream[:1] + stream[3:5] + stream[-1:] if online else stream
    strategy, *_ = notebook(online)
    with interrupted_at(None) as lines:
        for experience in stream[:-1]:
            strategy.train(experience)
    for moment in random_moments(lines, STOPS):
        interrupt_once(stream, moment, online)


def interrupt_once(stream: list[Any], moment: int, online: bool) -> None:
    """Train on experiences, of which one is interrupted and trained on again."""
    strategy, plugin, recorder = notebook(online)
    training, learnt, interruptions = plugin.generator_strategy, set(), 0
    for experience in stream:
        targets, lines = set(map(int, experience.dataset.targets)), []
        try:
            with interrupted_at(moment) as lines:
                strategy.train(experience)
        except KeyboardInterrupt:
            interruptions += 1
            known = set(training.model.classes)
            done = training.iteration == training.iterations_of(experience)
            assert known == learnt or (done and known == learnt | targets)
            if training.pool is not None:
                assert in_use(training.pool) == sum(training.pool.counts.values())
            strategy.train(experience)
        moment -= len(lines)
        if learnt - targets:
            replayed = set(recorder.labels)
            assert learnt - targets <= replayed <= learnt | targets
        learnt |= targets
        assert set(training.model.classes) == learnt
        for model in (strategy.model, training.model):
            assert all(each.isfinite().all() for each in model.state_dict().values())
    assert interruptions == 1
