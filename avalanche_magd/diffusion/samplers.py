"""Samplers: from the state at one timestep to the state at the next.

A sampler is chosen by passing it, ``Distillation(sampler=DDIM(eta=0.3))``. Its :meth:`begin` gives
the step function of one reverse run, which is called once between two timesteps. All samplers put
the next state exactly at the next timestep's noise level, on any grid, with a grid of its own for
each image, so that every state is a valid lesson. They never call the denoiser.

``α = √ᾱ`` and ``σ = √(1−ᾱ)``; ``λ = log α/σ`` rises towards the clean image. A prime marks the
next timestep, ``h = λ' − λ``.

References:
    Song et al. 2021, *Denoising diffusion implicit models*, eqs. 12 and 16.
    Lu et al. 2022, *DPM-Solver++*, algorithm 2 (2M).
    Zhao et al. 2023, *UniPC: a unified predictor-corrector framework*, order 2 with B₂(h).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from avalanche_magd.diffusion.schedule import Images, Indices, NoiseSchedule, Scales
from avalanche_magd.runtime.validation import check_number

Step = Callable[[Images, Images, Indices, Indices], Images]
"""``(x̂_0, x_t, t, next_t) → the state at next_t``."""


@runtime_checkable
class Sampler(Protocol):
    """What steps through a reverse run."""

    def begin(self, schedule: NoiseSchedule, rng: torch.Generator) -> Step:
        """The step function of one run; ``rng`` is for samplers that draw new noise."""


@dataclass(frozen=True)
class DDIM:
    """The straight line through x_t and x̂_0; with η, a share of its noise is drawn anew.

    Args:
        eta: η in [0, 1]; 0 is deterministic, 1 has the variance of ancestral sampling.

    Raises:
        ValueError: ``eta`` is outside its range.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        eta = check_number("eta", self.eta, at_least=0, at_most=1)
        object.__setattr__(self, "eta", eta)

    def begin(self, schedule: NoiseSchedule, rng: torch.Generator) -> Step:
        """See :class:`Sampler`."""

        def step(x_0: Images, x_t: Images, t: Indices, next_t: Indices) -> Images:
            signal, sigma = schedule.scales(t, x_t)
            noise = (x_t - signal * x_0) / sigma
            if self.eta:
                ratio = schedule.snr(t) / schedule.snr(next_t)
                share = _scale(self.eta**2 * (1 - ratio), x_t)
                new = torch.randn(x_t.shape, generator=rng, device=x_t.device, dtype=x_t.dtype)
                noise = (1 - share).sqrt() * noise + share.sqrt() * new
            return schedule.add_noise(x_0, noise, next_t)

        return step


@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++ (2M): x̂_0 extrapolated along a line through the last two."""

    def begin(self, schedule: NoiseSchedule, rng: torch.Generator) -> Step:
        """See :class:`Sampler`."""
        last: tuple[Images, Indices] | None = None

        def step(x_0: Images, x_t: Images, t: Indices, next_t: Indices) -> Images:
            nonlocal last
            extrapolated = x_0
            if last is not None:
                last_x_0, last_t = last
                slope = _distance(schedule, t, next_t) / _distance(schedule, last_t, t)
                extrapolated = x_0 + _scale(slope / 2, x_t) * (x_0 - last_x_0)
            last = x_0, t
            return exponential_step(schedule, extrapolated, x_t, t, next_t)

        return step


@dataclass(frozen=True)
class UniPC:
    """DPM-Solver++ (2M), whose state is corrected once the denoiser was called there.

    The next step starts from the corrected state. Lessons are the states that the denoiser saw.
    At few steps the best of the three, by ``examples/compare.py --groups samplers``.
    """

    def begin(self, schedule: NoiseSchedule, rng: torch.Generator) -> Step:
        """See :class:`Sampler`."""
        predict = DPMSolver().begin(schedule, rng)
        # Corrected states, x̂_0 and timesteps of the last steps, newest last.
        visited: list[tuple[Images, Images, Indices]] = []

        def step(x_0: Images, x_t: Images, t: Indices, next_t: Indices) -> Images:
            if visited:
                x_t = _corrected(schedule, visited, x_0, t)
            visited[:] = [*visited[-1:], (x_t, x_0, t)]
            return predict(x_0, x_t, t, next_t)

        return step


def _corrected(
    schedule: NoiseSchedule,
    visited: list[tuple[Images, Images, Indices]],
    x_0: Images,
    t: Indices,
) -> Images:
    """The state at t again, from the last one, now that x̂_0 is known at both ends."""
    last_x, last_x_0, last_t = visited[-1]
    h = _distance(schedule, last_t, t)
    # φ-functions of −h over B₂(h) = e^{−h} − 1: what an exact integral of a polynomial gives.
    b = torch.expm1(-h)
    phi_2 = b / -h - 1
    phi_3 = phi_2 / -h - 1 / 2
    if len(visited) == 1:
        drawn = 0.5 * (x_0 - last_x_0)
    else:
        _, older_x_0, older_t = visited[-2]
        r = -_distance(schedule, older_t, last_t) / h
        end = (2 * phi_3 / b - r * phi_2 / b) / (1 - r)
        older = phi_2 / b - end
        drawn = _scale(older / r, last_x) * (older_x_0 - last_x_0)
        drawn = drawn + _scale(end, last_x) * (x_0 - last_x_0)
    return exponential_step(schedule, last_x_0 + drawn, last_x, last_t, t)


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


def _scale(values: Float[Tensor, " b"], images: Images) -> Scales:
    return values.view(-1, 1, 1, 1).to(images.dtype)


def check_sampler(sampler: Sampler) -> None:
    """Refuse what cannot step through a run.

    Raises:
        TypeError: ``sampler`` is no sampler.
    """
    if isinstance(sampler, type) or not callable(getattr(sampler, "begin", None)):
        raise TypeError(
            f"sampler must be a sampler such as UniPC(), DPMSolver() or DDIM(eta=0.0), "
            f"got {sampler!r}."
        )
