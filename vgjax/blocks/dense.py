"""Affine layers, preactivation to preactivation: what they share, and the fully connected one."""

import functools
import math
from abc import abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax import activations, initializers
from vgjax.activations import Activation, Elementwise
from vgjax.blocks import protocol
from vgjax.blocks.protocol import Spec
from vgjax.blocks.told import LayerArguments, TheoryArguments
from vgjax.checks import FloatDtype, Size, kinds
from vgjax.floatexp import Ends, FloatExp, ParameterDegrees, add, normalize, scaled_bias, with_zero_exponent
from vgjax.initializers import Law, Scale, Scales


class Activity(nnx.Module):
    """What stands in front of a matrix product: ``after(phi(before(h)))``.

    Args:
        activation: phi: a name, an `Activation` or a callable.
        before, after: specs of blocks on either side of phi (a normalization, dropout, a pooling).
        rngs: where the draws come from.
    """

    activation: Activation
    before: Any
    after: Any

    @kinds
    def __init__(
        self,
        *,
        activation: str | Activation | Elementwise = "linear",
        before: Spec | None = None,
        after: Spec | None = None,
        rngs: nnx.Rngs,
    ):
        self.activation = activations.get(activation)
        self.before = before.build(rngs) if before else None
        self.after = after.build(rngs) if after else None

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Those of the blocks around phi."""
        return protocol.scales_of(self.before, self.after)

    @property
    def degrees(self) -> Ends | None:
        """Those of phi; with other blocks inside, to be measured."""
        return None if self.before or self.after else self.activation.facts.ends

    @property
    def never_zero(self) -> bool:
        """Whether a zero behind phi is an underflow: phi has no dead zone, and nothing else stands around it."""
        return not (self.before or self.after or self.activation.facts.dead)

    def __call__(self, h: Array, scales: Scales | None = None) -> Array:
        """One state to what is multiplied; scales may be left out if no part declares any."""
        scales = Scales() if scales is None else scales
        a = self.activation(protocol.call(self.before, h, scales) if self.before else h)
        return protocol.call(self.after, a, scales) if self.after else a

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized state of any size; the result is not normalized."""
        # Normalized between the parts: each step takes a normalized state.
        if self.before:
            state = normalize(protocol.step(self.before, state, scales))[0]
        a = activations.apply(self.activation, state)
        return protocol.step(self.after, normalize(a)[0], scales) if self.after else a

    def slopes(self, h: Array, scales: Scales | None = None) -> tuple[Array, float]:
        """phi' of the units, of the shape of the state, and the largest |phi'|."""
        h = protocol.call(self.before, h, Scales() if scales is None else scales) if self.before else h
        return self.activation.derivative(h), self.activation.facts.largest_slope

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """What its parts absorb."""
        return protocol.absorb_scales(scales, self.before, self.after)


