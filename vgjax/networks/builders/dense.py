"""Fully connected networks: plain, normalized, residual, noisy, tied."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from jax.typing import DTypeLike

from vgjax import activations
from vgjax.checks import known, positive_integer
from vgjax.networks.builders.parts import (
    RESIDUALS,
    Branch,
    Layers,
    Phi,
    drawn_as,
    embedding,
    in_stages,
    leading_axes,
    norm_around,
    residual_block,
    scheme_defaults,
)
from vgjax.networks.network import Network


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
    kernel_init: str = "gaussian",
    bias_init: str = "gaussian",
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
        kernel_init: gaussian, truncated, uniform, orthogonal, identity.
        bias_init: gaussian or zero.

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
    if scheme is not None and residual is None:
        raise ValueError(f"scheme is of a residual network, and residual must say which, got scheme={scheme!r} alone")
    leading = leading_axes(batch, norm)
    around = norm_around(norm, norm_on, epsilon, groups)
    layer = Layers(activations.get(activation), drawn_as(kernel_init, bias_init, dtype), around)
    if dropout:
        layer = replace(layer, dropout=(known("dropout", dropout, ("bernoulli", "gaussian")), leading))
    linear = layer.linear()
    if residual:
        inside = positive_integer("bottleneck", bottleneck) if bottleneck is not None else states[0]
        branch = Branch(known("residual", residual, RESIDUALS), positive_integer("branch_layers", branch_layers))
        steps = [residual_block(layer.dense, branch, layer.phi, states[0], inside, scheme, dtype)] * (len(states) - 1)
    else:
        branch = None
        steps = [layer.dense(a, b) for a, b in itertools.pairwise(states)]
    read = linear if residual == "post" else replace(layer, dropout=None)
    return Network(
        stem=linear.dense(inputs, states[0], **embedding(scheme == "fixup")),
        stages=in_stages(steps, tied),
        head=read.dense(states[-1], outputs, bias_init="zero"),
        input_shape=(*leading, inputs),
        defaults=scheme_defaults(scheme, branch, len(steps), layer.phi),
    )
