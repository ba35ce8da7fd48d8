"""The methods that ``compare.py`` compares, each by its name.

* bounds: ``naive``, ``joint``, ``cumulative``;
* Avalanche's methods with a buffer of as many images as the name says: ``replay-500``,
  ``der-500``, ``er_ace-500``, ``gdumb-500``, ``icarl-500``; ``balanced_replay-500`` draws so many
  of them that in the last experience each class has the same rows in a mini-batch, as MAGD does in
  each; ``served_replay-500`` has them in the places of MAGD's generated rows, in mini-batches that
  are sized as MAGD's are;
* its methods without one: ``ewc``, ``lwf``, ``si``;
* its generative replay by a VAE: ``vae`` as shipped, ``strong_vae`` as strong as we could make it;
* this package: ``magd`` is ``MAGDPlugin()``. The others, in groups, differ from it by what
  :data:`GROUPS` says: ``modes`` are the field's methods, ``…_published`` makes its lessons on the
  fly, in each step; the other groups change one part or argument of MAGD at a time. MAGD without
  NIGD is ``generative_distillation``.
"""

import argparse
import json
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import MlpVAE
from avalanche.models.generator import VAE_loss
from avalanche.training import (
    DER,
    ER_ACE,
    EWC,
    Cumulative,
    GDumb,
    GenerativeReplay,
    ICaRL,
    JointTraining,
    LwF,
    Naive,
    Replay,
    SynapticIntelligence,
    VAETraining,
)
from avalanche.training.plugins import GenerativeReplayPlugin, ReplayPlugin
from diffusers import UNet2DModel
from study import Solver, silent_evaluator
from torch import Tensor, nn
from torchvision.models import resnet18

from avalanche_magd import DiffusionGenerator, MAGDPlugin, MAGDTraining
from avalanche_magd.diffusion import DDIM, DPMSolver, UniPC
from avalanche_magd.diffusion.label_map import LabelMap, classes_of
from avalanche_magd.diffusion.networks import default_network
from avalanche_magd.distillation import CGGD, MAGD, Distillation, Pool, baselines
from avalanche_magd.replay import MiniBatches, ReplayLoader
from avalanche_magd.replay import Replay as ReplayRows
from avalanche_magd.replay.mini_batches import AS_IN_0_1
from avalanche_magd.runtime.random_state import seeded
from avalanche_magd.training.defaults import default_iterations
from avalanche_magd.training.optimizers import MUON_RATE, default_dtype, teaching


@dataclass(frozen=True)
class Row:
    """What differs from ``MAGDPlugin()``: arguments of the four things that it is made of.

    With a rate for it, AdamW alone teaches the generator, as in version 0.1.
    """

    distillation: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    generator: dict[str, Any] = field(default_factory=dict)
    mini_batches: dict[str, Any] = field(default_factory=dict)
    adamw_rate: float | None = None


