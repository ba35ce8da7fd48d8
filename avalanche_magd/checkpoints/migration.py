"""Strategies that version 0.1 saved, under the names of 0.2; for one release."""

import importlib
import sys
import warnings
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final

from avalanche_magd.diffusion.samplers import DDIM, DPMSolver, UniPC
from avalanche_magd.distillation import CGGD, Distillation, LessonBatch, Pool
from avalanche_magd.distillation.generation import Generation
from avalanche_magd.distillation.student import Student
from avalanche_magd.replay.mini_batches import AS_IN_0_1

GONE: Final[dict[str, dict[str, Any]]] = {
    "avalanche_magd.rehearsal": {"Rehearsal": SimpleNamespace},
    "avalanche_magd.distillation.teacher": {"EmaTeacher": SimpleNamespace},
    "avalanche_magd.distillation.batch": {
        "LessonBatch": namedtuple("LessonBatch", "x_t t labels target kind")
    },
}
"""Classes of 0.1 that are gone, by module, and what holds their content meanwhile."""

JOINING: Final = {"replay_size", "generated_share", "soft_label_weight"}
"""Attributes of the plugin that are those of its ``mini_batches`` now."""


@contextmanager
def names_of_0_1() -> Iterator[None]:
    """Let a block of code unpickle what 0.1 pickled, without a warning for each name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        known = set(sys.modules)
        modules = {importlib.import_module(name): classes for name, classes in GONE.items()}
        for module, classes in modules.items():
            vars(module).update(classes)
        try:
            yield
        finally:
            for module, classes in modules.items():
                for name in classes:
                    delattr(module, name)
            for name in GONE.keys() - known:
                del sys.modules[name]


def upgrade(strategy: Any) -> None:
    """Bring a strategy that 0.1 saved up to date, in place; leave others as they are."""
    for plugin in strategy.plugins:
        training = getattr(plugin, "generator_strategy", None)
        if isinstance(vars(plugin).get("distillation"), Distillation):
            plugin.distillation = _distillation(plugin.distillation)
            joining = {name: vars(plugin).pop(name) for name in JOINING & vars(plugin).keys()}
            rows = replace(AS_IN_0_1, **joining)
            plugin.mini_batches = vars(plugin).get("mini_batches", rows)
        if isinstance(vars(training or plugin).get("rehearsal"), SimpleNamespace):
            _upgrade_training(training)
    for metric in getattr(strategy.evaluator, "metrics", []):
        classifier = vars(metric).get("classifier", vars(metric).pop("judge", None))
        if classifier is not None:
            metric.classifier = classifier
            _upgrade_labels(classifier)


def _upgrade_training(training: Any) -> None:
    rehearsal, average = training.rehearsal, training.teacher
    _upgrade_labels(training.model)
    new = type(training)(model=training.model, optimizer=training.optimizer)
    vars(training).update({k: v for k, v in vars(new).items() if k not in vars(training)})
    training.generation = Generation(cost=rehearsal.cost, progress=training.progress)
    training.distillation = _distillation(
        rehearsal.distillation,
        replay_weight=training.replay_weight,
        online_share=training.online_share,
    )
    training.pool, training.teacher = rehearsal.pool, None
    if rehearsal.pool is not None:
        _upgrade_pool(rehearsal.pool)
    if average is not None:  # the average stands in the generator
        student = Student(training.model, training.ema_decay, training.generation.processes)
        student.average.average = [each.data for each in student.average.parameters]
        student.average.steps, student.average._student = average.steps, average.average
        training._student = student
    for name in ("rehearsal", "current_weight", "online_teacher", "replay_weight", "online_share"):
        vars(training).pop(name)


def _distillation(old: Distillation, **more: Any) -> Distillation:
    """Settings of 0.1 as those of 0.2."""
    each: dict[str, Any] = dict(vars(old))
    if "fresh" not in each:
        return old
    samplers = {"ddim": DDIM(each.pop("eta")), "dpmpp_2m": DPMSolver(), "unipc": UniPC()}
    names = ("conditional", "guidance_scale", "classifier_scale")
    more["guidance"] = CGGD(**{name: each.pop(name) for name in names})
    more |= {"sampler": samplers[each.pop("sampler")], "on_the_fly": each.pop("fresh")}
    return Distillation(**each, **more)


def _upgrade_pool(pool: Pool) -> None:
    columns = pool.lessons._asdict() | {"weight": vars(pool).pop("weights")}
    columns["source"] = columns.pop("kind")
    pool.lessons, pool._pass = LessonBatch(**columns), vars(pool).pop("_born")


def _upgrade_labels(owner: Any) -> None:
    """A generator's, or a classifier's, map of labels."""
    if "class_table" in vars(owner):
        owner.label_map = vars(owner).pop("class_table")
    if "_number" in vars(owner.label_map):
        owner.label_map._id = vars(owner.label_map).pop("_number")
