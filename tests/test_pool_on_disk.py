"""A pool on disk gives what one in memory gives, and leaves nothing behind."""

import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_generator, tiny_training
from torch import nn

from avalanche_magd.distillation import Distillation, Pool
from avalanche_magd.runtime.memmap import allocate

CPU = torch.device("cpu")


def mapped_bytes() -> int:
    """Bytes of deleted files that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ends = [line.split()[0].split("-") for line in lines if line.endswith("(deleted)")]
    return sum(int(high, 16) - int(low, 16) for low, high in ends)


def trained(digits: Any, folder: Path | None) -> tuple[torch.Tensor, int]:
    torch.manual_seed(0)
    distillation = Distillation(pool_size=40, num_inference_steps=4, pool_folder=folder)
    training = tiny_training(model=tiny_generator(), distillation=distillation)
    for experience in digits.train_stream[:3]:
        training.train(experience, eval_streams=[])
    weights = nn.utils.parameters_to_vector(training.model.parameters()).detach()
    return weights, training.cost.pool_bytes


def test_training_from_a_pool_on_disk_equals_training_from_one_in_memory(
    digits: Any, tmp_path: Path
) -> None:
    (on_disk, disk_bytes), (in_memory, memory_bytes) = (
        trained(digits, folder) for folder in (tmp_path, None)
    )
    assert torch.equal(on_disk, in_memory)
    assert disk_bytes == memory_bytes
    assert not list(tmp_path.iterdir())


def test_a_pool_on_disk_is_mapped_and_pickled_and_leaves_no_file(tmp_path: Path) -> None:
    before = mapped_bytes()
    pool = Pool(100, 4, (1, 32, 32), CPU, folder=tmp_path)
    size = pool.images.nbytes + pool.lessons.x_t.nbytes + pool.lessons.target.nbytes
    assert mapped_bytes() - before >= size > 2 * 10**6
    pool.write(torch.tensor([7]), torch.ones(1, 1, 32, 32), torch.tensor([3]))
    pool.end_pass()
    again = pickle.loads(pickle.dumps(pool))
    assert mapped_bytes() - before >= 2 * size
    assert torch.equal(again.images_of(torch.tensor([7])), torch.ones(1, 1, 32, 32))
    assert not list(tmp_path.iterdir())
    del pool, again
    assert mapped_bytes() == before


def test_a_full_disk_is_an_error_that_leaves_no_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"needs 20,000 bytes more in .* choose another"):
            allocate((100, 100), torch.float16, CPU, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
