"""Metrics of generation in Avalanche's evaluator: known generators, planted faults, real runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from tiny import naive, tiny_generator, tiny_plugin, tiny_training
from torch import Tensor, nn

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.distillation import MAGD, Distillation, baselines
from avalanche_magd.distillation.past import Past
from avalanche_magd.metrics import (
    EfficientNetFeatures,
    InceptionFeatures,
    Judge,
    class_kld,
    frechet_distance,
    generation_metrics,
    kernel_distance,
    label_agreement,
    moments,
    precision_recall,
    train_judge,
)
from avalanche_magd.solver import PastSolver

STREAM = "eval_phase/test_stream"

Fault = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Training images, their labels and the labels asked for to the images that are generated."""


@dataclass(frozen=True)
class Planted(Distillation):
    """Gives training images of the classes asked for, with a fault, for generated ones."""

    fault: Fault = field(kw_only=True)
    known: tuple[Tensor, Tensor] = field(kw_only=True)

    def images(self, labels: Tensor, past: Past) -> Tensor:
        return self.fault(*self.known, labels)


def columns(dataset: Any) -> tuple[Tensor, Tensor]:
    rows = [(image, label) for image, label, *_ in dataset.eval()]
    images, labels = zip(*rows, strict=True)
    return torch.stack(images), torch.tensor(labels)


