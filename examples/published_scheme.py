"""DiffC as published beside codling's files: what the channel coder is worth.

    python examples/published_scheme.py linear 150,250,400 PICTURE...           with an ideal channel
    python examples/published_scheme.py linear 150,250,400 --real PICTURE...    with its own channel coder, really run

The published scheme codes every dimension of every step and pretends that the prior knows the picture; its rate is the
Kullback-Leibler divergence between posterior and prior. Here that divergence is counted in bits as if a channel coder
could reach it, which no real one does, and nothing is counted for headers or side information. With --real, chunks of
random dimensions are coded by Poisson functional representation and the Zipf law, and two bytes a step are counted for
the divergence, which a decoder must know; that searches 65,536 candidates over all dimensions, so use small pictures.
codling's figures are those of real files. For each budget: bytes and PSNR of the file, the bytes the published scheme
needs for that PSNR.
"""

import sys
from itertools import pairwise

import numpy as np
from PIL import Image

import codling
from codling.codecs.diffc import DiffCCodec
from codling.codecs.diffc_stream import DiffCConfig
from codling.diffusion.posterior import posterior
from codling.rcc import pfr
from codling.rcc.spectral import from_spectrum, to_spectrum

# The published spacing, a step every 20 thousandths of noise, in 1024ths.
TIMES = (995, *(round(1.024 * k) for k in range(949, 300, -20)))


def psnr(decoded: np.ndarray, picture: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(decoded.astype(float) - picture).mean()))


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


def published_curve(codec: DiffCCodec, picture: np.ndarray, *, real: bool) -> list[tuple[float, float]]:
    """(bytes so far, PSNR of the estimate) after each step; the picture's sides are multiples of the model's grid."""
    height, width = picture.shape[:2]
    source = to_spectrum((picture / np.float32(127.5) - 1).transpose(2, 0, 1))
    chain = codec.start(b"", height=height, width=width, settings=DiffCConfig())
    rng, bits, curve = np.random.default_rng(0), 0.0, []
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
        decoded = np.rint((from_spectrum(chain.estimate).transpose(1, 2, 0) + 1) * 127.5).clip(0, 255)
        curve.append((bits / 8, psnr(decoded, picture)))
    return curve


if __name__ == "__main__":
    codec = codling.load(sys.argv[1])
    budgets = [int(text) for text in sys.argv[2].split(",")]
    real = sys.argv[3] == "--real"
    paths = sys.argv[4:] if real else sys.argv[3:]
    rows = np.zeros((len(budgets), 3))
    for path in paths:
        picture = np.asarray(Image.open(path).convert("RGB"))
        curve = published_curve(codec, picture, real=real)
        for number, budget in enumerate(budgets):
            data = codling.encode(path, model=codec, max_bytes=budget)
            quality = psnr(np.asarray(codling.decode(data, model=codec, steps=1)), picture)
            needed = np.interp(quality, [q for _, q in curve], [np.log(size) for size, _ in curve])
            rows[number] += len(data), quality, np.exp(needed)
    for size, quality, needed in rows / len(paths):
        scheme = "published, really coded" if real else "published, ideal channel"
        print(f"{size:.0f} bytes {quality:.2f} dB; {scheme}: {needed:.0f} bytes; ratio {size / needed:.2f}")
