"""Whatever a name, a setting or a metric is called, the page and the files stay what they are."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from PIL import Image
from tiny import naive

from avalanche_magd.reporting import RunLogger, write_report
from avalanche_magd.reporting.plotting import draw_grid, draw_losses, to_image
from avalanche_magd.reporting.run_logger import PICTURES_OF_REPORTS, read_runs
from avalanche_magd.runtime.markdown import escape, one_line

NAMES = [
    "<img src=x onerror=alert(1)>",
    "</td></table><script>alert(2)</script>",
    "a|b",
    r"a\|b\\",
    "[click](javascript:alert(1))",
    "![p](http://evil/x.png)",
    "<http://evil>",
    "http://evil www.evil.org me@evil.org",
    "[a]: http://evil",
    "# head\n\n## evil",
    "head\r\n---\r\n| x | y |",
    "a\u2028b\x85c\x0bd",
    "- item",
    "`code` ``more``",
    "``` fence",
    "*b*_i_ ~~gone~~ __init__",
    "$x$ $\\frac$ &lt; &amp; :tada:",
    "x\x00y\x1b[31m",
    "\u202egnirts",
    "模型 α é 🙂 שלום",
    "alike",
    "Alike",
    "ALIKE ",
    "_hidden",
    "",
    "  ",
    "very long " * 100,
    "\udcce\udcb1 \ud800",
]


def write_run(folder: Path, name: str, seed: Any = 0, **values: float) -> None:
    """The files of a run with two rows, in which every name is this one."""
    folder.mkdir(parents=True)
    named = {f"{name}{part}/eval_phase/test_stream": 0.5 for part in ("", "_Stream")}
    named |= {f"{name}_Exp/eval_phase/test_stream/Exp{index:03}": 0.25 for index in (0, 1)}
    named |= {f"GeneratorCost/{name}": 1.0, f"LabelCount{name}_Stream": 3.0}
    named |= {"Top1_Acc_Stream/eval_phase/test_stream": 0.75, **values}
    rows = [
        {"experiences": learnt, "train_seconds": 1.0, "eval_seconds": 1.0, "values": named}
        | {"curves": {f"GeneratorLoss/{name}": [[1, 2.0], [2, 1.0]]}}
        for learnt in (1, 2)
    ]
    settings = {name: name, "same": 1}
    about = {"name": name, "seed": seed, "settings": settings, "environment": {name: name}}
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_text_on_the_page(tmp_path: Path, name: str) -> None:
    for part, named in (("plain", "plain"), ("odd", name)):
        write_run(tmp_path / part / "runs", named)
        write_report(tmp_path / part / "runs")
    pages = [
        (tmp_path / part / "runs" / "report.md").read_text(encoding="utf-8")
        for part in ("plain", "odd")
    ]
    render = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse
    plain, odd = (
        [inline for token in render(page) for inline in (token, *(token.children or []))]
        for page in pages
    )
    kinds = [[token.type for token in tokens if token.type != "text"] for tokens in (plain, odd)]
    assert kinds[1] == kinds[0]
    sources = [[t.attrs["src"] for t in tokens if t.type == "image"] for tokens in (plain, odd)]
    assert sources[0] == sources[1]


def test_names_alike_up_to_case_are_methods_of_their_own(tmp_path: Path) -> None:
    for index, name in enumerate(NAMES):
        write_run(tmp_path / str(index), name, seed=index)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(headings) == len(NAMES) + 3
    assert {"## alike", "## Alike", "## ALIKE", "## (no name)"} <= set(headings)
    tables = text.split("\n\n")
    assert tables[2].count("\n") == len(NAMES) + 1
    for bad in (
        "<img",
        "<script>",
        "javascript:",
        "http://evil",
        "\n# head",
        "\n## evil",
        "\u202e",
    ):
        assert bad not in text


def test_an_escaped_text_reads_as_it_was() -> None:
    render = MarkdownIt("commonmark").enable(["table", "strikethrough"]).renderInline
    for name in ("a|b", "*b*_i_ <b> & &lt;", "`x`", "[a](b:c)", "a\\", "Top1_Acc", "lr 0.001"):
        html = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert render(escape(name)) == html
    assert escape("Top1_Acc, MAGD(pool_size=2000), cuda 0.1 ± 2") == (
        "Top1_Acc, MAGD(pool_size=2000), cuda 0.1 ± 2"
    )
    assert one_line("\udcce\udcb1 \ud800\n 👩\u200d💻") == "α � 👩\u200d💻"


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_shown_in_a_picture(name: str) -> None:
    assert to_image(draw_grid([[torch.rand(1, 8, 8)]], [name], [name])).shape[0] == 3
    assert to_image(draw_losses({name: ([1, 2], [2.0, 1.0])})).shape[0] == 3


def test_a_run_of_very_many_experiences_is_reported(tmp_path: Path) -> None:
    far = {f"Top1_Acc_Exp/eval_phase/test_stream/Exp{index}": 0.5 for index in (1999, 10**12)}
    write_run(tmp_path / "run", "run", **far)
    write_report(tmp_path)
    with Image.open(tmp_path / "run" / "accuracy-matrix.png") as picture:
        assert max(picture.size) < 5000


PICTURES = ["../../out", "a/../../b", "..", ".", "", "x" * 300, "a\x00b", "<b>", "α/é", "模型"]
PICTURES += ["a/b", "a_b", "A/b", "a:b", "C:\\x", "/etc/x", "con", "\udcce", "a\nb", "~", "%2e"]


def test_pictures_stay_in_the_folder_and_have_a_file_each(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "runs" / "run")
    names = [*PICTURES, *PICTURES_OF_REPORTS, "Losses"]
    for turn in range(2):
        for number, name in enumerate(names):
            logger.log_single_metric(name, Image.new("L", (4 + number, 4 + turn)), 0)
    files = list(tmp_path.rglob("*.png"))
    assert {file.parent for file in files} == {tmp_path / "runs" / "run"}
    assert len({file.name.lower() for file in files}) == len(names)
    sizes = []
    for file in files:
        assert re.fullmatch(r"[\w-]{1,150}\.png", file.name, re.ASCII)
        assert file.stem not in PICTURES_OF_REPORTS
        with Image.open(file) as picture:
            sizes.append(picture.size)
    assert sorted(sizes) == [(4 + number, 5) for number in range(len(names))]


def test_a_picture_of_avalanche_keeps_its_name(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.log_single_metric("SampleGrid/eval_phase/test_stream", Image.new("L", (4, 4)), 0)
    logger.log_single_metric("Plot/eval_phase/test_stream", Figure((1, 1)), 0)
    assert {file.name for file in tmp_path.iterdir()} == {
        "SampleGrid_eval_phase_test_stream.png",
        "Plot_eval_phase_test_stream.png",
    }


def test_the_pictures_of_a_report_are_those_that_no_metric_may_overwrite(tmp_path: Path) -> None:
    values = [f"{name}/eval_phase/test_stream" for name in PICTURES_OF_REPORTS]
    write_run(tmp_path / "run", "Top1_Acc", **dict.fromkeys(values, 0.5))
    write_report(tmp_path)
    assert {file.stem for file in tmp_path.rglob("*.png")} == set(PICTURES_OF_REPORTS)


CONTENT = {"name": "x", "seed": 0, "settings": {}, "environment": {}}
ROW = {"experiences": 1, "train_seconds": 1, "eval_seconds": 1, "values": {}, "curves": {}}


@pytest.mark.parametrize(
    ("run", "rows"),
    [
        ("{", "[]"),
        ("[]", "[]"),
        ("{}", "[]"),
        ("\xff", "[]"),
        (json.dumps(CONTENT), "{"),
        (json.dumps(CONTENT), "[1]"),
        (json.dumps(CONTENT), "[{}]"),
        (json.dumps(CONTENT), json.dumps([ROW | {"values": {"a": "b"}}])),
        (json.dumps(CONTENT), json.dumps([ROW | {"curves": {"a": [1]}}])),
        (json.dumps(CONTENT), json.dumps([ROW | {"experiences": float("inf")}])),
        (json.dumps(CONTENT | {"settings": 1}), json.dumps([ROW])),
        (json.dumps(CONTENT | {"environment": []}), json.dumps([ROW])),
    ],
)
def test_damaged_files_of_a_run_are_refused_by_name(tmp_path: Path, run: str, rows: str) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "run.json").write_text(run, encoding="latin-1")
    (folder / "rows.json").write_text(rows, encoding="latin-1")
    with pytest.raises(ValueError, match=r"rows.json in .*damaged is damaged, or not what"):
        write_report(tmp_path)


def test_a_run_without_rows_counts_as_not_evaluated_and_unknown_entries_are_left_out(
    tmp_path: Path,
) -> None:
    for name, rows in (("none", []), ("one", [ROW | {"more": 1}])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(CONTENT | {"more": 1}))
        (tmp_path / name / "rows.json").write_text(json.dumps(rows))
    assert [run.folder.name for run in read_runs(tmp_path)] == ["one"]
    with pytest.raises(FileNotFoundError, match="holds no run that was evaluated"):
        read_runs(tmp_path / "none")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": 3}, TypeError, "names of a run and its settings must be str, got 3"),
        ({"settings": {1: 2}}, TypeError, "names of a run and its settings must be str, got 1"),
        ({"seed": "a"}, TypeError, "seed must be an integer or None, got 'a'"),
        ({"settings": {"a": {(1, 2): 3}}}, ValueError, "settings cannot be written as JSON"),
    ],
)
def test_what_no_file_can_tell_is_refused_before_the_run(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RunLogger(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_run_is_called_as_its_folder_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunLogger(".").name == tmp_path.name


SCRIPT = """
import sys
from pathlib import Path
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from PIL import Image
from tiny import naive, tiny_generator
from avalanche_magd import DiffusionGenerator
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.reporting import RunLogger, write_report
assert sys.getfilesystemencoding() == "ascii", sys.getfilesystemencoding()
folder = Path(sys.argv[1])
digits = split_digits(5, seed=0)
for seed in (0, 1):
    settings = {"\\u00e9": "\\u6a21"}
    logger = RunLogger(folder / str(seed), name="\\u03b1", seed=seed, settings=settings)
    logger.log_single_metric("Fr\\u00e9chet/eval_phase/test_stream", Image.new("L", (8, 8)), 0)
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[logger])
    strategy = naive([], evaluator=evaluator)
    strategy.train(digits.train_stream[0], eval_streams=[])
    strategy.eval(digits.test_stream[:1])
