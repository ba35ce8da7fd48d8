"""On a GPU a small network's kernels are recorded once and replayed, not launched one by one.

A training step of the default networks is about a thousand kernels of a few microseconds each. To
launch them takes a processor several times as long as the GPU then works. As two CUDA graphs,
forward and backward, they are launched together; what they compute is the same. On an H100 this
made a whole training step 3.8, 3.1, 3.4 and 1.9 times as fast at 8, 28, 32 and 64 pixels: medians
of 200 steps, recorded and not, side by side.

A recording leaves out all that happens on the processor: so it is made of diffusers'
``UNet2DModel`` alone, of its own parts and without hooks, for which this is nothing. Networks of
more than :data:`LARGEST` parameters keep a GPU busy by themselves, and are left as they are.

``torch.cuda.make_graphed_callables`` was tried in its place, torch 2.11 on an H200: its steps took
2 to 13 % longer, each recording kept memory (1.6 GiB after 80, none here), and data loaders with
worker processes failed afterwards.
"""

import functools
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.diffusion.networks import is_plain_unet
from avalanche_magd.diffusion.schedule import Images, Indices

LARGEST: Final = 10_000_000
"""Parameters of a network that is recorded."""

WARM_UP: Final = 3
"""Calls before a recording, in which libraries choose their algorithms."""


class RecordedGenerator:
    """The generator's call, for training steps between which its parameters stay where they are.

    The first batch is recorded, and each of its shape replayed from then on. On a CPU, and for
    networks that cannot be recorded, this is the call itself.

    What a replay predicts is overwritten by the next one.

    Args:
        generator: in training mode at each call.
    """

    def __init__(self, generator: DiffusionGenerator) -> None:
        self.generator = generator
        network = generator.network
        self._suits = (
            generator.device.type == "cuda"
            and type(generator) is DiffusionGenerator
            and is_plain_unet(network)
            and not any(map(_does_more, generator.modules()))
            and sum(each.numel() for each in network.parameters()) <= LARGEST
        )
        self._recording: _Recording | None = None

    def __call__(self, x_t: Images, t: Indices, labels: Indices) -> Images:
        """As :meth:`DiffusionGenerator.forward`."""
        if not self._suits:
            return self.generator(x_t, t, labels)  # type: ignore[no-any-return]
        inputs = x_t, t, labels
        if self._recording is None:
            forwards = self.generator.forwards
            self._recording = _Recording(self.generator, inputs)
            self.generator.forwards = forwards
        if x_t.shape != self._recording.inputs[0].shape:
            return self.generator(*inputs)  # type: ignore[no-any-return]
        self.generator.forwards += len(x_t)
        for kept, given in zip(self._recording.inputs, inputs, strict=True):
            kept.copy_(given)
        prediction: Tensor = _Replay.apply(self._recording, *self._recording.parameters)
        return prediction


def _does_more(module: nn.Module) -> bool:
    """Whether a module's call is more than its ``forward``."""
    hooks = [module._forward_pre_hooks, module._forward_hooks]
    hooks += [module._backward_pre_hooks, module._backward_hooks]
    compiled = module._compiled_call_impl is not None
    return compiled or getattr(module, "gradient_checkpointing", False) or any(hooks)


class _Recording:
    """Two graphs, and the tensors that they read and write."""

    def __init__(self, generator: DiffusionGenerator, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(each.clone() for each in inputs)
        named = {name: each for name, each in generator.named_parameters() if each.requires_grad}
        self.parameters = list(named.values())
        # Of the same memory, but without hooks, and without the history of earlier steps, which
        # autograd would wait for on another stream.
        aliases = {name: each.detach().requires_grad_() for name, each in named.items()}

        def call() -> Tensor:
            output: Tensor = torch.func.functional_call(generator, aliases, self.inputs)
            return output

        def differentiate(output: Tensor) -> tuple[Tensor | None, ...]:
            weights = list(aliases.values())
            return torch.autograd.grad(output, weights, self.gradient, allow_unused=True)

        self.gradient = torch.zeros_like(self.inputs[0])
        device = self.gradient.device
        apart = _stream(device)
        # Dropout draws from torch's state there.
        with torch.random.fork_rng([device]), torch.cuda.device(device):
            apart.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(apart):
                for _ in range(WARM_UP):
                    differentiate(call())
            torch.cuda.current_stream().wait_stream(apart)
            self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            # Other threads, such as a data loader's, may do as they like meanwhile.
            mode = "thread_local"
            with torch.cuda.graph(self.forward, stream=apart, capture_error_mode=mode):
                output = call()
            pool = self.forward.pool()
            with torch.cuda.graph(self.backward, pool, apart, capture_error_mode=mode):
                self.gradients = differentiate(output)
        self.output = output.detach()


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings on a device: libraries keep memory for each that they see."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: _Recording, *parameters: Tensor) -> Tensor:
        ctx.recording = recording
        recording.forward.replay()
        return recording.output.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        recording: _Recording = ctx.recording
        ctx.recording = None  # the strategy's last output would keep it
        recording.gradient.copy_(gradient)
        # A parameter may have taken the recorded tensor for its own: then what it has, which may
        # be zeros, is what the replay's gradient is added to.
        before = [
            each.grad.clone() if each.grad is not None and _same_memory(each.grad, made) else None
            for each, made in zip(recording.parameters, recording.gradients, strict=True)
        ]
        recording.backward.replay()
        pairs = zip(before, recording.gradients, strict=True)
        given = (made if own is None else own for own, made in pairs)
        return None, *(None if each is None else each.detach() for each in given)


def _same_memory(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.data_ptr() == other.data_ptr()
