"""Each example runs with ``--smoke`` and leaves what it promises; the documents hold true."""

import argparse
import ast
import builtins
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
README, GUIDES, RESULTS = (
    ROOT / "README.md",
    EXAMPLES / "README.md",
    EXAMPLES / "results" / "README.md",
)
PARTS = {"methods", "study"}
"""Files that are parts of other examples."""
METHODS = ["replay-50", "balanced_replay-50", "icarl-50", "strong_vae", "magd", "ddgr_published"]
IMAGE_SHAPES = {
    "digits": (1, 8, 8),
    "forty_digits": (1, 8, 8),
    "fashion_mnist": (1, 28, 28),
    "folder": (3, 32, 32),
}


def check_nothing_more(folder: Path) -> None:
    """What is written is for readers."""


def check_comparison(folder: Path) -> None:
    lines = {line["name"]: line for line in read_lines(folder / "digits.jsonl")}
    assert set(lines) == set(METHODS)
    table = (folder / "digits.md").read_text()
    assert all(f"| {name} | 1 |" in table for name in METHODS)
    assert all(len(line["accuracies"]) == 5 for line in lines.values())
    assert lines["replay-50"]["kept MB"] == pytest.approx(50 * 65 / 1e6)
    assert lines["magd"]["kept MB"] > 100 * lines["replay-50"]["kept MB"]
    assert {"FrechetDistance", "LabelAgreement", "generator steps"} <= set(lines["magd"])
    # As many steps as fit into the seconds.
    assert lines["magd"]["generator steps"] > lines["ddgr_published"]["generator steps"] >= 1
    assert "torch" in lines["magd"]["environment"]


def check_timing(folder: Path) -> None:
    """The teacher's forwards are counted, not timed; seconds only have to be there."""
    rows = json.loads((folder / "timing.json").read_text())
    forwards = {
        (row["mode"], row["num_inference_steps"]): row["teacher_forwards_per_lesson"]
        for row in rows
    }
    assert forwards["magd", 20] == forwards["lwf_distillation", 2] == 1
    assert forwards["generative_distillation", 20] == 21
    assert forwards["ddgr", 1000] == 1000
    assert all(row["seconds"] > 0 and row["ratio"] > 0 and "overhead" in row for row in rows)


def check_scaling(folder: Path) -> None:
    """What does not depend on the machine."""
    rows = json.loads((folder / "scaling.json").read_text())
    of = {(row["vary"], row["value"]): row for row in rows}
    later, early = of["experience", 4], of["experience", 2]
    # As many lessons for six old classes as for two, and fewer images of the current ones.
    assert early["teacher forwards"] > later["teacher forwards"] > 400
    assert later["kept bytes"] - early["kept bytes"] == 4 * 4 * 128  # four classes' embeddings
    assert of["pool", 40]["pool bytes"] == 2 * of["pool", 20]["pool bytes"]
    assert of["side", 64]["pool bytes"] > 50 * of["side", 8]["pool bytes"]


def check_solvers(folder: Path) -> None:
    """Parts have the rows of whole mini-batches, in more steps; one generator made both's."""
    lines = {line["name"]: line for line in read_lines(folder / "solvers-digits.jsonl")}
    whole, parts = lines["whole"], lines["magd"]
    assert whole["rows"] == parts["rows"] > 2 * lines["replay-50"]["rows"]
    assert whole["steps"] < parts["steps"]
    # 32 real rows, as many generated ones, and eight old classes beside two current ones.
    assert whole["largest step"] >= 6 * 32 > 20 > parts["largest step"]
    assert len(list((folder / "pools").iterdir())) == 1


def check_processes(folder: Path) -> None:
    rows = json.loads((folder / "processes.json").read_text())
    assert [row["processes"] for row in rows] == [1, 2]
    assert rows[0]["speed-up"] == [1, 1]
    assert all(seconds > 0 for seconds in rows[1]["seconds"])


class Expected(NamedTuple):
    """What an example is run with, and what is expected of it."""

    files: str = "*.png"
    printed: str = "final accuracy"
    arguments: tuple[str, ...] = ("--output", "{folder}")
    check: Callable[[Path], None] = check_nothing_more


EXPECTED = {
    "any_images": Expected(),
    "compare": Expected(
        printed="Figures: ",
        arguments=("--output", "{folder}", "--seconds", "1", "--methods", *METHODS),
        check=check_comparison,
    ),
    "gap": Expected(printed="error on states"),
    "latents": Expected(),
    "online": Expected("*.log"),
    "processes": Expected("processes.json", "speed-up", check=check_processes),
    "prompts": Expected(),
    "quickstart": Expected("report.md"),
    "resume": Expected("*.pt"),
    "scaling": Expected("scaling.json", "pool, MB", check=check_scaling),
    "solvers": Expected(
        "solvers-digits.md",
        "largest step",
        ("--output", "{folder}", "--methods", "magd", "whole", "replay-50", "joint"),
        check_solvers,
    ),
    "timing": Expected(
        "timing.json",
        "forwards per lesson",
        ("--steps", "2", "--json", "{folder}/timing.json"),
        check_timing,
    ),
}


