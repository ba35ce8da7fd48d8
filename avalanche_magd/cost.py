"""What was spent: network calls by image, seconds and bytes, by phase."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from avalanche_magd.generator import DiffusionGenerator


@dataclass
class PhaseCost:
    """What one phase has spent so far."""

    forwards: int = 0
    """Network forwards, counted per image."""
    backwards: int = 0
    """Network backwards, counted per image."""
    seconds: float = 0.0

    @contextmanager
    def measure(self, generator: DiffusionGenerator) -> Iterator[None]:
        """Add the generator's forwards and the time that a block takes."""
        forwards, start = generator.forwards, time.perf_counter()
        try:
            yield
        finally:
            self.forwards += generator.forwards - forwards
            self.seconds += time.perf_counter() - start


@dataclass
class Cost:
    """What a generator strategy has spent over all experiences."""

    generation: PhaseCost = field(default_factory=PhaseCost)
    """Filling pools: the teacher's calls."""
    training: PhaseCost = field(default_factory=PhaseCost)
    """Teaching the student, from current images and lessons."""
    lessons: int = 0
    """Lessons that the teacher's calls have left in pools."""
    pool_bytes: int = 0
    """Size of the largest pool."""

    @property
    def teacher_forwards_per_lesson(self) -> float:
        """Teacher forwards over lessons; 0 before the first pool."""
        return self.generation.forwards / self.lessons if self.lessons else 0.0
