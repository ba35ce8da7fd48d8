"""Any images: learn the classes of a benchmark in turn, and look at what the generator remembers.

One small convolutional solver with ``MAGDPlugin()`` on digits, Fashion-MNIST or a folder of images
(``ROOT/{train,test}/<class>/<image>``). Prints the accuracy on each experience's classes, and
writes a picture of generated images, a row per class, after each experience.

Needs no download for digits. Time grows with the image side: on two CPU cores minutes for digits,
a quarter of an hour or more per experience for 32 × 32 colour images.

    python examples/any_images.py --benchmark fashion_mnist --images-per-class 1000 --experiences 2
    python examples/any_images.py --benchmark folder --root my/images --image-size 32
"""

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.logging import TextLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_magd import DiffusionGenerator, MAGDPlugin
from avalanche_magd.benchmarks import split_digits, split_fashion_mnist, split_image_folder

IMAGES_PER_ROW = 10


def load(arguments: argparse.Namespace) -> Any:
    """The benchmark that was asked for."""
    settings = {"n_experiences": arguments.experiences, "seed": arguments.seed}
    if arguments.benchmark == "folder":
        if arguments.root is None:
            raise SystemExit("--benchmark folder needs --root.")
        return split_image_folder(arguments.root, image_size=arguments.image_size, **settings)
    if arguments.benchmark == "fashion_mnist":
        per_class = arguments.images_per_class
        return split_fashion_mnist(root=arguments.root, images_per_class=per_class, **settings)
    return split_digits(**settings)


def solver(channels: int, classes: int) -> nn.Module:
    """A small convolutional classifier for images of any side."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64 * 16, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def draw(generator: DiffusionGenerator, file: Path) -> None:
    """Generated images, a row per class."""
    labels = torch.tensor(generator.classes).repeat_interleave(IMAGES_PER_ROW)
    images = generator.generate(condition=labels).cpu()
    shape = (len(generator.classes), IMAGES_PER_ROW)
    figure, cells = plt.subplots(*shape, squeeze=False, figsize=(shape[1], shape[0]))
    for cell, image in zip(cells.flat, images, strict=True):
        cell.imshow(image.permute(1, 2, 0).numpy().clip(0, 1), cmap="gray", vmin=0, vmax=1)
        cell.set(xticks=[], yticks=[])
    for row, label in enumerate(generator.classes):
        cells[row, 0].set_ylabel(label, rotation=0, labelpad=10, va="center")
    figure.tight_layout(pad=0.3)
    figure.savefig(file, dpi=100)


def main() -> None:
    """Learn, evaluate, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("digits", "fashion_mnist", "folder")
    parser.add_argument("--benchmark", choices=names, default="digits")
    parser.add_argument("--root", type=Path, help="where the images are")
    parser.add_argument("--image-size", type=int, default=32, help="side of a folder's images")
    parser.add_argument("--images-per-class", type=int, help="of Fashion-MNIST; default: all")
    parser.add_argument("--experiences", type=int, default=5)
    parser.add_argument("--stop-after", type=int, help="experiences to train on; default: all")
    parser.add_argument("--epochs", type=int, default=5, help="of the solver, per experience")
    parser.add_argument("--iterations", type=int, help="of the generator; default: the plugin's")
    parser.add_argument("--pool-size", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("results/any_images"))
    parser.add_argument("--smoke", action="store_true", help="tiny budgets, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.epochs, arguments.iterations, arguments.pool_size = 1, 20, 40
    arguments.output.mkdir(parents=True, exist_ok=True)
    benchmark = load(arguments)
    torch.manual_seed(arguments.seed)
    image, *_ = benchmark.train_stream[0].dataset[0]
    model = solver(len(image), benchmark.n_classes)
    plugin = MAGDPlugin(generator_iterations=arguments.iterations, pool_size=arguments.pool_size)
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(stream=True),
        loggers=[TextLogger((arguments.output / "any_images.log").open("w"))],
    )
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=32,
        eval_mb_size=512,
        train_epochs=arguments.epochs,
        device=arguments.device,
        plugins=[plugin],
        evaluator=evaluator,
    )
    start = time.perf_counter()
    metrics: dict[str, float] = {}
    for experience in benchmark.train_stream[: arguments.stop_after]:
        index = experience.current_experience
        strategy.train(experience)
        metrics = strategy.eval(benchmark.test_stream[: index + 1])
        key = "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp{:03}"
        accuracies = " ".join(f"{metrics[key.format(seen)]:.3f}" for seen in range(index + 1))
        seconds = time.perf_counter() - start
        print(f"after experience {index + 1} ({seconds:.0f} s): {accuracies}", flush=True)
        draw(plugin.generator, arguments.output / f"generated_{index + 1}.png")
    print(f"final accuracy {metrics['Top1_Acc_Stream/eval_phase/test_stream/Task000']:.3f}")
    print(f"cost: {plugin.cost}")
    print(f"Pictures: {arguments.output}/generated_*.png")


if __name__ == "__main__":
    main()
