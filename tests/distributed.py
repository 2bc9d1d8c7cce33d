"""What `test_training_engine` runs in two processes: one that shares batches, then one that shares weights too.

Then runs of which the second process alone cannot open a shard, and one of which it cannot read the data after its
first batch.

python -m tests.distributed PICTURES OUTPUT
"""

import os
import sys
from pathlib import Path
from typing import IO
from unittest.mock import patch

import numpy as np

from codling.errors import ConfigError
from codling.training import shards, sources
from codling.training.loop import train
from codling.training.recipes import TrainingConfig
from tests.training import CPU, tiny_run


def shared_batches(pictures: Path) -> TrainingConfig:
    return tiny_run(pictures, steps=6, log_every=1, learning_rate=4e-3)


def shared_weights(pictures: Path) -> TrainingConfig:
    return tiny_run(pictures, steps=3, log_every=1, codebook="gradient", validation=str(pictures))


def missing(pictures: Path, output: Path, keep: str) -> None:
    genuine, second = shards.open_shard, int(os.environ.get("LOCAL_RANK", 0)) == 1

    def failing(shard: str) -> IO[bytes]:
        if second and shard.endswith("train-0.tar"):
            raise PermissionError(shard)
        return genuine(shard)

    with patch.object(shards, "open_shard", failing):
        expect_stop(tiny_run(pictures, keep=keep, window=1, batch=2, steps=8), output)


def unreadable(pictures: Path, output: Path) -> None:
    config = tiny_run(pictures, keep="stream", window=1, batch=2, steps=6)
    if int(os.environ.get("LOCAL_RANK", 0)) == 1:
        genuine, seen = sources.decode, 0

        def failing(data: bytes, longest: int) -> np.ndarray | None:
            nonlocal seen
            seen += 1
            return genuine(data, longest) if seen == 1 else None

        sources.decode = failing
    expect_stop(config, output)


def expect_stop(config: TrainingConfig, output: Path) -> None:
    try:
        train(config, output, device=CPU, devices=2)
    except ConfigError as error:
        print(f"stopped: {error}", flush=True)


if __name__ == "__main__":
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    train(shared_batches(data), output / "batches", device=CPU, devices=2)
    train(shared_weights(data), output / "weights", device=CPU, devices=2, strategy="fsdp")
    for keep in ("memory", "stream"):
        missing(data, output / keep, keep)
    unreadable(data, output / "unreadable")
