"""On a GPU everything does as on a CPU; without one these tests are skipped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from tiny import naive, tiny_generator, tiny_plugin, tiny_training
from torch import Tensor, nn

from avalanche_magd import DiffusionGenerator
from avalanche_magd.checkpointing import maybe_load_checkpoint, save_checkpoint
from avalanche_magd.distillation import MAGD, Distillation, baselines
from avalanche_magd.metrics import generation_metrics, train_judge
from avalanche_magd.recording import WARM_UP
from avalanche_magd.samplers import make_sampler
from avalanche_magd.sampling import jittered_grid, sample

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CUDA = torch.device("cuda")


@pytest.fixture
def full_precision() -> Iterator[None]:
    """Without this GPU's shorter floats, so that only the order of sums differs."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def test_the_plugin_replays_and_measures_there(digits: Any) -> None:
    plugin = tiny_plugin(
        snr_band=(0.05, 20.0), guidance_scale=1.5, soft_label_weight=0.5, select=True
    )
    judge = train_judge(digits.train_stream, device="cuda")
    evaluator = EvaluationPlugin(
        accuracy_metrics(stream=True), generation_metrics(plugin, judge, images=40), loggers=[]
    )
    strategy = naive([plugin], device=CUDA, evaluator=evaluator)
    forward, rows = strategy.forward, []

    def watched() -> Any:
        rows.append((strategy.mb_x.device.type, len(strategy.mb_x)))
        return forward()

    for experience in digits.train_stream[:3]:
        strategy.forward = watched
        strategy.train(experience, eval_streams=[])
        strategy.forward = forward
    assert {device for device, _ in rows} == {"cuda"}
    assert max(count for _, count in rows) > 64
    values = strategy.eval(digits.test_stream[:3])
    numbers = [value for value in values.values() if isinstance(value, float)]
    assert len(numbers) > 20
    assert torch.tensor(numbers).isfinite().all()
    assert plugin.generator is not None
    assert {each.device.type for each in plugin.generator.parameters()} == {"cuda"}
    assert 0 < plugin.cost.peak_bytes <= torch.cuda.max_memory_allocated()


def test_torchs_random_state_there_is_the_strategys_own(digits: Any) -> None:
    states, weights = [], []
    for plugins in ([], [tiny_plugin(replay_size=0)]):
        torch.manual_seed(0)
        strategy = naive(plugins, device=CUDA)
        for experience in digits.train_stream[:2]:
            strategy.train(experience, eval_streams=[])
        states.append(torch.cuda.get_rng_state())
        weights.append(nn.utils.parameters_to_vector(strategy.model.parameters()))
    assert torch.equal(*states)
    torch.testing.assert_close(*weights)


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("sampler", ["unipc", "dpmpp_2m", "ddim"])
def test_the_same_noise_becomes_the_same_image(rng: torch.Generator, sampler: Any) -> None:
    generator = tiny_generator(classes=(0, 1), dtype=torch.float32).eval()
    noise, labels = torch.randn(16, 1, 8, 8, generator=rng), torch.arange(16) % 2
    grid = jittered_grid(10, 1000, 16, rng)
    found = []
    for device in (torch.device("cpu"), CUDA):
        steps = make_sampler(sampler, generator.schedule, 0.0, rng)
        there = (each.to(device) for each in (noise, labels, grid))
        found.append(sample(generator.to(device), generator.schedule, *there, steps).images)
    torch.testing.assert_close(found[1].cpu(), found[0], atol=1e-3, rtol=1e-3)


def precision_of(generator: DiffusionGenerator) -> torch.dtype:
    """What the network's first convolution computes in."""
    seen: list[torch.dtype] = []
    handle = generator.network.conv_in.register_forward_hook(
        lambda *call: seen.append(call[2].dtype)
    )
    assert generator.generate(2).dtype == torch.float32
    handle.remove()
    return seen[0]


def test_the_network_computes_in_what_it_is_told() -> None:
    generator = tiny_generator(classes=(0,)).to(CUDA)
    assert precision_of(generator) == torch.float32
    generator.dtype = torch.bfloat16
    assert precision_of(generator) == torch.bfloat16
    generator.dtype = None
    generator.network.half()
    assert precision_of(generator) == torch.float16
    assert generator.get_features(torch.rand(3, 1, 8, 8, device=CUDA)).isfinite().all()


@pytest.mark.parametrize(
    "distillation",
    [
        {"mode": MAGD(trajectory_share=0.5)},
        {"mode": baselines.partial_generation, "fresh": True},
        {"mode": baselines.lwf_distillation, "fresh": True},
        {"conditional": False},
        {"classifier_scale": 1.0},
        {"pool_folder": "here"},
    ],
    ids=str,
)
def test_every_way_of_teaching_works_there(
    digits: Any, tmp_path: Path, distillation: dict[str, Any]
) -> None:
    if "pool_folder" in distillation:
        distillation = {"pool_folder": tmp_path}
    plugin = tiny_plugin()
    plugin.distillation = Distillation(pool_size=20, num_inference_steps=3, **distillation)
    strategy = naive([plugin], device=CUDA)
    for experience in digits.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    assert plugin.cost.training.backwards > 0


