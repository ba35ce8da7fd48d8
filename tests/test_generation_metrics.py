"""Metrics of generation in Avalanche's evaluator: known generators, planted faults, real runs."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from tiny import naive, tiny_generator, tiny_plugin, tiny_training
from torch import Tensor, nn

from avalanche_magd import MAGDPlugin
from avalanche_magd import metrics as magd_metrics
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.distillation import MAGD, Distillation, Teacher, baselines
from avalanche_magd.distillation.cggd import CGGD
from avalanche_magd.distillation.loss import STEPS_PER_POINT
from avalanche_magd.metrics import (
    EfficientNetFeatures,
    EvaluationClassifier,
    InceptionFeatures,
    class_kld,
    frechet_distance,
    generation_metrics,
    kernel_distance,
    label_agreement,
    moments,
    precision_recall,
    train_evaluation_classifier,
)
from avalanche_magd.metrics.generation import METRICS
from avalanche_magd.runtime.atomic_files import write_file

STREAM = "eval_phase/test_stream"
WITHOUT_SAMPLES = [name for name in METRICS if name != "samples"]

Fault = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Training images, their labels and the labels asked for to the images that are generated."""


@dataclass(frozen=True)
class PlantedTeacher(Teacher):
    """Gives training images of the classes asked for, with a fault, for generated ones."""

    fault: Fault = field(kw_only=True)
    known: tuple[Tensor, Tensor] = field(kw_only=True)

    def images(self, labels: Tensor) -> Tensor:
        return self.fault(*self.known, labels)


@dataclass(frozen=True)
class Planted(Distillation):
    """Distillation by a :class:`PlantedTeacher`."""

    fault: Fault = field(kw_only=True)
    known: tuple[Tensor, Tensor] = field(kw_only=True)

    def teacher(self, *args: Any, **kwargs: Any) -> PlantedTeacher:
        teacher = super().teacher(*args, **kwargs)
        return PlantedTeacher(**vars(teacher), fault=self.fault, known=self.known)


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
def classifier(whole: Any) -> EvaluationClassifier:
    return train_evaluation_classifier(whole.train_stream)


@pytest.fixture(scope="module")
def figures(whole: Any, classifier: EvaluationClassifier) -> dict[str, dict[str, float]]:
    """What the metrics say of each fault."""
    found = {}
    known = columns(whole.train_stream[0].dataset)
    for name, fault in FAULTS.items():
        planted = Planted(fault=fault, known=known)
        plugin = MAGDPlugin(tiny_training(distillation=planted))
        metrics = generation_metrics(plugin, classifier, metrics=WITHOUT_SAMPLES)
        strategy = naive([plugin], evaluator=EvaluationPlugin(metrics, loggers=[]))
        strategy.train(whole.train_stream[0], eval_streams=[])
        values = strategy.eval(whole.test_stream)
        found[name] = {name.split("/")[0]: value for name, value in values.items()}
    return found


def test_a_dropped_class_is_seen_by_all_metrics_of_classes(
    figures: dict[str, dict[str, float]],
) -> None:
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


def test_copies_have_no_novelty_and_the_best_distance(
    figures: dict[str, dict[str, float]],
) -> None:
    good, bad = figures["none"], figures["copies"]
    assert bad["Novelty_Stream"] < 0.01 < 0.5 < good["Novelty_Stream"]
    assert bad["FrechetDistance_Stream"] < good["FrechetDistance_Stream"]


def test_exchanged_labels_are_seen_by_label_agreement_alone(
    figures: dict[str, dict[str, float]],
) -> None:
    good, bad = figures["none"], figures["labels exchanged"]
    assert good["LabelAgreement_Stream"] > 0.95
    assert bad["LabelAgreement_Stream"] < 0.05
    assert bad["ClassKLD_Stream"] < 0.05


def run(
    benchmark: Any, classifier: EvaluationClassifier, *, with_metrics: bool = True, **kwargs: Any
) -> tuple[MAGDPlugin, Any, list[dict[str, Any]]]:
    """Three experiences of digits, evaluated after each."""
    torch.manual_seed(0)
    plugin = tiny_plugin()
    metrics = generation_metrics(plugin, classifier, **kwargs) if with_metrics else []
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), *metrics, loggers=[])
    strategy = naive([plugin], evaluator=evaluator)
    results = []
    for index, experience in enumerate(benchmark.train_stream[:3]):
        strategy.train(experience, eval_streams=[])
        results.append(strategy.eval(benchmark.test_stream[: index + 1]))
    return plugin, strategy, results


