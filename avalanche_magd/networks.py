"""What the generator needs to know about its network, and the network that it takes by default.

diffusers' ``UNet2DModel`` is the usual one. Any other module with its call, ``network(x_t, t,
class_labels)``, serves as well. Labels go from 0, "no class", to the largest class + 1. When
classes arrive, a network with a method ``make_room(rows)`` is told how many labels there are, once
before the past is generated and again before they are learnt; one with a ``class_embedding`` table
has it grown; any other must have room by itself. A UNet that is told classes in words is wrapped
by :class:`~avalanche_magd.prompts.PromptConditioned`.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ConfigMixin, UNet2DConditionModel, UNet2DModel
from torch import nn, no_grad

from avalanche_magd.prompts import PromptConditioned


def default_network(image_shape: tuple[int, int, int]) -> UNet2DModel:
    """A class-conditional UNet for this image shape, small enough for two CPU cores."""
    side = max(image_shape[1:])
    widths = (32, 32) if side <= 16 else (16, 32, 64) if side <= 40 else (16, 32, 64, 64)
    return UNet2DModel(
        in_channels=image_shape[0],
        out_channels=image_shape[0],
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * len(widths),
        up_block_types=("UpBlock2D",) * len(widths),
        layers_per_block=1,
        norm_num_groups=8,
        add_attention=False,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=1,
    )


def check_network(network: nn.Module, channels: int) -> None:
    """Refuse a UNet that cannot take these images or no class labels.

    Raises:
        TypeError: a UNet that is told classes in words, without the words.
        ValueError: another number of channels, or no class embedding.
    """
    if isinstance(network, UNet2DConditionModel):
        raise TypeError(
            "A UNet2DConditionModel takes no class labels: wrap it as PromptConditioned(unet, "
            "encode_prompts(…)), with a prompt for each class."
        )
    unet = network.unet if isinstance(network, PromptConditioned) else network
    if not isinstance(unet, (UNet2DModel, UNet2DConditionModel)):
        return
    if (unet.config.in_channels, unet.config.out_channels) != (channels, channels):
        raise ValueError(
            f"Images have {channels} channels, the network takes {unet.config.in_channels} "
            f"and gives {unet.config.out_channels}."
        )
    if network is unet and unet.class_embedding is None:
        raise ValueError(
            "The network takes no class labels: build it with UNet2DModel(num_class_embeds=1, …); "
            "the embedding grows with the classes."
        )


def is_plain_unet(network: nn.Module) -> bool:
    """Whether a network is diffusers' ``UNet2DModel`` of its own and torch's modules alone.

    Its blocks with skips from the image make tensors on the CPU in each call, and do not count.
    """
    if type(network) is not UNet2DModel:
        return False
    config: Any = network.config
    blocks = [*config.down_block_types, *config.up_block_types]
    homes = {type(each).__module__.split(".")[0] for each in network.modules()}
    return homes <= {"torch", "diffusers"} and not any("Skip" in block for block in blocks)


def side_divisor(network: nn.Module) -> int:
    """What image sides must be divisible by: each of the UNet's levels but one halves them."""
    down_blocks = getattr(network, "down_blocks", None)
    return 1 if down_blocks is None else 1 << (len(down_blocks) - 1)


def weights_dtype(network: nn.Module) -> torch.dtype:
    """What a network's weights are in, and so its images have to be; float32 if it has none."""
    dtypes = (each.dtype for each in network.parameters() if each.is_floating_point())
    return next(dtypes, torch.float32)


def make_room(network: nn.Module, rows: int) -> None:
    """Make a network ready for labels below ``rows``, as the module's docstring says.

    Raises:
        ValueError: it has no room for so many.
    """
    if not ask_for_room(network, rows):
        _grow_class_embedding(network, rows)


def ask_for_room(network: nn.Module, rows: int) -> bool:
    """Tell a network how many labels there will be, if it has a method for that.

    Returns:
        Whether it has one.

    Raises:
        ValueError: it has no room for so many.
    """
    own: Callable[[int], None] | None = getattr(network, "make_room", None)
    if own is not None:
        own(rows)
    return own is not None


@no_grad()
def _grow_class_embedding(network: nn.Module, rows: int) -> None:
    """Add rows to a table of class embeddings that has fewer; those it has stay as they are."""
    table = getattr(network, "class_embedding", None)
    if not isinstance(table, nn.Embedding) or table.num_embeddings >= rows:
        return
    grown = nn.Embedding(rows, table.embedding_dim).to(table.weight)
    grown.weight[: table.num_embeddings] = table.weight
    grown.requires_grad_(table.weight.requires_grad)
    network.class_embedding = grown
    if isinstance(network, ConfigMixin):
        network.register_to_config(num_class_embeds=rows)
