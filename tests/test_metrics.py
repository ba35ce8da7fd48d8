"""Figures about generation, against cases with known answers."""

from io import StringIO
from typing import Any

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TextLogger
from avalanche.training.plugins import EvaluationPlugin
from tiny import PointMassTeacher, naive, tiny_plugin
from torch import Tensor

from avalanche_magd.diffusion.schedule import NoiseSchedule
from avalanche_magd.metrics import GeneratorCost, forward_backward_gap
from avalanche_magd.replay import MiniBatches


@pytest.mark.parametrize("num_inference_steps", [5, 50])
def test_an_exact_teacher_has_no_gap(num_inference_steps: int, rng: torch.Generator) -> None:
    schedule = NoiseSchedule()
    means = torch.rand(2, 1, 6, 6, generator=rng) * 2 - 1
    labels = torch.arange(2).repeat(300)
    teacher = PointMassTeacher(schedule, means)
    gap = forward_backward_gap(
        teacher, means[labels], labels, num_inference_steps, rng, student=teacher
    )
    assert gap.t.tolist() == [50.0 + 100 * index for index in range(10)]
    torch.testing.assert_close(gap.spread, torch.ones(10).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(gap.output, torch.ones(10).double(), atol=0.05, rtol=0)
    assert (gap.error_on_states == 0).all()
    assert (gap.error_on_noised == 0).all()


class GaussianTeacher:
    """Exact for images with mean 0.5 and variance 0.01 in each pixel."""

    schedule = NoiseSchedule("epsilon", "linear")
    latent_shape = (1, 3, 3)

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        signal, sigma = self.schedule.scales(t, x_t)
        gain = signal * 0.01 / (signal**2 * 0.01 + sigma**2)
        return self.schedule.prediction(0.5 + gain * (x_t - 0.5 * signal), x_t, t)


class FaultyStudent(PointMassTeacher):
    """Wrong by 0.1 at the noisier half of the timesteps."""

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return super().__call__(x_t, t, labels) + 0.1 * (t > 500).view(-1, 1, 1, 1)


def test_a_coarse_run_loses_spread_at_the_clean_end(rng: torch.Generator) -> None:
    images = 0.5 + 0.1 * torch.randn(2000, 1, 3, 3, generator=rng)
    labels = torch.zeros(2000, dtype=torch.long)
    clean = [
        forward_backward_gap(GaussianTeacher(), images, labels, steps, rng, bins=50).spread[0]
        for steps in (3, 10, 100)
    ]
    assert clean[0] < clean[1] < clean[2]
    assert clean[0] < 0.95
    assert clean[2].item() == pytest.approx(1, abs=0.05)


def test_the_errors_of_a_student_are_seen_at_the_timesteps_of_its_faults(
    rng: torch.Generator,
) -> None:
    schedule, means = NoiseSchedule(), torch.zeros(1, 1, 4, 4)
    teacher, student = PointMassTeacher(schedule, means), FaultyStudent(schedule, means)
    labels = torch.zeros(200, dtype=torch.long)
    images = torch.zeros(200, 1, 4, 4)
    gap = forward_backward_gap(teacher, images, labels, 20, rng, student=student, bins=2)
    for errors in (gap.error_on_states, gap.error_on_noised):
        assert errors[0].item() < 1e-4
        assert errors[1].item() == pytest.approx(0.01, rel=0.02)


def test_the_cost_of_the_generator_reaches_the_loggers_of_avalanche(digits: Any) -> None:
    plugin, text = tiny_plugin(mini_batches=MiniBatches(generated_share=0.5)), StringIO()
    evaluator = EvaluationPlugin(
        accuracy_metrics(stream=True), GeneratorCost(plugin), loggers=[TextLogger(text)]
    )
    strategy = naive([plugin], evaluator=evaluator)
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    last = {
        name: values[1]
        for name, values in evaluator.get_all_metrics().items()
        if name.startswith("GeneratorCost/")
    }
    assert last["GeneratorCost/lessons"] == [0, 60]
    assert last["GeneratorCost/teacher forwards"] == [0, 60 + 10 * 3]
    assert last["GeneratorCost/student backwards"] == [3 * 32, 3 * 32 + 3 * 64]
    assert last["GeneratorCost/peak bytes"][-1] > 10_000_000
    assert "GeneratorCost/lessons = 60" in text.getvalue()