def test_the_metrics_emit_what_the_functions_compute(
    digits: Any, classifier: EvaluationClassifier
) -> None:
    plugin, _, results = run(digits, classifier, seed=4)
    generator = plugin.generator
    assert generator is not None
    seen = []
    for index, experience in enumerate(digits.test_stream[:3]):
        real, labels = columns(experience.dataset)
        rng = torch.Generator().manual_seed(4)
        generated = generator.generate(condition=labels, rng=rng)
        with torch.no_grad():
            features = classifier.features(real), classifier.features(generated)
            seen.append((*features, labels, classifier(generated).argmax(1)))
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


def test_average_and_forgetting_follow_from_the_distances_by_experience(
    digits: Any, classifier: EvaluationClassifier
) -> None:
    _, _, results = run(digits, classifier)
    names = [f"FrechetDistance_Exp/{STREAM}/Task000/Exp00{index}" for index in range(3)]
    now = [results[-1][name] for name in names]
    assert results[-1][f"FrechetDistanceAverage_Stream/{STREAM}"] == pytest.approx(sum(now) / 3)
    learnt = [results[0][names[0]], results[1][names[1]]]
    growth = sum(now[index] - learnt[index] for index in range(2)) / 2
    assert results[-1][f"FrechetDistanceForgetting_Stream/{STREAM}"] == pytest.approx(growth)
    assert f"FrechetDistanceForgetting_Stream/{STREAM}" not in results[0]


def test_a_second_evaluation_does_not_change_the_forgetting(
    digits: Any, classifier: EvaluationClassifier
) -> None:
    _, strategy, results = run(digits, classifier)
    name = f"FrechetDistanceForgetting_Stream/{STREAM}"
    assert strategy.eval(digits.test_stream[:3])[name] == results[-1][name]


def test_an_experience_that_is_read_from_its_checkpoint_is_compared_anew(
    digits: Any, classifier: EvaluationClassifier, tmp_path: Path
) -> None:
    values = []
    for _ in range(2):
        plugin = tiny_plugin(checkpoint_folder=tmp_path)
        metrics = generation_metrics(plugin, classifier, images=30, metrics=WITHOUT_SAMPLES)
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


def test_no_forgetting_is_reported_where_the_known_classes_of_a_test_set_change(
    classifier: EvaluationClassifier, whole: Any
) -> None:
    """A single test set, of classes that are learnt one after the other."""
    plugin = tiny_plugin()
    metrics = generation_metrics(plugin, classifier, images=30, metrics=WITHOUT_SAMPLES)
    strategy = naive([plugin], evaluator=EvaluationPlugin(metrics, loggers=[]))
    names = []
    for experience in split_digits(5, seed=0).train_stream[:2]:
        strategy.train(experience, eval_streams=[])
        names += [name for name in strategy.eval(whole.test_stream) if "Frechet" in name]
    assert any("Average" in name for name in names)
    assert not any("Forgetting" in name for name in names)


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [  # Two images in the comparison and two in the pictures, by five steps each.
        (CGGD(), ((2 + 2) * 5, 0)),
        (CGGD(guidance_scale=2.0), ((2 + 2) * 5 * 2, 0)),
        (CGGD(classifier_scale=1.0), ((2 + 2) * 5, (2 + 2) * 5)),
    ],
)
def test_compared_images_are_guided_as_replayed_ones(
    digits: Any, classifier: EvaluationClassifier, guidance: CGGD, expected: tuple[int, int]
) -> None:
    distillation = Distillation(pool_size=20, num_inference_steps=5, guidance=guidance)
    plugin = MAGDPlugin(tiny_training(distillation=distillation))
    metrics = generation_metrics(plugin, classifier, images=2)
    strategy = naive([plugin], evaluator=EvaluationPlugin(metrics, loggers=[]))
    strategy.train(digits.train_stream[0], eval_streams=[])
    seen: list[int] = []
    strategy.model.register_forward_pre_hook(lambda model, inputs: seen.append(len(inputs[0])))
    assert any("Distance" in name for name in strategy.eval(digits.test_stream[:1]))
    by_guidance = sum(seen) - len(digits.test_stream[0].dataset)
    assert (plugin.cost.evaluation.forwards, by_guidance) == expected


