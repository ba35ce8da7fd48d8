"""What teaches default networks: routing to Muon, falling rates, precision."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from callbacks import at
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_generator
from torch import nn

from avalanche_magd import DiffusionGenerator, MAGDTraining
from avalanche_magd.distillation import Distillation
from avalanche_magd.training.defaults import default_training
from avalanche_magd.training.optimizers import FallingRates, default_dtype, muon, teaching

CPU = torch.device("cpu")


def test_muon_teaches_matrices_and_convolutions_and_adamw_the_rest() -> None:
    generator = DiffusionGenerator((1, 8, 8))
    generator.add_classes(range(3))
    optimizer = muon(generator)
    for parameter in generator.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    by_muon = {id(each) for each, state in optimizer.state.items() if state["use_muon"]}
    names = {name: id(each) in by_muon for name, each in generator.named_parameters()}
    assert len(names) == len(optimizer.state)
    assert not names["network.class_embedding.weight"]
    assert names["network.down_blocks.0.resnets.0.conv1.weight"]
    assert names["network.time_embedding.linear_1.weight"]
    assert not any(taught for name, taught in names.items() if name.endswith("bias"))
    # Eight in ten weights at least: what Muon leaves to AdamW is small.
    sizes = {name: each.numel() for name, each in generator.named_parameters()}
    assert sum(sizes[name] for name in names if names[name]) > 0.8 * sum(sizes.values())


def test_frozen_weights_are_not_taught_and_networks_need_no_tables() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    network[0].requires_grad_(False)
    optimizer = muon(network)
    taught = [id(each) for group in optimizer.param_groups for each in group["params"]]
    assert taught == [id(each) for each in network[1].parameters()]


def test_classes_that_arrive_are_taught_by_adamw(digits: Any) -> None:
    training = default_training((1, 8, 8), Distillation(pool_size=20), CPU, 0, train_iterations=3)
    training.progress = False
    routes = []
    look = at(
        "after_update",
        lambda strategy: routes.append(
            strategy.optimizer.state[strategy.model.network.class_embedding.weight]["use_muon"]
        ),
    )
    training.plugins.append(look)
    for experience in digits.train_stream[:2]:
        training.train(experience)
    assert routes == [False] * 6
    groups = training.optimizer.param_groups
    parameters = [each for group in groups for each in group["params"]]
    assert {id(each) for each in parameters} == {id(each) for each in training.model.parameters()}
    assert len(parameters) == len({id(each) for each in parameters})


def rates(training: MAGDTraining, experience: Any) -> list[float]:
    """The first group's, at each step."""
    seen: list[float] = []
    look = at("after_update", lambda each: seen.append(each.optimizer.param_groups[0]["lr"]))
    training.plugins.append(look)
    training.train(experience)
    training.plugins.remove(look)
    return seen


def test_rates_fall_in_the_second_half_of_each_experience(digits: Any) -> None:
    generator = tiny_generator()
    training = MAGDTraining(
        model=generator,
        optimizer=torch.optim.AdamW(generator.parameters(), lr=8.0),
        distillation=Distillation(pool_size=20),
        train_iterations=8,
        max_grad_norm=1e-6,
        plugins=[FallingRates()],
        seed=0,
    )
    training.progress = False
    for experience in digits.train_stream[:2]:
        assert rates(training, experience) == [8, 8, 8, 8, 8, 6, 4, 2]


def test_a_rate_that_is_lowered_is_what_falls_from_then_on(digits: Any) -> None:
    training = default_training((1, 8, 8), Distillation(pool_size=20), CPU, 0, train_iterations=4)
    training.progress = False
    assert rates(training, digits.train_stream[0]) == [0.005, 0.005, 0.005, 0.0025]
    for group in training.optimizer.param_groups:
        group["lr"] = 0.001
    assert rates(training, digits.train_stream[1]) == [0.001, 0.001, 0.001, 0.0005]


@given(st.integers(1, 50))
def test_a_rate_is_never_zero_nor_above_the_given_one(last: int) -> None:
    group = {"lr": 3.0}
    strategy = SimpleNamespace(
        experience=None,
        iterations_of=lambda experience: last,
        optimizer=SimpleNamespace(param_groups=[group]),
    )
    for iteration in range(last):
        strategy.iteration = iteration
        FallingRates().before_update(strategy)
        assert 0 < group["lr"] <= 3


@pytest.mark.parametrize(
    ("units", "dtype"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"avx512_bf16": False, "avx2": True}, None)],
)
def test_networks_compute_in_bfloat16_where_the_cpu_has_units_for_it(
    units: dict[str, bool], dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    assert default_dtype(CPU) is dtype
    assert default_training((1, 8, 8), Distillation(), CPU, 0).model.dtype is dtype


def test_gpus_are_taught_by_adamw_at_one_rate_in_single_precision() -> None:
    cuda = torch.device("cuda")
    assert default_dtype(cuda) is None
    taught = teaching(tiny_generator(), cuda)
    assert taught.keys() == {"optimizer"}
    assert isinstance(taught["optimizer"], torch.optim.AdamW)
