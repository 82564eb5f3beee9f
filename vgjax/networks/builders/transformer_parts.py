"""What transformers are made of, as options: how tokens look at each other, what stands between, what is read."""

from typing import Any, NamedTuple

from vgjax import activations, blocks
from vgjax.blocks import Spec, spec
from vgjax.blocks.attention import check_heads
from vgjax.blocks.tokens import POSITIONS
from vgjax.checks import finite, kinds, known, positive_integer
from vgjax.initializers import Law
from vgjax.networks.builders.combinators import Phi, chain, dense, parallel
from vgjax.networks.builders.recipes import sizes


class Attending(NamedTuple):
    """How tokens look at each other (`attention`)."""

    mask: str
    window: int | None
    key_heads: int | None
    positions: str | None
    rotary: float
    qk_norm: float | None
    value_residual: bool

    def block(self, width: int, heads: int, **draws: Any) -> Spec:
        """The attention by itself."""
        turned = self.rotary if self.positions == "rotary" else None
        check_heads(width, heads, self.key_heads or heads, self.mask, turned)
        # Left out where they are the block's own, so that equal blocks are equal specs.
        options = {"window": self.window, "key_heads": self.key_heads, "rotary": turned, "qk_norm": self.qk_norm}
        given = {name: value for name, value in options.items() if value is not None}
        return spec(blocks.Attention, width, heads, mask=self.mask, **given, **draws)


@kinds
def attention(
    mask: str = "full",
    *,
    window: int | None = None,
    key_heads: int | None = None,
    positions: str | None = None,
    rotary: float = 10_000.0,
    qk_norm: float | None = None,
    value_residual: bool = False,
) -> Attending:
    """Attention for the ``attention=`` of `vgjax.transformer`; a mask alone means this with its defaults.

    Args:
        mask: ``"full"`` or ``"causal"``.
        window: a token looks at those less than this far away only; left out, at all that the mask shows.
        key_heads: heads that keys and values have (grouped-query attention; 1: multi-query); left out, all.
        positions: ``"rotary"`` (turns queries and keys), ``"learned"`` or ``"sinusoidal"`` (added to the first state,
            scale ``sigma_p``); None: tokens do not know where they stand.
        rotary: base of the rotation.
        qk_norm: normalize queries and keys by their root mean square, this being the epsilon; None for not.
        value_residual: mix the values of every block with those of the first, ``(1 - value_skip) V_l + value_skip
            V_1``, scale ``value_skip`` (1/2); states are then pairs ``[h, V_1]``, shape ``(2, tokens, width)`` (Zhou et
            al. 2024).

    Raises:
        ValueError: an unknown name, a number out of range, or fewer keys' heads with a value residual.
    """
    known("mask", mask, blocks.attention.MASKS)
    if positions is not None:
        known("positions", positions, ("rotary", *POSITIONS))
    finite("rotary", rotary, "positive", lambda v: v > 0)
    if qk_norm is not None:
        finite("qk_norm", qk_norm, "not negative", lambda v: v >= 0)
    counts = (("window", window), ("key_heads", key_heads))
    if value_residual and key_heads is not None:
        raise ValueError(
            f"key_heads must be left out with value_residual, which keeps a state of values, got {key_heads}"
        )
    near, shared = (None if count is None else positive_integer(name, count) for name, count in counts)
    return Attending(
        mask, near, shared, positions, float(rotary), None if qk_norm is None else float(qk_norm), value_residual
    )


GATES = {"glu": "sigmoid", "bilinear": "linear", "reglu": "relu", "geglu": "gelu", "swiglu": "silu"}
"""Gated feed-forward layers, and what their gate is made by (Shazeer 2020, "GLU variants improve transformer")."""


