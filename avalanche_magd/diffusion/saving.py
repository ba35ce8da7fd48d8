"""A generator's folder: ``network/`` as diffusers writes it, and ``generator.json`` for the rest.

A text-conditioned network leaves its prompts' hidden states in ``prompts.safetensors``; the text
encoder is not needed any more. An autoencoder, if there is one, is in ``autoencoder/``, as
diffusers writes it. ``README.md`` is the model card.

Weights are safetensors, the rest is JSON, so that opening a folder from anywhere runs no code.
What a folder lacks diffusers' loader would ask a hub for, and missing weights it would make up, so
it is called only when all was checked: see :mod:`avalanche_magd.diffusion.folder_checks`.
"""

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
from diffusers import ModelMixin, UNet2DConditionModel, UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from avalanche_magd.diffusion.folder_checks import (
    AUTOENCODER,
    CARD,
    CONFIG,
    NETWORK,
    PROMPTS,
    SETTINGS,
    check_finite,
    check_model,
    check_seal,
    own_files,
    read_json,
    sealed,
    shown,
    tensors_in,
)
from avalanche_magd.diffusion.model_card import model_card
from avalanche_magd.diffusion.settings import check_settings, plain_number, plain_settings
from avalanche_magd.diffusion.text import PromptConditioned
from avalanche_magd.runtime.atomic_folders import replaced_files


def save_folder(
    folder: Path, network: Any, autoencoder: Any, settings: dict[str, Any], **about: Any
) -> None:
    """Write a generator's folder: see :meth:`DiffusionGenerator.save_pretrained`.

    Raises:
        TypeError: the network is neither ``UNet2DModel`` nor ``PromptConditioned``, or the
            autoencoder is not from diffusers.
        ValueError: the folder would be refused by :func:`read_settings`.
        OSError: a file cannot be written, since the disk is full or read-only; what was there
            before stays.
    """
    networks = (UNet2DModel, PromptConditioned)
    _check_kind(network, networks, "a diffusers UNet2DModel, or a PromptConditioned, as network")
    _check_kind(autoencoder, (ModelMixin, type(None)), "an autoencoder of diffusers")
    settings = plain_settings(settings)
    check_settings(settings, with_autoencoder=autoencoder is not None)
    try:
        with replaced_files(folder, own_files, last=SETTINGS) as new:
            _write_parts(new, network, autoencoder)
            model_card(network, autoencoder, settings, **about).save(new / CARD)
            _check_parts(new, settings)
            content = json.dumps(sealed(settings, new), indent=2) + "\n"
            (new / SETTINGS).write_text(content, encoding="utf-8")
    except (SafetensorError, OSError) as error:
        number = getattr(error, "errno", None)
        if isinstance(error, OSError) and number is None:
            raise  # one of ours, which says what to do
        reason = getattr(error, "strerror", None) or error
        told = (
            f"{folder} cannot be written, and what was there before stays: {reason}. Make room "
            "there, or choose another folder"
        )
        raise (OSError(told) if number is None else OSError(number, told)) from error


def _write_parts(folder: Path, network: Any, autoencoder: Any) -> None:
    if isinstance(network, PromptConditioned):
        _save_model(_without_adapters(network.unet), folder / NETWORK)
        save_file({"embeddings": network.embeddings.contiguous()}, folder / PROMPTS)
    else:
        _save_model(network, folder / NETWORK)
    if autoencoder is not None:
        _save_model(autoencoder, folder / AUTOENCODER)


def _check_kind(part: Any, kinds: Any, wanted: str) -> None:
    if not isinstance(part, kinds):
        raise TypeError(f"save_pretrained needs {wanted}, this one is a {type(part).__name__}.")


def _save_model(model: Any, folder: Path) -> None:
    """Write a model as diffusers does, which refuses numbers of NumPy in a config."""
    for name, value in list(model.config.items()):
        plain = _plain(value)
        if plain is not value:
            model.register_to_config(**{name: plain})
    model.save_pretrained(folder)


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        parts = [_plain(each) for each in value]
        changed = any(a is not b for a, b in zip(parts, value, strict=True))
        return type(value)(parts) if changed else value
    return plain_number(value) if hasattr(value, "tolist") else value


