"""The loops of `kernels` for a GPU, in Triton: the same Philox words, Gaussians and candidates, chosen the same way.

Nothing here needs torch; `codling.codecs.triton_search` launches the kernels. Candidates live in registers: a program
draws a tile of Philox blocks at a time, multiplies their Gaussians and forgets them, so memory holds no more than the
candidates' scores (trellis) or the best of a tile (blocks).

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
def _gaussian(word, table, HIGH: tl.constexpr):  # noqa: N803
    """What a word's low or high half names."""
    half = word >> 16 if HIGH else word & 0xFFFF
    return tl.load(table + half.to(tl.int32))


@triton.jit
def _add_pair(dot, square, low, high, target, place, end):
    """`dot` and `square` with the Gaussians of the two dimensions from `place`; none is at `end` or on."""
    low_real, high_real = place < end, place + 1 < end
    dot += low * tl.load(target + place, low_real, 0.0) + high * tl.load(target + place + 1, high_real, 0.0)
    square += low * low * low_real.to(tl.float32) + high * high * high_real.to(tl.float32)
    return dot, square


@triton.jit
def _add_word(dot, square, word, table, target, place, end):
    """`_add_pair` of the two Gaussians that a word names."""
    low, high = _gaussian(word, table, False), _gaussian(word, table, True)
    return _add_pair(dot, square, low, high, target, place, end)


@triton.jit
def _dot_and_square(candidate, target, begin, end, chunk, step, k0, k1, table):
    """z . target[begin:end] and |z|^2, float32, for a tile of candidates (uint32) that take whole blocks."""
    dot = tl.zeros(candidate.shape, tl.float32)
    square = tl.zeros(candidate.shape, tl.float32)
    for block in range((end - begin + _PER_BLOCK - 1) // _PER_BLOCK):
        counter = tl.zeros(candidate.shape, tl.uint32) + tl.cast(block, tl.uint32)
        w0, w1, w2, w3 = philox(counter, candidate, chunk, step, k0, k1)
        place = begin + block * _PER_BLOCK
        dot, square = _add_word(dot, square, w0, table, target, place, end)
        dot, square = _add_word(dot, square, w1, table, target, place + 2, end)
        dot, square = _add_word(dot, square, w2, table, target, place + 4, end)
        dot, square = _add_word(dot, square, w3, table, target, place + 6, end)
    return dot, square


@triton.jit
def _store_shared(
    word, number, w0, w1, gain, penalty, target, begin, end, count, table, scores, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Scores of the candidates from `number` on that have their values in half of a block, WIDTH = 1, 2 or 4 each."""
    none = tl.zeros(word.shape, tl.float32)
    number = word.to(tl.int32) * (_PER_BLOCK // WIDTH) + number
    for half in tl.static_range(2):
        drawn = w1 if half else w0
        if WIDTH == 1:
            for high in tl.static_range(2):
                z, own = _gaussian(drawn, table, high), number + 2 * half + high
                score = gain * (z * tl.load(target + begin)) - penalty * (z * z)
                tl.store(scores + own, score, own < count)
        if WIDTH == 2:
            dot, square = _add_word(none, none, drawn, table, target, begin, end)
            tl.store(scores + number + half, gain * dot - penalty * square, number + half < count)
    if WIDTH == 4:
        dot, square = _add_word(none, none, w0, table, target, begin, end)
        dot, square = _add_word(dot, square, w1, table, target, begin + 2, end)
        tl.store(scores + number, gain * dot - penalty * square, number < count)


@triton.jit
def _score_shared(
    word, gain, penalty, target, begin, end, count, group, step, k0, k1, table, scores, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Scores of all candidates of a tile of blocks, candidate words (uint32), whose groups take WIDTH values each."""
    w0, w1, w2, w3 = philox(tl.zeros(word.shape, tl.uint32), word, group, step, k0, k1)
    _store_shared(word, 0, w0, w1, gain, penalty, target, begin, end, count, table, scores, WIDTH)
    _store_shared(word, 4 // WIDTH, w2, w3, gain, penalty, target, begin, end, count, table, scores, WIDTH)


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

    One program a group and tile of blocks, `tiles` a group. target: float32, group i at [starts[i], starts[i + 1]).
    gain, penalty: (groups,) float32. bits: (groups,) int32; a group has 2^(memory + bits) candidates.
    """
    place = tl.program_id(0) // tiles
    group = first + place
    word = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    count = 1 << (memory + tl.load(bits + group))
    begin, end = tl.load(starts + group), tl.load(starts + group + 1)
    own_gain, own_penalty = tl.load(gain + group), tl.load(penalty + group)
    chunk, c3, key0, key1 = group.to(tl.uint32), step.to(tl.uint32), k0.to(tl.uint32), k1.to(tl.uint32)
    drawn, own = word.to(tl.uint32), scores + place * stride
    # The first of the tile's candidates; groups with fewer of them, or of more a block, need fewer tiles than others.
    tile = tl.program_id(0) % tiles * TILE
    if end - begin > 4:
        # A tile that is not needed sums over nothing.
        last = tl.where(tile < count, end, begin)
        dot, square = _dot_and_square(drawn, target, begin, last, chunk, c3, key0, key1, table)
        tl.store(own + word, own_gain * dot - own_penalty * square, word < count)
    elif end - begin > 2:
        if tile * 2 < count:
            _score_shared(
                drawn, own_gain, own_penalty, target, begin, end, count, chunk, c3, key0, key1, table, own, 4
            )  # fmt: skip
    elif end - begin == 2:
        if tile * 4 < count:
            _score_shared(
                drawn, own_gain, own_penalty, target, begin, end, count, chunk, c3, key0, key1, table, own, 2
            )  # fmt: skip
    elif tile * 8 < count:
        _score_shared(drawn, own_gain, own_penalty, target, begin, end, count, chunk, c3, key0, key1, table, own, 1)


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
