"""What keeps a generator's folder from being taken on trust.

``generator.json`` names every file that the generator consists of, with its SHA-256 digest, in
``files``; ``digest`` is that of its own content. The card, ``README.md``, is for people to edit
and has none, nor have other files in the folder, which are never read.

Digests tell what was changed by accident. Someone who means harm writes digests that fit, so the
content is checked all the same: entries, names and shapes of weights, before anything is built.
"""

import hashlib
import inspect
import json
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

NETWORK, AUTOENCODER = "network", "autoencoder"
PROMPTS, SETTINGS, CONFIG = "prompts.safetensors", "generator.json", "config.json"
CARD = "README.md"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""diffusers writes it for weights in several files: which tensor is in which."""
SHARD: Final = r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors"
OWN: Final = re.compile(
    rf"({NETWORK}|{AUTOENCODER})/(config\.json|{SHARD}(\.index\.json)?)"
    rf"|{re.escape(PROMPTS)}|{re.escape(SETTINGS)}|{re.escape(CARD)}"
)
REMEDY: Final = "Copy the folder from where it was saved once more, or save the generator again."


def own_files(folder: Path) -> list[str]:
    """The files in a folder that are a generator's, by their names."""
    found = [
        each.relative_to(folder).as_posix()
        for pattern in ("*", f"{NETWORK}/*", f"{AUTOENCODER}/*")
        for each in folder.glob(pattern)
    ]
    return sorted(name for name in found if OWN.fullmatch(name))


def covered_files(folder: Path) -> list[str]:
    """Those of them that have a digest in ``generator.json``."""
    return [name for name in own_files(folder) if name not in (SETTINGS, CARD)]


def sealed(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings with the digests of a folder's files, and their own."""
    files = {name: _digest_of_file(folder / name) for name in covered_files(folder)}
    content = {**settings, "files": files}
    return {**content, "digest": _digest_of_content(content)}


def check_seal(folder: Path, content: dict[str, Any]) -> str:
    """What is wrong with a folder by the digests in its ``generator.json``; empty if nothing is.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: ``digest`` or ``files`` are not what they must be.
    """
    if not {"files", "digest"} & content.keys():
        warnings.warn(
            f"{folder} was saved by an earlier version, without digests: whether its content is "
            "what was saved cannot be checked. Saving it again, by save_pretrained, adds them.",
            stacklevel=4,
        )
        return ""
    files = content.get("files")
    if not isinstance(files, dict) or not all(isinstance(each, str) for each in files.values()):
        raise ValueError(f"files of {SETTINGS} must name the digest of each file. {REMEDY}")
    present = covered_files(folder)
    changed = [name for name in present if files.get(name) != _digest_of_file(folder / name)]
    rest = {name: value for name, value in content.items() if name != "digest"}
    if content.get("digest") != _digest_of_content(rest):
        changed.append(SETTINGS)
    missing = files.keys() - present
    if missing and SETTINGS not in changed:
        raise FileNotFoundError(
            f"{folder} has no {', '.join(sorted(missing))}, which {SETTINGS} names. {REMEDY}"
        )
    if not changed:
        return ""
    return f"{folder} is not as it was saved: {', '.join(changed)} changed. {REMEDY}"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or holds something else.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{shown(file)} is missing. {REMEDY}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(file)} is no JSON: {error}. {REMEDY}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{shown(file)} must hold a JSON object, got a {type(content).__name__}.")
    return content


def shown(file: Path) -> str:
    """A file's name and its folder's: where the folder is, is known."""
    return f"{file.parent.name}/{file.name}"


def weight_files(folder: Path) -> list[Path]:
    """The files of a network's or an autoencoder's weights.

    Raises:
        FileNotFoundError: there are none.
        ValueError: there are some that do not belong together.
    """
    files = sorted(each for each in folder.glob("*") if re.fullmatch(SHARD, each.name))
    if not files:
        raise FileNotFoundError(f"{shown(folder / WEIGHTS)} is missing. {REMEDY}")
    whole = folder / WEIGHTS
    if (folder / INDEX).exists() == (whole in files) or (whole in files and len(files) > 1):
        names = ", ".join(each.name for each in files)
        raise ValueError(f"{folder.name} needs {WEIGHTS}, or parts with {INDEX}; it has {names}.")
    return files


def check_model(folder: Path, kind: Any) -> nn.Module:
    """A model of a config without memory for its weights, once they were found to be its.

    Args:
        folder: of config and weights, as diffusers writes them.
        kind: the model's class.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the config is not one of this class, or the weights do not fit it or are not
            finite.
    """
    config, shapes = read_json(folder / CONFIG), {}
    for file in weight_files(folder):
        for name, tensor in tensors_in(file):
            check_finite(file, name, tensor)
            shapes[name] = tuple(tensor.shape)
    _check_depth(folder / CONFIG, config, len(shapes))
    # diffusers logs entries that a class adds by itself: it will when it reads the model.
    known = inspect.signature(kind.__init__).parameters
    try:
        with torch.device("meta"):
            model: nn.Module = kind.from_config({k: config[k] for k in config if k in known})
    except Exception as error:
        message = (
            f"{shown(folder / CONFIG)} does not describe a {kind.__name__}: {error}. {REMEDY}"
        )
        raise ValueError(message) from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = {
        "lack": expected.keys() - shapes.keys(),
        "have unexpected": shapes.keys() - expected.keys(),
        "have other shapes for": {
            name for name in expected.keys() & shapes.keys() if expected[name] != shapes[name]
        },
    }
    found = [f"{what} {_some(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(
            f"The weights in {folder.name} do not fit its {CONFIG}: they {'; they '.join(found)}. "
            f"{REMEDY}"
        )
    return model


def tensors_in(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file, by name, one at a time.

    Raises:
        ValueError: the file is no safetensors.
    """
    try:
        with safe_open(file, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118
                yield name, content.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{shown(file)} is no file of safetensors: {error}. {REMEDY}") from error


def check_finite(file: Path, name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor with values that are not finite in single precision.

    Raises:
        ValueError: there are some.
    """
    if not bool(tensor.float().isfinite().all()):
        raise ValueError(
            f"{name} in {shown(file)} has values that are not finite: training "
            "has diverged, or the file was changed. Use the generator of an earlier time."
        )


def _check_depth(file: Path, config: dict[str, Any], limit: int) -> None:
    """Refuse a config with more layers than there are tensors, which would take long to build."""
    for name, value in config.items():
        is_count = "layers" in name or (name.startswith("num_") and name.endswith("blocks"))
        if is_count and any(number > limit for number in _numbers(value)):
            raise ValueError(
                f"{name} of {shown(file)} is {value!r}, for weights of {limit} tensors."
            )


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, (int, float)) and not math.isnan(value) else []


def _some(names: set[str]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _digest_of_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest_of_content(content: dict[str, Any]) -> str:
    """The digest of JSON, whatever its line breaks and the order of its entries."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
