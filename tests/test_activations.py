"""Every registered activation against mpmath, and what the library reads off it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from mpmath import mpf

import vgjax as vg

RELATIVE = 4e-7
"""Three units in the last place of float32, about."""

Exact = tuple[Callable[[Any], Any], Callable[[Any], Any]]


def sigmoid(h: Any) -> Any:
    return 1 / (1 + mpmath.exp(-h))


def normal_cdf(h: Any) -> Any:
    return mpmath.erfc(-h / mpmath.sqrt(2)) / 2


def mish(h: Any) -> Any:
    return h * mpmath.tanh(mpmath.log1p(mpmath.exp(h)))


def gelu_tanh(h: Any) -> Any:
    return h * sigmoid(2 * mpmath.sqrt(2 / mpmath.pi) * (h + mpf("0.044715") * h**3))


def derivative(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda h: mpmath.diff(f, h)


ALPHA, LAMBDA = mpf("1.6732632423543772848170429916717"), mpf("1.0507009873554804934193349852946")

EXACT: dict[str, Exact] = {
    "linear": (lambda h: h, lambda h: 1),
    "relu": (lambda h: max(h, 0), lambda h: h > 0),
    "leaky_relu": (lambda h: h if h > 0 else h * mpf("0.01"), lambda h: 1 if h > 0 else mpf("0.01")),
    "leaky_relu(0.2)": (lambda h: h if h > 0 else h * mpf("0.2"), lambda h: 1 if h > 0 else mpf("0.2")),
    "tanh": (mpmath.tanh, lambda h: mpmath.sech(h) ** 2),
    "sigmoid": (sigmoid, lambda h: sigmoid(h) * sigmoid(-h)),
    "erf": (mpmath.erf, lambda h: 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-h * h)),
    "hard_tanh": (lambda h: max(-1, min(1, h)), lambda h: abs(h) < 1),
    "softplus": (lambda h: mpmath.log1p(mpmath.exp(h)), sigmoid),
    "softsign": (lambda h: h / (1 + abs(h)), lambda h: 1 / (1 + abs(h)) ** 2),
    "selu": (
        lambda h: LAMBDA * (h if h > 0 else ALPHA * mpmath.expm1(h)),
        lambda h: LAMBDA * (1 if h > 0 else ALPHA * mpmath.exp(h)),
    ),
    "elu": (lambda h: h if h > 0 else mpmath.expm1(h), lambda h: 1 if h > 0 else mpmath.exp(h)),
    "gelu": (lambda h: h * normal_cdf(h), lambda h: normal_cdf(h) + h * mpmath.npdf(h)),
    "gelu_tanh": (gelu_tanh, derivative(gelu_tanh)),
    "silu": (lambda h: h * sigmoid(h), lambda h: sigmoid(h) * (1 + h * sigmoid(-h))),
    "mish": (mish, derivative(mish)),
    "sin": (mpmath.sin, mpmath.cos),
    "relu6": (lambda h: max(0, min(6, h)), lambda h: 0 < h < 6),
    "hard_swish": (lambda h: h * max(0, min(6, h + 3)) / 6, lambda h: 0 if h < -3 else 1 if h > 3 else (2 * h + 3) / 6),
    "arctan": (mpmath.atan, lambda h: 1 / (1 + h * h)),
}

# Away from the kinks, and from the zeros of a slope, where no relative error is to be had.
ORDINARY = np.array([-4.7, -3.3, -2.2, -1.6, -0.9, -0.31, -1e-3, 1e-3, 0.2, 0.77, 1.9, 2.6, 3.4, 4.9], np.float32)
TAILS = np.concatenate([sign * np.linspace(5.1, 40, 60) for sign in (-1, 1)]).astype(np.float32)
SMALLEST = float(np.finfo(np.float32).tiny)


def exactly(f: Callable[[Any], Any], h: np.ndarray) -> np.ndarray:
    """f in 40 digits."""
    with mpmath.workdps(40):
        return np.array([float(f(mpf(float(one)))) for one in h])


def assert_relatively_close(ours: Any, truth: np.ndarray, tolerance: Any) -> None:
    """Wherever the truth is a normal float32 (and exactly 0 where it is 0)."""
    held = (np.abs(truth) >= 4 * SMALLEST) | (truth == 0)
    error = np.abs(np.asarray(ours, np.float64) - truth)[held]
    assert np.all(error <= (tolerance * np.abs(truth))[held])


def test_every_registered_activation_is_tested() -> None:
    assert set(EXACT) == {*vg.activations.NAMES, "leaky_relu(0.2)"}


@pytest.mark.parametrize("name", EXACT)
def test_value_and_slope_where_units_usually_are(name: str) -> None:
    phi, (value, slope) = vg.activations.get(name), EXACT[name]
    # Near a zero of the slope (GELU's at -0.75) its error is relative to the terms that cancel.
    np.testing.assert_allclose(phi(jnp.asarray(ORDINARY)), exactly(value, ORDINARY), rtol=4e-6)
    np.testing.assert_allclose(phi.derivative(jnp.asarray(ORDINARY)), exactly(slope, ORDINARY), rtol=4e-6, atol=4e-7)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "softsign", "silu", "mish", "elu", "selu", "arctan"])
def test_value_and_slope_keep_their_digits_on_the_flat_ends(name: str) -> None:
    phi, (value, slope) = vg.activations.get(name), EXACT[name]
    h = np.concatenate([ORDINARY, TAILS])
    assert_relatively_close(phi(jnp.asarray(h)), exactly(value, h), RELATIVE)
    roundings = 4 if name in ("silu", "mish") else 1  # sums of terms
    assert_relatively_close(phi.derivative(jnp.asarray(h)), exactly(slope, h), RELATIVE * roundings)


@pytest.mark.parametrize("name", ["gelu", "erf"])
def test_gaussian_tails_lose_no_more_than_the_rounding_of_the_square(name: str) -> None:
    """exp(-h^2 / 2) turns a rounding of h^2 into h^2 times that: the condition of the function, not an error."""
    phi, (value, slope) = vg.activations.get(name), EXACT[name]
    h = np.concatenate([ORDINARY, np.linspace(-12, 12, 49).astype(np.float32)])
    h = h[np.abs(h + 0.75) > 0.4]  # the minimum of GELU
    assert_relatively_close(phi(jnp.asarray(h)), exactly(value, h), RELATIVE * (1 + h * h))
    assert_relatively_close(phi.derivative(jnp.asarray(h)), exactly(slope, h), RELATIVE * (1 + h * h))


@pytest.mark.parametrize("name", [name for name in EXACT if name not in ("relu", "hard_tanh", "relu6")])
def test_value_and_slope_in_float64(name: str, x64: None) -> None:
    phi, (value, slope) = vg.activations.get(name), EXACT[name]
    h = ORDINARY.astype(np.float64)
    np.testing.assert_allclose(phi(jnp.asarray(h)), exactly(value, h), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(phi.derivative(jnp.asarray(h)), exactly(slope, h), rtol=1e-13, atol=1e-14)


def test_derivative_is_what_grad_and_jit_see() -> None:
    phi = vg.activations.get("tanh")
    h = jnp.asarray([-30.0, 0.3, 12.0])
    np.testing.assert_array_equal(jax.vmap(jax.grad(phi))(h), phi.derivative(h))
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(phi)))(h), phi.derivative(h), rtol=RELATIVE)


# --- facts ----------------------------------------------------------------------------------------------------------

BOUNDED = {"tanh", "sigmoid", "erf", "hard_tanh", "softsign", "sin", "relu6", "arctan"}
STEEPEST = {
    "sigmoid": 0.25,
    "selu": float(ALPHA * LAMBDA),
    "erf": 2 / math.sqrt(math.pi),
    "gelu": 1.12890,
    "gelu_tanh": 1.12895,
    "silu": 1.09984,
    "mish": 1.08850,
    "hard_swish": 1.5,
}


@pytest.mark.parametrize("name", vg.activations.NAMES)
def test_facts_are_those_of_the_formula(name: str) -> None:
    facts = vg.activations.get(name).facts
    assert facts.at_zero == pytest.approx(float(EXACT[name][0](mpf(0))), abs=1e-12)
    assert facts.bounded == (name in BOUNDED)
    assert facts.plateau == (name in {"selu", "elu"})
    assert facts.dead == (name in {"relu", "hard_tanh", "relu6", "hard_swish"})
    below, above = facts.ends
    # Beside a phi(0) that is not 0, phi is constant near 0.
    assert below == ((0, 0) if facts.at_zero else (1, 0))
    if name not in {"sin", "softsign", "arctan"}:  # bounded, and not flat far out
        assert above == ((0, 0) if facts.bounded else (1, 0))
    else:
        assert not above.known
    assert facts.largest_slope == pytest.approx(STEEPEST.get(name, 1.0), abs=2e-3)


# --- by name --------------------------------------------------------------------------------------------------------


def test_leaky_relu_takes_its_slope_by_name() -> None:
    phi = vg.activations.get("leaky_relu(0.2)")
    np.testing.assert_allclose(phi(jnp.array([-5.0, 5.0])), [-1, 5])
    assert phi == vg.activations.get(" Leaky_ReLU(0.2) ") == vg.activations.leaky_relu(0.2)
    assert vg.activations.get("leaky_relu(0.01)") == vg.activations.get("leaky_relu")


def test_names_are_found_in_any_case_and_objects_are_taken_as_they_are() -> None:
    assert vg.activations.get("ReLU") is vg.activations.get("relu")
    mine = vg.Activation("square_root", lambda h: jnp.sign(h) * jnp.sqrt(jnp.abs(h) + 1))
    assert vg.activations.get(mine) is mine
    assert vg.activations.get(jnp.tanh).name == "tanh"
    assert vg.activations.get(jnp.tanh) == vg.activations.get(jnp.tanh)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tahn", "did you mean 'tanh'"),
        ("swishy swash", "activation must be one of linear, relu"),
        ("leaky_relu(steep)", "finite number as its slope"),
        ("leaky_relu(inf)", "finite number as its slope"),
        (3.0, "must be a string, an Activation or a function"),
        (jax.nn.softmax, "activation 'softmax' must"),
        (lambda h: h - jnp.mean(h), "elementwise"),
        (jnp.sum, "elementwise"),
        (lambda h: h.astype(jnp.float16), "keep the dtype"),
        (jnp.log, "must not return NaN"),
        (lambda h: h @ h @ h, "must map an array to one of the same shape"),
    ],
)
def test_what_is_no_activation_is_refused_in_one_sentence(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vg.activations.get(given)
