"""The house: imports point down, hosts stay where they belong, files stay short."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "avalanche_magd"
LAYERS = [
    {"runtime"},
    {"diffusion", "benchmarks"},
    {"distillation", "reporting"},
    {"replay", "metrics"},
    {"checkpoints"},
    {"training"},
    {"plugin"},
    {""},
]
TECHNIQUES = {"distillation.nigd", "distillation.sggd", "distillation.cggd"}
ABOVE_DIFFUSION = {
    *("benchmarks", "distillation", "reporting", "replay", "checkpoints", "training", "plugin")
}
HOSTS = {
    "avalanche": {"diffusion.generator", "metrics", *ABOVE_DIFFUSION},
    "diffusers": {"diffusion"},
    "huggingface_hub": {"diffusion"},
    "timm": {"training.optimizers"},
    "torchmetrics": {"metrics"},
    "matplotlib": {"reporting"},
}


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {module_name(file): file for file in PACKAGE.rglob("*.py")}


def imported_names(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively"
            names.add(node.module or "")
    return names


def own_imports(module: str) -> set[str]:
    names = {name for name in imported_names(FILES[module]) if name.startswith("avalanche_magd")}
    return {name.removeprefix("avalanche_magd").lstrip(".") for name in names}


def part_of(module: str) -> str:
    """The entry at the top of the package to which a module belongs."""
    return module.split(".")[0]


def layer_of(module: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if part_of(module) in layer)


def test_the_package_has_at_most_ten_entries_in_at_most_eight_layers() -> None:
    entries = {part_of(module) for module in FILES} - {""}
    assert entries == set().union(*LAYERS) - {""}
    assert len(entries) <= 10
    assert len(LAYERS) <= 8


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_from_lower_layers_or_from_its_own_part(module: str) -> None:
    for imported in own_imports(module):
        lower = layer_of(imported) < layer_of(module)
        assert lower or part_of(imported) == part_of(module), f"{module} → {imported}"


def test_no_modules_import_one_another_in_a_circle() -> None:
    # A package's own __init__ gathers what its modules define.
    packages = {module for module, file in FILES.items() if file.stem == "__init__"}
    graph = {
        module: {name for name in own_imports(module) if part_of(name) == part_of(module)}
        for module in FILES.keys() - packages
    }
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", sorted(TECHNIQUES))
def test_the_techniques_do_not_know_one_another(module: str) -> None:
    assert not own_imports(module) & (TECHNIQUES - {module})


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_is_imported_only_where_it_belongs(host: str) -> None:
    users = {
        module
        for module, file in FILES.items()
        if any(name.split(".")[0] == host for name in imported_names(file))
    }
    assert users
    assert {each for each in users if not {each, part_of(each)} & HOSTS[host]} == set()


def test_no_module_is_longer_than_300_lines() -> None:
    lines = {
        module: len(file.read_text(encoding="utf-8").splitlines())
        for module, file in FILES.items()
    }
    assert {module: count for module, count in lines.items() if count > 300} == {}


def test_no_function_writes_a_global() -> None:
    for file in FILES.values():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.Global), f"{file.name}: global"


def test_the_library_prints_nothing() -> None:
    for file in FILES.values():
        calls = [
            node
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        ]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls)


EXAMPLES = {f"examples.{file.stem}": file for file in (PACKAGE.parent / "examples").glob("*.py")}


@pytest.mark.parametrize("module", [*FILES, *EXAMPLES])
def test_a_text_file_is_opened_in_a_stated_encoding(module: str) -> None:
    tree = ast.parse((FILES | EXAMPLES)[module].read_text(encoding="utf-8"))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        texts = [each.value for each in call.args if isinstance(each, ast.Constant)]
        is_binary = any(isinstance(text, str) and "b" in text for text in texts)
        is_image = isinstance(call.func, ast.Attribute) and (
            isinstance(call.func.value, ast.Name) and call.func.value.id == "Image"
        )
        if name in ("read_text", "write_text") or (
            name == "open" and not is_binary and not is_image
        ):
            assert "encoding" in {each.arg for each in call.keywords}, f"line {call.lineno}"
