"""The solver of the past answers as it would in evaluation, and is left as it was."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from avalanche.models import MTSimpleMLP
from tiny import tiny_generator
from torch import Tensor, nn

from avalanche_magd.cost import PhaseCost
from avalanche_magd.distillation import Pool
from avalanche_magd.solver import PastSolver

CPU = torch.device("cpu")


def images(rng: torch.Generator) -> Tensor:
    return torch.rand(6, 1, 8, 8, generator=rng) * 2 - 1


def test_it_is_asked_in_evaluation_mode_and_left_as_it_was(rng: torch.Generator) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(64), nn.Linear(64, 10))
    model[2].eval()  # frozen by the user
    modes = [module.training for module in model.modules()]
    solver = PastSolver(model, tiny_generator(classes=(1, 3, 7)), CPU, cost := PhaseCost())
    x = images(rng)
    logits = solver(x, [1, 3, 7])
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(logits, solver(x, [1, 3, 7]))
    torch.testing.assert_close(logits, model.eval()(x)[:, [1, 3, 7]])
    assert (cost.forwards, cost.backwards) == (12, 0)
    solver(x.requires_grad_(), [1]).sum().backward()
    assert x.grad is not None
    assert (cost.forwards, cost.backwards) == (18, 6)


def test_a_model_in_double_precision_is_asked_in_it(rng: torch.Generator) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    solver = PastSolver(model, tiny_generator(classes=(1, 3)), CPU, PhaseCost())
    x = images(rng)
    torch.testing.assert_close(solver(x, [1, 3]), model(x.double())[:, [1, 3]])


def test_it_sees_images_in_the_users_range(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0, 1))
    generator.pixel_range.set(torch.tensor([10.0]), torch.tensor([30.0]))
    solver = PastSolver(nn.Flatten(), generator, CPU, PhaseCost())
    x = images(rng)
    torch.testing.assert_close(solver(x, [0, 1]), 20 + 10 * x.flatten(1)[:, :2])
    pool = Pool(6, 0, (1, 8, 8), CPU)
    pool.write(torch.arange(6), 20 + 10 * x, torch.tensor([0, 1] * 3))
    pool.sort()
    torch.testing.assert_close(solver.of_pool(pool), 20 + 10 * x.flatten(1)[:, :2])


def test_each_class_is_answered_by_the_head_of_its_task(rng: torch.Generator) -> None:
    model = MTSimpleMLP(input_size=64, hidden_size=8).eval()
    generator = tiny_generator()
    generator.class_table.add([(0, 0), (1, 0), (0, 1)])
    for task in (0, 1):
        model.classifier.adaptation(_experience([0, 1], task))
    x = images(rng)
    logits = PastSolver(model, generator, CPU, PhaseCost())(x, [0, 1, 2])
    for column, (label, task) in enumerate([(0, 0), (1, 0), (0, 1)]):
        expected = model(x, torch.full((6,), task))[:, label]
        torch.testing.assert_close(logits[:, column], expected)


def _experience(classes: list[int], task: int) -> Any:
    dataset = SimpleNamespace(targets=classes, targets_task_labels=[task])
    return SimpleNamespace(classes_in_this_experience=classes, task_labels=[task], dataset=dataset)


def test_a_model_without_logits_is_refused(rng: torch.Generator) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x.flatten(1)}

    generator = tiny_generator()
    generator.class_table.add({(0, 2)})  # a benchmark's task labels need not begin with 0
    solver = PastSolver(Model(), generator, CPU, PhaseCost())
    with pytest.raises(TypeError, match="The solver's output is a dict, not a tensor of logits"):
        solver(images(rng), [0])
