"""Reverse channel coding: the compiled search against a plain one, decoding without a search, and bits well spent."""

import itertools
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from codling.bitstream.prng import PER_BLOCK, gaussians, normal_table
from codling.bitstream.prng import philox as reference_philox
from codling.rcc import trellis
from codling.rcc.channel import group_bits, receive, send
from codling.rcc.kernels import TILE, extend_paths, philox, score_block, score_candidates
from codling.rcc.pfr import scores
from codling.rcc.plan import Band
from codling.rcc.threads import in_parts
from codling.rcc.trellis import BATCH, codewords, search


def split(count: int, groups: int) -> np.ndarray:
    return np.linspace(0, count, groups + 1).astype(np.int64)


def reference_candidate(size: int, candidate: int, *, seed: int, step: int, group: int) -> np.ndarray:
    """Straight from the format's text: groups of four and fewer share the eight numbers of a block."""
    taken = next((taken for taken in (1, 2, 4) if taken >= size), PER_BLOCK)
    word, place = divmod(candidate, PER_BLOCK // taken)
    drawn = gaussians(max(size, PER_BLOCK), seed=seed, stream=step, chunk=group, candidate=word)
    return drawn[taken * place :][:size]


def reference_codewords(message: np.ndarray, starts: np.ndarray, bits: np.ndarray, memory: int) -> np.ndarray:
    """Straight from the format's text: of all bits sent so far, the last memory + bits name the candidate."""
    sent, words = 0, []
    for group, (value, own) in enumerate(zip(message, bits, strict=True)):
        sent = sent << int(own) | int(value)
        register = sent & ((1 << (memory + int(own))) - 1)
        size = int(starts[group + 1] - starts[group])
        words.append(reference_candidate(size, register, seed=3, step=1, group=group))
    return np.concatenate(words)


def path_score(z: np.ndarray, target: np.ndarray, starts: np.ndarray, share: np.ndarray) -> float:
    rho2 = np.repeat(share, np.diff(starts))
    return float((z * target / rho2 - z.astype(np.float64) ** 2 * (1 / rho2 - 1) / 2).sum())


def test_the_compiled_generator_is_the_reference() -> None:
    for counter in ((0, 0, 0, 0), (1, 2, 3, 4), (0xFFFFFFFF, 7, 0, 0xFFFFFFFF)):
        words = philox(*(np.uint64(c) for c in counter), np.uint64(0xA4093822), np.uint64(0x299F31D0))
        assert tuple(words) == tuple(reference_philox(np.array(counter), (0xA4093822, 0x299F31D0)))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 13, 16])
@pytest.mark.parametrize("count", [4, TILE + 30])
def test_compiled_scores_are_those_of_the_reference_draws(size: int, count: int) -> None:
    """To the bit, with every product and sum rounded in the order that `kernels` promises."""
    target, score = np.random.default_rng(size).normal(size=size).astype(np.float32), np.empty(count, np.float32)
    score_candidates(target, np.float32(1.5), np.float32(0.2), np.uint64(9), np.uint64(4), np.uint64(5), np.uint64(0),
                     normal_table(), score)  # fmt: skip
    z = np.stack([reference_candidate(size, candidate, seed=5, step=4, group=9) for candidate in range(count)])
    assert score == pytest.approx((1.5 * z * target - 0.2 * z * z).sum(1), abs=1e-4)
    dot, square = np.zeros((2, count), np.float32)
    for j in range(0, size, 2):
        last = j + 1 == size
        dot += z[:, j] * target[j] + (0 if last else z[:, j + 1] * target[j + 1])
        square += z[:, j] * z[:, j] + (0 if last else z[:, j + 1] * z[:, j + 1])
    assert np.array_equal(score, np.float32(1.5) * dot - np.float32(0.2) * square)


def test_candidates_of_blocks_take_whole_philox_blocks() -> None:
    """However few dimensions a published chunk has; its scores are a trellis's sums, with nothing taken off."""
    target, count = np.zeros(16, np.float32), TILE + 30
    target[:13] = np.random.default_rng(0).normal(size=13)
    for size in (2, 13):
        score, dot = np.empty(count, np.float32), np.zeros(count, np.float32)
        padded = np.where(np.arange(16) < size, target, 0)[: 8 if size < 8 else 16].astype(np.float32)
        score_block(padded, 3, np.uint64(9), np.uint64(4), np.uint64(5), np.uint64(0), normal_table(), score)
        z = np.stack([gaussians(len(padded), seed=5, stream=4, chunk=9, candidate=3 + c) for c in range(count)])
        for j in range(0, len(padded), 2):
            dot += z[:, j] * padded[j] + z[:, j + 1] * padded[j + 1]
        assert np.array_equal(score, dot)


