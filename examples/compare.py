"""Comparison: Avalanche's methods and this package's, with the same solver, epochs and seeds.

Any of these methods, on any of the benchmarks:

* bounds: ``naive``, ``joint``, ``cumulative``;
* Avalanche's methods with a buffer of as many images as the name says: ``replay-500``,
  ``der-500``, ``er_ace-500``, ``gdumb-500``, ``icarl-500``;
* its methods without one: ``ewc``, ``lwf``, ``si``;
* its generative replay by a VAE: ``vae`` as shipped, ``strong_vae`` as strong as we could make it;
* this package: ``magd`` is ``MAGDPlugin()``; the others are its modes, with the same generator,
  steps and pool; ``…_published`` makes its lessons anew in each step.

Each finished run is a line of JSON in ``<output>/<benchmark>.jsonl``; a study that is interrupted
or extended runs only what is missing. Table and figures are made from these lines: final accuracy,
forgetting, bytes kept between experiences, quality of what is generated, cost.

``--seconds`` gives each generator as many training steps per experience as fit, by a calibration
on this machine at the beginning of each run, pool included.

``--paper-scale`` gives everything the size of published studies on colour images: generators of
38 million parameters, batches of 64, a ResNet-18 as solver. It needs a GPU, and a budget of yours.

Needs no download for digits, where a run takes seconds to minutes on two CPU cores.

    python examples/compare.py --methods naive joint replay-100 magd --seeds 0 1 2

Several processes or GPUs share the work of each run under ``torchrun --nproc_per_node N``.
"""

import argparse
import copy
import re
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics
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
from avalanche.training.plugins import GenerativeReplayPlugin
from diffusers import UNet2DModel
from matplotlib.figure import Figure
from study import (
    ACCURACY,
    FORGETTING,
    Solver,
    add_arguments,
    finish,
    key_of,
    load,
    mean_and_error,
    results_table,
    settings_of,
    silent_evaluator,
)
from torch import nn
from torchvision.models import resnet18

from avalanche_magd import DiffusionGenerator, MAGDPlugin, MAGDTraining
from avalanche_magd.distillation import MAGD, Distillation, baselines
from avalanche_magd.metrics import Judge, generation_metrics, train_judge
from avalanche_magd.networks import default_network
from avalanche_magd.pictures import DPI, draw_curves
from avalanche_magd.plugin import ITERATIONS_PER_PIXEL, MIN_ITERATIONS
from avalanche_magd.processes import Processes, is_main_process, process_count
from avalanche_magd.runs import environment

MODES: dict[str, dict[str, Any]] = {
    "magd": {},
    "magd_sggd": {"mode": MAGD(snr_band=(0.01, 30.0))},
    "magd_without_nigd": {"mode": MAGD(trajectory_share=0.0)},
    "magd_without_cggd": {"conditional": False},
    "fine_tuning": {"mode": None},
}
for _name in (
    "dgr",
    "generative_distillation",
    "partial_generation",
    "gaussian_distillation",
    "lwf_distillation",
):
    MODES[_name] = {"mode": getattr(baselines, _name)}
MODES["ddgr"] = {"mode": baselines.dgr, "classifier_scale": 1.0}
MODES |= {
    f"{name}_published": {**mode, "fresh": True}
    for name, mode in MODES.items()
    if not name.startswith(("magd", "fine"))
}
BUFFERS = ("replay", "der", "er_ace", "gdumb", "icarl")
OTHERS = ("naive", "joint", "cumulative", "ewc", "lwf", "si", "vae", "strong_vae")
DEFAULT = ["naive", "joint", "replay-200", "replay-500", "vae", "strong_vae", "magd"]
FORMS = {
    "accuracy": ".3f",
    "forgetting": ".3f",
    "kept MB": ".2f",
    "FrechetDistance": ".2f",
    "FrechetDistanceForgetting": ".2f",
    "LabelAgreement": ".3f",
    "teacher forwards": ",.0f",
    "generator steps": ",.0f",
    "seconds": ",.0f",
}


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


