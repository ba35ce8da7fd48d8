"""Stopping and going on: between experiences, and inside one."""

from avalanche_magd.checkpoints.strategy import maybe_load_checkpoint, save_checkpoint

__all__ = ["maybe_load_checkpoint", "save_checkpoint"]
