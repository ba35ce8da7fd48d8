"""MAGD, multi-mode adaptive generative distillation: diffusion-based replay for Avalanche."""

from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.plugin import MAGDPlugin
from avalanche_magd.runtime.deprecation import find_old_modules
from avalanche_magd.training import MAGDTraining

__version__ = "0.2.0"

__all__ = ["DiffusionGenerator", "MAGDPlugin", "MAGDTraining", "__version__"]

find_old_modules()
