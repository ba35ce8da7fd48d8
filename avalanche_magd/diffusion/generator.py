"""The generator: a class-conditional denoiser that Avalanche accepts as a ``Generator``.

It stands between a user's images and the network in three ways:

* **range**: data arrive as the user's transforms leave them; they are mapped to [−1, 1] and back
  (``normalization``), or through an autoencoder to latents and back (``autoencoder``);
* **side**: a network that halves its input n times needs sides divisible by 2ⁿ. Others are padded
  with zeros on the way in and cropped on the way out;
* **classes**: they come as experiences bring them, and the embedding table grows with them. The
  network is called with ``label + 1``: row 0 is "no class", ``NULL_LABEL``. Which label stands for
  which class of a benchmark is in a ``label_map``.

References:
    Song et al. 2021, *Denoising diffusion implicit models*.
    Ho & Salimans 2022, *Classifier-free diffusion guidance* (the null label).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from avalanche.models.dynamic_modules import DynamicModule
from avalanche.models.generator import Generator
from jaxtyping import Float
from torch import Tensor, nn

from avalanche_magd.diffusion.autoencoder import LatentRange
from avalanche_magd.diffusion.image_values import SampledImages
from avalanche_magd.diffusion.label_map import NULL_LABEL, LabelledClass, LabelMap, classes_of
from avalanche_magd.diffusion.networks import (
    ask_for_resize,
    check_network,
    default_network,
    mid_block_outputs,
    padded,
    resize_class_embedding,
)
from avalanche_magd.diffusion.normalization import PixelRange, check_image_shape
from avalanche_magd.diffusion.sampling import requested_labels, reverse_runs
from avalanche_magd.diffusion.saving import (
    read_autoencoder,
    read_network,
    read_settings,
    save_folder,
)
from avalanche_magd.diffusion.schedule import (
    BetaSchedule,
    Images,
    Indices,
    NoiseSchedule,
    PredictionType,
)
from avalanche_magd.runtime.distributed import is_main_process
from avalanche_magd.runtime.validation import check_count, check_dataset, check_instance


class DiffusionGenerator(DynamicModule, Generator):
    """A class-conditional diffusion model over images.

    Inside an Avalanche strategy it adapts itself to each experience that it is trained on: the
    range of pixels is inferred from the first, classes are added as they come. Outside,
    :meth:`add_classes` and ``pixel_range.set`` do the same.

    Args:
        image_shape: channels, height and width of one image.
        network: ``network(x_t, t, class_labels)`` returns a tensor shaped like ``x_t``, or an
            object that holds it as ``sample``, as diffusers' ``UNet2DModel`` does. Default:
            :func:`~avalanche_magd.diffusion.networks.default_network` for this image shape. A
            text-conditioned UNet is :class:`~avalanche_magd.diffusion.text.PromptConditioned`.
        autoencoder: of diffusers; diffusion then runs on its latents, for which the network must
            be, and it is frozen. See :mod:`avalanche_magd.diffusion.autoencoder`.
        prediction_type: what the network's output means.
        beta_schedule: name of the noise schedule. ``prediction_type="epsilon"`` with
            ``beta_schedule="linear"`` is the setting of the earlier literature.
        num_train_timesteps: number of noise levels.
        beta_start: the first β of the noise schedule, as diffusers' schedulers have it.
        beta_end: the last β of the noise schedule.
        num_inference_steps: network calls that :meth:`generate` spends on an image.
        dtype: precision in which the network computes, by autocast. ``torch.bfloat16`` is for
            large networks, on processors that have units for it. Default: that of the weights.

    Attributes:
        label_map: the classes seen so far, and their names in the benchmark.
        pixel_range: maps images to the model's x_0 and back, through the autoencoder if there is
            one.
        latent_shape: of x_0; that of an image unless there is an autoencoder.
        forwards: network forwards so far, counted per image.

    Raises:
        TypeError: the network is a text-conditioned UNet without prompts.
        ValueError: an image side is below 4 pixels, a name is unknown, or network or autoencoder
            are for other images.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        network: nn.Module | None = None,
        autoencoder: nn.Module | None = None,
        *,
        prediction_type: PredictionType = "v_prediction",
        beta_schedule: BetaSchedule = "squaredcos_cap_v2",
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        num_inference_steps: int = 10,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_image_shape(image_shape)
        self.image_shape = self.latent_shape = image_shape
        pixel_range: PixelRange | LatentRange = PixelRange(image_shape[0])
        if autoencoder is not None:
            pixel_range = LatentRange(autoencoder, image_shape)
            self.latent_shape = pixel_range.shape
        self.network = default_network(self.latent_shape) if network is None else network
        check_network(self.network, self.latent_shape[0])
        self.schedule = NoiseSchedule(
            prediction_type, beta_schedule, num_train_timesteps, beta_start, beta_end
        )
        self.num_inference_steps = check_count("num_inference_steps", num_inference_steps)
        check_instance("dtype", torch.float32 if dtype is None else dtype, torch.dtype)
        self.dtype = dtype
        self.label_map = LabelMap()
        self.forwards = 0
        self.pixel_range = pixel_range

    def forward(self, x_t: Images, t: Indices, labels: Indices) -> Images:
        """The network's raw prediction at ``x_t``, for classes or :data:`NULL_LABEL`."""
        self.forwards += len(x_t)
        with torch.autocast(x_t.device.type, self.dtype, self.dtype not in (None, torch.float32)):
            output = self.network(padded(x_t, self.network), t, labels + 1)
        prediction: Tensor = getattr(output, "sample", output)
        return prediction[..., : x_t.shape[-2], : x_t.shape[-1]].to(x_t.dtype)

    @property
    def classes(self) -> list[int]:
        """The classes seen so far, ascending: what can be generated."""
        return self.label_map.ids

    @property
    def device(self) -> torch.device:
        """Where the generator's tensors live."""
        return next(self.pixel_range.buffers()).device

    @contextmanager
    def frozen(self) -> Iterator[Self]:
        """The generator in evaluation mode and without gradients, for a block of code."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield self
        finally:
            self.train(was_training)

    def generate(
        self,
        batch_size: int | None = None,
        condition: Indices | Sequence[int] | int | None = None,
        *,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Images in the user's range of pixel values, from runs without guidance.

        Args:
            batch_size: how many; ``None`` gives one image without a batch dimension, or as many as
                ``condition`` has labels.
            condition: class of each image, or one class for all. Default: as equal numbers of the
                seen classes as ``batch_size`` allows.
            rng: source of the noise, on this generator's device. Default: seeded from torch's
                global generator.

        Returns:
            ``batch_size`` images, channels first.

        Raises:
            RuntimeError: no class has been seen yet.
            ValueError: ``condition`` names an unseen class, or disagrees with ``batch_size``.
        """
        if rng is None:
            rng = torch.Generator(self.device).manual_seed(int(torch.randint(2**62, ())))
        labels = requested_labels(batch_size, condition, self.classes, rng)
        with self.frozen():
            runs = reverse_runs(self, labels, self.num_inference_steps, rng)
            images = torch.cat([self.pixel_range.denormalize(run.images) for run in runs])
        single = condition is None or torch.as_tensor(condition).ndim == 0
        return images[0] if batch_size is None and single else images

    @torch.no_grad()
    def get_features(self, x: Images) -> Float[Tensor, "b f"]:
        """Features of images in the user's range: the middle block's, averaged over space.

        The network is called without a class, which it knows well only if it was taught with
        classifier-free guidance.

        Raises:
            TypeError: the network has no ``mid_block``, as diffusers' UNets have.
        """
        labels = torch.full((len(x),), NULL_LABEL, device=self.device)
        with mid_block_outputs(self.network) as features:
            self(self.pixel_range.normalize(x), torch.zeros_like(labels), labels)
        return features[0].float().mean((-2, -1))

    def adaptation(self, experience: Any) -> None:
        """Avalanche's hook before an experience: add its classes; infer the first one's range.

        Experiences that are only evaluated leave the generator as it is.
        """
        if not self.training:
            return
        dataset = experience.dataset.eval()
        self.infer_range(dataset)
        self._add_classes(classes_of(dataset))

    def infer_range(self, dataset: Any) -> None:
        """Infer the pixels' range from a dataset in evaluation mode, unless it is known."""
        self.pixel_range.fit(SampledImages(dataset))

    def add_classes(self, classes: Iterable[int]) -> None:
        """Add classes; weights of those already known stay as they are.

        Raises:
            ValueError: a class index is negative, or the network cannot have so many classes.
        """
        self._add_classes((int(label), 0) for label in classes)

    def check_dataset(self, dataset: Any) -> None:
        """Refuse a dataset that cannot be learnt; infer the pixels' range if it is not known.

        It is inferred anew as long as no class is known. Which images are looked at is in
        :class:`~avalanche_magd.diffusion.image_values.SampledImages`.

        Raises:
            TypeError: its samples are not images with a class.
            ValueError: its images are of another shape, all alike or not finite, or the network
                says that it cannot have so many classes.
        """
        check_dataset(dataset, self.image_shape)
        label_map = self.label_map.with_classes(classes_of(dataset))
        ask_for_resize(self.network, label_map.num_class_embeds)
        self.pixel_range.fit_or_check(SampledImages(dataset), anew=not self.classes)

    def _add_classes(self, classes: Iterable[LabelledClass]) -> None:
        """Add classes that the network can have, or none of them."""
        label_map = self.label_map.with_classes(classes)
        resize_class_embedding(self.network, label_map.num_class_embeds)
        self.label_map = label_map

    def save_pretrained(
        self, folder: str | Path, *, data: str | None = None, cost: Any = None
    ) -> None:
        """Write the network (safetensors), everything else (JSON) and a model card into a folder.

        Adapters, as ``unet.add_adapter`` makes them, are merged into the weights that are written,
        so that nobody needs peft to load them; the generator keeps its own. The card,
        ``README.md``, is written anew each time. If anything fails, what the folder held before
        stays; files of your own in it always do. Of several processes the main one writes.

        Args:
            folder: where; made if it is not there.
            data: for the card: what the generator was trained on.
            cost: for the card: of the training, such as ``plugin.cost``.

        Raises:
            TypeError: the network is neither ``UNet2DModel`` nor ``PromptConditioned``, or the
                autoencoder is not from diffusers.
            ValueError: weights are not finite, or do not fit the network's config.
        """
        if not is_main_process():
            return
        settings = {
            "image_shape": self.image_shape,
            **self.schedule.settings,
            "num_inference_steps": self.num_inference_steps,
            "classes": self.label_map.rows,
            "pixel_range": self.pixel_range.ends,
        }
        autoencoder = getattr(self.pixel_range, "autoencoder", None)
        save_folder(Path(folder), self.network, autoencoder, settings, data=data, cost=cost)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what :meth:`save_pretrained` wrote. Runs no code from the folder, asks no network.

        Raises:
            FileNotFoundError: the folder holds no generator, or a file is missing.
            ValueError: a file was changed after it was saved, or holds what cannot be.
        """
        folder = Path(folder)
        settings = read_settings(folder)
        ends, classes = settings.pop("pixel_range"), settings.pop("classes")
        image_shape = tuple(settings.pop("image_shape"))
        generator = cls(image_shape, read_network(folder), read_autoencoder(folder), **settings)
        generator.train()
        generator.label_map = LabelMap(classes)
        generator.pixel_range.restore(ends)
        return generator
