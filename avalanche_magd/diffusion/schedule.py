"""Noise levels: how much of an image is left at timestep t, and what the network is asked there.

An image ``x_0`` in [−1, 1] is noised to ``x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε`` with ε ~ N(0, I). The
integer ``t`` runs from 0 (almost clean) to T − 1 (almost pure noise), T = ``num_train_timesteps``.
ᾱ_t = ``alphas_cumprod[t]`` falls with t, and SNR(t) = ᾱ_t / (1 − ᾱ_t).

The network's raw output is its *prediction*. What it predicts is named as diffusers does:

=================  ======================================
``epsilon``        ε
``v_prediction``   v = √ᾱ_t ε − √(1−ᾱ_t) x_0
``sample``         x_0
=================  ======================================

Each of them gives the other two by algebra, since x_t is known.

References:
    Ho et al. 2020, *Denoising diffusion probabilistic models* (linear schedule, ε).
    Nichol & Dhariwal 2021, *Improved DDPM* (cosine schedule).
    Salimans & Ho 2022, *Progressive distillation for fast sampling* (v).
"""

import typing
from typing import Final, Literal

from diffusers import DDIMScheduler
from jaxtyping import Float, Int
from torch import Tensor

from avalanche_magd.runtime.precision import FixedPrecision
from avalanche_magd.runtime.validation import check_choice, check_count, check_number

Images = Float[Tensor, "b c h w"]
Indices = Int[Tensor, " b"]
Scales = Float[Tensor, "b 1 1 1"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]

MAX_TIMESTEPS: Final = 100_000
"""A hundred times the usual number; building a noise schedule of so many takes 0.2 s."""


class NoiseSchedule(FixedPrecision):
    """Noise levels by timestep, and the conversions between ε, v and x_0.

    A module without parameters: its tables follow the generator from device to device.

    Args:
        prediction_type: what the network's output means.
        beta_schedule: name of the noise schedule; its constants are those of diffusers.
        num_train_timesteps: T, the number of noise levels, at most 100,000.
        beta_start: the first β; ``squaredcos_cap_v2`` ignores it.
        beta_end: the last β; ``squaredcos_cap_v2`` ignores it.

    Attributes:
        settings: the arguments, by name.

    Raises:
        ValueError: an unknown name, too few or too many timesteps, or β not rising within (0, 1).
    """

    alphas_cumprod: Float[Tensor, " t"]

    def __init__(
        self,
        prediction_type: str = "v_prediction",
        beta_schedule: str = "squaredcos_cap_v2",
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
    ) -> None:
        super().__init__()
        check_choice("prediction_type", prediction_type, typing.get_args(PredictionType))
        check_choice("beta_schedule", beta_schedule, typing.get_args(BetaSchedule))
        num_train_timesteps = check_count("num_train_timesteps", num_train_timesteps, at_least=2)
        check_number("num_train_timesteps", num_train_timesteps, at_least=2, at_most=MAX_TIMESTEPS)
        beta_start = check_number("beta_start", beta_start, at_least=0, at_most=1)
        beta_end = check_number("beta_end", beta_end, at_least=0, at_most=1)
        if not 0 < beta_start < beta_end < 1:
            raise ValueError(
                f"beta_start and beta_end must rise within (0, 1), got {beta_start}, {beta_end}."
            )
        self.prediction_type = prediction_type
        self.num_train_timesteps = num_train_timesteps
        self.settings = {
            "prediction_type": prediction_type,
            "beta_schedule": beta_schedule,
            "num_train_timesteps": num_train_timesteps,
            "beta_start": beta_start,
            "beta_end": beta_end,
        }
        betas = DDIMScheduler(num_train_timesteps, beta_start, beta_end, beta_schedule).betas
        # In double precision: near t = 0 the noise is what float32 would round away in 1 − ᾱ.
        alphas_cumprod = (1 - betas.double()).cumprod(0)
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    def snr(self, t: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Signal-to-noise ratio ``ᾱ_t / (1 − ᾱ_t)``; larger is cleaner."""
        alphas_cumprod = self.alphas_cumprod[t]
        return alphas_cumprod / (1 - alphas_cumprod)

    def scales(self, t: Indices, images: Images) -> tuple[Scales, Scales]:
        """``√ᾱ_t`` and ``√(1−ᾱ_t)``, in the precision of the images that they will scale."""
        alphas_cumprod = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return alphas_cumprod.sqrt().to(images.dtype), (1 - alphas_cumprod).sqrt().to(images.dtype)

    def add_noise(self, x_0: Images, noise: Images, t: Indices) -> Images:
        """The noised image ``x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε``."""
        signal, sigma = self.scales(t, x_0)
        return signal * x_0 + sigma * noise

    def target(self, x_0: Images, noise: Images, t: Indices) -> Images:
        """What a perfect network would predict at ``add_noise(x_0, noise, t)``."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x_0
        signal, sigma = self.scales(t, x_0)
        return signal * noise - sigma * x_0

    def prediction(self, x_0: Images, x_t: Images, t: Indices) -> Images:
        """The prediction at x_t that stands for a clean image: what :meth:`denoised` undoes."""
        signal, sigma = self.scales(t, x_t)
        return self.target(x_0, (x_t - signal * x_0) / sigma, t)

    def denoised(self, prediction: Images, x_t: Images, t: Indices) -> Images:
        """The clean image x̂_0 that a prediction at x_t stands for."""
        if self.prediction_type == "sample":
            return prediction
        signal, sigma = self.scales(t, x_t)
        if self.prediction_type == "epsilon":
            return (x_t - sigma * prediction) / signal
        return signal * x_t - sigma * prediction