def training_images(images: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """Of each class asked for the next training image."""
    seen = dict.fromkeys(labels.tolist(), 0)
    chosen = []
    for label in asked.tolist():
        rows = (labels == label).nonzero().flatten()
        chosen.append(images[rows[seen[label] % len(rows)]])
        seen[label] += 1
    return torch.stack(chosen)


def jittered(images: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """New enough: the mean of two of a class keeps its class, and is no copy."""
    twin = training_images(images.flip(0), labels.flip(0), asked)
    return 0.6 * training_images(images, labels, asked) + 0.4 * twin


def noisy(images: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    good = jittered(images, labels, asked)
    return good + 0.4 * torch.randn(good.shape, generator=rng)


FAULTS: dict[str, Fault] = {
    "none": jittered,
    "a class dropped": lambda images, labels, asked: jittered(
        images, labels, torch.where(asked == 3, 5, asked)
    ),
    "blurred": lambda *known: nn.functional.avg_pool2d(jittered(*known), 3, 1, 1),
    "noisy": noisy,
    "copies": training_images,
    "labels exchanged": lambda images, labels, asked: jittered(images, labels, 9 - asked),
}


@pytest.fixture(scope="module")
def whole() -> Any:
    return split_digits(1, seed=0)


@pytest.fixture(scope="module")
def judge(whole: Any) -> Judge:
    return train_judge(whole.train_stream)


@pytest.fixture(scope="module")
def figures(whole: Any, judge: Judge) -> dict[str, dict[str, float]]:
    """What the metrics say of each fault."""
    found = {}
    known = columns(whole.train_stream[0].dataset)
    for name, fault in FAULTS.items():
        planted = Planted(fault=fault, known=known)
        plugin = MAGDPlugin(tiny_training(distillation=planted), progress=False)
        metrics = generation_metrics(plugin, judge, samples=False)
        strategy = naive([plugin], evaluator=EvaluationPlugin(metrics, loggers=[]))
        strategy.train(whole.train_stream[0], eval_streams=[])
        values = strategy.eval(whole.test_stream)
        found[name] = {name.split("/")[0]: value for name, value in values.items()}
    return found


def test_a_dropped_class_is_seen(figures: dict[str, dict[str, float]]) -> None:
    good, bad = figures["none"], figures["a class dropped"]
    assert good["ClassKLD_Stream"] < 0.05
    assert bad["ClassKLD_Stream"] > 1
    assert bad["LabelCount003_Stream"] < 5 < 30 < good["LabelCount003_Stream"]
    assert bad["LabelAgreement_Stream"] < good["LabelAgreement_Stream"] - 0.05
    assert bad["FrechetDistance_Stream"] > 1.2 * good["FrechetDistance_Stream"]
    assert bad["Recall_Stream"] < good["Recall_Stream"]


@pytest.mark.parametrize("fault", ["blurred", "noisy"])
def test_blur_and_noise_are_seen(figures: dict[str, dict[str, float]], fault: str) -> None:
    good, bad = figures["none"], figures[fault]
    assert bad["FrechetDistance_Stream"] > 2 * good["FrechetDistance_Stream"]
    assert bad["KernelDistance_Stream"] > 2 * good["KernelDistance_Stream"]
    assert bad["Precision_Stream"] < 0.9 * good["Precision_Stream"]
    assert bad["Novelty_Stream"] > 1.2 * good["Novelty_Stream"]


def test_copies_are_seen_though_they_look_best(figures: dict[str, dict[str, float]]) -> None:
    good, bad = figures["none"], figures["copies"]
    assert bad["Novelty_Stream"] < 0.01 < 0.5 < good["Novelty_Stream"]
    assert bad["FrechetDistance_Stream"] < good["FrechetDistance_Stream"]


def test_exchanged_labels_are_seen_by_agreement_alone(
    figures: dict[str, dict[str, float]],
) -> None:
    good, bad = figures["none"], figures["labels exchanged"]
    assert good["LabelAgreement_Stream"] > 0.95
    assert bad["LabelAgreement_Stream"] < 0.05
    assert bad["ClassKLD_Stream"] < 0.05


def run(
    benchmark: Any, judge: Judge, *, with_metrics: bool = True, **kwargs: Any
) -> tuple[MAGDPlugin, Any, list[dict[str, Any]]]:
    """Three experiences of digits, evaluated after each."""
    torch.manual_seed(0)
    plugin = tiny_plugin()
    metrics = generation_metrics(plugin, judge, **kwargs) if with_metrics else []
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), *metrics, loggers=[])
    strategy = naive([plugin], evaluator=evaluator)
    results = []
    for index, experience in enumerate(benchmark.train_stream[:3]):
        strategy.train(experience, eval_streams=[])
        results.append(strategy.eval(benchmark.test_stream[: index + 1]))
    return plugin, strategy, results


def test_the_figures_are_those_of_the_functions(digits: Any, judge: Judge) -> None:
    plugin, _, results = run(digits, judge, seed=4)
    generator = plugin.generator
    assert generator is not None
    seen = []
    for index, experience in enumerate(digits.test_stream[:3]):
        real, labels = columns(experience.dataset)
        rng = torch.Generator().manual_seed(4)
        generated = generator.generate(condition=labels, rng=rng)
        with torch.no_grad():
            features = judge.features(real), judge.features(generated)
            seen.append((*features, labels, judge(generated).argmax(1)))
        where = f"{STREAM}/Task000/Exp00{index}"
        assert results[-1][f"FrechetDistance_Exp/{where}"] == pytest.approx(
            frechet_distance(*map(moments, features)), rel=1e-4
        )
        assert results[-1][f"LabelAgreement_Exp/{where}"] == label_agreement(*seen[-1][2:])
    real, generated, asked, judged = (torch.cat(each) for each in zip(*seen, strict=True))
    last = results[-1]
    assert last[f"FrechetDistance_Stream/{STREAM}"] == pytest.approx(
        frechet_distance(moments(real), moments(generated)), rel=1e-4
    )
    assert last[f"KernelDistance_Stream/{STREAM}"] == pytest.approx(
        kernel_distance(real, generated), rel=1e-3
    )
    precision, recall = precision_recall(real, generated, 3)
    assert last[f"Precision_Stream/{STREAM}"] == pytest.approx(precision, abs=0.01)
    assert last[f"Recall_Stream/{STREAM}"] == pytest.approx(recall, abs=0.01)
    assert last[f"ClassKLD_Stream/{STREAM}"] == class_kld(asked, judged)


def test_the_average_and_its_growth_are_those_of_the_experiences(
    digits: Any, judge: Judge
) -> None:
    _, _, results = run(digits, judge)
    names = [f"FrechetDistance_Exp/{STREAM}/Task000/Exp00{index}" for index in range(3)]
    now = [results[-1][name] for name in names]
    assert results[-1][f"FrechetDistanceAverage_Stream/{STREAM}"] == pytest.approx(sum(now) / 3)
    learnt = [results[0][names[0]], results[1][names[1]]]
    growth = sum(now[index] - learnt[index] for index in range(2)) / 2
    assert results[-1][f"FrechetDistanceForgetting_Stream/{STREAM}"] == pytest.approx(growth)
    assert f"FrechetDistanceForgetting_Stream/{STREAM}" not in results[0]


def test_a_second_evaluation_does_not_change_what_was_forgotten(digits: Any, judge: Judge) -> None:
    _, strategy, results = run(digits, judge)
    name = f"FrechetDistanceForgetting_Stream/{STREAM}"
    assert strategy.eval(digits.test_stream[:3])[name] == results[-1][name]


def test_an_experience_that_is_read_from_its_checkpoint_is_compared_anew(
    digits: Any, judge: Judge, tmp_path: Path
) -> None:
    values = []
    for _ in range(2):
        plugin = tiny_plugin(checkpoint_folder=tmp_path)
        metrics = generation_metrics(plugin, judge, samples=False, images=30)
        torch.manual_seed(0)
        strategy = naive([plugin], evaluator=EvaluationPlugin(metrics, loggers=[]))
        for experience in digits.train_stream[:2]:
            strategy.train(experience, eval_streams=[])
            values.append(strategy.eval(digits.test_stream[:1]))
    assert plugin.cost.training.backwards == 0
    name = f"FrechetDistance_Exp/{STREAM}/Task000/Exp000"
    first, second, *again = (each[name] for each in values)
    assert first != second
    assert again == [first, second]


def test_nothing_is_forgotten_where_other_classes_are_evaluated(judge: Judge, whole: Any) -> None:
    """A single test set, of classes that are learnt one after the other."""
    plugin = tiny_plugin()
    metrics = generation_metrics(plugin, judge, samples=False, images=30)
    strategy = naive([plugin], evaluator=EvaluationPlugin(metrics, loggers=[]))
    names = []
    for experience in split_digits(5, seed=0).train_stream[:2]:
        strategy.train(experience, eval_streams=[])
        names += [name for name in strategy.eval(whole.test_stream) if "Frechet" in name]
    assert any("Average" in name for name in names)
    assert not any("Forgetting" in name for name in names)


def test_what_is_compared_is_sampled_and_steered_as_what_is_replayed(
    digits: Any, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forwards(**distillation: Any) -> tuple[int, int]:
        """Of the generator and of the solver, for two images' comparison and pictures."""
        told = Distillation(pool_size=20, num_inference_steps=5, **distillation)
        plugin = MAGDPlugin(tiny_training(distillation=told))
        asked: list[int] = []
        original = PastSolver.__call__

        def counted(solver: PastSolver, images: Tensor, classes: list[int]) -> Tensor:
            asked.append(len(images))
            return original(solver, images, classes)

        metrics = generation_metrics(plugin, judge, images=2)
        strategy = naive([plugin], evaluator=EvaluationPlugin(metrics, loggers=[]))
        strategy.train(digits.train_stream[0], eval_streams=[])
        with monkeypatch.context() as patch:
            patch.setattr(PastSolver, "__call__", counted)
            values = strategy.eval(digits.test_stream[:1])
        assert told.conditional == any("Distance" in name for name in values)
        return plugin.cost.evaluation.forwards, sum(asked)

    # Two images in the comparison, two in the pictures.
    assert forwards() == ((2 + 2) * 5, 0)
    assert forwards(guidance_scale=2.0) == ((2 + 2) * 5 * 2, 0)
    assert forwards(classifier_scale=1.0) == ((2 + 2) * 5, (2 + 2) * 5)
    assert forwards(conditional=False) == (0, 0)


def test_one_pass_of_generation_serves_all_and_none_is_repeated(digits: Any, judge: Judge) -> None:
    plugin, strategy, _ = run(digits, judge, samples=False, images=30)
    assert plugin.cost.evaluation.forwards == (1 + 2 + 3) * 30 * 3
    strategy.eval(digits.test_stream[:3])
    assert plugin.cost.evaluation.forwards == (1 + 2 + 3) * 30 * 3
    assert plugin.cost.evaluation.seconds > 0
    assert plugin.cost.forwards < plugin.generator_strategy.model.forwards


def test_a_run_with_metrics_ends_as_one_without(digits: Any, judge: Judge) -> None:
    ends = []
    for with_metrics in (True, False):
        plugin, strategy, _ = run(digits, judge, with_metrics=with_metrics)
        networks = (strategy.model, plugin.generator)
        weights = [nn.utils.parameters_to_vector(each.parameters()) for each in networks]
        ends.append((torch.get_rng_state(), *weights))
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))


