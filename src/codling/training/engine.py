"""What a run asks of the machines it is on: device, precision, and its share of a batch that many processes train on.

Lightning Fabric starts the processes (or finds those that torchrun started), wraps the networks and casts.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from codling.errors import ConfigError

Strategy = Literal["ddp", "fsdp"]
T = TypeVar("T")
PRECISIONS = {"bfloat16": "bf16-mixed", "float32": "32-true"}


def resolved_precision(precision: str, device: torch.device) -> str:
    """What "auto" means on a device: bfloat16, but float32 on CPUs that have to emulate it, which takes ten times as
    long or more."""
    if precision != "auto":
        return precision
    # Builds without oneDNN have no such operator to ask.
    native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    emulated = device.type == "cpu" and not native
    return "float32" if emulated else "bfloat16"


class Engine:
    """One process of one or many.

    precision: as it was asked for; the attribute is what it means here. devices: processes on this machine; strategy:
    how many of them share the work.
    """

    def __init__(self, device: torch.device, *, precision: str, devices: int = 1, strategy: Strategy = "ddp"):
        try:
            from lightning.fabric import Fabric
            from lightning.fabric.strategies.ddp import DDPStrategy
            from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
        except ImportError as error:
            raise ConfigError(
                f"training needs the packages of the extra `train`: pip install 'codling[train]' ({error})"
            ) from error
        # torchrun says itself how many processes there are.
        here = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
        nodes = int(os.environ.get("WORLD_SIZE", here)) // here if "LOCAL_WORLD_SIZE" in os.environ else 1
        chosen: Any = "auto"
        if here * nodes > 1:
            # Stages train some of the networks only, so not every parameter has a gradient at every step.
            chosen = DDPStrategy(find_unused_parameters=True)
            if strategy == "fsdp":
                chosen = ModelParallelStrategy(_shard, data_parallel_size=here * nodes, tensor_parallel_size=1)
        accelerator = "cuda" if device.type == "cuda" else "cpu"
        self.precision = resolved_precision(precision, device)
        used = [device.index] if device.type == "cuda" and device.index is not None and here == 1 else here
        self.fabric = Fabric(
            accelerator=accelerator,
            devices=used,
            num_nodes=nodes,
            strategy=chosen,
            precision=PRECISIONS[self.precision],  # type: ignore[arg-type]
        )
        self.world = here * nodes
        self.sharded = self.world > 1 and strategy == "fsdp"

    def launch(self) -> None:
        """Start the other processes, which run this program from its beginning, and join them."""
        if self.world > 1:
            self.fabric.launch()

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files."""
        return bool(self.fabric.is_global_zero)

    def places(self, batch: int) -> range:
        """This process's places of a batch. Raises ConfigError where they would be uneven."""
        if batch % self.world:
            raise ConfigError(f"training: a batch of {batch} cannot be shared by {self.world} devices; use a multiple")
        share = batch // self.world
        return range(self.fabric.global_rank * share, (self.fabric.global_rank + 1) * share)

    def wrap(self, module: nn.Module) -> nn.Module:
        """A module whose gradients are the mean of all processes'. Casting is left to `autocast`."""
        if self.world == 1:
            return module
        return self.fabric.strategy.setup_module(module)

    def autocast(self) -> Any:
        """The context in which networks compute at the configured precision."""
        return self.fabric.autocast()

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (N, ...) of every process -> all rows, in the order of the batch."""
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of every process's numbers."""
        if self.world == 1:
            return dict(values)
        row = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        return dict(zip(values, self.fabric.all_reduce(row, reduce_op="mean").tolist(), strict=True))  # type: ignore[union-attr]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.mean({"flag": float(flag)})["flag"] > 0

    def together(self, work: Callable[[], T]) -> T:
        """What `work`, which must not wait for other processes, returns in each of them.

        All wait until all have done it. If it fails in one of them it fails in all, as those that went on would wait
        for that one forever.
        """
        if self.world == 1:
            return work()
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        if not self.any(failure is not None):
            return result
        raise failure or ConfigError("training: another process cannot go on, so this one stops too; it says why")


def _shard(module: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # shards are of rows; channels-last weights have none
    fully_shard(module, mesh=mesh["data_parallel"])
    return module


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor with all its parts, gathered from the processes that hold them; any other as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
