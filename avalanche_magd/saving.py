"""A generator's folder: ``network/`` as diffusers writes it, and ``generator.json`` for the rest.

A network that is told classes in words leaves its prompts' hidden states in
``prompts.safetensors``; the text encoder is not needed any more. An autoencoder, if there is one,
is in ``autoencoder/``, as diffusers writes it.

Weights are safetensors, the rest is JSON, so that opening a folder from anywhere runs no code. The
JSON is written last: a folder without it was not finished.
"""

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
from diffusers import ModelMixin, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from avalanche_magd.prompts import PromptConditioned

NETWORK, AUTOENCODER = "network", "autoencoder"
PROMPTS, SETTINGS, CONFIG = "prompts.safetensors", "generator.json", "config.json"
CARD = "README.md"


def save_network(network: nn.Module, folder: Path) -> None:
    """Write weights and architecture.

    Raises:
        TypeError: the network is neither ``UNet2DModel`` nor ``PromptConditioned``.
    """
    if not isinstance(network, (UNet2DModel, PromptConditioned)):
        raise TypeError(
            "save_pretrained needs a diffusers UNet2DModel, or a PromptConditioned, "
            f"the network is a {type(network).__name__}."
        )
    (folder / SETTINGS).unlink(missing_ok=True)
    (folder / PROMPTS).unlink(missing_ok=True)
    (folder / AUTOENCODER / CONFIG).unlink(missing_ok=True)
    if isinstance(network, UNet2DModel):
        network.save_pretrained(folder / NETWORK)
    else:
        _without_adapters(network.unet).save_pretrained(folder / NETWORK)
        save_file({"embeddings": network.embeddings.contiguous()}, folder / PROMPTS)


def _without_adapters(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same function as one set of weights."""
    if not getattr(unet, "peft_config", None):
        return unet
    merged = copy.deepcopy(unet)
    merged.fuse_lora()
    merged.unload_lora()
    return merged


def read_network(folder: Path) -> nn.Module:
    """Read weights and architecture; weights that are no safetensors are not read."""
    told_in_words = (folder / PROMPTS).is_file()
    unet = (UNet2DConditionModel if told_in_words else UNet2DModel).from_pretrained(
        folder / NETWORK, use_safetensors=True, low_cpu_mem_usage=False
    )
    if not told_in_words:
        return unet  # type: ignore[no-any-return]
    return PromptConditioned(unet, load_file(folder / PROMPTS)["embeddings"])


def save_autoencoder(autoencoder: nn.Module, folder: Path) -> None:
    """Write its weights and architecture.

    Raises:
        TypeError: it is not from diffusers.
    """
    if not isinstance(autoencoder, ModelMixin):
        raise TypeError(
            "save_pretrained needs an autoencoder of diffusers, "
            f"this one is a {type(autoencoder).__name__}."
        )
    autoencoder.save_pretrained(folder / AUTOENCODER)


def read_autoencoder(folder: Path) -> nn.Module | None:
    """Read its weights and architecture; ``None`` if there is none.

    Raises:
        ValueError: it is none of diffusers' autoencoders.
    """
    config = folder / AUTOENCODER / CONFIG
    if not config.is_file():
        return None
    name = json.loads(config.read_text()).get("_class_name")
    kind: Any = getattr(diffusers, str(name), None)
    is_model = inspect.isclass(kind) and issubclass(kind, ModelMixin)
    if not (is_model and hasattr(kind, "decode")):
        raise ValueError(f"{config} names {name!r}, which is no autoencoder of diffusers.")
    return kind.from_pretrained(  # type: ignore[no-any-return]
        folder / AUTOENCODER, use_safetensors=True, low_cpu_mem_usage=False
    )


def save_card(card: str, folder: Path) -> None:
    """Write what the folder says about itself."""
    (folder / CARD).write_text(card, encoding="utf-8")


def save_settings(settings: dict[str, Any], folder: Path) -> None:
    """Write everything else."""
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def read_settings(folder: Path) -> dict[str, Any]:
    """Read everything else.

    Raises:
        FileNotFoundError: the folder holds no generator.
    """
    file = folder / SETTINGS
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {SETTINGS}: expected a folder that "
            "DiffusionGenerator.save_pretrained wrote."
        )
    settings: dict[str, Any] = json.loads(file.read_text())
    return settings
