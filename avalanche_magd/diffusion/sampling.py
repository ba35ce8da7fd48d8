"""The reverse process: from pure noise to images, keeping every state on the way.

A run visits timesteps ``t_1 > t_2 > … > t_K``, its *grid*, and then the clean image. At each of
them the denoiser is called once; its raw output gives x̂_0, and a sampler
(:mod:`avalanche_magd.diffusion.samplers`) steps to the next noise level. The visited states, the
timesteps at which they were evaluated, and the raw outputs are a :class:`Trajectory`: what a
student can learn from.

The grid and the steps are written out in this package, and not taken from diffusers, because a
state is a valid lesson only if it lies exactly at the noise level that its timestep names, and
because each image has a grid of its own. Library schedulers assume one grid for all, and some a
fixed stride, so that on other grids their states lie between the listed levels.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from avalanche_magd.diffusion.guidance import AnyDenoiser, GuidedDenoiser, as_guided
from avalanche_magd.diffusion.samplers import Sampler, UniPC
from avalanche_magd.diffusion.schedule import Images, Indices, NoiseSchedule
from avalanche_magd.runtime.precision import PRECISION, normal, uniform
from avalanche_magd.runtime.validation import check_count

DEFAULT_SAMPLER = UniPC()


class Trajectory(NamedTuple):
    """One reverse run of a batch, noisiest first; k is the number of timesteps visited."""

    states: Float[Tensor, "k b c h w"]
    """x_t, before the denoiser was called on it."""
    timesteps: Int[Tensor, "k b"]
    """t at which each state was evaluated."""
    outputs: Float[Tensor, "k b c h w"]
    """The denoiser's raw output there: before guidance, before clipping."""
    labels: Int[Tensor, " b"]
    """The class that the denoiser was given."""
    images: Float[Tensor, "b c h w"]
    """Where the run ended, in [−1, 1] if it was clipped."""


