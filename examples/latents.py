"""Latents: diffusion on what an autoencoder makes of images, for images too large for pixels.

A small convolutional solver with ``MAGDPlugin`` on digits, made colour images of 32 × 32 pixels,
or on a folder of images (``ROOT/{train,test}/<class>/<image>``). The generator works on the
latents of an ``AutoencoderTiny`` that is trained here on the first experience's images, or of any
that diffusers can load. Prints the final accuracy and what a lesson takes, in latents and in
pixels, and draws generated images, a class in each row: ``samples.png``.

Needs no download without ``--autoencoder``. Takes about six minutes of one CPU core.

    python examples/latents.py
    python examples/latents.py --root my/images --image-size 128 --autoencoder madebyollin/taesd
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from diffusers import AutoencoderKL, AutoencoderTiny
from study import ACCURACY, Solver, silent_evaluator
from torch import Tensor
from torch.nn.functional import mse_loss
from torchvision.utils import save_image

from avalanche_magd import DiffusionGenerator, MAGDPlugin, MAGDTraining
from avalanche_magd.benchmarks import split_digits, split_image_folder
from avalanche_magd.distillation import Distillation
from avalanche_magd.distillation.pool import lesson_bytes

KINDS = {each.__name__: each for each in (AutoencoderTiny, AutoencoderKL)}


def colour(image: Tensor) -> Tensor:
    """A digit in three channels, 32 × 32."""
    return image.repeat(3, 1, 1).repeat_interleave(4, 1).repeat_interleave(4, 2)


def train_autoencoder(dataset: Any, steps: int, device: str) -> AutoencoderTiny:
    """A small autoencoder of real images, a quarter of their side; mean squared error."""
    torch.manual_seed(0)
    autoencoder = AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).to(device)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=1e-3)
    error = torch.zeros(())
    for _ in range(steps):
        rows = torch.randint(len(dataset), (32,)).tolist()
        images = torch.stack([dataset[row][0] for row in rows]).to(device) * 2 - 1
        error = mse_loss(autoencoder.decode(autoencoder.encode(images).latents).sample, images)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    print(f"autoencoder: mean squared error {error:.4f} of images in [−1, 1]", flush=True)
    return autoencoder


def main() -> None:
    """Learn, evaluate, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="a folder of images; default: digits")
    parser.add_argument("--image-size", type=int, default=64, help="side of a folder's images")
    parser.add_argument("--autoencoder", help="of diffusers: its name or folder")
    parser.add_argument(
        "--kind", choices=KINDS, default="AutoencoderTiny", help="its class in diffusers"
    )
    parser.add_argument("--experiences", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=600, help="of the generator")
    parser.add_argument("--epochs", type=int, default=5, help="of the solver, per experience")
    parser.add_argument("--pool-size", type=int, default=1000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("results/latents"))
    parser.add_argument("--smoke", action="store_true", help="tiny budgets, to see that it runs")
    arguments = parser.parse_args()
    autoencoder_steps = 800
    if arguments.smoke:
        arguments.epochs, arguments.iterations, arguments.pool_size = 1, 5, 40
        autoencoder_steps = 20
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.root is None:
        benchmark = split_digits(
            arguments.experiences, seed=0, train_transform=colour, eval_transform=colour
        )
    else:
        benchmark = split_image_folder(
            arguments.root, arguments.experiences, image_size=arguments.image_size, seed=0
        )
    dataset = benchmark.train_stream[0].dataset.eval()
    if arguments.autoencoder is None:
        autoencoder = train_autoencoder(dataset, autoencoder_steps, arguments.device)
    else:
        kind = KINDS[arguments.kind]
        autoencoder = kind.from_pretrained(arguments.autoencoder).to(arguments.device)
    torch.manual_seed(0)
    generator = DiffusionGenerator(tuple(dataset[0][0].shape), autoencoder=autoencoder)
    training = MAGDTraining(
        model=generator,
        optimizer=torch.optim.AdamW(generator.network.parameters(), lr=2e-3, fused=True),
        distillation=Distillation(pool_size=arguments.pool_size),
        train_iterations=arguments.iterations,
        device=arguments.device,
        seed=0,
    )
    model = Solver(3, benchmark.n_classes)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=32,
        eval_mb_size=512,
        train_epochs=arguments.epochs,
        device=arguments.device,
        plugins=[MAGDPlugin(training, seed=0)],
        evaluator=silent_evaluator(accuracy_metrics(stream=True)),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
        print(f"after experience {experience.current_experience + 1}", flush=True)
    print(f"final accuracy {strategy.eval(benchmark.test_stream)[ACCURACY]:.3f}")
    sizes = [lesson_bytes(math.prod(s)) for s in (generator.latent_shape, generator.image_shape)]
    print("bytes of a lesson: {:,} in latents, {:,} in pixels".format(*sizes))
    labels = [label for label in generator.classes[:20] for _ in range(8)]
    images = generator.pixel_range.to_unit(generator.generate(condition=labels))
    save_image(images, arguments.output / "samples.png", nrow=8)
    generator.save_pretrained(arguments.output / "generator", cost=training.cost)


if __name__ == "__main__":
    main()