def vae(known: Known, strong: bool) -> Method:
    """Avalanche's generative replay: its default generator, or the best we found.

    The best of eight settings on digits, two seeds, has a wider latent space, four times the
    epochs and a smaller learning rate: 0.88 instead of 0.64.
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
        plugins=[GenerativeReplayPlugin()],
        device=known.common["device"],
        evaluator=silent_evaluator(),
    )
    strategy = GenerativeReplay(generator_strategy=learner, **known.common)
    return Method(strategy, lambda: weight_bytes(network))


def ours(name: str, known: Known, seed: int, iterations: int | None) -> Method:
    """``MAGDPlugin()``, its distillation changed if the name says so."""
    arguments = known.arguments
    budget = {} if arguments.pool_size is None else {"pool_size": arguments.pool_size}
    if arguments.paper_scale:
        generator = DiffusionGenerator(
            known.image_shape, large_network(known.image_shape[0], known.image_shape[1])
        )
        training = MAGDTraining(
            model=generator,
            optimizer=torch.optim.AdamW(generator.parameters(), lr=2e-4, fused=True),
            train_mb_size=known.common["train_mb_size"],
            train_iterations=20_000 if iterations is None else iterations,
            ema_decay=0.9999,
            distillation=Distillation(**budget, **MODES[name]),
            device=arguments.device,
            seed=seed,
            progress=False,
        )
        plugin = MAGDPlugin(training, seed=seed)
    else:
        plugin = MAGDPlugin(generator_iterations=iterations, seed=seed, progress=False, **budget)
        plugin.distillation = replace(plugin.distillation, **MODES[name])
    strategy = Naive(plugins=[plugin], **known.common)
    return Method(strategy, lambda: weight_bytes(plugin.generator), plugin)


def build(name: str, known: Known, seed: int, iterations: int | None) -> Method:
    """A method by its name."""
    if name in MODES:
        return ours(name, known, seed, iterations)
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
    if arguments.paper_scale:
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


def steps_within(name: str, seed: int, arguments: argparse.Namespace) -> int:
    """The generator's steps per experience that fit into ``--seconds``, pool included.

    Timed on this machine, on two small experiences with a past; the slower one counts. Time that
    a processor gives to other programs does not.
    """
    steps, images = (2, 20) if arguments.smoke else (20, 200)
    small = {"pool_size": images, "images_per_class": 100, "epochs": 1}
    small_arguments = argparse.Namespace(**{**vars(arguments), **small})
    benchmark = load(small_arguments, arguments.experiences, seed)
    known = known_of(benchmark, seed, small_arguments)
    known.common["evaluator"] = silent_evaluator()
    method = ours(name, known, seed, steps)
    assert method.plugin is not None
    timed = []
    for experience in benchmark.train_stream[:3]:
        before = copy.deepcopy(method.plugin.cost)
        clock, processor = time.perf_counter(), time.process_time()
        method.strategy.train(experience, eval_streams=[])
        clock, processor = time.perf_counter() - clock, time.process_time() - processor
        busy = min(1.0, processor / clock) if arguments.device == "cpu" else 1.0
        generation, replay, training = (
            getattr(method.plugin.cost, phase).seconds - getattr(before, phase).seconds
            for phase in ("generation", "replay", "training")
        )
        if MODES[name].get("fresh"):  # lessons are made within the steps
            timed.append((busy * replay / images, busy * (training + generation) / steps))
        else:
            timed.append((busy * (replay + generation) / images, busy * training / steps))
    per_image, per_step = (max(column) for column in zip(*timed[1:], strict=True))
    pool = arguments.pool_size or Distillation.pool_size
    steps = max(1, int((arguments.seconds - pool * per_image) / per_step))
    if process_count() > 1:  # the main process's clock counts
        (shared,) = Processes().share([torch.tensor(steps)], 0, torch.device("cpu"))
        steps = int(shared)
    return steps


def run(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on the stream, experience by experience, and evaluate on the classes seen so far."""
    iterations = arguments.iterations
    if arguments.seconds is not None and name in MODES:
        iterations = steps_within(name, seed, arguments)
    benchmark = load(arguments, arguments.experiences, seed)
    known = known_of(benchmark, seed, arguments)
    metrics: list[Any] = [
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(stream=True),
        bwt_metrics(stream=True),
    ]
    known.common["evaluator"] = evaluator = silent_evaluator(*metrics)
    method = build(name, known, seed, iterations)
    if method.plugin is not None:
        judge = judge_of(arguments)
        images = 20 if arguments.smoke else 500
        evaluator.metrics += generation_metrics(method.plugin, judge, images=images, samples=False)
    start, evaluating, accuracies = time.perf_counter(), 0.0, []
    stream = benchmark.train_stream
    for step in [stream] if name == "joint" else stream:
        with warnings.catch_warnings(record=True):  # Avalanche's, of its own deprecated calls
            method.strategy.train(step, eval_streams=[])
        seen = len(stream) if step is stream else step.current_experience + 1
        began = time.perf_counter()
        values = method.strategy.eval(benchmark.test_stream[:seen])
        evaluating += time.perf_counter() - began
        accuracies.append(values[ACCURACY])
    line = {
        "name": name,
        "seed": seed,
        "accuracy": accuracies[-1],
        "accuracies": accuracies,
        "forgetting": values[FORGETTING] if len(accuracies) > 1 else None,
        "seconds": time.perf_counter() - start - evaluating,
        "kept MB": method.kept() / 1e6,
        "values": {name: float(value) for name, value in values.items()},
        "settings": settings_of(arguments, ["methods"]),
        "environment": environment(arguments.device),
    }
    if method.plugin is not None:
        cost, training = method.plugin.cost, method.plugin.generator_strategy
        assert training is not None
        line |= {
            "teacher forwards": cost.generation.forwards + cost.replay.forwards,
            "generator steps": training.train_iterations,
            "generator seconds": cost.seconds,
        }
        found = {key.split("_Stream/")[0]: value for key, value in values.items()}
        line |= {key: found[key] for key in FORMS if key in found}
    return line


