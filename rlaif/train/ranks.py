"""The processes of one training. What runs alone is the first and only one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from accelerate.utils import gather_object
from torch import distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def rank() -> int:
    """This process's number; 0: the one that writes and tells."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def sharded() -> bool:
    """Whether the processes divide the weights among themselves."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        distributed.barrier()


def summed(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures' sums over all processes; one that a process does not have is zero there."""
    if world() == 1:
        return dict(figures)
    of_each: Sequence[Mapping[str, float]] = gather_object([dict(figures)])
    names = dict.fromkeys(name for those in of_each for name in those)
    return {name: sum(those.get(name, 0.0) for those in of_each) for name in names}


def least(value: float) -> float:
    """The least of the processes' values, as soon as all of them have told theirs."""
    return value if world() == 1 else float(min(gather_object([value])))


def own(weight: torch.Tensor) -> torch.Tensor:
    """The part of a weight that this process holds."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def fill(weight: torch.Tensor, whole: torch.Tensor) -> None:
    """Copies a whole weight into one that may be divided among the processes."""
    if isinstance(weight, DTensor):
        whole = distribute_tensor(
            whole.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
        )
    weight.copy_(whole)


def unshard(model: nn.Module) -> None:
    """Makes plain weights of those that are divided among the processes: on the CPU of the first
    process; the others are left with empty ones."""
    whole: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False, remove_duplicate=False):
            if not isinstance(weight, DTensor):
                continue
            # Weights that are tied stay so.
            if id(weight) not in whole:
                full: torch.Tensor = weight.detach().full_tensor()  # type: ignore[attr-defined]
                kept = full.cpu() if rank() == 0 else torch.empty(0)
                whole[id(weight)] = nn.Parameter(kept, requires_grad=weight.requires_grad)
            setattr(module, name, whole[id(weight)])
