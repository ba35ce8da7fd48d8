"""Diffusion on an autoencoder's latents: pools, solvers and metrics still see images."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from avalanche.benchmarks.scenarios import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from diffusers import AutoencoderKL, AutoencoderTiny
from tiny import naive, tiny_network
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from avalanche_magd import DiffusionGenerator, MAGDPlugin, MAGDTraining
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.distillation import CGGD, MAGD, Distillation, Pool
from avalanche_magd.distillation.cost import PhaseCost
from avalanche_magd.distillation.solver import PastSolver
from avalanche_magd.metrics import generation_metrics, train_evaluation_classifier

SHAPE = (3, 16, 16)


def tiny_autoencoder() -> AutoencoderTiny:
    return AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )


def tiny_variational() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def latents_of_tiny(autoencoder: Any, images: Tensor) -> Tensor:
    return autoencoder.encode(images).latents


def latents_of_variational(autoencoder: Any, images: Tensor) -> Tensor:
    return autoencoder.encode(images).latent_dist.mode()


AUTOENCODERS = [tiny_autoencoder, tiny_variational]


def latent_generator(autoencoder: Any = None, **kwargs: Any) -> DiffusionGenerator:
    autoencoder = tiny_autoencoder() if autoencoder is None else autoencoder
    return DiffusionGenerator(SHAPE, tiny_network(4), autoencoder, num_inference_steps=3, **kwargs)


def training_of(generator: DiffusionGenerator, **kwargs: Any) -> MAGDTraining:
    arguments = {"train_mb_size": 8, "train_iterations": 3, "seed": 0}
    small = Distillation(pool_size=12, num_inference_steps=3)
    return MAGDTraining(
        model=generator,
        optimizer=torch.optim.AdamW(generator.network.parameters(), lr=1e-3),
        **{"distillation": small, **arguments, **kwargs},
    )


@pytest.fixture(scope="module")
def colour_digits() -> Any:
    def colour(image: Tensor) -> Tensor:
        return image.repeat(3, 2, 2) * 4 - 1  # from −1 to 3

    return split_digits(5, seed=0, train_transform=colour, eval_transform=colour)


@pytest.mark.parametrize(
    ("build", "encoded"),
    [(tiny_autoencoder, latents_of_tiny), (tiny_variational, latents_of_variational)],
)
def test_images_go_through_the_autoencoder_and_back(build: Any, encoded: Any) -> None:
    autoencoder = build()
    reference = copy.deepcopy(autoencoder).eval()
    generator = latent_generator(autoencoder)
    pixel_range = generator.pixel_range
    low, high = torch.tensor([-2.0, 0.0, 1.0]), torch.tensor([3.0, 1.0, 9.0])
    noise = torch.rand(40, *SHAPE)
    noise[0], noise[1] = 0.0, 1.0
    images = noise * (high - low)[:, None, None] + low[:, None, None]
    pixel_range.fit(images)
    x_0 = pixel_range.normalize(images)
    assert generator.latent_shape == (4, 8, 8)
    assert x_0.shape == (40, 4, 8, 8)
    torch.testing.assert_close(x_0.amin((0, 2, 3)), -torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(x_0.amax((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    with torch.no_grad():
        latents = encoded(reference, noise * 2 - 1)
        decoded = reference.decode(latents).sample.clamp(-1, 1)
    expected = (decoded + 1) / 2 * (high - low)[:, None, None] + low[:, None, None]
    torch.testing.assert_close(pixel_range.denormalize(x_0), expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(pixel_range.to_unit(images), noise, atol=1e-5, rtol=0)
    beyond = pixel_range.denormalize(100 * torch.randn(4, 4, 8, 8))
    assert bool((beyond.amin((0, 2, 3)) >= low - 1e-5).all())
    assert bool((beyond.amax((0, 2, 3)) <= high + 1e-5).all())


def test_latents_fill_the_models_range_wherever_they_lie() -> None:
    autoencoder = tiny_autoencoder()
    last = autoencoder.encoder.layers[-1]
    with torch.no_grad():
        last.weight.mul_(0.01)
        last.bias.fill_(0.5)  # so that all lie within [0, 1]
    pixel_range, images = latent_generator(autoencoder).pixel_range, torch.rand(20, *SHAPE)
    pixel_range.fit(images)
    x_0 = pixel_range.normalize(images)
    assert (x_0.min().item(), x_0.max().item()) == pytest.approx((-1, 1), abs=1e-3)


class PoolRecorder(SupervisedPlugin):
    """The shapes and extremes of a generator strategy's pools, as each is trained from."""

    def __init__(self) -> None:
        super().__init__()
        self.image_shapes: list[tuple[int, ...]] = []
        self.lesson_shapes: list[tuple[int, ...]] = []
        self.extremes: list[tuple[float, float]] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.pool is not None:
            images, lessons = strategy.pool.images, strategy.pool.lessons
            self.image_shapes.append(tuple(images.shape))
            self.lesson_shapes += [tuple(each.shape[1:]) for each in (lessons.x_t, lessons.target)]
            self.extremes.append((images.min().item(), images.max().item()))


