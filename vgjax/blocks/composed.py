"""Blocks made of blocks: one behind the other, side by side, around a skip connection, and beside what is kept."""

import functools
import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax.blocks import protocol
from vgjax.blocks.protocol import Defaults, Spec
from vgjax.blocks.told import LayerArguments, TheoryArguments
from vgjax.checks import FloatDtype, kinds, known
from vgjax.floatexp import Degrees, Ends, FloatExp, add, aligned, normalize, with_zero_exponent
from vgjax.initializers import Scale, Scales


class Several(nnx.Module):
    """Blocks by name, in order; what they say between them.

    Args:
        defaults: of scales inside, where a recipe sets them: (name, value) pairs.
        **parts: name -> `Spec`, in order; the names begin the Flax paths of their parameters.
        rngs: where the draws come from.
    """

    @kinds
    def __init__(self, *, defaults: Defaults = (), rngs: nnx.Rngs, **parts: Spec):
        self.order, self.defaults = tuple(parts), defaults
        for name, part in parts.items():
            setattr(self, name, part.build(rngs))

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Those of all parts."""
        return protocol.with_defaults(protocol.scales_of(*self._parts()), self.defaults)

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """What its parts absorb."""
        return protocol.absorb_scales(scales, *self._parts())

    def _parts(self) -> list[Any]:
        return [getattr(self, name) for name in self.order]


class Chain(Several):
    """One block behind the other.

    Args:
        told: what theory has to be given of it, where a recipe knows more than its parts do.
        defaults: of scales inside, where a recipe sets them: (name, value) pairs.
        **parts: name -> `Spec`, in order; the names begin the Flax paths of their parameters.
        rngs: where the draws come from.
    """

    @kinds
    def __init__(self, *, told: TheoryArguments | None = None, defaults: Defaults = (), rngs: nnx.Rngs, **parts: Spec):
        super().__init__(defaults=defaults, rngs=rngs, **parts)
        self.told = told

    @property
    def theory_arguments(self) -> TheoryArguments | dict[str, Any] | None:
        """``V phi(W h + b) + a`` of two layers whose first is linear; of parts of a layer, what all of them say."""
        if self.told is not None:
            return self.told
        told: list[Any] = [protocol.declared(part, "theory_arguments") for part in self._parts()]
        if all(isinstance(fields, dict) for fields in told):
            return functools.reduce(operator.or_, told, {})
        if len(told) != 2 or not all(isinstance(layer, LayerArguments) for layer in told):
            return None
        first, second = told
        draws = [(layer.kernel_init, layer.bias_init) for layer in told]
        if not first.plain or first.activation.name != "linear" or second.residual or draws[0] != draws[1]:
            return None
        return replace(second, widths=(first.widths[0], second.widths[-1]), names=first.names + second.names)

    @property
    def parts(self) -> tuple[str, ...]:
        """Those of the state that the last block makes."""
        return protocol.declared(self._parts()[-1], "parts") or ()

    def __call__(self, h: Array, scales: Scales | None = None) -> Array:
        """Through all parts; scales may be left out if none declares any."""
        scales = Scales() if scales is None else scales
        for part in self._parts():
            h = protocol.call(part, h, scales)
        return h

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized state of any size."""
        for i, part in enumerate(self._parts()):
            # A step takes a normalized state, and the first part gets the chain's own.
            state = protocol.step(part, normalize(state)[0] if i else state, scales)
        return state

    def diagnostics(self, h: Array, scales: Scales) -> dict[str, Array]:
        """Those of its parts, by name."""
        told: dict[str, Array] = {}
        for name, part in zip(self.order, self._parts(), strict=True):
            told |= {f"{name}/{of}": value for of, value in protocol.diagnostics(part, h, scales).items()}
            h = protocol.call(part, h, scales)
        return told


JOINS = {"sum": jnp.add, "product": jnp.multiply, "maximum": jnp.maximum}
"""How the results of blocks side by side are joined."""