RunLogger(folder / "0" / "default")
generator = tiny_generator()
generator.save_pretrained(folder / "generator", data="1 \\u00d7 8 \\u00d7 8, \\u03b1")
DiffusionGenerator.from_pretrained(folder / "generator")
write_report(folder)
"""


def test_files_are_utf_8_under_an_ascii_locale(tmp_path: Path) -> None:
    folder = tmp_path / "Ergebnisse für α"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("LC_")},
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# Ergebnisse für α\n")
    for line in ("## α", "| é | 模 | all |"):
        assert line in report.splitlines()
    assert "±" in report
    card = (folder / "generator" / "README.md").read_text(encoding="utf-8")
    assert "| data | 1 × 8 × 8, α |" in card
    for link in re.findall(r"\]\((.+)\)", report):
        assert (folder / link).is_file()


class FakeClock(SupervisedPlugin):
    """A second passes before each mini-batch; one of them is interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.left = 100.0, -1

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.now += 1
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def before_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.now += 1
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def timed(folder: Path, monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> tuple[FakeClock, Any]:
    clock = FakeClock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    logger = RunLogger(folder, name="run")
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[logger])
    return clock, naive([clock], evaluator=evaluator, train_epochs=1, **kwargs)


def rows_of(folder: Path) -> list[tuple[int, float, float]]:
    (run,) = read_runs(folder)
    return [(row.experiences, row.train_seconds, row.eval_seconds) for row in run.rows]


