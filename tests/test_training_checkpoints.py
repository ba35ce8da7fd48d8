"""The generator's training is resumed inside an experience, and ends with the same weights."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from callbacks import largest_file, stop_after
from tiny import tiny_generator, tiny_training
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from avalanche_magd import MAGDTraining
from avalanche_magd.distillation import CGGD, Distillation, baselines
from avalanche_magd.distillation.solver import PastSolver
from avalanche_magd.runtime.atomic_files import previous, write_file

SMALL = Distillation(pool_size=12, num_inference_steps=4)


class InterruptError(Exception):
    """Stops a run of these tests."""


def build(folder: Path | None, **kwargs: Any) -> MAGDTraining:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "model": tiny_generator(dropout=0.1),
        "distillation": SMALL,
        "train_iterations": 10,
    }
    training = tiny_training(checkpoint_folder=folder, **{**arguments, **kwargs})
    training.checkpoint_every = 3
    return training


def train(training: MAGDTraining, stream: Any) -> Tensor:
    for experience in stream:
        training.train(experience, eval_streams=[])
    return nn.utils.parameters_to_vector(training.model.parameters())


@pytest.mark.parametrize(
    ("steps", "saved"), [(0, 0), (1, 0), (3, 3), (5, 3), (9, 9), (10, 10), (14, 13), (19, 19)]
)
def test_a_stopped_run_goes_on_from_its_checkpoint_and_ends_as_one_that_was_never_stopped(
    digits: Any, tmp_path: Path, steps: int, saved: int
) -> None:
    stream = digits.train_stream[:2]
    whole = build(None)
    undisturbed, curves = train(whole, stream), whole.curves.points
    assert [point.step for point in curves] == [20]
    stopped = build(tmp_path, plugins=[stop_after(steps, InterruptError)])
    with pytest.raises(InterruptError):
        train(stopped, stream)
    again = build(tmp_path)
    assert torch.equal(train(again, stream), undisturbed)
    assert again.curves.points == curves
    # Steps of the first experience have 8 rows, those of the second 8 lessons more.
    rows = [8] * 10 + [16] * 10
    assert again.cost.training.backwards == sum(rows[saved:])


def test_buffers_of_the_network_are_saved(digits: Any, tmp_path: Path) -> None:
    def count(network: nn.Module, arguments: Any) -> None:
        network.steps += network.training

    def build_counting(**kwargs: Any) -> MAGDTraining:
        training = build(tmp_path, **kwargs)
        training.model.network.register_buffer("steps", torch.zeros(()))
        training.model.network.register_forward_pre_hook(count)
        return training

    stopped = build_counting(plugins=[stop_after(4, InterruptError)])
    with pytest.raises(InterruptError):
        stopped.train(digits.train_stream[0], eval_streams=[])
    assert stopped.model.network.steps == 5
    again = build_counting()
    again.train(digits.train_stream[0], eval_streams=[])
    assert again.model.network.steps == 10  # three of them were read, and seven were done


def test_an_interrupted_run_goes_on_in_the_same_process(digits: Any, tmp_path: Path) -> None:
    stream = list(digits.train_stream[:2])
    undisturbed = train(build(None), stream)
    training = build(tmp_path)
    training.train(stream[0], eval_streams=[])
    interruption = stop_after(5, InterruptError)
    training.plugins.append(interruption)
    with pytest.raises(InterruptError):
        training.train(stream[1], eval_streams=[])
    training.plugins.remove(interruption)
    before = training.cost.generation.forwards, training.cost.training.backwards
    # A stream makes its experiences anew each time that they are taken from it.
    assert digits.train_stream[1] is not stream[1]
    assert torch.equal(train(training, digits.train_stream[1:2]), undisturbed)
    assert training.cost.generation.forwards == before[0]
    assert training.cost.training.backwards == before[1] + 7 * 16


def test_training_goes_on_where_there_is_no_room_for_its_checkpoints(
    digits: Any, tmp_path: Path
) -> None:
    stream = digits.train_stream[:1]
    undisturbed = train(build(None), stream)
    stopped = build(tmp_path, plugins=[stop_after(3, InterruptError)])
    with pytest.raises(InterruptError):
        train(stopped, stream)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    going_on = build(tmp_path)
    named = pytest.warns(UserWarning, match=r"experience-0.pt cannot be written.* goes on")
    with named, largest_file(1000):
        assert torch.equal(train(going_on, stream), undisturbed)
    assert going_on.cost.training.backwards == 7 * 8
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_finished_run_is_read_without_training(digits: Any, tmp_path: Path) -> None:
    stream = digits.train_stream[:2]
    first = train(build(tmp_path), stream)
    again = build(tmp_path)
    assert torch.equal(train(again, stream), first)
    assert again.cost.training.backwards == 0
    assert {file.name for file in tmp_path.iterdir() if file.suffix} == {
        "experience-0.pt",
        "experience-0.pt.previous",
        "experience-1.pt",
        "experience-1.pt.previous",
    }


def test_a_damaged_checkpoint_is_refused_by_name_and_the_previous_one_is_used(
    digits: Any, tmp_path: Path
) -> None:
    stream = digits.train_stream[:1]
    undisturbed = train(build(tmp_path), stream)
    file = tmp_path / "experience-0.pt"
    file.write_bytes(file.read_bytes()[:-100])
    again = build(tmp_path)
    with pytest.warns(UserWarning, match=r"experience-0\.pt is not used: it is damaged"):
        assert torch.equal(train(again, stream), undisturbed)
    assert again.cost.training.backwards == 8  # the tenth step, after the ninth was read


def test_a_run_can_be_resumed_with_accumulated_gradients(digits: Any, tmp_path: Path) -> None:
    stream = digits.train_stream[:1]
    torch.manual_seed(0)
    models = tiny_generator(), tiny_generator()  # dropout would draw other masks for the parts
    models[1].load_state_dict(models[0].state_dict())
    whole = train(build(tmp_path, model=models[0]), stream)
    file = tmp_path / "experience-0.pt"
    previous(file).replace(file)  # of the ninth step
    parts = build(tmp_path, model=models[1], gradient_accumulation_steps=2)
    torch.testing.assert_close(train(parts, stream), whole, atol=1e-5, rtol=1e-4)
    assert parts.cost.training.backwards == 8  # the tenth step


def with_learning_rate(folder: Path | None) -> MAGDTraining:
    training = build(folder)
    training.optimizer.param_groups[0]["lr"] = 2e-3
    return training


OTHER_RUNS: dict[str, Callable[[Path | None], MAGDTraining]] = {
    "train_mb_size": lambda folder: build(folder, train_mb_size=4),
    "train_iterations": lambda folder: build(folder, train_iterations=9),
    "ema_decay": lambda folder: build(folder, ema_decay=0.5),
    "max_grad_norm": lambda folder: build(folder, max_grad_norm=0.5),
    "seed": lambda folder: build(folder, seed=1),
    "learning rate": with_learning_rate,
    "dtype": lambda folder: build(folder, model=tiny_generator(dropout=0.1, dtype=torch.bfloat16)),
    "mode": lambda folder: build(
        folder, distillation=Distillation(baselines.dgr, pool_size=12, num_inference_steps=4)
    ),
    "replay_weight": lambda folder: build(
        folder, distillation=Distillation(pool_size=12, num_inference_steps=4, replay_weight=0.5)
    ),
    "guidance_scale": lambda folder: build(
        folder,
        distillation=Distillation(
            pool_size=12, num_inference_steps=4, guidance=CGGD(guidance_scale=2.0)
        ),
    ),
}


@pytest.mark.parametrize("setting", OTHER_RUNS)
def test_a_checkpoint_of_a_run_with_another_setting_is_refused_by_name(
    digits: Any, tmp_path: Path, setting: str
) -> None:
    train(build(tmp_path), digits.train_stream[:1])
    build_other = OTHER_RUNS[setting]
    expected = train(build_other(None), digits.train_stream[:1])
    with pytest.warns(UserWarning, match="it is of another run") as warned:
        assert torch.equal(train(build_other(tmp_path), digits.train_stream[:1]), expected)
    named = [Path(str(each.message).split(" is not used")[0]).name for each in warned]
    assert named == ["experience-0.pt", "experience-0.pt.previous"]


def test_a_checkpoint_of_another_format_is_refused(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = digits.train_stream[:1]
    with monkeypatch.context() as earlier:
        earlier.setattr("avalanche_magd.checkpoints.training.FORMAT", 1)
        expected = train(build(tmp_path), stream)
    with pytest.warns(UserWarning, match="it is of another run"):
        assert torch.equal(train(build(tmp_path), stream), expected)


IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = [0, 1] * 20


def experience_of(images: Tensor, labels: list[int]) -> Any:
    dataset = AvalancheDataset(
        [TensorDataset(images, torch.tensor(labels))],
        data_attributes=[DataAttribute(labels, "targets")],
    )
    return benchmark_from_datasets(train=[dataset]).streams["train"][0]


def test_a_checkpoint_of_equal_data_is_used(tmp_path: Path) -> None:
    train(build(tmp_path), [experience_of(IMAGES, LABELS)])
    again = build(tmp_path)
    train(again, [experience_of(IMAGES.clone(), list(LABELS))])
    assert again.cost.training.backwards == 0


@pytest.mark.parametrize(
    ("images", "labels"),
    [(IMAGES, LABELS[::-1]), (torch.cat([IMAGES[:1], IMAGES[1:].flip(0)]), LABELS)],
    ids=["other labels", "other images"],
)
def test_a_checkpoint_of_other_data_of_the_same_size_is_refused(
    tmp_path: Path, images: Tensor, labels: list[int]
) -> None:
    train(build(tmp_path), [experience_of(IMAGES, LABELS)])
    with pytest.warns(UserWarning, match="it is of another run"):
        train(build(tmp_path), [experience_of(images, labels)])


@pytest.mark.parametrize("wrapped", [True, False], ids=["solver", "function"])
def test_a_checkpoint_of_lessons_guided_by_another_solver_is_refused(
    digits: Any, tmp_path: Path, wrapped: bool
) -> None:
    guided = Distillation(pool_size=12, num_inference_steps=4, guidance=CGGD(classifier_scale=1.0))
    first, second = digits.train_stream[:2]

    def end(folder: Path | None, weights: Tensor) -> Tensor:
        """Train on two experiences, with lessons guided by a solver with these weights."""
        solver = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        solver[1].weight.data = weights
        training = build(folder, distillation=guided)
        training.train(first, eval_streams=[])
        classifier = PastSolver(solver, training.model, training.device, training.cost.solver)
        function = lambda images, classes: solver(images)[:, classes]  # noqa: E731
        training.fill_pool(second, classifier if wrapped else function)
        return train(training, [second])

    one, other = torch.eye(10, 64), -torch.eye(10, 64)
    end(tmp_path, one)
    with pytest.warns(UserWarning, match="it is of another run"):
        assert torch.equal(end(tmp_path, other), end(None, other))


def test_a_checkpoint_with_a_learning_rate_of_numpy_can_be_read(
    digits: Any, tmp_path: Path
) -> None:
    trained = []
    for _ in range(2):
        training = build(tmp_path)
        training.optimizer.param_groups[0]["lr"] = np.logspace(-3, -2, 2)[0]
        training.train(digits.train_stream[0], eval_streams=[])
        trained.append(training.cost.training.backwards)
    assert trained == [80, 0]


def test_reading_a_checkpoint_runs_no_code(digits: Any, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    train(build(tmp_path), digits.train_stream[:1])
    file = tmp_path / "experience-0.pt"
    previous(file).unlink()
    write_file(file, lambda stream: torch.save({"key": Trap()}, stream, pickle_module=pickle))
    with pytest.warns(UserWarning, match="is not used: Weights only load failed"):
        train(build(tmp_path), digits.train_stream[:1])
    assert not (tmp_path / "sprung").exists()
