"""The generator's training goes on inside an experience, exactly, or says from where."""

import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from tiny import tiny_generator, tiny_training
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from avalanche_magd import MAGDPlugin, MAGDTraining
from avalanche_magd.distillation import Distillation, baselines
from avalanche_magd.files import previous
from avalanche_magd.solver import PastSolver

SMALL = Distillation(pool_size=12, num_inference_steps=4)


class InterruptError(Exception):
    """What stops a run here."""


def build(folder: Path | None, **kwargs: Any) -> MAGDTraining:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "model": tiny_generator(dropout=0.1),
        "distillation": SMALL,
        "train_iterations": 10,
        "checkpoint_every": 3,
    }
    return tiny_training(checkpoint_folder=folder, **{**arguments, **kwargs})


def train(training: MAGDTraining, stream: Any) -> Tensor:
    for experience in stream:
        training.train(experience, eval_streams=[])
    return nn.utils.parameters_to_vector(training.model.parameters())


def stop_after(training: MAGDTraining, steps: int) -> None:
    """Raise in the middle of a step, once this many are done."""
    original = training.criterion

    def criterion() -> Any:
        nonlocal steps
        steps -= 1
        if steps < 0:
            raise InterruptError
        return original()

    training.criterion = criterion


@pytest.mark.parametrize("steps", [0, 1, 3, 5, 9, 10, 14, 19])
def test_a_stopped_run_ends_as_one_that_was_not(digits: Any, tmp_path: Path, steps: int) -> None:
    stream = digits.train_stream[:2]
    whole = build(None)
    undisturbed, curves = train(whole, stream), whole.curves.points
    assert [point.step for point in curves] == [20]
    stopped = build(tmp_path)
    stop_after(stopped, steps)
    with pytest.raises(InterruptError):
        train(stopped, stream)
    again = build(tmp_path)
    assert torch.equal(train(again, stream), undisturbed)
    assert again.curves.points == curves
    # It did not do again what was saved: every third step, and the last of the first experience.
    saved = steps // 3 * 3 if steps < 10 else 10 + (steps - 10) // 3 * 3
    assert again.cost.training.backwards == sum(8 if i < 10 else 16 for i in range(saved, 20))


def test_what_a_network_keeps_beside_its_weights_is_saved(digits: Any, tmp_path: Path) -> None:
    def count(network: nn.Module, arguments: Any) -> None:
        network.steps += network.training

    steps = []
    for stop in (True, False):
        training = build(tmp_path)
        training.model.network.register_buffer("steps", torch.zeros(()))
        training.model.network.register_forward_pre_hook(count)
        if stop:
            stop_after(training, 4)
        with pytest.raises(InterruptError) if stop else nullcontext():
            training.train(digits.train_stream[0], eval_streams=[])
        steps.append(int(training.model.network.steps))
    assert steps == [5, 10]  # the second run did steps 3 to 9


def test_a_run_that_is_interrupted_goes_on_in_the_same_process(
    digits: Any, tmp_path: Path
) -> None:
    stream = list(digits.train_stream[:2])
    undisturbed = train(build(None), stream)
    training = build(tmp_path)
    training.train(stream[0], eval_streams=[])
    original = training.criterion
    stop_after(training, 5)
    with pytest.raises(InterruptError):
        training.train(stream[1], eval_streams=[])
    training.criterion = original
    before = training.cost.generation.forwards, training.cost.training.backwards
    # A stream makes its experiences anew each time that it is asked for them.
    assert digits.train_stream[1] is not stream[1]
    assert torch.equal(train(training, digits.train_stream[1:2]), undisturbed)
    assert training.cost.generation.forwards == before[0]
    assert training.cost.training.backwards == before[1] + 7 * 16


def test_a_finished_run_is_read_not_trained(digits: Any, tmp_path: Path) -> None:
    stream = digits.train_stream[:2]
    first = train(build(tmp_path), stream)
    again = build(tmp_path)
    stop_after(again, 0)
    assert torch.equal(train(again, stream), first)
    assert {file.name for file in tmp_path.iterdir()} == {
        f"experience-{number}.pt{end}" for number in (0, 1) for end in ("", ".previous")
    }


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    digits: Any, tmp_path: Path
) -> None:
    stream = digits.train_stream[:1]
    undisturbed = train(build(tmp_path), stream)
    file = tmp_path / "experience-0.pt"
    file.write_bytes(file.read_bytes()[:-100])
    again = build(tmp_path)
    with pytest.warns(UserWarning, match=r"experience-0\.pt is not used: it is damaged"):
        assert torch.equal(train(again, stream), undisturbed)
    assert again.cost.training.backwards == 8  # one step after the ninth


def test_a_run_that_had_too_little_memory_goes_on_in_parts(digits: Any, tmp_path: Path) -> None:
    stream = digits.train_stream[:1]
    torch.manual_seed(0)
    models = tiny_generator(), tiny_generator()  # dropout would draw other masks for the parts
    models[1].load_state_dict(models[0].state_dict())
    whole = train(build(tmp_path, model=models[0]), stream)
    file = tmp_path / "experience-0.pt"
    file.with_name(f"{file.name}.previous").replace(file)  # what was saved before the end
    parts = build(tmp_path, model=models[1], gradient_accumulation_steps=2)
    torch.testing.assert_close(train(parts, stream), whole, atol=1e-5, rtol=1e-4)
    assert parts.cost.training.backwards == 8  # one step after the ninth


