"""What a run leaves: TensorBoard's events, rows, pictures and a report."""

import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.evaluation.metrics import (
    accuracy_metrics,
    bwt_metrics,
    forgetting_metrics,
    loss_metrics,
)
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger
from avalanche.training import JointTraining, StreamingLDA
from avalanche.training.plugins import EvaluationPlugin
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import naive, tiny_plugin, tiny_training

from avalanche_magd import MAGDPlugin
from avalanche_magd.checkpoints import maybe_load_checkpoint, save_checkpoint
from avalanche_magd.metrics import (
    EvaluationClassifier,
    SamplePictures,
    generation_metrics,
    train_evaluation_classifier,
)
from avalanche_magd.reporting import RunLogger, write_report
from avalanche_magd.reporting.plotting import draw_curves, draw_grid, draw_matrix, to_image
from avalanche_magd.reporting.report import (
    accuracy_matrix,
    mean_and_spread,
    stream_values,
)
from avalanche_magd.reporting.run_logger import read_runs
from avalanche_magd.runtime.markdown import table


@pytest.fixture(scope="module")
def classifier(digits: Any) -> EvaluationClassifier:
    return train_evaluation_classifier(digits.train_stream)


def build(
    classifier: EvaluationClassifier, loggers: list[Any], seed: int = 0, **kwargs: Any
) -> Any:
    torch.manual_seed(seed)
    plugin = MAGDPlugin(tiny_training(train_iterations=40, seed=seed))
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(stream=True),
        bwt_metrics(stream=True),
        generation_metrics(plugin, classifier, images=40),
        loggers=loggers,
    )
    return naive([plugin], evaluator=evaluator, **kwargs)


def learn(strategy: Any, benchmark: Any, experiences: range) -> dict[str, Any]:
    for index in experiences:
        strategy.train(benchmark.train_stream[index], eval_streams=[])
        values = strategy.eval(benchmark.test_stream[: index + 1])
    return values


@pytest.fixture(scope="module")
def folder(
    digits: Any, classifier: EvaluationClassifier, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two seeds of a run with replay, and one of a bound."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        loggers: list[Any] = [
            RunLogger(folder / f"magd {seed}", name="MAGD", seed=seed, settings={"why": "test"})
        ]
        if seed == 0:
            csv = CSVLogger(str(folder / "csv"))
            loggers += [TensorboardLogger(folder / "events"), csv]
        learn(build(classifier, loggers, seed), digits, range(3))
    csv.close()
    model = naive([]).model
    joint = JointTraining(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        criterion=torch.nn.CrossEntropyLoss(),
        evaluator=EvaluationPlugin(
            accuracy_metrics(stream=True), loggers=[RunLogger(folder / "joint")]
        ),
    )
    joint.train(digits.train_stream, eval_streams=[])
    joint.eval(digits.test_stream)
    return folder


def test_tensorboard_has_values_and_pictures(folder: Path) -> None:
    events = EventAccumulator(str(folder / "events"), {"images": 0})
    events.Reload()
    stream = "eval_phase/test_stream"
    assert {f"SampleGrid/{stream}", f"TrajectoryStrip/{stream}"} <= set(events.Tags()["images"])
    scalars = set(events.Tags()["scalars"])
    assert {
        f"FrechetDistance_Stream/{stream}",
        f"Precision_Exp/{stream}/Task000/Exp002",
        "GeneratorCost/lessons",
        "GeneratorLoss/real",
        "GeneratorLoss/state",
    } <= scalars
    losses = events.Scalars("GeneratorLoss/real")
    assert [point.step for point in losses] == [20, 40, 60, 80, 100, 120]
    assert losses[0].value > losses[-1].value
    grids = events.Images(f"SampleGrid/{stream}")
    assert len(grids) == 3
    assert grids[0].width < grids[1].width < grids[2].width  # a column for each experience
    assert grids[0].height < grids[1].height < grids[2].height  # two rows of classes for each


