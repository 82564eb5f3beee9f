"""A mixture of experts: feed-forward layers of which a router chooses a few for every token."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax import initializers
from vgjax.blocks import protocol
from vgjax.blocks.composed import Several
from vgjax.blocks.protocol import Spec
from vgjax.checks import FloatDtype, Size, kinds
from vgjax.floatexp import FloatExp, add, to_float_clipped, with_zero_exponent
from vgjax.initializers import Law, Scale, Scales


class Experts(Several):
    """``sum_(e in top) p_e F_e(h)``: of several blocks the few whose router's logits are the largest, state by state.

    The logits are ``sigma_r R h``, p their softmax over those that were chosen. Every expert is computed and those not
    chosen are weighted by 0, so that what is measured is the function, not a schedule. Its derivative is that of the
    function: the choice itself has none.

    Args:
        expert: F, each expert's own draw of it; ``(*leading, width)`` -> ``(*leading, width)``.
        width: of a state.
        experts: how many there are.
        chosen: how many of them a token gets.
        router_init: how R is drawn, of shape ``(width, experts)``: as for `vgjax.blocks.Dense`.
        dtype: of the parameters.
        rngs: where the draws come from.

    Raises:
        ValueError: more experts chosen than there are.

    Source: Shazeer et al. 2017, "Outrageously large neural networks"; softmax over the chosen: Jiang et al. 2024,
    "Mixtral of experts".
    """

    @kinds
    def __init__(
        self,
        expert: Spec,
        width: Size,
        *,
        experts: Size,
        chosen: Size,
        router_init: Law = "gaussian",
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if chosen > experts:
            raise ValueError(f"chosen must be at most the number of experts, {experts}, got {chosen}")
        self.chosen = chosen
        self.router = nnx.Param(initializers.kernel_initializer(router_init)(rngs.params(), (width, experts), dtype))
        super().__init__(defaults=(), rngs=rngs, **{f"expert_{i + 1}": expert for i in range(experts)})

    @property
    def scales(self) -> Mapping[str, Scale]:
        """The router's, and those of the experts."""
        return {"sigma_r": Scale(1.0, "parameter"), **super().scales}

    def weights(self, h: Array, scales: Scales) -> Array:
        """p, 0 for those not chosen, shape ``(*leading, experts)``."""
        logits = jnp.dot(scales.sigma_r * h, self.router[...])
        # By their numbers and not by the least of the logits: of equal ones (a state of 0) the first are chosen.
        best = jax.nn.one_hot(jax.lax.top_k(logits, self.chosen)[1], logits.shape[-1], dtype=bool)
        return jax.nn.softmax(jnp.where(jnp.any(best, axis=-2), logits, -jnp.inf))

    def __call__(self, h: Array, scales: Scales) -> Array:
        """Shape of the state."""
        p = self.weights(h, scales)
        return sum(
            (p[..., e, None] * protocol.call(expert, h, scales) for e, expert in enumerate(self._parts())),
            start=jnp.zeros_like(h),
        )

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized state of any size."""
        p = self.weights(to_float_clipped(state), scales)  # past the range a softmax is at its limit
        made = [protocol.step(expert, state, scales) for expert in self._parts()]
        return add(*(with_zero_exponent(FloatExp(p[..., e, None] * f.value, f.exponent)) for e, f in enumerate(made)))

    def diagnostics(self, h: Array, scales: Scales) -> dict[str, Array]:
        """How many times its fair share of the tokens the busiest expert gets, and the share of experts without any."""
        p = self.weights(h, scales)
        load = jnp.mean(p > 0, axis=tuple(range(p.ndim - 1))).astype(h.dtype)
        return {
            "largest_load": jnp.max(load) * p.shape[-1] / self.chosen,
            "idle_experts": jnp.mean(load == 0, dtype=h.dtype),
        }

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """The router and the experts take theirs."""
        self.router[...] = scales.sigma_r * self.router[...]
        return frozenset({"sigma_r"}) | super().absorb_scales(scales)
