"""The walk from noise to picture that a DiffC encoder and decoder make together."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codling.bitstream.prng import gaussians
from codling.codecs.diffc_stream import THRESHOLD_UNIT, DiffCConfig
from codling.diffusion.guidance import VelocityFunction
from codling.diffusion.posterior import Posterior, flow_scale, posterior
from codling.rcc.plan import LEVELS, Band, ErrorTable, Layout, log_gains, plan_step, scaled, worth_coding

START = LEVELS - 1
# Chunk of the Gaussians that stand for what waiting bands do not say yet: no message has so many groups.
TAIL = 0xFFFFFFFD


@dataclass
class Chain:
    """The state that encoder and decoder walk together, in the variance-preserving form and as coefficients.

    velocity: of the flow, on states (1, C, h, w) as the backbone has them. table: expected errors of its estimates.
    layout: the coefficients of a component in bands. settings: the stream's own. state: (C, h, w) float32,
    coefficients; each band at a noise level of its own. known: (C, K), those levels, in 1024ths. level: the noise level
    of the step, at which estimates are made; `known` is nowhere below it. step: how many were walked. _estimate: that
    of this level, once it was asked for. _last: the one before, or 0.
    """

    velocity: VelocityFunction
    table: ErrorTable
    layout: Layout
    settings: DiffCConfig
    state: np.ndarray
    known: np.ndarray
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
    ) -> "Chain":
        """Pure noise of a state's shape (C, h, w)."""
        noise = gaussians(shape[0] * shape[1] * shape[2]).reshape(shape)
        known = np.full(table.log_error.shape[1:], START)
        return cls(velocity, table, layout, settings, noise, known)

    @property
    def estimate(self) -> np.ndarray:
        """The denoiser's estimate of the picture's state, (C, h, w), as coefficients. One network evaluation a step."""
        if self._estimate is None:
            noise = self.level / LEVELS
            x = self.flow_state(grain=self.settings.grain, empty=self.settings.empty)
            with torch.inference_mode():
                v = self.velocity(x, torch.tensor([1 - noise], device=x.device))
                self._estimate = self.layout.coefficients((x + noise * v)[0].float().cpu().numpy())
        return self._estimate

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
            state = state * self.layout.spread(self.known != START).reshape(state.shape)
        return torch.from_numpy(self.layout.image(state) * np.float32(flow_scale(self.level / LEVELS)))[None]

    def ratios(self, following: int, scale: int) -> np.ndarray:
        """log2 of g^2 E / sigma^2 in Q8, (C, K), of the step to `following`.

        scale: half octaves by which the picture's errors are larger than the table's.
        """
        return scaled(self.table.at(self.known), scale) + log_gains(self.known, following)

    def plan(self, following: int, scale: int) -> tuple[list[Band], np.ndarray]:
        """What the step to `following` sends: its bands in coding order, and which of (C, K) they are, bool."""
        ratios = self.ratios(following, scale)
        plan = plan_step(ratios, self.layout, threshold=self._threshold, bits=self.settings.bits)
        return plan, self.worth_coding(ratios)

    def worth_coding(self, ratios: np.ndarray) -> np.ndarray:
        """Which bands of which components a step with these ratios codes, (C, K) bool."""
        return worth_coding(ratios, self.layout, self._threshold)

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
        chosen = self.layout.spread(coded).reshape(self.state.shape) > 0
        self.state = np.where(chosen, moved, self.state)
        self.known = np.where(coded, following, self.known)
        self._last = self.estimate
        self.level, self.step, self._estimate = following, self.step + 1, None

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
            self.layout.spread(np.array(values)[places].reshape(self.known.shape)).reshape(self.state.shape)
            for values in zip(*((q.gain, q.carry, q.variance) for q in steps), strict=True)
        )
        return Weights(gain, carry, variance)


@dataclass(frozen=True)
class Weights:
    """`diffusion.posterior.Posterior` for every coefficient."""

    gain: np.ndarray
    carry: np.ndarray
    variance: np.ndarray
