"""A run that is killed twenty times at random moments ends as one that was never killed."""

import random
from pathlib import Path

import pytest
from resumable_run import finish, result, run, start

KILLS = 20


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_was_never_killed(
    tmp_path: Path,
) -> None:
    moments = random.Random(0)
    finish(run, tmp_path / "undisturbed", iterations=100, checkpoints=False)
    expected = result(tmp_path / "undisturbed")
    kills = runs = 0
    while kills < KILLS:
        runs += 1
        output = tmp_path / f"run-{runs}"
        while not (output / "result.json").exists():
            process = start(run, output, iterations=100, checkpoints=True)
            process.join(moments.uniform(0.05, 1.5) if kills < KILLS else None)
            if process.is_alive():
                process.kill()
                process.join()
                kills += 1
            else:
                assert process.exitcode == 0
        assert result(output) == expected
    assert kills == KILLS
