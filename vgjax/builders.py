"""Builders: the architectures of the field, each as one call that returns a `Network`.

What they share: ``activation`` is a name, an `Activation` or any elementwise callable; ``law`` and ``bias_law`` name
the unit-gain laws of kernels and biases; ``dtype`` is float32, or float64 within ``with jax.enable_x64(True):``;
``norm`` is one of `vgjax.blocks.normalization.NORMS` (or None) with its ``epsilon``; the head reads the last state at
unit gain and has a zero bias.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from vgjax import activations, blocks, initializers
from vgjax.activations import Activation, Elementwise
from vgjax.blocks import Spec, spec
from vgjax.blocks.normalization import NORMS
from vgjax.checks import known, positive_integer
from vgjax.layers import shape_after
from vgjax.networks import Network, Stage

Phi = str | Activation | Elementwise
RESIDUALS = ("plain", "pre", "post")
SCHEMES = ("stable", "rezero", "skipinit", "fixup")
PLACES = ("preactivations", "activations")


# --- fully connected ------------------------------------------------------------------------------------------------


def mlp(
    *,
    width: int | None = None,
    depth: int | None = None,
    activation: Phi = "tanh",
    inputs: int,
    outputs: int = 1,
    widths: Sequence[int] | None = None,
    norm: str | None = None,
    norm_on: str = "preactivations",
    epsilon: float = 1e-6,
    groups: int = 1,
    batch: int | None = None,
    dropout: str | None = None,
    residual: str | None = None,
    branch_layers: int = 2,
    bottleneck: int | None = None,
    scheme: str | None = None,
    tied: bool = False,
    law: str = "gaussian",
    bias_law: str = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A fully connected network: ``h^{l+1} = W^{l+1} phi(h^l) + b^{l+1}``, h^0 = W^0 x + b^0, output W phi(h^L); with
    normalization, dropout and skip connections where they are asked for.

    Args:
        width: units of every hidden state; or give ``widths``.
        depth: L, the number of hidden layers after the first, h^0 (so there are L + 1 hidden states).
        activation: phi.
        inputs, outputs: sizes of one input and one output.
        widths: instead of width and depth, the sizes of h^0 ... h^L.
        norm: layer, rms, group, batch or batch_running.
        norm_on: ``"preactivations"``: W phi(norm(h)) + b; ``"activations"``: W norm(phi(h)) + b.
        epsilon: added to the variances of the norm (0 in the theory).
        groups: of ``norm="group"``.
        batch: examples in a state, which is then ``(batch, width)``, and an input ``(batch, inputs)``; ``norm="batch"``
            needs it: there the examples of a batch depend on each other.
        dropout: bernoulli or gaussian noise on the activations, at the rate of the scale ``dropout``.
        residual: ``"pre"``: h + F(h), F = W phi(h) + b or several of these; ``"plain"``: h + V phi(W h + b) + a;
            ``"post"``: phi(h + V phi(W h + b) + a). All with scales ``skip`` and ``branch``; the last kernel of a
            branch of several has scales ``sigma_v``, ``sigma_a`` of its own.
        branch_layers: kernels in a branch.
        bottleneck: width inside a branch (left out: ``width``).
        scheme: of a residual stack: ``"stable"``: branch = 1 / sqrt(L) (Hayou et al. 2021); ``"rezero"``,
            ``"skipinit"``: branch = 0 under a trainable gate (Bachlechner et al. 2020; De and Smith 2020); ``"fixup"``:
            the first m - 1 kernels of a branch at L^(-1/(2m-2)), the last at 0 (Zhang et al. 2019; without its scalar
            biases), and the stem has a scale ``sigma_in`` of its own. They set defaults of scales; what is given in
            `Scales` wins.
        tied: all layers share one draw (an autonomous recurrence).
        law: gaussian, truncated, uniform, orthogonal, identity.
        bias_law: gaussian or zero.

    Raises:
        ValueError: a size below 1, an unknown name, or both (or neither) of width with depth and widths.
    """
    if (widths is None) == (width is None and depth is None):
        raise ValueError("an mlp takes either width and depth or widths, not both")
    if widths is None:
        size, length = positive_integer("width", width), positive_integer("depth", depth)
        states: tuple[int, ...] = (size,) * (length + 1)
    else:
        states = tuple(positive_integer("widths", w) for w in widths)
        if len(states) < 2:
            raise ValueError(f"widths must hold at least 2 sizes (h^0 and one layer), got {len(states)}")
    inputs, outputs = positive_integer("inputs", inputs), positive_integer("outputs", outputs)
    if (residual or tied) and len(set(states)) > 1:
        raise ValueError(f"widths must be equal in a {'residual' if residual else 'tied'} network, got {states}")
    leading = _leading(batch, norm)
    layer = _Layers(activations.get(activation), _drawn(law, bias_law, dtype), _norm(norm, norm_on, epsilon, groups))
    if dropout:
        layer = replace(layer, dropout=(known("dropout", dropout, ("bernoulli", "gaussian")), leading))
    linear = layer.linear()
    if residual:
        inside = positive_integer("bottleneck", bottleneck) if bottleneck is not None else states[0]
        branch = Branch(known("residual", residual, RESIDUALS), positive_integer("branch_layers", branch_layers))
        steps = [_residual(layer.dense, branch, layer.phi, states[0], inside, scheme, dtype)] * (len(states) - 1)
    else:
        branch = None
        steps = [layer.dense(a, b) for a, b in itertools.pairwise(states)]
    read = linear if residual == "post" else replace(layer, dropout=None)
    return Network(
        stem=linear.dense(inputs, states[0], **_embedding(scheme == "fixup")),
        stages=_stages(steps, tied),
        head=read.dense(states[-1], outputs, bias_law="zero"),
        input_shape=(*leading, inputs),
        defaults=_scheme(scheme, branch, len(steps), layer.phi),
    )