def test_a_generator_that_is_given_no_classes_is_not_compared(
    digits: Any, classifier: EvaluationClassifier
) -> None:
    distillation = Distillation(pool_size=20, guidance=CGGD(conditional=False))
    plugin = MAGDPlugin(tiny_training(distillation=distillation))
    metrics = generation_metrics(plugin, classifier, images=2)
    strategy = naive([plugin], evaluator=EvaluationPlugin(metrics, loggers=[]))
    strategy.train(digits.train_stream[0], eval_streams=[])
    assert not any("Distance" in name for name in strategy.eval(digits.test_stream[:1]))
    assert plugin.cost.evaluation.forwards == 0


def test_one_generation_pass_for_each_state_of_the_generator_serves_all_metrics(
    digits: Any, classifier: EvaluationClassifier
) -> None:
    plugin, strategy, _ = run(digits, classifier, images=30, metrics=WITHOUT_SAMPLES)
    assert plugin.cost.evaluation.forwards == (1 + 2 + 3) * 30 * 3
    strategy.eval(digits.test_stream[:3])
    assert plugin.cost.evaluation.forwards == (1 + 2 + 3) * 30 * 3
    assert plugin.cost.evaluation.seconds > 0
    assert plugin.cost.forwards < plugin.generator_strategy.model.forwards


def test_a_run_with_metrics_ends_with_the_weights_of_a_run_without_metrics(
    digits: Any, classifier: EvaluationClassifier
) -> None:
    ends = []
    for with_metrics in (True, False):
        plugin, strategy, _ = run(digits, classifier, with_metrics=with_metrics)
        networks = (strategy.model, plugin.generator)
        weights = [nn.utils.parameters_to_vector(each.parameters()) for each in networks]
        ends.append((torch.get_rng_state(), *weights))
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))


def test_classes_that_the_generator_has_not_learnt_are_left_out(
    digits: Any, classifier: EvaluationClassifier
) -> None:
    plugin = tiny_plugin()
    evaluator = EvaluationPlugin(generation_metrics(plugin, classifier), loggers=[])
    strategy = naive([plugin], evaluator=evaluator)
    strategy.eval(digits.test_stream)
    assert not any("Distance" in name for name in evaluator.get_last_metrics())
    strategy.train(digits.train_stream[0], eval_streams=[])
    values = strategy.eval(digits.test_stream)
    assert [name for name in values if "FrechetDistance_Exp" in name] == [
        f"FrechetDistance_Exp/{STREAM}/Task000/Exp000"
    ]


def test_a_trained_generator_is_measured_before_the_first_experience(
    digits: Any, classifier: EvaluationClassifier
) -> None:
    generator = tiny_generator(classes=tuple(range(10)))
    generator.pixel_range.set(torch.zeros(1), torch.ones(1))
    plugin = MAGDPlugin(tiny_training(model=generator))
    evaluator = EvaluationPlugin(generation_metrics(plugin, classifier), loggers=[])
    values = naive([plugin], evaluator=evaluator).eval(digits.test_stream)
    assert values[f"FrechetDistance_Stream/{STREAM}"] > 0
    assert not any("Novelty" in name for name in values)


def test_parts_of_an_online_stream_are_compared(
    digits: Any, classifier: EvaluationClassifier
) -> None:
    plugin = tiny_plugin()
    evaluator = EvaluationPlugin(generation_metrics(plugin, classifier), loggers=[])
    strategy = naive([plugin], evaluator=evaluator)
    for part in list(split_online_stream(digits.train_stream[:1], 20))[:2]:
        strategy.train(part, eval_streams=[])
    assert strategy.eval(digits.test_stream[:1])[f"Precision_Stream/{STREAM}"] >= 0


