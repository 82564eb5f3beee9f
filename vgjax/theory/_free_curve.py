"""The curve on which the eigenvalue F(omega) of a product of free layers is real; see `free_probability`."""

import math
from typing import NamedTuple

import numpy as np


class FreeCurve(NamedTuple):
    """F for sigma_w = 1 in the upper half plane, and the curve on which it is real."""

    cells: tuple[np.ndarray, np.ndarray, np.ndarray]
    depth: int
    gaussian: int

    @property
    def trivial(self) -> bool:
        """F(omega) = omega: the spectrum is the law of t itself."""
        return self.depth == 1 and not self.gaussian

    def generating(self, omega: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """z = M(omega), 1 + z (which cancels near 0) and dz / d ln omega, each of the shape of omega ``(points,)``."""
        centers, halves, masses = self.cells
        distance = omega[:, None] - centers
        x = halves / distance
        squared, excess = x * x, _excess(x)
        z = (centers * (1 + excess) / distance + excess) @ masses
        one = (omega * (((1 + excess) / distance) @ masses)).real + 1j * z.imag
        ratio = squared / (1 - squared)
        rate = ((centers / distance * (1 + ratio) + ratio - excess) / distance) @ masses  # E t / (omega - t)^2
        return z, one, -omega * rate

    def argument(self, log_r: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """arg F, negative below the curve and positive above, and its derivative by theta."""
        z, one, change = self.generating(np.exp(log_r + 1j * theta))
        by_eta = np.angle(z / one)
        argument = self.depth * (theta + by_eta + self.gaussian * np.angle(one)) - by_eta
        rate = self.depth + change * ((self.depth - 1) / z + self.gaussian * self.depth) / one
        return argument, rate.real

    def bands(self) -> list[tuple[float, float]]:
        """Intervals of ln r on which the curve is off the real axis; each contains cells or ends at 0."""
        log_r = self._scan()
        inside = self._inside(log_r)
        ends = np.flatnonzero(inside[1:] != inside[:-1])
        low, high, rising = log_r[ends], log_r[ends + 1], inside[ends + 1]
        for _ in range(50):
            middle = (low + high) / 2
            up = self._inside(middle) == rising
            low, high = np.where(up, low, middle), np.where(up, middle, high)
        edges = np.concatenate([log_r[:1], high] if inside[0] else [high])
        apart = np.flatnonzero(edges[2::2] - edges[1:-1:2] > 1e-6)  # less is rounding next to an atom
        return list(zip(edges[[0, *(2 * apart + 2)]], edges[[*(2 * apart + 1), -1]], strict=True)) if len(edges) else []

    def _inside(self, log_r: np.ndarray) -> np.ndarray:
        # The curve is off the axis where arg F falls below it at once; -1e-8 is what rounding leaves of 0 there.
        theta = np.full_like(log_r, 1e-10)
        return self.argument(log_r, theta)[0] < -1e-8 * self.depth * theta

    def _scan(self) -> np.ndarray:
        """Radii between which the curve may touch the real axis: the ends of runs of cells, and the gaps between
        them ever closer to those ends."""
        positive = self.cells[0] > 0
        centers, halves = self.cells[0][positive], self.cells[1][positive]
        order = np.argsort(centers - halves)
        left, right = (np.log((centers + sign * halves)[order]) for sign in (-1, 1))
        width, reached = right - left, np.maximum.accumulate(right)
        # Cells next to each other leave slits of third order in their width, which are no gaps.
        last = np.flatnonzero(left[1:] - reached[:-1] > np.maximum(width[1:], width[:-1]) / 2)
        low, high = reached[last, None], left[last + 1, None]
        gaps = low + (high - low) / (1 + np.exp(-np.linspace(-16, 16, 65)))
        near = np.logaddexp(0, np.linspace(-16, 50, 133))  # ln(1 + e^y): from 1e-7 of the edge to e^50 times its radius
        runs = np.concatenate([[left[0]], low.ravel(), high.ravel(), [reached[-1]]])
        return np.unique(np.concatenate([left[0] - near, runs, gaps.ravel(), reached[-1] + near]))

    def curve(self, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ln x, x = s^2, the density of ln x and the continuous part's probability below, band after band.

        Each band begins and ends with a 0 of the density; shapes ``(points,)``.
        """
        bands = [self._one_layer(points)] if self.trivial else [self._band(*ends, points) for ends in self.bands()]
        bands = [band for band in bands if len(band[0])]
        if not bands:
            return np.empty(0), np.empty(0), np.empty(0)
        logs, heights, below = (np.concatenate(parts) for parts in zip(*bands, strict=True))
        lower = np.cumsum([0.0, *(band[2][-1] for band in bands[:-1])])
        return logs, heights, below + np.repeat(lower, [len(band[0]) for band in bands])

    def _band(self, low: float, high: float, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One of them. Density and probability are both exact at every point: neither is a sum over the points."""
        phase = np.linspace(0, math.pi, 101)  # a first look, to see where the mass lies
        phase = self._shares(phase, *self.on(_between(low, high, phase)), points)
        log_x, heights, above = self.on(_between(low, high, phase))
        # The density may diverge at an end (an arcsine law); what is drawn there is a large number, not its mass.
        below = np.maximum.accumulate(np.append(above[0] - above, above[0] - above[-1]))
        return (
            np.concatenate([log_x[:1], log_x, log_x[-1:]]),
            np.concatenate([[0], heights, [0]]),
            np.concatenate([[0], below]),
        )

    @staticmethod
    def _shares(
        phase: np.ndarray, log_x: np.ndarray, heights: np.ndarray, above: np.ndarray, points: int
    ) -> np.ndarray:
        """Where to put the points: shares by phase, by mass and by mass times x, none where tails hold nothing."""
        seen = np.flatnonzero(heights > 1e-9)
        kept = slice(max(seen[0] - 1, 0), seen[-1] + 2) if len(seen) else slice(None)
        phase, log_x, above = phase[kept], log_x[kept], above[kept]
        mass = np.maximum(-np.diff(above), 0)
        parts = np.array([np.diff(phase), mass, mass * np.exp(log_x[1:] - log_x[-1])])
        share = np.cumsum((parts / np.maximum(parts.sum(axis=1, keepdims=True), 1e-300)).sum(axis=0))
        return np.interp(np.linspace(0, share[-1], points), np.concatenate([[0], share]), phase)

    def angle(self, log_r: np.ndarray) -> np.ndarray:
        """theta at which F(r exp(i theta)) is real: Newton's method, kept in a bracket."""
        low, high, theta = np.zeros_like(log_r), np.full_like(log_r, math.pi), np.full_like(log_r, 1.5)
        going = np.arange(len(log_r))
        for _ in range(60):
            at = theta[going]
            argument, rate = self.argument(log_r[going], at)
            low[going], high[going] = np.where(argument < 0, at, low[going]), np.where(argument < 0, high[going], at)
            newton = at - argument / rate
            within = (newton > low[going]) & (newton < high[going])
            theta[going] = np.where(within, newton, (low[going] + high[going]) / 2)
            going = going[np.abs(theta[going] - at) > 1e-11 * at + 1e-13]
            if not len(going):
                break
        return theta

    def on(self, log_r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """At the points of the curve ln F, the density of ln F and the probability above, Im of the integral of
        z d ln F over pi."""
        theta = self.angle(log_r)
        omega = np.exp(log_r + 1j * theta)
        z, one, _ = self.generating(omega)
        log_eta, log_one = np.log(np.abs(z / one)), np.log(one)
        log_x = self.depth * (log_r + log_eta + self.gaussian * log_one.real) - log_eta
        centers, halves, masses = self.cells
        distance = omega[:, None] - centers
        angles = (np.angle(distance + halves) + np.angle(distance - halves)) / 2 + _excess(halves / distance).imag
        by_slopes = angles @ masses - theta  # Im E ln(1 - t / omega)
        above = self.depth * (by_slopes + log_one.imag + self.gaussian * (z - log_one).imag) - log_one.imag
        return log_x, -z.imag / math.pi, above / math.pi

    def _one_layer(self, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `_band`, where the spectrum is the law of t itself; the density is that between the points' middles."""
        smooth = self.cells[1] > 0
        centers, halves, masses = (values[smooth] for values in self.cells)
        if not smooth.any():
            return np.empty(0), np.empty(0), np.empty(0)
        low, high = math.log((centers - halves).min()), math.log((centers + halves).max())
        log_t = _between(low, high, np.linspace(0, math.pi, points))

        def below(logs: np.ndarray) -> np.ndarray:
            return np.clip((np.exp(logs)[:, None] - centers + halves) / (2 * halves), 0, 1) @ masses

        ends = np.concatenate([log_t[:1], (log_t[1:] + log_t[:-1]) / 2, log_t[-1:]])
        return log_t, np.diff(below(ends)) / np.diff(ends), below(log_t)


def _between(low: float, high: float, phase: np.ndarray) -> np.ndarray:
    """Points whose density, for equal steps of the phase, grows towards both ends, where spectra end like roots."""
    return low + (high - low) * (1 - np.cos(phase)) / 2


def _excess(x: np.ndarray) -> np.ndarray:
    """artanh(x) / x - 1."""
    squared = x * x
    series = squared * (1 / 3 + squared * (1 / 5 + squared * (1 / 7 + squared * (1 / 9 + squared / 11))))
    near = np.abs(x) > 0.1  # beyond, the next term of the series, x^12 / 13, is above rounding
    series[near] = np.log((1 + x[near]) / (1 - x[near])) / (2 * x[near]) - 1
    return series
