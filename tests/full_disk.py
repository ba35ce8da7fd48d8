"""What happens on a disk that is full at a random write.

``python tests/full_disk.py FOLDER CASE`` runs one case in a folder whose disk is small and of no
other use, since it is filled by a file of random size; ``test_full_disk.py`` mounts such a disk.
"""

import os
import random
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from callbacks import at
from tiny import naive, tiny_generator, tiny_plugin, tiny_training

from avalanche_magd import DiffusionGenerator, MAGDPlugin
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.checkpoints import maybe_load_checkpoint, save_checkpoint
from avalanche_magd.distillation import Distillation
from avalanche_magd.metrics import SamplePictures
from avalanche_magd.reporting import RunLogger
from avalanche_magd.reporting.run_logger import read_runs

torch.set_num_threads(1)
MOMENTS = random.Random(0)
BALLAST = ".ballast"
TIMES = 15


def fill(disk: Path, left: int) -> None:
    """Leave so many bytes free."""
    with (disk / BALLAST).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(disk) - left)


def free_bytes(disk: Path) -> int:
    state = os.statvfs(disk)
    return state.f_bavail * state.f_frsize


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, but for the ballast."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != BALLAST
    }


@contextmanager
def warned() -> Iterator[list[str]]:
    """The texts of the warnings of a block of code."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "No loggers specified")
        yield texts
    texts += [str(each.message) for each in caught]


def weights_of(model: Any) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def trained(folder: Path | None, plugins: Any = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of solver and generator after two experiences."""
    torch.manual_seed(0)
    training = tiny_training(
        model=tiny_generator(),
        distillation=Distillation(pool_size=20, num_inference_steps=2),
        train_iterations=12,
        checkpoint_folder=folder,
        plugins=[*plugins],
    )
    training.checkpoint_every = 2
    strategy = naive([MAGDPlugin(training, seed=0)])
    for experience in split_digits(5, seed=0).train_stream[:2]:
        strategy.train(experience)
    return weights_of(strategy.model), weights_of(training.model)


def checkpoint_folder(disk: Path) -> int:
    """Training's own checkpoints: a warning, the last good file stays, training goes on."""
    expected = trained(None)
    trained(disk / "0")
    size = max(map(len, content_of(disk / "0").values()))
    failed = 0
    for time in range(1, TIMES + 1):
        folder, moment = disk / str(time), MOMENTS.randrange(24)
        left, steps = MOMENTS.randrange(size), []

        def step(_: Any, steps: Any = steps, moment: int = moment, left: int = left) -> None:
            steps.append(1)
            if len(steps) == moment + 1:
                fill(disk, left)

        with warned() as texts:
            weights = trained(folder, [at("before_training_iteration", step)])
        assert all(map(torch.equal, weights, expected))
        names = {f"experience-{index}.pt{end}" for index in (0, 1) for end in ("", ".previous")}
        there = content_of(folder)
        assert there.keys() <= names | {".lock"}, there.keys()
        assert all(str(folder / "experience-") in text for text in texts), texts
        failed += bool(texts)
        (disk / BALLAST).unlink()
        with warned() as texts:  # each file that stayed is a good one
            weights = trained(folder)
        assert texts == []
        assert all(map(torch.equal, weights, expected))
        shutil.rmtree(folder)
    return failed


def strategy_file(disk: Path) -> int:
    """``save_checkpoint``: an error that names the file, and what it held before stays."""
    file = disk / "run" / "strategy.pt"
    strategy = naive([tiny_plugin()])
    strategy.train(split_digits(5, seed=0).train_stream[0])
    save_checkpoint(strategy, file)
    size, saved = file.stat().st_size, weights_of(strategy.model).clone()

    def save() -> None:
        with torch.no_grad():
            strategy.model.classifier.bias += 1
        save_checkpoint(strategy, file)

    def check(*, done: bool) -> None:
        nonlocal saved
        saved = weights_of(strategy.model).clone() if done else saved
        loaded, _ = maybe_load_checkpoint(naive([tiny_plugin()]), file)
        assert torch.equal(weights_of(loaded.model), saved)
        assert content_of(file.parent).keys() <= {file.name, f"{file.name}.previous"}

    return refusals(disk, file, size, save, check)


def generator_folder(disk: Path) -> int:
    """``save_pretrained``: the same, beside a folder and in one that is a disk of its own."""
    failed = 0
    for folder in (disk / "generator", disk):
        generator = tiny_generator(classes=(0, 1))
        generator.pixel_range.fit(torch.rand(50, 1, 8, 8))
        generator.save_pretrained(folder)
        saved = content_of(folder)

        def save(generator: Any = generator, folder: Path = folder) -> None:
            with torch.no_grad():
                next(generator.parameters()).add_(1)
            generator.save_pretrained(folder)

        def check(*, done: bool, folder: Path = folder) -> None:
            nonlocal saved
            there = content_of(folder)
            assert there == saved or (done and there.keys() == saved.keys())
            assert not any("saving" in each.name for each in disk.iterdir())
            DiffusionGenerator.from_pretrained(folder)
            saved = there

        size = sum(len(each) + 4096 for each in saved.values())
        failed += refusals(disk, folder, size, save, check)
        if folder != disk:
            shutil.rmtree(folder)
    return failed


def refusals(
    disk: Path, place: Path, size: int, save: Callable[[], None], check: Callable[..., None]
) -> int:
    """How often saving failed: with an error that names the place, without any other effect."""
    failed = 0
    for _ in range(TIMES):
        fill(disk, MOMENTS.randrange(round(1.3 * size)))
        told = ""
        try:
            save()
        except OSError as error:
            told = str(error)
        assert not told or (f"{place} cannot be written" in told and "ake room" in told), told
        failed += told != ""
        check(done=not told)
        (disk / BALLAST).unlink()
    save()
    check(done=True)
    return failed


def run_folder(disk: Path) -> int:
    """``RunLogger``: one warning, training goes on, the files stay whole."""
    failed = 0
    stream, tests = split_digits(5, seed=0).train_stream, split_digits(5, seed=0).test_stream
    for time in range(TIMES):
        folder, plugin = disk / str(time), tiny_plugin()
        evaluator = EvaluationPlugin(
            accuracy_metrics(stream=True, experience=True),
            SamplePictures(plugin),
            loggers=[RunLogger(folder)],
        )
        strategy = naive([plugin], evaluator=evaluator)
        for index in range(3):
            if index == 1:
                size = sum(len(each) + 4096 for each in content_of(folder).values())
                fill(disk, MOMENTS.randrange(size))
            if index == 2:
                (disk / BALLAST).unlink()
            with warned() as texts:
                strategy.train(stream[index], eval_streams=[])
                strategy.eval(tests)
            there = content_of(folder)
            assert not any("partial" in name for name in there), there.keys()
            (run,) = read_runs(folder)
            if index == 1:
                assert len(texts) <= 1, texts
                assert all(f"{folder}{os.sep}" in text for text in texts), texts
                failed += len(texts)
                assert len(run.rows) in ({1, 2} if texts else {2})
            else:
                assert texts == []
                assert [row.experiences for row in run.rows] == list(range(1, index + 2))
        shutil.rmtree(folder)
    return failed


CASES = (checkpoint_folder, strategy_file, generator_folder, run_folder)


def main() -> None:
    """Run a case, and say how often something could not be written."""
    case = next(each for each in CASES if each.__name__ == sys.argv[2])
    failed = case(Path(sys.argv[1]))
    assert failed > 5, f"too few writes failed: {failed}"
    print(f"{failed} writes failed")  # noqa: T201


if __name__ == "__main__":
    main()
