"""Samplers: from the state at one timestep to the state at the next.

Each is made anew for a run and called once between two timesteps, with the state, the clean image
x̂_0 that was read off the denoiser's prediction there, and both timesteps. All of them put the next
state exactly at the next timestep's noise level, on any grid, with a grid of its own for each
image, so that every state is a valid lesson. They ask the denoiser nothing themselves.

``α = √ᾱ`` and ``σ = √(1−ᾱ)``; ``λ = log α/σ`` rises towards the clean image. A prime marks the
next timestep, ``h = λ' − λ``.

References:
    Song et al. 2021, *Denoising diffusion implicit models*, eqs. 12 and 16.
    Lu et al. 2022, *DPM-Solver++*, algorithm 2 (2M).
    Zhao et al. 2023, *UniPC: a unified predictor-corrector framework*, order 2 with B₂(h).
"""

import typing
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avalanche_magd.schedule import NoiseSchedule, check_name

Images = Float[Tensor, "b c h w"]
Indices = Int[Tensor, " b"]
SamplerName = Literal["ddim", "dpmpp_2m", "unipc"]
DEFAULT_SAMPLER: Final[SamplerName] = "unipc"
"""At few steps the best of the three, by ``examples/compare.py --groups samplers``."""


class DDIM:
    """The straight line through x_t and x̂_0; with η, a share of its noise is drawn anew.

    Args:
        schedule: noise levels.
        eta: η; 0 is deterministic, 1 has the variance of ancestral sampling.
        rng: source of new noise, on the images' device.
    """

    def __init__(self, schedule: NoiseSchedule, eta: float, rng: torch.Generator) -> None:
        self.schedule = schedule
        self.eta = eta
        self.rng = rng

    def step(self, x_0: Images, x_t: Images, t: Indices, next_t: Indices) -> Images:
        """The state at ``next_t``."""
        signal, sigma = self.schedule.scales(t, x_t)
        noise = (x_t - signal * x_0) / sigma
        if self.eta:
            ratio = self.schedule.snr(t) / self.schedule.snr(next_t)
            share = _scale(self.eta**2 * (1 - ratio), x_t)
            new = torch.randn(x_t.shape, generator=self.rng, device=x_t.device, dtype=x_t.dtype)
            noise = (1 - share).sqrt() * noise + share.sqrt() * new
        return self.schedule.add_noise(x_0, noise, next_t)


class DPMSolver:
    """DPM-Solver++ (2M): x̂_0 drawn out in a line through the last two.

    Args:
        schedule: noise levels.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        self._last: tuple[Images, Indices] | None = None

    def step(self, x_0: Images, x_t: Images, t: Indices, next_t: Indices) -> Images:
        """The state at ``next_t``."""
        extrapolated = x_0
        if self._last is not None:
            last_x_0, last_t = self._last
            slope = _distance(self.schedule, t, next_t) / _distance(self.schedule, last_t, t)
            extrapolated = x_0 + _scale(slope / 2, x_t) * (x_0 - last_x_0)
        self._last = x_0, t
        return exponential_step(self.schedule, extrapolated, x_t, t, next_t)


class UniPC:
    """DPM-Solver++ (2M), whose state is corrected once the denoiser was asked there.

    The corrected state is where the next step starts from, not what the denoiser saw: lessons are
    the states that it saw.

    Args:
        schedule: noise levels.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        self._predictor = DPMSolver(schedule)
        # Corrected states, x̂_0 and timesteps of the last steps, newest last.
        self._past: list[tuple[Images, Images, Indices]] = []

    def step(self, x_0: Images, x_t: Images, t: Indices, next_t: Indices) -> Images:
        """The state at ``next_t``."""
        if self._past:
            x_t = self._corrected(x_0, t)
        self._past = [*self._past[-1:], (x_t, x_0, t)]
        return self._predictor.step(x_0, x_t, t, next_t)

    def _corrected(self, x_0: Images, t: Indices) -> Images:
        """The state at t again, from the last one, now that x̂_0 is known at its end too."""
        last_x, last_x_0, last_t = self._past[-1]
        h = _distance(self.schedule, last_t, t)
        # φ-functions of −h over B₂(h) = e^{−h} − 1: what an exact integral of a polynomial gives.
        b = torch.expm1(-h)
        phi_2 = b / -h - 1
        phi_3 = phi_2 / -h - 1 / 2
        if len(self._past) == 1:
            drawn = 0.5 * (x_0 - last_x_0)
        else:
            _, older_x_0, older_t = self._past[-2]
            r = -_distance(self.schedule, older_t, last_t) / h
            end = (2 * phi_3 / b - r * phi_2 / b) / (1 - r)
            older = phi_2 / b - end
            drawn = _scale(older / r, last_x) * (older_x_0 - last_x_0)
            drawn = drawn + _scale(end, last_x) * (x_0 - last_x_0)
        return exponential_step(self.schedule, last_x_0 + drawn, last_x, last_t, t)


Sampler = DDIM | DPMSolver | UniPC


def make_sampler(name: str, schedule: NoiseSchedule, eta: float, rng: torch.Generator) -> Sampler:
    """A sampler for one run; see :func:`check_sampler` for what is refused."""
    if name == "ddim":
        return DDIM(schedule, eta, rng)
    return DPMSolver(schedule) if name == "dpmpp_2m" else UniPC(schedule)


def check_sampler(name: str, eta: float) -> None:
    """Refuse an unknown sampler, and new noise where a sampler draws none.

    Raises:
        ValueError: likewise.
    """
    check_name("sampler", name, typing.get_args(SamplerName))
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, got {eta!r}.")
    if eta and name != "ddim":
        raise ValueError(f"eta={eta} needs sampler='ddim': {name!r} is deterministic.")


def exponential_step(
    schedule: NoiseSchedule, x_0: Images, x_t: Images, t: Indices, next_t: Indices
) -> Images:
    """``(σ'/σ) x_t − α' (e^{−h} − 1) x̂_0``: exact while x̂_0 stays what it is."""
    ratio = ((1 - schedule.alphas_cumprod[next_t]) / (1 - schedule.alphas_cumprod[t])).sqrt()
    gain = -torch.expm1(-_distance(schedule, t, next_t)) * schedule.alphas_cumprod[next_t].sqrt()
    return _scale(ratio, x_t) * x_t + _scale(gain, x_t) * x_0


def _distance(schedule: NoiseSchedule, t: Indices, next_t: Indices) -> Float[Tensor, " b"]:
    """H > 0, in double precision."""
    return (schedule.snr(next_t).log() - schedule.snr(t).log()) / 2


def _scale(values: Float[Tensor, " b"], images: Images) -> Float[Tensor, "b 1 1 1"]:
    return values.view(-1, 1, 1, 1).to(images.dtype)
