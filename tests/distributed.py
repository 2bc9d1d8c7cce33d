"""What `test_training_engine` runs in two processes: one that shares batches, then one that shares weights too.

Then one of which the second process alone cannot read the data, after its first batch.

python -m tests.distributed PICTURES OUTPUT
"""

import os
import sys
from pathlib import Path

import numpy as np

from codling.errors import ConfigError
from codling.training import sources
from codling.training.loop import train
from codling.training.recipes import TrainingConfig
from tests.training import CPU, tiny_run


def shared_batches(pictures: Path) -> TrainingConfig:
    return tiny_run(pictures, steps=6, log_every=1, learning_rate=4e-3)


def shared_weights(pictures: Path) -> TrainingConfig:
    return tiny_run(pictures, steps=3, log_every=1, codebook="gradient", validation=str(pictures))


def unreadable(pictures: Path, output: Path) -> None:
    config = tiny_run(pictures, keep="stream", window=1, batch=2, steps=6)
    if int(os.environ.get("LOCAL_RANK", 0)) == 1:
        genuine, seen = sources.decode, 0

        def failing(data: bytes, longest: int) -> np.ndarray | None:
            nonlocal seen
            seen += 1
            return genuine(data, longest) if seen == 1 else None

        sources.decode = failing
    try:
        train(config, output, device=CPU, devices=2)
    except ConfigError as error:
        print(f"stopped: {error}", flush=True)


if __name__ == "__main__":
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    train(shared_batches(data), output / "batches", device=CPU, devices=2)
    train(shared_weights(data), output / "weights", device=CPU, devices=2, strategy="fsdp")
    unreadable(data, output / "unreadable")