@pytest.mark.usefixtures("full_precision")
def test_a_stopped_training_goes_on(digits: Any, tmp_path: Path) -> None:
    def train(folder: Path | None, stop: int) -> Tensor:
        torch.manual_seed(0)
        training = tiny_training(
            model=tiny_generator(dropout=0.1).to(CUDA),
            distillation=Distillation(pool_size=12, num_inference_steps=4),
            train_iterations=10,
            checkpoint_folder=folder,
            checkpoint_every=3,
            device=CUDA,
        )
        step = training.optimizer_step

        def stopping() -> None:
            if training.clock.train_exp_counter == 1 and training._iteration == stop:
                raise InterruptedError
            step()

        training.optimizer_step = stopping
        for experience in digits.train_stream[:2]:
            training.train(experience, eval_streams=[])
        assert training.cost.training.backwards == (240 if folder is None else 16 * 7)
        return nn.utils.parameters_to_vector(training.model.parameters())

    undisturbed = train(None, stop=-1)
    with pytest.raises(InterruptedError):
        train(tmp_path, stop=4)
    torch.testing.assert_close(train(tmp_path, stop=-1), undisturbed, atol=2e-3, rtol=1e-3)


def test_what_was_learnt_there_goes_on_here(digits: Any, tmp_path: Path) -> None:
    plugin = tiny_plugin()
    strategy = naive([plugin], device=CUDA)
    strategy.train(digits.train_stream[0], eval_streams=[])
    strategy.train(digits.train_stream[1], eval_streams=[])
    save_checkpoint(strategy, tmp_path / "strategy.pt")
    assert plugin.generator is not None
    plugin.generator.save_pretrained(tmp_path)
    here = DiffusionGenerator.from_pretrained(tmp_path)
    for there, loaded in zip(plugin.generator.parameters(), here.parameters(), strict=True):
        assert torch.equal(there.cpu(), loaded)
    assert here.generate(4).device.type == "cpu"
    for device in ("cpu", "cuda"):
        again, seen = maybe_load_checkpoint(naive([]), tmp_path / "strategy.pt", device)
        assert seen == 2
        again.train(digits.train_stream[2], eval_streams=[])
        assert {each.device.type for each in again.model.parameters()} == {device}


@pytest.mark.usefixtures("full_precision")
def test_a_recorded_step_is_the_same_step(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def train() -> tuple[Tensor, int, int]:
        torch.manual_seed(0)
        training = tiny_training(
            model=tiny_generator(dropout=0.1).to(CUDA),
            distillation=Distillation(pool_size=12, num_inference_steps=4),
            train_iterations=20,
            device=CUDA,
        )
        launched = 0
        network = training.model.network
        forward = network.forward

        def counted(*inputs: Any) -> Any:
            nonlocal launched
            launched += network.training
            return forward(*inputs)

        network.forward = counted
        for experience in digits.train_stream[:2]:
            training.train(experience, eval_streams=[])
        weights = nn.utils.parameters_to_vector(training.model.parameters())
        return weights, training.cost.training.forwards, launched

    recorded, forwards, launched = train()
    monkeypatch.setattr("avalanche_magd.recording.LARGEST", 0)
    expected, expected_forwards, all_launched = train()
    assert (launched, all_launched) == (2 * (WARM_UP + 1), 40)
    assert forwards == expected_forwards
    torch.testing.assert_close(recorded, expected, atol=2e-3, rtol=1e-3)


def test_steps_are_recorded_again_for_the_next_experience(digits: Any) -> None:
    training = tiny_training(model=tiny_generator().to(CUDA), device=CUDA)
    training.train(digits.train_stream[:2], eval_streams=[])
    step = training.optimizer_step

    def failing() -> None:
        raise InterruptedError

    training.optimizer_step = failing
    with pytest.raises(InterruptedError):
        training.train(digits.train_stream[2], eval_streams=[])
    training.optimizer_step = step
    training.train(digits.train_stream[2], eval_streams=[])
    assert training.clock.train_exp_counter == 3


def test_hooks_see_each_step(digits: Any) -> None:
    training = tiny_training(model=tiny_generator().to(CUDA), device=CUDA)
    seen, gradients = [], []
    network = training.model.network
    network.conv_in.weight.register_hook(lambda gradient: gradients.append(gradient))
    training.train(digits.train_stream[0], eval_streams=[])
    assert len(gradients) == 3
    network.mid_block.register_forward_hook(lambda module, *call: seen.append(module.training))
    training.train(digits.train_stream[0], eval_streams=[])
    assert sum(seen) == 3
