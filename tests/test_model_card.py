"""A generator's folder says what it is, and opens on any machine."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from huggingface_hub import ModelCard
from tiny import tiny_generator, tiny_network

from avalanche_magd import DiffusionGenerator
from avalanche_magd.diffusion.label_map import LabelMap
from avalanche_magd.distillation.cost import Cost, PhaseCost


def test_a_folder_has_a_model_card_that_hubs_read(tmp_path: Path) -> None:
    generator = tiny_generator((1, 8, 8), num_inference_steps=7, prediction_type="epsilon")
    generator.label_map = LabelMap().with_classes([(0, 0), (4, 0), (0, 1)])
    generator.add_classes([])  # the network has to have embeddings for them
    generator.pixel_range.set(torch.tensor([-0.5]), torch.tensor([2.0]))
    cost = Cost(training=PhaseCost(forwards=1_000, seconds=12.3))
    generator.save_pretrained(tmp_path, data="digits,\nten | of them", cost=cost)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "avalanche-magd"
    assert "continual-learning" in card.data.tags
    assert card.data.license is None
    parameters = sum(each.numel() for each in generator.network.parameters())
    for line in [
        "| image | 1 × 8 × 8 |",
        "| pixel values | -0.5 to 2 |",
        "| diffusion on | pixels |",
        f"| network | `UNet2DModel`, {parameters:,} parameters |",
        "| predicts | `epsilon` |",
        "| noise | `squaredcos_cap_v2`, 1000 levels |",
        "| network calls per image | 7 |",
        "| cost | 1,000 network calls, 12 s |",
        r"| data | digits, ten \| of them |",
        "| `condition` | class index | task label |",
        "| 0 | 0 | 0 |",
        "| 4 | 4 | 0 |",
        "| 5 | 0 | 1 |",
    ]:
        assert line in card.text.splitlines()
    generator.save_pretrained(tmp_path)
    assert "cost" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_model_card_names_the_autoencoder_and_the_range_of_each_channel(tmp_path: Path) -> None:
    autoencoder = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    generator = DiffusionGenerator((3, 8, 8), tiny_network(4), autoencoder)
    generator.save_pretrained(tmp_path)
    assert "| pixel values | not known yet |" in (tmp_path / "README.md").read_text(
        encoding="utf-8"
    )
    generator.pixel_range.pixels.set(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))
    generator.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| pixel values | 0 to 1, 0 to 2, 0 to 3 |" in card
    assert "| diffusion on | latents of an `AutoencoderTiny` |" in card


def test_what_is_said_of_the_data_is_text_on_the_card(tmp_path: Path) -> None:
    said = "<script>alert(1)</script>\n\n# head\n| a | [b](javascript:c) {{ card_data }} ---"
    tiny_generator().save_pretrained(tmp_path, data=said)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for bad in ("<script>", "\n# head", "javascript:", "| a |"):
        assert bad not in card
    (line,) = (line for line in card.splitlines() if line.startswith("| data |"))
    assert line.endswith("{{ card_data }} --- |")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folder_with_weights_of_any_precision_loads_and_names_no_device(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    generator = tiny_generator((1, 8, 8), (0, 1), num_inference_steps=2)
    generator.network.to(dtype)
    generator.save_pretrained(tmp_path)
    again = DiffusionGenerator.from_pretrained(tmp_path)
    assert again.device == torch.device("cpu")
    assert again.generate(2).isfinite().all()
    for (name, saved), loaded in zip(
        generator.network.named_parameters(), again.network.parameters(), strict=True
    ):
        torch.testing.assert_close(loaded, saved.float(), atol=0, rtol=0, msg=name)
    for file in tmp_path.rglob("*.json"):
        keys = str(json.loads(file.read_text(encoding="utf-8")).keys())
        assert "device" not in keys
        assert "cuda" not in file.read_text(encoding="utf-8")