def test_the_csv_logger_of_avalanche_writes_a_line_for_each_experience(folder: Path) -> None:
    lines = (folder / "csv" / "eval_results.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 1 + 2 + 3


def test_a_run_has_a_row_for_each_experience(folder: Path) -> None:
    joint, first, second = read_runs(folder)
    assert (joint.name, first.name, second.name) == ("joint", "MAGD", "MAGD")
    assert (first.seed, second.seed) == (0, 1)
    assert [row.experiences for row in first.rows] == [1, 2, 3]
    assert first.rows[0].train_seconds < first.rows[1].train_seconds
    assert first.rows[0].eval_seconds < first.rows[1].eval_seconds
    assert first.settings["why"] == "test"
    assert first.settings["generator's steps"] == 40
    assert "MAGD(" in first.settings["distillation"]
    assert first.environment["torch"] == torch.__version__.split("+")[0]
    assert [step for step, _ in first.rows[1].curves["GeneratorLoss/state"]] == [60, 80]
    assert (
        first.rows[1].values["GeneratorLoss/state"]
        == (first.rows[1].curves["GeneratorLoss/state"][-1][1])
    )
    assert {"Top1_Acc", "Forgetting", "BWT", "FrechetDistance", "LabelAgreement"} <= set(
        stream_values(first.rows[-1])
    )
    matrix = accuracy_matrix(first)
    assert {learnt: [cell is None for cell in row] for learnt, row in matrix.items()} == {
        1: [False, True, True],
        2: [False, False, True],
        3: [False, False, False],
    }


def test_the_report_shows_the_values_pictures_and_settings_of_all_runs(folder: Path) -> None:
    page = write_report(folder)
    text = page.read_text(encoding="utf-8")
    runs = [run for run in read_runs(folder) if run.name == "MAGD"]
    for name in ("Top1_Acc", "FrechetDistanceForgetting", "Recall"):
        values = [stream_values(run.rows[-1])[name] for run in runs]
        assert f"| {mean_and_spread(values)} |" in text
    assert "| MAGD | 2 |" in text
    assert "| joint | 1 |" in text
    assert "Seed 0." in text
    assert "Seed 1." not in text
    for fact in ("teacher forwards", "generated images", "| torch |", "| seed | 0, 1 | MAGD |"):
        assert fact in text
    pictures = [line.split("](")[1][:-1] for line in text.splitlines() if line.startswith("![")]
    assert {"Top1_Acc.png", "FrechetDistance.png"} < set(pictures)
    assert {"SampleGrid", "TrajectoryStrip", "losses.png", "accuracy-matrix.png"} <= {
        part.split("_")[0].split("/")[-1] for part in pictures
    }
    for picture in pictures:
        with Image.open(folder / picture.replace("%20", " ")) as opened:
            assert min(opened.size) > 50
    assert text.count("| ---") > 5
    assert "nan" not in text


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_values_of_several_seeds_are_mean_and_standard_deviation() -> None:
    assert mean_and_spread([0.5]) == "0.500"
    assert mean_and_spread([1.0, 2.0, 3.0]) == "2.000 ± 1.000"
    assert mean_and_spread([12345.0]) == "12,345"


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="RunLogger"):
        write_report(tmp_path)


def test_a_resumed_run_goes_on_in_the_same_folder(
    digits: Any, classifier: EvaluationClassifier, tmp_path: Path
) -> None:
    def loggers(name: str) -> list[Any]:
        return [RunLogger(tmp_path / name, name="run"), TensorboardLogger(tmp_path / f"{name} tb")]

    learn(build(classifier, loggers("one")), digits, range(3))
    stopped = build(classifier, loggers("two"))
    learn(stopped, digits, range(2))
    save_checkpoint(stopped, tmp_path / "strategy.pt")
    fresh = build(classifier, loggers("two"), seed=5)
    resumed, first = maybe_load_checkpoint(fresh, tmp_path / "strategy.pt")
    learn(resumed, digits, range(first, 3))
    one, two = read_runs(tmp_path)
    assert [row.experiences for row in two.rows] == [1, 2, 3]
    assert two.rows[2].train_seconds > two.rows[1].train_seconds
    for name in ("Top1_Acc", "FrechetDistance", "FrechetDistanceForgetting", "Novelty"):
        assert stream_values(one.rows[2])[name] == stream_values(two.rows[2])[name]
    pictures = [
        (run.folder / "SampleGrid_eval_phase_test_stream.png").read_bytes() for run in (one, two)
    ]
    assert pictures[0] == pictures[1]


def test_a_new_run_in_an_old_folder_starts_anew(
    digits: Any, classifier: EvaluationClassifier, tmp_path: Path
) -> None:
    learn(build(classifier, [RunLogger(tmp_path)]), digits, range(2))
    learn(build(classifier, [RunLogger(tmp_path)]), digits, range(1))
    (run,) = read_runs(tmp_path)
    assert [row.experiences for row in run.rows] == [1]


def test_evaluations_within_an_experience_make_no_row(digits: Any, tmp_path: Path) -> None:
    evaluator = EvaluationPlugin(loss_metrics(stream=True), loggers=[RunLogger(tmp_path)])
    strategy = naive([], evaluator=evaluator, train_epochs=3, eval_every=1)
    strategy.train(digits.train_stream[0], eval_streams=[digits.test_stream[:1]])
    strategy.eval(digits.test_stream[:1])
    ((row,),) = (run.rows for run in read_runs(tmp_path))
    assert row.experiences == 1
    curve = row.curves["Loss_Stream/eval_phase/test_stream/Task000"]
    assert len(curve) > 3
    assert json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))[0]["train_seconds"] > 0


def test_sample_pictures_within_an_experience_have_a_column_for_the_present_generator(
    digits: Any,
) -> None:
    plugin = tiny_plugin()
    evaluator = EvaluationPlugin(SamplePictures(plugin), loggers=[])
    strategy = naive([plugin], evaluator=evaluator, train_epochs=2, eval_every=1)
    for experience in digits.train_stream[:2]:
        strategy.train(experience, eval_streams=[digits.test_stream[:1]])
    _, grids = evaluator.get_all_metrics()["SampleGrid/eval_phase/test_stream"]
    *of_first, second, third = (grid.image.shape[2] for grid in grids)
    assert len(set(of_first)) == 1
    assert of_first[0] < second == third


