"""What a run ran on, and what its strategy is set to, for whoever reads of it later."""

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("avalanche-magd", "avalanche-lib", "torch", "torchvision", "diffusers", "torchmetrics")


def environment(device: torch.device | str = "cpu") -> dict[str, str]:
    """Machine and versions."""
    device = torch.device(device)
    known = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
    }
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            known[package] = version(package)
    return known


def settings_of(strategy: Any) -> dict[str, Any]:
    """What Avalanche's strategies and this package's plugin are set to."""
    optimizer = strategy.optimizer  # some of Avalanche's strategies need none
    rate = optimizer.param_groups[0]["lr"] if optimizer else 0.0
    found = {
        "strategy": type(strategy).__name__,
        "model": type(strategy.model).__name__,
        "parameters": sum(each.numel() for each in strategy.model.parameters()),
        "optimizer": optimizer and f"{type(optimizer).__name__}, lr {rate:g}",
        "epochs": getattr(strategy, "train_epochs", None),
        "mini-batch": strategy.train_mb_size,
    }
    for plugin in strategy.plugins:
        training: Any = getattr(plugin, "generator_strategy", None)
        if hasattr(training, "distillation"):
            network = training.model.network
            found |= {
                "generator's parameters": sum(each.numel() for each in network.parameters()),
                "generator's steps": training.train_iterations,
                "distillation": repr(training.distillation),
            }
    return {name: value for name, value in found.items() if value is not None}
