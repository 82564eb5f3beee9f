"""Recurrent cells: the depth is time, the state the hidden state, the layer's own input x_t.

Recurrent kernels are scaled by ``sigma_w``, input kernels by ``sigma_v``, biases by ``sigma_b``: Var W = sigma_w^2 /
width, Var V = sigma_v^2 / inputs. As everywhere, the scale multiplies what enters the product and not the kernel.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from vgjax import activations, initializers
from vgjax.activations import Activation, Elementwise
from vgjax.checks import FloatDtype, Size, kinds
from vgjax.initializers import Law, Scale, Scales

_sigmoid, _tanh = activations.get("sigmoid"), activations.get("tanh")


def gate_kernels(law: Law, shape: tuple[int, int], gates: int, dtype: Any, rngs: nnx.Rngs) -> nnx.Param:
    """The kernels of several gates, each of a shape ``(fan_in, width)``, side by side."""
    fan_in, width = shape
    draw = initializers.kernel_initializer(law)
    if not (isinstance(law, str) or callable(law)):
        return nnx.Param(draw(rngs.params(), (fan_in, gates * width), dtype))
    # Gate by gate: each is orthogonal where orthogonal is asked for, which a part of a wider draw is not.
    draws = [draw(rngs.params(), (fan_in, width), dtype) for _ in range(gates)]
    return nnx.Param(jnp.concatenate(draws, axis=1))


class _Cell(nnx.Module):
    """The kernels and biases of a cell of several gates, each gate drawn by itself.

    Args:
        width, inputs: sizes of the hidden state and of one input.
        kernel_init, input_kernel_init: how the recurrent and the input kernels are drawn, each of shape ``(width,
            width)`` and ``(inputs, width)``: as for `vgjax.blocks.Dense`; arrays hold all gates side by side.
        bias_init: how the biases are drawn, of all gates, shape ``(gates * width,)``: as for `vgjax.blocks.Dense`; an
            array for a GRU holds four, the last of them that inside the reset gate.
        dtype: of the parameters.
        rngs: where the draws come from.
    """

    gates: ClassVar[int] = 1
    forget_bias: ClassVar[float | None] = None  # where it stands, in a cell that has one

    @kinds
    def __init__(
        self,
        width: Size,
        inputs: Size,
        *,
        kernel_init: Law = "gaussian",
        input_kernel_init: Law = "gaussian",
        bias_init: Law = "gaussian",
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.kernel = gate_kernels(kernel_init, (width, width), self.gates, dtype, rngs)
        self.input_kernel = gate_kernels(input_kernel_init, (inputs, width), self.gates, dtype, rngs)
        draw = initializers.bias_initializer(bias_init)
        self.bias = nnx.Param(draw(rngs.params(), self.gates * width, dtype, width))
        self.bias_default = initializers.bias_default(bias_init)

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Those of kernels, input kernels and biases, and what is added to the gate that keeps."""
        defaults = {"sigma_w": 1.0, "sigma_v": 1.0, "sigma_b": self.bias_default}
        sigmas = {name: Scale(default, "parameter") for name, default in defaults.items()}
        return sigmas if self.forget_bias is None else sigmas | {"forget_bias": Scale(self.forget_bias, "offset")}

    def drive(self, x: Array, scales: Scales) -> Array:
        """V x + b, shape ``(gates * width,)``."""
        return jnp.dot(scales.sigma_v * x, self.input_kernel[...]) + scales.sigma_b * self.bias[...]

    def recur(self, h: Array, scales: Scales) -> Array:
        """W h, shape ``(gates * width,)``."""
        return jnp.dot(scales.sigma_w * h, self.kernel[...])

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """W = sigma_w Z, V = sigma_v Y, b = sigma_b z."""
        self.kernel[...] = scales.sigma_w * self.kernel[...]
        self.input_kernel[...] = scales.sigma_v * self.input_kernel[...]
        self.bias[...] = scales.sigma_b * self.bias[...]
        return frozenset({"sigma_w", "sigma_v", "sigma_b"})


class RNNCell(_Cell):
    """``h' = phi(W h + V x + b)``; ``nnx.SimpleCell``, its two biases as one.

    Args:
        activation: phi: a name, an `Activation` or a callable.
        width, inputs, kernel_init, input_kernel_init, bias_init, dtype, rngs: as for every cell of this module.
    """

    @kinds
    def __init__(
        self, width: Size, inputs: Size, *, activation: str | Activation | Elementwise = "tanh", **options: Any
    ):
        super().__init__(width, inputs, **options)
        self.activation = activations.get(activation)

    def __call__(self, h: Array, scales: Scales, x: Array) -> Array:
        """Shapes ``(width,)``, ``(inputs,)`` -> ``(width,)``."""
        return self.activation(self.recur(h, scales) + self.drive(x, scales))

    def diagnostics(self, h: Array, scales: Scales, x: Array) -> dict[str, Array]:
        """Mean square slope of its units."""
        return {
            "mean_square_slope": jnp.mean(
                self.activation.derivative(self.recur(h, scales) + self.drive(x, scales)) ** 2
            )
        }


