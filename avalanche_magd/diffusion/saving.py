"""A generator's folder: ``network/`` as diffusers writes it, and ``generator.json`` for the rest.

A text-conditioned network leaves its prompts' hidden states in ``prompts.safetensors``; the text
encoder is not needed any more. An autoencoder, if there is one, is in ``autoencoder/``, as
diffusers writes it. ``README.md`` is the model card.

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

from avalanche_magd.diffusion.model_card import model_card
from avalanche_magd.diffusion.text import PromptConditioned

NETWORK, AUTOENCODER = "network", "autoencoder"
PROMPTS, SETTINGS, CONFIG = "prompts.safetensors", "generator.json", "config.json"
CARD = "README.md"


def save_folder(
    folder: Path, network: Any, autoencoder: Any, settings: dict[str, Any], **about: Any
) -> None:
    """Write a generator's folder: see :meth:`DiffusionGenerator.save_pretrained`.

    Raises:
        TypeError: the network is neither ``UNet2DModel`` nor ``PromptConditioned``, or the
            autoencoder is not from diffusers.
    """
    networks = (UNet2DModel, PromptConditioned)
    _check_kind(network, networks, "a diffusers UNet2DModel, or a PromptConditioned, as network")
    _check_kind(autoencoder, (ModelMixin, type(None)), "an autoencoder of diffusers")
    (folder / SETTINGS).unlink(missing_ok=True)
    (folder / PROMPTS).unlink(missing_ok=True)
    (folder / AUTOENCODER / CONFIG).unlink(missing_ok=True)
    if isinstance(network, PromptConditioned):
        _without_adapters(network.unet).save_pretrained(folder / NETWORK)
        save_file({"embeddings": network.embeddings.contiguous()}, folder / PROMPTS)
    else:
        network.save_pretrained(folder / NETWORK)
    if autoencoder is not None:
        autoencoder.save_pretrained(folder / AUTOENCODER)
    model_card(network, autoencoder, settings, **about).save(folder / CARD)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def _check_kind(part: Any, kinds: Any, wanted: str) -> None:
    if not isinstance(part, kinds):
        raise TypeError(f"save_pretrained needs {wanted}, this one is a {type(part).__name__}.")


def _without_adapters(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same function as one set of weights."""
    if not getattr(unet, "peft_config", None):
        return unet
    merged = copy.deepcopy(unet)
    merged.fuse_lora()
    merged.unload_lora()
    return merged


def read_settings(folder: Path) -> dict[str, Any]:
    """Read ``generator.json``.

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


def read_network(folder: Path) -> nn.Module:
    """Read the network; weights that are no safetensors are not read."""
    conditioned = (folder / PROMPTS).is_file()
    unet = (UNet2DConditionModel if conditioned else UNet2DModel).from_pretrained(
        folder / NETWORK, use_safetensors=True, low_cpu_mem_usage=False
    )
    if not conditioned:
        return unet  # type: ignore[no-any-return]
    return PromptConditioned(unet, load_file(folder / PROMPTS)["embeddings"])


def read_autoencoder(folder: Path) -> nn.Module | None:
    """Read the autoencoder; ``None`` if there is none.

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