class Affine(Activity):
    """The layer of the theory: ``h' = sigma_w Z after(phi(before(h))) + sigma_b z``, Z any linear map.

    Z is drawn at unit gain (``E Z_ij^2 = 1 / fan_in``), the bias z at unit variance; a law or an array of one's own is
    taken as it is. The scale multiplies the activation and not the kernel: over a grid of scales with one draw, all the
    grid is then one product.

    Args:
        outputs: units that come out.
        names: of the scales of kernel and bias.
        follows: the scale that the kernel's takes its value of where it is not given itself.
        bias_init: a name in `initializers.BIAS_INITS`, whose scale is 0 where it is not given; or a law
            ``(key, shape, dtype)`` or an array of shape ``(outputs,)``, whose scale is then 1.
        dtype: of the parameters.
        rngs: where the draws come from.
        **around: activation, before, after: as for `Activity`.

    Attributes:
        kernel_path: where the parameter stands that the scale goes into: the one that Z is made of, or its length.
    """

    kernel_path: ClassVar[str] = "kernel"
    bias: nnx.Param

    def __init__(
        self,
        outputs: int,
        *,
        names: tuple[str, str] = ("sigma_w", "sigma_b"),
        follows: str | None = None,
        bias_init: Law = "gaussian",
        dtype: FloatDtype,
        rngs: nnx.Rngs,
        **around: Any,
    ):
        super().__init__(rngs=rngs, **around)
        self.names, self.follows = names, follows
        self.bias_init, self.bias_default = initializers.named(bias_init), initializers.bias_default(bias_init)
        # Drawn after the kernel, whose subclass comes first: the order of the draws is part of what a key means.
        self.bias = nnx.Param(initializers.bias_initializer(bias_init)(rngs.params(), outputs, dtype, self.fan_in))

    @property
    def weights(self) -> nnx.Param:
        """The parameter that Z is made of."""
        block: Any = self
        return functools.reduce(getattr, self.kernel_path.split("/"), block)

    @property
    def fan_in(self) -> int:
        """How many numbers a unit sums."""
        return math.prod(self.weights.shape[:-1])

    @abstractmethod
    def product(self, a: Array) -> Array:
        """Z a."""

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Those of kernel and bias, and of the blocks around phi."""
        return {**affine_scales(self.names, self.follows, self.bias_default), **super().scales}

    @property
    def parameter_degrees(self) -> Mapping[str, ParameterDegrees] | None:
        """By the kernel those of phi, by the bias 0; with other blocks inside, to be measured."""
        below, above = (end.value for end in self.activation.facts.ends)
        if self.before or self.after or below is None or above is None:
            return None
        of_kernel, of_bias = ParameterDegrees(below, above, False), ParameterDegrees(Fraction(0), Fraction(0), False)
        return {self.kernel_path: of_kernel, "bias": of_bias}

    def __call__(self, h: Array, scales: Scales) -> Array:  # type: ignore[override]
        """One state to the next; leading axes (a batch, tokens) pass through."""
        a = super().__call__(h, scales)
        return self.product(scales[self.names[0]] * a) + scales[self.names[1]] * self.bias[...]

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized state of any size; the result is not normalized."""
        a = super().step(state, scales)
        product = FloatExp(self.product(scales[self.names[0]] * a.value), a.exponent)
        return add(with_zero_exponent(product), scaled_bias(scales[self.names[1]], self.bias[...]))

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """W = sigma_w Z, b = sigma_b z."""
        of_kernel, of_bias = self.names
        self.weights[...] = scales[of_kernel] * self.weights[...]
        self.bias[...] = scales[of_bias] * self.bias[...]
        # What the kernel's follows has been read as its.
        return frozenset({*self.names, self.follows or of_kernel}) | super().absorb_scales(scales)


def affine_scales(names: tuple[str, str], follows: str | None, bias_default: float) -> dict[str, Scale]:
    """The scales of a kernel and its bias."""
    scales = {names[0]: Scale(1.0, "parameter", follows), names[1]: Scale(bias_default, "parameter")}
    return scales | ({follows: Scale(1.0, "parameter")} if follows else {})


class Dense(Affine):
    """A fully connected layer: ``h' = sigma_w Z phi(h) + sigma_b z``, shapes ``(fan_in,)`` -> ``(fan_out,)``.

    Args:
        fan_in, fan_out: sizes of the states before and after.
        kernel_init: how the kernel is drawn: a name in `initializers.KERNEL_INITS`; or a law ``(key, shape, dtype)`` or
            an array of shape ``(fan_in, fan_out)``, as it is.
        **affine: activation, before, after, names, follows, bias_init: as for `Affine`.
    """

    @kinds
    def __init__(
        self,
        fan_in: Size,
        fan_out: Size,
        *,
        kernel_init: Law = "gaussian",
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
        **affine: Any,
    ):
        self.kernel_init = initializers.named(kernel_init)
        draw = initializers.kernel_initializer(kernel_init)
        self.kernel = nnx.Param(draw(rngs.params(), (fan_in, fan_out), dtype))
        super().__init__(fan_out, dtype=dtype, rngs=rngs, **affine)

    @property
    def theory_arguments(self) -> TheoryArguments | None:
        """``W after(phi(before(h))) + b``, where normalization and dropout are all that stands around phi."""
        fields: dict[str, Any] = {}
        # Of a mean that is not zero theory knows nothing, and a bias that is not Gaussian never becomes so.
        if self.kernel_init is None or self.bias_init not in ("gaussian", "zero"):
            return None
        # A part says what it sets as a dict; one that theory does not know says nothing, and neither does the layer.
        for place, part in (("preactivations", self.before), ("activations", self.after)):
            told = {} if part is None else protocol.declared(part, "theory_arguments")
            if not isinstance(told, dict):
                return None
            fields |= told | ({"norm_on": place} if "norm" in told else {})
        return LayerArguments(
            self.activation, self.kernel_init, self.bias_init, self.kernel.shape, self.names, **fields
        )

    def product(self, a: Array) -> Array:
        """The matrix product."""
        return jnp.dot(a, self.kernel[...])