class Parallel(Several):
    """Blocks side by side on one state, joined unit by unit: ``F(h) + G(h)``, ``F(h) G(h)`` or ``max(F(h), G(h))``.

    A sum is GPT-J's and PaLM's attention beside the feed-forward layer, a product a gated linear unit, a maximum
    maxout.

    Args:
        how: ``"sum"``, ``"product"`` or ``"maximum"``.
        **parts: name -> `Spec`; the names begin the Flax paths of their parameters.
        rngs: where the draws come from.

    Source: Dauphin et al. 2017, "Language modeling with gated convolutional networks"; Goodfellow et al. 2013, "Maxout
    networks"; Chowdhery et al. 2022, "PaLM".
    """

    @kinds
    def __init__(self, how: str, *, rngs: nnx.Rngs, **parts: Spec):
        super().__init__(defaults=(), rngs=rngs, **parts)
        self.how = known("how", how, JOINS)

    def __call__(self, h: Array, scales: Scales) -> Array:
        """The parts' results, joined; of one shape."""
        results = [protocol.call(part, h, scales) for part in self._parts()]
        if len({a.shape for a in results}) > 1:
            raise ValueError(f"parts must make states of one shape to be joined, got {[a.shape for a in results]}")
        return functools.reduce(JOINS[self.how], results)

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized state of any size."""
        # Normalized first: a product of what is only nearly too large would leave the range.
        results = [normalize(protocol.step(part, state, scales), once=True)[0] for part in self._parts()]
        if self.how == "sum":
            return add(*results)
        if self.how == "product":
            return functools.reduce(lambda a, b: FloatExp(a.value * b.value, a.exponent + b.exponent), results)
        values, exponent = aligned(results)
        return FloatExp(functools.reduce(jnp.maximum, values), exponent)

    def diagnostics(self, h: Array, scales: Scales) -> dict[str, Array]:
        """Those of its parts, by name."""
        told = {name: protocol.diagnostics(getattr(self, name), h, scales) for name in self.order}
        return {f"{name}/{of}": value for name, values in told.items() for of, value in values.items()}


class OnFirst(nnx.Module):
    """A block on the first part of a state, beside the parts that it keeps: ``[h, ...]`` -> ``[F(h), ...]``.

    Args:
        branch: F, from a part to one of its shape.
        parts: names of all parts.
        rngs: where the draws come from.
    """

    # Past the float range no part may be lost beside another: they have one exponent.
    degrees: ClassVar[Ends] = (Degrees(None, None), Degrees(None, None))

    @kinds
    def __init__(self, branch: Spec, *, parts: tuple[str, ...] = (), rngs: nnx.Rngs):
        self.branch, self.names = branch.build(rngs), parts

    @property
    def parts(self) -> tuple[str, ...]:
        """As they were given."""
        return self.names

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Those of the branch."""
        return protocol.scales_of(self.branch)

    def __call__(self, h: Array, scales: Scales | None = None) -> Array:
        """Shape ``(parts, *shape)``; scales may be left out if the branch declares none."""
        scales = Scales() if scales is None else scales
        return h.at[0].set(protocol.call(self.branch, h[0], scales))

    def diagnostics(self, h: Array, scales: Scales | None = None) -> dict[str, Array]:
        """Those of the branch."""
        return protocol.diagnostics(self.branch, h[0], Scales() if scales is None else scales)

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """What the branch absorbs."""
        return protocol.absorb_scales(scales, self.branch)


