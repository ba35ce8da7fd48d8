"""The reverse process: from pure noise to images, keeping every state on the way.

A run visits timesteps ``t_1 > t_2 > … > t_K``, its *grid*, and then the clean image. At each of
them the denoiser is called once; its raw output gives x̂_0, and a sampler
(:mod:`avalanche_magd.samplers`) steps to the next noise level. The visited states, the timesteps
at which they were evaluated, and the raw outputs are a :class:`Trajectory`: what a student can
learn from.

The grid and the steps are written out in this package, and not taken from diffusers, because a
state is a valid lesson only if it lies exactly at the noise level that its timestep names, and
because each image has a grid of its own. Library schedulers assume one grid for all, and some a
fixed stride, so that on other grids their states lie between the listed levels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from avalanche_magd.samplers import (
    DEFAULT_SAMPLER,
    Images,
    Indices,
    Sampler,
    SamplerName,
    make_sampler,
)
from avalanche_magd.schedule import NoiseSchedule

Denoiser = Callable[[Images, Indices, Indices], Images]
"""``(x_t, t, labels) → prediction``: the generator, or a teacher that is known in closed form."""

Guidance = Callable[[Images, Images, Indices, Indices], Images]
"""``(prediction, x_t, t, labels) → prediction``: steers a run away from the raw prediction."""


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


def images_at_once(image_shape: Sequence[int], device: torch.device, network: Any = None) -> int:
    """How many images to give a network together, if no gradients are wanted.

    A CPU is fastest while a batch's features stay in its cache: for the default networks about 80
    images of 28×28 pixels, 16 of 64×64, where 256 take twice the seconds per image. A GPU is fast
    once it has enough to do: a thousand images of 28×28 pixels take it as long as 64. There the
    features of a large network are bounded to a few GiB.

    Args:
        image_shape: channels, height and width.
        device: where the network is.
        network: what is called, if it is a module.
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
    """``count`` labels in random order, always of the class that has fewest.

    Args:
        count: how many.
        classes: to choose from.
        rng: source of the order, and of the choice among classes that have equally few.
        present: how many a class has already; 0 by default.
    """
    order = torch.randperm(len(classes), generator=rng, device=rng.device).tolist()
    have = {classes[index]: (present or {}).get(classes[index], 0) for index in order}
    labels = []
    for _ in range(count):
        labels.append(min(have, key=have.__getitem__))
        have[labels[-1]] += 1
    shuffled = torch.randperm(count, generator=rng, device=rng.device)
    return torch.tensor(labels, device=rng.device)[shuffled]


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

    Args:
        num_inference_steps: K, from 1 to T.
        num_train_timesteps: T.
        batch_size: number of runs, each with a grid of its own.
        rng: source of the jitter; the grid is made on its device.

    Returns:
        Timesteps in [0, T), noisiest first.

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
    edges = last * torch.linspace(0, 1, count + 1, device=device)[:, None] ** 1.5
    jitter = torch.rand(count, batch_size, generator=rng, device=device)
    nodes = (edges[:-1] + jitter * (edges[1:] - edges[:-1])).long()
    # Strata narrower than one timestep can share a node: push nodes apart within [0, T−1).
    rank = torch.arange(count, device=device)[:, None]
    if count:
        nodes = (nodes - rank).clamp(0, last - count).cummax(0).values + rank
    start = torch.full((1, batch_size), last, device=device)
    return torch.cat([start, nodes.flip(0)])


def stretches(timesteps: Int[Tensor, "k b"]) -> Float[Tensor, "k b"]:
    """How much of t each node of a grid stands for, by the trapezoidal rule; T − 1 over a run."""
    t = timesteps.float()
    middle = (t[:-1] + t[1:]) / 2
    return torch.cat([t[:1], middle]) - torch.cat([middle, torch.zeros_like(t[:1])])