@pytest.mark.filterwarnings("ignore:Latents go from")
@pytest.mark.parametrize("build", AUTOENCODERS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": MAGD(snr_band=(0.1, 9.0))},
        {"guidance": CGGD(classifier_scale=1.0)},
        {"guidance": CGGD(guidance_scale=1.5)},
        {"on_the_fly": True},
    ],
    ids=["nigd", "sggd", "classifier guidance", "classifier-free guidance", "on the fly"],
)
def test_the_plugin_replays_images_from_latents(
    colour_digits: Any, build: Any, settings: dict[str, Any]
) -> None:
    generator = latent_generator(build())
    autoencoder = generator.pixel_range.autoencoder
    frozen = {name: each.clone() for name, each in autoencoder.state_dict().items()}
    network = nn.utils.parameters_to_vector(generator.network.parameters()).detach().clone()
    recorder = PoolRecorder()
    distillation = Distillation(pool_size=12, num_inference_steps=3, **settings)
    training = training_of(generator, distillation=distillation, plugins=[recorder])
    strategy = naive([MAGDPlugin(training)], input_size=3 * 256, hidden_size=8)
    for experience in colour_digits.train_stream[:2]:
        strategy.train(experience)
    assert recorder.image_shapes == [(12, *SHAPE)]
    assert recorder.lesson_shapes == [(4, 8, 8)] * 2
    low, high = recorder.extremes[0]
    assert -1 - 1e-5 <= low < high <= 3 + 1e-5
    assert all(torch.equal(frozen[name], each) for name, each in autoencoder.state_dict().items())
    assert not torch.equal(nn.utils.parameters_to_vector(generator.network.parameters()), network)
    assert not any(module.training for module in autoencoder.modules())
    optimized = {id(each) for each in training.optimizer.param_groups[0]["params"]}
    assert optimized.isdisjoint(id(each) for each in autoencoder.parameters())
    assert generator.generate(4).shape == (4, *SHAPE)
    assert generator.get_features(torch.zeros(2, *SHAPE)).shape == (2, 8)


def test_a_lesson_takes_the_bytes_of_its_latents() -> None:
    generator, distillation = latent_generator(), Distillation(pool_size=10)
    pool = distillation.empty_pool(generator)
    pixels = DiffusionGenerator(SHAPE, tiny_network(3))
    assert pool.lessons.nbytes == 10 * 10 * (2 * 2 * 4 * 8 * 8 + 8 + 8 + 1 + 4)
    # The bound on a pool's memory counts lessons so, too.
    tight = Distillation(pool_size=10, max_pool_bytes=80_000)
    assert tight.lessons_per_image(generator) == (8_000 - 32 - 4 * 768) // (37 + 4 * 256) == 4
    assert tight.lessons_per_image(pixels) == (8_000 - 32 - 4 * 768) // (37 + 4 * 768) == 1


def test_the_default_network_of_a_generator_with_an_autoencoder_is_for_latents() -> None:
    generator = DiffusionGenerator(SHAPE, autoencoder=tiny_variational())
    assert generator.network.config.in_channels == generator.network.config.out_channels == 4
    with pytest.raises(ValueError, match="Images have 4 channels, the network takes 3"):
        DiffusionGenerator(SHAPE, tiny_network(3), tiny_variational())


