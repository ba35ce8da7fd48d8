"""What teaches the default networks: optimizer, rates and precision, by device.

On CPUs matrices and convolutions are taught by Muon, and the rest by AdamW, with Nesterov's
momentum as Muon has. Muon's steps stay large to the end, and would leave their noise in the
average: the rates fall to zero within each experience. GPUs are taught by AdamW alone, at one
rate: they spend more on Muon's many small products than its steps gain.

References:
    Jordan et al. 2024, *Muon: an optimizer for hidden layers in neural networks*.
"""

from typing import Any, Final

import torch
from avalanche.core import SupervisedPlugin
from timm.optim.muon import Muon
from torch import nn

from avalanche_magd.training.template import is_online_subexperience

LEARNING_RATE: Final = 2e-3
"""Of AdamW."""
MUON_RATE: Final = 0.005
"""Of Muon, times ``sqrt(rows / columns)`` for matrices that are higher than wide."""
FALLING_SHARE: Final = 0.5
"""Of an experience's steps: in its last half the rates fall."""
BFLOAT16_UNITS: Final = ("avx512_bf16", "amx_bf16")
"""By what names processors have units for bfloat16."""


def teaching(network: nn.Module, device: torch.device) -> dict[str, Any]:
    """Optimizer and plugins for :class:`~avalanche_magd.MAGDTraining`, by device.

    To be asked for a network as its training will first see it: classes are added before or by the
    training, not in between.
    """
    if device.type != "cpu":
        adamw = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, fused=True)
        return {"optimizer": adamw}
    return {"optimizer": muon(network), "plugins": [FallingRates()]}


def muon(network: nn.Module) -> Muon:
    """Muon for a network's matrices and convolutions, AdamW for the rest.

    Tables of class embeddings are no matrices to it: their rows are learnt one by one.
    """
    tables = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    parameters = [each for each in network.parameters() if each.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [each for each in parameters if id(each) not in tables]},
        {"params": [each for each in parameters if id(each) in tables], "use_fallback": True},
    ]
    return Muon(
        [group for group in groups if group["params"]],
        lr=MUON_RATE,
        nesterov=True,
        adjust_lr_fn="original",
        fallback_lr_scale=LEARNING_RATE / MUON_RATE,
        betas=(0.9, 0.999),
    )


def default_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where a CPU has units for it; elsewhere ``None``, single precision."""
    if device.type != "cpu":
        return None
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if any(has.get(name) for name in BFLOAT16_UNITS) else None


class FallingRates(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Learning rates fall to zero in the last part of each experience, in a straight line.

    For a :class:`~avalanche_magd.MAGDTraining`. Not on online streams, whose parts have no end. A
    rate that is set meanwhile is what falls from then on.
    """

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        """Set the rates of a step."""
        last = strategy.iterations_of(strategy.experience)
        left = (last - strategy.iteration) / (FALLING_SHARE * last)
        if is_online_subexperience(strategy.experience):
            left = 1.0
        for group in strategy.optimizer.param_groups:
            if group["lr"] != group.get("last_lr"):
                group["initial_lr"] = group["lr"]
            group["lr"] = group["last_lr"] = min(1.0, left) * group["initial_lr"]
