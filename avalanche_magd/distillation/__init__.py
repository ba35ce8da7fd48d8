"""How a student learns what its teacher knows: one file per technique, and the pool they fill."""

from avalanche_magd.distillation.cggd import CGGD
from avalanche_magd.distillation.distillation import Distillation
from avalanche_magd.distillation.lessons import LessonBatch
from avalanche_magd.distillation.magd import MAGD
from avalanche_magd.distillation.pool import Pool
from avalanche_magd.distillation.teacher import Teacher

__all__ = ["CGGD", "MAGD", "Distillation", "LessonBatch", "Pool", "Teacher"]
