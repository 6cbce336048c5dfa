"""Commands under torchrun: one of several processes that work together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def processes(device: str = "cpu") -> Iterator[tuple[bool, str]]:
    """Join the processes that torchrun started, if it did: whether this one writes and prints, and its device.

    They talk by gloo on the CPU and by nccl on CUDA, where "cuda" becomes the card of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield True, device
        return
    import torch.distributed as dist

    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
        yield dist.get_rank() == 0, own
    finally:
        dist.destroy_process_group()
