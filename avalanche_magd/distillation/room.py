"""Room for a pool's images: memory, or a file in a folder that is mapped into memory.

A file has no name from the start, so that nothing is left of it when its tensor or its process
ends, however that may be. Its bytes are reserved at once, since a disk that is full later would
kill the process.
"""

import math
import os
import shutil
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor


def room_for(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, folder: str | Path | None
) -> Tensor:
    """Zeros: on a device, or, if there is a folder, in a file there and then on the CPU.

    Raises:
        OSError: the folder has no room.
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
                f"The pool needs {size:,} bytes more in {folder}, where {free:,} are free: make "
                "room, choose another pool_folder, or a smaller pool_size or max_pool_bytes."
            ) from error
        mapped = np.memmap(file, np.uint8, "r+", shape=(size,))
    return torch.from_numpy(mapped).view(dtype).view(shape)