def steps_at(stretch: Float[Tensor, "k b"], position: Float[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """In whose stretch a position lies, in [0, 1) from the noisy end of a run."""
    ends = stretch.T.contiguous().cumsum(1)
    step = torch.searchsorted(ends, position * ends[:, -1:], right=True)
    return step.clamp(max=len(stretch) - 1)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    noise: Float[Tensor, "b c h w"],
    labels: Int[Tensor, " b"],
    timesteps: Int[Tensor, "k b"],
    sampler: Sampler,
    *,
    guidance: Guidance | None = None,
    clip: bool = True,
) -> Trajectory:
    """Run the reverse process.

    Costs k network forwards per image, and what the guidance adds to them.

    Args:
        denoiser: called once per state.
        schedule: noise levels, and what a prediction means.
        noise: standard normal, the first state.
        labels: the class of each image.
        timesteps: strictly falling along k, as :func:`jittered_grid` draws them.
        sampler: a new one, which steps from state to state.
        guidance: steers the run; the outputs that are kept stay unguided.
        clip: keep x̂_0 in [−1, 1] at each step, so that a weak network's errors do not grow.

    Returns:
        Every state of the run and where it ended.
    """
    states, outputs = [], []
    x_t = noise
    for step, t in enumerate(timesteps):
        output = denoiser(x_t, t, labels)
        states.append(x_t)
        outputs.append(output)
        steered = output if guidance is None else guidance(output, x_t, t, labels)
        x_0 = schedule.denoised(steered, x_t, t)
        if clip:
            x_0 = x_0.clamp(-1, 1)
        if step + 1 < len(timesteps):
            x_t = sampler.step(x_0, x_t, t, timesteps[step + 1])
    return Trajectory(torch.stack(states), timesteps, torch.stack(outputs), labels, x_0)


def reverse_runs(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    image_shape: tuple[int, int, int],
    labels: Int[Tensor, " n"],
    num_inference_steps: int,
    rng: torch.Generator,
    *,
    sampler: SamplerName = DEFAULT_SAMPLER,
    eta: float = 0.0,
    guidance: Guidance | None = None,
    position: Float[Tensor, " n"] | None = None,
    batch_size: int | None = None,
) -> Iterator[Trajectory]:
    """Reverse runs from fresh noise on fresh grids, one trajectory per batch of labels.

    Args:
        denoiser: called once per state.
        schedule: noise levels, and what a prediction means.
        image_shape: channels, height and width.
        labels: class of each image to generate.
        num_inference_steps: K, denoiser calls per image.
        rng: source of noise and grids, on the denoiser's device.
        sampler: how a run steps from state to state.
        eta: share of new noise, see :class:`~avalanche_magd.samplers.DDIM`.
        guidance: steers the runs.
        position: where each run stops, in [0, 1) from the noisy end; the denoiser is not asked
            beyond, and what the trajectory holds there is void. ``None``: at the clean end.
        batch_size: images that are generated together; default: :func:`images_at_once`.
    """
    batch_size = batch_size or images_at_once(image_shape, rng.device, denoiser)
    positions = [None] if position is None else torch.split(position, batch_size)
    for chosen, stop in zip_longest(torch.split(labels, batch_size), positions):
        shape = (len(chosen), *image_shape)
        noise = torch.randn(shape, generator=rng, device=rng.device)
        grid = jittered_grid(num_inference_steps, schedule.num_train_timesteps, len(chosen), rng)
        steps = make_sampler(sampler, schedule, eta, rng)
        asked = denoiser if stop is None else _until(denoiser, grid, stop)
        yield sample(asked, schedule, noise, chosen, grid, steps, guidance=guidance)


def _until(
    denoiser: Denoiser, timesteps: Int[Tensor, "k b"], position: Float[Tensor, " b"]
) -> Denoiser:
    """A denoiser that answers each run as far as its position, and 0 beyond."""
    last_t = timesteps.gather(0, steps_at(stretches(timesteps), position[:, None]).T)[0]

    def stopping(x_t: Images, t: Indices, labels: Indices) -> Images:
        output, running = torch.zeros_like(x_t), t >= last_t
        if running.any():
            output[running] = denoiser(x_t[running], t[running], labels[running])
        return output

    return stopping
