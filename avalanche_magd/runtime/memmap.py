"""Tensors in memory, or in a file that is mapped into memory.

The files are unlinked temporary files: they have no name, so nothing is left of them once their
tensor or their process ends, however it ends. Their bytes are reserved when they are made, since a
disk that fills up later would kill the process.
"""

import math
import os
import shutil
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor


def allocate(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, folder: str | Path | None
) -> Tensor:
    """A tensor of zeros: on a device, or, if a folder is given, in a file there and on the CPU.

    Raises:
        OSError: the disk of ``folder`` has fewer bytes free than the tensor takes.
    """
    count = math.prod(shape)
    if folder is None or not count:
        return torch.zeros(shape, dtype=dtype, device=device)
    size = count * dtype.itemsize
    with TemporaryFile(dir=folder) as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            elif size > shutil.disk_usage(folder).free:
                raise OSError
        except OSError as error:
            free = shutil.disk_usage(folder).free
            raise OSError(
                f"The pool needs {size:,} bytes more in {folder}, where {free:,} are free: free "
                "some, choose another pool_folder, or a smaller pool_size or max_pool_bytes."
            ) from error
        mapped = np.memmap(file, np.uint8, "r+", shape=(size,))
    return torch.from_numpy(mapped).view(dtype).view(shape)