def test_only_the_named_metrics_are_measured(
    digits: Any, classifier: EvaluationClassifier
) -> None:
    _, _, results = run(digits, classifier, metrics=["labels"])
    names = {name.split("/")[0] for name in results[-1] if "Acc" not in name}
    assert {name for name in names if "Count" not in name and "_Exp" not in name} == {
        "ClassKLD_Stream",
        "LabelAgreement_Stream",
    }


def test_every_name_of_a_metric_gives_metrics(classifier: EvaluationClassifier) -> None:
    by_name = {
        name: generation_metrics(tiny_plugin(), classifier, metrics=[name]) for name in METRICS
    }
    assert all(len(metrics) > 1 for metrics in by_name.values())
    together = sum(len(metrics) - 1 for metrics in by_name.values())
    assert len(generation_metrics(tiny_plugin(), classifier)) == 1 + together


def test_an_unknown_metric_is_refused(classifier: EvaluationClassifier) -> None:
    with pytest.raises(
        ValueError, match=r"metrics must be one of frechet_distance, .*; got 'fid'"
    ):
        generation_metrics(tiny_plugin(), classifier, metrics=["cost", "fid"])


@pytest.mark.parametrize(("images", "error"), [(1, ValueError), (2.5, TypeError)])
def test_absurd_numbers_of_images_are_refused(
    classifier: EvaluationClassifier, images: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="images"):
        generation_metrics(tiny_plugin(), classifier, images=images)


def test_the_evaluation_classifier_is_right_and_is_read_from_its_file(
    whole: Any, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    file = tmp_path / "classifier.pt"
    first = train_evaluation_classifier(whole.train_stream, file=file)
    written = file.stat().st_mtime_ns
    again = train_evaluation_classifier(whole.train_stream, file=file)
    assert file.stat().st_mtime_ns == written
    images, labels = columns(whole.test_stream[0].dataset)
    with torch.no_grad():
        assert torch.equal(first(images), again(images))
        assert (first(images).argmax(1) == labels).float().mean() > 0.97
    assert torch.equal(torch.get_rng_state(), state)


def test_generated_images_are_counted_by_class(digits: Any) -> None:
    known = sorted(digits.train_stream[0].classes_in_this_experience)
    plugin, classifier = tiny_plugin(), train_evaluation_classifier(digits.train_stream[:1])
    metrics = generation_metrics(plugin, classifier, images=20)
    strategy = naive([plugin], evaluator=EvaluationPlugin(metrics, loggers=[]))
    strategy.train(digits.train_stream[0], eval_streams=[])
    values = strategy.eval(digits.test_stream[:1])
    counts = {name: value for name, value in values.items() if "LabelCount" in name}
    assert sum(values[f"LabelCount{label:03}_Stream/{STREAM}"] for label in known) == 20
    assert sum(counts.values()) == 20


def test_the_evaluation_classifier_learns_from_images_of_any_precision(digits: Any) -> None:
    double = split_digits(5, seed=0, eval_transform=Tensor.double)
    weights = [
        train_evaluation_classifier(benchmark.train_stream[:1]).state_dict()
        for benchmark in (double, digits)
    ]
    torch.testing.assert_close(*weights)


def test_a_file_of_an_evaluation_classifier_that_0_1_wrote_is_read(
    digits: Any, tmp_path: Path
) -> None:
    images, _ = columns(digits.train_stream[0].dataset)
    known = sorted(digits.train_stream[0].classes_in_this_experience)
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    rows = [(label, label, 0) for label in known]
    weights = {
        "mean": torch.zeros(1, 1, 1),
        "spread": torch.ones(1, 1, 1),
        "body.0.weight": torch.zeros(32, 1, 3, 3),
        "body.0.bias": torch.zeros(32),
        "body.3.weight": torch.zeros(64, 32, 3, 3),
        "body.3.bias": torch.zeros(64),
        "body.7.weight": torch.zeros(128, 1024),
        "body.7.bias": torch.zeros(128),
        "head.weight": torch.zeros(2, 128),
        "head.bias": torch.tensor([1.0, 2.0]),
    }
    content = {"key": repr((len(images), rows, digest, 0)), "weights": weights}
    write_file(tmp_path / "judge.pt", partial(torch.save, content))
    read = train_evaluation_classifier(digits.train_stream[:1], file=tmp_path / "judge.pt")
    with torch.no_grad():
        assert read(images[:1]).tolist() == [[1.0, 2.0]]
    assert read.ids_of(torch.tensor(known)).tolist() == known


def test_the_old_name_of_the_evaluation_classifier_works_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="Judge is .*EvaluationClassifier"):
        assert magd_metrics.Judge is EvaluationClassifier