@pytest.mark.parametrize(
    "other",
    [
        {"train_mb_size": 4},
        {"ema_decay": 0.5},
        {"seed": 1},
        {"train_iterations": 9},
        {"data": 1},
        {"lr": 2e-3},
        {"dtype": torch.bfloat16},
        {"distillation": Distillation(baselines.dgr, pool_size=12, num_inference_steps=4)},
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(
    digits: Any, tmp_path: Path, other: dict[str, Any]
) -> None:
    train(build(tmp_path), digits.train_stream[:1])
    other = dict(other)
    data, lr, dtype = other.pop("data", 0), other.pop("lr", 1e-3), other.pop("dtype", None)

    def rebuild(folder: Path | None) -> MAGDTraining:
        training = build(folder, **other)
        training.optimizer.param_groups[0]["lr"] = lr
        training.model.dtype = dtype
        return training

    stream = digits.train_stream[data : data + 1]
    expected = train(rebuild(None), stream)
    with pytest.warns(UserWarning, match="it is of another run") as warned:
        assert torch.equal(train(rebuild(tmp_path), stream), expected)
    named = [Path(str(each.message).split(" is not used")[0]).name for each in warned]
    assert named == ["experience-0.pt", "experience-0.pt.previous"]


def test_a_checkpoint_of_another_form_is_refused_by_name(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = digits.train_stream[:1]
    with monkeypatch.context() as earlier:
        earlier.setattr("avalanche_magd.resuming.FORMAT", 1)
        expected = train(build(tmp_path), stream)
    with pytest.warns(UserWarning, match="it is of another run"):
        assert torch.equal(train(build(tmp_path), stream), expected)


@pytest.mark.parametrize("changed", ["labels", "images"])
def test_a_checkpoint_of_other_data_of_the_same_size_is_refused(
    changed: str, tmp_path: Path
) -> None:
    images, labels = torch.rand(40, 1, 8, 8), [0, 1] * 20

    def experience(images: Tensor, labels: list[int]) -> Any:
        dataset = AvalancheDataset(
            [TensorDataset(images, torch.tensor(labels))],
            data_attributes=[DataAttribute(labels, "targets")],
        )
        return benchmark_from_datasets(train=[dataset]).streams["train"][0]

    train(build(tmp_path), [experience(images, labels)])
    train(build(tmp_path), [experience(images.clone(), list(labels))])  # the same: no warning
    if changed == "labels":
        labels = [1, 0] * 20
    else:
        images[1:] = images[1:].flip(0)
    with pytest.warns(UserWarning, match="it is of another run"):
        train(build(tmp_path), [experience(images, labels)])


def test_a_checkpoint_of_another_solver_of_the_past_is_refused(
    digits: Any, tmp_path: Path
) -> None:
    told = Distillation(pool_size=12, num_inference_steps=4, classifier_scale=1.0)
    first, second = digits.train_stream[:2]

    def end(folder: Path | None, weights: Tensor) -> Tensor:
        """Of an experience that was taught by a solver with these weights."""
        solver = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        solver[1].weight.data = weights
        training = build(folder, distillation=told)
        training.train(first, eval_streams=[])
        classifier = PastSolver(solver, training.model, training.device, training.cost.solver)
        training.fill_pool(second, classifier)
        return train(training, [second])

    one, other = torch.eye(10, 64), -torch.eye(10, 64)
    end(tmp_path, one)
    with pytest.warns(UserWarning, match="it is of another run"):
        assert torch.equal(end(tmp_path, other), end(None, other))


def test_a_numpy_learning_rate_does_not_spoil_a_checkpoint(digits: Any, tmp_path: Path) -> None:
    for trained in (True, False):
        training = build(tmp_path)
        training.optimizer.param_groups[0]["lr"] = np.logspace(-3, -2, 2)[0]
        training.train(digits.train_stream[0], eval_streams=[])
        assert (training.cost.training.backwards > 0) == trained


def test_a_checkpoint_runs_no_code(digits: Any, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    train(build(tmp_path), digits.train_stream[:1])
    file = tmp_path / "experience-0.pt"
    previous(file).unlink()
    from avalanche_magd.files import write_file

    write_file(file, lambda stream: torch.save({"key": Trap()}, stream, pickle_module=pickle))
    with pytest.warns(UserWarning, match="is not used: Weights only load failed"):
        train(build(tmp_path), digits.train_stream[:1])
    assert not (tmp_path / "sprung").exists()


def test_a_plugin_hands_its_folder_to_the_generators_training(digits: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint_folder"):
        MAGDPlugin(tiny_training(), checkpoint_folder=tmp_path)
    plugin = MAGDPlugin(checkpoint_folder=tmp_path)
    strategy = plugin._default_strategy((1, 8, 8), torch.device("cpu"))
    assert strategy.checkpoint_folder == tmp_path
