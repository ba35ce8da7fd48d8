"""Files that version 0.1 wrote (commit 53ab18a) go on to work."""

import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from diffusers import UNet2DModel
from tiny import naive
from torch import nn

from avalanche_magd import DiffusionGenerator, MAGDPlugin, MAGDTraining
from avalanche_magd.checkpoints import maybe_load_checkpoint
from avalanche_magd.distillation import Distillation
from avalanche_magd.replay.mini_batches import AS_IN_0_1

ARCHIVE = Path(__file__).parent / "files_of_0_1.tar.xz"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files_of_0_1")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def built(checkpoint_folder: Path | None = None, plugins: Any = ()) -> tuple[Naive, MAGDTraining]:
    """A strategy built as the one that 0.1 saved."""
    torch.manual_seed(0)
    network = UNet2DModel(
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 4),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=2,
        num_class_embeds=1,
        add_attention=False,
    )
    generator = DiffusionGenerator((1, 8, 8), network)
    training = MAGDTraining(
        model=generator,
        optimizer=torch.optim.AdamW(generator.parameters(), lr=1e-3),
        distillation=Distillation(pool_size=20, num_inference_steps=3),
        train_mb_size=8,
        train_iterations=30,
        checkpoint_folder=checkpoint_folder,
        seed=0,
        plugins=list(plugins),
    )
    training.checkpoint_every = 10
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    plugin = MAGDPlugin(training, mini_batches=AS_IN_0_1, seed=0)
    return naive([plugin], hidden_size=8, evaluator=evaluator, train_epochs=1), training


def magd_of(strategy: Any) -> MAGDPlugin:
    return next(plugin for plugin in strategy.plugins if isinstance(plugin, MAGDPlugin))


def weights_of(strategy: Any) -> torch.Tensor:
    """The solver's and the generator's, in one vector."""
    generator = magd_of(strategy).generator
    assert generator is not None
    vectors = [
        nn.utils.parameters_to_vector(each.parameters()) for each in (strategy.model, generator)
    ]
    return torch.cat(vectors).detach()


@pytest.mark.parametrize(
    ("name", "classes", "latent_shape", "prediction_type"),
    [
        ("generator", [1, 4, 5, 7], (1, 8, 8), "v_prediction"),
        ("latent-generator", [0, 3], (2, 4, 4), "epsilon"),
        ("text-generator", [0, 1, 2], (1, 8, 8), "v_prediction"),
    ],
)
def test_generator_folders_load(
    files: Path,
    tmp_path: Path,
    name: str,
    classes: list[int],
    latent_shape: Any,
    prediction_type: str,
) -> None:
    with pytest.warns(UserWarning, match="without digests: .* Saving it again") as caught:
        generator = DiffusionGenerator.from_pretrained(files / name)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    generator.save_pretrained(tmp_path)
    DiffusionGenerator.from_pretrained(tmp_path)  # and now without a warning
    assert generator.classes == classes
    assert generator.latent_shape == latent_shape
    assert generator.schedule.prediction_type == prediction_type
    assert generator.pixel_range.known
    assert generator.generate(3).isfinite().all()


@pytest.mark.parametrize(("name", "online"), [("strategy.pt", False), ("online.pt", True)])
def test_strategies_go_on_as_if_never_stopped(
    files: Path, name: str, online: bool, digits: Any
) -> None:
    stream = list(digits.train_stream[:2])
    if online:
        stream = list(split_online_stream(digits.train_stream[:3], 100, seed=0))
    resumed, first = maybe_load_checkpoint(built()[0], files / name)
    assert first > 0
    for experience in stream[first:]:
        resumed.train(experience, eval_streams=[])
    uninterrupted, _ = built()
    for index, experience in enumerate(stream):
        uninterrupted.train(experience, eval_streams=[])
        if index < first and not online:  # as the saved run did, which draws random numbers
            uninterrupted.eval(digits.test_stream[:1])
    # Another processor rounds differently.
    torch.testing.assert_close(weights_of(resumed), weights_of(uninterrupted), atol=1e-3, rtol=0)
    costs = [magd_of(strategy).cost for strategy in (resumed, uninterrupted)]
    assert costs[0].lessons == costs[1].lessons
    assert costs[0].training.backwards == costs[1].training.backwards


def test_metrics_of_a_saved_strategy_go_on(files: Path, digits: Any) -> None:
    strategy, first = maybe_load_checkpoint(built()[0], files / "strategy.pt")
    strategy.train(digits.train_stream[first], eval_streams=[])
    values = strategy.eval(digits.test_stream[:2])
    names = {name.split("/")[0] for name in values}
    assert {"FrechetDistanceForgetting_Stream", "LabelAgreement_Stream", "SampleGrid"} <= names


class StepCounter(SupervisedPlugin):  # type: ignore[misc]
    """Counts the generator's steps by experience."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: Counter[int] = Counter()

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        self.steps[strategy.clock.train_exp_counter] += 1


def test_training_goes_on_inside_an_experience(files: Path, digits: Any) -> None:
    counter = StepCounter()
    strategy, _ = built(files / "training", [counter])
    for experience in digits.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    assert counter.steps == {1: 20}
