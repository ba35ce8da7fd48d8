"""A generator's folder is not taken on trust, and is saved as a whole or not at all."""

import errno
import json
import os
import random
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file, save_file
from tiny import tiny_generator, tiny_network

from avalanche_magd import DiffusionGenerator
from avalanche_magd.diffusion.folder_checks import sealed
from avalanche_magd.diffusion.text import PromptConditioned

WEIGHTS = "network/diffusion_pytorch_model.safetensors"


def pixel_generator() -> DiffusionGenerator:
    generator = tiny_generator((1, 8, 8), (0, 1, 2), num_inference_steps=3)
    generator.pixel_range.set(torch.tensor([-0.5]), torch.tensor([2.0]))
    return generator


def latent_generator() -> DiffusionGenerator:
    autoencoder = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    return DiffusionGenerator((3, 8, 8), tiny_network(4), autoencoder)


def prompted_generator() -> DiffusionGenerator:
    unet = UNet2DConditionModel(
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 4),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=4,
        attention_head_dim=2,
    )
    generator = DiffusionGenerator((1, 8, 8), PromptConditioned(unet, torch.randn(4, 3, 4)))
    generator.add_classes(range(3))
    return generator


KINDS = [pixel_generator, latent_generator, prompted_generator]


def content_of(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by name."""
    return {
        each.relative_to(folder).as_posix(): each.read_bytes()
        for each in folder.rglob("*")
        if each.is_file()
    }


def change_settings(folder: Path, **changes: Any) -> None:
    file = folder / "generator.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def reseal(folder: Path) -> None:
    """Digests that fit what a folder holds, as someone would write them who means harm."""
    file = folder / "generator.json"
    settings = json.loads(file.read_text())
    del settings["files"], settings["digest"]
    file.write_text(json.dumps(sealed(settings, folder)))


def change_weights(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], name: str = WEIGHTS
) -> None:
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)


@pytest.mark.parametrize("build", KINDS)
def test_a_flipped_bit_in_any_file_is_refused_by_name(tmp_path: Path, build: Any) -> None:
    build().save_pretrained(tmp_path)
    flips = random.Random(0)
    names = [name for name in content_of(tmp_path) if name != "README.md"]
    assert len(names) == {pixel_generator: 3, latent_generator: 5, prompted_generator: 4}[build]
    for name in names:
        whole = (tmp_path / name).read_bytes()
        for _ in range(100):
            bit = flips.randrange(8 * len(whole))
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=name):
                DiffusionGenerator.from_pretrained(tmp_path)
        (tmp_path / name).write_bytes(whole)
    DiffusionGenerator.from_pretrained(tmp_path)


def test_the_card_and_files_of_the_users_own_can_be_edited(tmp_path: Path) -> None:
    pixel_generator().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("license: mit")
    (tmp_path / "network" / "notes.txt").write_text("of my own")
    settings = tmp_path / "generator.json"
    settings.write_text(json.dumps(json.loads(settings.read_text())))  # in one line
    assert DiffusionGenerator.from_pretrained(tmp_path).classes == [0, 1, 2]


@pytest.mark.parametrize("missing", ["network", "network/config.json", WEIGHTS])
@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.filterwarnings("ignore:.* without digests")
def test_the_network_is_never_asked_for_what_a_folder_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, digests: bool
) -> None:
    def refuse(*address: Any, **kwargs: Any) -> None:
        raise AssertionError(f"asked {address}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    pixel_generator().save_pretrained("someone")
    (shutil.rmtree if missing == "network" else Path.unlink)(tmp_path / "someone" / missing)
    if not digests:
        reseal(tmp_path / "someone")
        content = json.loads(Path("someone/generator.json").read_text())
        del content["files"], content["digest"]
        Path("someone/generator.json").write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=missing):
        DiffusionGenerator.from_pretrained("someone")


@pytest.mark.parametrize("forged", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda each: each.pop("conv_in.weight"), r"they lack conv_in\.weight"),
        (lambda each: each.update(more=torch.zeros(1)), "they have unexpected more"),
        (
            lambda each: each.update({"conv_in.bias": torch.zeros(3)}),
            r"they have other shapes for conv_in\.bias",
        ),
        (
            lambda each: each["conv_out.bias"].fill_(torch.nan),
            r"conv_out\.bias in network/.*safetensors has values that are not finite",
        ),
        (
            lambda each: each["conv_out.bias"].fill_(-torch.inf),
            r"conv_out\.bias in network/.*safetensors has values that are not finite",
        ),
    ],
)
def test_weights_that_cannot_be_are_refused_by_name(
    tmp_path: Path, change: Any, message: str, forged: bool
) -> None:
    pixel_generator().save_pretrained(tmp_path)
    change_weights(tmp_path, change)
    if forged:
        reseal(tmp_path)
    with pytest.raises(ValueError, match=message):
        DiffusionGenerator.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("network/config.json", {"block_out_channels": [10**6, 8]}, "have other shapes for"),
        ("network/config.json", {"layers_per_block": 10**9}, "layers_per_block of network/config"),
        ("network/config.json", {"act_fn": "none"}, "config.json does not describe a UNet2DModel"),
        ("network/config.json", {"in_channels": "1"}, "does not describe a UNet2DModel"),
        ("network/config.json", {"num_class_embeds": 10**12}, r"shapes for class_embedding\.wei"),
    ],
)
def test_a_forged_config_is_refused_before_anything_is_built(
    tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    pixel_generator().save_pretrained(tmp_path)
    config = tmp_path / file
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    reseal(tmp_path)
    with pytest.raises(ValueError, match=message):
        DiffusionGenerator.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *(("num_train_timesteps", each) for each in (10**7, 10**12, -1, 1, True, "1000", 1e3)),
        *(("num_train_timesteps", each) for each in (None, [1000])),
        *(("num_inference_steps", each) for each in (0, -3, True, 2.5, "3", None, 10**9)),
        ("image_shape", [1, 10**6, 10**6]),
        ("image_shape", [1, 8]),
        ("image_shape", [1, 8, 8.0]),
        ("image_shape", [1, 8, True]),
        ("image_shape", [1, 3, 8]),
        ("image_shape", [0, 8, 8]),
        ("image_shape", "188"),
        ("image_shape", 8),
        ("prediction_type", "noise"),
        ("prediction_type", ["epsilon"]),
        ("prediction_type", None),
        ("beta_schedule", "cosine"),
        ("beta_start", "0.1"),
        ("beta_start", 0),
        ("beta_start", 0.5),
        ("beta_end", 1.0),
        ("beta_end", None),
        ("classes", None),
        ("classes", [0, 1]),
        ("classes", [[0, 0]]),
        ("classes", [[0, 0, 0.0]]),
        ("classes", [[0, True, 0]]),
        ("classes", [["0", 0, 0]]),
        ("classes", [[-1, 0, 0]]),
        ("classes", [[0, 0, 0], [0, 1, 0]]),
        ("classes", [[0, 0, 0], [1, 0, 0]]),
        ("classes", [[0, 10**30, 0]]),
        ("classes", [[10**12, 0, 0]]),
        ("classes", [[3, 0, 0]]),
        ("classes", {"0": 0}),
        ("pixel_range", [[0.0], [0.0]]),
        ("pixel_range", [[1.0], [0.0]]),
        ("pixel_range", [[0.0], [1e300]]),
        ("pixel_range", [[0.0, 0.0], [1.0, 1.0]]),
        ("pixel_range", [[0.0], ["1"]]),
        ("pixel_range", [[False], [True]]),
        ("pixel_range", [0.0, 1.0]),
        ("pixel_range", [[0.0]]),
        ("pixel_range", {"pixels": None, "latents": None}),
        ("pixel_range", "none"),
        ("files", ["network/config.json"]),
    ],
)
@pytest.mark.parametrize("forged", [True, False])
def test_an_entry_that_cannot_be_is_refused_by_name(
    tmp_path: Path, entry: str, value: Any, forged: bool
) -> None:
    pixel_generator().save_pretrained(tmp_path)
    change_settings(tmp_path, **{entry: value})
    if forged and entry != "files":
        reseal(tmp_path)
    with pytest.raises(ValueError, match=f"{entry} of generator.json"):
        DiffusionGenerator.from_pretrained(tmp_path)


def test_a_range_of_latents_that_cannot_be_is_refused(tmp_path: Path) -> None:
    latent_generator().save_pretrained(tmp_path)
    for latents in [[[0.0] * 4, [0.0] * 4], "none", 3]:
        change_settings(tmp_path, pixel_range={"pixels": None, "latents": latents})
        with pytest.raises(ValueError, match=r"pixel_range of generator\.json must be of the"):
            DiffusionGenerator.from_pretrained(tmp_path)
    change_settings(tmp_path, pixel_range={"pixels": None, "latents": [[0.0], [1.0]]})
    with pytest.raises(ValueError, match=r"for 4 channels, generator\.json is of one for 1"):
        DiffusionGenerator.from_pretrained(tmp_path)
    change_settings(tmp_path, pixel_range=None)
    with pytest.raises(ValueError, match=r"pixel_range of generator\.json must be of the form"):
        DiffusionGenerator.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "generator.json is no JSON"),
        ("", "generator.json is no JSON"),
        ("[" * 100_000, "generator.json is no JSON"),
        ('{"beta_end": NaN}', "NaN is no number of JSON"),
        ("[1, 8, 8]", "generator.json must hold a JSON object, got a list"),
        ("{}", "generator.json lacks: 'beta_end', "),
    ],
)
def test_what_is_no_json_of_a_generator_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    pixel_generator().save_pretrained(tmp_path)
    (tmp_path / "generator.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        DiffusionGenerator.from_pretrained(tmp_path)


def test_missing_and_unknown_entries_are_refused_by_name(tmp_path: Path) -> None:
    pixel_generator().save_pretrained(tmp_path)
    file = tmp_path / "generator.json"
    whole = json.loads(file.read_text())
    for name in whole:
        file.write_text(json.dumps({each: whole[each] for each in whole if each != name}))
        with pytest.raises(ValueError, match=f"{name}|generator.json changed"):
            DiffusionGenerator.from_pretrained(tmp_path)
    file.write_text(json.dumps({**whole, "trust_remote_code": True}))
    with pytest.raises(ValueError, match=r"has unknown entries: 'trust_remote_code'\. Expected"):
        DiffusionGenerator.from_pretrained(tmp_path)


def test_files_that_were_not_saved_with_the_others_are_refused(tmp_path: Path) -> None:
    prompted_generator().save_pretrained(tmp_path / "prompted")
    pixel_generator().save_pretrained(tmp_path / "generator")
    shutil.copy(tmp_path / "prompted" / "prompts.safetensors", tmp_path / "generator")
    with pytest.raises(ValueError, match=r"prompts\.safetensors changed"):
        DiffusionGenerator.from_pretrained(tmp_path / "generator")
    (tmp_path / "generator" / "prompts.safetensors").unlink()
    index = tmp_path / "generator" / f"{WEIGHTS}.index.json"
    index.write_text('{"weight_map": {}, "metadata": {}}')
    with pytest.raises(ValueError, match=r"network needs diffusion.*, or parts with"):
        DiffusionGenerator.from_pretrained(tmp_path / "generator")


@pytest.mark.parametrize(
    "tensors",
    [
        {"other": torch.zeros(4, 3, 4)},
        {"embeddings": torch.zeros(4, 3)},
        {"embeddings": torch.zeros(4, 3, 4), "more": torch.zeros(1)},
    ],
)
def test_prompts_that_cannot_be_are_refused(tmp_path: Path, tensors: Any) -> None:
    prompted_generator().save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "prompts.safetensors")
    with pytest.raises(ValueError, match="safetensors must hold one tensor, embeddings, of pro"):
        DiffusionGenerator.from_pretrained(tmp_path)
    save_file({"embeddings": torch.full((4, 3, 4), torch.nan)}, tmp_path / "prompts.safetensors")
    with pytest.raises(ValueError, match=r"embeddings in .* not finite"):
        DiffusionGenerator.from_pretrained(tmp_path)
    save_file({"embeddings": torch.zeros(3, 3, 4)}, tmp_path / "prompts.safetensors")
    with pytest.raises(ValueError, match=r"classes of generator\.json go to id 2, for which"):
        DiffusionGenerator.from_pretrained(tmp_path)


def test_weights_in_several_files_load(tmp_path: Path) -> None:
    generator = pixel_generator()
    generator.save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    generator.network.save_pretrained(tmp_path / "network", max_shard_size="20KB")
    assert len(list((tmp_path / "network").glob("*-of-*.safetensors"))) > 1
    reseal(tmp_path)
    again = DiffusionGenerator.from_pretrained(tmp_path)
    for saved, loaded in zip(generator.parameters(), again.parameters(), strict=True):
        assert torch.equal(saved, loaded)
    next((tmp_path / "network").glob("*-of-*.safetensors")).unlink()
    reseal(tmp_path)
    with pytest.raises(ValueError, match="they lack"):
        DiffusionGenerator.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path)  # nothing of the parts is left
    assert DiffusionGenerator.from_pretrained(tmp_path).classes == [0, 1, 2]


@pytest.mark.parametrize("number", [np.int64, np.int32, np.uint8, torch.tensor])
def test_numbers_of_numpy_and_torch_are_saved_as_json_has_them(
    tmp_path: Path, number: Any
) -> None:
    network = UNet2DModel(
        in_channels=number(1),
        out_channels=number(1),
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=1,
        add_attention=False,
    )
    generator = DiffusionGenerator((1, 8, 8), network, beta_end=np.float64(0.012))
    generator.add_classes([0, 1])
    generator.image_shape = tuple(number(each) for each in (1, 8, 8))
    generator.num_inference_steps = number(5)
    generator.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "generator.json").read_text())
    assert settings["num_inference_steps"] == 5
    assert settings["image_shape"] == [1, 8, 8]
    assert settings["beta_end"] == 0.012
    again = DiffusionGenerator.from_pretrained(tmp_path)
    assert type(again.num_inference_steps) is int
    assert again.image_shape == (1, 8, 8)


def failing_save(generator: DiffusionGenerator, kind: str, patch: pytest.MonkeyPatch) -> Any:
    """Make saving fail in some way; the exception that says so."""
    if kind == "count":
        generator.num_inference_steps = "5"  # type: ignore[assignment]
    elif kind == "object":
        generator.num_inference_steps = object()  # type: ignore[assignment]
        return TypeError
    elif kind == "weights":
        with torch.no_grad():
            generator.network.conv_in.weight[0] = torch.nan
    elif kind == "layer":
        generator.network.conv_in = torch.nn.Sequential(generator.network.conv_in)
    elif kind == "range":
        generator.pixel_range.high.fill_(torch.inf)
    elif kind == "config":
        generator.network.register_to_config(norm_num_groups=object())
        return TypeError
    else:  # The disk is full, or the user interrupts, at a move of a file.
        error: Any = OSError if kind.startswith("disk") else KeyboardInterrupt
        left, rename = [int(kind.split()[1])], os.rename

        def fail(*arguments: Any, **kwargs: Any) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise error(errno.ENOSPC, "No space left on device")
            rename(*arguments, **kwargs)

        patch.setattr(os, "rename", fail)
        return error
    return ValueError


MOVES = [f"{kind} {move}" for kind in ("disk", "interrupt") for move in range(8)]


@pytest.mark.parametrize(
    "kind", ["count", "object", "weights", "layer", "range", "config", *MOVES]
)
def test_what_was_saved_before_stays_if_saving_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tmp_path / "generator"
    pixel_generator().save_pretrained(folder)
    (folder / "network" / "notes.txt").write_text("of my own")
    (folder / "samples").mkdir()
    before = content_of(tmp_path)
    with monkeypatch.context() as patch:
        generator = pixel_generator()
        error = failing_save(generator, kind, patch)
        with pytest.raises(error):
            generator.save_pretrained(folder)
    assert content_of(tmp_path) == before
    assert [each.name for each in tmp_path.iterdir()] == ["generator"]
    assert DiffusionGenerator.from_pretrained(folder).classes == [0, 1, 2]


@pytest.mark.parametrize("limit", [100, 900, 5000, 20_000])
def test_what_was_saved_before_stays_if_the_disk_is_full(tmp_path: Path, limit: int) -> None:
    resource = pytest.importorskip("resource")
    pixel_generator().save_pretrained(tmp_path / "generator")
    before = content_of(tmp_path)
    generator = pixel_generator()
    limits, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing more bytes is an error
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OSError, match=r"too large"):
            generator.save_pretrained(tmp_path / "generator")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, action)
    assert content_of(tmp_path) == before
    assert [each.name for each in tmp_path.iterdir()] == ["generator"]


@pytest.mark.parametrize("kind", ["weights", "disk 0", "interrupt 3"])
def test_nothing_is_left_of_a_new_folder_if_saving_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    generator = pixel_generator()
    error = failing_save(generator, kind, monkeypatch)
    with pytest.raises(error):
        generator.save_pretrained(tmp_path / "generator")
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_users_own_survive_and_the_generators_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "generator"
    latent_generator().save_pretrained(folder)
    own = ["LICENSE", "network/notes.txt", "network/diffusion_pytorch_model.bin", ".git/HEAD"]
    for name in own:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    monkeypatch.chdir(folder)
    pixel_generator().save_pretrained(".")
    generators = ["README.md", "generator.json", "network/config.json", WEIGHTS]
    assert sorted(content_of(folder)) == sorted(own + generators)
    assert not (folder / "autoencoder").exists()
    assert all((folder / name).read_text() == name for name in own)
    assert [each.name for each in tmp_path.iterdir()] == ["generator"]
    assert DiffusionGenerator.from_pretrained(".").classes == [0, 1, 2]
    # As a hub's cache has them: links to files elsewhere.
    shutil.move(folder / WEIGHTS, tmp_path / "blob")
    (folder / WEIGHTS).symlink_to("../../blob")
    generator = DiffusionGenerator.from_pretrained(folder)
    blob = (tmp_path / "blob").read_bytes()
    torch.nn.init.zeros_(generator.network.conv_in.weight)
    generator.save_pretrained(folder)
    assert (tmp_path / "blob").read_bytes() == blob


def test_a_file_in_a_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "generator").write_text("a file")
    with pytest.raises(NotADirectoryError, match="generator is a file: give a folder, or a name"):
        pixel_generator().save_pretrained(tmp_path / "generator")


def test_loading_draws_no_random_numbers_and_leaves_no_trace_of_a_place(tmp_path: Path) -> None:
    latent_generator().save_pretrained(tmp_path / "one")
    state = torch.get_rng_state()
    again = DiffusionGenerator.from_pretrained(tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), state)
    again.save_pretrained(tmp_path / "two")
    assert not any(
        str(tmp_path).encode() in each for each in content_of(tmp_path / "two").values()
    )
