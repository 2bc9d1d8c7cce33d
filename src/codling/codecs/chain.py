"""The walk from noise to picture that a DiffC encoder and decoder make together."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codling.bitstream.prng import gaussians
from codling.codecs.diffc_stream import LARGEST_SCALE, THRESHOLD_UNIT, DiffCConfig
from codling.diffusion.guidance import VelocityFunction
from codling.diffusion.posterior import Posterior, flow_scale, posterior, signal_share
from codling.rcc.plan import LEVELS, Band, ErrorTable, Layout, Q, log_gains, plan_step, scaled, worth_coding

START = LEVELS - 1
# Chunk of the Gaussians that stand for what waiting bands do not say yet: no message has so many groups.
TAIL = 0xFFFFFFFD
# Colours are measured where they would be worth coding until this level, in half octaves down to the least, and counted
# to this share.
COLOURS_FOR, LEAST_COLOUR, COLOUR_SHARE = 500, -8, 0.7


@dataclass
class Chain:
    """The state that encoder and decoder walk together, in the variance-preserving form and as coefficients.

    velocity: of the flow, on states (1, C, h, w), all on the CPU. gaussian: whether estimates are made of the
    table alone, see `Backbone`. table: expected errors of estimates. layout: the coefficients of a component in bands.
    settings: the stream's own. state: (C, h, w) float32, coefficients; each band at a noise level of its own. known:
    (C, K), those levels, in 1024ths. colours: (C,), half octaves by which a component's errors differ from the table's
    in this picture. level: the noise level of the step, at which estimates are made; `known` is nowhere below it. step:
    how many were walked. _estimate: that of this level, once it was asked for. _last: the one before, or 0.
    """

    velocity: VelocityFunction
    gaussian: bool
    table: ErrorTable
    layout: Layout
    settings: DiffCConfig
    state: np.ndarray
    known: np.ndarray
    colours: np.ndarray
    level: int = START
    step: int = 0
    _estimate: np.ndarray | None = None
    _last: np.ndarray | float = 0.0

    @classmethod
    def begin(
        cls,
        velocity: VelocityFunction,
        table: ErrorTable,
        settings: DiffCConfig,
        layout: Layout,
        shape: tuple[int, int, int],
        *,
        gaussian: bool = False,
    ) -> "Chain":
        """Pure noise of a state's shape (C, h, w)."""
        noise = gaussians(shape[0] * shape[1] * shape[2]).reshape(shape)
        known, colours = np.full(table.log_error.shape[1:], START), np.zeros(shape[0], np.int64)
        return cls(velocity, gaussian, table, layout, settings, noise, known, colours)

    @property
    def estimate(self) -> np.ndarray:
        """The denoiser's estimate of the picture's state, (C, h, w), as coefficients. One network evaluation a step."""
        if self._estimate is None and self.gaussian:
            self._estimate = self._posterior_mean()
        if self._estimate is None:
            noise = self.noise
            x = self.seen()
            with torch.inference_mode():
                v = self.velocity(x, torch.tensor([1 - noise]))
                self._estimate = self.layout.coefficients((x + noise * v)[0].numpy())
        return self._estimate

    @estimate.setter
    def estimate(self, image: np.ndarray) -> None:
        """One that was made of `seen` elsewhere, as a state (C, h, w): where many chains share one evaluation."""
        self._estimate = self.layout.coefficients(image)

    def _posterior_mean(self) -> np.ndarray:
        """Of independent Gaussians with the power that the table has for someone who knows nothing."""
        power = 2.0 ** (scaled(self.table.at(np.full_like(self.known, START)), self.colours[:, None]) / Q)
        signal = np.array([signal_share(level / LEVELS) for level in self.known.flat]).reshape(self.known.shape)
        gain = np.sqrt(signal) * power / (signal * power + 1 - signal)
        out: np.ndarray = self._spread(np.where(self.known == START, 0.0, gain)) * self.state
        return out

    @property
    def noise(self) -> float:
        """The noise fraction that the walk is at."""
        return self.level / LEVELS

    def image_estimate(self) -> Tensor:
        """The estimate as a state, (1, C, h, w)."""
        return torch.from_numpy(self.layout.image(self.estimate))[None]

    def sample(self) -> Tensor:
        """A state of the flow at this noise fraction, as samplers and one-step decoders want it, (1, C, h, w)."""
        return self.flow_state(grain=1.0, empty=False)

    def seen(self) -> Tensor:
        """What the denoiser sees at this level, (1, C, h, w)."""
        return self.flow_state(grain=self.settings.grain, empty=self.settings.empty)

    def flow_state(self, *, grain: float, empty: bool) -> Tensor:
        """The state on the flow, (1, C, h, w), at time 1 - level / 1024.

        Coefficients that were last coded at a higher noise level are brought to this one by their posterior mean under
        the last estimate, plus `grain` times its deviation of shared noise: 1 makes the state a sample, as samplers
        want it; 0 the mean. With `empty`, those that were never coded are zero instead.
        """
        state = self.state
        if (self.known != self.level).any():
            q = self._posterior(self.level)
            state = q.gain * self._last + q.carry * state
            if grain:
                z = gaussians(state.size, stream=self.step, chunk=TAIL).reshape(state.shape)
                state = state + np.float32(grain) * np.sqrt(q.variance) * z
        if empty:
            state = state * self._spread(self.known != START)
        return torch.from_numpy(self.layout.image(state) * np.float32(flow_scale(self.level / LEVELS)))[None]

    def ratios(self, following: int, scale: int) -> np.ndarray:
        """log2 of g^2 E / sigma^2 in Q8, (C, K), of the step to `following`.

        scale: half octaves by which the picture's errors are larger than the table's.
        """
        scales = scale + self.colours[:, None]
        return scaled(self.table.at(self.known), scales) + log_gains(self.known, following)

    def plan(self, following: int, scale: int) -> tuple[list[Band], np.ndarray]:
        """What the step to `following` sends: its bands in coding order, and which of (C, K) they are, bool."""
        ratios = self.ratios(following, scale)
        plan = plan_step(ratios, self.layout, threshold=self._threshold, bits=self.settings.bits)
        return plan, self.worth_coding(ratios)

    def worth_coding(self, ratios: np.ndarray) -> np.ndarray:
        """Which bands of which components a step with these ratios codes, (C, K) bool."""
        return worth_coding(ratios, self.layout, self._threshold)

    def measure_colours(self, source: np.ndarray) -> None:
        """Set `colours` to what the source (C, h, w), coefficients, has; of a chain at its beginning.

        Only where a component after the first has less than expected, and to a share of it: vivid colours are mostly
        those of few places, and to code all places as if they had them costs more than it brings.
        """
        ratios = self.ratios(COLOURS_FOR, 0)
        expected = 2.0 ** (self.table.at(self.known) / Q)
        square = np.square(source).reshape(len(source), -1)
        octaves = []
        for component, row in enumerate(ratios):
            bands = np.flatnonzero((row >= -Q) & (self.layout.counts > 0))
            ratio = 2.0 ** (row[bands] / Q)
            weight = ratio / (1 + ratio)
            found = [square[component, self.layout.members(0, int(band))].sum() for band in bands]
            total = (weight * found / expected[component, bands]).sum()
            usual = (weight * self.layout.counts[bands]).sum()
            # Finite where there is nothing at all: a gray picture.
            octaves.append(math.log2(max(total / usual, 2.0**LEAST_COLOUR)) if usual else 0.0)
        wanted = [round(2 * COLOUR_SHARE * (octave - octaves[0])) for octave in octaves]
        self.colours = np.clip(wanted, LEAST_COLOUR, 0)

    def scale_of(self, source: np.ndarray, following: int, before: int) -> int:
        """How much larger than the table's the errors of the estimate are where they are worth coding, in half octaves.

        source: (C, h, w), coefficients, that the estimate is of. before: the scale that says what is worth coding;
        returned where nothing is.
        """
        ratios = self.ratios(following, before)
        expected = 2.0 ** (scaled(self.table.at(self.known), self.colours[:, None]) / Q)
        error = np.square(source - self.estimate).reshape(len(source), -1)
        total = weights = 0.0
        for component, band in np.argwhere(self.worth_coding(ratios)):
            # Weighted by how much the rate depends on the scale: d log(1 + k r) / dk.
            ratio = 2.0 ** (ratios[component, band] / Q)
            weight = ratio / (1 + ratio)
            total += weight * float(error[component, self.layout.members(0, band)].sum()) / expected[component, band]
            weights += weight * float(self.layout.counts[band])
        if total <= 0 or weights <= 0:
            return before
        return max(-LARGEST_SCALE, min(LARGEST_SCALE, round(2 * math.log2(total / weights))))

    def target(self, source: np.ndarray, following: int) -> np.ndarray:
        """What the encoder has to say of the source (C, h, w), coefficients: g (x - x_hat) / sigma, flat."""
        q = self._posterior(following)
        out: np.ndarray = (q.gain * (source - self.estimate) / np.sqrt(q.variance)).ravel()
        return out

    def advance(self, following: int, coded: np.ndarray, said: np.ndarray) -> None:
        """Go to the next noise level. coded: (C, K), which bands were; said: flat, what the message said of the target.

        Bands that were not coded stay at the noise level they had.
        """
        q = self._posterior(following)
        moved = q.gain * self.estimate + q.carry * self.state + np.sqrt(q.variance) * said.reshape(self.state.shape)
        chosen = self._spread(coded) > 0
        self.state = np.where(chosen, moved, self.state)
        self.known = np.where(coded, following, self.known)
        self._last = self.estimate
        self.level, self.step, self._estimate = following, self.step + 1, None

    def _spread(self, values: np.ndarray) -> np.ndarray:
        """A value for each component and band (C, K) -> one for each coefficient, (C, h, w) float32."""
        return self.layout.spread(values).reshape(self.state.shape)

    @property
    def _threshold(self) -> int:
        return self.settings.threshold * THRESHOLD_UNIT

    def _posterior(self, following: int) -> "Weights":
        """The posterior of every coefficient from the noise level it is at, (C, h, w) each."""
        levels, places = np.unique(self.known, return_inverse=True)
        steps = [
            posterior(level / LEVELS, following / LEVELS) if level > following else Posterior(0.0, 1.0, 0.0)
            for level in levels
        ]
        gain, carry, variance = (
            self._spread(np.array(values)[places].reshape(self.known.shape))
            for values in zip(*((q.gain, q.carry, q.variance) for q in steps), strict=True)
        )
        return Weights(gain, carry, variance)


@dataclass(frozen=True)
class Weights:
    """`diffusion.posterior.Posterior` for every coefficient."""

    gain: np.ndarray
    carry: np.ndarray
    variance: np.ndarray
