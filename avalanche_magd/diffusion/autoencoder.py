"""Latents: diffusion on what an autoencoder makes of images.

An autoencoder of diffusers, trained elsewhere and frozen here, maps images to a few channels of
smaller sides. :class:`LatentRange` stands where
:class:`~avalanche_magd.diffusion.normalization.PixelRange` does, and has its methods. On the way
in, images become those in [−1, 1] that the autoencoder expects, then latents, and these become the
model's x_0 as pixels do: channel by channel, by the extremes that the first experience shows. The
way out is the same backwards. A pool keeps images for the solver; its lessons are latents.

Encoding is deterministic: where an autoencoder answers with a distribution, its mode is taken.

References:
    Rombach et al. 2022, *High-resolution image synthesis with latent diffusion models*.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Any, Final, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avalanche_magd.diffusion.image_values import Image, Values, check_finite, place
from avalanche_magd.diffusion.normalization import PixelRange

BATCH_SIZE: Final = 32
"""Images that are encoded or decoded at once: at full size they take more memory than latents."""

ADVICE: Final = "Use an autoencoder whose weights are finite, in torch.float32 if need be"
"""Where latents are not finite: in half precision they may overflow."""


class LatentRange(nn.Module):
    """An autoencoder with the ranges of its images and of its latents.

    Args:
        autoencoder: of diffusers, such as ``AutoencoderKL`` or ``AutoencoderTiny``; it is frozen,
            and stays in evaluation mode.
        image_shape: channels, height and width of one image.

    Attributes:
        pixels: the images' range.
        latents: that of the latents.
        shape: channels, height and width of one image's latents.

    Raises:
        ValueError: the autoencoder is for images of another shape.
    """

    def __init__(self, autoencoder: Any, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.pixels = PixelRange(image_shape[0])
        self.shape = _latent_shape(autoencoder, image_shape)
        self.latents = PixelRange(self.shape[0])

    @property
    def known(self) -> bool:
        """Whether both ranges were set."""
        return self.pixels.known and self.latents.known

    def set(self, low: Values, high: Values) -> None:
        """Set the latents' range; ``pixels.set`` sets the images'.

        Raises:
            ValueError: a channel's ``low`` is not below its ``high``.
        """
        self.latents.set(low, high)

    def fit(self, images: Iterable[Image], *, anew: bool = False) -> None:
        """Set what is not known yet to the extremes of images, which are iterated over twice.

        Both ranges are set, or none.

        Args:
            images: to look at.
            anew: whether ranges that were found before are found again.

        Raises:
            ValueError: there are no images, a pixel or a latent is not finite, or all pixels or
                latents are the same.
        """
        pixels, latents = copy.deepcopy(self.pixels), copy.deepcopy(self.latents)
        pixels.fit(images, anew=anew, setter="pixel_range.pixels.set")
        latents.fit(self._encoded(images, pixels), unit=False, anew=anew, what="Latents")
        for own, found in ((self.pixels, pixels), (self.latents, latents)):
            if found.fitted:
                own.set(found.low, found.high)
                own.fitted = True

    def fit_or_check(self, images: Iterable[Image], *, anew: bool) -> None:
        """As :meth:`.PixelRange.fit_or_check`, of images and latents."""
        if self.known and not (anew and (self.pixels.fitted or self.latents.fitted)):
            self.check(images)
        else:
            self.fit(images, anew=anew)

    def check(self, images: Iterable[Image]) -> None:
        """Warn if images or their latents leave the known range by more than a tenth of it.

        Raises:
            ValueError: there are no images, or a pixel or a latent is not finite.
        """
        self.pixels.check(images, setter="pixel_range.pixels.set")
        self.latents.check(self._encoded(images, self.pixels), "Latents")

    def normalize(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d k l"]:
        """Map images from the user's range to latents in [−1, 1]; without gradients.

        Raises:
            ValueError: an image has a pixel, or a latent, that is not finite.
        """
        latents = self._encode(self.pixels.normalize(images))
        check_finite(latents, "What the autoencoder makes of a batch of images", ADVICE)
        return self.latents.normalize(latents)

    def denormalize(self, x_0: Float[Tensor, "b d k l"]) -> Float[Tensor, "b c h w"]:
        """Map latents from [−1, 1] to images within the user's range; differentiable."""
        parts = torch.split(self.latents.denormalize(x_0).to(self.autoencoder.dtype), BATCH_SIZE)
        images = torch.cat([self.autoencoder.decode(part).sample for part in parts])
        return self.pixels.denormalize(images.to(x_0.dtype).clamp(-1, 1))

    def to_unit(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Map images from the user's range to [0, 1]."""
        return self.pixels.to_unit(images)

    @property
    def ends(self) -> dict[str, list[list[float]] | None]:
        """Both ranges, as JSON has them."""
        return {"pixels": self.pixels.ends, "latents": self.latents.ends}

    def restore(self, ends: dict[str, list[list[float]] | None]) -> None:
        """Take over what :attr:`ends` gave."""
        self.pixels.restore(ends["pixels"])
        self.latents.restore(ends["latents"])

    def train(self, mode: bool = True) -> Self:
        """As any module, but for the autoencoder."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    def _encoded(self, images: Iterable[Tensor], pixels: PixelRange) -> Iterator[Tensor]:
        for index, image in enumerate(images):
            batch = image[None].float().to(pixels.low.device)
            latents = self._encode(pixels.normalize(batch))[0].cpu()
            made_of = f"What the autoencoder makes of {place(images, index)}"
            check_finite(latents, made_of, ADVICE)
            yield latents

    def _encode(self, images: Tensor) -> Tensor:
        parts = torch.split(images, BATCH_SIZE)
        return torch.cat([_encode(self.autoencoder, part) for part in parts])


@torch.no_grad()
def _encode(autoencoder: Any, images: Tensor) -> Tensor:
    output = autoencoder.encode(images.to(autoencoder.dtype))
    distribution = getattr(output, "latent_dist", None)
    latents: Tensor = output.latents if distribution is None else distribution.mode()
    return latents.to(images.dtype)


@torch.no_grad()
def _latent_shape(autoencoder: Any, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape of an image's latents, found by encoding one.

    Raises:
        ValueError: the autoencoder is for images of another shape.
    """
    wanted = autoencoder.config.in_channels
    if wanted != image_shape[0]:
        raise ValueError(
            f"Images have {image_shape[0]} channels, the autoencoder takes {wanted}: change them "
            "in the benchmark's transform; gray ones become colour ones by image.repeat(3, 1, 1)."
        )
    image = torch.zeros(1, *image_shape, device=autoencoder.device)
    latents = _encode(autoencoder, image)
    again = autoencoder.decode(latents.to(autoencoder.dtype)).sample
    if again.shape != image.shape:
        raise ValueError(
            f"Images of {image_shape[1]}×{image_shape[2]} pixels come back from the autoencoder "
            f"as {again.shape[2]}×{again.shape[3]}: make their sides divisible by what it divides "
            "them by, in the benchmark's transform."
        )
    return (latents.shape[1], latents.shape[2], latents.shape[3])