def test_classes_that_the_generator_has_not_learnt_are_left_out(digits: Any, judge: Judge) -> None:
    plugin = tiny_plugin()
    evaluator = EvaluationPlugin(generation_metrics(plugin, judge), loggers=[])
    strategy = naive([plugin], evaluator=evaluator)
    strategy.eval(digits.test_stream)
    assert not any("Distance" in name for name in evaluator.get_last_metrics())
    strategy.train(digits.train_stream[0], eval_streams=[])
    values = strategy.eval(digits.test_stream)
    assert [name for name in values if "FrechetDistance_Exp" in name] == [
        f"FrechetDistance_Exp/{STREAM}/Task000/Exp000"
    ]


def test_a_generator_from_elsewhere_is_judged_before_any_training(
    digits: Any, judge: Judge
) -> None:
    generator = tiny_generator(classes=tuple(range(10)))
    generator.pixel_range.set(torch.zeros(1), torch.ones(1))
    plugin = MAGDPlugin(tiny_training(model=generator))
    evaluator = EvaluationPlugin(generation_metrics(plugin, judge), loggers=[])
    values = naive([plugin], evaluator=evaluator).eval(digits.test_stream)
    assert values[f"FrechetDistance_Stream/{STREAM}"] > 0
    assert not any("Novelty" in name for name in values)


