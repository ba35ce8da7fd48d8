"""Several processes that run one script: how the generator's work is shared out among them.

Each runs the whole script with the same seeds, as ``torchrun --nproc_per_node N script.py`` starts
it, and so has the same solver, on GPUs up to rounding. What is shared out is

* generation passes, by batches, whose images and lessons all processes then have;
* training steps, by rows: each process takes its own, and the gradients are added up, so that
  weights, averages and optimizers stay the same everywhere, to the bit.

The result is the single process's, up to the rounding of sums. Files, progress bars and reports
come from the process of rank 0.

torch's default process group is used if there is one. Then Avalanche shares out the solver's
mini-batches as well, and the solver has to be wrapped by ``DistributedDataParallel``. If there is
none, the processes join in a group of their own, by the addresses in their environment, and
Avalanche works in each of them as it does alone. A library that wraps model, optimizer and data,
as accelerate does, would have to be undone at each new class and each experience.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from avalanche_magd.runtime.rendezvous import TIMEOUT, address, join


def has_default_group() -> bool:
    """Whether torch's default process group is there, by which Avalanche shares out data."""
    return distributed.is_initialized()


def process_count() -> int:
    """How many processes run this script together."""
    if has_default_group():
        return distributed.get_world_size()
    place = address()
    return 1 if place is None else place.processes


def rank() -> int:
    """This process's number, from 0."""
    if has_default_group():
        return distributed.get_rank()
    place = address()
    return 0 if place is None else place.rank


def solver_rank() -> int:
    """This process's part of the solver's mini-batches; 0 if each process sees all of them."""
    return rank() if has_default_group() else 0


def is_main_process() -> bool:
    """Whether this process writes files, shows progress and should have loggers."""
    return rank() == 0


class Processes:
    """The exchanges between the processes; they join at the first one.

    A copy, pickled or not, joins anew. All processes have to make the same exchanges in the same
    order.
    """

    def __init__(self) -> None:
        self._group: Any = None

    def __reduce__(self) -> Any:
        return Processes, ()

    def share(
        self, tensors: dict[str, Tensor] | None, owner: int, device: torch.device
    ) -> dict[str, Tensor]:
        """The owner's named tensors, on a device; those of other processes are ignored."""
        stream = io.BytesIO()
        torch.save(tensors if rank() == owner else None, stream)
        length = torch.tensor([len(stream.getbuffer())], device=device)
        self._broadcast(length, owner)
        content = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if rank() == owner:
            content = torch.frombuffer(stream.getbuffer(), dtype=torch.uint8).to(device)
        self._broadcast(content, owner)
        received = io.BytesIO(content.cpu().numpy().tobytes())
        return torch.load(received, map_location=device, weights_only=True)  # type: ignore[no-any-return]

    def exchange(
        self, tensors: dict[str, Tensor] | None, owners: int, device: torch.device
    ) -> Iterator[dict[str, Tensor]]:
        """The named tensors of each of the first processes, by rank, given to all."""
        if process_count() == 1:
            assert tensors is not None
            yield tensors
            return
        for owner in range(owners):
            yield self.share(tensors, owner, device)

    def mine(self) -> slice:
        """This process's rows of a batch."""
        return slice(rank(), None, process_count())

    def rows_of_all(self, rows: Float[Tensor, " m"], count: int) -> Float[Tensor, " n"]:
        """A number for each row of a batch of ``count``: those of this process have gradients."""
        if process_count() == 1:
            return rows
        everything = rows.new_zeros(count, requires_grad=False)
        everything[self.mine()] = rows.detach()
        self._add_up(everything)
        everything[self.mine()] = rows
        return everything

    def add_up_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give each gradient the sum over the processes."""
        if process_count() == 1:
            return
        gradients = [each.grad for each in parameters if each.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self._add_up(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, summed in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(summed.view_as(gradient))

    @contextmanager
    def counting(self, generator: Any) -> Iterator[None]:
        """Count the generator's forwards in a block over all processes."""
        before = generator.forwards
        yield
        if process_count() > 1:
            spent = torch.tensor([generator.forwards - before], device=generator.device)
            self._add_up(spent)
            generator.forwards = before + int(spent)

    def check_same(self, digest: bytes, what: str, device: torch.device) -> None:
        """Refuse to go on with processes that differ.

        Raises:
            RuntimeError: the processes' digests differ.
        """
        if process_count() == 1:
            return
        number = int.from_bytes(hashlib.sha256(digest).digest()[:5])
        total = torch.tensor([number], device=device)
        self._add_up(total)
        if int(total) != process_count() * number:
            raise RuntimeError(
                f"The {process_count()} processes differ in {what}: each has to run the same "
                "script with the same data and the same seeds, those of the benchmark and of "
                "torch included, and to see the same checkpoints."
            )

    def check_same_solver(self, strategy: Any, *settings: Any) -> None:
        """Refuse to go on with solvers that do not start alike.

        Weights are compared before the first step only: afterwards they are equal up to rounding
        on GPUs. With torch's default process group a process may have a part of the solver.

        Args:
            strategy: Avalanche's.
            *settings: of the replay; those of all processes have to be the same.

        Raises:
            RuntimeError: the processes differ.
        """
        if process_count() == 1:
            return
        digest = hashlib.sha256()
        if strategy.clock.train_iterations == 0 and not has_default_group():
            digest.update(str(torch.initial_seed()).encode())
            for tensor in (*strategy.model.parameters(), *strategy.model.buffers()):
                if not nn.parameter.is_lazy(tensor):
                    content = tensor.detach().cpu().reshape(-1).view(torch.uint8)
                    digest.update(content.numpy().tobytes())
        what = "the solver's initial weights, or torch's seed"
        self.check_same(digest.digest(), what, strategy.device)
        said = repr((strategy.clock.train_exp_counter, *settings))
        what = "how many experiences they have learnt, or MAGDPlugin's arguments"
        self.check_same(said.encode(), what, strategy.device)

    def _broadcast(self, tensor: Tensor, owner: int) -> None:
        options = distributed.BroadcastOptions()
        options.rootRank = owner
        self._wait(lambda group: group.broadcast([tensor], options))

    def _add_up(self, tensor: Tensor) -> None:
        self._wait(lambda group: group.allreduce([tensor]))

    def _wait(self, exchange: Callable[[Any], Any]) -> None:
        if self._group is None:
            place = None if has_default_group() else address()
            self._group = distributed.group.WORLD if place is None else join(place)
        try:
            exchange(self._group).wait()
        except RuntimeError as error:
            if "No backend type associated" in str(error):
                raise RuntimeError(
                    f"torch's default process group ({distributed.get_backend()}) cannot exchange "
                    f"tensors of the generator's device: {error}. Make the group with a backend "
                    "for it, as init_process_group('cpu:gloo,cuda:nccl') does for both."
                ) from error
            raise RuntimeError(
                f"Another of the {process_count()} processes has ended, or has not answered for "
                f"{TIMEOUT}: look for its own error (without one it had fewer experiences), then "
                "start all of them again. With a checkpoint_folder they go on from the last "
                "checkpoint."
            ) from error
