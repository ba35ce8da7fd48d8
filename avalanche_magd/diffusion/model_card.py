"""The model card: what a generator's folder says about itself, where models are shared.

It is ``README.md``, with the front matter that model hubs read. The licence is left to whoever
shares the folder.
"""

from typing import Any, Final

from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from avalanche_magd.runtime.markdown import escape

TAGS: Final = (
    "avalanche",
    "continual-learning",
    "diffusion",
    "generative-replay",
    "image-generation",
)


def model_card(
    network: nn.Module,
    autoencoder: nn.Module | None,
    settings: dict[str, Any],
    *,
    data: str | None = None,
    cost: Any = None,
) -> ModelCard:
    """The card of a generator whose ``generator.json`` has these settings.

    Args:
        network: of the generator.
        autoencoder: of the generator, if it has one.
        settings: content of ``generator.json``.
        data: what the generator was trained on, in a sentence or a few, as plain text.
        cost: of the training, as :class:`~avalanche_magd.distillation.cost.Cost` counts it.
    """
    parameters = sum(each.numel() for each in network.parameters())
    ends = settings["pixel_range"]
    pixels = ends["pixels"] if isinstance(ends, dict) else ends
    space = "pixels" if autoencoder is None else f"latents of an `{type(autoencoder).__name__}`"
    facts = {
        "image": " × ".join(map(str, settings["image_shape"])),
        "pixel values": "not known yet" if pixels is None else _between(*pixels),
        "diffusion on": space,
        "network": f"`{type(network).__name__}`, {parameters:,} parameters",
        "predicts": f"`{settings['prediction_type']}`",
        "noise": f"`{settings['beta_schedule']}`, {settings['num_train_timesteps']} levels",
        "network calls per image": str(settings["num_inference_steps"]),
    }
    if cost is not None:
        facts["cost"] = f"{cost.forwards:,} network calls, {cost.seconds:,.0f} s"
    if data is not None:
        facts["data"] = escape(data)
    front_matter = ModelCardData(library_name="avalanche-magd", tags=list(TAGS))
    content = {"facts": facts, "classes": settings["classes"]}
    card: ModelCard = ModelCard.from_template(front_matter, template_str=TEMPLATE, **content)
    return card


TEMPLATE: Final = """\
---
{{ card_data }}
# license: for you to choose
---

# Class-conditional image generator

A diffusion model that was taught class by class, without keeping images of earlier classes, by
avalanche-magd.

|  |  |
| --- | --- |
{% for name, value in facts.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
## Use it

```python
from avalanche_magd import DiffusionGenerator

generator = DiffusionGenerator.from_pretrained("this/folder")
images = generator.generate(16)
```

Weights are safetensors and the rest is JSON: loading runs no code from this folder.

## Classes

What `generate(condition=…)` takes, and how the benchmark numbers it:

| `condition` | class index | task label |
| --- | --- | --- |
{% for id, label, task in classes -%}
| {{ id }} | {{ label }} | {{ task }} |
{% endfor %}"""


def _between(low: list[float], high: list[float]) -> str:
    """The range, once if it is that of all channels."""
    ends = [f"{low:g} to {high:g}" for low, high in zip(low, high, strict=True)]
    return ", ".join(ends if len(set(ends)) > 1 else ends[:1])