class MinimalCell(_Cell):
    """``h' = u h + (1 - u) x``, ``u = sigmoid(W h + V x + b + forget_bias)``; the input is as wide as the state.

    Source: Chen, Pennington and Schoenholz 2018, "Dynamical isometry and a mean field theory of RNNs".
    """

    forget_bias = 0.0

    def gate(self, h: Array, scales: Scales, x: Array) -> Array:
        """u."""
        return _sigmoid(self.recur(h, scales) + self.drive(x, scales) + scales.forget_bias)

    def __call__(self, h: Array, scales: Scales, x: Array) -> Array:
        """Shapes ``(width,)``, ``(width,)`` -> ``(width,)``."""
        u = self.gate(h, scales, x)
        return u * h + (1 - u) * x

    def diagnostics(self, h: Array, scales: Scales, x: Array) -> dict[str, Array]:
        """Mean of the update gate: 1 keeps the state."""
        return {"update_gate": jnp.mean(self.gate(h, scales, x))}


class LSTMCell(_Cell):
    """``c' = f c + i tanh(g)``, ``h' = o tanh(c')``; i, f, o sigmoids, the gates' preactivations W h + V x + b (kernels
    side by side in the order i, f, g, o), with ``forget_bias`` added to that of f. The state is (h, c).

    Source: Hochreiter and Schmidhuber 1997; the forget gate: Gers, Schmidhuber and Cummins 2000.
    """

    gates = 4
    forget_bias = 1.0  # Jozefowicz et al. 2015
    # Both parts in one array: a state is one number with one exponent, and the loss sees both.
    parts = ("h", "c")

    def _gates(self, state: Array, scales: Scales, x: Array) -> tuple[Array, Array, Array, Array]:
        i, f, g, o = jnp.split(self.recur(state[0], scales) + self.drive(x, scales), 4)
        return _sigmoid(i), _sigmoid(f + scales.forget_bias), _tanh(g), _sigmoid(o)

    def __call__(self, state: Array, scales: Scales, x: Array) -> Array:
        """Shapes ``(2, width)``, ``(inputs,)`` -> ``(2, width)``."""
        i, f, g, o = self._gates(state, scales, x)
        c = f * state[1] + i * g
        return jnp.stack([o * _tanh(c), c])

    def diagnostics(self, state: Array, scales: Scales, x: Array) -> dict[str, Array]:
        """Means of the three gates."""
        i, f, _, o = self._gates(state, scales, x)
        return {"input_gate": jnp.mean(i), "forget_gate": jnp.mean(f), "output_gate": jnp.mean(o)}


class GRUCell(_Cell):
    """``h' = (1 - z) n + z h``, ``n = tanh(V_n x + b_n + r (W_n h + d))``; r, z sigmoids of W h + V x + b (kernels side
    by side in the order r, z, n), with ``forget_bias`` added to that of z: z = 1 keeps the state.

    Source: Cho et al. 2014, in the form of ``nnx.GRUCell``.
    """

    gates = 3
    forget_bias = 0.0

    @kinds
    def __init__(
        self,
        width: Size,
        inputs: Size,
        *,
        bias_init: Law = "gaussian",
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        initializers.check_law("bias_init", bias_init, initializers.BIAS_INITS)
        gates = own = bias_init
        if isinstance(bias_init, Array | np.ndarray):  # given: the bias that stands by itself is behind the others
            gates, own = bias_init[:-width], bias_init[-width:]
        super().__init__(width, inputs, bias_init=gates, dtype=dtype, rngs=rngs, **options)
        # The candidate has a bias on either side of the reset gate (as in cuDNN), which no other gate needs.
        draw = initializers.bias_initializer(own)
        self.recurrent_bias = nnx.Param(draw(rngs.params(), width, dtype, width))

    def _gates(self, h: Array, scales: Scales, x: Array) -> tuple[Array, Array, Array]:
        kept_r, kept_z, kept_n = jnp.split(self.recur(h, scales), 3)
        new_r, new_z, new_n = jnp.split(self.drive(x, scales), 3)
        r = _sigmoid(kept_r + new_r)
        z = _sigmoid(kept_z + new_z + scales.forget_bias)
        return r, z, _tanh(new_n + r * (kept_n + scales.sigma_b * self.recurrent_bias[...]))

    def __call__(self, h: Array, scales: Scales, x: Array) -> Array:
        """Shapes ``(width,)``, ``(inputs,)`` -> ``(width,)``."""
        _, z, n = self._gates(h, scales, x)
        return (1 - z) * n + z * h

    def diagnostics(self, h: Array, scales: Scales, x: Array) -> dict[str, Array]:
        """Means of the two gates."""
        r, z, _ = self._gates(h, scales, x)
        return {"reset_gate": jnp.mean(r), "update_gate": jnp.mean(z)}

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """The bias inside the reset gate as well."""
        self.recurrent_bias[...] = scales.sigma_b * self.recurrent_bias[...]
        return super().absorb_scales(scales)
