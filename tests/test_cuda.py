"""On a GPU the package gives what it gives on a CPU; without a GPU these tests are skipped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from callbacks import at, stop_after
from tiny import naive, tiny_generator, tiny_plugin, tiny_training
from torch import Tensor, nn

from avalanche_magd import DiffusionGenerator, MAGDPlugin, MAGDTraining
from avalanche_magd.checkpoints import maybe_load_checkpoint, save_checkpoint
from avalanche_magd.diffusion import DDIM, DPMSolver, UniPC
from avalanche_magd.diffusion.samplers import Sampler
from avalanche_magd.diffusion.sampling import jittered_grid, sample
from avalanche_magd.distillation import CGGD, MAGD, Distillation, baselines
from avalanche_magd.distillation.cuda_graphs import WARM_UP, RecordedGenerator
from avalanche_magd.metrics import generation_metrics, train_evaluation_classifier
from avalanche_magd.replay import MiniBatches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CUDA = torch.device("cuda")


@pytest.fixture
def full_precision() -> Iterator[None]:
    """Convolutions in full single precision, so that only the order of sums differs."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def small(**kwargs: Any) -> Distillation:
    return Distillation(pool_size=20, num_inference_steps=3, **kwargs)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_recorded_gradients_replace_those_before_or_are_added_to_them(
    full_precision: None, set_to_none: bool
) -> None:
    generator = tiny_generator(classes=(0, 1)).to(CUDA).train()
    batch = torch.rand(4, 1, 8, 8), torch.arange(4) * 200, torch.arange(4) % 2
    batch = tuple(each.to(CUDA) for each in batch)
    generator(*batch).square().sum().backward()
    wanted = [each.grad.clone() for each in generator.parameters()]
    recorded = RecordedGenerator(generator)
    for backwards in (1, 1, 2):
        generator.zero_grad(set_to_none=set_to_none)
        for _ in range(backwards):
            recorded(*batch).square().sum().backward()
        for each, gradient in zip(generator.parameters(), wanted, strict=True):
            torch.testing.assert_close(each.grad, backwards * gradient, rtol=1e-4, atol=1e-5)


def test_replay_and_metrics_of_generation_run_on_the_gpu(digits: Any) -> None:
    distillation = small(mode=MAGD(snr_band=(0.05, 20.0)), guidance=CGGD(guidance_scale=1.5))
    plugin = MAGDPlugin(
        generator_iterations=3,
        distillation=distillation,
        mini_batches=MiniBatches(soft_label_weight=0.5),
        seed=0,
    )
    classifier = train_evaluation_classifier(digits.train_stream, device="cuda")
    evaluator = EvaluationPlugin(
        accuracy_metrics(stream=True),
        generation_metrics(plugin, classifier, images=40),
        loggers=[],
    )
    rows: list[tuple[str, int]] = []
    watch = at(
        "before_forward",
        lambda strategy: rows.append((strategy.mb_x.device.type, len(strategy.mb_x))),
    )
    strategy = naive([plugin, watch], device=CUDA, evaluator=evaluator)
    for experience in digits.train_stream[:3]:
        strategy.train(experience, eval_streams=[])
    assert {device for device, _ in rows} == {"cuda"}
    assert max(count for _, count in rows) > 64
    values = strategy.eval(digits.test_stream[:3])
    numbers = [value for value in values.values() if isinstance(value, float)]
    assert len(numbers) > 20
    assert torch.tensor(numbers).isfinite().all()
    assert plugin.generator is not None
    assert {each.device.type for each in plugin.generator.parameters()} == {"cuda"}
    assert 0 < plugin.cost.peak_bytes <= torch.cuda.max_memory_allocated()


def test_the_plugin_leaves_torchs_random_state_of_the_gpu_to_the_strategy(digits: Any) -> None:
    states, weights = [], []
    for plugins in ([], [tiny_plugin(mini_batches=MiniBatches(replay_size=0))]):
        torch.manual_seed(0)
        strategy = naive(plugins, device=CUDA)
        for experience in digits.train_stream[:2]:
            strategy.train(experience, eval_streams=[])
        states.append(torch.cuda.get_rng_state())
        weights.append(nn.utils.parameters_to_vector(strategy.model.parameters()))
    assert torch.equal(*states)
    torch.testing.assert_close(*weights)


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("sampler", [UniPC(), DPMSolver(), DDIM()], ids=str)
def test_the_same_noise_becomes_the_same_image_on_cpu_and_gpu(
    rng: torch.Generator, sampler: Sampler
) -> None:
    generator = tiny_generator(classes=(0, 1), dtype=torch.float32).eval()
    noise, labels = torch.randn(16, 1, 8, 8, generator=rng), torch.arange(16) % 2
    grid = jittered_grid(10, 1000, 16, rng)
    images = []
    for device in (torch.device("cpu"), CUDA):
        inputs = (each.to(device) for each in (noise, labels, grid))
        source = torch.Generator(device)
        run = sample(generator.to(device), generator.schedule, *inputs, source, sampler=sampler)
        images.append(run.images)
    torch.testing.assert_close(images[1].cpu(), images[0], atol=1e-3, rtol=1e-3)


