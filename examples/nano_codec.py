"""The method in one file: a photograph in a few hundred bytes, without a network, and nothing learned but six numbers.

    python examples/nano_codec.py photo.webp 400 out.png       (encodes to 400 bytes, decodes them, saves the picture)

Encoder and decoder share a belief about every DCT coefficient x of the picture: x ~ N(m, E). At first m = 0 and E is
the average power of photographs at that frequency. Step by step the encoder tells the decoder noisy observations
x + N(0, V), coarse ones first: with r = E / V that is worth log2(1 + r) / 2 bits, and both update m and E by Bayes'
rule. Sending *a sample* of an observation, rather than a quantised number, is reverse channel coding: both sides can
draw the same random candidates, and the encoder names those that look most like its observation. With a diffusion
model, m comes from the network, which knows more of photographs than their power; the rest is as here. (The real
codec, `codling.codecs.diffc`, also plans in integers, so that all machines agree.)
"""

import struct
import sys
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from PIL import Image

from codling.bitstream.prng import normal_table, philox  # the generator that encoder and decoder share
from codling.rcc.spectral import dct, from_spectrum, idct, to_spectrum  # orthonormal transforms

# Power of the three colour components at frequency f in cycles a pixel: exp(a) / (f + 0.002)^b.
SPECTRUM = ((-6.51, 2.64), (-10.11, 2.87), (-10.99, 2.75))
NOISE = [900 * 0.7**step for step in range(40)]  # variances of the observations, coarse to fine
WORTH = 1.4  # the least r worth a message
MEMORY = 7  # bits of the trellis: 2^7 states
START = 3  # bits a step has beyond its rate: its register begins empty, so that its first choices are among few
REGISTERS = np.arange(2 << MEMORY).reshape(2, 1 << MEMORY)


def power_classes(height: int, width: int) -> np.ndarray:
    """log2 of every coefficient's power in half octaves, (3, H, W) integers: equal ones are coded together."""
    f = np.hypot(np.arange(height)[:, None] / height, np.arange(width) / width) / 2
    return np.stack([np.rint(2 * (a - b * np.log(f + 0.002)) / np.log(2)) for a, b in SPECTRUM]).astype(int)


def observations(classes: np.ndarray) -> Iterator[list[tuple[np.ndarray, float, float]]]:
    """What is sent together: lists of (coefficients, their E before, r). A function of the picture's size alone."""
    members = {k: np.flatnonzero(classes == k) for k in np.unique(classes)[::-1]}
    error = {k: 2.0 ** (k / 2) for k in members}
    for variance in NOISE:
        goal = {k: 2.0 ** (k / 2) * variance / (2.0 ** (k / 2) + variance) for k in members}
        while ratio := {k: error[k] / goal[k] - 1 for k in members if error[k] / goal[k] - 1 >= WORTH}:
            # At r = 3 a coefficient is worth one bit, all that a group sends; the rest waits for another round. A short
            # message chooses among few candidates, so its bits say less.
            most = 3.0 if sum(len(members[k]) for k in ratio) > 50 else 1.0
            ratio = {k: min(r, most) for k, r in ratio.items()}
            yield [(members[k], error[k], r) for k, r in ratio.items()]
            error |= {k: error[k] / (1 + r) for k, r in ratio.items()}


