"""Each example runs to its end with ``--smoke`` and leaves what it promises."""

import argparse
import ast
import builtins
import importlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = sorted(
    file
    for file in (Path(__file__).parents[1] / "examples").glob("*.py")
    if file.stem not in {"methods", "study"}  # parts of other examples
)
METHODS = ["replay-50", "balanced_replay-50", "icarl-50", "strong_vae", "magd", "ddgr_published"]
LOSSES = ["replay_weight-0.25", "replay_weight-4", "current_weight-0.1"]
ARGUMENTS = {
    "compare": ["--output", "{folder}", "--seconds", "1", "--methods", *METHODS],
    "timing": ["--steps", "2", "--json", "{folder}/timing.json"],
}
LEFT = {
    "resume": "*.pt",
    "online": "*.log",
    "timing": "timing.json",
    "scaling": "scaling.json",
    "processes": "processes.json",
}


def run(example: Path, folder: Path, *more: str) -> str:
    arguments = [*ARGUMENTS.get(example.stem, ["--output", "{folder}"]), *more]
    arguments = [argument.format(folder=folder) for argument in arguments]
    command = [sys.executable, str(example), "--smoke", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_runs(example: Path, tmp_path: Path) -> None:
    printed = run(example, tmp_path)
    assert list(tmp_path.glob(LEFT.get(example.stem, "*.png")))
    if example.stem == "compare":
        check_comparison(tmp_path / "digits.jsonl", printed)
        again = run(example, tmp_path, "naive", "--groups", "losses", "--table", "more")
        assert "6 of 10 runs are there" in again
        assert all(f"| {name} | 1 |" in again for name in ["naive", *LOSSES])
        assert (tmp_path / "more.md").read_text().strip() in again
        assert (tmp_path / "digits.md").read_text().strip() in printed
    elif example.stem == "timing":
        check_timing(json.loads((tmp_path / "timing.json").read_text()))
    elif example.stem == "scaling":
        check_scaling(json.loads((tmp_path / "scaling.json").read_text()))
    elif example.stem == "processes":
        rows = json.loads((tmp_path / "processes.json").read_text())
        assert [row["processes"] for row in rows] == [1, 2]
        assert rows[0]["speed-up"] == [1, 1]
        assert all(seconds > 0 for seconds in rows[1]["seconds"])
    else:
        assert ("error on states" if example.stem == "gap" else "final accuracy") in printed


def check_comparison(file: Path, printed: str) -> None:
    lines = {line["name"]: line for line in map(json.loads, file.read_text().splitlines())}
    assert set(lines) == set(METHODS)
    assert all(f"| {name} | 1 |" in printed for name in METHODS)
    assert all(len(line["accuracies"]) == 5 for line in lines.values())
    assert lines["replay-50"]["kept MB"] == pytest.approx(50 * 65 / 1e6)
    assert lines["magd"]["kept MB"] > 100 * lines["replay-50"]["kept MB"]
    assert {"FrechetDistance", "LabelAgreement", "generator steps"} <= set(lines["magd"])
    # As many steps as fit into the seconds.
    assert lines["magd"]["generator steps"] > lines["ddgr_published"]["generator steps"] >= 1
    assert "torch" in lines["magd"]["environment"]


def check_timing(rows: list[dict[str, Any]]) -> None:
    """The teacher's forwards are counted, not timed; seconds only have to be there."""
    forwards = {
        (row["mode"], row["num_inference_steps"]): row["teacher_forwards_per_lesson"]
        for row in rows
    }
    assert forwards["magd", 20] == forwards["lwf_distillation", 2] == 1
    assert forwards["generative_distillation", 20] == 21
    assert forwards["ddgr", 1000] == 1000
    assert all(row["seconds"] > 0 and row["ratio"] > 0 and "overhead" in row for row in rows)


def check_scaling(rows: list[dict[str, Any]]) -> None:
    """What does not depend on the machine."""
    of = {(row["vary"], row["value"]): row for row in rows}
    later, early = of["experience", 4], of["experience", 2]
    # As many lessons for six old classes as for two, and fewer images of the current ones.
    assert early["teacher forwards"] > later["teacher forwards"] > 400
    assert later["kept bytes"] - early["kept bytes"] == 4 * 4 * 128  # four classes' embeddings
    assert of["pool", 40]["pool bytes"] == 2 * of["pool", 20]["pool bytes"]
    assert of["side", 64]["pool bytes"] > 50 * of["side", 8]["pool bytes"]


def test_a_run_is_known_again_until_its_settings_or_the_defaults_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES[0].parent))
    methods, study = (importlib.import_module(name) for name in ("methods", "study"))

    def key(shape: tuple[int, int, int] = (1, 28, 28), **settings: Any) -> Any:
        recipe = methods.recipe("dgr", shape)
        return study.key_of(argparse.Namespace(epochs=2, **settings), [], "dgr", 0, recipe)

    known = key()
    assert key(output=Path("elsewhere"), jobs=2) == known
    assert key(learnt_later=None, switch=False) == known
    assert key(iterations=10) != known
    assert key((3, 64, 64)) != known
    monkeypatch.setattr(methods, "MIN_ITERATIONS", 399)
    assert key() != known


