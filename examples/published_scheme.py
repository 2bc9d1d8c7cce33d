"""DiffC as published beside codling's files: what the channel coder is worth.

    python examples/published_scheme.py linear 250,600 PICTURE...           with an ideal channel
    python examples/published_scheme.py linear 100,200 --real PICTURE...    with its own channel coder, really run

The published scheme codes every dimension of every step and pretends that the prior knows the picture; its rate is the
Kullback-Leibler divergence between posterior and prior. Here that divergence is counted in bits as if a channel coder
could reach it, which no real one does, and nothing is counted for headers or side information. With --real, chunks of
random dimensions are coded by Poisson functional representation and the Zipf law, and two bytes a step are counted for
the divergence, which a decoder must know; that searches 65,536 candidates over all dimensions, so use small pictures.

For each budget, means over the pictures: bytes, PSNR, SWD, steps and seconds of codling's real files, and the same of
the published scheme at the same PSNR, interpolated between its steps. Seconds are of processor time.
"""

import sys
import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

import codling
from codling.bitstream.container import unpack
from codling.codecs.base import DecodeOptions
from codling.codecs.diffc import DiffCCodec
from codling.codecs.diffc_stream import DiffCConfig
from codling.diffusion.posterior import posterior
from codling.evaluation.metrics import psnr
from codling.pictures import from_image_array
from codling.rcc import pfr
from codling.rcc.spectral import from_spectrum, to_spectrum
from codling.swd import swd

# The published spacing, a step every 20 thousandths of noise, in 1024ths.
TIMES = (995, *(round(1.024 * k) for k in range(949, 300, -20)))


def coded_sample(target: np.ndarray, step: int) -> tuple[np.ndarray, float]:
    """A sample of N(target, I) by the published channel coder, and the bits it took."""
    divergence = float(np.square(target).sum()) / 2 / np.log(2)
    order = np.random.default_rng(step).permutation(target.size)
    sample, bits = np.empty(target.size, np.float32), 16.0
    sizes = pfr.chunk_bits(divergence)
    for chunk, (own, size) in enumerate(zip(np.array_split(order, len(sizes)), sizes, strict=True)):
        index = pfr.encode(target[own], size, seed=1, step=step, chunk=chunk)
        sample[own] = pfr.decode(index, len(own), seed=1, step=step, chunk=chunk)
        bits += pfr.zipf(size).bits(0, index)
    return sample, bits


@dataclass(frozen=True)
class Point:
    """Where a coder has come to. seconds: of processor time. decoded: the picture, (H, W, 3) uint8."""

    bytes: float
    psnr: float
    steps: int
    seconds: float
    decoded: np.ndarray

    def row(self, picture: np.ndarray) -> np.ndarray:
        """bytes, PSNR, SWD, steps, seconds."""
        return np.array([self.bytes, self.psnr, swd(picture, self.decoded), self.steps, self.seconds])


def published_curve(codec: DiffCCodec, picture: np.ndarray, *, until: float, real: bool) -> list[Point]:
    """After each step, until a PSNR is reached; the picture's sides are multiples of the model's grid."""
    height, width = picture.shape[:2]
    source = to_spectrum((picture / np.float32(127.5) - 1).transpose(2, 0, 1))
    chain = codec.start(b"", height=height, width=width, settings=DiffCConfig())
    rng, bits, curve, begin = np.random.default_rng(0), 0.0, list[Point](), time.process_time()
    for level, following in pairwise((chain.level, *TIMES)):
        q = posterior(level / 1024, following / 1024)
        target = (q.gain * (source - chain.estimate) / np.sqrt(q.variance)).ravel().astype(np.float32)
        if real:
            sample, spent = coded_sample(target, chain.step)
        else:
            sample = target + rng.standard_normal(target.shape, dtype=np.float32)
            spent = float(np.square(target).sum()) / 2 / np.log(2)
        bits += spent
        chain.advance(following, np.ones(chain.known.shape, bool), sample)
        decoded = from_image_array(from_spectrum(chain.estimate))
        quality, seconds = psnr(picture, decoded), time.process_time() - begin
        curve.append(Point(bits / 8, quality, chain.step, seconds, decoded))
        if quality > until:
            return curve
    raise SystemExit(f"the published steps end at {curve[-1].psnr:.2f} dB, wanted {until:.2f}: lower the budgets")


def coded(codec: DiffCCodec, path: str, picture: np.ndarray, budget: int) -> Point:
    """One of codling's files."""
    begin = time.process_time()
    data = codling.encode(path, model=codec, max_bytes=budget)
    seconds = time.process_time() - begin
    height, width = picture.shape[:2]
    *_, (chain, _) = codec.walk(unpack(data).payload, height=height, width=width)
    image = codec.finish(chain, height=height, width=width, options=DecodeOptions(steps=1))
    decoded = from_image_array(image[0].numpy())
    return Point(len(data), psnr(picture, decoded), chain.step, seconds, decoded)


def at(quality: float, curve: list[Point], picture: np.ndarray) -> np.ndarray:
    """The row of a curve at a PSNR: bytes by their logarithm, the rest linearly."""
    place = next(place for place, point in enumerate(curve) if point.psnr >= quality)
    if not place:
        return curve[0].row(picture)
    low, high = curve[place - 1 : place + 1]
    first, second = low.row(picture), high.row(picture)
    share = (quality - low.psnr) / (high.psnr - low.psnr)
    between: np.ndarray = first + share * (second - first)
    between[0] = np.exp(np.log(first[0]) + share * np.log(second[0] / first[0]))
    return between


if __name__ == "__main__":
    codec = codling.load(sys.argv[1])
    assert isinstance(codec, DiffCCodec)
    budgets = [int(text) for text in sys.argv[2].split(",")]
    real = sys.argv[3] == "--real"
    paths = sys.argv[4:] if real else sys.argv[3:]
    codling.encode(paths[0], model=codec, max_bytes=budgets[0])  # compiles the search, which is not to be timed
    rows = np.zeros((len(paths), len(budgets), 2, 5))
    for number, path in enumerate(paths):
        picture = np.asarray(Image.open(path).convert("RGB"))
        ours = [coded(codec, path, picture, budget) for budget in budgets]
        curve = published_curve(codec, picture, until=max(point.psnr for point in ours), real=real)
        rows[number] = [[point.row(picture), at(point.psnr, curve, picture)] for point in ours]
    for ours_mean, published in rows.mean(0):
        for name, row in (("codling", ours_mean), ("published", published)):
            print("{:10} {:7.0f} bytes {:6.2f} dB  SWD {:5.1f} {:5.1f} steps {:7.1f} s".format(name, *row))
        print(f"ratio of the bytes {ours_mean[0] / published[0]:.2f}")
