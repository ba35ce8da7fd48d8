"""The generator: a class-conditional denoiser that Avalanche accepts as a ``Generator``.

Three things stand between a user's images and the network, and all three live here:

* **range**: data arrive as the user's transforms leave them; :mod:`avalanche_magd.pixels` maps
  them to [−1, 1] and back, and :mod:`avalanche_magd.latents` does so by way of an autoencoder;
* **side**: a network that halves its input n times needs sides divisible by 2ⁿ. Others are padded
  with zeros on the way in and cropped on the way out;
* **classes**: they come as experiences bring them, and the embedding table grows with them. The
  network is called with ``label + 1``: row 0 is "no class", ``NULL_LABEL``. Which label stands for
  which class of a benchmark, :mod:`avalanche_magd.classes` says.

References:
    Song et al. 2021, *Denoising diffusion implicit models*.
    Ho & Salimans 2022, *Classifier-free diffusion guidance* (the null label).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import torch
from avalanche.models.dynamic_modules import DynamicModule
from avalanche.models.generator import Generator
from jaxtyping import Float, Int
from torch import Tensor, nn

from avalanche_magd.arguments import check_count
from avalanche_magd.card import Spent, model_card
from avalanche_magd.classes import NULL_LABEL, ClassTable, LabelledClass, classes_of
from avalanche_magd.latents import LatentRange
from avalanche_magd.networks import (
    ask_for_room,
    check_network,
    default_network,
    make_room,
    side_divisor,
    weights_dtype,
)
from avalanche_magd.pixels import PixelRange, check_image_shape
from avalanche_magd.processes import is_main_process
from avalanche_magd.sampling import balanced_labels, reverse_runs
from avalanche_magd.saving import (
    read_autoencoder,
    read_network,
    read_settings,
    save_autoencoder,
    save_card,
    save_network,
    save_settings,
)
from avalanche_magd.schedule import BetaSchedule, NoiseSchedule, PredictionType

RANGE_SAMPLES: Final = 1000
"""Images of the first experience that are looked at to infer the pixels' range."""


