"""MAGD, multi-mode adaptive generative distillation: diffusion-based replay for Avalanche."""

from avalanche_magd.generator import DiffusionGenerator
from avalanche_magd.plugin import MAGDPlugin
from avalanche_magd.training import MAGDTraining

__version__ = "0.1.0"

__all__ = ["DiffusionGenerator", "MAGDPlugin", "MAGDTraining", "__version__"]
