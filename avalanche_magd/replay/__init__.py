"""How generated images are shown to the solver."""

from avalanche_magd.replay.loader import ReplayLoader, unwrapped
from avalanche_magd.replay.mini_batches import MiniBatches
from avalanche_magd.replay.rows import Replay

__all__ = ["MiniBatches", "Replay", "ReplayLoader", "unwrapped"]
