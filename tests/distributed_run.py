"""A run of several processes, each of which calls :func:`run`, as ``torchrun`` would start it."""

import os
import signal
import socket
import warnings
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.distributed import DistributedHelper
from resumable_run import processes
from tiny import naive, tiny_generator, tiny_training
from torch import Tensor, nn

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.distillation import Distillation
from avalanche_magd.replay import MiniBatches
from avalanche_magd.reporting import RunLogger
from avalanche_magd.runtime.distributed import Processes


class ShownRows(SupervisedPlugin, supports_distributed=True):
    """Keeps generated rows of each mini-batch, which are its last."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Tensor] = []

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.rows.append(strategy.mb_x[-8:].detach().clone())


class Death(SupervisedPlugin, supports_distributed=True):
    """Kills the process, or raises an error, at one step of the second experience."""

    def __init__(self, iteration: int, *, raises: bool) -> None:
        super().__init__()
        self.iteration = iteration
        self.raises = raises

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        second = strategy.clock.train_exp_counter == 1
        if second and strategy.iteration == self.iteration:
            if self.raises:
                raise RuntimeError("an error of rank 1")
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    output: Path,
    rank: int,
    *,
    count: int = 1,
    port: int = 0,
    seed: int = 0,
    wrapped: bool = False,
    folder: Path | None = None,
    dies_at: int | None = None,
    fails_at: int | None = None,
    solver_seed: int | None = None,
    share: float = 0.5,
    length: int = 2,
    gradient_accumulation_steps: int = 1,
    **kwargs: Any,
) -> None:
    """Train on two experiences, and write what came out.

    Args:
        output: for ``result-<rank>.pt``, or ``error-<rank>.txt``, and a folder of each process.
        rank: this process's number.
        count: how many processes there are.
        port: of the address where the processes meet.
        seed: of torch.
        wrapped: whether the solver is wrapped for data parallelism.
        folder: for checkpoints.
        dies_at: step of the generator's training in the second experience at which the process of
            rank 1 is killed.
        fails_at: step at which it raises an error.
        solver_seed: of the solver's initial weights; by default torch goes on with ``seed``.
        share: of the current classes' rows that are generated.
        length: how many experiences there are.
        gradient_accumulation_steps: of the generator's training.
        **kwargs: of the distillation.
    """
    warnings.simplefilter("ignore")
    address = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in address.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    if wrapped:
        DistributedHelper.init_distributed(seed, use_cuda=False)
    torch.manual_seed(seed)
    end = dies_at or fails_at
    training = tiny_training(
        model=tiny_generator(),
        distillation=Distillation(pool_size=300, num_inference_steps=3, **kwargs),
        train_iterations=20,
        gradient_accumulation_steps=gradient_accumulation_steps,
        checkpoint_folder=folder,
        seed=None,
        plugins=[Death(end, raises=fails_at is not None)] if rank == 1 and end else [],
    )
    training.checkpoint_every = 5
    shown = ShownRows()
    state = torch.get_rng_state()
    if solver_seed is not None:
        torch.manual_seed(solver_seed)
    strategy = naive(
        [MAGDPlugin(training, seed=0, mini_batches=MiniBatches(generated_share=share)), shown]
    )
    if solver_seed is not None:
        torch.set_rng_state(state)
    if wrapped:
        strategy.model = DistributedHelper.wrap_model(strategy.model)
        strategy.optimizer = torch.optim.Adam(strategy.model.parameters(), lr=1e-3)
    else:
        strategy.evaluator.loggers = [RunLogger(output / f"run-{rank}")]
    try:
        for experience in split_digits(5, seed=0).train_stream[:length]:
            strategy.train(experience, eval_streams=[])
            if not wrapped:
                strategy.eval(experience)
    except RuntimeError as error:
        (output / f"error-{rank}.txt").write_text(str(error), encoding="utf-8")
        raise
    training.model.save_pretrained(output / f"generator-{rank}")
    cost = training.cost
    result = {
        "solver": nn.utils.parameters_to_vector(strategy.model.parameters()).detach(),
        "generator": nn.utils.parameters_to_vector(training.model.parameters()).detach(),
        "replayed": torch.cat(shown.rows[-4:]),
        "errors": torch.tensor([sum(each.errors.values()) for each in training.curves.points]),
        "spent": [
            cost.generation.forwards,
            cost.replay.forwards,
            cost.training.forwards,
            cost.training.backwards,
        ],
    }
    torch.save(result, output / f"result-{rank}.pt")


def meet_as_another_run(output: Path, address: dict[str, Any]) -> None:
    """Meet the other processes at an address, and write ``error-<rank>.txt``."""
    os.setpgrp()
    os.environ |= {name: str(value) for name, value in address.items()}
    try:
        Processes().check_same(b"", "nothing", torch.device("cpu"))
    except RuntimeError as error:
        (output / f"error-{address['RANK']}.txt").write_text(str(error), encoding="utf-8")


def free_port() -> int:
    """A port of this machine that nothing uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start_all(output: Path, count: int, **kwargs: Any) -> list[Any]:
    """Start this many processes of one run; arguments in the plural have one for each."""
    output.mkdir(parents=True, exist_ok=True)
    port = free_port()
    names = {"seeds", "solver_seeds", "shares", "folders", "lengths"} & kwargs.keys()
    of_each = {name.removesuffix("s"): kwargs.pop(name) for name in names}
    started = []
    for rank in range(count):
        own = {name: values[rank] for name, values in of_each.items()}
        arguments = {"count": count, "port": port, **own, **kwargs}
        started.append(processes().Process(target=run, args=(output, rank), kwargs=arguments))
        started[-1].start()
    return started


def results(output: Path, count: int, **kwargs: Any) -> list[dict[str, Any]]:
    """What each of this many processes of one run gives."""
    for process in start_all(output, count, **kwargs):
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(output / f"result-{rank}.pt") for rank in range(count)]
