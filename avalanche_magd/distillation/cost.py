"""What was spent: network calls counted per image, seconds and bytes, by phase."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from avalanche_magd.diffusion.generator import DiffusionGenerator

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
    """Metrics of :mod:`avalanche_magd.metrics`; not part of the totals."""
    solver: PhaseCost = field(default_factory=PhaseCost)
    """Calls of the solver of the past; their seconds are part of generation's. Of several
    processes these are this one's, the counts above are those of all."""
    lessons: int = 0
    """Lessons that the teacher's calls have made."""
    pool_bytes: int = 0
    """Size of the largest pool."""
    peak_bytes: int = 0
    """Peak memory of the process, or on CUDA of its tensors; 0 on Windows' CPUs."""

    @contextmanager
    def measure(self, phase: PhaseCost, generator: DiffusionGenerator) -> Iterator[None]:
        """Add a block's seconds, less those of blocks within it, and forwards to a phase.

        Blocks within it are of other generators, or their forwards would count twice.
        """
        forwards, start, measured = generator.forwards, time.perf_counter(), self._measured
        try:
            yield
        finally:
            if generator.device.type == "cuda":
                torch.cuda.synchronize(generator.device)
            phase.forwards += generator.forwards - forwards
            within = self._measured - measured
            phase.seconds += time.perf_counter() - start - within

    @property
    def _measured(self) -> float:
        return self.seconds + self.evaluation.seconds

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

    def record_peak_memory(self, device: torch.device) -> None:
        """Keep the process's peak so far, if it is the largest."""
        peak = 0
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
        elif sys.platform != "win32":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peak *= 1 if sys.platform == "darwin" else 1024
        self.peak_bytes = max(self.peak_bytes, peak)
