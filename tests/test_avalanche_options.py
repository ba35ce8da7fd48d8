"""Options, models, plugins and loggers of Avalanche work beside MAGDPlugin."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger
from avalanche.models import IncrementalClassifier, SimpleMLP, as_multitask
from avalanche.training import GenerativeReplay, Naive
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    LRSchedulerPlugin,
)
from compatibility import Witness
from tiny import naive, tiny_plugin, tiny_training
from torch import nn

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.distillation import Distillation

ACCURACY = "Top1_Acc_Stream/eval_phase/test_stream"


def witnessed(plugin: MAGDPlugin) -> tuple[list[Any], Witness]:
    witness = Witness(plugin)
    return [plugin, witness], witness


def train_two(strategy: Any, benchmark: Any, witness: Witness, **kwargs: Any) -> None:
    """Train on two experiences: generated rows reach the network, and no metric counts them."""
    hook = nn.modules.module.register_module_forward_pre_hook(witness.look)
    try:
        for experience in benchmark.train_stream[:2]:
            strategy.train(experience, **kwargs)
    finally:
        hook.remove()
    assert witness.replayed > 0
    assert witness.counted == 0


@pytest.mark.parametrize(
    "options", [{"eval_every": 0}, {"eval_every": 1}, {"eval_every": 4, "peval_mode": "iteration"}]
)
def test_a_strategy_is_evaluated_during_training(digits: Any, options: dict[str, Any]) -> None:
    plugins, witness = witnessed(tiny_plugin())
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    strategy = naive(plugins, evaluator=evaluator, **options)
    train_two(strategy, digits, witness, eval_streams=[digits.test_stream[:1]])
    assert any(name.startswith(ACCURACY) for name in evaluator.get_all_metrics())


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"drop_last": True}, {"shuffle": False}])
def test_options_of_the_data_loader_are_kept(digits: Any, options: dict[str, Any]) -> None:
    plugins, witness = witnessed(tiny_plugin())
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    strategy = naive(plugins, evaluator=evaluator)
    train_two(strategy, digits, witness, **options)
    assert any(name.startswith(ACCURACY) for name in strategy.eval(digits.test_stream))


@pytest.mark.parametrize("size", [1, 7, 271, 10_000])
def test_generated_rows_join_mini_batches_of_any_size(digits: Any, size: int) -> None:
    # With 271 the last mini-batch of an experience of 272 has one row.
    plugins, witness = witnessed(tiny_plugin())
    strategy = naive(plugins)
    strategy.train_mb_size = size
    train_two(strategy, digits, witness)


@pytest.mark.filterwarnings("ignore:Metric Top1_Acc_Stream used by")  # in each first epoch
def test_schedulers_and_early_stopping_work_beside_replay(digits: Any) -> None:
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    strategy = naive([tiny_plugin()], evaluator=evaluator, train_epochs=50, eval_every=1)
    scheduler = torch.optim.lr_scheduler.StepLR(strategy.optimizer, 1, gamma=0.5)
    strategy.plugins += [
        LRSchedulerPlugin(scheduler, reset_scheduler=True, reset_lr=True),
        EarlyStoppingPlugin(patience=2, val_stream_name="train_stream"),
    ]
    for experience in digits.train_stream[:2]:
        strategy.train(experience, eval_streams=[digits.train_stream[:1]])
        assert 2 <= strategy.clock.train_exp_epochs < 50


def incremental_model() -> nn.Module:
    model = SimpleMLP(num_classes=10, input_size=64, hidden_size=16)
    model.classifier = IncrementalClassifier(16)
    return model


def multi_head_model() -> Any:
    return as_multitask(SimpleMLP(num_classes=10, input_size=64, hidden_size=16), "classifier")


@pytest.mark.parametrize(
    ("make_model", "task_labels"), [(incremental_model, False), (multi_head_model, True)]
)
def test_models_whose_heads_grow_are_trained_on_generated_rows(
    make_model: Callable[[], Any], task_labels: bool
) -> None:
    benchmark = split_digits(5, seed=0, return_task_id=task_labels)
    plugins, witness = witnessed(tiny_plugin())
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    strategy = Naive(
        model=model, optimizer=optimizer, train_mb_size=32, plugins=plugins, evaluator=None
    )
    train_two(strategy, benchmark, witness)


def test_loggers_of_every_kind_work_beside_replay(digits: Any, tmp_path: Path) -> None:
    text = io.StringIO()
    loggers = [
        InteractiveLogger(),
        TextLogger(text),
        CSVLogger(str(tmp_path / "csv")),
        TensorboardLogger(tmp_path / "tensorboard"),
    ]
    evaluator = EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True, experience=True),
        forgetting_metrics(experience=True, stream=True),
        loggers=loggers,
    )
    plugins, witness = witnessed(tiny_plugin())
    strategy = naive(plugins, evaluator=evaluator)
    train_two(strategy, digits, witness)
    strategy.eval(digits.test_stream)
    assert "Top1_Acc_Stream" in text.getvalue()
    assert list((tmp_path / "tensorboard").iterdir())
    evaluator.loggers[2].close()


def test_magd_training_is_a_generator_strategy_of_avalanches_generative_replay(
    digits: Any,
) -> None:
    training = tiny_training(distillation=Distillation(pool_size=12, num_inference_steps=2))
    model = SimpleMLP(num_classes=10, input_size=64, hidden_size=16)
    strategy = GenerativeReplay(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=32,
        generator_strategy=training,
        evaluator=None,
    )
    for experience in digits.train_stream[:3]:
        strategy.train(experience)
    seen = {label for exp in digits.train_stream[:3] for label in exp.classes_in_this_experience}
    assert training.model.classes == sorted(seen)
    assert training.cost.lessons == 2 * 24  # a pool before the second and the third experience
