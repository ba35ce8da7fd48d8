"""With the defaults of MAGDPlugin, a solver and a generator remember the digits."""

from typing import Any

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from tiny import naive
from torch import nn

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits

ACCURACY = "Top1_Acc_Stream/eval_phase/test_stream/Task000"


def classifier_of_all_digits(benchmark: Any) -> nn.Module:
    """A classifier of all ten digits, trained on all real data."""
    samples = [sample for exp in benchmark.train_stream for sample in exp.dataset]
    images = torch.stack([image for image, *_ in samples])
    labels = torch.tensor([label for _, label, _ in samples])
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(20):
        for rows in torch.split(torch.randperm(len(images)), 32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


@pytest.mark.slow
def test_digits_are_remembered_and_generated_under_their_labels() -> None:
    benchmark = split_digits(5, seed=0)
    plugin = MAGDPlugin(seed=0)
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    strategy = naive([plugin], hidden_size=512, evaluator=evaluator, train_epochs=20)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert strategy.eval(benchmark.test_stream)[ACCURACY] >= 0.92
    assert plugin.generator is not None
    labels = torch.arange(10).repeat(50)
    images = plugin.generator.generate(condition=labels)
    predictions = classifier_of_all_digits(benchmark)(images).argmax(1)
    assert (predictions == labels).double().mean() >= 0.97
    # 4,000 images of ten steps, in each experience but the first: one forward per lesson.
    assert plugin.cost.lessons == plugin.cost.generation.forwards == 4 * 40_000