class Residual(nnx.Module):
    """A skip connection: ``h' = skip shortcut(h) + branch F(h)``.

    Args:
        branch: F.
        shortcut: what the skip carries where the state changes its shape; None for the state itself.
        gate: give the branch a trainable factor of its own, drawn as 1 (ReZero, SkipInit: ``branch=0``).
        defaults: of scales inside or of its own, where an initialization scheme sets them: (name, value) pairs.
        dtype: of the gate.
        rngs: where the draws come from.
    """

    @kinds
    def __init__(
        self,
        branch: Spec,
        *,
        shortcut: Spec | None = None,
        gate: bool = False,
        defaults: Defaults = (),
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.branch = branch.build(rngs)
        self.shortcut = shortcut.build(rngs) if shortcut else None
        self.gate = nnx.Param(jnp.ones((), dtype)) if gate else None
        self.defaults = defaults

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Those of the branch and the shortcut, and the factors on both."""
        # A gate is a parameter: where layers share it, the scale that multiplies it is one number.
        branch = Scale(1.0, "factor" if self.gate is None else "parameter")
        scales = protocol.scales_of(self.branch, self.shortcut) | {"branch": branch, "skip": Scale(1.0)}
        return protocol.with_defaults(scales, self.defaults)

    @property
    def theory_arguments(self) -> TheoryArguments | None:
        """Around one layer of phi: ``"pre"``, or ``"plain"`` with a linear one before it; not around others."""
        inside = protocol.declared(self.branch, "theory_arguments")
        if self.shortcut is not None or not isinstance(inside, LayerArguments) or inside.residual is not None:
            return None
        return replace(inside, residual="pre" if len(inside.names) == 2 else "plain")

    def __call__(self, h: Array, scales: Scales) -> Array:
        """Skip and branch."""
        kept = protocol.call(self.shortcut, h, scales) if self.shortcut else h
        return scales.skip * kept + self._factor(scales) * protocol.call(self.branch, h, scales)

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized state of any size."""
        kept = protocol.step(self.shortcut, state, scales) if self.shortcut else state
        added = protocol.step(self.branch, state, scales)
        terms = ((scales.skip, kept), (self._factor(scales), added))
        # A branch at 0 (ReZero) is an exact zero, which must not decide the exponent of the sum.
        return add(*(with_zero_exponent(FloatExp(factor * term.value, term.exponent)) for factor, term in terms))

    def diagnostics(self, h: Array, scales: Scales) -> dict[str, Array]:
        """Those of the branch."""
        return protocol.diagnostics(self.branch, h, scales)

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """What its parts absorb; the gate takes the branch's scale."""
        inside = protocol.absorb_scales(scales, self.branch, self.shortcut)
        if self.gate is None:
            return inside
        self.gate[...] = self._factor(scales)
        return inside | {"branch"}

    def _factor(self, scales: Scales) -> Array:
        return scales.branch if self.gate is None else scales.branch * self.gate[...]


class Concatenated(nnx.Module):
    """A skip connection that keeps the state beside what is made of it: ``h' = [h, F(h)]`` along the last axis.

    Args:
        branch: F, a block that keeps all axes of the state but the last.
        rngs: where the draws come from.

    Source: Huang et al. 2017, "Densely connected convolutional networks"; Ronneberger et al. 2015, "U-Net".
    """

    # One exponent for all: past the float range small parts are lost beside large ones, and with them their slopes.
    degrees: ClassVar[Ends] = (Degrees(None, None), Degrees(None, None))

    @kinds
    def __init__(self, branch: Spec, *, rngs: nnx.Rngs):
        self.branch = branch.build(rngs)

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Those of the branch."""
        return protocol.scales_of(self.branch)

    @property
    def never_zero(self) -> bool | None:
        """False where a branch has true zeros of its own (a dead ReLU); else to be measured."""
        return False if protocol.declared(self.branch, "never_zero") is False else None

    def __call__(self, h: Array, scales: Scales) -> Array:
        """Shapes ``(*leading, features)`` -> ``(*leading, features + made)``."""
        made = protocol.call(self.branch, h, scales)
        if made.shape[:-1] != h.shape[:-1]:
            raise ValueError(
                f"a branch must keep all axes but the last to be concatenated, got {made.shape} from {h.shape}"
            )
        return jnp.concatenate([h, made], axis=-1)

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized state of any size."""
        made = protocol.step(self.branch, state, scales)
        sizes = state.value.shape[-1], made.value.shape[-1]
        # A sum of both, each with zeros where the other stands: the two may have different exponents.
        parts = ((state, (0, sizes[1])), (made, (sizes[0], 0)))
        lead = [(0, 0)] * (state.value.ndim - 1)
        padded = (FloatExp(jnp.pad(part.value, [*lead, around]), part.exponent) for part, around in parts)
        return add(*map(with_zero_exponent, padded))

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """What the branch absorbs."""
        return protocol.absorb_scales(scales, self.branch)
