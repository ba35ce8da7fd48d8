"""How a student learns what its teacher knows: one file per technique, and the pool they fill."""

from avalanche_magd.distillation.batch import LessonBatch
from avalanche_magd.distillation.distillation import Distillation
from avalanche_magd.distillation.magd import MAGD
from avalanche_magd.distillation.pool import Pool

__all__ = ["MAGD", "Distillation", "LessonBatch", "Pool"]
