"""Frequencies that keep their place: the DCT plane cut into boxes, each turned back into a small picture of its own.

A DCT coefficient belongs to the whole picture, so a code in that domain treats sky and leaves alike. Here the plane of
frequencies is cut as wavelets cut it, into rings of an octave, and each ring into boxes half as wide as its lower edge;
the inverse DCT of the coefficients of a box is a small picture: what the picture has at those frequencies, place by
place. All of it is orthonormal, so white noise stays white, and works for any size. The few lowest frequencies, too
coarse to have a place, stay as they are.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from codling.rcc.spectral import dct, idct

# Parts of an octave, along each axis: more of them tell frequencies apart better and places worse.
PARTS = 2
# A box has at least so many coefficients along each axis.
SMALLEST = 2


@dataclass(frozen=True)
class Box:
    """Coefficients [top, top + height) x [left, left + width) of the DCT plane."""

    top: int
    left: int
    height: int
    width: int

    @property
    def at(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@cache
def boxes(height: int, width: int) -> tuple[Box, ...]:
    """The boxes of a plane, highest frequencies first; what they leave is the corner of the lowest frequencies."""
    out: list[Box] = []
    octave = 0
    while True:
        # Bounds of the parts of [0, 2^-octave) of all frequencies, along each axis.
        rows, columns = ([side * i // (2 * PARTS << octave) for i in range(2 * PARTS + 1)] for side in (height, width))
        ring = [
            Box(rows[i], columns[j], rows[i + 1] - rows[i], columns[j + 1] - columns[j])
            for i in range(2 * PARTS)
            for j in range(2 * PARTS)
            if max(i, j) >= PARTS
        ]
        if min(min(box.height, box.width) for box in ring) < SMALLEST:
            return tuple(out)
        out += ring
        octave += 1


def corner(height: int, width: int) -> tuple[int, int]:
    """Sides of the corner of lowest frequencies that no box has."""
    octave = len(boxes(height, width)) // (3 * PARTS**2)
    return height >> octave, width >> octave


def to_places(spectrum: np.ndarray) -> np.ndarray:
    """DCT coefficients (C, H, W) -> the same array with the small pictures in the place of their boxes."""
    out = spectrum.copy()
    for box in boxes(*spectrum.shape[-2:]):
        out[:, *box.at] = _both_axes(idct, spectrum[:, *box.at])
    return out


def from_places(places: np.ndarray) -> np.ndarray:
    """The inverse of `to_places`."""
    out = places.copy()
    for box in boxes(*places.shape[-2:]):
        out[:, *box.at] = _both_axes(dct, places[:, *box.at])
    return out


def _both_axes(transform, planes: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    turned = np.ascontiguousarray(transform(np.ascontiguousarray(planes)).swapaxes(-1, -2))
    return np.ascontiguousarray(transform(turned).swapaxes(-1, -2))
