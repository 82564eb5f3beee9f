"""States of several streams along their first axis: hyper-connections, and averages over all states before."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from vgjax import initializers
from vgjax.blocks import protocol
from vgjax.blocks.protocol import Spec
from vgjax.blocks.told import DepthAverageArguments, LayerArguments, StreamArguments, TheoryArguments
from vgjax.checks import FloatDtype, Size, finite, kinds
from vgjax.floatexp import Degrees, Ends, FloatExp, add, normalize, with_zero_exponent
from vgjax.initializers import Scale, Scales


class Split(nnx.Module):
    """Every stream a copy of the state: shapes ``shape`` -> ``(streams, *shape)``; stands behind a stem.

    Args:
        streams: n.
        rngs: where the draws come from; there are none.
    """

    linear = True

    @kinds
    def __init__(self, streams: Size, *, rngs: nnx.Rngs):
        self.streams = streams

    def __call__(self, h: Array) -> Array:
        """Copies."""
        return jnp.broadcast_to(h, (self.streams, *h.shape))


class Merge(nnx.Module):
    """The sum of all streams: shapes ``(streams, *shape)`` -> ``shape``; stands in front of a head."""

    linear = True

    @kinds
    def __init__(self, *, rngs: nnx.Rngs):
        pass

    def __call__(self, h: Array) -> Array:
        """Their sum."""
        return jnp.sum(h, axis=0)


class _StaticMaps:
    """The scales of a hyper-connection itself, declared apart so that those of its branch are checked against them."""

    scales: ClassVar[Mapping[str, Scale]] = {
        "branch": Scale(1.0),
        "skip": Scale(1.0),
        "sigma_r": Scale(0.0, "parameter"),
    }


class _DynamicMaps:
    scales: ClassVar[Mapping[str, Scale]] = {**_StaticMaps.scales, "sigma_d": Scale(0.0, "parameter")}


class HyperConnection(nnx.Module):
    """A branch that reads one mixture of n streams and writes to all of them, which are mixed beside it:

        h'_j = skip sum_i R_ji h_i + branch w_j F(sum_i a_i h_i)

    At initialization a reads one stream, w writes 1 to all, and R keeps the streams. The paper's layer k reads stream
    k mod n. Here every block reads the first, and R moves the streams by one: the same network with its streams
    renamed, of which all blocks are alike. With a scale, ``R = P + sigma_r Z``, P being that shift (or the identity)
    and Z_ji ~ N(0, 1). Constrained, R is made doubly stochastic: columns and rows of ``exp(logit P + sigma_r Z)`` are
    divided by their sums in turn (Sinkhorn), the rows last, so that they sum to 1 to rounding and the columns, on which
    the way back depends, nearly: `diagnostics` reports how nearly. Dynamic maps depend on the streams:

        R_ji + s_1 tanh(norm(h_i) U_j),  a_i + s_1 tanh(norm(h_i) u),  w_j + s_2 tanh(norm(h_j) v),

    U, u, v of unit gain times ``sigma_d`` (0: the paper's start), s trainable and .01, norm the root mean square. Where
    states have further axes (tokens), each place has its own. A constrained R has the dynamic term in its exponent.

    Args:
        branch: F, from a state to a state of its shape, without the axis of streams.
        streams: n.
        read: the stream that is read; None for one after the other.
        logit: b of a constrained R; None for a free one.
        steps: of Sinkhorn.
        features: size of the state's last axis, for dynamic maps; None for static ones.
        dtype: of the parameters.
        rngs: where the draws come from.

    Raises:
        ValueError: a stream that is not there, a logit that is not finite, or a branch with a gate of its own (ReZero),
            whose scale ``branch`` would mean two things.

    Source: Zhu et al. 2024, "Hyper-connections", section 2; Xie et al. 2025, "mHC: manifold-constrained
    hyper-connections", for the doubly stochastic R (their bounds on a and w are left out).
    """

    @kinds
    def __init__(
        self,
        branch: Spec,
        streams: Size,
        *,
        read: int | None = None,
        logit: float | None = None,
        steps: Size = 20,
        features: Size | None = None,
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if read is not None and not 0 <= read < streams:
            raise ValueError(f"read must be one of the {streams} streams, counted from 0, got {read}")
        if logit is not None:
            finite("logit", logit)
        self.branch = branch.build(rngs)
        self.streams, self.shift, self.logit, self.steps = streams, int(read is None), logit, steps
        # Matrices, as in the paper: a vector that is 0 may be an offset, which these are not.
        self.read = nnx.Param(jnp.zeros((streams, 1), dtype).at[read or 0].set(1))
        self.write = nnx.Param(jnp.ones((1, streams), dtype))
        self.mixing = nnx.Param(jax.random.normal(rngs.params(), (streams, streams), dtype))
        draw = initializers.gaussian
        self.dynamic = None if features is None else nnx.Param(draw(rngs.params(), (features, streams + 2), dtype))
        self.factors = None if features is None else nnx.Param(jnp.full((2, 1), 0.01, dtype))  # as Zhu et al. begin

    @property
    def parts(self) -> tuple[str, ...]:
        """One for every stream."""
        return tuple(f"stream_{i}" for i in range(self.streams))

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Those of the branch, the factors on both ways, and the deviations of the maps."""
        return protocol.scales_of(self.branch, _StaticMaps() if self.dynamic is None else _DynamicMaps())

    @property
    def theory_arguments(self) -> TheoryArguments | None:
        """Around a layer; not around others."""
        inside = protocol.declared(self.branch, "theory_arguments")
        if not isinstance(inside, LayerArguments):
            return None
        return StreamArguments(
            inside, self.streams, bool(self.shift), self.logit, self.steps, dynamic=self.dynamic is not None
        )

    def maps(self, h: Array, scales: Scales) -> tuple[Array, Array, Array]:
        """a, R and w at a state (or at its direction): shapes ``(n, *places)``, ``(n, n, *places)``, ``(n, *places)``,
        without places where they are static."""
        # Rows say where to: stream i + 1 becomes stream i.
        kept = jnp.roll(jnp.eye(self.streams, dtype=h.dtype), self.shift, axis=1)
        read, write, drawn = self.read[:, 0], self.write[0], scales.sigma_r * self.mixing[...]
        by_state: Array | float = 0.0
        if self.dynamic is not None and self.factors is not None:
            lead = (self.streams, *[1] * (h.ndim - 2))
            of_maps, of_write = self.factors[:, 0]
            waves = jnp.tanh(jnp.dot(scales.sigma_d * _unit(h), self.dynamic[...]))
            by_state = of_maps * jnp.moveaxis(waves[..., :-2], -1, 0)
            read = read.reshape(lead) + of_maps * waves[..., -2]
            write = write.reshape(lead) + of_write * waves[..., -1]
            kept, drawn = (a.reshape(self.streams, *lead) for a in (kept, drawn))
        if self.logit is None:
            return read, kept + drawn + by_state, write
        return read, _doubly_stochastic(self.logit * kept + drawn + by_state, self.steps), write

    def __call__(self, h: Array, scales: Scales) -> Array:
        """Shape ``(streams, *shape)``."""
        if h.ndim < 2 or len(h) != self.streams:
            raise ValueError(f"HyperConnection must take a state of shape ({self.streams}, *shape), got {h.shape}")
        read, mixing, write = self.maps(h, scales)
        made = protocol.call(self.branch, _read(read, h), scales)
        return scales.skip * _mixed(mixing, h) + scales.branch * _written(write, made)

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized state of any size."""
        read, mixing, write = self.maps(state.value, scales)
        seen, _ = normalize(FloatExp(_read(read, state.value), state.exponent))
        made = protocol.step(self.branch, seen, scales)
        kept = FloatExp(scales.skip * _mixed(mixing, state.value), state.exponent)
        return add(
            with_zero_exponent(kept),
            with_zero_exponent(FloatExp(scales.branch * _written(write, made.value), made.exponent)),
        )

    def diagnostics(self, h: Array, scales: Scales) -> dict[str, Array]:
        """Of R: the largest absolute row sum, by which one layer can amplify forward, and column sum, backward; of a
        constrained one, how far the column sums are from 1 at most."""
        mixing = self.maps(h, scales)[1]
        rows, columns = (jnp.max(jnp.sum(jnp.abs(mixing), axis=axis)) for axis in (1, 0))
        sums = {"largest_row_sum": rows, "largest_column_sum": columns}
        return sums if self.logit is None else sums | {"column_error": jnp.max(jnp.abs(jnp.sum(mixing, axis=0) - 1))}

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """What the branch absorbs, and the deviations of the maps."""
        inside = protocol.absorb_scales(scales, self.branch)
        self.mixing[...] = scales.sigma_r * self.mixing[...]
        if self.dynamic is None:
            return inside | {"sigma_r"}
        self.dynamic[...] = scales.sigma_d * self.dynamic[...]
        return inside | {"sigma_r", "sigma_d"}


def _read(read: Array, h: Array) -> Array:
    return jnp.einsum("i...,i...d->...d", read, h)


def _mixed(mixing: Array, h: Array) -> Array:
    return jnp.einsum("ji...,i...d->j...d", mixing, h)


def _written(write: Array, made: Array) -> Array:
    return jnp.einsum("j...,...d->j...d", write, made)


def _unit(h: Array) -> Array:
    """Rows of mean square 1, or 0."""
    square = jnp.mean(h * h, axis=-1, keepdims=True)
    return h * lax.rsqrt(jnp.where(square == 0, 1, square))


def _doubly_stochastic(logits: Array, steps: int) -> Array:
    """Sinkhorn's iteration on the logarithms, so that no row can vanish."""

    def step(log: Array, _: None) -> tuple[Array, None]:
        for axis in (0, 1):
            log = log - jax.nn.logsumexp(log, axis=axis, keepdims=True)
        return log, None

    return jnp.exp(lax.scan(step, logits, None, length=steps)[0])


class Remember(nnx.Module):
    """The state, and no others behind it yet: shapes ``shape`` -> ``(memory, *shape)``; where a `DepthAverage` begins.

    Args:
        memory: how many states there is room for.
        rngs: where the draws come from; there are none.
    """

    linear = True

    @kinds
    def __init__(self, memory: Size, *, rngs: nnx.Rngs):
        self.memory = memory

    def __call__(self, h: Array) -> Array:
        """The state first, then zeros."""
        return jnp.zeros((self.memory, *h.shape), h.dtype).at[0].set(h)


class DepthAverage(nnx.Module):
    """A block that reads a weighted sum of all states so far; the state is the stack of them, the newest first:

        h' = [F(sum_j a_j h_j), h_0, h_1, ...],   a = (1 + sigma_past z_0, sigma_past z_1, ...),  z_j ~ N(0, 1)

    At ``sigma_past = 0``, its default, the newest alone is read, and this is the network without averages, number for
    number. The oldest states fall out where there is no more room.

    Args:
        branch: F, from one state to the next (its own skip connection inside).
        memory: states that are kept; the depth and one for all.
        dtype: of the weights.
        rngs: where the draws come from.

    Source: Pagliardini et al. 2024, "DenseFormer: enhancing information flow in transformers via depth weighted
    averaging", equation 1.
    """

    # One exponent for all: past the float range small states are lost beside large ones.
    degrees: ClassVar[Ends] = (Degrees(None, None), Degrees(None, None))
    never_zero: ClassVar[bool] = False  # places that are still empty hold true zeros

    @kinds
    def __init__(self, branch: Spec, memory: Size, *, dtype: FloatDtype = jnp.float32, rngs: nnx.Rngs):
        self.branch = branch.build(rngs)
        self.weights = nnx.Param(jax.random.normal(rngs.params(), (memory, 1), dtype))

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Those of the branch, and the deviation of the weights."""
        return protocol.scales_of(self.branch) | {"sigma_past": Scale(0.0, "parameter")}

    @property
    def theory_arguments(self) -> TheoryArguments | None:
        """Around a layer; not around others."""
        inside = protocol.declared(self.branch, "theory_arguments")
        memory = self.weights.shape[0]
        return DepthAverageArguments(inside, memory) if isinstance(inside, LayerArguments) else None

    def __call__(self, h: Array, scales: Scales) -> Array:
        """Shape ``(memory, *shape)``."""
        weights = (scales.sigma_past * self.weights[:, 0]).at[0].add(1)
        made = protocol.call(self.branch, jnp.tensordot(weights, h, 1), scales)
        return jnp.concatenate([made[None], h[:-1]])

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """What the branch absorbs, and the deviation of the weights."""
        self.weights[...] = scales.sigma_past * self.weights[...]
        return protocol.absorb_scales(scales, self.branch) | {"sigma_past"}
