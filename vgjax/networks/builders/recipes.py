"""What the recipes share: residual branches, the ends of a network, the sizes of its states."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vgjax import blocks
from vgjax.blocks import Spec, spec
from vgjax.checks import kinds, known, positive_integer
from vgjax.initializers import Law
from vgjax.networks.builders.combinators import SCHEMES, chain, known_scheme, residual
from vgjax.networks.network import OF_HEAD


class Branch(NamedTuple):
    """How residual branches are made (`branch`)."""

    kind: str
    layers: int
    bottleneck: int | None
    scheme: str | None


@kinds
def branch(kind: str, *, layers: int = 2, bottleneck: int | None = None, scheme: str | None = None) -> Branch:
    """Skip connections for the ``residual=`` of builders; a kind alone means this with its defaults.

    All have scales ``skip`` and ``branch``; the last kernel and bias of a branch of several have ``sigma_v`` and
    ``sigma_a`` of their own.

    Args:
        kind: ``"pre"``: h + F(h), F = W phi(h) + b or several of these; ``"plain"``: h + V phi(W h + b) + a;
            ``"post"``: phi(h + V phi(W h + b) + a). Of a transformer, where its norm stands (`vgjax.transformer`).
        layers: kernels in a branch.
        bottleneck: width inside a branch; left out, that of the state.
        scheme: stable, complete, rezero, skipinit, fixup or deepnorm (`residual`), of transformers also layer_scale,
            layer_norm_scaling; left out, branch = skip = 1.

    Raises:
        ValueError: an unknown name, a size below 1, or one layer where the kind or the scheme needs two.
    """
    known("residual", kind, ("plain", *PLACES))
    known_scheme(scheme, tuple(dict.fromkeys((*SCHEMES, *TRANSFORMER_SCHEMES))))
    if positive_integer("layers", layers) < 2 and (kind != "pre" or scheme == "fixup"):
        what = "scheme 'fixup'" if kind == "pre" else f"residual {kind!r}"
        raise ValueError(f"layers must be at least 2 for {what}, got {layers}")
    inside = None if bottleneck is None else positive_integer("bottleneck", bottleneck)
    return Branch(kind, layers, inside, scheme)


def as_branch(given: str | Branch, schemes: Sequence[str], kinds: Sequence[str] = ("plain", "pre", "post")) -> Branch:
    """Skip connections as they were asked for, of a kind and with a scheme that the architecture knows."""
    known("residual", given if isinstance(given, str) else given.kind, kinds)
    skips = branch(given) if isinstance(given, str) else given
    known_scheme(skips.scheme, tuple(schemes))
    return skips


PLACES = ("pre", "post", "sandwich", "mix", "parallel", "normalized")
"""Where the norms of a transformer stand (`transformer`)."""

TRANSFORMER_SCHEMES = ("stable", "complete", "rezero", "skipinit", "deepnorm", "layer_scale", "layer_norm_scaling")
"""The schemes of its branches."""


STACK_SCHEMES = ("stable", "complete", "rezero", "skipinit", "fixup")
"""The schemes of stacks of affine layers."""


def residual_block(
    layer: "functools.partial[Spec]",
    skips: Branch,
    before: int,
    after: int,
    *,
    depth: int,
    shortcut: Spec | None = None,
    **of_first: Any,
) -> Spec:
    """One residual block from ``before`` units to ``after``.

    Args:
        layer: `dense` or `conv` with all their options but the sizes.
        skips: how its branch is made.
        depth: residual blocks in the network.
        shortcut: what the skip carries where the shape changes.
        **of_first: options of the branch's first layer alone.
    """
    sizes = [before, *[skips.bottleneck or after] * (skips.layers - 1), after]
    bare = {"activation": "linear"} | {name: None for name in ("norm", "dropout") if name in layer.keywords}
    layers = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        options = (bare if skips.kind != "pre" else {}) | of_first if i == 0 else {}
        # Scaled apart: Fixup sets the last kernel to 0, and the theory has sigma_v for it (Yang and Schoenholz 2017).
        if 0 < i == skips.layers - 1:
            options["names"] = ("sigma_v", "sigma_a")
        layers.append(layer(fan_in, fan_out, **options))
    around = {"shortcut": shortcut, "scheme": skips.scheme, "depth": depth, "dtype": layer.keywords["dtype"]}
    block = residual(chain(*layers), **around)
    if skips.kind != "post":
        return block
    return chain(residual=block, phi=spec(blocks.Activate, activation=layer.keywords["activation"]))


def end_init(kernel_init: Law) -> Law:
    """How the kernels of stem and head are drawn: as the others, but Gaussian where those must not change a width, or
    are given numbers of the one shape of the blocks'."""
    by_law = callable(kernel_init) or (isinstance(kernel_init, str) and kernel_init not in _OF_BLOCKS)
    return kernel_init if by_law else "gaussian"


_OF_BLOCKS = ("identity", "delta_orthogonal")

HEAD: dict[str, Any] = {"names": (OF_HEAD, "sigma_b"), "bias_init": "zero"}
"""The scales of a head, and its bias."""


def stem_scales(skips: Branch | None) -> dict[str, Any]:
    """The scales of a stem: its kernel's own stands at that of the blocks where it is not given; under Fixup, which
    makes those small, at 1."""
    return {"names": ("sigma_in", "sigma_b")} | ({} if skips and skips.scheme == "fixup" else {"follows": "sigma_w"})


def sizes(name: str, given: Any) -> tuple[int, ...]:
    """One or several sizes, checked."""
    # As objects: numpy would make an int of True, and a float of all if one is.
    return tuple(positive_integer(name, size) for size in np.atleast_1d(np.asarray(given, object)))