def test_an_evaluation_classifier_of_other_data_is_not_read(digits: Any, tmp_path: Path) -> None:
    file = tmp_path / "classifier.pt"
    train_evaluation_classifier(digits.train_stream[:1], file=file)
    with pytest.warns(UserWarning, match="is no classifier of these data"):
        classifier = train_evaluation_classifier(digits.train_stream[1:2], file=file)
    known = sorted(digits.train_stream[1].classes_in_this_experience)
    assert classifier.label_map.ids == known
    with pytest.raises(ValueError, match="not trained on classes"):
        classifier.ids_of(torch.tensor([known[0], 77]))
    with pytest.raises(ValueError, match="empty"):
        train_evaluation_classifier([])


def sources(mode: Any, digits: Any, **kwargs: Any) -> list[set[str]]:
    """Sources of lessons in each of two experiences."""
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
def test_losses_are_reported_by_source_of_lessons(
    digits: Any, mode: Any, expected: set[str]
) -> None:
    assert sources(mode, digits) == [{"real"}, {"real", *expected}]


class LossWitness(SupervisedPlugin):
    """Remembers the loss of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        self.losses.append(strategy.loss.item())


def test_a_point_of_a_loss_curve_is_the_mean_over_several_steps(digits: Any) -> None:
    witness = LossWitness()
    training = tiny_training(train_iterations=40, plugins=[witness])
    training.train(digits.train_stream[0], eval_streams=[])
    points = [point.errors["real"] for point in training.curves.points]
    means = torch.tensor(witness.losses).view(-1, STEPS_PER_POINT).mean(1)
    assert points == pytest.approx(means.tolist())


class ShapeOfInception(InceptionFeatures):
    """Inception's place without its weights, which need a download."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.seen: list[Tensor] = []

    def network(self, pixels: Tensor) -> Tensor:  # type: ignore[override]
        self.seen.append(pixels)
        return pixels.float().flatten(1)[:, :20]


def test_the_distance_of_inception_features_is_called_fid(
    digits: Any, classifier: EvaluationClassifier
) -> None:
    inception = ShapeOfInception()
    _, _, results = run(digits, classifier, features=inception)
    assert {"FID_Stream", "KID_Stream", "FIDAverage_Stream"} <= {
        name.split("/")[0] for name in results[-1]
    }
    assert not any("FrechetDistance" in name for name in results[-1])
    assert all(each.dtype == torch.uint8 and each.shape[1] == 3 for each in inception.seen)
    assert max(int(each.max()) for each in inception.seen) == 255


def test_noise_moves_the_features_of_efficientnet(
    digits: Any, classifier: EvaluationClassifier
) -> None:
    network = EfficientNetFeatures()
    images, _ = columns(digits.test_stream[0].dataset)
    features = network(images)
    assert features.shape == (len(images), 1280)
    assert not features.requires_grad
    coloured = network.train()(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(features, coloured)
    noisy = network((images + 0.3 * torch.randn(images.shape)).clamp(0, 1))
    even, odd = slice(0, len(images) // 2 * 2, 2), slice(1, None, 2)
    plain = kernel_distance(features[even], features[odd])
    assert kernel_distance(features[even], noisy[odd]) > 5 * abs(plain)
    with pytest.raises(ValueError, match="one or three channels"):
        network(torch.zeros(1, 2, 8, 8))


@pytest.mark.parametrize(
    ("network", "extra"), [(InceptionFeatures, "fid"), (EfficientNetFeatures, "features")]
)
def test_a_missing_extra_of_a_feature_network_is_named(
    network: type[nn.Module], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avalanche_magd.metrics.features.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=rf"install '\.\[{extra}\]'"):
        network()
