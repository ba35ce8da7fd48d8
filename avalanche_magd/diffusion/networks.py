"""What the generator needs of its network, and its default network.

diffusers' ``UNet2DModel`` is the usual one. Any other module with its call, ``network(x_t, t,
class_labels)``, serves as well. Labels go from 0, "no class", to the largest class id + 1. When
classes arrive, a network with a method ``resize_class_embedding(num_class_embeds)`` is given the
number of labels, once before old classes are generated and again before the new ones are learnt;
one with a ``class_embedding`` table has it grown; any other must have room for them. A
text-conditioned UNet is wrapped by :class:`~avalanche_magd.diffusion.text.PromptConditioned`.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ConfigMixin, UNet2DConditionModel, UNet2DModel
from jaxtyping import Float
from torch import Tensor, nn

from avalanche_magd.diffusion.schedule import Images
from avalanche_magd.diffusion.text import PromptConditioned
from avalanche_magd.runtime.precision import PRECISION


def default_network(image_shape: tuple[int, int, int]) -> UNet2DModel:
    """A class-conditional UNet for this image shape, small enough for two CPU cores."""
    side = max(image_shape[1:])
    widths = (32, 32) if side <= 16 else (16, 32, 64) if side <= 40 else (16, 32, 64, 64)
    network = UNet2DModel(
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
    return nn.Module.to(network, PRECISION)  # diffusers' own has a warning about it


def check_network(network: nn.Module, channels: int) -> None:
    """Refuse a UNet that cannot take these images, or no class labels.

    Raises:
        TypeError: the network is a text-conditioned UNet without prompts.
        ValueError: the network is for another number of channels, or has no class embedding.
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
    """Whether a network is a ``UNet2DModel`` of diffusers' and torch's modules alone.

    Its blocks with skips from the image do not count: they make tensors on the CPU in each call.
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


def padded(images: Images, network: nn.Module) -> Float[Tensor, "b c k l"]:
    """Images as a network takes them: zeros below and to the right, and in its weights' type."""
    divisor = side_divisor(network)
    bottom, right = -images.shape[-2] % divisor, -images.shape[-1] % divisor
    if bottom or right:
        images = nn.functional.pad(images, (0, right, 0, bottom))
    return images.to(weights_dtype(network))


@contextmanager
def mid_block_outputs(network: nn.Module) -> Iterator[list[Tensor]]:
    """A list that gets the outputs of the network's middle block in a block of code.

    Raises:
        TypeError: the network has no ``mid_block``, as diffusers' UNets have.
    """
    mid_block = getattr(network, "mid_block", None)
    if mid_block is None:
        raise TypeError("get_features needs a network with a `mid_block`, as UNet2DModel has.")
    outputs: list[Tensor] = []
    handle = mid_block.register_forward_hook(lambda *call: outputs.append(call[2]))
    try:
        yield outputs
    finally:
        handle.remove()


def weights_dtype(network: nn.Module) -> torch.dtype:
    """The floating-point type of a network's weights; float32 if it has none."""
    dtypes = (each.dtype for each in network.parameters() if each.is_floating_point())
    return next(dtypes, torch.float32)


def resize_class_embedding(network: nn.Module, num_class_embeds: int) -> None:
    """Make a network ready for that many labels, as the module's docstring says.

    Raises:
        ValueError: the network says that it cannot have so many.
    """
    if not ask_for_resize(network, num_class_embeds):
        _grow_class_embedding(network, num_class_embeds)


def ask_for_resize(network: nn.Module, num_class_embeds: int) -> bool:
    """Give a network the number of labels; whether it has a method for that.

    Raises:
        ValueError: the network says that it cannot have so many.
    """
    own: Callable[[int], None] | None = getattr(network, "resize_class_embedding", None)
    old: Callable[[int], None] | None = getattr(network, "make_room", None)
    if own is None and old is not None:
        message = f"{type(network).__name__}.make_room is resize_class_embedding since 0.2."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        own = old
    if own is not None:
        own(num_class_embeds)
    return own is not None


@torch.no_grad()
def _grow_class_embedding(network: nn.Module, num_class_embeds: int) -> None:
    """Add rows to a table of class embeddings that has fewer; those it has stay as they are."""
    table = getattr(network, "class_embedding", None)
    if not isinstance(table, nn.Embedding) or table.num_embeddings >= num_class_embeds:
        return
    grown = nn.Embedding(num_class_embeds, table.embedding_dim, dtype=PRECISION)
    grown = grown.to(table.weight)
    grown.weight[: table.num_embeddings] = table.weight
    grown.requires_grad_(table.weight.requires_grad)
    network.class_embedding = grown
    if isinstance(network, ConfigMixin):
        network.register_to_config(num_class_embeds=num_class_embeds)
