"""Deep networks in arithmetic without ends: mpmath, whose exponents are Python's integers; no formula of the library.

An `Exact` network is a row of layers at one input: its states, tangents, cotangents, gradients and spectra. A `Dense`
layer knows its derivative; that of a `Block`, any function in mpmath, is a difference quotient with hundreds of digits.
States and Jacobians are arrays of objects, states of any shape as vectors.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import numpy as np
from mp_activations import Phi
from mpmath import mpf
from oracles import Weights

DIGITS = 120
"""Chaos takes up to 1.7 digits a layer at sigma_w = 50; what float64 still knows then took 16 of them."""

STEP = mpf(10) ** -40
"""Of a difference quotient, relative: central, so that 80 digits are right."""


def exact(a: Any, wobble: float = 0.0, rng: np.random.Generator | None = None) -> np.ndarray:
    """Floats as mpf; each moved by up to that share of itself: what a rounding of that size can do."""
    a = np.asarray(a)
    moved = a if a.dtype == object else np.vectorize(lambda entry: mpf(float(entry)), otypes=[object])(a)
    with mpmath.workdps(DIGITS):
        return moved * (1 + wobble * exact(rng.uniform(-1, 1, moved.shape))) if rng else moved


def norm(a: Any) -> Any:
    """The Euclidean norm of all entries."""
    entries = np.asarray(a).ravel().tolist()
    return mpmath.sqrt(mpmath.fdot(entries, entries))


def log_norm(a: Any) -> float:
    """ln of it; -inf for an exact zero."""
    size = norm(a)
    return float(mpmath.log(size)) if size else -np.inf


def each(f: Callable[[Any], Any], a: np.ndarray) -> np.ndarray:
    """f of every entry."""
    return np.array([f(entry) for entry in a.ravel()], dtype=object).reshape(a.shape)


# --- layers ---------------------------------------------------------------------------------------------------------


class Dense:
    """``phi(h) W + b``; W has shape (fan_in, fan_out)."""

    def __init__(self, phi: Phi, kernel: np.ndarray, bias: np.ndarray):
        self.phi, self.kernel, self.bias = phi, kernel, bias

    def step(self, h: np.ndarray) -> np.ndarray:
        return each(self.phi.value, h) @ self.kernel + self.bias

    def slopes(self, h: np.ndarray) -> np.ndarray:
        return each(self.phi.slope, h)

    def jacobian(self, h: np.ndarray) -> np.ndarray:
        return self.kernel.T * self.slopes(h)

    def gradients(self, h: np.ndarray, delta: np.ndarray) -> dict[str, float]:
        """ln of the norms of what a cotangent behind the layer gives its parameters, by path."""
        return {"kernel": log_norm(each(self.phi.value, h)) + log_norm(delta), "bias": log_norm(delta)}


class Block:
    """Any ``f(parameters, h)``; parameters are object arrays by path."""

    def __init__(self, f: Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray], parameters: dict[str, np.ndarray]):
        self.f, self.parameters = f, parameters

    def step(self, h: np.ndarray) -> np.ndarray:
        return self.f(self.parameters, h)

    def jacobian(self, h: np.ndarray) -> np.ndarray:
        return np.stack([_quotient(self.step, h, i, max(abs(h))) for i in range(len(h))], axis=1)

    def gradients(self, h: np.ndarray, delta: np.ndarray) -> dict[str, float]:
        found = {}
        for path, leaf in self.parameters.items():

            def at(flat: np.ndarray, path: str = path, shape: Any = leaf.shape) -> np.ndarray:
                return self.f(self.parameters | {path: flat.reshape(shape)}, h)

            # A parameter that is 0 is a bias, which is added to something of the state's size.
            by_entry = [_quotient(at, leaf.ravel(), i, max(abs(h))) @ delta for i in range(leaf.size)]
            found[path] = log_norm(np.array(by_entry, dtype=object))
        return found


def _quotient(f: Callable[[np.ndarray], np.ndarray], at: np.ndarray, i: int, size: Any) -> np.ndarray:
    # Of an entry that is nothing beside the others (a gate's e^-10^27), a relative step would drown in their digits.
    step = STEP * (abs(at[i]) if abs(at[i]) > size * mpf(10) ** -20 else size or 1)
    there = [at.copy(), at.copy()]
    for point, sign in zip(there, (1, -1), strict=True):
        point[i] += sign * step
    return (f(there[0]) - f(there[1])) / (2 * step)


# --- networks -------------------------------------------------------------------------------------------------------


class Exact:
    """A network at one input.

    Attributes:
        states: h^0, h^1 ... as far as they exist: a layer may leave everything behind (OverflowError).
        output: None if the last of them does not.
    """

    def __init__(self, stem: Any, blocks: Sequence[Any], head: Any, x: Any, *, wobble: float = 0.0, seed: int = 0):
        """``wobble`` moves the entries of every state by up to that share of themselves: tokens that have become alike,
        say, differ by their rounding."""
        rng = np.random.default_rng(seed)
        self.stem, self.blocks, self.head, self.depth = stem, list(blocks), head, len(blocks)
        with mpmath.workdps(DIGITS):
            self.x = exact(x).ravel()
            self.states, self.output = [stem.step(self.x) if stem else self.x], None
            self.jacobians: list[np.ndarray] = []
            self._gradients: dict[str, dict[str, np.ndarray]] = {}
            try:
                for block in self.blocks:
                    after, jacobian = block.step(self.states[-1]), block.jacobian(self.states[-1])
                    self.states.append(exact(after, wobble, rng) if wobble else after)
                    self.jacobians.append(jacobian)
                self.output = head.step(self.states[-1]) if head else self.states[-1]
            except OverflowError:
                pass

    @functools.cached_property
    def log_norms(self) -> np.ndarray:
        """ln ||h^l||, shape (L + 1,); NaN where there is none."""
        return self._logs(self.states)

    @functools.cached_property
    def directions(self) -> np.ndarray:
        """h^l / ||h^l||, shape (L + 1, width); 0 where the state is, NaN where there is none."""
        found = np.full((self.depth + 1, len(self.states[0])), np.nan)
        with mpmath.workdps(DIGITS):
            for l, h in enumerate(self.states):
                found[l] = (h / (norm(h) or 1)).astype(float)
        return found

    def push(self, u: Any) -> np.ndarray:
        """ln ||J_{l<-0} u||, shape (L + 1,); NaN where there is none."""
        with mpmath.workdps(DIGITS):
            moved = [exact(u).ravel()]
            for jacobian in self.jacobians:
                moved.append(jacobian @ moved[-1])
            return self._logs(moved)

    def pull(self, m: int, v: Any) -> np.ndarray:
        """ln ||J_{m<-l}^T v|| for l = 0 ... m, shape (m + 1,); NaN if state m does not exist."""
        return self._logs(self._pulled(m, exact(v).ravel()), m) if m < len(self.states) else np.full(m + 1, np.nan)

    def gradients(self, y: Any, loss: str) -> dict[str, np.ndarray]:
        """ln of the norms of dL/dh^l (``"states"``) and of all parameter gradients, named as the library does; empty if
        there is no output. One y for each loss: the answer is kept."""
        if self.output is None:
            return {}
        if loss in self._gradients:
            return self._gradients[loss]
        with mpmath.workdps(DIGITS):
            delta = _delta(self.output, y, loss)
            last = self.head.jacobian(self.states[-1]).T @ delta if self.head else delta
            cotangents = self._pulled(self.depth, last)
            rows = zip(self.blocks, self.states, cotangents[1:], strict=False)
            of_blocks = [block.gradients(h, d) for block, h, d in rows]
            ends = {"stem": (self.stem, self.x, cotangents[0]), "head": (self.head, self.states[-1], delta)}
            found = {"states": self._logs(cotangents)}
            found |= {path: np.array([logs[path] for logs in of_blocks]) for path in of_blocks[0]}
            for end, (layer, *at) in ends.items():
                found |= {f"{end}/{path}": np.array(log) for path, log in layer.gradients(*at).items()} if layer else {}
            self._gradients[loss] = found
            return found

    @functools.cached_property
    def mean_square_slopes(self) -> np.ndarray:
        """ln of the mean of phi'^2 over the units of dense layers, shape (L,); NaN where there is none."""
        with mpmath.workdps(DIGITS):
            slopes = [b.slopes(h) for b, h, _ in zip(self.blocks, self.states, self.jacobians, strict=False)]
            return self._logs(slopes, self.depth - 1) * 2 - np.log(len(self.states[0]))

    @functools.cached_property
    def log_growth(self) -> np.ndarray:
        """ln of the norm of each layer's Jacobian, shape (L,); NaN where there is none."""
        return self._logs(self.jacobians, self.depth - 1)

    def log_frobenius(self) -> np.ndarray:
        """ln ||J_{l<-0}||_F, shape (L + 1,)."""
        with np.errstate(invalid="ignore"):  # -inf beside -inf
            return np.logaddexp.reduce([2 * self.push(u) for u in np.eye(len(self.states[0]))]) / 2

    def product(self, m: int) -> np.ndarray:
        """J_{m<-0}."""
        moved = exact(np.eye(len(self.states[0])))
        for jacobian in self.jacobians[:m]:
            moved = jacobian @ moved
        return moved

    def log_singular_values(self, m: int) -> np.ndarray:
        """ln of the singular values of J_{m<-0}, descending."""
        # The smallest may be hundreds of digits below the largest.
        with mpmath.workdps(6 * DIGITS):
            values = mpmath.svd_r(mpmath.matrix(self.product(m).tolist()), compute_uv=False)
            return np.array(sorted((float(mpmath.log(s)) if s else -np.inf for s in values), reverse=True))

    @functools.cached_property
    def worst_condition(self) -> float:
        """The largest condition number of a layer's Jacobian."""
        with mpmath.workdps(DIGITS), np.errstate(divide="ignore"):
            return max(float(np.linalg.cond((j / (norm(j) or 1)).astype(float))) for j in self.jacobians)

    def _pulled(self, m: int, v: np.ndarray) -> list[np.ndarray]:
        with mpmath.workdps(DIGITS):
            moved = [v]
            for jacobian in reversed(self.jacobians[:m]):
                moved.append(jacobian.T @ moved[-1])
            return moved[::-1]

    def _logs(self, along: list[np.ndarray], last: int | None = None) -> np.ndarray:
        count = (self.depth if last is None else last) + 1
        with mpmath.workdps(DIGITS):
            logs = [log_norm(a) for a in along[:count]]
        return np.array(logs + [np.nan] * (count - len(logs)))