def interrupted(clock: FakeClock, after: int, call: Any) -> None:
    clock.left = after
    with pytest.raises(KeyboardInterrupt):
        call()
    clock.now += 1000  # somebody has lunch


@pytest.mark.parametrize("again", [True, False])
def test_a_row_comes_after_training_that_was_interrupted(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    clock, strategy = timed(tmp_path, monkeypatch)
    first, second = (-(-len(exp.dataset) // 32) for exp in digits.train_stream[:2])
    strategy.train(digits.train_stream[0], eval_streams=[])
    strategy.eval(digits.test_stream[:1])
    train = lambda: strategy.train(digits.train_stream[1], eval_streams=[])  # noqa: E731
    interrupted(clock, 4, train)
    if not again:  # three mini-batches, and the fourth's second is after the last callback
        strategy.eval(digits.test_stream[:1])
        assert rows_of(tmp_path) == [(1, first + 3, 2)]
        clock.now += 1000
    train()
    strategy.eval(digits.test_stream[:1])
    assert rows_of(tmp_path)[-1] == (2, first + 3 + second, 2 if again else 3)


def test_a_row_comes_after_an_error_in_the_first_experience(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, strategy = timed(tmp_path, monkeypatch)
    interrupted(clock, 3, lambda: strategy.train(digits.train_stream[0], eval_streams=[]))
    strategy.eval(digits.test_stream[:1])
    assert rows_of(tmp_path) == [(0, 2, 1)]
    assert "| run | 1 |" in write_report(tmp_path).read_text(encoding="utf-8")


def test_an_evaluation_that_was_interrupted_counts_until_its_last_callback(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, strategy = timed(tmp_path, monkeypatch)
    strategy.train(digits.train_stream[0], eval_streams=[])
    seconds = -(-len(digits.train_stream[0].dataset) // 32)
    interrupted(clock, 2, lambda: strategy.eval(digits.test_stream[:2]))
    strategy.eval(digits.test_stream[:1])
    assert rows_of(tmp_path) == [(1, seconds, 2)]


def test_evaluations_within_training_make_no_row_even_after_an_interruption(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, strategy = timed(tmp_path, monkeypatch, eval_every=0)  # before and after
    train = lambda: strategy.train(digits.train_stream[0], eval_streams=[digits.test_stream[:1]])  # noqa: E731
    interrupted(clock, 1, train)  # in the first evaluation
    interrupted(clock, 3, train)
    train()
    assert not (tmp_path / "run.json").exists()
    strategy.eval(digits.test_stream[:1])
    seconds = -(-len(digits.train_stream[0].dataset) // 32)
    assert rows_of(tmp_path) == [(1, (1 + 1) + (1 + seconds + 1), 1)]