def test_path_steps_are_those_of_the_definition() -> None:
    """To the bit: every state keeps the best way into it, of equal ones the lowest, less the best of all."""
    rng, memory, bits = np.random.default_rng(0), 6, np.array([1, 2, 3, 1, 4, 6])
    scores = rng.integers(0, 9, (len(bits), 1 << (memory + 6))).astype(np.float32) / 7  # many are equal
    value, states = np.full(1 << memory, -np.inf, np.float32), np.arange(1 << memory)
    value[5] = 0
    back, wanted = np.empty((len(bits), 1 << memory), np.uint8), value.copy()
    extend_paths(value, scores, memory, bits, back)
    for group, own in enumerate(bits):
        registers = (np.arange(1 << own)[:, None] << memory) | states
        reached = wanted[registers >> own] + scores[group, registers]
        assert np.array_equal(back[group], reached.argmax(0))
        wanted = reached.max(0) - reached.max()
    assert np.array_equal(value, wanted)


def test_more_bits_than_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="4 bits: take a memory of as many"):
        search(np.ones(2, np.float32), np.array([0, 1, 2]), np.ones(2), np.array([1, 4]), memory=3, step=0)


@pytest.mark.parametrize("memory", [4, 6, 8])
@pytest.mark.parametrize("bits", [[1] * 9, [2] * 5, [3, 1, 2, 1, 2], [4, 1, 1, 4]])
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_viterbi_finds_the_best_of_all_messages(memory: int, bits: list[int], share: float) -> None:
    sends, starts, shares = np.array(bits), split(37, len(bits)), np.full(len(bits), share)
    target = np.random.default_rng(memory).normal(size=37).astype(np.float32)
    message = search(target, starts, shares, sends, memory=memory, seed=3, step=1)
    assert (message >> sends == 0).all()
    words = codewords(message, starts, sends, memory=memory, seed=3, step=1)
    assert np.array_equal(words, reference_codewords(message, starts, sends, memory))
    best = max(
        path_score(
            codewords(np.array(m, np.uint8), starts, sends, memory=memory, seed=3, step=1), target, starts, shares
        )
        for m in itertools.product(*(range(1 << b) for b in bits))
    )
    assert path_score(words, target, starts, shares) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_change_nothing(threads: int) -> None:
    """Several batches of groups, of unequal sizes and bits."""
    rng = np.random.default_rng(0)
    bits = rng.integers(1, 4, BATCH * 2 + 5)
    starts, shares = split(1200, len(bits)), np.full(len(bits), 0.6)
    target = rng.normal(size=1200).astype(np.float32)
    alone, together = (search(target, starts, shares, bits, memory=5, step=1, threads=n) for n in (1, threads))
    assert np.array_equal(alone, together)
    assert len(np.unique(alone)) == 8
    one, many = (scores(target, 1001, seed=1, step=2, chunk=3, threads=n) for n in (1, threads))
    assert np.array_equal(one, many)


def test_large_pools_are_searched_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, bits = np.random.default_rng(0), np.full(40, 4)
    starts, shares = split(160, 40), np.full(40, 0.6)
    target = rng.normal(size=160).astype(np.float32)

    def searched(batch_scores: int) -> tuple[np.ndarray, int]:
        monkeypatch.setattr(trellis, "BATCH_SCORES", batch_scores)
        tracemalloc.start()
        message = search(target, starts, shares, bits, memory=8, step=1, threads=2)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return message, peak

    searched(1)  # compiles
    (whole, much), (sliced, little), (singly, least) = (searched(4096 * groups) for groups in (40, 3, 0))
    assert np.array_equal(whole, sliced)
    assert np.array_equal(whole, singly)
    assert much - little == pytest.approx(4 * 4096 * 37, rel=0.1)
    assert little > least