def mlp(weights: Weights, phi: Phi, x: Any, *, wobble: float = 0.0, seed: int = 0) -> Exact:
    """The fully connected network that `oracles.weights` reads, each weight moved by ``wobble`` (`exact`)."""
    rng = np.random.default_rng(seed) if wobble else None
    identity = Phi("linear", lambda h: h, lambda h: mpf(1), (True, True))
    stem, *layers = [[exact(a, wobble, rng) for a in pair] for pair in weights]
    *blocks, head = [Dense(phi, *pair) for pair in layers]
    return Exact(Dense(identity, *stem), blocks, head, x, wobble=wobble, seed=seed)


def _delta(output: np.ndarray, y: Any, loss: str) -> np.ndarray:
    """dL/d(output)."""
    if loss == "squared_error":
        return output - exact(y).ravel()
    if max(output) - min(output) > mpf(2) ** 1000:  # e^-z with an exponent of a thousand bits is 0 enough
        return _delta(output * (mpf(2) ** 1000 / (max(output) - min(output))), y, loss)
    # softmax - onehot without a difference: the right class is minus the sum of the wrong ones.
    e = each(lambda z: mpmath.exp(z - max(output)), output)
    p = e / sum(e)
    p[y] = -sum(entry for i, entry in enumerate(p) if i != y)
    return p


@functools.lru_cache(maxsize=16)
def correlation(a: Exact, b: Exact) -> tuple[np.ndarray, np.ndarray]:
    """c_l and ln (1 - c_l) of two inputs, shape (L + 1,); NaN where a state is 0 or does not exist."""
    c, log = np.full((2, a.depth + 1), np.nan)
    with mpmath.workdps(DIGITS):
        for l, (s, t) in enumerate(zip(a.states, b.states, strict=False)):
            if norm(s) and norm(t):
                apart = norm(s / norm(s) - t / norm(t)) ** 2 / 2
                c[l], log[l] = float(1 - apart), float(mpmath.log(apart)) if apart else -np.inf
    return c, log
