"""A class-conditional diffusion model. It knows no training loop, and of Avalanche its base class.

From the bottom up: noise levels (``schedule``), the step between two of them (``samplers``), what
steers a run (``guidance``), reverse runs (``sampling``), and the model itself (``generator``) with
its network, its pixels' range or autoencoder, its classes, and its folder.
"""

from avalanche_magd.diffusion.generator import DiffusionGenerator
from avalanche_magd.diffusion.samplers import DDIM, DPMSolver, UniPC

__all__ = ["DDIM", "DPMSolver", "DiffusionGenerator", "UniPC"]