def candidates(count: int, registers: np.ndarray, group: int, step: int) -> np.ndarray:
    """(registers, count) standard normal numbers. A draw gives eight; those who take 1, 2 or 4 share it."""
    taken = min(8, 1 << int(count - 1).bit_length())
    counter = np.broadcast_arrays(np.arange(-(-count // 8)), registers[:, None] * taken // 8, group, step)
    words = philox(np.stack(counter, -1), (0, 0))
    halves = np.stack([words & np.uint32(0xFFFF), words >> np.uint32(16)], -1).reshape(len(registers), -1)
    return normal_table()[np.take_along_axis(halves, registers[:, None] * taken % 8 + np.arange(count), 1)]


def shuffle(count: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """A permutation and signs."""
    counter = np.stack([np.arange(count), *np.full((3, count), [[1], [2**32 - 1], [step]])], -1).astype(np.uint32)
    words = philox(counter, (0, 0))
    return np.argsort(words[:, 0], kind="stable"), np.where(words[:, 1] & 1, 1.0, -1.0)


def search(target: np.ndarray, starts: np.ndarray, r: np.ndarray, step: int) -> list[int]:
    """The bits whose candidates are the likeliest observations of the target: Viterbi's algorithm."""
    value, back = np.full(1 << MEMORY, -np.inf), []
    value[0] = 0
    for group, (a, b) in enumerate(pairwise(starts)):
        z = candidates(b - a, REGISTERS.ravel(), group, step)
        score = (1 + r[a]) * (z @ target[a:b]) - r[a] / 2 * np.square(z).sum(1)
        reached = value[REGISTERS >> 1] + score[REGISTERS]
        back.append(reached.argmax(0))
        value = reached.max(0)
    state, bits = int(value.argmax()), []
    for high in reversed(back):
        bits.append(state & 1)
        state = (int(high[state]) << MEMORY | state) >> 1
    return bits[::-1]


def walk(classes: np.ndarray, sent: list[int], source: np.ndarray | None = None, limit: int = 0) -> np.ndarray:
    """The belief m after all that `sent` says; an encoder gives its source, and `limit` bits are added to `sent`."""
    m, place = np.zeros(classes.size), 0
    for step, parts in enumerate(observations(classes.ravel())):
        members = np.concatenate([own for own, _, _ in parts])
        error, r = (np.concatenate([np.full(len(part[0]), part[i]) for part in parts]) for i in (1, 2))
        rate = np.cumsum(np.log2(1 + r) / 2) + START
        inner = np.searchsorted(rate, np.arange(1, int(rate[-1])) - 1e-9, side="right")
        starts = np.concatenate([[0], inner, [len(members)]])
        # Shuffled and transformed within a class, groups carry the same energy; white noise stays white.
        mixes = [(shuffle(len(own), step), slice(end - len(own), end)) for own, end in ends(parts)]
        if source is not None:
            target = np.sqrt(r / error) * (source - m)[members]
            for (order, signs), at in mixes:
                target[at] = dct(target[at][order] * signs)
            sent += search(target / np.sqrt(1 + r), starts, r, step)[: limit - place]
        bits, said, register = sent[place : place + len(starts) - 1], np.zeros(len(members)), 0
        for group, bit in enumerate(bits):
            register = (register << 1 | bit) & (2 << MEMORY) - 1
            a, b = starts[group], starts[group + 1]
            said[a:b] = candidates(b - a, np.array([register]), group, step)[0]
        for (order, signs), at in mixes:
            back = idct(said[at]) * signs
            said[at][order] = back
        m[members] += np.sqrt(error * r / (1 + r)) * said  # said sqrt(1 + r) = (x - m) / sqrt(V) + unit noise
        place += len(bits)
        if len(bits) < len(starts) - 1:
            break
    return m


def ends(parts: list[tuple[np.ndarray, float, float]]) -> Iterator[tuple[np.ndarray, int]]:
    """The coefficients of each part, and where they end among all."""
    return zip((own for own, _, _ in parts), np.cumsum([len(own) for own, _, _ in parts]), strict=True)


def encode(picture: np.ndarray, size: int) -> bytes:
    """(H, W, 3) uint8 -> at most `size` bytes."""
    height, width = picture.shape[:2]
    source = to_spectrum(picture.astype(np.float64).transpose(2, 0, 1) / 127.5 - 1)
    classes = power_classes(height, width)
    # How much more power this picture has than the average one, in half octaves, where it matters.
    extra = round(2 * np.log2(np.mean((np.square(source) / 2.0 ** (classes / 2))[classes >= 6]) + 1e-9))
    sent: list[int] = []
    walk(classes + extra, sent, source.ravel(), 8 * (size - 5))
    return struct.pack(">HHb", height, width, extra) + np.packbits(np.array(sent, np.uint8)).tobytes()


def decode(data: bytes) -> np.ndarray:
    """The bytes alone, or their beginning -> (H, W, 3) uint8."""
    height, width, extra = struct.unpack(">HHb", data[:5])
    sent = np.unpackbits(np.frombuffer(data[5:], np.uint8)).tolist()
    image = from_spectrum(walk(power_classes(height, width) + extra, sent).reshape(3, height, width))
    return np.rint((image.transpose(1, 2, 0) + 1) * 127.5).clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    original = np.asarray(Image.open(sys.argv[1]).convert("RGB"))
    file = encode(original, int(sys.argv[2]))
    error = np.square((decoded := decode(file)).astype(float) - original).mean()
    print(f"{len(file)} bytes, {10 * np.log10(255**2 / error):.2f} dB")
    Image.fromarray(decoded).save(sys.argv[3])