def test_the_gradient_of_the_solver_reaches_latents_through_the_decoder() -> None:
    generator = latent_generator(tiny_variational())
    generator.add_classes([0, 1])
    solver = PastSolver(nn.Flatten(), generator, torch.device("cpu"), PhaseCost())
    x_0 = torch.zeros(2, 4, 8, 8, requires_grad=True)
    torch.testing.assert_close(
        solver(x_0, [0, 1]), generator.pixel_range.denormalize(x_0).flatten(1)[:, :2]
    )
    (gradient,) = torch.autograd.grad(solver(x_0, [0, 1]).sum(), x_0)
    assert gradient.abs().max() > 0


def test_images_of_a_pool_are_shown_to_the_solver_as_they_are() -> None:
    generator = latent_generator()
    generator.add_classes([0, 1])
    pool, images = Pool(4, 0, SHAPE, torch.device("cpu")), torch.rand(4, *SHAPE)
    pool.write(torch.arange(4), images, torch.tensor([0, 1, 0, 1]))
    pool.end_pass()
    solver = PastSolver(nn.Flatten(), generator, torch.device("cpu"), PhaseCost())
    assert torch.equal(solver.logits_of_pool(pool), images.flatten(1)[:, :2])


@pytest.mark.parametrize("build", AUTOENCODERS)
def test_a_saved_generator_brings_its_autoencoder(
    colour_digits: Any, tmp_path: Path, build: Any
) -> None:
    generator = latent_generator(build())
    training_of(generator).train(colour_digits.train_stream[0], eval_streams=[])
    generator.save_pretrained(tmp_path)
    again = DiffusionGenerator.from_pretrained(tmp_path)
    assert type(again.pixel_range.autoencoder) is type(build())
    images = [
        each.generate(4, rng=torch.Generator().manual_seed(0)) for each in (generator, again)
    ]
    assert torch.equal(*images)
    DiffusionGenerator((3, 8, 8), tiny_network(3)).save_pretrained(tmp_path)
    assert DiffusionGenerator.from_pretrained(tmp_path).latent_shape == (3, 8, 8)


def test_a_folder_chooses_among_diffusers_autoencoders_only(tmp_path: Path) -> None:
    latent_generator().save_pretrained(tmp_path)
    config = tmp_path / "autoencoder" / "config.json"
    for name in ("UNet2DModel", "logging", "no_such_class", "DiffusionPipeline"):
        config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": name}))
        with pytest.raises(ValueError, match=f"names '{name}', which is no autoencoder of diff"):
            DiffusionGenerator.from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore:Latents go from")
def test_metrics_and_pictures_show_images(colour_digits: Any) -> None:
    plugin = MAGDPlugin(training_of(latent_generator()))
    classifier = train_evaluation_classifier(colour_digits.train_stream[:2])
    compared: list[Tensor] = []

    def features(images: Tensor) -> Tensor:
        compared.append(images)
        return images.flatten(1)[:, :8]

    evaluator = EvaluationPlugin(
        accuracy_metrics(stream=True),
        generation_metrics(plugin, classifier, features=features),
        loggers=[],
    )
    strategy = naive([plugin], input_size=3 * 256, hidden_size=8, evaluator=evaluator)
    for experience in colour_digits.train_stream[:2]:
        strategy.train(experience)
    results = strategy.eval(colour_digits.test_stream[:2])
    (grid,) = (each for name, each in results.items() if name.startswith("SampleGrid"))
    # Images of three channels, not latents of four: a picture of the first would be gray.
    assert (grid.image.float().std(0) > 0).any()
    assert {tuple(each.shape[1:]) for each in compared} == {SHAPE}
    assert all(each.min() >= 0 and each.max() <= 1 for each in compared)
    assert max(each.max() for each in compared) > 0.99