def test_parts_make_up_the_whole_and_raise_their_errors() -> None:
    parts: list[tuple[int, int]] = []
    with ThreadPoolExecutor(3) as pool:
        in_parts(pool, 3, 4, 15, lambda begin, end: parts.append((begin, end)))
        assert [place for begin, end in sorted(parts) for place in range(begin, end)] == list(range(4, 15))
        with pytest.raises(ZeroDivisionError):
            in_parts(pool, 3, 0, 9, lambda begin, end: parts.append((1 // (begin - 3), end)))


def test_decoding_depends_on_message_seed_and_step_alone() -> None:
    starts, message, bits = split(100, 10), np.arange(10, dtype=np.uint8) % 2, np.ones(10, np.int64)
    first = codewords(message, starts, bits, memory=4, seed=1, step=2)
    assert np.array_equal(first, codewords(message, starts, bits, memory=4, seed=1, step=2))
    for seed, step in ((2, 2), (1, 3)):
        assert not np.array_equal(first, codewords(message, starts, bits, memory=4, seed=seed, step=step))
    flipped = message.copy()
    flipped[3] ^= 1  # reaches this group and the four that remember it
    again = codewords(flipped, starts, bits, memory=4, seed=1, step=2)
    changed = again.reshape(10, 10) != first.reshape(10, 10)
    assert list(changed.any(1)) == [3 <= group <= 7 for group in range(10)]
    assert np.array_equal(codewords(message[:6], starts, bits, memory=4, seed=1, step=2), first[:60])


@pytest.mark.parametrize(("memory", "least"), [(4, 0.66), (8, 0.84), (10, 0.88)])
def test_bits_are_well_spent(memory: int, least: float) -> None:
    """Effective bits p^2 / (2 ln 2) over bits sent, p the projection on the unit target; a block of 8 bits has 0.71."""
    groups, size = 1000, 8
    target = np.random.default_rng(0).normal(size=(groups, size))
    # Mixing gives every group the same energy.
    target = (target / np.linalg.norm(target, axis=1, keepdims=True)).astype(np.float32).ravel()
    starts, bits = split(target.size, groups), np.ones(groups, np.int64)
    message = search(target, starts, np.ones(groups), bits, memory=memory, seed=0, step=0)
    z = codewords(message, starts, bits, memory=memory, seed=0, step=0)
    projection = float(z @ target / np.linalg.norm(target))
    assert least < projection**2 / (2 * np.log(2)) / groups < 1


@pytest.mark.parametrize(("share", "per_group", "bits"), [(0.5, 2, 1), (0.25, 1, 1), (1 / 16, 1, 2)])
def test_codewords_have_the_variance_the_prior_promises(share: float, per_group: int, bits: int) -> None:
    """With the predictive prior, codewords of a target drawn from the model have mean 0 and variance 1."""
    rng = np.random.default_rng(1)
    groups = 4000  # at the rate of rho^2: log2(1 / rho^2) / 2 bits a dimension
    count = groups * per_group
    # z = target + noise of variance rho^2 has variance 1: the target has 1 - rho^2.
    target = (np.sqrt(1 - share) * rng.normal(size=count)).astype(np.float32)
    starts, sends, shares = split(count, groups), np.full(groups, bits), np.full(groups, share)
    message = search(target, starts, shares, sends, memory=8, seed=0, step=0)
    z = codewords(message, starts, sends, memory=8, seed=0, step=0)
    assert z.mean() == pytest.approx(0, abs=0.05)
    assert z.var() == pytest.approx(1, abs=0.1)
    # The channel's noise is what it should be, up to the bits a finite trellis does not deliver.
    assert np.square(z - target).mean() == pytest.approx(share, rel=0.25)


@pytest.mark.parametrize("bits", [[1, 1], [2, 1]])
def test_the_channel_says_the_target_with_the_noise_it_should_have(bits: list[int]) -> None:
    """What is received is the target plus noise of variance 1, in units of the posterior's deviation."""
    rng = np.random.default_rng(2)
    ratios, counts = (8.0, 1.0), (600, 1200)
    members = np.split(rng.permutation(2500), np.cumsum(counts))[:2]
    plan = [
        Band(np.sort(own), int(256 * np.log2(r)), int(len(own) * np.log2(1 + r) / 2 / b), b)
        for own, r, b in zip(members, ratios, bits, strict=True)
    ]
    target = np.zeros(2500, np.float32)
    for band, r in zip(plan, ratios, strict=True):
        target[band.members] = np.sqrt(r) * rng.normal(size=len(band.members))
    message = send(target, plan, memory=9, step=4)
    assert len(message) == len(group_bits(plan)) == sum(band.groups for band in plan)
    said = receive(message, plan, size=2500, memory=9, step=4)
    for band in plan:
        assert np.square(said - target)[band.members].mean() == pytest.approx(1, rel=0.25)
    silent = np.ones(2500, bool)
    silent[np.concatenate([band.members for band in plan])] = False
    assert not said[silent].any()
    # A cut message keeps what it has: the first band here, and less energy of the second.
    cut = receive(message[: plan[0].groups + 10], plan, size=2500, memory=9, step=4)
    assert np.array_equal(cut[plan[0].members], said[plan[0].members])
    assert 0 < np.square(cut[plan[1].members]).sum() < np.square(said[plan[1].members]).sum()
    assert not receive(message[:0], plan, size=2500, memory=9, step=4).any()


def test_mixing_makes_uneven_energy_cost_no_more() -> None:
    """Variances over a factor of 100 within a band are said as well as equal ones; unmixed they are not."""
    count, ratio, rng = 2048, 2.0, np.random.default_rng(0)
    groups = int(count * np.log2(1 + ratio) / 2)
    plan = [Band(np.arange(count), int(256 * np.log2(ratio)), groups, 1)]
    white = rng.normal(size=count)

    def error(said: np.ndarray, target: np.ndarray) -> float:
        """Of the estimate by who knows the mean ratio only."""
        return float(np.square(said * ratio / (1 + ratio) - target).mean())

    mixed, plain = [], []
    for spread in (1, 100):
        variance = spread ** np.linspace(0.5, -0.5, count)
        target = (white * np.sqrt(variance * ratio / variance.mean())).astype(np.float32)
        message = send(target, plan, memory=7, step=0)
        mixed.append(error(receive(message, plan, size=count, memory=7, step=0), target))
        starts, bits, deviation = plan[0].starts(), np.ones(groups, np.int64), np.float32(np.sqrt(1 + ratio))
        message = search(target / deviation, starts, np.full(groups, 1 / (1 + ratio)), bits, memory=7, step=0)
        plain.append(error(codewords(message, starts, bits, memory=7, step=0) * deviation, target))
    assert mixed[1] == pytest.approx(mixed[0], rel=0.05)
    assert plain[1] > 1.12 * mixed[1]
