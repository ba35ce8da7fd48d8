"""Several processes: how much sooner the generator's work is done.

Starts itself by ``torchrun`` with one process and with two, by turns, one thread each, and
compares the second experience's generation passes and its training steps: digits, resized,
default network. The medians' ratio is the speed-up; it needs as many idle cores as there are
processes.

Any script with ``MAGDPlugin()`` is shared out like that, unchanged:
``torchrun --nproc_per_node 2 script.py``.

    python examples/processes.py

Takes a few minutes on two CPU cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from scaling import run

from avalanche_magd.runtime.distributed import is_main_process
from avalanche_magd.runtime.markdown import table


def measured(processes: int, arguments: list[str]) -> list[float]:
    """Seconds of a teacher's forward and of a training step, by so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), __file__, "--worker", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    """Measure by turns, print the table, write JSON; as a worker, do the work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sides", type=int, nargs="+", default=[28, 32])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="tiny budgets, to see that it runs")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("results/processes"))
    arguments = parser.parse_args()
    smoke = arguments.smoke
    if arguments.worker:
        torch.set_num_threads(1)
        steps, images = (2, 40) if smoke else (40, 500)
        row = run(2, arguments.sides[0], steps, pool_size=images)[1]
        if is_main_process():
            a_forward = row["generation"] / row["teacher forwards"]
            print(json.dumps([a_forward, row["training"] / steps]))
        return
    rows = []
    for side in arguments.sides[:1] if smoke else arguments.sides:
        more = ["--sides", str(side), *(["--smoke"] if smoke else [])]
        timed = {count: [] for count in arguments.processes}
        for _ in range(1 if smoke else arguments.turns):
            for count in arguments.processes:
                timed[count].append(measured(count, more))
        medians = {
            count: [statistics.median(column) for column in zip(*each, strict=True)]
            for count, each in timed.items()
        }
        first = medians[arguments.processes[0]]
        for count, found in medians.items():
            speed_ups = [alone / shared for alone, shared in zip(first, found, strict=True)]
            rows.append(
                {"side": side, "processes": count, "seconds": found, "speed-up": speed_ups}
            )
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "processes.json").write_text(
        json.dumps(rows, indent=1) + "\n", encoding="utf-8"
    )
    written = table(
        ["side", "processes", "generation pass, speed-up", "training step, speed-up"],
        [
            [str(row["side"]), str(row["processes"]), *(f"{each:.2f}" for each in row["speed-up"])]
            for row in rows
        ],
    )
    (arguments.output / "processes.md").write_text(written + "\n", encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
