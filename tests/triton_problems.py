"""Searches for `test_triton`; run as a program under TRITON_INTERPRET=1 it solves them with Triton's kernels.

    TRITON_INTERPRET=1 python -m tests.triton_problems OUT.npz

The interpreter cannot be turned on in a process that has imported the kernels already.
"""

import sys
from typing import Any

import numpy as np

COUNTERS = np.array([[0, 0, 0, 0], [0xFFFFFFFF] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]], np.uint32)
KEYS = ((0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0xA4093822, 0x299F31D0))
# Less than a problem has of both, so that paths go on across batches of groups and tiles of states.
BATCH_SCORES, STATES_TILE = 1 << 10, 1 << 9


def trellises() -> list[dict[str, Any]]:
    """Arguments of `rcc.trellis.search`: group sizes that fill no whole block, one, and more; bits mixed and not."""
    rng = np.random.default_rng(0)
    problems = []
    for memory, bits, largest, share in (
        (4, [1, 3, 2, 1, 4, 2], 3, 0.4),
        (8, [1] * 9, 9, 1.0),
        (8, [8, 1, 5, 2], 20, 0.6),
        (10, [1, 1, 2, 1, 1], 4, 0.5),
        (12, [1, 1, 1], 8, 0.7),
    ):
        sizes = rng.integers(1, largest + 1, len(bits))
        shares = share * rng.uniform(0.8, 1, len(bits))
        target = rng.normal(size=sizes.sum()).astype(np.float32)
        starts, seed = np.concatenate([[0], np.cumsum(sizes)]), int(rng.integers(1 << 63))
        problems.append(
            {"target": target, "starts": starts, "noise_share": shares, "bits": np.array(bits), "memory": memory,
             "step": int(rng.integers(20)), "seed": seed}
        )  # fmt: skip
    return problems


def blocks() -> list[dict[str, Any]]:
    """Arguments of `rcc.pfr.encode`: fewer candidates than a tile, thousands in several, odd numbers of dimensions."""
    rng = np.random.default_rng(1)
    return [
        {"target": (rng.normal(size=size) * np.sqrt(2 * bits / size)).astype(np.float32), "bits": bits,
         "seed": seed, "step": 3, "chunk": chunk}
        for size, bits, seed, chunk in ((1, 3, 0, 0), (21, 8, 1 << 40, 1), (8, 10, (1 << 64) - 1, 2), (37, 13, 77, 9))
    ]  # fmt: skip


def main(out: str) -> None:
    import torch

    from codling.codecs import triton_search
    from codling.codecs.base import RateTarget
    from codling.codecs.diffc import DiffCCodec
    from tests.test_diffc import image_of
    from tests.test_triton import tiny_diffc

    cpu = torch.device("cpu")
    triton_search.BATCH_SCORES, triton_search.STATES_TILE = BATCH_SCORES, STATES_TILE
    # Interpreted programs run one after another, and take about as long whatever they hold: large tiles are quick. But
    # groups that share blocks shall have several as well.
    found, small = (triton_search.TritonSearch(cpu, tile=tile) for tile in (2048, 128))
    results: dict[str, Any] = {
        "words": np.stack([found.words(row[None], key)[0] for row, key in zip(COUNTERS, KEYS, strict=True)])
    }
    for number, problem in enumerate(trellises()):
        search = small if np.diff(problem["starts"]).max() <= 4 else found
        results[f"message{number}"] = search.message(**problem)
    results["candidates"] = np.array([found.candidate(**problem) for problem in blocks()])
    codec: DiffCCodec = tiny_diffc(search=found.message)
    payload = codec.encode(image_of(codec_picture()), RateTarget(max_bytes=9))
    results["payload"] = np.frombuffer(payload, np.uint8)
    np.savez(out, **results)


def codec_picture() -> np.ndarray:
    from tests.conftest import noise_picture

    return noise_picture(32, 48, seed=5)


if __name__ == "__main__":
    main(sys.argv[1])
