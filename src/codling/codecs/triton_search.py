"""Reverse channel coding's searches on a GPU: numpy in, numpy out, candidates drawn and scored on the device.

Needs Triton (`pip install 'codling[triton]'`). With the environment's TRITON_INTERPRET=1 the same kernels run on a CPU,
slowly, for tests.
"""

import numpy as np
import torch
from torch import Tensor

from codling.bitstream.prng import normal_table, philox, split_seed
from codling.rcc import pfr, trellis, triton_kernels
from codling.rcc.kernels import trace_back

# Philox blocks, and states, that one program has in hand.
TILE, STATES_TILE = 256, 4096
# Scores of a batch of groups in memory: 64 MB, which every group fits in.
BATCH_SCORES = 1 << 24
# Every product and sum rounded, as the kernels on a CPU do.
EXACT = {"enable_fp_fusion": False}


class TritonSearch:
    """Searches of a device, a GPU unless Triton interprets. `tile`: blocks a program, a power of two."""

    def __init__(self, device: torch.device, *, tile: int = TILE):
        self.device, self.tile = device, tile
        self.table = self._put(normal_table(), np.float32)

    def message(
        self, target: np.ndarray, starts: np.ndarray, noise_share: np.ndarray, bits: np.ndarray, *, memory: int,
        step: int, seed: int = 0,
    ) -> np.ndarray:  # fmt: skip
        """The best message of a trellis, as `rcc.trellis.search` finds it, with the same arguments."""
        groups, states = len(starts) - 1, 1 << memory
        gain, penalty = (self._put(values, np.float32) for values in trellis.weights(noise_share))
        aim, bounds, sends = self._put(target, np.float32), self._put(starts, np.int32), self._put(bits, np.int32)
        count = states << int(bits.max())
        batch = min(groups, max(1, BATCH_SCORES // count))
        value, new, scores = self._empty(states), self._empty(states), self._empty(batch * count)
        value.fill_(-torch.inf)[0] = 0
        back = torch.empty((groups, states), dtype=torch.uint8, device=self.device)
        tiles = -(-_blocks(starts, states << bits.astype(np.int64)) // self.tile)
        with torch.cuda.device_of(value):
            for first in range(0, groups, batch):
                size = min(batch, groups - first)
                triton_kernels.score_groups[(size * tiles,)](
                    aim, bounds, gain, penalty, sends, first, tiles, count, memory, step, *split_seed(seed), self.table,
                    scores, TILE=self.tile, **EXACT,
                )  # fmt: skip
                # One stage: loads must not be moved before the stores of the group before.
                triton_kernels.extend_paths[(1,)](
                    value, new, scores, sends[first:], back[first:], size, count, memory, STATES=states,
                    TILE=min(states, STATES_TILE), num_warps=8, num_stages=1, **EXACT,
                )  # fmt: skip
        message = np.zeros(groups, np.uint8)
        trace_back(value.cpu().numpy(), memory, bits.astype(np.int64), back.cpu().numpy(), message)
        return message

    def candidate(self, target: np.ndarray, bits: int, *, seed: int, step: int, chunk: int) -> int:
        """The index of a Poisson functional representation, as `rcc.pfr.encode` finds it, with the same arguments."""
        count = 1 << bits
        tiles = -(-count // self.tile)
        best = torch.empty(tiles, dtype=torch.float64, device=self.device)
        index = torch.empty(tiles, dtype=torch.int32, device=self.device)
        arrivals = self._put(pfr.log_arrivals(bits, seed=seed, step=step, chunk=chunk), np.float64)
        with torch.cuda.device_of(best):
            triton_kernels.best_candidates[(tiles,)](
                self._put(target, np.float32), len(target), arrivals, count, chunk, step, *split_seed(seed), self.table,
                best, index, TILE=self.tile, **EXACT,
            )  # fmt: skip
        return int(index[int(np.argmax(best.cpu().numpy()))])

    def words(self, counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
        """Philox words of counters (n, 4) uint32, as `bitstream.prng.philox` has them."""
        counters = self._put(counter.astype(np.uint32).view(np.int32), np.int32)
        out = torch.empty_like(counters)
        with torch.cuda.device_of(out):
            triton_kernels.draw_words[(-(-len(counter) // self.tile),)](
                counters, len(counter), *key, out, TILE=self.tile, **EXACT
            )
        return out.cpu().numpy().view(np.uint32)

    def check(self) -> None:
        """Compare with the reference generator and the search on a CPU. Raises RuntimeError if anything differs."""
        rng = np.random.default_rng(0)
        counter, key = rng.integers(0, 1 << 32, (100, 4), dtype=np.uint32), (0xA4093822, 0x299F31D0)
        if not np.array_equal(self.words(counter, key), philox(counter, key)):
            raise RuntimeError("Philox words of the GPU are not those of the reference")
        starts, bits = np.arange(0, 13 * 9, 9), rng.integers(1, 4, 12)
        target, share = rng.normal(size=starts[-1]).astype(np.float32), np.full(12, 0.6)
        here, there = (find(target, starts, share, bits, memory=8, step=1) for find in (trellis.search, self.message))
        if not np.array_equal(here, there):
            raise RuntimeError("the search on the GPU does not find the message that the one on the CPU finds")

    def _put(self, values: np.ndarray, dtype: type) -> Tensor:
        return torch.from_numpy(np.array(values, dtype)).to(self.device)

    def _empty(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=self.device)


def _blocks(starts: np.ndarray, candidates: np.ndarray) -> int:
    """The most first blocks that a group of these bounds and numbers of candidates draws."""
    sizes = np.diff(starts)
    share = np.select([sizes <= 1, sizes <= 2, sizes <= 4], [8, 4, 2], 1)
    return int((-(-candidates // share)).max())