def precision_of(generator: DiffusionGenerator) -> torch.dtype:
    """The precision of the network's first convolution."""
    seen: list[torch.dtype] = []
    handle = generator.network.conv_in.register_forward_hook(
        lambda *call: seen.append(call[2].dtype)
    )
    assert generator.generate(2).dtype == torch.float32
    handle.remove()
    return seen[0]


def test_the_network_computes_in_the_dtype_of_the_generator_or_of_its_weights() -> None:
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
        small(mode=MAGD(trajectory_share=0.5)),
        small(mode=baselines.partial_generation, on_the_fly=True),
        small(mode=baselines.lwf_distillation, on_the_fly=True),
        small(guidance=CGGD(conditional=False)),
        small(guidance=CGGD(classifier_scale=1.0)),
        small(sampler=DDIM(eta=0.3)),
        small(pool_folder="."),
    ],
    ids=[
        "renoised images",
        "partial generation",
        "LwF distillation",
        "without classes",
        "guided by the solver",
        "DDIM with noise",
        "pool on disk",
    ],
)
def test_each_kind_of_distillation_runs_on_the_gpu(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distillation: Distillation
) -> None:
    monkeypatch.chdir(tmp_path)
    plugin = MAGDPlugin(generator_iterations=3, distillation=distillation, seed=0)
    strategy = naive([plugin], device=CUDA)
    for experience in digits.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    assert plugin.cost.training.backwards == 3 * (32 + 64)


@pytest.mark.usefixtures("full_precision")
def test_a_stopped_training_goes_on_from_its_checkpoint(digits: Any, tmp_path: Path) -> None:
    def build(folder: Path | None, plugins: list[Any]) -> MAGDTraining:
        torch.manual_seed(0)
        training = tiny_training(
            model=tiny_generator(dropout=0.1).to(CUDA),
            distillation=Distillation(pool_size=12, num_inference_steps=4),
            train_iterations=10,
            checkpoint_folder=folder,
            device=CUDA,
            plugins=plugins,
        )
        training.checkpoint_every = 3
        return training

    def train(training: MAGDTraining) -> Tensor:
        for experience in digits.train_stream[:2]:
            training.train(experience, eval_streams=[])
        return nn.utils.parameters_to_vector(training.model.parameters())

    whole = build(None, [])
    undisturbed = train(whole)
    assert whole.cost.training.backwards == 10 * 8 + 10 * 16
    with pytest.raises(InterruptedError):
        train(build(tmp_path, [stop_after(14, InterruptedError)]))
    again = build(tmp_path, [])
    torch.testing.assert_close(train(again), undisturbed, atol=2e-3, rtol=1e-3)
    assert again.cost.training.backwards == 7 * 16  # after the third step of the second experience


def test_a_generator_and_a_strategy_that_were_saved_on_a_gpu_are_loaded_on_a_cpu(
    digits: Any, tmp_path: Path
) -> None:
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
def test_recorded_steps_train_the_same_weights_as_steps_that_are_called(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
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

        network.forward = counted  # a hook would keep the network from being recorded
        for experience in digits.train_stream[:2]:
            training.train(experience, eval_streams=[])
        weights = nn.utils.parameters_to_vector(training.model.parameters())
        return weights, training.cost.training.forwards, launched

    recorded, forwards, launched = train()
    monkeypatch.setattr("avalanche_magd.distillation.cuda_graphs.LARGEST", 0)
    expected, expected_forwards, all_launched = train()
    assert (launched, all_launched) == (2 * (WARM_UP + 1), 40)
    assert forwards == expected_forwards
    torch.testing.assert_close(recorded, expected, atol=2e-3, rtol=1e-3)


def test_steps_are_recorded_again_after_an_interruption(digits: Any) -> None:
    training = tiny_training(model=tiny_generator().to(CUDA), device=CUDA)
    training.train(digits.train_stream[:2], eval_streams=[])

    def stop(strategy: Any) -> None:
        raise InterruptedError

    interruption = at("before_update", stop)
    training.plugins.append(interruption)
    with pytest.raises(InterruptedError):
        training.train(digits.train_stream[2], eval_streams=[])
    training.plugins.remove(interruption)
    training.train(digits.train_stream[2], eval_streams=[])
    assert training.clock.train_exp_counter == 3


def test_hooks_of_the_network_are_called_in_each_step(digits: Any) -> None:
    training = tiny_training(model=tiny_generator().to(CUDA), device=CUDA)
    seen, gradients = [], []
    network = training.model.network
    network.conv_in.weight.register_hook(lambda gradient: gradients.append(gradient))
    training.train(digits.train_stream[0], eval_streams=[])
    assert len(gradients) == 3
    network.mid_block.register_forward_hook(lambda module, *call: seen.append(module.training))
    training.train(digits.train_stream[0], eval_streams=[])
    assert sum(seen) == 3