def _without_adapters(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same function as one set of weights."""
    if not getattr(unet, "peft_config", None):
        return unet
    merged = copy.deepcopy(unet)
    merged.fuse_lora()
    merged.unload_lora()
    return merged


def read_settings(folder: Path) -> dict[str, Any]:
    """Read ``generator.json``, and refuse a folder that is not as it was saved.

    Nothing is built by what the folder says before all of it was checked.

    Raises:
        FileNotFoundError: the folder holds no generator, or a file is missing.
        ValueError: a file was changed, or holds what cannot be.
    """
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {SETTINGS}: expected a folder that "
            "DiffusionGenerator.save_pretrained wrote."
        )
    content = read_json(folder / SETTINGS)
    settings = {name: each for name, each in content.items() if name not in ("files", "digest")}
    check_settings(settings, with_autoencoder=_has_autoencoder(folder))
    changed = check_seal(folder, content)
    try:
        _check_parts(folder, settings)
    except ValueError as error:
        raise ValueError(f"{changed} {error}".strip()) from error
    if changed:
        raise ValueError(changed)
    return settings


def _check_parts(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse files that do not fit one another, or ``generator.json``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there are some.
    """
    network: Any = check_model(folder / NETWORK, _network_kind(folder))
    shape, ends = settings["image_shape"], settings["pixel_range"]
    channels = [shape[0]]
    if _has_autoencoder(folder):
        check_model(folder / AUTOENCODER, _autoencoder_kind(folder))
        channels = [len(end) for end in ends["latents"] or ()][:1]
    for wanted in channels:
        if network.config.in_channels != wanted:
            raise ValueError(
                f"{NETWORK}/{CONFIG} is of a network for {network.config.in_channels} channels, "
                f"{SETTINGS} is of one for {wanted}."
            )
    rows = _num_class_embeds(folder, network)
    largest = max((row[0] for row in settings["classes"]), default=-1)
    if rows is not None and largest + 2 > rows:
        raise ValueError(
            f"classes of {SETTINGS} go to id {largest}, for which the network has no embedding "
            f"or prompt: it has those of {rows - 1} classes."
        )


def _num_class_embeds(folder: Path, network: Any) -> int | None:
    """Labels that a network can be called with, "no class" included; ``None`` if any."""
    if (folder / PROMPTS).is_file():
        return len(_read_prompts(folder))
    table = network.class_embedding
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def _read_prompts(folder: Path) -> Tensor:
    """The prompts' hidden states.

    Raises:
        ValueError: the file holds something else.
    """
    file = folder / PROMPTS
    tensors = dict(tensors_in(file))
    for name, tensor in tensors.items():
        check_finite(file, name, tensor)
    if tensors.keys() != {"embeddings"} or tensors["embeddings"].ndim != 3:
        raise ValueError(
            f"{shown(file)} must hold one tensor, embeddings, of prompts × tokens × dimensions; "
            f"it has {', '.join(f'{name} {tuple(each.shape)}' for name, each in tensors.items())}."
        )
    return tensors["embeddings"]


def read_network(folder: Path) -> nn.Module:
    """Read the network of a folder that :func:`read_settings` has checked."""
    network = _read_model(folder / NETWORK, _network_kind(folder))
    if not (folder / PROMPTS).is_file():
        return network
    return PromptConditioned(network, _read_prompts(folder))


def read_autoencoder(folder: Path) -> nn.Module | None:
    """Read the autoencoder of a folder that was checked; ``None`` if there is none."""
    if not _has_autoencoder(folder):
        return None
    return _read_model(folder / AUTOENCODER, _autoencoder_kind(folder))


def _read_model(folder: Path, kind: Any) -> nn.Module:
    """Read a model whose files were checked: all are there, so that no hub is asked for them."""
    model: Any = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
    )
    # diffusers notes where it read the model, and would save that.
    model.register_to_config(_name_or_path="")
    return model  # type: ignore[no-any-return]


def _network_kind(folder: Path) -> Any:
    return UNet2DConditionModel if (folder / PROMPTS).is_file() else UNet2DModel


def _has_autoencoder(folder: Path) -> bool:
    return any(name.startswith(f"{AUTOENCODER}/") for name in own_files(folder))


def _autoencoder_kind(folder: Path) -> Any:
    """The class of the autoencoder.

    Raises:
        ValueError: it is none of diffusers' autoencoders.
    """
    config = folder / AUTOENCODER / CONFIG
    name = read_json(config).get("_class_name")
    kind: Any = getattr(diffusers, str(name), None)
    is_model = inspect.isclass(kind) and issubclass(kind, ModelMixin)
    if not (is_model and hasattr(kind, "decode")):
        raise ValueError(f"{shown(config)} names {name!r}, which is no autoencoder of diffusers.")
    return kind
