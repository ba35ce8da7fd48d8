"""The model card: what a generator's folder says about itself, where models are shared.

It is ``README.md``, with the front matter that model hubs read. The licence is left to whoever
shares the folder.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol


class Spent(Protocol):
    """What a training has cost, as :class:`~avalanche_magd.cost.Cost` counts it."""

    @property
    def forwards(self) -> int:
        """Network forwards, counted per image."""

    @property
    def seconds(self) -> float:
        """Of generation and training."""


def model_card(
    settings: dict[str, Any],
    network: str,
    parameters: int,
    autoencoder: str | None,
    *,
    data: str | None = None,
    cost: Spent | None = None,
) -> str:
    """The card's text.

    Args:
        settings: what ``generator.json`` says.
        network: kind of network.
        parameters: how many it has.
        autoencoder: its kind, if there is one.
        data: what it was trained on, in a sentence or a few.
        cost: of the training.
    """
    ends = settings["pixel_range"]
    pixels = ends["pixels"] if isinstance(ends, dict) else ends
    space = "pixels" if autoencoder is None else f"latents of an `{autoencoder}`"
    rows = [
        ("image", " × ".join(map(str, settings["image_shape"]))),
        ("pixel values", "not known yet" if pixels is None else _between(*pixels)),
        ("diffusion on", space),
        ("network", f"`{network}`, {parameters:,} parameters"),
        ("predicts", f"`{settings['prediction_type']}`"),
        ("noise", f"`{settings['beta_schedule']}`, {settings['num_train_timesteps']} levels"),
        ("network calls per image", str(settings["num_inference_steps"])),
    ]
    if cost is not None:
        rows.append(("cost", f"{cost.forwards:,} network calls, {cost.seconds:,.0f} s"))
    if data is not None:
        rows.append(("data", " ".join(data.replace("|", r"\|").split())))
    classes = [(str(number), str(label), str(task)) for number, label, task in settings["classes"]]
    return CARD.format(
        about=table(("", ""), rows),
        classes=table(("`condition`", "class index", "task label"), classes),
    )


CARD = """\
---
library_name: avalanche-magd
tags:
- avalanche
- continual-learning
- diffusion
- generative-replay
- image-generation
# license: for you to choose
---

# Class-conditional image generator

A diffusion model that was taught class by class, without keeping images of earlier classes, by
avalanche-magd.

{about}

## Use it

```python
from avalanche_magd import DiffusionGenerator

generator = DiffusionGenerator.from_pretrained("this/folder")
images = generator.generate(16)
```

Weights are safetensors and the rest is JSON: loading runs no code from this folder.

## Classes

What `generate(condition=…)` takes, and how the benchmark numbers it:

{classes}
"""


def _between(low: list[float], high: list[float]) -> str:
    """The range, once if it is that of all channels."""
    ends = [f"{low:g} to {high:g}" for low, high in zip(low, high, strict=True)]
    return ", ".join(ends if len(set(ends)) > 1 else ends[:1])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
