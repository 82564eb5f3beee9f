"""Training in continuous time: gradient flow, the limit of gradient descent at small learning rates."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from vgjax import losses
from vgjax.initializers import Scales
from vgjax.layers import Parameters, ordinary
from vgjax.networks import Network, about, path_name
from vgjax.spectrum import computing

LOSSES = ("cross_entropy", "squared_error")
SOLVERS = {"tsit5": "Tsit5", "dopri8": "Dopri8", "kvaerno5": "Kvaerno5"}
STATUSES = ("complete", "max_steps", "failed")


class Examples(Protocol):
    """Anything with inputs and labels, such as `vgjax.data.Examples`."""

    @property
    def inputs(self) -> ArrayLike: ...

    @property
    def labels(self) -> ArrayLike: ...


class ContinuousTraining(NamedTuple):
    """A network along gradient flow.

    Attributes:
        times: as asked for, float64, shape ``(times,)``.
        loss: L at each, shape ``(times,)``; NaN where the solver did not come to.
        parameters: the ordinary parameters at each, with a leading axis of times; NaN alike.
        scales: under which they are the network.
        status: ``"complete"``, ``"max_steps"`` (they were used up) or ``"failed"`` (no step of an implicit solver
            converges any more).
        steps: taken by the solver, rejected ones with them.
    """

    times: np.ndarray
    loss: Array
    parameters: Parameters
    scales: Scales
    status: str
    steps: int


def train_continuously(
    network: Network,
    parameters: Parameters,
    scales: Scales,
    data: Examples,
    times: Sequence[float] | np.ndarray,
    *,
    loss: str | None = None,
    solver: str = "tsit5",
    dtype: str | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    max_steps: int = 2**17,
) -> ContinuousTraining:
    at = _checked_times(times)
    with computing(parameters, dtype) as kind:
        xs = jnp.asarray(data.inputs)
        loss, ys = losses.targets(network, data.labels, loss, None, len(xs), False)
        ys = ys.astype(kind) if loss == "squared_error" else ys
        parameters = jax.tree.map(lambda a: a.astype(kind) if jnp.issubdtype(a.dtype, jnp.floating) else a, parameters)
        start, left = ordinary(parameters, scales)
        sol = _solve(start, left, xs.astype(kind), ys, jnp.asarray(at, kind), rtol, atol, loss, solver, max_steps)
    return sol


def is_trainable(parameters):
    network = parameters.network

    def mask(spec, tree):
        return (
            jax.tree_util.tree_map_with_path(lambda path, _: path_name(path) in about(spec).trainable, tree)
            if spec
            else {}
        )

    return replace(
        parameters,
        stem=mask(network.stem, parameters.stem),
        head=mask(network.head, parameters.head),
        stages=tuple(mask(s.spec, own) for s, own in zip(network.stages, parameters.stages, strict=False)),
    )


CLIP = False


@functools.partial(jax.jit, static_argnames=("loss", "solver", "max_steps"))
def _solve(start, left, xs, ys, times, rtol, atol, loss, solver, max_steps):
    import diffrax

    moves, _tree = jax.tree.flatten(is_trainable(start))
    leaves = jax.tree.leaves(start)

    def whole(moving):
        it = iter(moving)
        return jax.tree.unflatten(
            jax.tree.structure(start), [next(it) if m else l for m, l in zip(moves, leaves, strict=False)]
        )

    from vgjax.layers import _forward

    def mean_loss(moving):
        p = whole(moving)
        return jnp.mean(jax.vmap(lambda x, y: losses.value(loss, _forward(p, left, x), y))(xs, ys))

    y0 = [l for m, l in zip(moves, leaves, strict=False) if m]

    def velocity(t, y, args):
        return jax.tree.map(jnp.negative, jax.grad(mean_loss)(y))

    ctl = diffrax.PIDController(rtol=rtol, atol=atol)
    if CLIP:
        ctl = diffrax.ClipStepSizeController(ctl, step_ts=times)
    sol = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        getattr(diffrax, SOLVERS[solver])(),
        jnp.zeros((), times.dtype),
        times[-1],
        None,
        y0,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=ctl,
        max_steps=max_steps,
        throw=False,
        adjoint=diffrax.ForwardMode(),
    )
    return (
        sol.ts,
        jax.vmap(whole)(sol.ys),
        lax.map(mean_loss, sol.ys),
        sol.stats["num_steps"],
        sol.stats["num_accepted_steps"],
        sol.result == diffrax.RESULTS.max_steps_reached,
    )


def _checked_times(times: ArrayLike) -> np.ndarray:
    return np.asarray(times, float)