def run(name: str, *arguments: str) -> str:
    """What an example prints; it must succeed, and use nothing that is deprecated."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--smoke", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "since 0.2" not in done.stderr
    return done.stdout


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The examples' own modules."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    names = ("compare", "methods", "solvers", "study")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def test_each_example_is_expected_to_do_something() -> None:
    assert set(EXPECTED) == {file.stem for file in EXAMPLES.glob("*.py")} - PARTS


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    expected = EXPECTED[name]
    printed = run(name, *(word.format(folder=tmp_path) for word in expected.arguments))
    assert expected.printed in printed
    assert list(tmp_path.glob(expected.files))
    expected.check(tmp_path)


@pytest.mark.slow
def test_a_study_runs_only_what_is_missing(tmp_path: Path, examples: SimpleNamespace) -> None:
    output = ("--output", str(tmp_path), "--methods", "naive")
    assert "0 of 1 runs are there" in run("compare", *output)
    extended = run("compare", *output, "--groups", "losses", "--table", "more")
    assert "1 of 3 runs are there" in extended
    names = ["naive", *examples.methods.GROUPS["losses"]]
    assert all(f"| {name} | 1 |" in extended for name in names)
    assert (tmp_path / "more.md").read_text().strip() in extended


def test_a_run_keeps_its_key_until_its_settings_or_the_defaults_change(
    monkeypatch: pytest.MonkeyPatch, examples: SimpleNamespace
) -> None:
    def key(shape: tuple[int, int, int] = (1, 28, 28), **settings: Any) -> Any:
        recipe = examples.methods.recipe("dgr", shape, False)
        arguments = argparse.Namespace(epochs=2, **settings)
        return examples.study.key_of(arguments, [], "dgr", 0, recipe)

    known = key()
    assert key(output=Path("elsewhere"), jobs=2) == known
    assert key(new_argument=None, switch=False) == known
    assert key(iterations=10) != known
    assert key((3, 64, 64)) != known
    monkeypatch.setattr("avalanche_magd.training.defaults.ITERATIONS_PER_PIXEL", 31)
    assert key() != known


def commands(document: Path) -> list[list[str]]:
    """The words of each command in a document's shell blocks, after ``python``."""
    blocks = re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words and words[0] == "python"]


STUDIES = [
    words
    for words in commands(RESULTS)
    if Path(words[0]).stem in {"compare", "solvers"} and "--paper-scale" not in words
]


