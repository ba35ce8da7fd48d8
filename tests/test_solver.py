"""The solver of the past answers as it would in evaluation, and is left as it was."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from avalanche.models import MTSimpleMLP
from tiny import tiny_generator
from torch import Tensor, nn

from avalanche_magd.diffusion.label_map import LabelMap
from avalanche_magd.distillation import Pool
from avalanche_magd.distillation.cost import PhaseCost
from avalanche_magd.distillation.solver import PastSolver

CPU = torch.device("cpu")


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    """Images in [−1, 1]."""
    return torch.rand(6, 1, 8, 8, generator=rng) * 2 - 1


def test_the_solver_is_called_in_evaluation_mode_and_left_as_it_was(images: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(64), nn.Linear(64, 10))
    model[2].eval()  # frozen by the user
    modes = [module.training for module in model.modules()]
    solver = PastSolver(model, tiny_generator(classes=(1, 3, 7)), CPU, PhaseCost())
    logits = solver(images, [1, 3, 7])
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(logits, solver(images, [1, 3, 7]))
    torch.testing.assert_close(logits, model.eval()(images)[:, [1, 3, 7]])


def test_calls_of_the_solver_are_counted_backwards_where_there_are_gradients(
    images: Tensor,
) -> None:
    cost, model = PhaseCost(), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    solver = PastSolver(model, tiny_generator(classes=(1, 3, 7)), CPU, cost)
    solver(images, [1, 3, 7])
    assert (cost.forwards, cost.backwards) == (6, 0)
    solver(images.requires_grad_(), [1]).sum().backward()
    assert images.grad is not None
    assert (cost.forwards, cost.backwards) == (12, 6)


def test_a_model_in_double_precision_is_given_images_in_double_precision(images: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    solver = PastSolver(model, tiny_generator(classes=(1, 3)), CPU, PhaseCost())
    torch.testing.assert_close(solver(images, [1, 3]), model(images.double())[:, [1, 3]])


def test_the_solver_sees_images_in_the_users_range(images: Tensor) -> None:
    generator = tiny_generator(classes=(0, 1))
    generator.pixel_range.set(torch.tensor([10.0]), torch.tensor([30.0]))
    solver = PastSolver(nn.Flatten(), generator, CPU, PhaseCost())
    torch.testing.assert_close(solver(images, [0, 1]), 20 + 10 * images.flatten(1)[:, :2])


def test_the_solver_sees_images_of_a_pool_as_they_are(images: Tensor) -> None:
    generator = tiny_generator(classes=(0, 1))
    generator.pixel_range.set(torch.tensor([10.0]), torch.tensor([30.0]))
    pool = Pool(6, 0, (1, 8, 8), CPU)
    pool.write(torch.arange(6), 20 + 10 * images, torch.tensor([0, 1] * 3))
    pool.end_pass()
    logits = PastSolver(nn.Flatten(), generator, CPU, PhaseCost()).logits_of_pool(pool)
    assert torch.equal(logits, pool.images.flatten(1)[:, :2])


def experience_of(classes: list[int], task: int) -> Any:
    dataset = SimpleNamespace(targets=classes, targets_task_labels=[task])
    return SimpleNamespace(classes_in_this_experience=classes, task_labels=[task], dataset=dataset)


def test_each_class_is_answered_by_the_head_of_its_task(images: Tensor) -> None:
    model, generator = MTSimpleMLP(input_size=64, hidden_size=8).eval(), tiny_generator()
    generator.label_map = LabelMap().with_classes([(0, 0), (1, 0), (0, 1)])
    for task in (0, 1):
        model.classifier.adaptation(experience_of([0, 1], task))
    logits = PastSolver(model, generator, CPU, PhaseCost())(images, [0, 1, 2])
    for column, (label, task) in enumerate([(0, 0), (1, 0), (0, 1)]):
        expected = model(images, torch.full((6,), task))[:, label]
        torch.testing.assert_close(logits[:, column], expected)


def test_a_model_without_logits_is_refused(images: Tensor) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x.flatten(1)}

    generator = tiny_generator()
    # A benchmark's task labels need not begin with 0.
    generator.label_map = LabelMap().with_classes([(0, 2)])
    solver = PastSolver(Model(), generator, CPU, PhaseCost())
    with pytest.raises(TypeError, match="The solver's output is a dict, not a tensor of logits"):
        solver(images, [0])
