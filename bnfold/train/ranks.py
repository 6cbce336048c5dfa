"""Several processes that train one network together; a single process is the case of one rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Norm = nn.modules.batchnorm._BatchNorm


def first_process() -> bool:
    """Whether this process writes files: the first of torch.distributed, or the only one."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are. `device`: where its part of the network is."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def found(cls, device: torch.device) -> Ranks:
        """Those of torch.distributed where the caller initialised it, otherwise one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls(0, 1, device)

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.rank == 0

    def notes(self) -> tuple[str, ...]:
        """What is different with several processes."""
        if self.count == 1:
            return ()
        if self.device.type == "cuda":
            return (f"{self.count} processes with synchronised batch norms",)
        return (
            f"{self.count} processes; torch synchronises batch norms on CUDA only, so each process normalises with the "
            "statistics of its own part of a batch, and running statistics are averaged after every epoch",
        )

    def prepared(self, module: nn.Module) -> nn.Module:
        """The network with batch norms that see the whole batch of all processes, where torch can do that."""
        if self.count == 1 or self.device.type != "cuda":
            return module
        synced: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return synced

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The network with gradients averaged over all processes; those of auxiliary outputs may get none."""
        if self.count == 1:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[self.device.index] if self.device.type == "cuda" and self.device.index is not None else None,
            broadcast_buffers=False,
            find_unused_parameters=True,
        )

    def part(self, order: torch.Tensor) -> torch.Tensor:
        """The samples of this process: every `count`-th."""
        return order[self.rank :: self.count]

    def total(self, values: list[float]) -> list[float]:
        """The sums over all processes, in float64."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor]

    def average_statistics(self, module: nn.Module) -> None:
        """Make running statistics the mean over all processes; exact, as they are linear in those of the batches."""
        if self.count == 1:
            return
        for norm in module.modules():
            if isinstance(norm, Norm):
                for buffer in (norm.running_mean, norm.running_var):
                    if buffer is not None:
                        dist.all_reduce(buffer)
                        buffer /= self.count

    def gathered(self, value: Any) -> list[Any]:
        """A value of each process, in all of them."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def shared(self, value: Any) -> Any:
        """What the first process has, in all of them."""
        if self.count == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=self.device if self.device.type == "cuda" else None)
        return held[0]
