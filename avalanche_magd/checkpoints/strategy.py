"""Avalanche's checkpoints of a strategy, between experiences, on current torch.

Avalanche's functions of the same names do the work. Three things are added:

* torch removes the names of its optimizers' modules, so that an optimizer's class is pickled by
  its content, which fails. The names are given back before saving;
* a file is written as a whole, and the one before is kept
  (:mod:`avalanche_magd.runtime.atomic_files`);
* a file that is damaged is refused by name, and the one before is used.

A device that was saved as ``cuda`` without an index is mapped too.

Everything that goes on is in the file: solver, optimizer, plugins, the generator with its
optimizer and its random state, Avalanche's global random states. The pool is not, unless the
stream is online, where it lives on. Resuming is bit-exact on a CPU.

These files are pickles, and loading one runs the code in it: load your own only. A generator's
folder (:meth:`~avalanche_magd.DiffusionGenerator.from_pretrained`) and a generator's checkpoints
inside an experience (``checkpoint_folder``) run no code.
"""

import contextlib
import io
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import torch
from avalanche import checkpointing as avalanche

from avalanche_magd.checkpoints.migration import names_of_0_1, upgrade
from avalanche_magd.runtime.atomic_files import previous, read_file, write_file


def save_checkpoint(
    strategy: Any, file: str | os.PathLike[str], exclude: Collection[str] | None = None
) -> None:
    """Save a strategy, but for the excluded attributes, between two experiences.

    The file that was there becomes ``<name>.previous``.

    Raises:
        OSError: the file cannot be written, since the disk is full or read-only; what was there
            before stays.
    """
    for name, module in list(sys.modules.items()):
        package, _, child = name.rpartition(".")
        if package == "torch.optim" and not hasattr(torch.optim, child):
            setattr(torch.optim, child, module)
    write_file(
        Path(file),
        lambda stream: avalanche.save_checkpoint(strategy, stream, exclude),
    )


def maybe_load_checkpoint(
    strategy: Any,
    file: str | os.PathLike[str],
    map_location: Any = None,
    unique_objects: Any = None,
) -> tuple[Any, int]:
    """Give a strategy the state that a file holds, if there is one.

    Call it last: what is built afterwards may draw from the random state that it restores, as a
    benchmark does. What the strategy was built from (model, optimizer, plugins) is stale
    afterwards: take ``strategy.model``, ``strategy.plugins``, … instead. The arguments are those
    of Avalanche's function; ``map_location="cuda"`` without an index is understood as well. Files
    are written where the strategy that is given writes them, not where the saved one did.

    Returns:
        The strategy and the index of the experience to go on with; 0 if there is no file.

    Raises:
        RuntimeError: there are files, but none can be used.
    """
    if isinstance(map_location, (str, torch.device)):
        device, sources = str(map_location), ["cuda", *(f"cuda:{index}" for index in range(100))]
        map_location = {"cpu": "cpu", **dict.fromkeys(sources, device)}

    def load(stream: BinaryIO) -> tuple[Any, int]:
        quiet = contextlib.redirect_stdout(io.StringIO())  # Avalanche prints each device
        with quiet, names_of_0_1():
            loaded, first = avalanche.maybe_load_checkpoint(
                strategy, stream, map_location, unique_objects
            )
        upgrade(loaded)
        _write_where(plugins, loaded.plugins)
        _write_where(loggers, loaded.evaluator.loggers)
        return loaded, first

    plugins, loggers = list(strategy.plugins), list(strategy.evaluator.loggers)
    file = Path(file)
    resumed = read_file(file, load)
    if resumed is not None:
        return resumed
    if file.exists() or previous(file).exists():
        raise RuntimeError(
            f"{file} cannot be resumed from, nor what was there before: delete both to start anew."
        )
    return strategy, 0


def _write_where(built: list[Any], loaded: list[Any]) -> None:
    """Let what was loaded write into the folders of what was built: a run may have been moved."""
    for new, old in zip(built, loaded, strict=False):
        if type(new) is not type(old):
            continue
        for name in ("folder", "checkpoint_folder"):
            if name in vars(old):
                setattr(old, name, getattr(new, name))
        inside = getattr(new, "generator_strategy", None), getattr(old, "generator_strategy", None)
        if inside[1] is not None:
            folder = getattr(inside[0] or new, "checkpoint_folder", None)
            inside[1].checkpoint_folder = None if folder is None else Path(folder).absolute()
