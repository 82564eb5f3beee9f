"""Computes ``spectrum_reference.json``: ln of the singular values of deep Jacobian products, in exact weights.

Run by hand: ``python tests/make_spectrum_reference.py`` (needs gmpy2 and mpmath; ``--check`` repeats every case with
half as many digits again and compares, also with determinants and with the eigenvalues of the Gram matrix).

States, slopes, products and singular values are all computed with ``DIGITS`` significant digits; only the logarithms
are rounded to float64. Every spectrum must leave ``GUARD_DIGITS`` of them beyond its own span.

The rank comes from the structure, not from a tolerance: a product of random weights has the rank of its narrowest
state, the smallest number of units with phi'(h) != 0 (and of stem inputs or outputs) on the way. The computed singular
values must show just that many above the rounding level. The remaining ones are exact zeros, null in the file.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gmpy2
import mpmath
import numpy as np
from numpy.typing import NDArray
from spectrum_cases import DEPTHS, KINDS, WIDTHS, Case, case

DIGITS = 600
GUARD_DIGITS = 60
NOISE_DIGITS = 40
AGREEMENT = mpmath.mpf(10) ** -25
OUTPUT = Path(__file__).with_name("spectrum_reference.json")

Array = NDArray[Any]
"""An object array of ``gmpy2.mpfr``."""


class Spectrum(NamedTuple):
    """The product at one depth."""

    logs: list[Any]
    """ln of the nonzero singular values, descending."""
    inputs: int
    """The number of input directions, which is that of all singular values."""
    product: Array
    log_determinant: Any
    """ln|det| as the sum over layers, or None."""
    smallest: Any
    """The smallest |h| up to this depth."""


def set_digits(digits: int) -> None:
    """Lets gmpy2 and mpmath both compute with this many significant digits."""
    gmpy2.get_context().precision = math.ceil(digits * math.log2(10)) + 16
    mpmath.mp.prec = gmpy2.get_context().precision


def exact(values: NDArray[np.float32] | float) -> Array:
    """The same values, as arbitrary-precision numbers."""
    return np.vectorize(lambda value: gmpy2.mpfr(float(value)), otypes=[object])(values)


def activate(name: str, h: Array) -> tuple[Array, Array]:
    """phi(h) and phi'(h)."""
    one = gmpy2.mpfr(1)
    if name == "identity":
        return h, np.array([one] * len(h), dtype=object)
    if name == "tanh":
        phi = np.array([gmpy2.tanh(x) for x in h], dtype=object)
        return phi, one - phi * phi
    if name == "sigmoid":
        phi = np.array([one / (one + gmpy2.exp(-x)) for x in h], dtype=object)
        return phi, phi * (one - phi)
    if name == "relu":
        slope = np.array([one if x > 0 else gmpy2.mpfr(0) for x in h], dtype=object)
        return slope * h, slope
    raise ValueError(name)


def to_mpmath(matrix: Array) -> mpmath.matrix:
    """The same matrix for mpmath, without rounding."""
    result = mpmath.matrix(*matrix.shape)
    for (i, j), value in np.ndenumerate(matrix):
        if value != 0:
            mantissa, exponent = value.as_mantissa_exp()
            result[i, j] = mpmath.ldexp(mpmath.mpf(int(mantissa)), int(exponent))
    return result


def singular_values(matrix: Array) -> list[Any]:
    """Singular values, descending."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    return sorted(mpmath.svd_r(to_mpmath(tall), compute_uv=False), reverse=True)


def log_determinant(matrix: Array) -> Any:
    """ln of the absolute determinant; -inf for a singular matrix."""
    determinant = abs(mpmath.det(to_mpmath(matrix)))
    return mpmath.log(determinant) if determinant else mpmath.mpf("-inf")


def nonzero_logs(values: list[Any], rank: int, label: str) -> list[Any]:
    """ln of the first ``rank`` values, after a check that they, and only they, are above the rounding level."""
    digits = mpmath.mp.prec / math.log2(10)
    if not values[rank - 1] > values[0] * mpmath.mpf(10) ** (GUARD_DIGITS - digits):
        raise ArithmeticError(f"{label}: the spectrum needs more digits")
    if any(value > values[0] * mpmath.mpf(10) ** (NOISE_DIGITS - digits) for value in values[rank:]):
        raise ArithmeticError(f"{label}: more than {rank} singular values above the rounding level")
    return [mpmath.log(value) for value in values[:rank]]


def trajectory(network: Case, with_determinants: bool = False) -> Iterator[tuple[int, Array, int, Any, Any]]:
    """For each depth: the product, its rank, ln|det| as the sum over layers, and the smallest |h| so far.

    Without ``with_determinants``, or with a stem, ln|det| is None.
    """
    sigma_w, sigma_b = gmpy2.mpfr(network.sigma_w), gmpy2.mpfr(network.sigma_b)
    identity = exact(np.eye(network.width, dtype=np.float32))
    first = exact(network.first)
    rank = network.width
    if network.stem is None:
        h, product = first, identity
    else:
        stem = exact(network.stem)
        h, product = first @ stem, stem.T
        rank = min(stem.shape)
    determinant = mpmath.mpf(0) if with_determinants and network.stem is None else None
    smallest = min(abs(x) for x in h)
    for depth, (weights, offsets) in enumerate(zip(network.kernels, network.biases, strict=True), start=1):
        kernel, bias = exact(weights), exact(offsets)
        phi, slope = activate(network.activation, h)
        step = sigma_w * (phi @ kernel) + sigma_b * bias
        jacobian = (sigma_w * (slope[:, None] * kernel)).T
        if network.residual:
            step = h + step
            jacobian = identity + jacobian
        else:
            rank = min(rank, int(sum(s != 0 for s in slope)))
        h, product = step, jacobian @ product
        smallest = min(smallest, *(abs(x) for x in h))
        if determinant is not None:
            determinant += log_determinant(jacobian)
        yield depth, product, rank, determinant, smallest


def spectra(network: Case, digits: int, with_determinants: bool = False) -> dict[int, Spectrum]:
    """The spectra at every depth of ``DEPTHS``."""
    set_digits(digits)
    result = {}
    for depth, product, rank, determinant, smallest in trajectory(network, with_determinants):
        if depth in DEPTHS:
            label = f"{network.kind}/{network.width} at depth {depth}"
            logs = nonzero_logs(singular_values(product), rank, label)
            result[depth] = Spectrum(logs, product.shape[1], product, determinant, smallest)
    return result


def gram_logs(matrix: Array, rank: int) -> list[Any]:
    """ln of the singular values once more, from the eigenvalues of the smaller Gram matrix at doubled precision."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    with mpmath.workprec(2 * mpmath.mp.prec):
        entries = to_mpmath(wide)
        eigenvalues = sorted(mpmath.eigsy(entries * entries.T, eigvals_only=True), reverse=True)
        return [mpmath.log(value) / 2 for value in eigenvalues[:rank]]