def test_parts_of_an_online_stream_are_compared(digits: Any, judge: Judge) -> None:
    plugin = tiny_plugin()
    evaluator = EvaluationPlugin(generation_metrics(plugin, judge), loggers=[])
    strategy = naive([plugin], evaluator=evaluator)
    for part in list(split_online_stream(digits.train_stream[:1], 20))[:2]:
        strategy.train(part, eval_streams=[])
    assert strategy.eval(digits.test_stream[:1])[f"Precision_Stream/{STREAM}"] >= 0


def test_only_what_is_wanted_is_measured(digits: Any, judge: Judge) -> None:
    off = ("frechet_distance", "kernel_distance", "precision_recall", "novelty", "samples")
    _, _, results = run(digits, judge, **dict.fromkeys(off, False), losses=False, cost=False)
    names = {name.split("/")[0] for name in results[-1] if "Acc" not in name}
    assert {name for name in names if "Count" not in name and "_Exp" not in name} == {
        "ClassKLD_Stream",
        "LabelAgreement_Stream",
    }


@pytest.mark.parametrize(("images", "error"), [(1, ValueError), (2.5, TypeError)])
def test_absurd_numbers_of_images_are_refused(
    judge: Judge, images: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="images"):
        generation_metrics(tiny_plugin(), judge, images=images)