def test_forty_digits_are_digits_turned_ones_and_the_negatives_of_both(
    monkeypatch: pytest.MonkeyPatch, digits: Any
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES[0].parent))
    benchmark = importlib.import_module("study").forty_digits(20, seed=1)
    assert [len(each.classes_in_this_experience) for each in benchmark.train_stream] == [2] * 20

    def images(benchmark: Any) -> dict[int, torch.Tensor]:
        found: dict[int, list[torch.Tensor]] = {}
        for experience in benchmark.test_stream:
            for image, label, *_ in experience.dataset.eval():
                found.setdefault(int(label), []).append(image)
        return {label: torch.stack(each) for label, each in found.items()}

    upright, forty = images(digits), images(benchmark)
    assert len(forty) == 40
    for label, given in upright.items():
        torch.testing.assert_close(forty[label], given)
        torch.testing.assert_close(forty[label + 10], given.rot90(1, (2, 3)))
        torch.testing.assert_close(forty[label + 20], 1 - given)
        torch.testing.assert_close(forty[label + 30], 1 - given.rot90(1, (2, 3)))


def test_each_method_of_this_package_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES[0].parent))
    methods = importlib.import_module("methods")
    recipes = {methods.recipe(name, (1, 8, 8)) for name in methods.ROWS}
    assert len(recipes) == len(methods.ROWS) > 30
    assert len(methods.ROWS) == sum(map(len, methods.GROUPS.values()))


def test_a_row_differs_from_magd_by_nothing_but_what_it_says(
    monkeypatch: pytest.MonkeyPatch, digits: Any
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES[0].parent))
    methods, study = (importlib.import_module(name) for name in ("methods", "study"))
    arguments = argparse.Namespace(
        paper_scale=False, pool_size=20, epochs=1, experiences=5, device="cpu"
    )

    def learnt(name: str) -> torch.Tensor:
        """The first experience has no past: the weight of its lessons does not count."""
        known = methods.known_of(digits, 3, arguments)
        known.common["evaluator"] = study.silent_evaluator()
        method = methods.build(name, known, 3, 2)
        method.strategy.train(digits.train_stream[0], eval_streams=[])
        learners = (method.plugin.generator, method.strategy.model)
        return torch.cat([each.flatten() for one in learners for each in one.parameters()])

    assert learnt("replay_weight-4").equal(learnt("magd"))
    assert not learnt("epsilon").equal(learnt("magd"))


def test_two_folders_of_images_are_two_benchmarks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES[0].parent))
    study = importlib.import_module("study")
    names = {
        study.name_of(argparse.Namespace(benchmark=benchmark, root=tmp_path / folder))
        for benchmark, folder in (("folder", "cats"), ("folder", "dogs"), ("cifar10", "dogs"))
    }
    assert names == {"folder-cats", "folder-dogs", "cifar10"}


def line(name: str, file: Path) -> dict[str, Any]:
    """A run during which another study writes a line of its own to the same file."""
    with file.open("a") as stream:
        stream.write(json.dumps({"key": "another", "name": "another"}) + "\n")
    return {"name": name, "seed": 0, "accuracy": 1.0}


def test_two_studies_may_write_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES[0].parent))
    study = importlib.import_module("study")
    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    file = tmp_path / "study.jsonl"
    assert list(study.finish(file, {"mine": ("mine", file)}, line, 1)) == ["mine"]
    assert [json.loads(each)["key"] for each in file.read_text().splitlines()] == [
        "another",
        "mine",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images-per-class", "3"], "--images-per-class is for --benchmark fashion_mnist"),
        (["--jobs", "0"], "must be at least 1, got 0"),
        (["--seconds", "1", "--iterations", "1"], "not allowed with argument"),
        (["--benchmark", "folder"], "--benchmark folder needs --root"),
        (["--benchmark", "folder", "--root", "/nowhere"], "/nowhere"),
    ],
)
def test_a_study_that_cannot_be_made_is_refused_in_a_line(
    words: list[str], message: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(EXAMPLES[0].with_name("compare.py")), *words]
    command += ["--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_readmes_code_imports_all_that_it_names() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    known: set[str] = set(dir(builtins)) | {"strategy", "benchmark", "plugin"}
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        tree = ast.parse(block)
        imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        scope: dict[str, Any] = {}
        exec(compile(ast.Module(imports, []), "README.md", "exec"), scope)
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        known |= stored | set(scope)
        assert {node.id for node in names} <= known