def check(network: Case, found: dict[int, Spectrum], digits: int) -> str:
    """Compares with a run at half as many digits again, with determinants and with the Gram matrix."""
    again = spectra(network, digits + digits // 2, with_determinants=True)
    precision = gram = determinant = mpmath.mpf(0)
    for depth, spectrum in again.items():
        before = found[depth].logs
        if len(before) != len(spectrum.logs):
            raise ArithmeticError(f"{network.kind}/{network.width} at depth {depth}: rank depends on the precision")
        precision = max(precision, *(abs(a - b) for a, b in zip(before, spectrum.logs, strict=True)))
        full = len(before) == network.width == spectrum.inputs
        if spectrum.log_determinant is not None and full:
            determinant = max(determinant, abs(sum(before) - spectrum.log_determinant))
        if spectrum.log_determinant is not None and not full and mpmath.isfinite(spectrum.log_determinant):
            raise ArithmeticError(f"{network.kind}/{network.width} at depth {depth}: the rank should be full")
        if depth in (5, DEPTHS[-1]):
            other = gram_logs(spectrum.product, len(before))
            gram = max(gram, *(abs(a - b) for a, b in zip(before, other, strict=True)))
    for name, error in (("precision", precision), ("determinant", determinant), ("Gram matrix", gram)):
        if not error < AGREEMENT:
            raise ArithmeticError(f"{network.kind}/{network.width}: {name} check: {mpmath.nstr(error, 3)}")
    errors = (mpmath.nstr(error, 2) for error in (precision, determinant, gram))
    return "errors: precision {}, determinant {}, Gram matrix {}".format(*errors)


def write(cases: dict[str, dict[int, list[float | None]]], digits: int) -> None:
    """Writes the reference file, one line per depth."""
    blocks = []
    for name, depths in cases.items():
        lines = ",\n".join(f"   {json.dumps(str(depth))}: {json.dumps(logs)}" for depth, logs in depths.items())
        blocks.append(f"  {json.dumps(name)}: {{\n{lines}\n  }}")
    OUTPUT.write_text(f'{{\n "digits": {digits},\n "cases": {{\n' + ",\n".join(blocks) + "\n }\n}\n")


def main() -> None:
    """Computes every case and writes the file; with ``--check`` verifies each one first."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="repeat every case with half as many digits again")
    arguments = parser.parse_args()
    cases: dict[str, dict[int, list[float | None]]] = {}
    for kind in KINDS:
        for width in WIDTHS:
            start = time.perf_counter()
            network = case(kind, width)
            found = spectra(network, DIGITS)
            padded: dict[int, list[float | None]] = {}
            for depth, spectrum in found.items():
                padded[depth] = [float(value) for value in spectrum.logs]
                padded[depth] += [None] * (spectrum.inputs - len(spectrum.logs))
            cases[f"{kind}/{width}"] = padded
            span = max(float(spectrum.logs[0] - spectrum.logs[-1]) for spectrum in found.values())
            smallest = min(spectrum.smallest for spectrum in found.values())
            ranks = [len(spectrum.logs) for spectrum in found.values()]
            print(f"{kind}/{width}: span {span:.2f}, ranks {ranks}, smallest |h| {float(smallest):.3e}", end="")
            print(f", {time.perf_counter() - start:.1f} s", flush=True)
            if arguments.check:
                print(f"  {check(network, found, DIGITS)}, {time.perf_counter() - start:.1f} s", flush=True)
    write(cases, DIGITS)


if __name__ == "__main__":
    main()
