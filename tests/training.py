"""What tests of training share: shards of small pictures, and a run of a few steps."""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from codling.training.recipes import TrainingConfig
from tests.conftest import tiny_config

CPU = torch.device("cpu")


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def tiny_run(pictures: Path, **changes: object) -> TrainingConfig:
    settings: dict[str, object] = {
        "model": tiny_config(), "data": str(pictures), "crop": 64, "batch": 4, "steps": 8, "warmup": 2,
        "learning_rate": 2e-3, "precision": "float32", "log_every": 4, "checkpoint_every": 4, "codebook": "average",
        "validation_steps": (1, 2), "validation_noise": (0.6,), "validation_pictures": 3,
    }  # fmt: skip
    return TrainingConfig(**{**settings, **changes})  # type: ignore[arg-type]
