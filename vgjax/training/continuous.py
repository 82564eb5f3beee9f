"""Training in continuous time: gradient flow, which gradient descent follows at small learning rates.

    d theta / dt = -grad L(theta),   theta the ordinary parameters (W = sigma_w Z, b = sigma_b z), L the mean loss.

Time is the learning rate times the number of steps. What gradient descent does beyond it (oscillation, divergence past
2 / curvature, the drift of what the flow conserves) is the learning rate's doing, not the loss's.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from vgjax.checks import ArrayLike, finite, kinds, known, nan_is_data, not_negative, positive_integer, whole_numbers
from vgjax.data import Examples
from vgjax.initializers import Scales
from vgjax.measure.jacobian import DENSE, computing
from vgjax.measure.losses import Loss
from vgjax.networks.parameters import Parameters, as_dtype
from vgjax.networks.trainable import absorbed, trainable, with_trainable
from vgjax.training.problem import Data, as_examples, check_start, checked_objective, in_states, mean_loss
from vgjax.values import by_content

SOLVERS = {"tsit5": "Tsit5", "dopri8": "Dopri8", "kvaerno5": "Kvaerno5"}
"""Solvers by name, and what diffrax calls them."""

ATOL = {"float32": 1e-7, "float64": 1e-9}
"""Absolute tolerances by dtype: below 1e-7 the steps in float32 shrink with its rounding."""

_FIRST, _SMALLEST = 1e-4, 1e-30  # steps: the first is shrunk as needed, none below the smallest unless L is not finite


@by_content
class ContinuousTraining(NamedTuple):
    """A network along gradient flow.

    Attributes:
        times: as they were asked for, float64, shape ``(times,)``.
        loss: L at each, shape ``(times,)``; NaN at those that the solver did not reach.
        parameters: the ordinary parameters at each, numpy, every leaf with a leading axis of times; those that move are
            NaN alike.
        scales: under which they are the network, as in `forward`.
        status: ``"complete"``; ``"max_steps"``: they were used up; ``"stalled"``: no step is small enough any more,
            as where the gradient is not finite.
        steps: tried by the solver.
    """

    times: np.ndarray
    loss: np.ndarray
    parameters: Parameters
    scales: Scales
    status: str
    steps: int

    @property
    def succeeded(self) -> bool:
        """Whether every time was reached."""
        return self.status == "complete"

    @kinds
    def at(self, i: int) -> Parameters:
        """The ordinary parameters at one of the times, in JAX (in float64 where that is enabled)."""
        (i,) = whole_numbers("i", [i], -len(self.times), len(self.times) - 1)
        return jax.tree.map(lambda a: jnp.asarray(a[i]), self.parameters)


_STATUSES = ("complete", "max_steps", "stalled")


@kinds
@nan_is_data
def train_continuously(
    parameters: Parameters,
    scales: Scales,
    data: Data,
    times: ArrayLike,
    *,
    dtype: str | None = None,
    solver: str = "tsit5",
    rtol: float = 1e-6,
    atol: float | None = None,
    max_steps: int = 2**17,
    loss: Loss | None = None,
) -> ContinuousTraining:
    """Gradient flow from a draw: d theta / dt = -grad L(theta), with steps that adapt to an error.

    L is the mean over the examples of a loss. What moves are the ordinary
    trainable parameters; batch statistics and the noise of dropout stay as they were drawn, and so do scales. An
    explicit solver takes at least about (time) x (largest curvature) / 3 steps. Where phi has a kink (ReLU) the flow
    may come to slide along it, in steps that shrink with the tolerances: loosen them (rtol=1e-3, atol=1e-5).

    Args:
        parameters: draws at unit gain (`init`), stored, of any network. Where a batch is its state (batch norm),
            examples enter in whole batches, the rest is left out.
        scales: of the draw, as for `forward`.
        data: ``inputs`` of shape ``(examples, *input)`` and ``labels``, with a leading axis of examples.
        times: at which the network is kept, from 0 on, increasing, shape ``(times,)``; time is learning rate x steps.
        dtype: ``"float32"`` or ``"float64"``, of weights, gradients and time (left out: the parameters' own), for this
            call only.
        solver: ``"tsit5"`` (order 5), ``"dopri8"`` (order 8: for tolerances below 1e-8) or ``"kvaerno5"`` (implicit,
            order 5: few steps over any time, each with square matrices of all parameters: for hundreds of them at
            most).
        rtol, atol: tolerances of one step, relative and absolute, as a root mean square over the parameters; atol is
            1e-9, or 1e-7 in float32.
        max_steps: after which the solver gives up.
        loss: as for `train`.

    Returns:
        `ContinuousTraining`. A flow that did not come to the end is one too: see its status.

    Raises:
        ImportError: diffrax is not installed.
        ValueError: unknown scales or names, times that are negative, not finite or not increasing, a tolerance that is
            not positive, streamed parameters, inputs or labels that do not fit the network.

    Source: Tsitouras 2011, "Runge-Kutta pairs of order 5(4)"; Hairer, Norsett and Wanner 1993, "Solving ordinary
    differential equations I", II.5 (order 8); Kvaerno 2004, "Singly diagonally implicit Runge-Kutta methods with an
    explicit first stage".
    """
    _diffrax()  # before any work is done
    check_start(parameters, scales)
    known("solver", solver, SOLVERS)
    max_steps = positive_integer("max_steps", max_steps)
    with computing(parameters, dtype) as kind:
        at = _checked_times(times, kind)
        tolerances = _checked_tolerances(rtol, ATOL[kind.name] if atol is None else atol)
        examples = as_examples("data", data)
        meant, per_state = checked_objective("data", parameters.network, examples, loss)
        _check_size(solver, parameters)
        states, drawn = as_dtype(kind.name, (in_states(per_state, examples), parameters))
        solved = _flow(drawn, scales, states, at, tolerances, meant, per_state, solver, max_steps)
    values, path, left, status, count = _on_host(solved)
    return ContinuousTraining(np.asarray(times, float), values, path, left, _STATUSES[int(status)], int(count))


@functools.partial(jax.jit, static_argnames=("loss", "per_state", "solver", "max_steps"))
def _flow(
    parameters: Parameters,
    scales: Scales,
    states: Examples,
    times: Array,
    tolerances: tuple[float, float],
    loss: Loss,
    per_state: int,
    solver: str,
    max_steps: int,
) -> tuple[Array, Parameters, Scales, Array, Array]:
    """Loss and ordinary parameters at the times, the scales left, the number of the status, that of the steps."""
    diffrax = _diffrax()
    start, left = absorbed(parameters, scales)
    theta, leaves = ravel_pytree(trainable(start))

    def objective(theta: Array) -> Array:
        return mean_loss(loss, per_state, with_trainable(start, leaves(theta)), left, states)

    def velocity(t: Array, theta: Array, _: None) -> Array:
        return -jax.grad(objective)(theta)

    rtol, atol = tolerances
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        getattr(diffrax, SOLVERS[solver])(),
        jnp.zeros((), times.dtype),
        times[-1],
        jnp.minimum(_FIRST, times[-1]),  # and not from the gradient, which may not be finite
        theta,
        saveat=diffrax.SaveAt(ts=times),
        # With the error before, fewer steps are rejected where stability limits them (Hairer and Wanner 1996, IV.2).
        stepsize_controller=diffrax.PIDController(
            rtol=rtol, atol=atol, pcoeff=0.4, icoeff=0.3, dtmin=_SMALLEST, force_dtmin=False
        ),
        adjoint=diffrax.ForwardMode(),
        max_steps=max_steps,
        throw=False,
    )
    thetas = jnp.where(jnp.isfinite(solution.ts)[:, None], solution.ys, jnp.nan)
    results = diffrax.RESULTS
    status = jnp.where(solution.result == results.max_steps_reached, 1, 2)
    status = jnp.where(solution.result == results.successful, 0, status)
    path = with_trainable(_repeated(start, len(times)), jax.vmap(leaves)(thetas))
    return lax.map(objective, thetas), path, left, status, solution.stats["num_steps"]


def _repeated(parameters: Parameters, times: int) -> Parameters:
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (times, *a.shape)), parameters)


# --- the edge -------------------------------------------------------------------------------------------------------


def _diffrax() -> Any:
    try:
        import diffrax
    except ImportError:
        raise ImportError("continuous training needs diffrax: pip install 'vgjax[ode]'") from None
    return diffrax


def _checked_times(times: ArrayLike, kind: Any) -> Array:
    """The times in the dtype that they run in."""
    not_negative("times", times)
    at = np.asarray(times, kind)
    if at.ndim != 1 or not len(at):
        raise ValueError(f"times must be a list of at least one, got shape {at.shape}")
    for before, after in itertools.pairwise(at):
        if not before < after:
            raise ValueError(f"times must increase (in {kind.name}), got {after:g} behind {before:g}")
    return jnp.asarray(at)


def _checked_tolerances(rtol: float, atol: float) -> tuple[float, float]:
    for name, value in {"rtol": rtol, "atol": atol}.items():
        finite(name, value, "positive", lambda v: v > 0)
    return float(rtol), float(atol)


def _check_size(solver: str, parameters: Parameters) -> None:
    """Raise ValueError if the square matrices of an implicit solver would not fit into memory."""
    leaves = jax.tree.leaves(trainable(parameters))
    count = sum(leaf.size for leaf in leaves)
    if solver == "kvaerno5" and 4 * count**2 * leaves[0].dtype.itemsize > DENSE:
        raise ValueError(f"solver must be explicit (tsit5, dopri8) for more than some thousand parameters, got {count}")


def _on_host(tree: Any) -> Any:
    """All numbers of a tree in numpy, which JAX takes in float64 or float32, as it is set."""
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else np.asarray(a), tree)
