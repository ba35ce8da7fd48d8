"""Everything around a network is in single precision, whatever torch's default or its weights."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from tiny import naive, tiny_generator, tiny_training

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.distillation import CGGD, MAGD, Distillation, baselines
from avalanche_magd.metrics import generation_metrics, train_evaluation_classifier
from avalanche_magd.metrics.gap import forward_backward_gap
from avalanche_magd.replay import MiniBatches
from avalanche_magd.runtime.precision import PRECISION

DISTILLATIONS: dict[str, dict[str, Any]] = {
    "SGGD and guidance": {"mode": MAGD(0.5, (0.05, 20.0)), "guidance": CGGD(guidance_scale=2.0)},
    "few lessons per image": {"max_pool_bytes": 20 * 1500},
    "DGR on the fly": {"mode": baselines.dgr, "on_the_fly": True},
    "partial generation": {"mode": baselines.partial_generation},
    "pure noise": {"mode": baselines.gaussian_distillation},
}


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", DISTILLATIONS)
def test_torchs_default_changes_nothing_in_a_generators_training(
    digits: Any, default_dtype: torch.dtype, name: str
) -> None:
    trained = []
    for dtype in (torch.float32, default_dtype):
        torch.manual_seed(0)
        settings = {"pool_size": 20, "num_inference_steps": 3, **DISTILLATIONS[name]}
        training = tiny_training(
            distillation=Distillation(**settings), gradient_accumulation_steps=2
        )
        torch.set_default_dtype(dtype)
        for experience in digits.train_stream[:2]:
            training.train(experience, eval_streams=[])
        images = training.model.generate(4, rng=torch.Generator().manual_seed(0))
        trained.append([images, *training.model.state_dict().values()])
    for ours, others in zip(*trained, strict=True):
        assert torch.equal(ours, others)


def test_a_run_in_another_default_precision(default_dtype: torch.dtype) -> None:
    torch.set_default_dtype(default_dtype)
    digits = split_digits(
        5,
        seed=0,
        train_transform=lambda x: x.to(default_dtype),
        eval_transform=lambda x: x.to(default_dtype),
    )
    seen = set()
    plugin = MAGDPlugin(
        generator_iterations=3,
        pool_size=20,
        num_inference_steps=3,
        mini_batches=MiniBatches(soft_label_weight=1.0),
        seed=0,
    )
    judge = train_evaluation_classifier(digits.train_stream[:2])
    evaluator = EvaluationPlugin(generation_metrics(plugin, judge, images=20), loggers=[])
    strategy = naive([plugin], evaluator=evaluator)
    strategy.model.register_forward_hook(lambda module, args, output: seen.add(args[0].dtype))
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
        strategy.eval(digits.test_stream[:1])
    assert plugin.generator is not None
    assert {each.dtype for each in plugin.generator.parameters()} == {PRECISION}
    assert seen == {default_dtype}


def test_a_generator_in_double_precision_computes_and_learns_in_it(digits: Any) -> None:
    generator = tiny_generator().double()
    assert generator.pixel_range.low.dtype == PRECISION
    training = tiny_training(model=generator, distillation=Distillation(pool_size=20))
    seen = set()
    generator.network.register_forward_hook(lambda module, args, output: seen.add(args[0].dtype))
    strategy = naive([MAGDPlugin(training, mini_batches=MiniBatches(soft_label_weight=1.0))])
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    assert seen == {torch.float64}
    assert all(each.isfinite().all() for each in generator.parameters())
    images = generator.generate(4)
    assert images.dtype == PRECISION
    rng = torch.Generator().manual_seed(0)
    gap = forward_backward_gap(generator, images, torch.zeros(4).long(), 3, rng)
    assert gap.output.isfinite().any()
