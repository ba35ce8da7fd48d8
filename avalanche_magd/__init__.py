"""Diffusion-based generative replay for Avalanche: MAGD, multi-mode adaptive generative distillation."""

from avalanche_magd.generator import DiffusionGenerator
from avalanche_magd.plugin import MAGDPlugin
from avalanche_magd.training import MAGDTraining

__version__ = "0.1.0"

__all__ = ["DiffusionGenerator", "MAGDPlugin", "MAGDTraining", "__version__"]