def test_the_judge_is_right_and_kept_in_its_file(whole: Any, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    file = tmp_path / "judge.pt"
    first = train_judge(whole.train_stream, file=file)
    written = file.stat().st_mtime_ns
    again = train_judge(whole.train_stream, file=file)
    assert file.stat().st_mtime_ns == written
    images, labels = columns(whole.test_stream[0].dataset)
    with torch.no_grad():
        assert torch.equal(first(images), again(images))
        assert (first(images).argmax(1) == labels).float().mean() > 0.97
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_counted_by_the_number_of_their_class(digits: Any) -> None:
    known = sorted(digits.train_stream[0].classes_in_this_experience)
    plugin, judge = tiny_plugin(), train_judge(digits.train_stream[:1])
    metrics = generation_metrics(plugin, judge, images=20)
    strategy = naive([plugin], evaluator=EvaluationPlugin(metrics, loggers=[]))
    strategy.train(digits.train_stream[0], eval_streams=[])
    values = strategy.eval(digits.test_stream[:1])
    counts = {name: value for name, value in values.items() if "LabelCount" in name}
    assert sum(values[f"LabelCount{label:03}_Stream/{STREAM}"] for label in known) == 20
    assert sum(counts.values()) == 20


def test_a_judge_sees_images_of_any_precision(digits: Any) -> None:
    double = split_digits(5, seed=0, eval_transform=Tensor.double)
    weights = [
        train_judge(benchmark.train_stream[:1]).state_dict() for benchmark in (double, digits)
    ]
    torch.testing.assert_close(*weights)


def test_a_judge_of_other_data_is_not_taken(digits: Any, tmp_path: Path) -> None:
    file = tmp_path / "judge.pt"
    train_judge(digits.train_stream[:1], file=file)
    with pytest.warns(UserWarning, match="other data"):
        judge = train_judge(digits.train_stream[1:2], file=file)
    known = sorted(digits.train_stream[1].classes_in_this_experience)
    assert judge.class_table.numbers == known
    with pytest.raises(ValueError, match="not trained on classes"):
        judge.numbers_of(torch.tensor([known[0], 77]))
    with pytest.raises(ValueError, match="empty"):
        train_judge([])


def kinds(mode: Any, digits: Any, **kwargs: Any) -> list[set[str]]:
    """Kinds of lessons in each of two experiences."""
    distillation = Distillation(mode, pool_size=60, num_inference_steps=3, **kwargs)
    training = tiny_training(distillation=distillation, train_iterations=20)
    for experience in digits.train_stream[:2]:
        training.train(experience, eval_streams=[])
    assert [point.step for point in training.curves.points] == [20, 40]
    return [set(point.errors) for point in training.curves.points]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (None, set()),
        (MAGD(), {"state"}),
        (MAGD(trajectory_share=0.5), {"state", "renoised"}),
        (MAGD(snr_band=(0.1, 10.0)), {"state", "current"}),
        (baselines.dgr, {"renoised"}),
        (baselines.generative_distillation, {"renoised"}),
        (baselines.partial_generation, {"state"}),
        (baselines.gaussian_distillation, {"noise"}),
        (baselines.lwf_distillation, {"current"}),
    ],
)
def test_losses_are_told_by_kind_of_lesson(digits: Any, mode: Any, expected: set[str]) -> None:
    assert kinds(mode, digits) == [{"real"}, {"real", *expected}]


def test_a_curves_point_is_the_mean_of_its_steps(digits: Any) -> None:
    training = tiny_training(train_iterations=40)
    losses: list[float] = []
    original = training.criterion

    def criterion() -> Tensor:
        losses.append(original().item())
        return original()

    training.criterion = criterion  # type: ignore[method-assign]
    training.train(digits.train_stream[0], eval_streams=[])
    # Each step was counted twice.
    points = [point.errors["real"] for point in training.curves.points]
    assert len(points) == 4
    assert points == pytest.approx([sum(losses[i : i + 10]) / 10 for i in range(0, 40, 10)])


class ShapeOfInception(InceptionFeatures):
    """Inception's place without its weights, which need a download."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.seen: list[Tensor] = []

    def network(self, pixels: Tensor) -> Tensor:  # type: ignore[override]
        self.seen.append(pixels)
        return pixels.float().flatten(1)[:, :20]


def test_inceptions_distance_is_called_fid_and_sees_bytes(digits: Any, judge: Judge) -> None:
    inception = ShapeOfInception()
    _, _, results = run(digits, judge, features=inception)
    assert {"FID_Stream", "KID_Stream", "FIDAverage_Stream"} <= {
        name.split("/")[0] for name in results[-1]
    }
    assert not any("FrechetDistance" in name for name in results[-1])
    assert all(each.dtype == torch.uint8 and each.shape[1] == 3 for each in inception.seen)
    assert max(int(each.max()) for each in inception.seen) == 255


def test_a_general_network_tells_images_apart(digits: Any, judge: Judge) -> None:
    network = EfficientNetFeatures()
    images, _ = columns(digits.test_stream[0].dataset)
    features = network(images)
    assert features.shape == (len(images), 1280)
    assert not features.requires_grad
    coloured = network.train()(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(features, coloured)
    noisy = network((images + 0.3 * torch.randn(images.shape)).clamp(0, 1))
    plain = kernel_distance(features[::2], features[1::2])
    assert kernel_distance(features[::2], noisy[1::2]) > 5 * abs(plain)
    with pytest.raises(ValueError, match="one or three channels"):
        network(torch.zeros(1, 2, 8, 8))


@pytest.mark.parametrize(
    ("network", "extra"), [(InceptionFeatures, "fid"), (EfficientNetFeatures, "features")]
)
def test_a_missing_extra_is_named(
    network: type[nn.Module], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avalanche_magd.metrics.features.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=rf"install '\.\[{extra}\]'"):
        network()