class FeedForward(NamedTuple):
    """What stands between the attentions (`feed_forward`)."""

    kind: Phi
    hidden: int | None
    experts: int | None
    chosen: int

    @property
    def gated(self) -> bool:
        """Whether a second product multiplies the first."""
        return isinstance(self.kind, str) and self.kind in GATES

    def inside(self, width: int) -> int:
        """Its hidden width."""
        # 4 width: Vaswani et al. 2017; a gate adds a third kernel, and 8/3 keeps their number of entries (Shazeer).
        return self.hidden or (-(-8 * width // 3) if self.gated else 4 * width)

    def block(self, width: int, **draws: Any) -> dict[str, Spec]:
        """The layers by themselves, by name."""
        layers = self._layers(width, self.inside(width), **draws)
        if self.experts is None:
            return layers
        router = {"router_init": draws["kernel_init"], "dtype": draws["dtype"]}
        counts = {"experts": self.experts, "chosen": self.chosen}
        return {"mixture": spec(blocks.Experts, chain(**layers), width, **counts, **router)}

    def _layers(self, width: int, inside: int, **draws: Any) -> dict[str, Spec]:
        def layer(fan_in: int, fan_out: int, sigma: str, phi: Phi = "linear") -> Spec:
            return dense(fan_in, fan_out, phi, follows="sigma_w", names=(sigma, "sigma_b"), **draws)

        if not self.gated:
            return {
                "layer_1": layer(width, inside, "sigma_1"),
                "layer_2": layer(inside, width, "sigma_2", activations.get(self.kind)),
            }
        gate = spec(blocks.Activate, activation=activations.get(GATES[str(self.kind)]))
        gated = parallel(
            "product", gate=chain(layer(width, inside, "sigma_g"), gate), up=layer(width, inside, "sigma_1")
        )
        return {"gated": gated, "layer_2": layer(inside, width, "sigma_2")}


@kinds
def feed_forward(
    kind: Phi = "gelu", *, hidden: int | None = None, experts: int | None = None, chosen: int = 2
) -> FeedForward:
    """A feed-forward layer for the ``feed_forward=`` of `vgjax.transformer`; a kind alone means this with its defaults.

    Args:
        kind: an activation, ``W_2 phi(W_1 h + b) + b``; or a gated unit, glu, bilinear, reglu, geglu, swiglu: ``W_2
            (phi(W_g h + b) (W_1 h + b)) + b``.
        hidden: its width inside; left out, 4 width, gated 8/3 width.
        experts: how many of them a router chooses from; None: no router.
        chosen: how many a token gets.

    Raises:
        ValueError: an unknown name, a size below 1, or more experts chosen than there are.
    """
    if not (isinstance(kind, str) and kind in GATES):
        activations.get(kind)
    inside = None if hidden is None else positive_integer("hidden", hidden)
    positive_integer("chosen", chosen)
    if experts is None and chosen != 2:
        raise ValueError(f"chosen needs experts to choose from, got {chosen} and no experts")
    if experts is not None and chosen > positive_integer("experts", experts):
        raise ValueError(f"chosen must be at most the number of experts, {experts}, got {chosen}")
    return FeedForward(kind, inside, experts, chosen)


class Tokens(NamedTuple):
    """Tokens as input (`tokens`)."""

    length: int
    vocabulary: int
    tied: bool | None


@kinds
def tokens(length: int, vocabulary: int, *, tied: bool | None = None) -> Tokens:
    """Whole numbers below ``vocabulary``, ``length`` of them, for the ``inputs=`` of `vgjax.transformer`.

    Args:
        length: tokens of one input.
        vocabulary: how many kinds of them.
        tied: whether the logits are read by the table that the tokens are embedded by; left out, as the style does.

    Raises:
        ValueError: a size below 1.
    """
    return Tokens(positive_integer("length", length), positive_integer("vocabulary", vocabulary), tied)


def stem_parts(inputs: Any, width: int, positions: str | None, ends: dict[str, Any]) -> tuple[Any, dict[str, Spec]]:
    """The shape of an input, and what makes the first state of it."""
    if isinstance(inputs, Tokens):
        shape: tuple[int, ...] = (inputs.length,)
        embedded = spec(blocks.Embedding, inputs.vocabulary, width, dtype=ends["dtype"])
    else:
        shape = sizes("inputs", inputs)
        if len(shape) != 2:
            raise ValueError(f"inputs must be the shape (tokens, features) of one input, or tokens, got {shape}")
        embedded = dense(shape[1], width, names=("sigma_in", "sigma_b"), **ends)
    parts = {"embedding": embedded}
    if positions in POSITIONS:
        parts["positions"] = spec(blocks.Positions, shape[0], width, positions, dtype=ends["dtype"])
    return shape, parts


def check_law_fits(kernel_init: Law, attending: Attending, fed: FeedForward | None) -> None:
    """Raise ValueError for one array where kernels have different shapes."""
    if not (isinstance(kernel_init, str) or callable(kernel_init)) and (fed is not None or attending.key_heads):
        raise ValueError("kernel_init must be a name or a law where kernels differ in shape, got an array")
