"""What was spent: network calls by image, seconds and bytes, by phase."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from avalanche_magd.generator import DiffusionGenerator

if sys.platform != "win32":
    import resource


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
            if generator.device.type == "cuda":
                torch.cuda.synchronize(generator.device)
            self.forwards += generator.forwards - forwards
            self.seconds += time.perf_counter() - start


@dataclass
class Cost:
    """What a generator strategy has spent over all experiences; seconds are those of the clock."""

    generation: PhaseCost = field(default_factory=PhaseCost)
    """The teacher's calls that made lessons."""
    replay: PhaseCost = field(default_factory=PhaseCost)
    """The teacher's calls that made images for the solver alone."""
    training: PhaseCost = field(default_factory=PhaseCost)
    """Teaching the student, from current images and lessons."""
    evaluation: PhaseCost = field(default_factory=PhaseCost)
    """Metrics of :mod:`avalanche_magd.metrics`; in no total."""
    solver: PhaseCost = field(default_factory=PhaseCost)
    """Questions to the solver of the past; their seconds are part of generation's. Of several
    processes these are one's own, the counts above are those of all."""
    lessons: int = 0
    """Lessons that the teacher's calls have made."""
    pool_bytes: int = 0
    """Size of the largest pool."""
    peak_bytes: int = 0
    """Most memory that the process, or on CUDA its tensors, ever took, as far as it was looked; 0
    on Windows' CPUs, which tell nothing of it."""

    @property
    def seconds(self) -> float:
        """All phases together."""
        return self.generation.seconds + self.replay.seconds + self.training.seconds

    @property
    def forwards(self) -> int:
        """Forwards of the generator's network, all phases together."""
        return self.generation.forwards + self.replay.forwards + self.training.forwards

    @property
    def teacher_forwards_per_lesson(self) -> float:
        """Teacher forwards over lessons; 0 before the first."""
        return self.generation.forwards / self.lessons if self.lessons else 0.0

    def look_at_memory(self, device: torch.device) -> None:
        """Note the peak so far."""
        peak = 0
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
        elif sys.platform != "win32":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peak *= 1 if sys.platform == "darwin" else 1024
        self.peak_bytes = max(self.peak_bytes, peak)