def inference_batch_size(
    image_shape: Sequence[int], device: torch.device, network: Any = None
) -> int:
    """How many images a network is given at once where no gradients are wanted.

    A CPU is fastest while a batch's features stay in its cache: for the default networks about 80
    images of 28×28 pixels, 16 of 64×64, where 256 take twice the seconds per image. A GPU is fast
    once it has enough to do: a thousand images of 28×28 pixels take it as long as 64. There the
    features of a large network are bounded to a few GiB.
    """
    pixels = image_shape[1] * image_shape[2]
    if device.type == "cpu":
        return min(128, max(16, 2**16 // pixels))
    modules = isinstance(network, nn.Module)
    parameters = sum(each.numel() for each in network.parameters()) if modules else 0
    width = max(1.0, (parameters / 2**24) ** 0.5)
    return min(4096, max(16, int(2**20 / width / pixels)))


def balanced_labels(
    count: int, classes: list[int], rng: torch.Generator, present: Mapping[int, int] | None = None
) -> Int[Tensor, " {count}"]:
    """``count`` labels in random order, one after the other of the class that has fewest.

    A class has as many as are present already, and those drawn before.
    """
    order = torch.randperm(len(classes), generator=rng, device=rng.device).tolist()
    have = {classes[index]: (present or {}).get(classes[index], 0) for index in order}
    labels = []
    for _ in range(count):
        labels.append(min(have, key=have.__getitem__))
        have[labels[-1]] += 1
    shuffled = torch.randperm(count, generator=rng, device=rng.device)
    return torch.tensor(labels, device=rng.device)[shuffled]


def requested_labels(
    batch_size: int | None, condition: Any, classes: list[int], rng: torch.Generator
) -> Indices:
    """The labels that ``DiffusionGenerator.generate(batch_size, condition)`` is asked for.

    Raises:
        RuntimeError: there are no classes.
        ValueError: ``condition`` names another class, or disagrees with ``batch_size``.
    """
    if not classes:
        raise RuntimeError("The generator has seen no class yet: train it first.")
    if batch_size is not None:
        batch_size = check_count("batch_size", batch_size)
    if condition is None:
        return balanced_labels(batch_size or 1, classes, rng)
    labels = torch.as_tensor(condition, device=rng.device).long().reshape(-1)
    if unseen := set(labels.tolist()) - set(classes):
        raise ValueError(
            f"condition names classes {sorted(unseen)} that the generator has not seen; "
            f"it knows {classes}."
        )
    if len(labels) == 1 and batch_size:
        labels = labels.repeat(batch_size)
    if batch_size is not None and len(labels) != batch_size:
        raise ValueError(f"batch_size is {batch_size}, but condition has {len(labels)} labels.")
    return labels


def jittered_grid(
    num_inference_steps: int,
    num_train_timesteps: int,
    batch_size: int,
    rng: torch.Generator,
) -> Int[Tensor, "k b"]:
    """Timesteps of ``batch_size`` reverse runs: each falls strictly, and each starts at T − 1.

    The other K − 1 nodes are drawn uniformly, one in each stratum between the edges ``(T−1)
    (j/(K−1))^1.5``. A fixed grid would show a student K noise levels for ever; over many draws
    this one shows it all of them. The exponent lies between uniform steps, which lose detail, and
    quadratic ones, which lose brightness.

    Returns:
        Timesteps in [0, T), noisiest first, on the device of ``rng``.

    Raises:
        ValueError: K is not between 1 and T.
    """
    last = num_train_timesteps - 1
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps must be between 1 and {num_train_timesteps}, "
            f"the number of noise levels; got {num_inference_steps}."
        )
    count = num_inference_steps - 1
    device = rng.device
    edges = last * torch.linspace(0, 1, count + 1, device=device, dtype=PRECISION)[:, None] ** 1.5
    jitter = uniform((count, batch_size), rng)
    nodes = (edges[:-1] + jitter * (edges[1:] - edges[:-1])).long()
    # Strata narrower than one timestep can share a node: push nodes apart within [0, T−1).
    rank = torch.arange(count, device=device)[:, None]
    if count:
        nodes = (nodes - rank).clamp(0, last - count).cummax(0).values + rank
    start = torch.full((1, batch_size), last, device=device)
    return torch.cat([start, nodes.flip(0)])


def interval_widths(timesteps: Int[Tensor, "k b"]) -> Float[Tensor, "k b"]:
    """Width of the interval of t that each node of a grid stands for, by the trapezoidal rule.

    The widths of a run's nodes sum to T − 1.
    """
    t = timesteps.to(PRECISION)
    middle = (t[:-1] + t[1:]) / 2
    return torch.cat([t[:1], middle]) - torch.cat([middle, torch.zeros_like(t[:1])])


def steps_at(widths: Float[Tensor, "k b"], position: Float[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """Index of the interval that contains each position, in [0, 1) from a run's noisy end."""
    ends = widths.T.contiguous().cumsum(1)
    step = torch.searchsorted(ends, position * ends[:, -1:], right=True)
    return step.clamp(max=len(widths) - 1)


@torch.no_grad()
def sample(
    denoiser: AnyDenoiser,
    schedule: NoiseSchedule,
    noise: Images,
    labels: Indices,
    timesteps: Int[Tensor, "k b"],
    rng: torch.Generator,
    *,
    sampler: Sampler = DEFAULT_SAMPLER,
    clip: bool = True,
) -> Trajectory:
    """Run the reverse process from given noise on a given grid.

    Args:
        denoiser: called once per state; guided or not.
        schedule: noise levels, and what a prediction means.
        noise: standard normal, the first state.
        labels: the class of each image.
        timesteps: strictly falling along k, as :func:`jittered_grid` draws them.
        rng: source of new noise, for samplers that draw any.
        sampler: what steps from state to state.
        clip: keep x̂_0 in [−1, 1] at each step, so that a weak network's errors do not grow.
    """
    step = sampler.begin(schedule, rng)
    states, outputs = [], []
    x_t = noise
    for node, t in enumerate(timesteps):
        prediction = as_guided(denoiser(x_t, t, labels))
        states.append(x_t)
        outputs.append(prediction.raw)
        x_0 = schedule.denoised(prediction.guided, x_t, t)
        if clip:
            x_0 = x_0.clamp(-1, 1)
        if node + 1 < len(timesteps):
            x_t = step(x_0, x_t, t, timesteps[node + 1])
    return Trajectory(torch.stack(states), timesteps, torch.stack(outputs), labels, x_0)


def draw_start(
    generator: Any, count: int, num_inference_steps: int, rng: torch.Generator
) -> tuple[Images, Int[Tensor, "k b"]]:
    """Where so many reverse runs of K steps start: noise, and a grid for each."""
    noise = normal((count, *generator.latent_shape), rng)
    steps = generator.schedule.num_train_timesteps
    return noise, jittered_grid(num_inference_steps, steps, count, rng)


def reverse_runs(
    generator: Any,
    labels: Int[Tensor, " n"],
    num_inference_steps: int,
    rng: torch.Generator,
    *,
    sampler: Sampler = DEFAULT_SAMPLER,
    guide: GuidedDenoiser | None = None,
    batch_size: int | None = None,
) -> Iterator[Trajectory]:
    """Reverse runs from new noise on new grids, one trajectory for each batch of labels.

    Args:
        generator: called once per state; a denoiser with a ``schedule`` and a ``latent_shape``.
        labels: class of each image to generate.
        num_inference_steps: K, calls per image.
        rng: source of noise and grids, on the generator's device.
        sampler: what steps from state to state.
        guide: the generator with guidance around it, called in its place.
        batch_size: images that are generated together. Default: :func:`inference_batch_size`.
    """
    batch_size = batch_size or inference_batch_size(generator.latent_shape, rng.device, generator)
    for chosen in torch.split(labels, batch_size):
        noise, grid = draw_start(generator, len(chosen), num_inference_steps, rng)
        denoiser, schedule = guide or generator, generator.schedule
        yield sample(denoiser, schedule, noise, chosen, grid, rng, sampler=sampler)
