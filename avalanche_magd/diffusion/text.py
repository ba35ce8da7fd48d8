"""Text conditioning: a text-conditioned UNet, whose classes are prompts.

A UNet that was trained on captions is conditioned on the hidden states of a text encoder. Each
class has one prompt, which is encoded once, before training: :class:`PromptConditioned` keeps the
hidden states, a row for each class, and is called with a class, as any network of this package is.
Row 0 is the empty prompt, "no class". The text encoder is not needed afterwards.

Class 4 is row 5, whatever the order in which classes arrive, so prompts for the classes of the
whole benchmark are given at the start.

References:
    Rombach et al. 2022, *High-resolution image synthesis with latent diffusion models*.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from avalanche_magd.diffusion.schedule import Images, Indices

UNBOUNDED: Final = 10**6
"""Above this, a tokenizer's ``model_max_length`` means that it has none."""


@torch.no_grad()
def encode_prompts(
    prompts: Sequence[str], tokenizer: Any, text_encoder: Any, *, max_length: int | None = None
) -> Float[Tensor, "n l d"]:
    """The hidden states of prompts, padded to one length.

    Args:
        prompts: the empty one, for "no class", and then one for each class, by its id.
        tokenizer: of transformers, such as a pipeline's ``tokenizer``.
        text_encoder: of transformers, such as a pipeline's ``text_encoder``.
        max_length: tokens of a prompt; longer ones are cut. Default: what the tokenizer says.

    Raises:
        ValueError: the first prompt is not empty, or no length is known.
    """
    if not prompts or prompts[0]:
        raise ValueError(
            'The first prompt stands for "no class" and must be empty: give ["", …], then one '
            "prompt for each class."
        )
    length = tokenizer.model_max_length if max_length is None else max_length
    if length > UNBOUNDED:
        raise ValueError("The tokenizer knows no model_max_length: give max_length.")
    padded: dict[str, Any] = {"padding": "max_length", "max_length": length, "truncation": True}
    tokens = tokenizer(list(prompts), return_tensors="pt", **padded)
    hidden: Tensor = text_encoder(tokens.input_ids.to(text_encoder.device))[0]
    return hidden


class PromptConditioned(nn.Module):
    """A text-conditioned UNet as the network of a generator.

    Low-rank adapters make a small student of a large UNet: freeze it, ``unet.add_adapter(…)``, and
    only they are trained, averaged and checkpointed.

    Args:
        unet: of diffusers, such as a pipeline's ``unet``.
        embeddings: hidden states of the prompts, as :func:`encode_prompts` gives them: row 0 of
            the empty prompt, row k + 1 of class k.

    Raises:
        TypeError: ``unet`` is not a ``UNet2DConditionModel``.
        ValueError: ``embeddings`` do not fit the UNet, or the UNet is conditioned on more than a
            prompt.
    """

    embeddings: Float[Tensor, "n l d"]

    def __init__(self, unet: UNet2DConditionModel, embeddings: Float[Tensor, "n l d"]) -> None:
        super().__init__()
        if not isinstance(unet, UNet2DConditionModel):
            raise TypeError(
                "PromptConditioned needs a diffusers UNet2DConditionModel, got a "
                f"{type(unet).__name__}. Adapters are added inside, by unet.add_adapter(…)."
            )
        _check_conditions(unet, embeddings)
        self.unet = unet
        self.register_buffer("embeddings", embeddings.detach().clone())

    def forward(self, x_t: Images, t: Indices, class_labels: Indices) -> Images:
        """The UNet's prediction; ``class_labels`` are rows of the prompts."""
        prompts = self.embeddings[class_labels].to(x_t.dtype)
        return self.unet(x_t, t, encoder_hidden_states=prompts).sample  # type: ignore[no-any-return]

    def resize_class_embedding(self, num_class_embeds: int) -> None:
        """Refuse classes that have no prompt.

        Raises:
            ValueError: there are fewer prompts than labels, "no class" included.
        """
        if num_class_embeds > len(self.embeddings):
            raise ValueError(
                f"There is no prompt for class {num_class_embeds - 2}: the prompts are those of "
                f"classes 0 to {len(self.embeddings) - 2}. Give PromptConditioned the embeddings "
                "of the empty prompt and of all classes of the benchmark, "
                f"{num_class_embeds} rows or more."
            )

    def enable_gradient_checkpointing(self) -> None:
        """Keep fewer activations for the backward pass, and compute the others again."""
        self.unet.enable_gradient_checkpointing()

    @property
    def down_blocks(self) -> nn.ModuleList:
        """The UNet's levels."""
        return self.unet.down_blocks  # type: ignore[no-any-return]

    @property
    def mid_block(self) -> nn.Module:
        """Where features are taken from."""
        return self.unet.mid_block  # type: ignore[no-any-return]


def _check_conditions(unet: UNet2DConditionModel, embeddings: Tensor) -> None:
    if embeddings.ndim != 3 or not len(embeddings):
        raise ValueError(
            "Embeddings must be prompts × tokens × dimensions, as encode_prompts gives them; got "
            f"shape {tuple(embeddings.shape)}."
        )
    wanted = unet.config.cross_attention_dim
    for dimension in [wanted] if isinstance(wanted, int) else wanted:
        if dimension != embeddings.shape[-1]:
            raise ValueError(
                f"The embeddings have {embeddings.shape[-1]} dimensions, the UNet's "
                f"cross_attention_dim is {dimension}: take the text encoder that it was trained "
                "with."
            )
    others = (unet.config.addition_embed_type, unet.config.encoder_hid_dim_type)
    if any(others) or unet.class_embedding is not None:
        raise ValueError(
            "The UNet asks for more than a prompt (class labels, pooled text or image "
            "embeddings): only those that ask for a prompt alone are supported."
        )