@pytest.mark.parametrize("words", STUDIES, ids=lambda words: " ".join(words)[:60])
def test_the_runs_behind_a_table_are_recorded(
    words: list[str], examples: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the keys that the study looks for, so that its command runs nothing again."""
    monkeypatch.chdir(ROOT)
    study = getattr(examples, Path(words[0]).stem)
    arguments = study.parse_arguments([*words[1:], "--device", "cpu"])
    keys = study.keys_of(arguments, IMAGE_SHAPES[arguments.benchmark])
    recorded = {line["key"]: line for line in read_lines(study.file_of(arguments))}
    for run, key in keys.items():
        line = recorded[key]
        assert tuple(line[each] for each in ("name", "seed", "epochs") if each in line) == run


def test_all_tables_of_recorded_runs_are_checked() -> None:
    assert len(STUDIES) == 8


def test_forty_digits_are_digits_turned_ones_and_the_negatives_of_both(
    examples: SimpleNamespace, digits: Any
) -> None:
    benchmark = examples.study.forty_digits(20, seed=1)
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


def test_each_method_of_this_package_is_another_run(examples: SimpleNamespace) -> None:
    methods = examples.methods
    recipes = {methods.recipe(name, (1, 8, 8), False) for name in methods.ROWS}
    assert len(recipes) == len(methods.ROWS) > 30
    assert len(methods.ROWS) == sum(map(len, methods.GROUPS.values()))


def test_a_recipe_holds_words_and_no_objects(examples: SimpleNamespace) -> None:
    for name in examples.methods.ROWS:
        recipe = examples.methods.recipe(name, (1, 8, 8), False)
        assert not re.search(r"\w+\(|<", recipe), name


def test_a_row_differs_from_magd_by_nothing_but_what_it_says(
    examples: SimpleNamespace, digits: Any
) -> None:
    arguments = argparse.Namespace(
        paper_scale=False,
        old=False,
        solver=None,
        pool_size=20,
        epochs=1,
        experiences=5,
        device="cpu",
    )

    def learnt(name: str) -> torch.Tensor:
        """The first experience has no past: the weight of its lessons does not count."""
        known = examples.methods.known_of(digits, 3, arguments)
        known.common["evaluator"] = examples.study.silent_evaluator()
        method = examples.methods.build(name, known, 3, 2)
        method.strategy.train(digits.train_stream[0], eval_streams=[])
        models = (method.plugin.generator, method.strategy.model)
        return torch.cat([each.flatten() for model in models for each in model.parameters()])

    assert learnt("replay_weight-4").equal(learnt("magd"))
    assert not learnt("epsilon").equal(learnt("magd"))
    assert not learnt("not_averaged").equal(learnt("magd"))


def test_a_solver_on_recorded_images_learns_what_it_learns_with_the_plugin(
    examples: SimpleNamespace, digits: Any, tmp_path: Path
) -> None:
    words = ["--smoke", "--device", "cpu", "--output", str(tmp_path)]
    arguments = examples.solvers.parse_arguments(words)
    line = examples.solvers.run("magd", 0, 1, arguments)
    with_epochs = argparse.Namespace(**{**vars(arguments), "epochs": 1})
    known = examples.methods.known_of(digits, 0, with_epochs)
    accuracy = accuracy_metrics(stream=True)
    known.common["evaluator"] = examples.study.silent_evaluator(accuracy)
    strategy = examples.methods.build("magd", known, 0, arguments.iterations).strategy
    accuracies = []
    for seen, experience in enumerate(digits.train_stream, 1):
        strategy.train(experience, eval_streams=[])
        values = strategy.eval(digits.test_stream[:seen])
        accuracies.append(values[examples.study.ACCURACY])
    assert line["accuracies"] == accuracies


def test_two_folders_of_images_are_two_benchmarks(
    examples: SimpleNamespace, tmp_path: Path
) -> None:
    names = {
        examples.study.name_of(argparse.Namespace(benchmark=benchmark, root=tmp_path / folder))
        for benchmark, folder in (("folder", "cats"), ("folder", "dogs"), ("cifar10", "dogs"))
    }
    assert names == {"folder-cats", "folder-dogs", "cifar10"}


def run_beside_another_study(name: str, file: Path) -> dict[str, Any]:
    """A run during which another study writes a line of its own to the same file."""
    with file.open("a") as stream:
        stream.write(json.dumps({"key": "another", "name": "another"}) + "\n")
    return {"name": name, "seed": 0, "accuracy": 1.0}


def test_two_studies_may_write_one_file(
    examples: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(examples.study, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    file = tmp_path / "study.jsonl"
    tasks = {"mine": ("mine", file)}
    assert list(examples.study.finish(file, tasks, run_beside_another_study, 1)) == ["mine"]
    assert [line["key"] for line in read_lines(file)] == ["another", "mine"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images-per-class", "3"], "--images-per-class is for --benchmark fashion_mnist"),
        (["--jobs", "0"], "must be at least 1, got 0"),
        (["--methods", "select"], "no method 'select'; there are naive, joint"),
        (["--seconds", "1", "--iterations", "1"], "not allowed with argument"),
        (["--benchmark", "folder"], "--benchmark folder needs --root"),
        (["--benchmark", "folder", "--root", "/nowhere"], "/nowhere"),
    ],
)
def test_a_study_that_cannot_be_made_is_refused_in_a_line(
    words: list[str], message: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(EXAMPLES / "compare.py"), *words, "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 200


def python_blocks(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)


def names_in(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


@pytest.mark.parametrize(
    ("document", "count"), [(README, 2), (GUIDES, 5)], ids=["readme", "guides"]
)
def test_code_in_a_document_imports_all_that_it_names(document: Path, count: int) -> None:
    known: set[str] = set(dir(builtins)) | {"strategy", "benchmark", "plugin"}
    blocks = python_blocks(document)
    assert len(blocks) == count
    for block in blocks:
        tree = ast.parse(block)
        imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        scope: dict[str, Any] = {}
        exec(compile(ast.Module(imports, []), document.name, "exec"), scope)
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        known |= stored | set(scope)
        assert names_in(tree) <= known


QUICK_BLOCKS = [
    block
    for document in (README, GUIDES)
    for block in python_blocks(document)
    # The others train on a benchmark, need a reader's own objects, or download a pipeline.
    if not names_in(ast.parse(block)) & {"benchmark", "strategy", "DiffusionPipeline"}
]


@pytest.mark.parametrize("block", QUICK_BLOCKS)
def test_code_in_a_document_runs(block: str) -> None:
    exec(compile(block, "document", "exec"), {})


def test_most_of_the_code_without_training_is_run() -> None:
    assert len(QUICK_BLOCKS) == 3


def anchors(document: Path) -> set[str]:
    """Of a document's headings, as they are made where Markdown is shown."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize(
    "document", [README, GUIDES, RESULTS], ids=["readme", "guides", "results"]
)
def test_the_links_of_a_document_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    local = [link for link in links if "://" not in link]
    assert len(local) > 5
    for link in local:
        place, _, anchor = link.partition("#")
        target = (document.parent / place).resolve() if place else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize(
    "document", [README, GUIDES, RESULTS], ids=["readme", "guides", "results"]
)
def test_the_examples_that_a_document_runs_are_there(document: Path) -> None:
    files = re.findall(r"python (examples/\w+\.py|tests/\w+\.py)", document.read_text())
    assert files
    assert all((ROOT / file).exists() for file in files)
