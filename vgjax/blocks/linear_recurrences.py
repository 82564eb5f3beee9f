"""Linear recurrences: ``h' = A(x) h + b(x)``, where the input alone sets how a state is kept.

The depth is time, as in `vgjax.blocks.recurrent`. A state enters linearly, so its exponent passes through and nothing
past the float range is lost; the gradient back through time is the product of the A. Kernels read the input x and are
scaled by ``sigma_v``: Var V = sigma_v^2 / inputs.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax import initializers
from vgjax.blocks.recurrent import gate_kernels
from vgjax.blocks.told import Numbers, RecurrenceArguments
from vgjax.checks import FloatDtype, Size, finite, kinds, known
from vgjax.floatexp import FARTHEST, LINEAR, LN2, Ends, FloatExp, ParameterDegrees, add, from_float, with_zero_exponent
from vgjax.initializers import Law, Scale, Scales

Keep = Callable[[Array], Array]
"""h -> A(x) h."""


class LinearCell(nnx.Module):
    """``h' = A(x) h + b(x)``: what all of this module are."""

    degrees: ClassVar[Ends] = LINEAR
    of_drive: ClassVar[tuple[str, ...]] = ()  # the parameters that b alone reads
    told: RecurrenceArguments | None = None

    @property
    def theory_arguments(self) -> RecurrenceArguments | None:
        """The law of the factors, where theory has it."""
        return self.told

    @property
    def parameter_degrees(self) -> Mapping[str, ParameterDegrees]:
        """Affine in the state, whatever the parameter; constant, where A does not read it."""
        degrees = {str(path): Fraction(path not in self.of_drive) for path in nnx.state(self, nnx.Param)}
        return {path: ParameterDegrees(degree, degree, False, affine=True) for path, degree in degrees.items()}

    @abstractmethod
    def log_factors(self, scales: Scales, x: Array) -> Array:
        """ln of the factors on the state, of any shape; 0 for one that is exact wherever it is 0."""

    def underflows(self, scales: Scales, x: Array) -> Array:
        """Whether a factor is 0 in floats, and none to an exponent."""
        log = self.log_factors(scales, x)
        return jnp.any((log < jnp.log(jnp.finfo(log.dtype).tiny)) & (log > -FARTHEST * LN2))

    @abstractmethod
    def maps(self, scales: Scales, x: Array) -> tuple[Keep, Array]:
        """h -> A(x) h, and b(x)."""

    def __call__(self, h: Array, scales: Scales, x: Array) -> Array:
        """One state and one input, shape ``(inputs,)``, to the next state."""
        keep, new = self.maps(scales, x)
        return keep(h) + new

    def step(self, state: FloatExp, scales: Scales, x: Array) -> FloatExp:
        """The same for a normalized state of any size; the result is not normalized."""
        keep, new = self.maps(scales, x)
        kept = FloatExp(keep(state.value), state.exponent)
        return add(*map(with_zero_exponent, (kept, from_float(new))))


# --- kept by itself ---------------------------------------------------------------------------------------------------


