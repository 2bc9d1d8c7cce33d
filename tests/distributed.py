"""What `test_training_engine` runs in two processes: one that shares batches, then one that shares weights too.

python -m tests.distributed PICTURES OUTPUT
"""

import sys
from pathlib import Path

from codling.training.loop import train
from codling.training.recipes import TrainingConfig
from tests.training import CPU, tiny_run


def shared_batches(pictures: Path) -> TrainingConfig:
    return tiny_run(pictures, steps=6, log_every=1, learning_rate=4e-3)


def shared_weights(pictures: Path) -> TrainingConfig:
    return tiny_run(pictures, steps=3, log_every=1, codebook="gradient", validation=str(pictures))


if __name__ == "__main__":
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    train(shared_batches(data), output / "batches", device=CPU, devices=2)
    train(shared_weights(data), output / "weights", device=CPU, devices=2, strategy="fsdp")
