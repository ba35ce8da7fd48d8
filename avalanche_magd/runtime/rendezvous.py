"""Where several processes meet: at the address in their environment.

``torchrun`` and schedulers set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. The process of rank
0 opens the address, or torchrun has done so, and the others connect to it. Whoever is not there is
waited for, and named after a while: the variables may be left over from another run. An address
that another run or program has is refused as that.
"""

import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

TIMEOUT = timedelta(minutes=10)
"""After this long a process that does not answer is given up; one that has ended, at once."""
PATIENCE = timedelta(seconds=10)
"""After this long it is said who is waited for; a server that is connected has to answer."""
ALONE = "If the script runs alone, unset RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."


class Address(NamedTuple):
    """Which process this is, of how many, and where they meet."""

    rank: int
    processes: int
    host: str
    port: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def address() -> Address | None:
    """What the environment says; ``None`` if it does not name several processes completely.

    Raises:
        ValueError: WORLD_SIZE or RANK is no integer, or there is no such rank.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    rank, count, host, port = (os.environ.get(name, "") for name in names)
    if not (rank and count and host and port):
        return None
    size = _integer("WORLD_SIZE", count, "at least 1", range(1, 2**31))
    number = _integer("RANK", rank, f"from 0 to {size - 1}, by WORLD_SIZE={size}", range(size))
    return Address(number, size, host, port) if size > 1 else None


def _integer(name: str, value: str, expected: str, allowed: range) -> int:
    try:
        number = int(value)
    except ValueError:
        number = -1
    if number not in allowed:
        raise ValueError(f"{name} must be an integer {expected}, got {value!r}. {ALONE}")
    return number


def join(place: Address) -> Any:
    """A process group that is not torch's default one, so that Avalanche works as it does alone.

    Raises:
        RuntimeError: another run or program has the address, or a process does not come.
        ValueError: MASTER_PORT is no port.
    """
    _integer("MASTER_PORT", place.port, "from 1 to 65535", range(1, 2**16))
    waiting = _Waiting(place)
    store = _open(place, waiting)
    _claim(store, place)
    with _lost(place):
        times = store.add(f"avalanche_magd/{place.rank}", 1)
        store = PrefixStore(f"avalanche_magd/{times}", store)
        store.set(f"rank {place.rank}", "is here")
    ranks = list(range(place.processes))
    while ranks:
        with _lost(place):
            ranks = [rank for rank in ranks if not store.check([f"rank {rank}"])]
        if ranks:
            waiting.pause(f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}")
    with _lost(place):
        return distributed.ProcessGroupGloo(store, place.rank, place.processes, TIMEOUT)


class _Waiting:
    """Waits for others a moment at a time; says so once, and gives up in the end."""

    def __init__(self, place: Address) -> None:
        self.place = place
        self.begin = time.monotonic()
        self.told = False

    def pause(self, missing: str) -> None:
        waited = timedelta(seconds=time.monotonic() - self.begin)
        place = self.place
        what = (
            f"at {place} (MASTER_ADDR:MASTER_PORT) for {missing} of the {place.processes} "
            f"processes (WORLD_SIZE). {ALONE} If it does not, look for the errors of "
            "those processes, and whether all have this address, which no other run may use."
        )
        if waited > TIMEOUT:
            raise RuntimeError(f"Rank {place.rank} has waited {TIMEOUT} in vain {what}")
        if waited > PATIENCE and not self.told:
            self.told = True
            warnings.warn(f"Rank {place.rank} waits {what}", stacklevel=2)
        time.sleep(0.02)


def _open(place: Address, waiting: _Waiting) -> Any:
    """The store at the address, which rank 0 serves, or torchrun."""
    serves = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while not serves and (refusal := _refusal(place)):  # rank 0 may come later, and its name
        waiting.pause(f"rank 0 ({refusal})")
    result: list[Any] = []
    # torch waits for the answer of a server without a limit.
    thread = threading.Thread(target=_store, args=(place, serves, result), daemon=True)
    thread.start()
    thread.join(2 * PATIENCE.total_seconds())
    store = result[0] if result else RuntimeError("what listens there does not answer")
    if not isinstance(store, Exception):
        # torchrun starts processes again, with the same store, after one has ended.
        return PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    if "EADDRINUSE" in str(store):
        raise RuntimeError(
            f"Port {place.port} is in use by another run or program: rank 0 cannot open {place}, "
            f"where the {place.processes} processes have to meet. Start all of them with another "
            f"MASTER_PORT. {ALONE}"
        ) from store
    raise RuntimeError(
        f"Rank {place.rank} cannot meet the other processes at {place}: "
        f"{str(store).splitlines()[0]}. It may be another program's: start all "
        f"{place.processes} processes with another MASTER_ADDR or MASTER_PORT. {ALONE}"
    ) from store


def _refusal(place: Address) -> str:
    """Why nothing can be reached at the address; empty if something listens there."""
    try:
        socket.create_connection((place.host, int(place.port)), timeout=5).close()
    except OSError as error:
        return str(error) or type(error).__name__
    return ""


def _store(place: Address, serves: bool, result: list[Any]) -> None:
    port, count = int(place.port), place.processes
    options: dict[str, Any] = {"wait_for_workers": False, "multi_tenant": True}
    try:
        store = TCPStore(place.host, port, count, serves, PATIENCE, **options)
        store.set_timeout(TIMEOUT)
        result.append(store)
    except (RuntimeError, ValueError) as error:
        result.append(error)


def _claim(store: Any, place: Address) -> None:
    """Say whose rank this is; the store may be another run's, with a process of this rank."""
    # A process that starts others, one after another, gives them its rank and its process group.
    group = os.getpgrp() if hasattr(os, "getpgrp") else 0
    me = f"process group {group} on {socket.gethostname()}"
    with _lost(place):
        holder = store.compare_set(f"avalanche_magd/{place.rank}/holder", "", me).decode()
    if holder != me:
        raise RuntimeError(
            f"Another run uses {place}: its rank {place.rank} is of {holder}. Start all "
            f"{place.processes} processes of this one with another MASTER_PORT. {ALONE}"
        )


@contextmanager
def _lost(place: Address) -> Iterator[None]:
    """Tell that the server has ended, or a process between meeting and exchange."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"Rank {place.rank} has lost the other processes, met at {place}: look for their own "
            "errors, of rank 0 first, then start all of them again."
        ) from error
