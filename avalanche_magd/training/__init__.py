"""The Avalanche strategy that teaches a generator."""

from avalanche_magd.training.strategy import MAGDTraining

__all__ = ["MAGDTraining"]