SAMPLERS: dict[str, Any] = {"unipc": UniPC(), "dpmpp_2m": DPMSolver(), "ddim": DDIM()}
BASELINES: dict[str, dict[str, Any]] = {
    "dgr": {"mode": baselines.dgr},
    "ddgr": {"mode": baselines.dgr, "guidance": CGGD(classifier_scale=1.0)},
    "generative_distillation": {"mode": baselines.generative_distillation},
    "partial_generation": {"mode": baselines.partial_generation},
    "gaussian_distillation": {"mode": baselines.gaussian_distillation},
    "lwf_distillation": {"mode": baselines.lwf_distillation},
}
FIRST_RATE = 2e-3
"""The learning rate of AdamW, which taught all weights of a generator in version 0.1."""
GROUPS: dict[str, dict[str, Row]] = {
    "modes": {
        "magd": Row(),
        "fine_tuning": Row({"mode": None}),
        **{name: Row(mode) for name, mode in BASELINES.items()},
        **{
            f"{name}_published": Row({**mode, "on_the_fly": True})
            for name, mode in BASELINES.items()
        },
    },
    "parts": {
        "magd_sggd": Row({"mode": MAGD(snr_band=(0.01, 30.0))}),
        "magd_noisy_sggd": Row({"mode": MAGD(snr_band=(0.01, math.inf))}),
        "magd_clean_sggd": Row({"mode": MAGD(snr_band=(0.0, 30.0))}),
        "magd_half_nigd": Row({"mode": MAGD(trajectory_share=0.5)}),
        "magd_without_cggd": Row({"guidance": CGGD(conditional=False)}),
        "guidance-1.5": Row({"guidance": CGGD(guidance_scale=1.5)}),
        "classifier_guidance-2": Row({"guidance": CGGD(classifier_scale=2.0)}),
    },
    "samplers": {
        f"{name}-{steps}": Row({"sampler": sampler, "num_inference_steps": steps})
        for name, sampler in SAMPLERS.items()
        for steps in (5, 10, 20)
        if (name, steps) != ("unipc", 10)
    },
    "losses": {
        "replay_weight-0.25": Row({"replay_weight": 0.25}),
        "replay_weight-4": Row({"replay_weight": 4.0}),
    },
    "teachers": {
        "not_averaged": Row(training={"ema_decay": 0.0}),
        "fresh": Row({"on_the_fly": True}),  # the name that its recorded lines have
    },
    "predictions": {
        "epsilon": Row(generator={"prediction_type": "epsilon"}),
        "epsilon_linear": Row(generator={"prediction_type": "epsilon", "beta_schedule": "linear"}),
        "sample": Row(generator={"prediction_type": "sample"}),
        "bfloat16": Row(generator={"dtype": torch.bfloat16}),
    },
    "optimizers": {
        "adamw": Row(adamw_rate=FIRST_RATE),
        "constant_rates": Row(training={"plugins": []}),
        "float32": Row(generator={"dtype": torch.float32}),
    },
    "solver": {
        "generated_share-0": Row(mini_batches={"generated_share": 0.0}),
        "generated_share-0.33": Row(mini_batches={"generated_share": 0.33}),
        "generated_share-0.75": Row(mini_batches={"generated_share": 0.75}),
    },
    "mini_batches": {
        "0.1": Row(mini_batches=asdict(AS_IN_0_1)),
        "whole": Row(mini_batches={"size": math.inf}),
        "size-32": Row(mini_batches={"size": 32}),
        "size-64": Row(mini_batches={"size": 64}),
        "size-128": Row(mini_batches={"size": 128}),
        "real_weight-0": Row(mini_batches={"real_weight": 0.0}),
        "real_weight-0.1": Row(mini_batches={"real_weight": 0.1}),
        "real_weight-1": Row(mini_batches={"real_weight": 1.0}),
        "soft_labels-0": Row(mini_batches={"soft_label_weight": 0.0}),
        "soft_labels-2": Row(mini_batches={"soft_label_weight": 2.0}),
        "prioritized-0": Row(mini_batches={"prioritized_share": 0.0}),
    },
}
ROWS = {name: row for group in GROUPS.values() for name, row in group.items()}
BUFFERS = ("replay", "balanced_replay", "served_replay", "der", "er_ace", "gdumb", "icarl")
OTHERS = ("naive", "joint", "cumulative", "ewc", "lwf", "si", "vae", "strong_vae")


class Known(NamedTuple):
    """What a method may know when it is built."""

    common: dict[str, Any]
    """Model, optimizer and the rest that all strategies take."""
    image_shape: tuple[int, int, int]
    classes: int
    images: int
    """In the whole training stream."""
    steps: float
    """Mini-batches of an experience's epoch."""
    arguments: argparse.Namespace


class Method(NamedTuple):
    """A strategy, and what it keeps between experiences beside the solver."""

    strategy: Any
    kept: Callable[[], int]
    """In bytes."""
    plugin: MAGDPlugin | None = None


def image_bytes(known: Known, images: int) -> int:
    """Of stored images: eight bits a value, and a label."""
    return min(images, known.images) * (torch.Size(known.image_shape).numel() + 1)


def weight_bytes(module: nn.Module) -> int:
    """Of a network in single precision."""
    return sum(each.nbytes for each in module.parameters())