def test_latents_beyond_the_range_of_the_first_experience_cause_a_warning() -> None:
    def experience(scale: float, label: int) -> Any:
        images = torch.rand(12, *SHAPE) * scale
        dataset = AvalancheDataset(
            [TensorDataset(images, torch.full((12,), label))],
            data_attributes=[DataAttribute([label] * 12, "targets")],
        )
        return benchmark_from_datasets(train=[dataset]).streams["train"][0]

    autoencoder = tiny_autoencoder()
    generator = latent_generator(autoencoder)
    generator.pixel_range.pixels.set(torch.zeros(3), torch.full((3,), 10.0))
    training = training_of(generator)
    training.train(experience(1.0, 0), eval_streams=[])
    with pytest.warns(UserWarning, match=r"Latents go from .* `generator\.pixel_range\.set\(low"):
        training.train(experience(10.0, 1), eval_streams=[])
    generator.pixel_range.set(torch.full((4,), -9.0), torch.full((4,), 9.0))
    training.train(experience(10.0, 2), eval_streams=[])
    with pytest.warns(
        UserWarning, match=r"Pixels go from .* `generator\.pixel_range\.pixels\.set"
    ):
        generator.pixel_range.check([15 * torch.rand(SHAPE)])


def test_images_that_an_autoencoder_does_not_give_back_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Images have 1 channels, the autoencoder takes 3: .*rep"
    ):
        DiffusionGenerator((1, 16, 16), autoencoder=tiny_autoencoder())
    with pytest.raises(ValueError, match="15×16 pixels come back from the autoencoder as 14×16"):
        DiffusionGenerator((3, 15, 16), autoencoder=tiny_variational())

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = tiny_autoencoder()
            self.config, self.dtype, self.device = inner.config, inner.dtype, inner.device
            self.encode, self.decode = inner.encode, inner.decode

    with pytest.raises(TypeError, match="needs an autoencoder of diffusers, this one is a Own"):
        latent_generator(Own()).save_pretrained(tmp_path)


def overflowing() -> AutoencoderTiny:
    """An autoencoder whose latents are infinite where images are bright."""
    autoencoder = tiny_autoencoder()
    encode = autoencoder.encode

    def overflow(images: Tensor) -> Any:
        latents = encode(images).latents
        latents[images.mean((1, 2, 3)) > 0.5] = torch.inf
        return SimpleNamespace(latents=latents)

    autoencoder.encode = overflow
    return autoencoder


def test_latents_that_are_not_finite_are_refused_before_a_range_is_set() -> None:
    generator, images = latent_generator(overflowing()), 0.5 * torch.rand(12, *SHAPE)
    images[0], images[1] = 0, 1
    dataset = AvalancheDataset(
        [TensorDataset(images, torch.zeros(12, dtype=torch.int64))],
        data_attributes=[DataAttribute([0] * 12, "targets")],
    )
    message = "makes of the image in row 1 of the experience's dataset has values that are not fin"
    with pytest.raises(ValueError, match=message):
        generator.check_dataset(dataset)
    assert generator.pixel_range.ends == {"pixels": None, "latents": None}
    generator.pixel_range.pixels.set(0, 1)
    generator.pixel_range.set(-1, 1)
    with pytest.raises(ValueError, match=message):
        generator.check_dataset(dataset)
    with pytest.raises(
        ValueError, match=r"makes of a batch of images has .*Use an autoencoder whose"
    ):
        generator.pixel_range.normalize(images)
    with pytest.raises(ValueError, match="Image 3 has values that are not finite"):
        generator.pixel_range.check([*images[2:5], torch.full(SHAPE, torch.nan)])


def test_latents_that_are_all_the_same_leave_no_range_of_pixels() -> None:
    generator = latent_generator()
    last = generator.pixel_range.autoencoder.encoder.layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    with pytest.raises(ValueError, match="there is nothing to learn"):
        generator.pixel_range.fit(torch.rand(12, *SHAPE) * 9)
    assert generator.pixel_range.ends == {"pixels": None, "latents": None}
    assert not generator.pixel_range.known


def test_a_guess_of_the_pixels_range_names_what_sets_it() -> None:
    generator = latent_generator()
    for scale in (0.01, 200):
        images = scale * torch.rand(30, *SHAPE)
        images[3, 0, 0, 0] = -9999
        with pytest.warns(UserWarning, match="pixel_range.pixels.set") as told:
            generator.pixel_range.fit(images, anew=True)
        assert len(told) == (2 if scale < 1 else 1)
        assert generator.pixel_range.pixels.high.max().item() == pytest.approx(scale, rel=0.1)