class DiffusionGenerator(DynamicModule, Generator):
    """A class-conditional diffusion model over images.

    Inside an Avalanche strategy it adapts itself to each experience it is trained on: the range
    of pixels is read off the first, classes are added as they come. Outside, :meth:`add_classes`
    and ``pixel_range.set`` do the same.

    Args:
        image_shape: channels, height and width of one image.
        network: ``network(x_t, t, class_labels)`` returns a tensor shaped like ``x_t``, or an
            object that holds it as ``sample``, as diffusers' ``UNet2DModel`` does. Default:
            :func:`~avalanche_magd.networks.default_network` for this image shape. A UNet that is
            told classes in words is :class:`~avalanche_magd.prompts.PromptConditioned`.
        autoencoder: of diffusers; diffusion then runs on its latents, for which the network must
            be, and it is frozen. See :mod:`avalanche_magd.latents`.
        prediction_type: what the network's output means.
        beta_schedule: name of the noise schedule. ``prediction_type="epsilon"`` with
            ``beta_schedule="linear"`` is the setting of the earlier literature.
        num_train_timesteps: number of noise levels.
        beta_start: of the noise schedule, as diffusers' schedulers have it.
        beta_end: likewise.
        num_inference_steps: network calls that :meth:`generate` spends on an image.
        dtype: precision in which the network computes, by autocast; its weights keep theirs.
            ``torch.bfloat16`` is for large networks, on processors that have units for it; the
            default networks gain nothing by it on a GPU. Default: that of the weights.

    Attributes:
        class_table: the classes seen so far, and what the benchmark calls them.
        pixel_range: maps images to the model's x_0 and back, through the autoencoder if there is
            one.
        latent_shape: of x_0; that of an image unless there is an autoencoder.
        forwards: network forwards so far, counted per image.

    Raises:
        TypeError: a text-conditioned UNet without prompts.
        ValueError: an image side below 4 pixels, an unknown name, a network or an autoencoder for
            other images.
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
        check_count("num_inference_steps", num_inference_steps)
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
        self.num_inference_steps = num_inference_steps
        self.dtype = dtype
        self.class_table = ClassTable()
        self.forwards = 0
        self.pixel_range = pixel_range

    def forward(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        labels: Int[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """The network's raw prediction at ``x_t``.

        Args:
            x_t: noised images, or latents, whose clean originals lie in [−1, 1].
            t: timestep of each.
            labels: class of each, or :data:`NULL_LABEL`.
        """
        self.forwards += len(x_t)
        height, width = x_t.shape[-2:]
        divisor = side_divisor(self.network)
        bottom, right = -height % divisor, -width % divisor
        if bottom or right:
            x_t = nn.functional.pad(x_t, (0, right, 0, bottom))
        enabled = self.dtype not in (None, torch.float32)
        with torch.autocast(x_t.device.type, self.dtype, enabled):
            output = self.network(x_t.to(weights_dtype(self.network)), t, labels + 1)
        prediction: Tensor = getattr(output, "sample", output)
        return prediction[..., :height, :width].to(x_t.dtype)

    @property
    def classes(self) -> list[int]:
        """The classes seen so far, ascending: what can be generated."""
        return self.class_table.numbers

    @property
    def device(self) -> torch.device:
        """Where the generator's tensors live."""
        return next(self.pixel_range.buffers()).device

    @contextmanager
    def frozen(self) -> Iterator[Self]:
        """The generator as a teacher: in evaluation mode and without gradients, for a while."""
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
        condition: Int[Tensor, " b"] | Sequence[int] | int | None = None,
        *,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Images in the user's range of pixel values, from runs that nothing steers.

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
        labels = self._requested_labels(batch_size, condition, rng)
        steps = self.num_inference_steps
        with self.frozen():
            runs = reverse_runs(self, self.schedule, self.latent_shape, labels, steps, rng)
            images = torch.cat([self.pixel_range.to_data(run.images) for run in runs])
        single = condition is None or torch.as_tensor(condition).ndim == 0
        return images[0] if batch_size is None and single else images

    def _requested_labels(
        self,
        batch_size: int | None,
        condition: Tensor | Sequence[int] | int | None,
        rng: torch.Generator,
    ) -> Int[Tensor, " b"]:
        if not self.classes:
            raise RuntimeError("The generator has seen no class yet: train it first.")
        if batch_size is not None:
            check_count("batch_size", batch_size)
        if condition is None:
            return balanced_labels(batch_size or 1, self.classes, rng)
        labels = torch.as_tensor(condition, device=self.device).long().reshape(-1)
        if unseen := set(labels.tolist()) - set(self.classes):
            raise ValueError(
                f"condition names classes {sorted(unseen)} that the generator has not seen; "
                f"it knows {self.classes}."
            )
        if len(labels) == 1 and batch_size:
            labels = labels.repeat(batch_size)
        if batch_size is not None and len(labels) != batch_size:
            raise ValueError(
                f"batch_size is {batch_size}, but condition has {len(labels)} labels."
            )
        return labels

    @torch.no_grad()
    def get_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """Features of images: the network's middle block on them, averaged over space.

        They are asked for without a class, which a generator knows well only if it was taught with
        guidance.

        Args:
            x: images in the user's range of pixel values.

        Raises:
            TypeError: the network has no ``mid_block``, as diffusers' UNets have.
        """
        mid_block = getattr(self.network, "mid_block", None)
        if mid_block is None:
            raise TypeError("get_features needs a network with a `mid_block`, as UNet2DModel has.")
        features: list[Tensor] = []
        handle = mid_block.register_forward_hook(lambda *call: features.append(call[2]))
        labels = torch.full((len(x),), NULL_LABEL, device=self.device)
        try:
            self(self.pixel_range.to_model(x), torch.zeros_like(labels), labels)
        finally:
            handle.remove()
        return features[0].float().mean((-2, -1))

    def adaptation(self, experience: Any) -> None:
        """Avalanche's hook before an experience: learn its classes, and the first one's range.

        Experiences that are only evaluated leave the generator as it is.
        """
        if not self.training:
            return
        dataset = experience.dataset.eval()
        self.infer_range(dataset)
        self._add_to_table(classes_of(dataset))

    def infer_range(self, dataset: Any) -> None:
        """Read the pixels' range off a dataset in evaluation mode, unless it is known.

        Raises:
            ValueError: there are no images, or all their pixels are the same.
        """
        self.pixel_range.read(_Sample(dataset))

    def check_range(self, dataset: Any) -> None:
        """Warn if images leave the known range by more than a tenth of it."""
        self.pixel_range.check(_Sample(dataset))

    def add_classes(self, classes: Iterable[int]) -> None:
        """Make room for more classes; weights of those already known stay as they are.

        Raises:
            ValueError: a negative class index, or the network has no room for it.
        """
        self._add_to_table((int(label), 0) for label in classes)

    def check_classes(self, dataset: Any) -> None:
        """Refuse a dataset's classes if the network says that it cannot have them.

        Raises:
            ValueError: it says so.
        """
        ask_for_room(self.network, self._table_with(classes_of(dataset)).room)

    def _add_to_table(self, classes: Iterable[LabelledClass]) -> None:
        """Add classes for which the network has room, or none of them."""
        table = self._table_with(classes)
        make_room(self.network, table.room)
        self.class_table = table

    def _table_with(self, classes: Iterable[LabelledClass]) -> ClassTable:
        table = ClassTable(self.class_table.rows)
        table.add(classes)
        return table

    def save_pretrained(
        self, folder: str | Path, *, data: str | None = None, cost: Spent | None = None
    ) -> None:
        """Write the network (safetensors), everything else (JSON) and a model card into a folder.

        Adapters, as ``unet.add_adapter`` makes them, are merged into the weights that are written,
        so that nobody needs peft to load them; the generator keeps its own. The card,
        ``README.md``, is written anew each time. Of several processes the main one writes.

        Args:
            folder: where; made if it is not there.
            data: for the card: what the generator was trained on.
            cost: for the card: of its training, such as ``plugin.cost``.

        Raises:
            TypeError: the network is neither ``UNet2DModel`` nor ``PromptConditioned``, or the
                autoencoder is not from diffusers.
        """
        if not is_main_process():
            return
        save_network(self.network, Path(folder))
        autoencoder = None
        if isinstance(self.pixel_range, LatentRange):
            save_autoencoder(self.pixel_range.autoencoder, Path(folder))
            autoencoder = type(self.pixel_range.autoencoder).__name__
        settings = {
            "image_shape": self.image_shape,
            **self.schedule.settings,
            "num_inference_steps": self.num_inference_steps,
            "classes": self.class_table.rows,
            "pixel_range": self.pixel_range.ends,
        }
        card = model_card(
            settings,
            type(self.network).__name__,
            sum(each.numel() for each in self.network.parameters()),
            autoencoder,
            data=data,
            cost=cost,
        )
        save_card(card, Path(folder))
        save_settings(settings, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what :meth:`save_pretrained` wrote. Runs no code from the folder.

        Raises:
            FileNotFoundError: the folder holds no generator.
        """
        folder = Path(folder)
        settings = read_settings(folder)
        ends, classes = settings.pop("pixel_range"), settings.pop("classes")
        image_shape = tuple(settings.pop("image_shape"))
        generator = cls(image_shape, read_network(folder), read_autoencoder(folder), **settings)
        generator.train()
        generator.class_table = ClassTable(classes)
        generator.pixel_range.restore(ends)
        return generator


class _Sample:
    """Some images of a dataset, spread evenly, read anew each time they are gone through."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Tensor]:
        stride = -(-len(self.dataset) // RANGE_SAMPLES) or 1
        return (self.dataset[row][0] for row in range(0, len(self.dataset), stride))