def with_buffer(name: str, size: int, known: Known) -> Method:
    """Avalanche's methods that store images."""
    common, batch = dict(known.common), known.common["train_mb_size"]
    stored = image_bytes(known, size)
    if name == "replay":
        strategy = Replay(mem_size=size, **common)
    elif name == "served_replay":
        strategy = Naive(plugins=[ServedReplay(size, known)], **common)
    elif name == "balanced_replay":
        old = batch * (known.arguments.experiences - 1)
        strategy = Naive(plugins=[ReplayPlugin(size, batch_size_mem=old)], **common)
    elif name == "der":
        strategy = DER(mem_size=size, batch_size_mem=batch, **common)
        stored += min(size, known.images) * known.classes * 4  # logits
    elif name == "er_ace":
        strategy = ER_ACE(mem_size=size, batch_size_mem=batch, **common)
    elif name == "gdumb":
        # It trains on its buffer alone: as many steps as the others have.
        epochs = known.steps * common["train_epochs"] * batch / min(size, known.images)
        strategy = GDumb(mem_size=size, **{**common, "train_epochs": max(1, round(epochs))})
    else:
        model = common.pop("model")
        common.pop("criterion")
        extractor = nn.Sequential(model.body, nn.ReLU())
        strategy = ICaRL(
            feature_extractor=extractor,
            classifier=model.head,
            memory_size=size,
            buffer_transform=None,
            fixed_memory=True,
            **common,
        )
    return Method(strategy, lambda: stored)


