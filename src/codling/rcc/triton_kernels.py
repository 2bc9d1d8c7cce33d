"""The loops of `kernels` for a GPU, in Triton: the same Philox words, Gaussians and candidates, chosen the same way.

Nothing here needs torch; `codling.codecs.triton_search` launches the kernels. Candidates live in registers: a program
draws a tile of them eight dimensions at a time, multiplies and forgets them, so memory holds no more than their scores
(trellis) or the best of a tile (blocks).

The trellis takes two kernels. Scores of all groups of a batch are independent and fill the GPU. Viterbi's algorithm
over them is a chain of one short step a group that all states must finish together. A launch a group would be thousands
for a picture, and programs of one launch cannot wait for each other (nothing says that they run at the same time, and
interpreted they do not), so one program walks all groups of a batch and its threads meet at barriers.

Scores are summed in the order of `kernels`, and launched with `enable_fp_fusion=False` every product and sum is rounded
as there; the path search does the same float32 operations. So scores, and the message, are the same to the bit.
"""

import triton
import triton.language as tl

from codling.bitstream import prng

_M0, _M1 = (tl.constexpr(int(multiplier)) for multiplier in prng.MULTIPLIERS)
_W0, _W1 = (tl.constexpr(step) for step in prng.KEY_STEPS)
_ROUNDS = tl.constexpr(prng.ROUNDS)
_PER_BLOCK = tl.constexpr(prng.PER_BLOCK)
# A scalar argument's type must not depend on its value, and 1 is no reason to compile again.
_PLAIN = ["counters", "size", "count", "chunk", "first", "tiles", "stride", "groups", "memory", "step", "k0", "k1"]


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Four random words of counters, all uint32, of shapes that broadcast; `bitstream.prng.philox` is the reference."""
    for _ in tl.static_range(_ROUNDS):
        high0, low0 = tl.umulhi(c0, _M0), c0 * _M0
        high1, low1 = tl.umulhi(c2, _M1), c2 * _M1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _W0, k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def _add_pair(dot, square, word, table, target, place, end):
    """`dot` and `square` with the two dimensions from `place`, whose Gaussians a word names; none is at `end` or on."""
    low = tl.load(table + (word & 0xFFFF).to(tl.int32))
    high = tl.load(table + (word >> 16).to(tl.int32))
    low_real, high_real = place < end, place + 1 < end
    dot += low * tl.load(target + place, low_real, 0.0) + high * tl.load(target + place + 1, high_real, 0.0)
    square += low * low * low_real.to(tl.float32) + high * high * high_real.to(tl.float32)
    return dot, square


@triton.jit
def _dot_and_square(candidate, target, begin, end, chunk, step, k0, k1, table):
    """z . target[begin:end] and |z|^2, float32, for a tile of candidates (uint32)."""
    dot = tl.zeros(candidate.shape, tl.float32)
    square = tl.zeros(candidate.shape, tl.float32)
    for block in range((end - begin + _PER_BLOCK - 1) // _PER_BLOCK):
        counter = tl.zeros(candidate.shape, tl.uint32) + tl.cast(block, tl.uint32)
        w0, w1, w2, w3 = philox(counter, candidate, chunk, step, k0, k1)
        place = begin + block * _PER_BLOCK
        dot, square = _add_pair(dot, square, w0, table, target, place, end)
        dot, square = _add_pair(dot, square, w1, table, target, place + 2, end)
        dot, square = _add_pair(dot, square, w2, table, target, place + 4, end)
        dot, square = _add_pair(dot, square, w3, table, target, place + 6, end)
    return dot, square


@triton.jit(do_not_specialize=_PLAIN)
def draw_words(counter, counters, k0: tl.uint32, k1: tl.uint32, words, TILE: tl.constexpr):  # noqa: N803
    """words[i] = Philox of counter[i], (counters, 4) int32 that are read as uint32: for known answers."""
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    real, place = row < counters, row * 4
    c0 = tl.load(counter + place, real, 0).to(tl.uint32, bitcast=True)
    c1 = tl.load(counter + place + 1, real, 0).to(tl.uint32, bitcast=True)
    c2 = tl.load(counter + place + 2, real, 0).to(tl.uint32, bitcast=True)
    c3 = tl.load(counter + place + 3, real, 0).to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = philox(c0, c1, c2, c3, k0.to(tl.uint32), k1.to(tl.uint32))
    tl.store(words + place, w0.to(tl.int32, bitcast=True), real)
    tl.store(words + place + 1, w1.to(tl.int32, bitcast=True), real)
    tl.store(words + place + 2, w2.to(tl.int32, bitcast=True), real)
    tl.store(words + place + 3, w3.to(tl.int32, bitcast=True), real)


@triton.jit(do_not_specialize=_PLAIN)
def best_candidates(
    target, size, log_arrivals, count, chunk: tl.uint32, step: tl.uint32, k0: tl.uint32, k1: tl.uint32, table, best,
    index, TILE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Block search: the first best candidate of each tile, by z . target - log arrival time.

    target: (size,) float32. log_arrivals: (count,) float64. best, index: (tiles,) float64 and int32, out.
    """
    tile = tl.program_id(0)
    candidate = tile * TILE + tl.arange(0, TILE)
    dot, _ = _dot_and_square(
        candidate.to(tl.uint32), target, 0, size, chunk.to(tl.uint32), step.to(tl.uint32), k0.to(tl.uint32),
        k1.to(tl.uint32), table,
    )  # fmt: skip
    real = candidate < count
    score = tl.where(real, dot.to(tl.float64) - tl.load(log_arrivals + candidate, real, 0.0), -float("inf"))
    top, place = tl.max(score, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(best + tile, top)
    tl.store(index + tile, tile * TILE + place)


@triton.jit(do_not_specialize=_PLAIN)
def score_groups(
    target, starts, gain, penalty, bits, first, tiles, stride, memory, step: tl.uint32, k0: tl.uint32, k1: tl.uint32,
    table, scores, TILE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """scores[n * stride + r] = gain z_r . target - penalty |z_r|^2 for every candidate r of group first + n.

    One program a group and tile, `tiles` a group. target: float32, group i at [starts[i], starts[i + 1]). gain,
    penalty: (groups,) float32. bits: (groups,) int32; a group has 2^(memory + bits) candidates.
    """
    place = tl.program_id(0) // tiles
    group = first + place
    candidate = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    count = 1 << (memory + tl.load(bits + group))
    # Groups of fewer bits than others have fewer tiles.
    begin = tl.load(starts + group)
    end = tl.where(tl.program_id(0) % tiles * TILE < count, tl.load(starts + group + 1), begin)
    dot, square = _dot_and_square(
        candidate.to(tl.uint32), target, begin, end, group.to(tl.uint32), step.to(tl.uint32), k0.to(tl.uint32),
        k1.to(tl.uint32), table,
    )  # fmt: skip
    score = tl.load(gain + group) * dot - tl.load(penalty + group) * square
    tl.store(scores + place * stride + candidate, score, candidate < count)


@triton.jit(do_not_specialize=_PLAIN)
def extend_paths(
    value, new, scores, bits, back, groups, stride, memory, STATES: tl.constexpr, TILE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Viterbi steps over groups, in one program. `kernels.extend_paths` is the reference.

    value: (STATES,) best score of a path into each state, in and out. new: (STATES,), scratch. scores: group n at
    n * stride. bits: (groups,) int32. back: (groups, STATES) uint8, the high bits dropped by the best way into each
    state, out. TILE divides STATES = 2^memory.
    """
    for n in range(groups):
        shift = tl.load(bits + n)
        top = -float("inf")
        for first in range(0, STATES, TILE):
            state = first + tl.arange(0, TILE)
            best = tl.full((TILE,), -float("inf"), tl.float32)
            dropped = tl.zeros((TILE,), tl.int32)
            for high in range(1 << shift):
                register = (high << memory) | state
                reached = tl.load(value + (register >> shift)) + tl.load(scores + n * stride + register)
                better = reached > best
                best = tl.where(better, reached, best)
                dropped = tl.where(better, high, dropped)
            tl.store(new + state, best)
            tl.store(back + n * STATES + state, dropped.to(tl.uint8))
            top = tl.maximum(top, tl.max(best, 0))
        # All states have been read before any is written, and all are written before the next group reads.
        tl.debug_barrier()
        for first in range(0, STATES, TILE):
            state = first + tl.arange(0, TILE)
            # As in `kernels`: float32 keeps its resolution only if the best stays at zero.
            tl.store(value + state, tl.load(new + state) - top)
        tl.debug_barrier()