def test_a_strategy_without_optimizer_or_accuracy_is_reported(digits: Any, tmp_path: Path) -> None:
    strategy = StreamingLDA(
        slda_model=torch.nn.Flatten(),
        input_size=64,
        num_classes=10,
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=32,
        evaluator=EvaluationPlugin(
            loss_metrics(stream=True), loggers=[RunLogger(tmp_path / "an lda")]
        ),
    )
    strategy.train(digits.train_stream[0], eval_streams=[])
    strategy.eval(digits.test_stream)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "| an lda | 1 |" in text
    assert "optimizer" not in text
    assert "![" not in text


def test_pictures_are_not_printed_by_the_interactive_logger(
    digits: Any, classifier: EvaluationClassifier, capsys: pytest.CaptureFixture[str]
) -> None:
    learn(build(classifier, [InteractiveLogger()]), digits, range(1))
    printed = capsys.readouterr().out
    assert "FrechetDistance_Stream/eval_phase/test_stream = " in printed
    assert "SampleGrid" not in printed


def test_a_picture_prints_its_size_without_pixels(
    digits: Any, classifier: EvaluationClassifier
) -> None:
    values = learn(build(classifier, []), digits, range(1))
    assert repr(values["SampleGrid/eval_phase/test_stream"]).startswith("Picture(")
    assert len(repr(values)) < 5000


def test_a_grid_shows_each_image_in_its_cell() -> None:
    images = [torch.full((1, 8, 8), value) for value in (0.0, 0.5)]
    picture = to_image(draw_grid([[images[0], None], [None, images[1]]], ["a", "b"], ["c", "d"]))
    assert picture.shape[0] == 3
    _, height, width = picture.shape
    quarter = {
        (row, column): picture[
            :, int(height * (0.35 + 0.42 * row)), int(width * (0.35 + 0.42 * column))
        ].tolist()
        for row in (0, 1)
        for column in (0, 1)
    }
    assert quarter[0, 0] == [0, 0, 0]
    assert quarter[0, 1] == quarter[1, 0] == [255, 255, 255]
    assert 120 < quarter[1, 1][0] < 135
    assert to_image(draw_grid([[torch.rand(3, 8, 8)]], ["a"], ["b"])).shape[0] == 3
    with pytest.raises(ValueError, match="needs an image"):
        draw_grid([[None]], ["a"], ["b"])


def test_curves_are_means_with_bands_and_the_legend_names_the_best_first() -> None:
    figure = draw_curves(
        {"ours": [{1: 0.9, 2: 0.8}, {1: 1.0, 2: 0.6}], "joint": [{1: 0.97}]}, "accuracy"
    )
    (axis,) = figure.axes
    ours, joint = axis.lines
    assert ours.get_ydata().tolist() == pytest.approx([0.95, 0.7])  # type: ignore[union-attr]
    assert list(joint.get_ydata()) == [0.97, 0.97]
    (band,) = axis.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert max(heights) == pytest.approx(0.95 + 0.0707, abs=1e-3)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["joint", "ours"]


def test_twenty_curves_have_twenty_different_looks() -> None:
    figure = draw_curves({str(number): [{1: 0.5, 2: 0.4}] for number in range(20)}, "accuracy")
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 20


def test_a_cell_of_a_matrix_without_a_value_stays_empty() -> None:
    figure = draw_matrix({0: [0.5, None], 50: [0.25, 1.0]})
    axis = figure.axes[0]
    assert sorted(text.get_text() for text in axis.texts) == ["0.25", "0.50", "1.00"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0", "50"]


SCRIPT = """
from tiny import tiny_training
from avalanche_magd.benchmarks import split_digits
training = tiny_training(train_iterations=60)
training.progress = {progress}
training.train(split_digits(5, seed=0).train_stream[0], eval_streams=[])
"""


@pytest.mark.parametrize(("terminal", "progress"), [(True, True), (True, False), (False, True)])
def test_progress_is_shown_on_a_terminal_alone(terminal: bool, progress: bool) -> None:
    reader, writer = pty.openpty() if terminal else os.pipe()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT.format(progress=progress)]
    if terminal:
        termios.tcsetwinsize(writer, (24, 120))
    shown = b""
    with subprocess.Popen(command, stderr=writer, env=environment) as process:
        os.close(writer)
        try:
            while part := os.read(reader, 65536):
                shown += part
        except OSError:
            pass  # the end of a terminal
    assert process.returncode == 0
    if terminal and progress:
        assert b"training generator" in shown
        assert b"it/s" in shown
        assert b"real=" in shown
    else:
        assert shown == b""


def test_the_metrics_of_a_plugin_without_a_generator_are_empty(
    digits: Any, classifier: EvaluationClassifier
) -> None:
    plugin = tiny_plugin()
    metrics = generation_metrics(
        plugin, classifier, metrics=["frechet_distance", "samples", "losses"]
    )
    assert [metric.result() for metric in metrics] == [None, {}, None, {}]
    for metric in metrics:
        metric.reset()
    assert [metric.result() for metric in metrics] == [None, {}, None, {}]
