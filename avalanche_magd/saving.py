"""A generator's folder: ``network/`` as diffusers writes it, and ``generator.json`` for the rest.

Weights are safetensors, the rest is JSON, so that opening a folder from anywhere runs no code. The
JSON is written last: a folder without it was not finished.
"""

import json
from pathlib import Path
from typing import Any

from diffusers import UNet2DModel
from torch import nn

NETWORK, SETTINGS = "network", "generator.json"


def save_network(network: nn.Module, folder: Path) -> None:
    """Write weights and architecture.

    Raises:
        TypeError: the network is not a diffusers ``UNet2DModel``.
    """
    if not isinstance(network, UNet2DModel):
        raise TypeError(
            "save_pretrained needs a diffusers UNet2DModel, "
            f"the network is a {type(network).__name__}."
        )
    (folder / SETTINGS).unlink(missing_ok=True)
    network.save_pretrained(folder / NETWORK)


def read_network(folder: Path) -> UNet2DModel:
    """Read weights and architecture; weights that are no safetensors are not read."""
    return UNet2DModel.from_pretrained(
        folder / NETWORK, use_safetensors=True, low_cpu_mem_usage=False
    )


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