class ServedReplay(SupervisedPlugin):
    """Stored real images join mini-batches as MAGD's generated ones do, and are served in parts.

    As many of each class are kept, chosen at random when their experience ends.
    """

    def __init__(self, size: int, known: Known) -> None:
        super().__init__()
        self.size = size
        self.image_shape = known.image_shape
        self.label_map = LabelMap()
        self.images: dict[int, Tensor] = {}
        self.rng = torch.Generator(known.common["device"])
        self.replay: ReplayRows | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """The stored images become a pool."""
        self.replay = None
        if self.images:
            device = strategy.device
            images = torch.cat([*self.images.values()])
            counts = torch.tensor([len(each) for each in self.images.values()])
            labels = torch.tensor([*self.images]).repeat_interleave(counts).to(device)
            pool = Pool(len(labels), 0, self.image_shape, device)
            pool.write(torch.arange(len(labels), device=device), images, labels)
            pool.end_pass()
            now = len(classes_of(strategy.experience.dataset))
            self.replay = ReplayRows(pool, None, now, MiniBatches())

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Wrap the data loader."""
        images = self.replay, self.image_shape, self.label_map
        strategy.dataloader = ReplayLoader(strategy, *images, self.rng)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Stored images leave the mini-batch."""
        if self.replay is not None:
            self.replay.leave(strategy)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Store images of the new classes, and fewer of the old ones."""
        dataset = strategy.experience.dataset.eval()
        targets = torch.tensor([int(label) for label in dataset.targets])
        self.label_map = self.label_map.with_classes(sorted(classes_of(dataset)))
        each = self.size // len(self.label_map.ids)
        ids = self.label_map.ids_of(targets)
        for number in sorted(set(ids.tolist())):
            rows = (ids == number).nonzero()[:, 0]
            chosen = rows[torch.randperm(len(rows), generator=self.rng)[:each]]
            self.images[number] = torch.stack([dataset[row][0] for row in chosen.tolist()])
        self.images = {number: images[:each] for number, images in self.images.items()}


def vae(known: Known, strong: bool) -> Method:
    """Avalanche's generative replay: its default generator, or the best we found.

    That has a wider latent space, four times the epochs, a smaller learning rate, and as many
    generated rows for each earlier experience as there are real ones: of eight settings on digits
    and seven on a part of Fashion-MNIST none does better on both.
    """
    network = MlpVAE(known.image_shape, nhid=32 if strong else 2)
    learner = VAETraining(
        model=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=1e-3)
        if strong
        else torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=1e-4),
        criterion=VAE_loss,
        train_mb_size=known.common["train_mb_size"],
        train_epochs=known.common["train_epochs"] * (4 if strong else 1),
        plugins=[GenerativeReplayPlugin(increasing_replay_size=strong)],
        device=known.common["device"],
        evaluator=silent_evaluator(),
    )
    strategy = GenerativeReplay(
        generator_strategy=learner, increasing_replay_size=strong, **known.common
    )
    return Method(strategy, lambda: weight_bytes(network))


def with_magd(name: str, known: Known, seed: int, iterations: int | None) -> Method:
    """``MAGDPlugin()``, changed as the row says."""
    arguments, row = known.arguments, ROWS[name]
    budget = {} if arguments.pool_size is None else {"pool_size": arguments.pool_size}
    distillation = Distillation(**budget, **row.distillation)
    training = training_of(row, known, seed, iterations, distillation)
    training.progress = False
    plugin = MAGDPlugin(training, mini_batches=mini_batches_of(name, arguments.old), seed=seed)
    strategy = Naive(plugins=[plugin], **known.common)
    return Method(strategy, lambda: weight_bytes(training.model), plugin)


def mini_batches_of(name: str, old: bool) -> MiniBatches:
    """The default ones or those of 0.1, changed as the row says."""
    return replace(AS_IN_0_1 if old else MiniBatches(), **ROWS[name].mini_batches)


def training_of(
    row: Row, known: Known, seed: int, iterations: int | None, distillation: Distillation
) -> MAGDTraining:
    """What ``MAGDPlugin()`` builds by itself, changed as the row says; or one at paper scale."""
    shape, device = known.image_shape, torch.device(known.arguments.device)
    large, old = known.arguments.paper_scale, known.arguments.old
    scale = {"train_mb_size": known.common["train_mb_size"], "ema_decay": 0.9999} if large else {}
    dtype = torch.bfloat16 if large else None if old else default_dtype(device)
    with seeded(seed, device):  # as default_training does
        network = large_network(shape[0], shape[1]) if large else None
        generator = DiffusionGenerator(shape, network, **{"dtype": dtype, **row.generator})
        generator.num_inference_steps = distillation.num_inference_steps
    if rate := 2e-4 if large else FIRST_RATE if old else row.adamw_rate:
        taught = {"optimizer": torch.optim.AdamW(generator.parameters(), lr=rate, fused=True)}
    else:
        taught = teaching(generator.to(device), device)
    return MAGDTraining(
        model=generator,
        train_iterations=iterations or (20_000 if large else iterations_of(shape, old)),
        distillation=distillation,
        device=device,
        seed=seed,
        **{**taught, **scale, **row.training},
    )


def iterations_of(image_shape: tuple[int, int, int], old: bool) -> int:
    """Training steps of an experience: the default ones or those of 0.1."""
    return max(400, 30 * max(image_shape[1:])) if old else default_iterations(image_shape)


def build(name: str, known: Known, seed: int, iterations: int | None) -> Method:
    """A method by its name."""
    if name in ROWS:
        return with_magd(name, known, seed, iterations)
    kind, _, size = name.partition("-")
    if kind in BUFFERS:
        return with_buffer(kind, int(size), known)
    if kind.endswith("vae"):
        return vae(known, strong=kind.startswith("strong"))
    common, weights = known.common, weight_bytes(known.common["model"])
    everything, each = image_bytes(known, known.images), known.arguments.experiences
    if name == "ewc":
        return Method(EWC(ewc_lambda=100.0, **common), lambda: 2 * weights * each)
    if name == "lwf":
        return Method(LwF(alpha=1.0, temperature=2.0, **common), lambda: weights)
    if name == "si":
        return Method(SynapticIntelligence(si_lambda=1.0, **common), lambda: 2 * weights)
    if name == "naive":
        return Method(Naive(**common), lambda: 0)
    bound = {"joint": JointTraining, "cumulative": Cumulative}[name]
    return Method(bound(**common), lambda: everything)


def residual_network(channels: int) -> nn.Module:
    """ResNet-18 in its form for small images, as the body of a solver."""
    network = resnet18(num_classes=128)
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def large_network(channels: int, side: int) -> UNet2DModel:
    """The UNet of Ho et al. 2020 for CIFAR-10, its features scaled by class and time."""
    attends = [side >> level == 16 for level in range(4)]
    return UNet2DModel(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=["AttnDownBlock2D" if each else "DownBlock2D" for each in attends],
        up_block_types=["AttnUpBlock2D" if each else "UpBlock2D" for each in attends[::-1]],
        layers_per_block=2,
        dropout=0.1,
        attention_head_dim=256,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=1,
    )


def known_of(benchmark: Any, seed: int, arguments: argparse.Namespace) -> Known:
    """The same model, optimizer and settings for each method."""
    image, *_ = benchmark.train_stream[0].dataset[0]
    torch.manual_seed(seed)
    model = Solver(len(image), benchmark.n_classes)
    if arguments.paper_scale or arguments.solver == "resnet18":
        model.body = residual_network(len(image))
    batch = 64 if arguments.paper_scale else 32
    sizes = [len(experience.dataset) for experience in benchmark.train_stream]
    common = {
        "model": model,
        "criterion": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-3),
        "train_mb_size": batch,
        "eval_mb_size": 512,
        "train_epochs": arguments.epochs,
        "device": arguments.device,
    }
    steps = statistics.mean(sizes) / batch
    return Known(common, tuple(image.shape), benchmark.n_classes, sum(sizes), steps, arguments)


def recipe(name: str, image_shape: tuple[int, int, int], old: bool) -> str:
    """Defaults of the package that a method's results depend on: others are other runs.

    They are given in words of this file, so that a recorded run stays known when the package gives
    something another name.
    """
    if name not in ROWS:
        return ""
    rows, first = asdict(mini_batches_of(name, old)), asdict(AS_IN_0_1)
    changed = {key: value for key, value in rows.items() if value != first[key]}
    words = {**generator_words(ROWS[name], image_shape, old), "plugin": changed}
    return json.dumps(words, sort_keys=True)


def generator_words(row: Row, image_shape: tuple[int, int, int], old: bool) -> dict[str, Any]:
    """The same of what is generated, whatever the solver."""
    network = default_network(image_shape).config
    rate = FIRST_RATE if old else row.adamw_rate
    return {
        **distillation_words(Distillation(**row.distillation)),
        "training iterations": iterations_of(image_shape, old),
        **({"learning rate": rate} if rate else {"Muon's learning rate": MUON_RATE}),
        "network": {key: value for key, value in network.items() if not key.startswith("_")},
        "training": row.training,
        "generator": {key: str(value) for key, value in row.generator.items()},
    }


def distillation_words(distillation: Distillation) -> dict[str, Any]:
    """Each setting that a result depends on."""
    mode, guidance, sampler = distillation.mode, distillation.guidance, distillation.sampler
    if isinstance(mode, MAGD):
        lessons = {"trajectory share": mode.trajectory_share, "SNR band": mode.snr_band}
    else:
        names = [name for name, row in BASELINES.items() if row["mode"] is mode]
        lessons = {"mode": names[0] if mode else None}
    return {
        **lessons,
        "conditional": guidance.conditional,
        "guidance scale": guidance.guidance_scale,
        "classifier scale": guidance.classifier_scale,
        "pool size": distillation.pool_size,
        "pool bytes": distillation.max_pool_bytes,
        "inference steps": distillation.num_inference_steps,
        "sampler": next(name for name, each in SAMPLERS.items() if each == sampler),
        "replay weight": distillation.replay_weight,
        "on the fly": distillation.on_the_fly,
    }


def method_name(name: str) -> str:
    """A method's name, checked."""
    buffer = re.fullmatch(rf"({'|'.join(BUFFERS)})-[1-9]\d*", name)
    if buffer or name in ROWS or name in OTHERS:
        return name
    raise argparse.ArgumentTypeError(
        f"no method {name!r}; there are {', '.join([*OTHERS, *ROWS])}, and with a number of "
        f"stored images {', '.join(f'{each}-500' for each in BUFFERS)}"
    )
