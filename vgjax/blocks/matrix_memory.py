"""Associative memories: linear recurrences whose state is a matrix that keys write into.

As in `vgjax.blocks.linear_recurrences`, the input alone sets how the state is kept.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from vgjax import initializers
from vgjax.blocks.linear_recurrences import Keep, LinearCell
from vgjax.blocks.told import RecurrenceArguments
from vgjax.checks import FloatDtype, Size, kinds, known
from vgjax.initializers import Law, Scale, Scales


class MatrixCell(LinearCell):
    """``S' = S D (1 - beta k k^T) + beta v k^T``: an associative memory of keys k and values v; D a decay.

    k = K x / |K x|, v = V x, beta = rate sigmoid(w x). Without the erasing term ``- beta k k^T`` it is linear
    attention. Of the field's:

    | name | decay | erase |
    |---|---|---|
    | linear attention | ``"none"``: D = 1 | no |
    | RetNet, mLSTM (without its normalizer) | ``"scalar"``: D = sigmoid(u x + forget_bias), a number | no |
    | gated linear attention, RWKV-6 | ``"channel"``: the same, a number a key's channel | no |
    | DeltaNet | ``"none"`` | yes |
    | gated DeltaNet; Kimi delta attention | ``"scalar"``; ``"channel"`` | yes |

    K needs no scale; V is scaled by ``sigma_v``, w and u by ``sigma_gate``; ``rate`` (1) is the most that beta can be:
    at 2 eigenvalues reach -1. The state is S, shape ``(width, width)``: values, keys.

    Args:
        width: size of a key and of a value.
        inputs: size of one input.
        decay: D.
        erase: whether what a key holds is taken out before it is written.
        input_kernel_init: how all kernels are drawn: a name or a law.
        dtype: of the parameters.
        rngs: where the draws come from.

    Source: Yang et al. 2024, "Parallelizing linear transformers with the delta rule over sequence length"; Yang, Kautz
    and Hatamizadeh 2025, "Gated delta networks", equation 10; Beck et al. 2024, "xLSTM", equations 19 to 27; Grazzi et
    al. 2025, "Unlocking state-tracking in linear RNNs through negative eigenvalues", for rates up to 2.
    """

    of_drive = ("value_kernel",)

    @kinds
    def __init__(
        self,
        width: Size,
        inputs: Size,
        *,
        decay: str = "none",
        erase: bool = True,
        input_kernel_init: Law = "gaussian",
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        draw = initializers.kernel_initializer(input_kernel_init)
        gates = {"none": 0, "scalar": 1, "channel": width}[known("decay", decay, ("none", "scalar", "channel"))]

        def kernel(outputs: int) -> nnx.Param:
            return nnx.Param(draw(rngs.params(), (inputs, outputs), dtype))

        self.key_kernel, self.value_kernel, self.rate_kernel = kernel(width), kernel(width), kernel(1)
        self.decay_kernel = kernel(gates) if gates else None
        self.erase = erase
        if erase and not gates:  # theory has the delta rule alone
            self.told = RecurrenceArguments("delta_rule", (("size", width),), initializers.named(input_kernel_init))

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Those of values and gates, the largest rate, and what is added to the gate that keeps."""
        scales = {"sigma_v": Scale(1.0, "parameter"), "sigma_gate": Scale(1.0, "parameter"), "rate": Scale(1.0)}
        return scales if self.decay_kernel is None else scales | {"forget_bias": Scale(0.0, "offset")}

    def rate(self, scales: Scales, x: Array) -> Array:
        """beta, shape ``()``."""
        return scales.rate * jax.nn.sigmoid(jnp.dot(scales.sigma_gate * x, self.rate_kernel[...]))[0]

    def log_factors(self, scales: Scales, x: Array) -> Array:
        """ln D, of the size of a key or of 1: what is erased has no share in it."""
        if self.decay_kernel is None:
            return jnp.zeros(1, x.dtype)
        return jax.nn.log_sigmoid(jnp.dot(scales.sigma_gate * x, self.decay_kernel[...]) + scales.forget_bias)

    def maps(self, scales: Scales, x: Array) -> tuple[Keep, Array]:
        """S D (1 - beta k k^T), and beta v k^T."""
        beta, key = self.rate(scales, x), _direction(jnp.dot(x, self.key_kernel[...]))
        value = jnp.dot(scales.sigma_v * x, self.value_kernel[...])
        decay = jnp.exp(self.log_factors(scales, x))

        def keep(s: Array) -> Array:
            s = s if self.decay_kernel is None else s * decay
            return s - beta * jnp.outer(jnp.dot(s, key), key) if self.erase else s

        return keep, beta * jnp.outer(value, key)

    def diagnostics(self, h: Array, scales: Scales, x: Array) -> dict[str, Array]:
        """beta."""
        return {"rate": self.rate(scales, x)}

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """V = sigma_v Y, and the gates' kernels."""
        self.value_kernel[...] = scales.sigma_v * self.value_kernel[...]
        for gate in (self.rate_kernel, self.decay_kernel):
            if gate is not None:
                gate[...] = scales.sigma_gate * gate[...]
        return frozenset({"sigma_v", "sigma_gate"})


def _direction(a: Array) -> Array:
    """a / |a|; 0 of 0, which is no key."""
    # No function of a: its derivative would overflow where a is small, and cancels.
    largest = lax.stop_gradient(jnp.max(jnp.abs(a)))
    a = a / jnp.where(largest == 0, 1, largest)  # before squares: those of 1e-25 are 0 in float32
    return a / jnp.sqrt(jnp.where(largest == 0, 1, jnp.sum(a**2)))