def recipe(name: str, image_shape: tuple[int, int, int]) -> str:
    """Defaults of the package that a method's results depend on: others are other runs."""
    if name not in MODES:
        return ""
    network = default_network(image_shape).config
    settings = {key: value for key, value in network.items() if not key.startswith("_")}
    return repr((Distillation(**MODES[name]), ITERATIONS_PER_PIXEL, MIN_ITERATIONS, settings))


def judge_of(arguments: argparse.Namespace) -> Judge:
    """Trained on all real images; kept in the output folder."""
    benchmark = load(arguments, 1, 0)
    file = arguments.output / f"judge-{arguments.benchmark}.pt"
    return train_judge(benchmark.train_stream, file=file, device=arguments.device)


def draw(runs: dict[str, list[dict[str, Any]]], folder: Path, title: str) -> list[Path]:
    """Accuracy after each experience; final accuracy by what is kept, and by seconds."""
    curves = {
        name: [dict(enumerate(line["accuracies"], 1)) for line in lines]
        for name, lines in runs.items()
    }
    figures = {f"{title}-accuracy.png": draw_curves(curves, "accuracy")}
    for column, label in (("kept MB", "megabytes kept"), ("seconds", "seconds of training")):
        figure = Figure((6.4, 4.4), layout="constrained")
        axis = figure.subplots()
        for name, lines in runs.items():
            accuracy, error = mean_and_error([line["accuracy"] for line in lines])
            where = statistics.mean(line[column] for line in lines)
            axis.errorbar(where, accuracy, yerr=error, fmt="o", markersize=4)
            axis.annotate(name, (where, accuracy), (4, 3), textcoords="offset points", size=7)
        axis.set(xlabel=label, ylabel="final accuracy")
        axis.set_xscale("symlog", linthresh=0.01) if column == "kept MB" else axis.set_xscale(
            "log"
        )
        axis.margins(x=0.15)
        axis.grid(alpha=0.3)
        figures[f"{title}-{column.split()[0]}.png"] = figure
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=DPI)
    return [folder / name for name in figures]


def method_name(name: str) -> str:
    """A method's name, checked."""
    buffer = re.fullmatch(rf"({'|'.join(BUFFERS)})-[1-9]\d*", name)
    if buffer or name in MODES or name in OTHERS:
        return name
    raise argparse.ArgumentTypeError(
        f"no method {name!r}; there are {', '.join([*OTHERS, *MODES])}, and with a number of "
        f"stored images {', '.join(f'{each}-500' for each in BUFFERS)}"
    )


def main() -> None:
    """Run what is missing, print the table, draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--methods", nargs="+", type=method_name, default=DEFAULT)
    parser.add_argument("--epochs", type=int, help="of the solver; default: 20 for digits, else 2")
    parser.add_argument("--iterations", type=int, help="of the generator; default: the plugin's")
    parser.add_argument("--pool-size", type=int, help="default: the plugin's")
    parser.add_argument("--seconds", type=float, help="of a generator, per experience; see above")
    parser.add_argument("--paper-scale", action="store_true", help="see above")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("results/compare"))
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.epochs, arguments.iterations, arguments.pool_size = 1, 3, 20
        arguments.seeds = arguments.seeds[:1]
    elif arguments.epochs is None:
        arguments.epochs = 20 if arguments.benchmark == "digits" else 2
    arguments.output.mkdir(parents=True, exist_ok=True)
    judge_of(arguments)
    image, *_ = load(arguments, 1, 0).train_stream[0].dataset[0]
    tasks = {
        (name, seed): key_of(arguments, ["methods"], name, seed, recipe(name, tuple(image.shape)))
        for name in arguments.methods
        for seed in arguments.seeds
    }
    lines = finish(
        arguments.output / f"{arguments.benchmark}.jsonl",
        {key: (name, seed, arguments) for (name, seed), key in tasks.items()},
        run,
        arguments.jobs,
    )
    runs = {
        name: [lines[tasks[name, seed]] for seed in arguments.seeds] for name in arguments.methods
    }
    if not is_main_process():
        return
    written = results_table(runs, FORMS)
    (arguments.output / f"{arguments.benchmark}.md").write_text(written + "\n")
    figures = draw(runs, arguments.output, arguments.benchmark)
    print(f"\n{written}\n\nFigures: {', '.join(map(str, figures))}")


if __name__ == "__main__":
    main()