class DiagonalCell(LinearCell):
    """``h' = lambda h + gamma (B x)``, all complex and held as pairs: the state is (real, imaginary).

    Laws of lambda = exp(-nu + i theta), and of gamma beside it:

    - ``"ring"`` (LRU): |lambda|^2 uniform between the squares of two radii, theta uniform; gamma = sqrt(1 -
      |lambda|^2), which keeps E |h|^2 = 1 under a white input;
    - ``"s4d"`` (S4D-Lin): lambda = exp(dt A) with A = -1/2 + i pi n of unit n = 0, 1, ..., dt log-uniform; gamma =
      (lambda - 1) / A, the zero-order hold.

    S5 is the second with the dense B that stands here; in S4D itself B is diagonal, which changes no gradient back
    through time. The complex B has E |B x|^2 = |x|^2 / inputs. ln nu, theta and gamma are parameters by themselves, as
    in the LRU; what S4D trains in their place are dt and A.

    Args:
        width: complex units.
        inputs: size of one input.
        law: of lambda.
        radii: of the ring, from 0 to 1.
        max_phase: of the ring, in radians, up to 2 pi.
        time_steps: between which dt is drawn.
        input_kernel_init: how B is drawn, shape ``(inputs, width)`` each of the real and the imaginary part, and over
            sqrt(2); an array holds both side by side and is taken as it is.
        dtype: of the parameters.
        rngs: where the draws come from.

    Source: Orvieto et al. 2023, "Resurrecting recurrent neural networks for long sequences", lemma 3.2 and section
    3.4; Gu et al. 2022, "On the parameterization and initialization of diagonal state space models", S4D-Lin; Smith,
    Warrington and Linderman 2023, "Simplified state space layers".
    """

    scales: ClassVar[Mapping[str, Scale]] = {"sigma_v": Scale(1.0, "parameter")}
    of_drive = ("gain", "input_kernel")
    parts = ("real", "imaginary")

    @kinds
    def __init__(
        self,
        width: Size,
        inputs: Size,
        *,
        law: str = "ring",
        radii: tuple[float, float] = (0.0, 1.0),
        max_phase: float = 2 * math.pi,
        time_steps: tuple[float, float] = (1e-3, 0.1),
        input_kernel_init: Law = "gaussian",
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if known("law", law, ("ring", "s4d")) == "ring":
            check_radii(radii)
            finite("max_phase", max_phase, "above 0 and at most 2 pi", lambda v: (v > 0) & (v <= 2 * math.pi))
            self.told = RecurrenceArguments(law, (("radii", radii),))
            log_decay, phase, gain = _ring(rngs.params(), width, radii, max_phase, dtype)
        else:
            log_decay, phase, gain = _zero_order_hold(rngs.params(), width, check_time_steps(time_steps), dtype)
            self.told = RecurrenceArguments(law, (("time_steps", time_steps),))
        self.log_decay, self.phase, self.gain = map(nnx.Param, (log_decay, phase, gain))
        kernel = gate_kernels(input_kernel_init, (inputs, width), 2, dtype, rngs)
        both = isinstance(input_kernel_init, str) or callable(input_kernel_init)
        self.input_kernel = nnx.Param(kernel[...] / math.sqrt(2)) if both else kernel

    def log_factors(self, scales: Scales, x: Array) -> Array:
        """ln |lambda|, shape ``(width,)``."""
        return -jnp.exp(self.log_decay[...])

    def maps(self, scales: Scales, x: Array) -> tuple[Keep, Array]:
        """lambda h, and gamma B x."""
        log, phase = self.log_factors(scales, x), self.phase[...]
        factor, less_one = jnp.exp(log) * jnp.stack([jnp.cos(phase), jnp.sin(phase)]), _less_one(-log, phase)
        # Near 1 as h and a little: lambda itself is rounded, and its error would be the same at every step.
        near = jnp.sum(less_one**2, axis=0) < 1 / 4
        rest = jnp.where(near, less_one, factor)
        new = jnp.dot(scales.sigma_v * x, self.input_kernel[...]).reshape(2, -1)
        return lambda h: jnp.where(near, h, 0) + _times(rest, h), _times(self.gain[...], new)

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """B = sigma_v Y."""
        self.input_kernel[...] = scales.sigma_v * self.input_kernel[...]
        return frozenset({"sigma_v"})


def _times(one: Array, other: Array) -> Array:
    """The product of complex numbers, held as pairs along the first axis."""
    (a, b), (c, d) = one, other
    return jnp.stack([a * c - b * d, a * d + b * c])


def _less_one(decay: Array, phase: Array) -> Array:
    """exp(-nu + i theta) - 1 as a pair, without cancellation near 1."""
    real = jnp.expm1(-decay) * jnp.cos(phase) - 2 * jnp.sin(phase / 2) ** 2
    return jnp.stack([real, jnp.exp(-decay) * jnp.sin(phase)])


def _ring(key: Array, width: int, radii: tuple[float, float], max_phase: float, dtype: Any) -> tuple[Array, ...]:
    """ln nu, theta and gamma of the LRU."""
    of_radius, of_phase = jax.random.split(key)
    (low, high), info = radii, jnp.finfo(dtype)
    square = jax.random.uniform(of_radius, (width,), dtype, low**2, high**2)
    # Neither end is met: there ln nu would be infinite, and every derivative by it NaN.
    decay = -jnp.log(jnp.clip(square, info.tiny, 1 - info.epsneg)) / 2
    phase = jax.random.uniform(of_phase, (width,), dtype, 0.0, max_phase)
    size = jnp.sqrt(-jnp.expm1(-2 * decay))
    return jnp.log(decay), phase, jnp.stack([size, jnp.zeros_like(size)])


def _zero_order_hold(key: Array, width: int, time_steps: tuple[float, float], dtype: Any) -> tuple[Array, ...]:
    """ln nu, theta and gamma of S4D-Lin."""
    dt = _log_uniform(key, (width,), time_steps, dtype)
    decay, phase = dt / 2, math.pi * jnp.arange(width, dtype=dtype) * dt
    a = jnp.stack([-decay, phase]) / dt
    conjugate = jnp.stack([a[0], -a[1]])
    return jnp.log(decay), phase, _times(_less_one(decay, phase), conjugate) / jnp.sum(a**2, axis=0)


def _log_uniform(key: Array, shape: tuple[int, ...], between: tuple[float, float], dtype: Any) -> Array:
    return jnp.exp(jax.random.uniform(key, shape, dtype, math.log(between[0]), math.log(between[1])))


def check_radii(radii: tuple[float, float]) -> None:
    """Raise ValueError unless two radii lie between 0 and 1, in order."""
    if len(radii) != 2 or not 0 <= radii[0] <= radii[1] <= 1 or radii[0] == 1 or radii[1] == 0:
        raise ValueError(f"radii must be two numbers from 0 to 1, in order and not both at an end, got {radii}")


def check_time_steps(time_steps: tuple[float, float]) -> tuple[float, float]:
    """Two positive numbers in order; ValueError for others."""
    if len(time_steps) != 2 or not 0 < time_steps[0] <= time_steps[1] < math.inf:
        raise ValueError(f"time_steps must be two positive numbers, in order, got {time_steps}")
    return time_steps


# --- kept as the input says -------------------------------------------------------------------------------------------


class SelectiveCell(LinearCell):
    """``h'_nc = exp(-dt_c A_nc) h_nc + dt_c B_n x_c``, dt = softplus(W x + b), B = V x: the selective scan of Mamba.

    dt is log-uniform where W x is 0. Without heads A_nc = n (S4D-real; n = 1, 2, ...) and every channel has its own dt;
    with heads (Mamba-2) channels in a row share one dt and one A, uniform between 1 and 16. The state has shape
    ``(states, width)``, and an input is as wide as the state. W is scaled by ``sigma_dt``, V by ``sigma_v``.

    Args:
        width: channels.
        states: how many n.
        heads: None, or into how many the channels are cut.
        time_steps: between which dt is drawn.
        input_kernel_init: how W and V are drawn, shapes ``(width, channels or heads)`` and ``(width, states)``: a name
            or a law.
        dtype: of the parameters.
        rngs: where the draws come from.

    Source: Gu and Dao 2023, "Mamba", algorithm 2 and section 3.6; Dao and Gu 2024, "Transformers are SSMs", section 7.
    """

    scales: ClassVar[Mapping[str, Scale]] = {"sigma_v": Scale(1.0, "parameter"), "sigma_dt": Scale(1.0, "parameter")}
    of_drive = ("input_kernel",)

    @kinds
    def __init__(
        self,
        width: Size,
        *,
        states: Size = 16,
        heads: Size | None = None,
        time_steps: tuple[float, float] = (1e-3, 0.1),
        input_kernel_init: Law = "gaussian",
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if heads is not None and width % heads:
            raise ValueError(f"heads must divide the width {width}, got {heads}")
        groups, draw = heads or width, initializers.kernel_initializer(input_kernel_init)
        numbers = ("states", states), ("heads", heads is not None), ("time_steps", time_steps)
        self.told = RecurrenceArguments("mamba", numbers, initializers.named(input_kernel_init))
        self.width = width
        self.step_kernel = nnx.Param(draw(rngs.params(), (width, groups), dtype))
        self.input_kernel = nnx.Param(draw(rngs.params(), (width, states), dtype))
        dt = _log_uniform(rngs.params(), (groups,), check_time_steps(time_steps), dtype)
        # What softplus makes dt of: ln(e^dt - 1).
        self.step_bias = nnx.Param(dt + jnp.log(-jnp.expm1(-dt)))
        counted = jnp.broadcast_to(jnp.arange(1, states + 1, dtype=dtype)[:, None], (states, groups))
        drawn = jax.random.uniform(rngs.params(), (1, groups), dtype, 1.0, 16.0)
        self.log_rate = nnx.Param(jnp.log(counted if heads is None else drawn))

    def time_steps(self, scales: Scales, x: Array) -> Array:
        """dt, shape ``(channels or heads,)``."""
        return jax.nn.softplus(jnp.dot(scales.sigma_dt * x, self.step_kernel[...]) + self.step_bias[...])

    def log_factors(self, scales: Scales, x: Array) -> Array:
        """-dt A, shape ``(states or 1, channels or heads)``."""
        return -self.time_steps(scales, x) * jnp.exp(self.log_rate[...])

    def maps(self, scales: Scales, x: Array) -> tuple[Keep, Array]:
        """exp(-dt A) h, and dt B x."""
        dt = self.time_steps(scales, x)
        each = self.width // dt.size  # channels that share a dt
        factor = jnp.repeat(jnp.exp(self.log_factors(scales, x)), each, axis=1)
        of_state = jnp.dot(scales.sigma_v * x, self.input_kernel[...])
        return lambda h: factor * h, of_state[:, None] * (jnp.repeat(dt, each) * x)

    def diagnostics(self, h: Array, scales: Scales, x: Array) -> dict[str, Array]:
        """Mean of dt."""
        return {"time_step": jnp.mean(self.time_steps(scales, x))}

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """W = sigma_dt Z, V = sigma_v Y."""
        self.step_kernel[...] = scales.sigma_dt * self.step_kernel[...]
        self.input_kernel[...] = scales.sigma_v * self.input_kernel[...]
        return frozenset({"sigma_dt", "sigma_v"})


class _GatedCell(LinearCell):
    """Gates that read the input: their kernels and biases, each gate drawn by itself.

    Args:
        width, inputs: sizes of the hidden state and of one input.
        input_kernel_init, bias_init: as for the cells of `vgjax.blocks.recurrent`, gates side by side.
        dtype: of the parameters.
        rngs: where the draws come from.
    """

    gates: ClassVar[int] = 2
    forget_bias: ClassVar[float | None] = 0.0
    law: ClassVar[str]  # these two as in `RecurrenceArguments`
    numbers: Numbers = ()

    @kinds
    def __init__(
        self,
        width: Size,
        inputs: Size,
        *,
        input_kernel_init: Law = "gaussian",
        bias_init: Law = "gaussian",
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.input_kernel = gate_kernels(input_kernel_init, (inputs, width), self.gates, dtype, rngs)
        draw = initializers.bias_initializer(bias_init)
        self.bias = nnx.Param(draw(rngs.params(), self.gates * width, dtype, inputs))
        self.bias_default = initializers.bias_default(bias_init)
        self.laws = initializers.named(input_kernel_init), initializers.named(bias_init)

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Those of kernels and biases, and what is added to the gate that keeps."""
        sigmas = {"sigma_v": Scale(1.0, "parameter"), "sigma_b": Scale(self.bias_default, "parameter")}
        return sigmas if self.forget_bias is None else sigmas | {"forget_bias": Scale(self.forget_bias, "offset")}

    @property
    def theory_arguments(self) -> RecurrenceArguments:
        """The law of the factors."""
        return RecurrenceArguments(self.law, self.numbers, *self.laws)

    def drive(self, scales: Scales, x: Array) -> list[Array]:
        """V x + b of every gate, each of shape ``(width,)``."""
        made = jnp.dot(scales.sigma_v * x, self.input_kernel[...]) + scales.sigma_b * self.bias[...]
        return jnp.split(made, self.gates)

    def diagnostics(self, h: Array, scales: Scales, x: Array) -> dict[str, Array]:
        """Mean of the factor on the state."""
        return {"forget_gate": jnp.mean(jnp.exp(self.log_factors(scales, x)))}

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """V = sigma_v Y, b = sigma_b z."""
        self.input_kernel[...] = scales.sigma_v * self.input_kernel[...]
        self.bias[...] = scales.sigma_b * self.bias[...]
        return frozenset({"sigma_v", "sigma_b"})


class _ConvexCell(_GatedCell):
    """``h' = f h + (1 - f) n``, n the last of ``V x + b``."""

    def maps(self, scales: Scales, x: Array) -> tuple[Keep, Array]:
        """f h, and (1 - f) n."""
        log = self.log_factors(scales, x)
        return lambda h: jnp.exp(log) * h, -jnp.expm1(log) * self.drive(scales, x)[-1]


class MinGRUCell(_ConvexCell):
    """``h' = (1 - z) h + z n``, z = sigmoid(V_z x + b_z - forget_bias), n = V_n x + b_n.

    Args:
        width, inputs, input_kernel_init, bias_init, dtype, rngs: as for the cells of `vgjax.blocks.recurrent`; kernels
            side by side in the order z, n.

    Source: Feng et al. 2024, "Were RNNs all we needed?", section 3.1.
    """

    law = "min_gru"

    def log_factors(self, scales: Scales, x: Array) -> Array:
        """ln(1 - z)."""
        return jax.nn.log_sigmoid(scales.forget_bias - self.drive(scales, x)[0])


class MinLSTMCell(_ConvexCell):
    """``h' = f / (f + i) h + i / (f + i) n``, f and i = sigmoid(V x + b), ``forget_bias`` added in f; n = V_n x + b_n.

    Args:
        width, inputs, input_kernel_init, bias_init, dtype, rngs: as for the cells of `vgjax.blocks.recurrent`; kernels
            side by side in the order f, i, n.

    Source: Feng et al. 2024, "Were RNNs all we needed?", section 3.2.
    """

    gates = 3
    law = "min_lstm"

    def log_factors(self, scales: Scales, x: Array) -> Array:
        """ln f / (f + i)."""
        f, i, _ = self.drive(scales, x)
        # A ratio of two small numbers, by their logarithms.
        ratio = jax.nn.log_sigmoid(f + scales.forget_bias) - jax.nn.log_sigmoid(i)
        return jax.nn.log_sigmoid(ratio)


class RGLRUCell(_GatedCell):
    """``h' = a^(c r) h + sqrt(1 - a^(2 c r)) (i x)``, r and i = sigmoid(V x + b): the RG-LRU of Griffin.

    a = 1 / (1 + e^p) with p trained and a^2 drawn uniform between the squares of two radii (uniform in area); an input
    is as wide as the state. Griffin's kernels are block-diagonal, these are full.

    Args:
        width: units.
        radii: of a, from 0 to 1.
        sharpness: c.
        **gated: input_kernel_init, bias_init, dtype, rngs: as for the cells of `vgjax.blocks.recurrent`; kernels side
            by side in the order r, i.

    Source: De et al. 2024, "Griffin", equations 1 to 6 and section 2.4.
    """

    forget_bias = None
    law = "rg_lru"

    @kinds
    def __init__(
        self,
        width: Size,
        *,
        radii: tuple[float, float] = (0.9, 0.999),
        sharpness: float = 8.0,
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
        **gated: Any,
    ):
        check_radii(radii)
        finite("sharpness", sharpness, "positive", lambda v: v > 0)
        super().__init__(width, width, dtype=dtype, rngs=rngs, **gated)
        self.sharpness = sharpness
        self.numbers = ("radii", radii), ("sharpness", sharpness)
        log_decay = _ring(rngs.params(), width, radii, 1.0, dtype)[0]
        self.decay = nnx.Param(jnp.log(jnp.expm1(jnp.exp(log_decay))))  # softplus(p) = -ln a

    def log_factors(self, scales: Scales, x: Array) -> Array:
        """c r ln a."""
        r = jax.nn.sigmoid(self.drive(scales, x)[0])
        return -self.sharpness * r * jax.nn.softplus(self.decay[...])

    def maps(self, scales: Scales, x: Array) -> tuple[Keep, Array]:
        """a^(c r) h, and sqrt(1 - a^(2 c r)) (i x)."""
        log = self.log_factors(scales, x)
        i = jax.nn.sigmoid(self.drive(scales, x)[1])
        return lambda h: jnp.exp(log) * h, jnp.sqrt(-jnp.expm1(2 * log)) * i * x
