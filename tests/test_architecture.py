"""Imports point down, hosts stay where they belong, and names keep their meaning."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "avalanche_magd"
LAYERS = [
    {"processes"},
    {"arguments", "card", "classes", "files", "pictures", "prompts", "randomness", "samples"},
    {"distillation.room"},
    {"schedule", "networks", "pixels", "saving", "benchmarks"},
    {"latents", "samplers"},
    {"sampling"},
    {"generator"},
    {"cost", "recording", "distillation.batch"},
    {"distillation.draft", "distillation.nigd", "distillation.sggd", "distillation.cggd"},
    {"distillation.teacher", "distillation.loss", "distillation.pool"},
    {"distillation.magd", "distillation.past"},
    {"distillation.baselines", "distillation.distillation"},
    {"distillation"},
    {"rehearsal", "replay", "solver"},
    {"resuming"},
    {"training"},
    {"checkpointing", "plugin", "runs", "metrics.cost", "metrics.gap", "metrics.judge"}
    | {f"metrics.{name}" for name in ("features", "losses", "samples", "forgetting")}
    | {f"metrics.{name}" for name in ("frechet", "kernel", "labels", "neighbours")},
    {"metrics.comparison", "report"},
    {"metrics.generation"},
    {"metrics"},
    {""},
]
TECHNIQUES = {"distillation.nigd", "distillation.sggd", "distillation.cggd"}
HOSTS = {
    "avalanche": {
        "generator",
        "training",
        "plugin",
        "benchmarks",
        "checkpointing",
        "solver",
        "runs",
        "metrics.comparison",
        "metrics.cost",
        "metrics.generation",
        "metrics.losses",
        "metrics.samples",
    },
    "diffusers": {"networks", "prompts", "saving", "schedule"},
}


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {module_name(file): file for file in PACKAGE.rglob("*.py")}


def imported_modules(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively"
            names.add(node.module or "")
    return names


def layer_of(module: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if module in layer)


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_from_layers_below(module: str) -> None:
    for name in imported_modules(FILES[module]):
        if name.split(".")[0] == "avalanche_magd":
            imported = name.removeprefix("avalanche_magd").lstrip(".")
            assert layer_of(imported) < layer_of(module), f"{module} → {imported}"


@pytest.mark.parametrize("module", sorted(TECHNIQUES))
def test_the_techniques_do_not_know_one_another(module: str) -> None:
    imported = {name.removeprefix("avalanche_magd.") for name in imported_modules(FILES[module])}
    assert not imported & (TECHNIQUES - {module})


@pytest.mark.parametrize("host", HOSTS)
def test_hosts_are_imported_only_where_they_belong(host: str) -> None:
    users = {
        module
        for module, file in FILES.items()
        if any(name.split(".")[0] == host for name in imported_modules(file))
    }
    assert users <= HOSTS[host]


def test_no_function_writes_a_global() -> None:
    for file in FILES.values():
        for node in ast.walk(ast.parse(file.read_text())):
            assert not isinstance(node, ast.Global), f"{file.name}: global"


def test_the_library_prints_nothing() -> None:
    for file in FILES.values():
        calls = [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
        ]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls)
