"""A network of any family against `jax.grad` of the same network written by hand in plain JAX, in float64."""

import functools
from dataclasses import replace
from typing import Any

import architecture_oracles as truth
import jax
import jax.numpy as jnp
import numpy as np

import vgjax as vg

TOLERANCE = {"float32": 1e-5, "float64": 1e-11}


def by_hand(parameters: Any, scales: dict[str, float], names: dict[str, str]) -> Any:
    """Ordinary parameters: every leaf times the scale that is named for the end of its path, in float64."""

    def one(path: Any, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        told = "/".join(key.key for key in path)
        end = max((end for end in names if told.endswith(end)), key=len, default="")
        return scales.get(names.get(end, ""), 1.0) * np.asarray(leaf, np.float64)

    times = functools.partial(jax.tree_util.tree_map_with_path, one)
    return replace(parameters, stem=times(parameters.stem), stages=tuple(map(times, parameters.stages)))


def check(
    net: Any,
    parts: truth.Parts,
    scales: dict[str, float],
    names: dict[str, str],
    *,
    loss: str = "squared_error",
    dtype: str = "float64",
    without: tuple[str, ...] = (),
) -> tuple[Any, truth.Truth, Any]:
    """Assert that all gradients are those of `jax.grad` through ``parts``; both, and the ordinary parameters, for more.

    Args:
        net: the library's network.
        parts: the same by hand, on ordinary parameters.
        scales: all that are not at their defaults.
        names: which scale multiplies which parameter, by the end of its path; all others stay as they are drawn.
        loss, dtype: as in the library.
        without: what is not trained.
    """
    with jax.enable_x64(dtype == "float64"):
        parameters = truth.drawn(net)
        rng = np.random.default_rng(1)
        xs = rng.normal(size=(2, *net.input_shape)).astype(dtype)
        like = jax.eval_shape(lambda p: vg.forward(p, vg.Scales(), xs[0]), parameters)
        ys = rng.normal(size=(2, *like.shape)).astype(dtype)
        ordinary = by_hand(parameters, scales, names)
        left = {name: scale for name, scale in scales.items() if name not in names.values()}
        flow = truth.compiled(functools.partial(vg.gradient_flow, loss=loss), parameters, vg.Scales(**scales), xs, ys)
        expected = truth.gradients(parts, ordinary, [left] * net.depth, xs, ys, loss)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=TOLERANCE[dtype])
    close(flow.log_mean_square, expected.log_mean_square, err_msg="states")
    close(flow.log_gradient, expected.log_gradient, err_msg="gradients")
    by_path = {path: log for path, log in expected.log_parameter_gradient.items() if path not in without}
    assert set(flow.log_parameter_gradient) == set(by_path)
    for path, log in by_path.items():
        close(flow.log_parameter_gradient[path], log, err_msg=path)
    for part, log in zip(flow.log_gradient_parts, expected.log_gradient_parts, strict=False):
        close(flow.log_gradient_parts[part], log, err_msg=part)
    assert np.all(flow.first_inexact_layer == net.depth + 1)
    return flow, expected, ordinary


def within_errors(values: Any, expected: float, errors: float = 4.0) -> None:
    """Assert that the mean of independent draws is what it has to be, within standard errors."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert 0 < error < 0.2 * abs(expected), "too few draws to see anything"
    assert abs(values.mean() - expected) < errors * error, (values.mean(), expected, error)
