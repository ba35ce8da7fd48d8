"""Public constructors stay within ten arguments."""

import importlib
import inspect
import pkgutil
from typing import Any

import pytest

import avalanche_magd

MOST_ARGUMENTS = 10
PACKAGES = [
    avalanche_magd.__name__,
    *(
        module.name
        for module in pkgutil.walk_packages(avalanche_magd.__path__, "avalanche_magd.")
        if module.ispkg
    ),
]


def public_classes() -> dict[str, type]:
    """Every class that a package exports, by its name."""
    found: dict[str, type] = {}
    for package in map(importlib.import_module, PACKAGES):
        exported = [getattr(package, name) for name in getattr(package, "__all__", [])]
        found |= {each.__name__: each for each in exported if inspect.isclass(each)}
    return found


def argument_names(constructor: Any) -> list[str]:
    parameters = inspect.signature(constructor).parameters.values()
    return [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]


def test_the_classes_of_the_quick_start_are_public() -> None:
    expected = {"DiffusionGenerator", "MAGDTraining", "MAGDPlugin", "Distillation", "MAGD"}
    assert expected <= public_classes().keys()


@pytest.mark.parametrize("name", public_classes())
def test_a_public_constructor_has_at_most_ten_arguments(name: str) -> None:
    arguments = argument_names(public_classes()[name])
    assert len(arguments) <= MOST_ARGUMENTS, arguments


def test_signatures_show_the_arguments_of_the_constructor() -> None:
    expected = ["model", "optimizer", "distillation", "train_mb_size", "train_iterations"]
    assert argument_names(avalanche_magd.MAGDTraining)[:5] == expected
    assert argument_names(avalanche_magd.MAGDPlugin)[:2] == [
        "generator_strategy",
        "generator_iterations",
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_exists(package: str) -> None:
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", []):
        assert hasattr(module, name)