# --- convolutional --------------------------------------------------------------------------------------------------


def cnn(
    *,
    channels: int,
    depth: int,
    size: int | Sequence[int] = (8, 8),
    activation: Phi = "relu",
    inputs: int = 1,
    outputs: int = 1,
    kernel_size: int = 3,
    padding: str = "circular",
    norm: str | None = None,
    norm_on: str = "preactivations",
    epsilon: float = 1e-6,
    groups: int = 1,
    batch: int | None = None,
    law: str = "gaussian",
    bias_law: str = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A plain convolutional network: ``h^{l+1} = W^{l+1} * phi(h^l) + b^{l+1}``, states ``(*size, channels)``.

    Args:
        channels: of every hidden state.
        depth: convolutions after the first, h^0.
        size: of the image, one number a dimension (1-D, 2-D or 3-D).
        inputs: channels of the input, which has shape ``(*size, inputs)``.
        outputs: size of the output, read from phi(h^L) averaged over the image.
        kernel_size: odd.
        padding: ``"circular"`` (as in the theory) or ``"zero"``.
        law: gaussian, truncated, uniform, orthogonal, delta_orthogonal.
        activation, norm, norm_on, epsilon, groups, batch, bias_law, dtype: as for `mlp`.

    Raises:
        ValueError: a size below 1, an even kernel, an unknown name, or delta_orthogonal with more channels in than out.
    """
    image = _image(size)
    depth, channels = positive_integer("depth", depth), positive_integer("channels", channels)
    layer = _Layers(
        activations.get(activation),
        _drawn(law, bias_law, dtype, initializers.CONVOLUTION_LAWS),
        _norm(norm, norm_on, epsilon, groups),
        _window(kernel_size, padding, len(image)),
    )
    return Network(
        stem=layer.linear(law).conv(positive_integer("inputs", inputs), channels),
        stages=_stages([layer.conv(channels, channels)] * depth),
        head=layer.readout(channels, outputs, len(image)),
        input_shape=(*_leading(batch, norm), *image, inputs),
    )


def resnet(
    *,
    channels: int | Sequence[int] = (16, 32, 64),
    depths: int | Sequence[int] = (9, 9, 9),
    size: int | Sequence[int] = (32, 32),
    activation: Phi = "relu",
    inputs: int = 3,
    outputs: int = 10,
    kernel_size: int = 3,
    padding: str = "zero",
    norm: str | None = "batch",
    norm_on: str = "preactivations",
    epsilon: float = 1e-5,
    groups: int = 1,
    batch: int | None = None,
    scheme: str | None = None,
    law: str = "gaussian",
    bias_law: str = "zero",
    dtype: DTypeLike = "float32",
) -> Network:
    """A residual convolutional network with pre-activation: ``h + V * phi(norm(W * phi(norm(h))))``, in stages.

    From one stage to the next a block of stride 2 halves the image; its skip is a convolution of window 1.

    Args:
        channels: of every stage.
        depths: residual blocks of every stage (two convolutions each); from the second stage on the first of them is
            the transition.
        size, inputs, outputs, kernel_size, padding: as for `cnn`.
        norm: batch by default, which needs ``batch``; or layer, rms, group, batch_running, None.
        activation, norm_on, epsilon, groups, batch, scheme, bias_law, dtype: as for `mlp`.
        law: as for `cnn`; convolutions of window 1 in the skips are Gaussian.

    Raises:
        ValueError: as `cnn`; or channels and depths of different lengths.

    Source: He et al. 2016, "Identity mappings in deep residual networks".
    """
    image = _image(size)
    widths, lengths = (
        tuple(positive_integer(name, v) for v in np.atleast_1d(np.asarray(values, object)))
        for name, values in (("channels", channels), ("depths", depths))
    )
    if len(widths) != len(lengths):
        raise ValueError(f"channels and depths must name as many stages, got {widths} and {lengths}")
    layer = _Layers(
        activations.get(activation),
        _drawn(law, bias_law, dtype, initializers.CONVOLUTION_LAWS),
        _norm(norm, norm_on, epsilon, groups),
        _window(kernel_size, padding, len(image)),
    )
    branch = Branch("pre", 2)
    steps: list[Spec] = []
    for i, (width, length) in enumerate(zip(widths, lengths, strict=True)):
        block = _residual(layer.conv, branch, layer.phi, width, width, scheme, dtype)
        if i:
            steps.append(_transition(layer, widths[i - 1], width, scheme, dtype))
        steps += [block] * (length - bool(i))
    return Network(
        stem=layer.linear(law).conv(positive_integer("inputs", inputs), widths[0], **_embedding(scheme == "fixup")),
        stages=_stages(steps),
        head=layer.readout(widths[-1], outputs, len(image)),
        input_shape=(*_leading(batch, norm), *image, inputs),
        defaults=_scheme(scheme, branch, len(steps), layer.phi),
    )


def _transition(layer: "_Layers", before: int, after: int, scheme: str | None, dtype: DTypeLike) -> Spec:
    branch = spec(
        blocks.Chain,
        layer_1=layer.conv(before, after, strides=2),
        layer_2=layer.conv(after, after, names=("sigma_v", "sigma_a")),
    )
    narrow = replace(layer.linear("gaussian"), window=(("kernel_size", (1,) * layer.dimensions), layer.window[1]))
    about = {"gate": True} if scheme in _GATED else {}
    return spec(blocks.Residual, branch, shortcut=narrow.conv(before, after, strides=2), dtype=_kind(dtype), **about)


# --- recurrent ------------------------------------------------------------------------------------------------------


def rnn(
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    activation: Phi = "tanh",
    cell: str = "simple",
    every_step: bool = False,
    law: str = "gaussian",
    input_law: str = "gaussian",
    bias_law: str = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A recurrent network: ``h_{t+1} = phi(W h_t + V x_t + b)``, h_0 = 0; depth is time, all steps share one draw.

    Scales: ``sigma_w`` for W, ``sigma_v`` for V, ``sigma_b`` for b.

    Args:
        width: units of the hidden state.
        depth: T, the number of steps.
        inputs: size of the input at one step; a network's input has shape ``(depth, inputs)``.
        outputs: size of the output, W h_T.
        activation: phi.
        cell: ``"simple"``, or ``"minimal"``: h' = u h + (1 - u) x, u = sigmoid(W h + V x + b + forget_bias), with
            inputs as wide as the state.
        every_step: the head reads every h_1 ... h_T, the output has shape ``(depth, outputs)``, and a loss is summed
            over steps.
        law, input_law: unit-gain laws of W and V: gaussian, truncated, uniform, orthogonal, identity.
        bias_law, dtype: as for `mlp`.

    Raises:
        ValueError: a size below 1, an unknown name, or a minimal cell whose inputs are not as wide as its state.
    """
    if known("cell", cell, ("simple", "minimal")) == "minimal":
        if inputs != width:
            raise ValueError(f"inputs must equal the width {width} for a minimal cell, got {inputs}")
        return _recurrent(
            blocks.MinimalCell, width, depth, inputs, outputs, every_step, law, input_law, bias_law, dtype
        )
    phi = activations.get(activation)
    return _recurrent(blocks.RNNCell, width, depth, inputs, outputs, every_step, law, input_law, bias_law, dtype, phi)


def lstm(
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    every_step: bool = False,
    law: str = "gaussian",
    input_law: str = "gaussian",
    bias_law: str = "zero",
    dtype: DTypeLike = "float32",
) -> Network:
    """A long short-term memory (`vgjax.blocks.LSTMCell`): the state is (h, c), shape ``(2, width)``.

    Scales: those of `rnn`, and ``forget_bias`` (1; may be negative), which is added to the forget gate.

    Args:
        width, depth, inputs, outputs, every_step, law, input_law, bias_law, dtype: as for `rnn`.
    """
    return _recurrent(blocks.LSTMCell, width, depth, inputs, outputs, every_step, law, input_law, bias_law, dtype)


def gru(
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    every_step: bool = False,
    law: str = "gaussian",
    input_law: str = "gaussian",
    bias_law: str = "zero",
    dtype: DTypeLike = "float32",
) -> Network:
    """A gated recurrent unit (`vgjax.blocks.GRUCell`).

    Scales: those of `rnn`, and ``forget_bias`` (0; may be negative), which is added to the update gate: large, it keeps
    the state.

    Args:
        width, depth, inputs, outputs, every_step, law, input_law, bias_law, dtype: as for `rnn`.
    """
    return _recurrent(blocks.GRUCell, width, depth, inputs, outputs, every_step, law, input_law, bias_law, dtype)


def _recurrent(
    cell: type[nnx.Module],
    width: int,
    depth: int,
    inputs: int,
    outputs: int,
    every_step: bool,
    law: str,
    input_law: str,
    bias_law: str,
    dtype: DTypeLike,
    phi: Activation | None = None,
) -> Network:
    width, depth = positive_integer("width", width), positive_integer("depth", depth)
    inputs, outputs = positive_integer("inputs", inputs), positive_integer("outputs", outputs)
    drawn = _drawn(law, bias_law, dtype)
    initializers.law(input_law)
    about = {"activation": phi} if phi else {}
    shape = (2, width) if cell is blocks.LSTMCell else (width,)
    read = {"before": spec(blocks.Part, 0)} if cell is blocks.LSTMCell else {}
    head = {"activation": activations.get("linear"), "bias_law": "zero", "dtype": drawn["dtype"], **read}
    return Network(
        stem=spec(blocks.Start, shape),
        stages=(Stage(spec(cell, width, inputs, input_law=input_law, **drawn, **about), depth, tied=True, fed=True),),
        head=spec(blocks.Dense, width, outputs, **head),
        input_shape=(depth, inputs),
        every_step=every_step,
    )


# --- transformers ---------------------------------------------------------------------------------------------------


def transformer(
    *,
    width: int,
    depth: int,
    heads: int,
    tokens: int,
    inputs: int,
    outputs: int = 1,
    hidden: int | None = None,
    activation: Phi = "gelu",
    norm: str | None = "pre",
    kind: str = "layer",
    epsilon: float = 1e-6,
    causal: bool = False,
    scheme: str | None = None,
    tied: bool = False,
    law: str = "gaussian",
    bias_law: str = "zero",
    dtype: DTypeLike = "float32",
) -> Network:
    """A transformer encoder: each block self-attention and a feed-forward layer of two kernels, both around skips;
    states ``(tokens, width)``.

    Scales: ``sigma_qk`` (query and key kernels), ``sigma_vo`` (value and output), ``sigma_w`` and ``sigma_b``
    (feed-forward), ``temperature`` (divides the logits), ``skip`` and ``branch`` of both residual connections;
    ``sigma_in`` (embedding).

    Args:
        width: of a token, a multiple of ``heads``.
        depth: blocks.
        heads: attention heads.
        tokens: of one input, which has shape ``(tokens, inputs)``.
        outputs: size of the output, read from the (pre-LN: normalized) mean of the last tokens.
        hidden: width inside the feed-forward layer (left out: 4 width); 0 for attention alone.
        activation: phi of the feed-forward layer.
        norm: ``"pre"``: h + F(LN(h)), ``"post"``: LN(h + F(h)), or None.
        kind: layer or rms norm.
        epsilon: added to the variances of the norm (0 in the theory).
        causal: a token looks at itself and those before it only.
        scheme: ``"deepnorm"`` (with ``norm="post"``): skip = (2L)^(1/4), sigma_vo and sigma_w at (8L)^(-1/4) (Wang et
            al. 2022); or those of `mlp` but ``"fixup"``. They set defaults; what is given in `Scales` wins.
        tied: all blocks share one draw.
        law, bias_law, dtype: as for `mlp`.

    Raises:
        ValueError: a size below 1, an unknown name, or heads that do not divide the width.

    Source: Vaswani et al. 2017; where the norms stand: Xiong et al. 2020.
    """
    width, depth = positive_integer("width", width), positive_integer("depth", depth)
    heads, tokens = positive_integer("heads", heads), positive_integer("tokens", tokens)
    inputs, outputs = positive_integer("inputs", inputs), positive_integer("outputs", outputs)
    if width % heads:
        raise ValueError(f"heads must divide the width {width}, got {heads}")
    hidden = 4 * width if hidden is None else hidden
    drawn = _drawn(law, bias_law, dtype)
    place = None if norm is None else known("norm", norm, ("pre", "post"))
    if scheme == "deepnorm" and place != "post":
        raise ValueError(f"scheme 'deepnorm' needs norm='post', got {norm!r}")
    normed = _norm(known("kind", kind, ("layer", "rms")), "preactivations", epsilon, 1)
    layer = _Layers(activations.get("linear"), drawn, normed)
    block = _transformer_block(layer, activations.get(activation), width, heads, hidden, place, causal, scheme)
    head = layer if place == "pre" else layer.linear()
    return Network(
        stem=layer.linear().dense(inputs, width, **_embedding(True)),
        stages=_stages([block] * depth, tied),
        head=replace(head, pool=1).dense(width, outputs, bias_law="zero"),
        input_shape=(tokens, inputs),
        defaults=_deepnorm(depth) if scheme == "deepnorm" else _scheme(scheme, None, depth, layer.phi),
    )


def _transformer_block(
    layer: "_Layers",
    phi: Activation,
    width: int,
    heads: int,
    hidden: int,
    place: str | None,
    causal: bool,
    scheme: str | None,
) -> Spec:
    dtype = dict(layer.drawn)["dtype"]
    branches = {
        "attention": {
            "attention": spec(blocks.Attention, width, heads, causal=causal, law=dict(layer.drawn)["law"], dtype=dtype)
        }
    }
    if hidden:
        plain = layer.linear()
        branches["feed_forward"] = {
            "layer_1": plain.dense(width, positive_integer("hidden", hidden)),
            "layer_2": replace(plain, phi=phi).dense(hidden, width),
        }
    norm = layer.norm_of(width)
    gate = {"gate": True} if scheme in _GATED else {}
    parts: dict[str, Spec] = {}
    for name, branch in branches.items():
        inside = {"norm": norm, **branch} if place == "pre" else branch
        parts[name] = spec(blocks.Residual, spec(blocks.Chain, **inside), dtype=dtype, **gate)
        if place == "post":
            parts[f"{name}_norm"] = norm
    return spec(blocks.Chain, **parts)


# --- your own -------------------------------------------------------------------------------------------------------


def stack(
    block: type[nnx.Module],
    *arguments: Hashable,
    depth: int,
    input_shape: int | tuple[int, ...],
    stem: Spec | None = None,
    head: Spec | None = None,
    tied: bool = False,
    **options: Hashable,
) -> Network:
    """A network of ``depth`` copies of your own block, each drawn afresh: any `nnx.Module` from a state to a state of
    its shape.

    Args:
        block: built as ``block(*arguments, **options, rngs=rngs)``, called as ``block(h)`` on one example; or as
            ``block(h, scales)`` if the class declares ``scales`` (see `vgjax.blocks.protocol`).
        depth: how many.
        input_shape: shape of one input: the state's shape where there is no stem.
        stem, head: `Spec` of the blocks before and behind.
        tied: all of them share one draw.

    Raises:
        ValueError: a depth below 1, arguments that cannot be hashed, or a block that changes the shape or the dtype of
            its state.
    """
    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    made = Spec(block, arguments, tuple(sorted(options.items())))
    try:
        hash(made)
    except TypeError as error:
        raise ValueError(f"arguments of {block.__name__} must be hashable (they are compiled for): {error}") from None
    network = Network(stem, (Stage(made, positive_integer("depth", depth), tied),), head, shape)
    _check_states(network)
    return network


def _check_states(network: Network) -> None:
    state = jax.ShapeDtypeStruct(network.input_shape, jnp.float32)
    state = shape_after(network.stem, state) if network.stem else state
    for stage in network.stages:
        name, after = stage.spec.block.__name__, shape_after(stage.spec, state)
        if after.shape != state.shape and stage.depth > 1:
            raise ValueError(f"{name} must keep the shape of its state, got {after.shape} from {state.shape}")
        if after.dtype != state.dtype:
            raise ValueError(f"{name} must keep the dtype of its state, got {after.dtype} from {state.dtype}")
        state = after


# --- shared ---------------------------------------------------------------------------------------------------------


class Branch(NamedTuple):
    """How a residual branch is made: its kind, and its kernels."""

    kind: str
    layers: int


class _Normed(NamedTuple):
    kind: str
    on_activations: bool
    epsilon: float
    groups: int


@dataclass(frozen=True)
class _Layers:
    """What the affine layers of one network have in common.

    Attributes:
        phi: the activation.
        drawn: laws and dtype: options of every affine block.
        norm: the normalization around phi, or None.
        window: options of convolutions.
        dropout: law, and the leading axes of the state; or None.
        pool: axes that a head averages over.
    """

    phi: Activation
    drawn: dict[str, Any]
    norm: _Normed | None = None
    window: tuple[tuple[str, Any], ...] = ()
    dropout: tuple[str, tuple[int, ...]] | None = None
    pool: int = 0

    @property
    def dimensions(self) -> int:
        """Of the image."""
        return len(dict(self.window)["kernel_size"])

    def linear(self, law: str | None = None) -> "_Layers":
        """The same without what stands around the product; a delta-orthogonal stem, which may widen or narrow, is
        Gaussian."""
        law = law or self.drawn["law"]
        drawn = self.drawn | {"law": "gaussian" if law in ("delta_orthogonal", "identity") else law}
        return replace(self, phi=activations.get("linear"), drawn=drawn, norm=None, dropout=None)

    def dense(self, fan_in: int, fan_out: int, **options: Any) -> Spec:
        """A fully connected layer."""
        about = {"activation": self.phi, **self.drawn, **self._around(fan_in), **options}
        return spec(blocks.Dense, fan_in, fan_out, **about)

    def conv(self, channels_in: int, channels_out: int, **options: Any) -> Spec:
        """A convolutional layer."""
        about = {"activation": self.phi, **self.drawn, **dict(self.window), **self._around(channels_in), **options}
        return spec(blocks.Conv, channels_in, channels_out, **about)

    def readout(self, channels: int, outputs: int, axes: int) -> Spec:
        """The head of a convolutional network."""
        drawn = self.drawn | {"law": "gaussian"}
        return replace(self, drawn=drawn, pool=axes).dense(
            channels, positive_integer("outputs", outputs), bias_law="zero"
        )

    def norm_of(self, features: int) -> Spec:
        """The normalization by itself."""
        assert self.norm is not None
        about = {"epsilon": self.norm.epsilon, "dtype": self.drawn["dtype"]}
        if self.norm.kind == "group":
            if features % self.norm.groups:
                raise ValueError(f"groups must divide the {features} features, got {self.norm.groups}")
            about["groups"] = self.norm.groups
        return spec(blocks.Norm, self.norm.kind, features, **about)

    def _around(self, features: int) -> dict[str, Any]:
        around: dict[str, list[Spec]] = {"before": [], "after": []}
        if self.norm:
            around["after" if self.norm.on_activations else "before"].append(self.norm_of(features))
        if self.dropout:
            law, leading = self.dropout
            around["after"].append(spec(blocks.Dropout, (*leading, features), law=law, dtype=self.drawn["dtype"]))
        if self.pool:
            around["after"].append(spec(blocks.Pool, self.pool))
        return {name: _chained(parts) for name, parts in around.items() if parts}


def _chained(parts: list[Spec]) -> Spec:
    return parts[0] if len(parts) == 1 else spec(blocks.Chain, **{p.block.__name__.lower(): p for p in parts})


_GATED = ("rezero", "skipinit", "fixup")


def _residual(
    affine: Callable[..., Spec],
    branch: Branch,
    phi: Activation,
    width: int,
    inside: int,
    scheme: str | None,
    dtype: DTypeLike,
) -> Spec:
    """One residual block of a stack of equal widths."""
    if scheme is not None:
        known("scheme", scheme, SCHEMES)
    kind, count = branch
    if count < 2 and (kind != "pre" or scheme == "fixup"):
        what = "scheme 'fixup'" if kind == "pre" else f"residual {kind!r}"
        raise ValueError(f"branch_layers must be at least 2 for {what}, got {count}")
    sizes = [width, *[inside] * (count - 1), width]
    layers = {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        options: dict[str, Any] = {"names": ("sigma_v", "sigma_a")} if i and i == count - 1 else {}
        if i == 0 and kind != "pre":
            options |= {"activation": activations.get("linear"), "before": None, "after": None}
        layers[f"layer_{i + 1}"] = affine(a, b, **options)
    made = spec(blocks.Chain, **layers) if count > 1 else layers["layer_1"]
    gate = {"gate": True} if scheme in _GATED else {}
    block = spec(blocks.Residual, made, dtype=_kind(dtype), **gate)
    return block if kind != "post" else spec(blocks.Chain, residual=block, phi=spec(blocks.Activate, activation=phi))


def _scheme(name: str | None, branch: Branch | None, depth: int, phi: Activation) -> tuple[tuple[str, float], ...]:
    """The scales that a named residual scheme sets."""
    if name is None:
        return ()
    known("scheme", name, SCHEMES if branch else SCHEMES[:3])
    if name == "stable":
        return (("branch", depth**-0.5),)
    if name in ("rezero", "skipinit"):
        return (("branch", 0.0),)
    assert branch is not None
    slopes = np.asarray(phi.derivative(jnp.asarray([-1.0, 1.0])), float) if phi.homogeneous else np.ones(2)
    gain = float(np.mean(slopes**2)) ** -0.5  # He's, which Fixup starts from
    return (("sigma_w", gain * depth ** (-1 / (2 * branch.layers - 2))), ("sigma_v", 0.0))


def _embedding(alone: bool) -> dict[str, Any]:
    """Options of a stem whose kernel has a scale of its own, ``sigma_in``, which schemes for blocks leave alone."""
    return {"names": ("sigma_in", "sigma_b")} if alone else {}


def _deepnorm(depth: int) -> tuple[tuple[str, float], ...]:
    alpha, beta = (2 * depth) ** 0.25, (8 * depth) ** -0.25
    return (("skip", alpha), ("sigma_vo", beta), ("sigma_w", beta))


def _drawn(law: str, bias_law: str, dtype: DTypeLike, laws: Sequence[str] = tuple(initializers.LAWS)) -> dict[str, Any]:
    """The options of every affine block, checked."""
    known("law", law, laws), initializers.law(bias_law, initializers.BIAS_LAWS)
    return {"law": law, "bias_law": bias_law, "dtype": _kind(dtype)}


def _kind(dtype: DTypeLike) -> str:
    kind = np.dtype(dtype).name
    if kind not in ("float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64, got {kind}")
    if jax.dtypes.canonicalize_dtype(kind).name != kind:
        raise ValueError(f"dtype {kind} needs jax.enable_x64(True) around the work, got it switched off")
    return kind


def _norm(norm: str | None, norm_on: str, epsilon: float, groups: int) -> _Normed | None:
    if norm is None:
        return None
    on_activations = known("norm_on", norm_on, PLACES) == "activations"
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}")
    return _Normed(known("norm", norm, NORMS), on_activations, float(epsilon), positive_integer("groups", groups))


def _leading(batch: int | None, norm: str | None) -> tuple[int, ...]:
    """The leading axes of a state."""
    if norm == "batch" and (batch is None or batch < 2):
        rule = "batch norm in training mode normalizes over the examples of a batch"
        raise ValueError(f"batch must be at least 2 for norm='batch' ({rule}), got {batch}")
    return () if batch is None else (positive_integer("batch", batch),)


def _image(size: int | Sequence[int]) -> tuple[int, ...]:
    image = tuple(positive_integer("size", n) for n in np.atleast_1d(np.asarray(size, object)))
    if not 1 <= len(image) <= 3:
        raise ValueError(f"size must have 1, 2 or 3 dimensions, got {len(image)}")
    return image


def _window(kernel_size: int, padding: str, dimensions: int) -> tuple[tuple[str, Any], ...]:
    size = positive_integer("kernel_size", kernel_size)
    if size % 2 == 0:
        raise ValueError(f"kernel_size must be odd to keep the image's size, got {size}")
    known("padding", padding, initializers.PADDINGS)
    return (("kernel_size", (size,) * dimensions), ("padding", padding))


def _stages(specs: list[Spec], tied: bool = False) -> tuple[Stage, ...]:
    """Equal blocks in a row become one stage, if they keep the state's shape; a block that changes it stands alone."""
    stages: list[Stage] = []
    for made in specs:
        keeps_shape = made.arguments[:1] == made.arguments[1:2] or made.block not in (blocks.Dense, blocks.Conv)
        if stages and stages[-1].spec == made and keeps_shape:
            stages[-1] = replace(stages[-1], depth=stages[-1].depth + 1)
        else:
            stages.append(Stage(made, 1, tied))
    return tuple(stages)
