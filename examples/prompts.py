"""Prompts: a text-conditioned UNet is given classes in words, and adapters alone are trained.

A small convolutional solver with ``MAGDPlugin`` on digits. The generator's network is a
``UNet2DConditionModel``; each class is named by a prompt, "a handwritten digit seven", that a text
encoder has read once. Without ``--pipeline`` UNet and text encoder are small and random: all of
the UNet is trained. With it they are those of a pretrained text-to-image pipeline, which is
frozen, and low-rank adapters are trained; if it has an autoencoder, diffusion runs on its latents.
Prints the final accuracy and how many parameters are trained, and draws generated images, a class
in each row: ``samples.png``.

Needs ``pip install '.[text]'``, and no download without ``--pipeline``. Takes about seven minutes
of one CPU core; a pretrained pipeline wants a GPU.

    python examples/prompts.py
    python examples/prompts.py --pipeline my/stable-diffusion --image-size 256
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from diffusers import DiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from study import ACCURACY, Solver, silent_evaluator
from tokenizers import Tokenizer, models, pre_tokenizers
from torchvision.transforms.functional import resize
from torchvision.utils import save_image
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from avalanche_magd import DiffusionGenerator, MAGDPlugin, MAGDTraining
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.diffusion.text import PromptConditioned, encode_prompts
from avalanche_magd.distillation import Distillation

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PROMPTS = ["", *(f"a handwritten digit {number}" for number in NUMBERS)]


def small_network() -> PromptConditioned:
    """A random UNet, and prompts as a random text encoder reads them, word by word."""
    words = ["<pad>", "<unk>", "a", "handwritten", "digit", *NUMBERS]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=6,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    unet = UNet2DConditionModel(
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=6
    )
    return PromptConditioned(unet, encode_prompts(PROMPTS, fast, text_encoder.eval()))


def pretrained(name: str) -> tuple[PromptConditioned, Any, dict[str, Any]]:
    """A pipeline's frozen UNet with adapters in its attention, its autoencoder and its noise."""
    pipeline = DiffusionPipeline.from_pretrained(name)
    embeddings = encode_prompts(PROMPTS, pipeline.tokenizer, pipeline.text_encoder)
    pipeline.unet.requires_grad_(False)
    pipeline.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    names = ("prediction_type", "beta_schedule", "num_train_timesteps", "beta_start", "beta_end")
    noise = {name: pipeline.scheduler.config[name] for name in names}
    return PromptConditioned(pipeline.unet, embeddings), getattr(pipeline, "vae", None), noise


def main() -> None:
    """Learn, evaluate, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", help="a text-to-image pipeline of diffusers: name or folder")
    parser.add_argument("--image-size", type=int, default=256, help="of a pipeline's images")
    parser.add_argument("--iterations", type=int, default=600, help="of the generator")
    parser.add_argument("--epochs", type=int, default=10, help="of the solver, per experience")
    parser.add_argument("--pool-size", type=int, default=1000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("results/prompts"))
    parser.add_argument("--smoke", action="store_true", help="tiny budgets, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.epochs, arguments.iterations, arguments.pool_size = 1, 5, 40
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if arguments.pipeline is None:
        network, autoencoder, noise, transform = small_network(), None, {}, None
    else:
        network, autoencoder, noise = pretrained(arguments.pipeline)

        def transform(image: torch.Tensor) -> torch.Tensor:
            return resize(image.repeat(3, 1, 1), [arguments.image_size] * 2, antialias=True)

    benchmark = split_digits(5, seed=0, train_transform=transform, eval_transform=transform)
    image_shape = tuple(benchmark.train_stream[0].dataset[0][0].shape)
    generator = DiffusionGenerator(image_shape, network, autoencoder, **noise)
    trainable = [each for each in generator.parameters() if each.requires_grad]
    count = sum(each.numel() for each in trainable)
    total = sum(each.numel() for each in network.parameters())
    print(f"{count:,} of the network's {total:,} parameters are trained", flush=True)
    training = MAGDTraining(
        model=generator,
        optimizer=torch.optim.AdamW(trainable, lr=1e-3),
        distillation=Distillation(pool_size=arguments.pool_size),
        train_iterations=arguments.iterations,
        device=arguments.device,
        seed=0,
    )
    model = Solver(image_shape[0], benchmark.n_classes)
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
    labels = [label for label in generator.classes for _ in range(8)]
    images = generator.pixel_range.to_unit(generator.generate(condition=labels))
    save_image(images, arguments.output / "samples.png", nrow=8)
    generator.save_pretrained(arguments.output / "generator", cost=training.cost)


if __name__ == "__main__":
    main()
